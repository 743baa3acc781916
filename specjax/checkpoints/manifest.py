"""`specjax.sha256.json`: the SHA-256 of every file of a folder, and of the list itself.

Formats like safetensors carry no checksum: a flipped bit of a weight is another weight. Folders that specjax writes have
this file beside the weights, other engines ignore it, and where it is present every byte is verified before one is used.
"""

import hashlib
import json
import os
import pathlib

from specjax.checkpoints import native
from specjax.core import errors

NAME = 'specjax.sha256.json'
_MAX_BYTES = 16 << 20
_READ = ('config.json', 'model.json', 'model.safetensors.index.json')


def write(folder: str | os.PathLike) -> None:
  """Writes the manifest of all files that lie in `folder` now."""
  folder = pathlib.Path(folder)
  files = {
      path.name: [path.stat().st_size, native.sha256_file(path)]
      for path in sorted(folder.iterdir()) if path.is_file() and path.name != NAME}
  (folder / NAME).write_text(json.dumps({'files': files, 'sha256': _seal(files)}, indent=1) + '\n')


def verify(folder: str | os.PathLike) -> bool:
  """Whether `folder` has a manifest; if so, its files are what it says.

  A file that was added later is no damage unless a reader would use it: it may be a tokenizer.

  Raises:
    CheckpointError: naming the first file that is missing, shorter, longer or different; or the manifest itself.
  """
  folder = pathlib.Path(folder)
  path = folder / NAME
  if not path.is_file():
    return False
  try:
    if path.stat().st_size > _MAX_BYTES:
      raise ValueError(f'more than {_MAX_BYTES} bytes')
    content = json.loads(path.read_text())
    files = content['files']
    if content.keys() != {'files', 'sha256'} or content['sha256'] != _seal(files):
      raise ValueError('it was changed')
    expected = {str(name): (int(size), str(digest)) for name, (size, digest) in files.items()}
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise errors.CheckpointError(what='manifest', where=str(path), got=repr(error), fix='fetch the files again') from error
  present = {entry.name for entry in folder.iterdir() if entry.name in _READ or entry.suffix == '.safetensors'}
  for name in sorted(present - expected.keys()):
    raise errors.CheckpointError(what='checkpoint file', where=str(folder / name), got='not in the manifest')
  for name, (size, digest) in expected.items():
    file = folder / name
    if pathlib.PurePath(name).name != name:
      raise errors.CheckpointError(what='file in the manifest', where=str(path), got=name, expected='a plain name')
    problem = None
    if not file.is_file():
      problem = 'missing'
    elif file.stat().st_size != size:
      problem = f'{file.stat().st_size} bytes, it was written with {size}'
    elif native.sha256_file(file) != digest:
      problem = 'damaged: SHA-256 differs'
    if problem:
      raise errors.CheckpointError(what='checkpoint file', where=str(file), got=problem, fix='fetch the files again')
  return True


def _seal(files):
  return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
