"""The file `checkpoint` of a legacy T5X checkpoint: which parameters there are, and where.

It is msgpack as flax writes it, and untrusted: it is parsed under limits, builds arrays of numbers only, and names nothing
that is opened. A leaf's description is compared with the leaf's own name, then dropped.
"""

import math
import os
import pathlib
from typing import Any, NamedTuple

import ml_dtypes
import msgpack
import numpy as np

from specjax.checkpoints import zarr_arrays
from specjax.core import errors

_MAX_BYTES = 1 << 28
_MAX_DEPTH = 32
_MAX_ITEMS = 1 << 20
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # flax's msgpack extensions
_DTYPES = {
    np.dtype(kind).name: np.dtype(kind)
    for kind in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int32, np.int64, np.uint32, np.uint16, np.bool_)}
_LAST_VERSION = 3


class Described(NamedTuple):
  """A parameter in a folder of its own.

  Attributes:
    shape: as the index has it.
    is_bfloat16_as_uint16: version 2 and older stored bfloat16 as the integers of its bits.
  """

  shape: tuple[int, ...]
  is_bfloat16_as_uint16: bool


def is_index(path: pathlib.Path) -> bool:
  """Whether a file begins as msgpack's maps do. TensorFlow's checkpoints have a text file of the same name."""
  if not path.is_file():
    return False
  with open(path, 'rb') as file:
    first = file.read(1)
  return bool(first) and (first[0] & 0xF0 == 0x80 or first[0] in (0xDE, 0xDF))


def read(path: str | os.PathLike) -> dict[str, np.ndarray | Described]:
  """The parameters of a legacy checkpoint by dotted name, without 'target.' in front: an array, or a `Described`.

  Raises:
    CheckpointError: the file is damaged, too large, of an unknown version, or says something that no T5X wrote.
  """
  path = pathlib.Path(path)
  where = str(path)
  try:
    if path.stat().st_size > _MAX_BYTES:
      raise ValueError(f'{path.stat().st_size} bytes, expected at most {_MAX_BYTES}')
    content = _parse(path.read_bytes())
    version = content.get('version', 0)
    if version not in range(_LAST_VERSION + 1):
      raise ValueError(f'version {version!r}, expected 0 to {_LAST_VERSION}')
    # Version 0 is the optimizer itself.
    target = (content if version == 0 else content['optimizer'])['target']
    if not isinstance(target, dict):
      raise TypeError('target is no tree')
  except Exception as error:  # msgpack's errors have no common base, and a damaged tree fails anywhere.
    raise errors.CheckpointError(what='file checkpoint', where=where, got=repr(error)[:1000]) from error
  found = {}
  pending = [((), target)]
  while pending:  # Without recursion: how deep the tree is was decided by the file.
    parts, node = pending.pop()
    name = '.'.join(parts)
    if isinstance(node, dict) and 'driver' not in node:
      pending.extend(((*parts, zarr_arrays.check_name(key, where)), child) for key, child in node.items())
    elif name in found or not name:
      raise errors.CheckpointError(what=f'parameter {name!r}', where=where, got='named twice' if name else 'no name')
    else:
      found[name] = node if isinstance(node, np.ndarray) else _described(node, name, where, version)
  return found


def _parse(data):
  """The tree in msgpack bytes, under limits: a file can name sizes that it does not have, level for level."""
  content = msgpack.unpackb(
      data, raw=False, strict_map_key=True, ext_hook=_extension, max_array_len=1 << 10, max_map_len=_MAX_ITEMS,
      max_str_len=1 << 12, max_bin_len=0, max_ext_len=len(data))
  if not isinstance(content, dict):
    raise TypeError(f'{type(content).__name__}, expected a map')
  return content


def _extension(code, data):
  """An array or a number; flax's other extensions are nothing that a checkpoint holds."""
  if code not in (_NDARRAY, _SCALAR):
    raise ValueError(f'msgpack extension {code}')
  shape, name, content = msgpack.unpackb(
      data, raw=False, max_array_len=8, max_map_len=0, max_str_len=64, max_bin_len=len(data), max_ext_len=0)
  if name not in _DTYPES or not all(type(size) is int and size >= 0 for size in shape):
    raise ValueError(f'array {name!r}{shape!r}')
  if math.prod(shape) * _DTYPES[name].itemsize != len(content):
    raise ValueError(f'array {name}{shape} of {len(content)} bytes')
  return np.frombuffer(content, _DTYPES[name]).reshape(shape)


def _described(spec: Any, name, where, version):
  """`Described` of a TensorStore spec, of which only shape and dtype are used; its path must be the parameter's own."""
  try:
    if not isinstance(spec, dict) or spec['driver'] != 'zarr':
      raise ValueError(f'driver {spec["driver"]!r}, expected zarr')
    store = spec.get('kvstore', {})
    path = store.get('path', spec.get('path', ''))  # Old writers put it at the top.
    if path.rstrip('/').rsplit('/', 1)[-1] != f'target.{name}':
      raise ValueError(f'path {path!r}')
    shape, dtype = spec['metadata']['shape'], spec.get('dtype', spec['metadata'].get('dtype'))
    if not all(type(size) is int and size > 0 for size in shape):
      raise ValueError(f'shape {shape}')
    return Described(tuple(shape), version < _LAST_VERSION and dtype in ('uint16', '<u2'))
  except Exception as error:
    raise errors.CheckpointError(
        what=f'description of target.{name}', where=where, got=repr(error)[:500], expected='a zarr array of its own name'
    ) from error
