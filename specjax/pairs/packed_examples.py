"""Synthetic-task examples as packed training arrays, kept on disk so that a resumed run does not make them again."""

import hashlib
import itertools
import json
import os
import pathlib
from typing import Callable, Literal, Mapping, Sequence
import zipfile

from absl import logging
import numpy as np

from specjax.checkpoints import durable
from specjax.core import errors
from specjax.pairs import target_answers
from specjax.tasks import packing
from specjax.tasks import synthetic
from specjax.tasks import vocabulary

Family = Literal['decoder-only', 'encoder-decoder']


def packed_examples(
    *, split: str, seed: int, num_examples: int, family: Family, length: int, encoder_length: int,
    cache_dir: str | os.PathLike, domains: Sequence[str] = synthetic.DOMAINS,
    answers: target_answers.TargetAnswers | None = None,
) -> dict[str, np.ndarray]:
  """Packed arrays [N, length] of the first `num_examples` examples of a split, by field name of `TrainingBatch`.

  Args:
    split: 'train', 'validation' or 'test'.
    seed: of the stream of examples.
    num_examples: how many examples are packed.
    family: decoder-only rows hold question and answer, encoder-decoder rows hold them apart.
    length: decoder tokens per row.
    encoder_length: encoder tokens per row; unused by decoder-only.
    cache_dir: where the arrays are kept, under a name that is a hash of these arguments, the tokenizer and the version
      of the generator.
    domains: which domains take turns; one named twice comes twice as often.
    answers: a target that answers the questions itself; None takes the reference answers.

  Raises:
    DataError: a token id or position does not fit in 16 bits. Stopped: see `TargetAnswers`.
  """
  tokenizer = vocabulary.load_builtin_tokenizer()
  spec = dict(split=split, seed=seed, num_examples=num_examples, family=family, length=length,
              encoder_length=encoder_length, tokenizer=tokenizer.sha256, domains=list(domains),
              generator=synthetic.VERSION)
  if answers is not None:
    spec['answers'] = answers.identity
  name = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]

  def make():
    examples = list(itertools.islice(synthetic.stream(split, seed=seed, domains=domains), num_examples))
    if answers is not None:
      examples = answers(examples, length=length)
    if family == 'decoder-only':
      return packing.pack_decoder_only(examples, tokenizer, length)
    return packing.pack_encoder_decoder(examples, tokenizer, encoder_length, length)

  return kept(pathlib.Path(cache_dir) / f'{split}-{name}.npz', make)


def kept(path: pathlib.Path, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """The arrays in the file `path`; where there is none, or a damaged one, what `make` gives, narrowed and kept there."""
  if path.is_file():
    try:
      with np.load(path, allow_pickle=False) as stored:
        return dict(stored)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:  # It is a cache: what a power cut broke is made again.
      logging.warning('%s is damaged (%s) and made again', path, error)
  arrays = {key: narrow(array, where=key) for key, array in make().items()}
  path.parent.mkdir(parents=True, exist_ok=True)
  with durable.replacing(path) as file:
    np.savez(file, **arrays)
  logging.info('%s: %d rows', path, len(arrays['tokens']))
  return arrays


def narrow(array: np.ndarray, *, where: str) -> np.ndarray:
  """Token ids and positions in 16 bits, weights in 16-bit floats: a quarter of the memory of a long run's data.

  Raises:
    DataError: an integer of the array called `where` does not fit: it would come back as another token.
  """
  array = np.asarray(array)
  if np.issubdtype(array.dtype, np.floating):
    return array.astype(np.float16)
  bounds = np.iinfo(np.int16)
  if array.size and not bounds.min <= array.min() <= array.max() <= bounds.max:
    raise errors.DataError(
        what=f'packed {where}', got=int(array.max()), expected=f'integers up to {bounds.max}',
        fix='packed data is kept in 16 bits: choose a smaller vocabulary or shorter rows')
  return array.astype(np.int16)
