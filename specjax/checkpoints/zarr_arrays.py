"""The arrays of a TensorStore folder: zarr 2, as plain files or inside OCDBT. Described first, read one at a time.

A TensorStore spec is a program's input: `driver: http` sends a request, a path of its own reads anywhere. None is ever
taken from a file. Every spec is built here from the folder and the name of the array.
"""

import collections
import json
import math
import os
import pathlib
import re
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from specjax.core import errors

_NAME = re.compile(r'[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*')
_CHUNK = re.compile(rb'\d+(\.\d+)*')
_MAX_ENTRIES = 1 << 20
_MAX_METADATA_BYTES = 1 << 16
# Weights compress two to one at best. What claims to be far larger than its folder is not there, and asking for its memory
# is all that it is for.
_MAX_EXPANSION = 64
_SPARE_BYTES = 1 << 20
_DTYPES = {
    '<f2': np.float16, '<f4': np.float32, '<f8': np.float64, 'bfloat16': ml_dtypes.bfloat16, '|b1': np.bool_,
    '|i1': np.int8, '<i2': np.int16, '<i4': np.int32, '<i8': np.int64,
    '|u1': np.uint8, '<u2': np.uint16, '<u4': np.uint32, '<u8': np.uint64}
_COMPRESSORS = ('gzip', 'zlib', 'zstd', 'blosc', 'bz2')


class ArrayInfo(NamedTuple):
  """What the metadata of one array says: its shape and its dtype as stored."""

  shape: tuple[int, ...]
  dtype: np.dtype


def check_name(name: Any, where: str) -> str:
  """`name` if it can only mean something inside a folder: plain components, none of them '.' or '..'."""
  is_plain = isinstance(name, str) and len(name) < 4096 and _NAME.fullmatch(name)
  if not is_plain or {'.', '..'} & set(name.split('/')):
    raise errors.CheckpointError(
        what='name in a checkpoint', where=where, got=repr(name)[:200], expected='letters, digits, _ . - and /')
  return name


def stored_bytes(folder: pathlib.Path) -> int:
  """Bytes of all files below `folder`, as many as the disk holds.

  Raises:
    CheckpointError: a symbolic link that leads out of it, a file with holes, or more entries than a checkpoint has.
  """
  total, count, root = 0, 0, folder.resolve()
  for parent, directories, files in os.walk(folder):
    for name in [*directories, *files]:
      path, count = pathlib.Path(parent, name), count + 1
      if count > _MAX_ENTRIES:
        raise errors.CheckpointError(what='checkpoint folder', where=str(folder), got=f'over {_MAX_ENTRIES} files')
      if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise errors.CheckpointError(
            what='symbolic link', where=str(path), got='a target outside of the checkpoint', expected='files inside it')
    for name in files:
      status = os.stat(os.path.join(parent, name)) if os.path.isfile(os.path.join(parent, name)) else None
      total += 0 if status is None else status.st_size
      # A hole costs no disk and all of its memory.
      if status is not None and status.st_size > _SPARE_BYTES + _MAX_EXPANSION * 512 * status.st_blocks:
        raise errors.CheckpointError(
            what='file', where=os.path.join(parent, name), got=f'{status.st_size} bytes, of which the disk holds next to none')
  return total


class ArrayFolder:
  """The arrays below one folder. Opening lists names; nothing is allocated before `read`.

  Args:
    folder: holds `manifest.ocdbt`, or one folder per array with a `.zarray` in it.

  Raises:
    CheckpointError: the folder cannot be listed, or a link or name leads out of it.
  """

  def __init__(self, folder: str | os.PathLike):
    import tensorstore  # Half a second of import, which the other formats do not need.

    self._folder = pathlib.Path(folder).absolute()
    self._where = str(self._folder)
    self._budget = _MAX_EXPANSION * stored_bytes(self._folder) + _SPARE_BYTES
    self._base = {'driver': 'file', 'path': f'{self._folder}/'}
    if (self._folder / 'manifest.ocdbt').is_file():
      self._base = {'driver': 'ocdbt', 'base': self._base}
    self._context = tensorstore.Context({'cache_pool': {'total_bytes_limit': 0}})
    try:
      self._store = tensorstore.KvStore.open(self._base, context=self._context).result()
      keys = self._store.list().result()
    except Exception as error:  # TensorStore has one type for everything, and that is ValueError among others.
      raise errors.CheckpointError(what='unreadable folder', where=self._where, got=str(error)[:1000]) from error
    found = [key.removesuffix(b'/.zarray') for key in keys if key.endswith(b'/.zarray')]
    self.names = frozenset(check_name(name.decode('utf-8', 'backslashreplace'), self._where) for name in found)
    chunks = (key.rpartition(b'/') for key in keys)
    self._num_chunks = collections.Counter(name for name, _, chunk in chunks if _CHUNK.fullmatch(chunk))

  def describe(self, name: str) -> ArrayInfo:
    """Shape and dtype of an array, from its metadata and the names of its chunks.

    Raises:
      CheckpointError: no such array, metadata that is damaged or of a kind that is not read, missing chunks, or a size that
        the folder cannot hold.
    """
    check_name(name, self._where)
    try:
      file = self._folder / name / '.zarray'
      if file.is_file() and file.stat().st_size > _MAX_METADATA_BYTES:
        raise ValueError(f'{file.stat().st_size} bytes of metadata')
      content = self._store.read(f'{name}/.zarray').result().value
      if not content or len(content) > _MAX_METADATA_BYTES:
        raise ValueError(f'{len(content)} bytes of metadata')
      info, num_chunks = _parsed(json.loads(content))
      if self._num_chunks[name.encode()] != num_chunks:
        raise ValueError(f'{self._num_chunks[name.encode()]} chunks, expected {num_chunks}')
    except Exception as error:
      raise errors.CheckpointError(
          what=f'metadata of array {name}', where=self._where, got=str(error)[:1000] or repr(error)) from error
    size = math.prod(info.shape) * info.dtype.itemsize
    self._budget -= size
    if self._budget < 0:
      raise errors.CheckpointError(
          what=f'array {name}', where=self._where, got=f'{size} bytes of {info.dtype}{list(info.shape)}',
          expected=f'arrays at most {_MAX_EXPANSION} times as large as their folder')
    return info

  def read(self, name: str, index: Any = ...) -> np.ndarray:
    """The array, or its part at a numpy `index`; a chunk that is missing is an error, not zeros."""
    import tensorstore

    spec = {'driver': 'zarr', 'kvstore': {**self._base, 'path': f'{name}/'}, 'fill_missing_data_reads': False}
    if self._base['driver'] == 'file':
      spec['kvstore']['path'] = f'{self._folder}/{name}/'
    array = tensorstore.open(spec, open=True, read=True, context=self._context).result()
    return np.asarray(array[index].read().result())


def _parsed(metadata):
  """`ArrayInfo` of a `.zarray` and its number of chunks.

  ValueError, TypeError or KeyError where it is no array that a checkpoint holds.
  """
  shape, chunks = metadata['shape'], metadata['chunks']
  sizes = [*shape, *chunks]
  if any(isinstance(size, bool) or not isinstance(size, int) or not 0 < size < 1 << 40 for size in sizes):
    raise ValueError(f'shape {shape}, chunks {chunks}')
  if len(shape) != len(chunks) or any(chunk > size for chunk, size in zip(chunks, shape)):
    raise ValueError(f'shape {shape}, chunks {chunks}')
  dtype, compressor = metadata['dtype'], metadata['compressor']
  if not isinstance(dtype, str) or dtype not in _DTYPES:
    raise ValueError(f'dtype {dtype!r}, expected one of {", ".join(_DTYPES)}')
  if compressor is not None and compressor['id'] not in _COMPRESSORS:
    raise ValueError(f'compressor {compressor!r}, expected one of {", ".join(_COMPRESSORS)}')
  kind = metadata['zarr_format'], metadata.get('filters'), metadata.get('dimension_separator', '.')
  if kind != (2, None, '.'):
    raise ValueError(f'zarr format, filters and separator {kind}')
  num_chunks = math.prod(-(-size // chunk) for size, chunk in zip(shape, chunks))
  return ArrayInfo(tuple(shape), np.dtype(_DTYPES[dtype])), num_chunks
