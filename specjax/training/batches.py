"""Batches as a pure function of (seed, step), so that a resumed run sees what the uninterrupted one would have seen."""

import dataclasses
import functools
import hashlib
from typing import Any, Mapping, NamedTuple

import numpy as np

from specjax.core import errors
from specjax.core import types

_FLOATS = ('weights',)


class BatchWithHidden(NamedTuple):
  """A `types.TrainingBatch`, and the target's last hidden states of it, float[B, T, D]."""

  batch: types.TrainingBatch
  hidden: Any


@dataclasses.dataclass(frozen=True)
class PackedData:
  """Packed examples in host memory.

  Attributes:
    arrays: [N, length] by the field names of `types.TrainingBatch`; narrow integer types are fine.
  """

  arrays: Mapping[str, np.ndarray]

  def __post_init__(self):
    unknown = self.arrays.keys() - set(types.TrainingBatch._fields)
    if unknown:
      raise errors.DataError(what=f'array {sorted(unknown)[0]!r}', expected=f'one of {types.TrainingBatch._fields}')
    if len({len(array) for array in self.arrays.values()}) != 1:
      raise errors.DataError(what='packed arrays', got={k: v.shape for k, v in self.arrays.items()}, expected='one N')

  def __len__(self) -> int:
    return len(self.arrays['tokens'])

  def rows(self, index: np.ndarray, *, input_weight: float = 0.0) -> types.TrainingBatch:
    """The rows `index` int[B] as a batch; `input_weight` is the loss weight of tokens that belong to the input."""
    fields = {
        name: array[index].astype(np.float32 if name in _FLOATS else np.int32) for name, array in self.arrays.items()
    }
    if input_weight:
      is_input = (fields['segments'] > 0) & (fields['weights'] == 0)
      fields['weights'] = np.where(is_input, np.float32(input_weight), fields['weights'])
    return types.TrainingBatch(**fields)

  def fingerprint(self) -> str:
    """SHA-256 over names, shapes and contents."""
    digest = hashlib.sha256()
    for name in sorted(self.arrays):
      digest.update(f'{name}{self.arrays[name].shape}{self.arrays[name].dtype}'.encode())
      digest.update(np.ascontiguousarray(self.arrays[name]))
    return digest.hexdigest()


def batch_indices(step: int, *, num_examples: int, batch_size: int, seed: int) -> np.ndarray:
  """int64[batch_size] rows of `step`: each epoch is its own permutation, the incomplete last batch is left out."""
  if not 1 <= batch_size <= num_examples:
    raise errors.DataError(what='batch_size', got=batch_size, expected=f'1 to the {num_examples} packed rows')
  per_epoch = num_examples // batch_size
  epoch, position = divmod(step, per_epoch)
  return _permutation(num_examples, seed, epoch)[position * batch_size : (position + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _permutation(num_examples, seed, epoch):
  """The order of an epoch, read-only. Kept: a million rows take 24 ms, a small drafter's step less."""
  permutation = np.random.default_rng([seed, epoch]).permutation(num_examples)
  permutation.flags.writeable = False
  return permutation


def count_tokens(batch: types.TrainingBatch | BatchWithHidden) -> int:
  """Tokens of a batch that are not padding, encoder included."""
  if isinstance(batch, BatchWithHidden):
    batch = batch.batch
  total = int(np.sum(batch.segments > 0))
  if batch.encoder_segments is not None:
    total += int(np.sum(batch.encoder_segments > 0))
  return total
