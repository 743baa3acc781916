"""Pairs of the user's own checkpoints, named by their two folders."""

import logging
import os
import pathlib
from typing import Any, Literal

import jax.numpy as jnp

from specjax.checkpoints import descriptions
from specjax.checkpoints import formats
from specjax.checkpoints import leaves
from specjax.core import errors
from specjax.core import protocols
from specjax.decode import pair as pair_lib
from specjax.models import t5
from specjax.tasks import framing
from specjax.tasks import prompts
from specjax.tasks import shared_vocabulary
from specjax.tasks import tokenizers

LOG = logging.getLogger('specjax.tasks')

SEPARATOR = '::'


def is_named(name: str) -> bool:
  """Whether `name` is TARGET::DRAFTER, two folders or files."""
  return SEPARATOR in name


def paths_of(name: str) -> tuple[str, str]:
  """The two paths of TARGET::DRAFTER.

  Raises:
    ParamError: not two paths.
  """
  paths = name.split(SEPARATOR)
  if len(paths) != 2 or not all(paths):
    raise errors.ParamError(what='pair', got=name, expected=f'TARGET{SEPARATOR}DRAFTER, two checkpoints')
  return paths[0], paths[1]


def load_named(name: str, **options: Any) -> pair_lib.Pair:
  """The pair called TARGET::DRAFTER; see `load_pair_of` and `paths_of`."""
  return load_pair_of(*paths_of(name), name=name, **options)


def outline(path: str | os.PathLike, *, dtype: Any) -> tuple[protocols.LanguageModel, Any]:
  """(model, shapes of its parameters) of a checkpoint, whose names, shapes and types are checked; no weight is read.

  Raises:
    CheckpointError: as `specjax.load`, apart from numbers that are not finite.
  """
  config, found, extra = formats.open_checkpoint(path)
  model = descriptions.make_model(config, dtype=dtype)
  template = descriptions.template(model, where=str(path))
  leaves.check(found, template, where=str(path), extra=extra)
  return model, template


def load_pair_of(
    target: str | os.PathLike, drafter: str | os.PathLike, *, dtype: Any = jnp.float32,
    vocabulary: Literal['same', 'intersection'] = 'same', tokenizer: str | os.PathLike | None = None,
    drafter_tokenizer: str | os.PathLike | None = None, name: str | None = None, is_outline: bool = False,
) -> pair_lib.Pair:
  """The pair of two checkpoints of any format that `specjax.load` knows, each with its tokenizer.

  Prompts are framed as the models were pre-trained: `bos text` for decoders, `text eos` for encoders. For
  instruction-tuned models see `chat_template_of` and `specjax.tasks.framing`.

  Args:
    target, drafter: checkpoints.
    dtype: of parameters and activations.
    vocabulary: 'same', or 'intersection' for a drafter with another vocabulary (see `shared_vocabulary.make_pair`).
    tokenizer, drafter_tokenizer: files or folders; None looks in the folder of the checkpoint, and the drafter's then in
      the target's.
    name: for people; None is made of the paths.
    is_outline: whether shapes stand for the parameters, of which then nothing is read.

  Raises:
    CheckpointError: a checkpoint cannot be read. VocabError: a tokenizer is missing or does not fit.
  """
  load = outline if is_outline else formats.load
  models = {role: load(path, dtype=dtype) for role, path in (('target', target), ('drafter', drafter))}
  kinds = {role: isinstance(model.config, t5.T5Config) for role, (model, _) in models.items()}
  if kinds['target'] != kinds['drafter']:
    raise errors.ParamError(
        what='pair', got='an encoder-decoder and a decoder', expected='two models of one kind', where=str(name or target))
  family = 'encoder-decoder' if kinds['target'] else 'decoder-only'
  of_target = tokenizers.load(tokenizer or _folder(target))
  of_drafter = of_target
  if drafter_tokenizer or (vocabulary == 'intersection' or _has_tokenizer(drafter)):
    of_drafter = tokenizers.load(drafter_tokenizer or _folder(drafter))
  return shared_vocabulary.make_pair(
      target=models['target'][0], drafter=models['drafter'][0], params={role: params for role, (_, params) in models.items()},
      family=family, target_tokenizer=of_target, drafter_tokenizer=of_drafter, vocabulary=vocabulary,
      name=name or f'{target}{SEPARATOR}{drafter}', start_token=max(of_target.pad_id, 0),
      frame=lambda text: prompts.prompt_tokens(text, of_target, family))


def chat_template_of(path: str | os.PathLike) -> str:
  """What the folder of a checkpoint says about the turns it was tuned with: a key of `framing.TEMPLATES`, or 'none'.

  Instruction-tuned checkpoints come with a template program, base models without one. It is searched, never run.
  """
  program = tokenizers.chat_template(_folder(path))
  if program is None:
    return 'none'
  for name, template in framing.TEMPLATES.items():
    if template.start in program:
      return name
  LOG.warning('%s has a chat template that is not one of %s: prompts are plain', path, ', '.join(framing.TEMPLATES))
  return 'none'


def _folder(path):
  path = pathlib.Path(path)
  return path if path.is_dir() else path.parent


def _has_tokenizer(path):
  """Whether a file of a tokenizer is there, sound or not: a damaged one is no reason to take another."""
  try:
    return bool(tokenizers.files(_folder(path)))
  except errors.VocabError:
    return False
