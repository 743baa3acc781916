"""A frozen target's hidden states of a packed training set on disk, so that heads train without its passes.

    DIRECTORY/
      manifest.json              of which target (SHA-256) and data (fingerprint), the fields of a record, rows per part
      part_00000.array_record    one record per packed row: its fields' bytes one after the other, hidden [T, D] last
      part_00001.array_record

A part is written under a temporary name, synced and renamed: what has its name is whole, and a killed writer goes on with
the first part that is missing.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import ml_dtypes
import numpy as np
import tqdm

from specjax.checkpoints import durable
from specjax.core import checks
from specjax.core import errors
from specjax.core import protocols
from specjax.training import batches
from specjax.training import stopping

DTYPES = {'float32': np.dtype(np.float32), 'bfloat16': np.dtype(ml_dtypes.bfloat16)}
ROWS_PER_PART = 1024
_HIDDEN = 'hidden'
_MAX_MANIFEST_BYTES = 1 << 20


def write(
    directory: str | os.PathLike, *, target: protocols.LanguageModel, params: Any, target_sha256: str,
    data: batches.PackedData, dtype: str, batch_size: int, stop: stopping.StopRequest, show_progress: bool,
    rows_per_part: int = ROWS_PER_PART,
) -> bool:
  """Writes what is missing of the hidden states of `data`; whether all are there (if not, `stop` asked).

  Args:
    directory: of these states and of nothing else.
    target, params: the model.
    target_sha256: of the target's file, for the manifest.
    data: the packed rows.
    dtype: 'float32' or 'bfloat16', of the states on disk.
    batch_size: rows per pass of the target.
    stop: asks to return between two passes.
    show_progress: show a progress bar.
    rows_per_part: rows of a file.

  Raises:
    ConfigError: `directory` holds the states of another target or of other data, or another process writes there.
  """
  checks.choice('dtype', dtype, tuple(DTYPES))
  checks.integer('rows_per_part', rows_per_part, low=1, high=1 << 20)
  directory = pathlib.Path(directory)
  manifest = _manifest(data, target_sha256, dtype, target.embed_dim, rows_per_part)
  with durable.locked(directory):
    durable.remove_leftovers(directory)
    path = directory / 'manifest.json'
    if path.exists():
      _check_same(manifest, _read_manifest(path), path)
    else:
      durable.replace(path, json.dumps(manifest, indent=2, sort_keys=True).encode())
    forward = jax.jit(lambda params, batch: target.forward(params, batch).hidden)
    hidden_of = lambda index: _padded_forward(forward, params, data, index, batch_size)
    return _write_parts(directory, data, hidden_of, manifest, batch_size, stop, show_progress)


def _write_parts(directory, data, hidden_of, manifest, batch_size, stop, show_progress):
  size, dtype = manifest['rows_per_part'], DTYPES[manifest['dtype']]
  bar = tqdm.tqdm(total=len(data), unit='row', desc='hidden states', disable=not show_progress, dynamic_ncols=True)
  with bar:
    for number, start in enumerate(range(0, len(data), size)):
      rows = np.arange(start, min(start + size, len(data)))
      path = _part(directory, number)
      if not path.exists():
        temporary = durable.temporary_path(path)
        writer = _array_record().ArrayRecordWriter(str(temporary), 'group_size:1')
        try:
          for first in range(0, len(rows), batch_size):
            if stop.requested:
              return False
            index = rows[first:first + batch_size]
            hidden = hidden_of(index).astype(dtype)
            for row, states in zip(index, hidden, strict=True):
              writer.write(_encoded(data, row, states))
        finally:
          writer.close()
        durable.sync(temporary)
        os.replace(temporary, path)
        durable.sync(directory)
      bar.update(len(rows))
  return True


def _padded_forward(forward, params, data, index, batch_size):
  """Hidden states of the rows `index`, by one executable: a last batch is filled up with its first row."""
  padded = np.concatenate([index, np.full(batch_size - len(index), index[0])])
  return np.asarray(forward(params, data.rows(padded)))[:len(index)]


class HiddenStates:
  """Packed rows with their hidden states, read from disk; stands where `batches.PackedData` stands.

  Args:
    directory: what `write` has completed.
    target_sha256: of the target that is to be trained on.

  Raises:
    CheckpointError: the states are of another target, or a file is missing or damaged.
  """

  def __init__(self, directory: str | os.PathLike, *, target_sha256: str):
    self._directory = pathlib.Path(directory)
    self._manifest = _read_manifest(self._directory / 'manifest.json')
    if self._manifest['target_sha256'] != target_sha256:
      raise errors.CheckpointError(
          what='target_sha256', where=str(self._directory), got=self._manifest['target_sha256'], expected=target_sha256,
          fix='these hidden states are of another target: remove the folder, they are computed again')
    self._fields = _fields(self._manifest)
    self._readers = [self._open(number) for number in range(-(-len(self) // self._manifest['rows_per_part']))]

  def __len__(self) -> int:
    return self._manifest['num_rows']

  def rows(self, index: np.ndarray, *, input_weight: float = 0.0) -> batches.BatchWithHidden:
    """The rows `index` int[B] with their hidden states; see `PackedData.rows`."""
    size = self._manifest['rows_per_part']
    decoded = [self._decoded(int(row) // size, int(row) % size) for row in index]
    arrays = {name: np.stack([row[name] for row in decoded]) for name, _, _ in self._fields}
    hidden = arrays.pop(_HIDDEN)
    batch = batches.PackedData(arrays).rows(np.arange(len(index)), input_weight=input_weight)
    return batches.BatchWithHidden(batch, hidden)

  def fingerprint(self) -> str:
    """SHA-256 of the manifest, which names data and target."""
    return hashlib.sha256(json.dumps(self._manifest, sort_keys=True).encode()).hexdigest()

  def _open(self, number):
    path, size = _part(self._directory, number), self._manifest['rows_per_part']
    wanted = min(size, len(self) - number * size)
    try:
      reader = _array_record().ArrayRecordReader(str(path), 'readahead_buffer_size:0,max_parallelism:0')
      found = reader.num_records()
    except Exception as error:  # The library raises many types; every one means the same here.
      raise self._damaged(path, str(error), 'a file of hidden states') from error
    if found != wanted:
      raise self._damaged(path, f'{found} records', f'{wanted} records')
    return reader

  def _decoded(self, part, row):
    path = _part(self._directory, part)
    try:
      [record] = self._readers[part].read([row])
    except Exception as error:  # A flipped byte fails the file's own checksum.
      raise self._damaged(path, str(error), 'a readable record') from error
    sizes = [dtype.itemsize * int(np.prod(shape)) for _, dtype, shape in self._fields]
    if len(record) != sum(sizes):
      raise self._damaged(path, f'a record of {len(record)} bytes', f'{sum(sizes)} bytes')
    arrays, offset = {}, 0
    for (name, dtype, shape), size in zip(self._fields, sizes, strict=True):
      arrays[name] = np.frombuffer(record, dtype, count=size // dtype.itemsize, offset=offset).reshape(shape)
      offset += size
    return arrays

  def _damaged(self, path, got, expected):
    return errors.CheckpointError(
        what='hidden states', where=str(path), got=got, expected=expected, fix='remove this file and run again')


def _manifest(data, target_sha256, dtype, embed_dim, rows_per_part):
  fields = [[name, str(array.dtype), list(array.shape[1:])] for name, array in sorted(data.arrays.items())]
  length = data.arrays['tokens'].shape[1]
  return dict(
      target_sha256=target_sha256, data=data.fingerprint(), num_rows=len(data), rows_per_part=rows_per_part, dtype=dtype,
      fields=[*fields, [_HIDDEN, dtype, [length, embed_dim]]])


def _fields(manifest):
  """[(name, dtype, shape)] of a record's arrays."""
  return [(name, np.dtype(DTYPES.get(dtype, dtype)), tuple(map(int, shape))) for name, dtype, shape in manifest['fields']]


def _read_manifest(path):
  try:
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
      raise ValueError(f'more than {_MAX_MANIFEST_BYTES} bytes')
    manifest = json.loads(path.read_text())
    missing = {'target_sha256', 'data', 'num_rows', 'rows_per_part', 'dtype', 'fields'} - manifest.keys()
    if missing or manifest['num_rows'] < 1 or manifest['rows_per_part'] < 1 or _fields(manifest)[-1][0] != _HIDDEN:
      raise ValueError(f'missing {sorted(missing)}' if missing else 'no rows or no fields')
  except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
    raise errors.CheckpointError(
        what='manifest of hidden states', where=str(path), got=repr(error), fix='remove the folder and run again') from error
  return manifest


def _check_same(wanted, stored, path):
  for name in wanted:
    if stored[name] != wanted[name]:
      raise errors.ConfigError(
          what=f'{name} of the hidden states', where=str(path), got=stored[name], expected=wanted[name],
          fix='they are of another target or of other data: remove the folder or choose another')


def _encoded(data, row, states):
  return b''.join([*(np.ascontiguousarray(array[row]).tobytes() for _, array in sorted(data.arrays.items())), states.tobytes()])


def _part(directory, number):
  return directory / f'part_{number:05d}.array_record'


def _array_record() -> Any:
  """The module of ArrayRecord, which comes with tensorflow-datasets but not on every platform."""
  try:
    from array_record.python import array_record_module
  except ImportError as error:
    raise errors.ConfigError(
        what='hidden states on disk', got='no package array_record', expected='pip install array_record',
        fix="or train with hidden_states='computed'") from error
  return array_record_module
