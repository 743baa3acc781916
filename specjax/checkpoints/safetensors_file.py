"""safetensors files: the header is checked before memory is taken, then tensors are read one at a time at their offsets.

    8 bytes, little-endian n | n bytes of JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}} | data

A file is never mapped: mapped pages that were read count as memory of the process until the file is closed.
"""

import json
import math
import os
import pathlib
import struct
from typing import Any, Callable, Iterable, Mapping, NamedTuple

import ml_dtypes
import numpy as np

from specjax.core import errors

MAX_HEADER_BYTES = 16 << 20  # 100,000 tensors; JSON takes ten times its length in memory.
_LENGTH = struct.Struct('<Q')

DTYPES = {
    'F32': np.dtype('<f4'), 'F16': np.dtype('<f2'), 'BF16': np.dtype(ml_dtypes.bfloat16), 'F64': np.dtype('<f8'),
    'I64': np.dtype('<i8'), 'I32': np.dtype('<i4'), 'I16': np.dtype('<i2'), 'I8': np.dtype('i1'), 'BOOL': np.dtype('?'),
    'U64': np.dtype('<u8'), 'U32': np.dtype('<u4'), 'U16': np.dtype('<u2'), 'U8': np.dtype('u1'),
    'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn), 'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Tensor(NamedTuple):
  """Where a tensor lies: `offset` counts bytes from the start of the file."""

  path: pathlib.Path
  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  offset: int

  @property
  def num_bytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  def read(self) -> np.ndarray:
    """The tensor in memory of its own.

    Raises:
      CheckpointError: the file has become shorter.
    """
    count = math.prod(self.shape)
    raw = np.fromfile(self.path, np.uint8, count * self.dtype.itemsize, offset=self.offset)
    if raw.size != self.num_bytes:
      raise errors.CheckpointError(
          what=f'tensor {self.name}', where=str(self.path), got=f'{raw.size} bytes', expected=f'{self.num_bytes}')
    return raw.view(self.dtype).reshape(self.shape)


def read_header(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
  """The tensors of a file by name, and its metadata. Nothing but the header is read.

  Raises:
    CheckpointError: the header is no JSON of the right form, names something twice, or its tensors overlap, leave holes,
      or do not end where the file does.
  """
  path = pathlib.Path(path)
  try:
    size = path.stat().st_size
    with open(path, 'rb') as file:
      start = file.read(_LENGTH.size)
      if len(start) < _LENGTH.size:
        raise ValueError(f'{size} bytes, not even the length of a header')
      (length,) = _LENGTH.unpack(start)
      if length > MAX_HEADER_BYTES or length > size - _LENGTH.size:
        raise ValueError(f'a header of {length} bytes in a file of {size}, at most {MAX_HEADER_BYTES} are read')
      header = parse_json(file.read(length))
    data = _LENGTH.size + length
    metadata = header.pop('__metadata__', {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
      raise ValueError('__metadata__ is not an object of strings')
    tensors = {name: _tensor(path, name, entry, data) for name, entry in header.items()}
    _check_layout(tensors.values(), data, size)
  except (OSError, ValueError, RecursionError) as error:
    raise errors.CheckpointError(
        what='safetensors header', where=str(path), got=str(error), fix='the file is damaged or incomplete') from error
  return tensors, metadata


def parse_json(content: bytes) -> dict[str, Any]:
  """The JSON object in `content`; ValueError where it is none, or where a name comes twice in one object."""
  def unique(pairs):
    values = dict(pairs)
    if len(values) != len(pairs):
      raise ValueError('a name twice in one JSON object')
    return values

  value = json.loads(content.decode('utf-8'), object_pairs_hook=unique)
  if not isinstance(value, dict):
    raise ValueError('no JSON object')
  return value


def write(
    path: str | os.PathLike, tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    arrays: Iterable[Callable[[], np.ndarray]], *, metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes a file tensor by tensor; `arrays` give them in the order of `tensors` (name -> dtype, shape)."""
  header, offset = {'__metadata__': dict(metadata)} if metadata else {}, 0
  for name, (dtype, shape) in tensors.items():
    end = offset + math.prod(shape) * np.dtype(dtype).itemsize
    header[name] = {'dtype': _NAMES[np.dtype(dtype)], 'shape': list(shape), 'data_offsets': [offset, end]}
    offset = end
  encoded = json.dumps(header, separators=(',', ':')).encode()
  encoded += b' ' * (-len(encoded) % 8)  # So that tensors are aligned for readers that map the file.
  with open(path, 'wb') as file:
    file.write(_LENGTH.pack(len(encoded)) + encoded)
    for (name, (dtype, shape)), array in zip(tensors.items(), arrays, strict=True):
      value = array()
      if value.dtype != dtype or value.shape != tuple(shape):
        raise errors.CheckpointError(
            what=f'tensor {name}', got=f'{value.dtype}{list(value.shape)}', expected=f'{dtype}{list(shape)}')
      np.ascontiguousarray(value).view(np.uint8).tofile(file)


def _tensor(path, name, entry, data):
  if not isinstance(entry, dict) or entry.keys() != {'dtype', 'shape', 'data_offsets'}:
    raise ValueError(f'{name!r} has not exactly dtype, shape and data_offsets')
  counts = lambda values: isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
  shape, offsets = entry['shape'], entry['data_offsets']
  if not isinstance(entry['dtype'], str) or entry['dtype'] not in DTYPES:
    raise ValueError(f'{name!r} has dtype {entry["dtype"]!r}')
  if not counts(shape) or not counts(offsets) or len(offsets) != 2 or len(shape) > 32:
    raise ValueError(f'{name!r} has shape {shape} and offsets {offsets}')
  tensor = Tensor(path, name, tuple(shape), DTYPES[entry['dtype']], data + offsets[0])
  if offsets[1] - offsets[0] != tensor.num_bytes:
    raise ValueError(f'{name!r} is {offsets[1] - offsets[0]} bytes, its shape says {tensor.num_bytes}')
  return tensor


def _check_layout(tensors, data, size):
  end = data
  for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
    if tensor.offset != end:
      raise ValueError(f'{tensor.name!r} begins at {tensor.offset}, the tensor before it ends at {end}')
    end += tensor.num_bytes
  if end != size:
    raise ValueError(f'the tensors end at {end}, the file at {size}')
