"""Where the parts of a pair come from that some methods need beside its two models: shipped with a built-in pair, or a file."""

import itertools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specjax.checkpoints import arpa
from specjax.checkpoints import heads_file
from specjax.core.errors import ConfigError
from specjax.models import autoregressive_head
from specjax.models import heads as heads_lib
from specjax.pairs import builtin
from specjax.pairs import loaded
from specjax.tasks import synthetic
from specjax.training import ngram_counts

# Kinds of heads by role; an argument of `evaluate` has the name of each.
HEADS = {'heads': heads_lib.DraftHeads, 'autoregressive_head': autoregressive_head.AutoregressiveHead}
ORDERS = {'ngrams_2': 2, 'ngrams_4': 4}
ROLES = (*HEADS, *ORDERS)
# Arguments of `evaluate` that name parts.
ARGUMENTS = {'heads': None, 'autoregressive_head': None, 'ngrams': ()}

# Training examples whose answers the n-grams of a built-in pair are counted on.
NUM_EXAMPLES = 4096


def loader(name: str, *, dtype: Any, files: Mapping[str, Any]) -> Callable[[str, Any], tuple[Any, Any] | None]:
  """A function (role, pair) -> (network, parameters) of a part of the pair called `name`, None where it has none.

  Args:
    name: a built-in pair, or TARGET::DRAFTER.
    dtype: of parameters and computation.
    files: what the user names, by `ARGUMENTS`.
  """
  given = ARGUMENTS | dict(files)

  def load(role, pair):
    if role in ORDERS:
      return _ngrams(ORDERS[role], name, pair, given['ngrams'])
    return _heads(role, name, given[role], dtype) if role in HEADS else None

  return load


def _heads(role, name, file, dtype):
  """Heads from the file that is named, or what a built-in pair is shipped with."""
  if file is not None:
    found = heads_file.load(file, target=_target_file(name, role), dtype=dtype)
  elif name in builtin.PAIRS:
    with builtin.target_file(name) as target:
      path = target.with_name(f'{role}.safetensors')
      if not path.exists():
        return None
      found = heads_file.load(path, target=target, dtype=dtype)
  else:
    return None
  if not isinstance(found[0], HEADS[role]):
    raise ConfigError(what=f'{role} file', where=str(file), got=type(found[0]).__name__, expected=HEADS[role].__name__)
  return found


def _ngrams(order, name, pair, files):
  """The model of an order among the files that are named, or one of the answers that a built-in pair was trained on."""
  vocab_size = pair.target.vocab_size
  for file in files:
    model = arpa.read(file, vocab_size=vocab_size)
    if model.order == order:
      return order, model
  if files or name not in builtin.PAIRS:
    return None
  return order, ngram_counts.train(
      _answers(pair), order=order, vocab_size=vocab_size, discount_fallback=ngram_counts.FALLBACK)


def _answers(pair) -> Sequence[Sequence[int]]:
  examples = itertools.islice(synthetic.stream('train'), NUM_EXAMPLES)
  return [[*pair.tokenizer.encode(example.targets), pair.tokenizer.eos_id] for example in examples]


def _target_file(name, role):
  """The file of a pair's target, by whose bytes its heads know it.

  Raises:
    ConfigError: the target is not one file.
  """
  if name in builtin.PAIRS:
    with builtin.target_file(name) as path:
      return path
  path = pathlib.Path(os.fspath(loaded.paths_of(name)[0]))
  found = [path] if path.is_file() else sorted(path.glob('*.safetensors'))
  if len(found) != 1:
    raise ConfigError(
        what=f'{role} of a target in {len(found)} files', where=str(path), expected='a target that is one .safetensors file',
        fix='They name their target by the bytes of that file; `python -m specjax.convert` writes one.')
  return found[0]
