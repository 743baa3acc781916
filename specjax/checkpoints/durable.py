"""Files that survive a crash: replaced whole or not at all, and directories that one process at a time writes to."""

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
from typing import BinaryIO, Iterator

from specjax.core import errors

_TEMPORARY_NAME = re.compile(r'\.tmp-(\d+)-.+', re.DOTALL)


def temporary_path(path: str | os.PathLike) -> pathlib.Path:
  """The name beside `path` under which this process prepares it: `.tmp-<process id>-<name>`."""
  path = pathlib.Path(path)
  return path.with_name(f'.tmp-{os.getpid()}-{path.name}')


def is_temporary(name: str) -> bool:
  """Whether `temporary_path` gives such names."""
  return _TEMPORARY_NAME.fullmatch(name) is not None


def remove_leftovers(directory: str | os.PathLike, *, name: str = '') -> None:
  """Removes temporaries whose owner has died or is this process; those of a living process stay.

  Args:
    name: of what they would have become; '' is everything.
  """
  for entry in pathlib.Path(directory).iterdir():
    match = _TEMPORARY_NAME.fullmatch(entry.name)
    if match and entry.name.endswith(f'-{name}' if name else '') and not _is_other_living_process(int(match.group(1))):
      shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink(missing_ok=True)


def _is_other_living_process(number):
  if number == os.getpid():
    return False
  try:
    os.kill(number, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except PermissionError:  # It lives, and belongs to somebody else.
    pass
  return True


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """A context that gives a file to write to; `path` has its old content until the end, and its new one behind it.

  When the block raises, `path` stays as it was and nothing is left beside it.
  """
  path = pathlib.Path(path)
  temporary = temporary_path(path)
  try:
    with open(temporary, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())  # Before the rename: otherwise a power cut can leave an empty file in its place.
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  sync(path.parent)


def replace(path: str | os.PathLike, content: bytes) -> None:
  """Writes `content` so that a reader, or a crash, sees the old file or the new one, never half of either."""
  with replacing(path) as file:
    file.write(content)


@contextlib.contextmanager
def creating(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A context that gives an empty folder to fill, which becomes `directory` at the end.

  When the block raises, or the process dies, there is no `directory`.

  Raises:
    ConfigError: `directory` exists.
  """
  directory = pathlib.Path(directory).absolute()
  exists = errors.ConfigError(
      what='output', where=str(directory), got='it exists', expected='a new folder', fix='remove it or choose another')
  if directory.exists() or directory.is_symlink():
    raise exists
  directory.parent.mkdir(parents=True, exist_ok=True)
  remove_leftovers(directory.parent, name=directory.name)
  temporary = temporary_path(directory)
  temporary.mkdir()
  try:
    yield temporary
    sync_tree(temporary)
    try:
      os.rename(temporary, directory)
    except OSError:  # Somebody else made it in the meantime; only an empty one would have been replaced.
      raise exists from None
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  sync(directory.parent)


def sync(path: str | os.PathLike) -> None:
  """Makes a file, or the names in a directory, durable."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def sync_tree(directory: pathlib.Path) -> None:
  """`sync` of a directory and of everything below it."""
  for path in directory.rglob('*'):
    sync(path)
  sync(directory)


@contextlib.contextmanager
def locked(directory: str | os.PathLike) -> Iterator[None]:
  """A context in which no other process holds `directory`, which is made when missing. The lock dies with its owner.

  Raises:
    ConfigError: another process holds it.
  """
  pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
  descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise errors.ConfigError(
          what='directory in use', where=str(directory), got='another process that writes there',
          fix='wait for it to end, or choose another directory') from None
    yield
  finally:
    os.close(descriptor)
