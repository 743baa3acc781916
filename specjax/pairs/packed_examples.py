"""Synthetic-task examples as packed training arrays, kept on disk so that a resumed run does not make them again."""

import hashlib
import itertools
import json
import os
import pathlib
from typing import Literal, Sequence
import zipfile

from absl import logging
import numpy as np

from specjax.checkpoints import durable
from specjax.core import errors
from specjax.tasks import packing
from specjax.tasks import synthetic
from specjax.tasks import vocabulary

Family = Literal['decoder-only', 'encoder-decoder']


def packed_examples(
    *, split: str, seed: int, num_examples: int, family: Family, length: int, encoder_length: int,
    cache_dir: str | os.PathLike, domains: Sequence[str] = synthetic.DOMAINS,
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

  Raises:
    DataError: a token id or position does not fit in 16 bits.
  """
  tokenizer = vocabulary.load_builtin_tokenizer()
  spec = dict(split=split, seed=seed, num_examples=num_examples, family=family, length=length,
              encoder_length=encoder_length, tokenizer=tokenizer.sha256, domains=list(domains),
              generator=synthetic.VERSION)
  name = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
  path = pathlib.Path(cache_dir) / f'{split}-{name}.npz'
  if path.is_file():
    try:
      with np.load(path, allow_pickle=False) as stored:
        return dict(stored)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:  # It is a cache: what a power cut broke is made again.
      logging.warning('%s is damaged (%s) and made again', path, error)
  examples = list(itertools.islice(synthetic.stream(split, seed=seed, domains=domains), num_examples))
  if family == 'decoder-only':
    arrays = packing.pack_decoder_only(examples, tokenizer, length)
  else:
    arrays = packing.pack_encoder_decoder(examples, tokenizer, encoder_length, length)
  arrays = {key: narrow(array, where=key) for key, array in arrays.items()}
  path.parent.mkdir(parents=True, exist_ok=True)
  with durable.replacing(path) as file:
    np.savez(file, **arrays)
  logging.info('%s: %d examples in %d rows', path, num_examples, len(arrays['tokens']))
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
