"""The append-only results file: one JSON object per line with a CRC, whole or absent whatever kills the process.

    {... "crc32":"9a0c11d2"}\\n      the CRC is over the canonical JSON of the rest
    {... "crc3                       a torn tail: cut off, with a warning, when the file is opened again
"""

import fcntl
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from specjax.core.errors import ConfigError, DataError

LOG = logging.getLogger('specjax.eval')

# Names that differ between two runs of the same thing; dropped at any depth before results are compared.
VOLATILE = (
    'tstamp', 'answer_id', 'crc32', 'wall_time', 'ttft', 'prefill_time', 'decode_time', 'time_draft', 'time_verify',
    'time_other',
)

_ID_FIELDS = ('run_id', 'point_id', 'question_id', 'repeat')


class Damage(NamedTuple):
  """What was wrong with a file: `torn_bytes` cut from its end, `bad_lines` (1-based) skipped inside it."""

  torn_bytes: int
  bad_lines: tuple[int, ...]


def canonical_json(value: Any) -> bytes:
  """One byte string per value: sorted keys, no white space, ASCII, NaN refused."""
  return json.dumps(value, sort_keys=True, separators=(',', ':'), ensure_ascii=True, allow_nan=False).encode('ascii')


def checksum(row: dict) -> str:
  """8 hex digits: CRC-32 of the canonical JSON of `row` without its `crc32`."""
  return f'{zlib.crc32(canonical_json({k: v for k, v in row.items() if k != "crc32"})):08x}'


def encode_line(row: dict) -> bytes:
  """`row` as one line of the file, its `crc32` last."""
  body = {k: v for k, v in row.items() if k != 'crc32'}
  body['crc32'] = checksum(body)
  return json.dumps(body, separators=(',', ':'), ensure_ascii=True, allow_nan=False).encode('ascii') + b'\n'


def decode_line(line: bytes) -> dict | None:
  """The row of one line, or None when the line does not parse or its CRC is wrong."""
  try:
    row = json.loads(line)
    if isinstance(row, dict) and row.get('crc32') == checksum(row):
      return row
  except (ValueError, RecursionError):
    return None
  return None


def row_id(row: dict) -> tuple:
  """(run_id, point_id, question_id, repeat): what makes a row unique."""
  return tuple(row[name] for name in _ID_FIELDS)


def without_volatile(value: Any) -> Any:
  """`value` without the fields listed in `VOLATILE`, at any depth."""
  if isinstance(value, dict):
    return {k: without_volatile(v) for k, v in value.items() if k not in VOLATILE}
  if isinstance(value, list):
    return [without_volatile(v) for v in value]
  return value


def read(path, *, change: Callable[[dict], dict] = lambda row: row) -> tuple[list[dict], Damage]:
  """The good rows of a file, first occurrence of each id, in file order; and what was wrong with it.

  Args:
    path: the file.
    change: what to keep of a row, for files with very many.
  """
  rows, _, damage = _scan(path, change)
  return rows, damage


def _scan(path, change=lambda row: row):
  """(rows, length of the file up to its last good line, damage)."""
  rows, seen, bad = [], set(), []
  good_end = position = 0
  if not os.path.exists(path):
    return rows, good_end, Damage(0, ())
  with open(path, 'rb') as file:
    for number, line in enumerate(file, 1):
      position += len(line)
      row = decode_line(line) if line.endswith(b'\n') else None
      if row is None:
        bad.append((number, position))
        continue
      good_end = position
      if row_id(row) not in seen:
        seen.add(row_id(row))
        rows.append(change(row))
  inside = tuple(number for number, end in bad if end <= good_end)
  return rows, good_end, Damage(position - good_end, inside)


class RowWriter:
  """Appends rows; after each `append` they are on disk, and a row whose id is already there is left out.

  A batch of rows is one write and one fsync. A write that fails half-way is taken back. One process at a time.

  Args:
    path: the file; its good rows are kept and its torn tail is cut off.

  Attributes:
    rows: the rows that the file held when it was opened.
    ids: of all its rows.

  Raises:
    ConfigError: another process has the file open.
  """

  def __init__(self, path):
    self._path = os.fspath(path)
    self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
      fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      os.close(self._descriptor)
      raise ConfigError(
          what='results file in use', where=self._path, fix='Another run writes there: wait for it, or choose another '
          'output_path.') from None
    self.rows, self._end, self.damage = _scan(self._path)
    self.ids = {row_id(row) for row in self.rows}
    if self.damage.torn_bytes:
      LOG.warning('%s: cut off a torn tail of %d bytes', self._path, self.damage.torn_bytes)
      os.ftruncate(self._descriptor, self._end)
      os.fsync(self._descriptor)
    if self.damage.bad_lines:
      LOG.warning('%s: damaged lines %s are left out and measured again', self._path, list(self.damage.bad_lines))

  def append(self, rows: Iterable[dict]) -> list[dict]:
    """Writes the rows whose ids are new, and returns them.

    Raises:
      DataError: the system refused to write; the file is as it was before.
    """
    new = []
    for row in rows:
      if row_id(row) not in self.ids:
        self.ids.add(row_id(row))
        new.append(row)
    data = b''.join(encode_line(row) for row in new)
    try:
      written = 0
      while written < len(data):
        written += os.pwrite(self._descriptor, data[written:], self._end + written)
      os.fsync(self._descriptor)
    except BaseException as error:
      self.ids.difference_update(row_id(row) for row in new)
      os.ftruncate(self._descriptor, self._end)
      if isinstance(error, OSError):
        raise DataError(
            what=f'results could not be written ({error.strerror})', where=self._path,
            fix='Rows written before are intact: make room and run again with --resume.') from error
      raise
    self._end += len(data)
    return new

  def clear(self):
    """Throws all rows away."""
    os.ftruncate(self._descriptor, 0)
    os.fsync(self._descriptor)
    self.rows, self.ids, self._end = [], set(), 0

  def close(self):
    """Closes the file and gives the lock back."""
    os.close(self._descriptor)

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()
