"""Damage to the files of a checkpoint, one at a time, chosen by a seeded generator."""

import pathlib
import shutil


def files_below(folder):
  """Files that are not empty, in a fixed order; the log of a writer (commit marks) counts like any other."""
  return sorted(path for path in folder.rglob('*') if path.is_file() and path.stat().st_size)


def flip(folder, random):
  path = random.choice(files_below(folder))
  content = bytearray(path.read_bytes())
  bit = random.randrange(8 * len(content))
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)
  return path, f'bit {bit}'


def truncate(folder, random):
  path = random.choice(files_below(folder))
  size = random.randrange(path.stat().st_size)
  path.write_bytes(path.read_bytes()[:size])
  return path, f'{size} bytes left'


def delete(folder, random):
  path = random.choice(files_below(folder))
  path.unlink()
  return path, 'deleted'


def swap(folder, random):
  """The contents of two files whose contents differ; of the same size where there are such, which is the harder case."""
  files = files_below(folder)
  pairs = [(a, b) for i, a in enumerate(files) for b in files[:i] if a.read_bytes() != b.read_bytes()]
  alike = [(a, b) for a, b in pairs if a.stat().st_size == b.stat().st_size and a.name == b.name]
  first, second = random.choice(alike if alike and random.random() < 0.5 else pairs)
  contents = first.read_bytes(), second.read_bytes()
  first.write_bytes(contents[1])
  second.write_bytes(contents[0])
  return first, f'swapped with {second.relative_to(folder)}'


def stray(folder, random):
  """A folder or file that does not belong there: empty, a copy of another, or noise, under a name that could be meant."""
  parent = random.choice([folder, *sorted(path for path in folder.rglob('*') if path.is_dir())])
  name = random.choice((
      'step_99999999', 'checkpoint_99999', 'target.decoder.layers_9.mlp.wo.kernel', 'model-00009-of-00009.safetensors',
      'state', '.zarray', '0.1', 'stray', 'checkpoint.tmp'))
  path = parent / name
  if path.exists():
    path = parent / f'another_{name}'
  kind = random.choice(('folder', 'copy', 'noise'))
  if kind == 'folder':
    path.mkdir()
  elif kind == 'copy':
    source = random.choice(files_below(folder))
    shutil.copy(source, path)
  else:
    path.write_bytes(bytes(random.randrange(256) for _ in range(100)))
  return pathlib.Path(path), kind


DAMAGES = {'flip': flip, 'truncate': truncate, 'delete': delete, 'swap': swap, 'stray': stray}
