"""Hugging Face folders: config.json beside model.safetensors, or beside shards and model.safetensors.index.json.

Gemma 1, 2 and 3 (also the text part of multimodal ones), T5 1.0, 1.1 and Flan, Llama 2 and 3. The files name no code and
nothing outside their folder, and weights are read at their offsets, one tensor at a time.
"""

import functools
import json
import math
import pathlib
import re
from typing import Any, Mapping

import numpy as np

from specjax.checkpoints import hf_config
from specjax.checkpoints import hf_names
from specjax.checkpoints import leaves
from specjax.checkpoints import safetensors_file
from specjax.core import errors
from specjax.models import gemma
from specjax.models import t5

WEIGHTS, INDEX, CONFIG = 'model.safetensors', 'model.safetensors.index.json', 'config.json'
MAX_JSON_BYTES = 16 << 20
_PLAIN_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.\-]*\.safetensors')
_PREFIXES = ('model.', 'language_model.model.', 'model.language_model.')

Config = gemma.DecoderConfig | t5.T5Config


def is_hf(path: pathlib.Path) -> bool:
  """Whether `path` is a folder with a config.json that names a model type, whatever it is."""
  try:
    return isinstance(read_config(path).get('model_type'), str)
  except errors.CheckpointError:
    return (path / INDEX).is_file() or (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def open_checkpoint(
    path: pathlib.Path, *, config: Config | None = None
) -> tuple[Config, dict[str, leaves.Leaf], dict[str, str]]:
  """The configuration, the leaves by our names, and the stored tensors that belong to no parameter -> why.

  Args:
    path: the folder.
    config: instead of what config.json says.

  Raises:
    CheckpointError: a file is missing, damaged, or names another one outside the folder; a model or a variant of one that
      is not implemented.
  """
  path = pathlib.Path(path)
  tensors = _tensors(path)
  if config is None:
    where = str(path / CONFIG)
    config = hf_config.parse(read_config(path), where=where, has_head='lm_head.weight' in tensors)
  multimodal = any(hf_names.VISION.fullmatch(name) for name in tensors)
  prefix = _prefix(config, tensors, path)
  head = 'language_model.lm_head.weight' if prefix == 'language_model.model.' else 'lm_head.weight'
  found, taken = {}, set()
  for name, stored in hf_names.of(config, prefix, head).items():
    present = [tensors[candidate] for candidate in stored.names if candidate in tensors]
    taken.update(tensor.name for tensor in present)
    if present:
      found[name] = _leaf(present, stored.transposed)
  if head in tensors and head not in taken:  # Tied, and stored all the same: it must be the embedding.
    embedding = 'token_embedder/embedding' if isinstance(config, t5.T5Config) else 'embedder/embedding'
    copies = [name for name in hf_names.of(config, prefix, head)[embedding].names if name in tensors]
    if copies:
      found[embedding] = _leaf([*(tensors[name] for name in copies), tensors[head]], False)
      taken.add(head)
  extra = {}
  for name in tensors.keys() - taken:
    is_vision = multimodal and prefix != 'model.' and hf_names.VISION.fullmatch(name)
    if not is_vision and not hf_names.UNREAD.fullmatch(name):
      extra[name] = 'no parameter of this configuration'
  return config, found, dict(sorted(extra.items()))


def write(
    folder: pathlib.Path, config: Config, found: Mapping[str, leaves.Leaf], *, dtype: Any = None,
    max_shard_bytes: int = 5 << 30, special_tokens: Mapping[str, Any] | None = None,
) -> None:
  """Writes config.json and the weights into `folder`, one tensor in memory at a time.

  Args:
    dtype: of every tensor; None keeps each one's own.
    max_shard_bytes: files larger than this are split, and get an index.
    special_tokens: `bos_token_id`, `eos_token_id`, ... of config.json; None is the family's own.

  Raises:
    CheckpointError: no Hugging Face family has this configuration, or a leaf is not finite.
  """
  fields = hf_config.to_json(config, special_tokens or {})
  stored = {
      names.names[0]: found[ours]._replace(
          shape=found[ours].shape[::-1], read=functools.partial(_transposed, found[ours])) if names.transposed
      else found[ours]
      for ours, names in hf_names.of(config).items()}
  kinds = {name: np.dtype(dtype or leaf.dtype) for name, leaf in stored.items()}
  sizes = {name: math.prod(leaf.shape) * kinds[name].itemsize for name, leaf in stored.items()}
  shards, size = [[]], 0
  for name in stored:
    if shards[-1] and size + sizes[name] > max_shard_bytes:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += sizes[name]
  of_shard = lambda i: WEIGHTS if len(shards) == 1 else f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors'
  for i, names in enumerate(shards):
    safetensors_file.write(
        folder / of_shard(i), {name: (kinds[name], stored[name].shape) for name in names},
        [functools.partial(leaves.read_as, stored[name], kinds[name], name) for name in names],
        metadata={'format': 'pt'})  # transformers asks for it; it is the layout of numpy.
  if len(shards) > 1:
    weight_map = {name: of_shard(i) for i, names in enumerate(shards) for name in names}
    index = {'metadata': {'total_size': sum(sizes.values())}, 'weight_map': weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + '\n')
  fields['torch_dtype'] = str(next(iter(kinds.values())))
  (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + '\n')


def _transposed(leaf):
  return leaf.read().T


def read_config(path: pathlib.Path) -> dict[str, Any]:
  """The fields of config.json.

  Raises:
    CheckpointError: there is none, or it is no JSON object.
  """
  return read_json(pathlib.Path(path) / CONFIG)


def _tensors(path):
  """Every tensor of the folder by name, the headers and the index checked against each other."""
  single, index = path / WEIGHTS, path / INDEX
  if single.is_file() and index.is_file():
    raise errors.CheckpointError(
        what='two sets of weights', where=str(path), got=f'{WEIGHTS} and {INDEX}', expected='one of them')
  if single.is_file():
    return safetensors_file.read_header(inside(path, WEIGHTS))[0]
  if not index.is_file():
    has_pickle = any(path.glob('*.bin')) or any(path.glob('*.pt*'))
    raise errors.CheckpointError(
        what='no weights', where=str(path), expected=f'{WEIGHTS} or {INDEX}',
        fix='PyTorch files are pickles, which run code when read: save them as safetensors with transformers.'
        if has_pickle else None)
  files = read_json(index).get('weight_map')
  if not isinstance(files, dict) or not files:
    raise errors.CheckpointError(what='weight_map', where=str(index), got=type(files).__name__, expected='an object')
  tensors, problems = {}, []
  for file in sorted({str(file) for file in files.values()}):
    if not _PLAIN_NAME.fullmatch(file):
      raise errors.CheckpointError(
          what='file of a shard', where=str(index), got=file, expected='a plain name in the folder of the index')
    if not (path / file).is_file():
      problems.append(f'{file} is missing')
      continue
    header = safetensors_file.read_header(inside(path, file))[0]
    named = {name for name, its_file in files.items() if its_file == file}
    problems += [f'{name} is not in {file}' for name in sorted(named - header.keys())]
    problems += [f'{name} in {file} is not in the index' for name in sorted(header.keys() - named)]
    tensors |= header
  if problems:
    raise errors.CheckpointError(what='shards', where=str(index), got=leaves.listed(problems), fix='fetch them again')
  return tensors


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
  """`folder / name`, whose content lies in the folder too, or in the blobs of a snapshot of the Hugging Face cache.

  Raises:
    CheckpointError: a symbolic link leads elsewhere.
  """
  path, folder = folder / name, folder.resolve()
  parents = {folder}
  if folder.parent.name == 'snapshots':
    parents.add(folder.parent.parent / 'blobs')
  if path.resolve().parent not in parents:
    raise errors.CheckpointError(
        what='symbolic link out of the folder', where=str(path), got=str(path.resolve()), expected=f'a file in {folder}')
  return path


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The JSON object in a file.

  Raises:
    CheckpointError: there is none.
  """
  if not path.is_file():
    raise errors.CheckpointError(what='no such file', where=str(path))
  try:
    if inside(path.parent, path.name).stat().st_size > MAX_JSON_BYTES:
      raise ValueError(f'more than {MAX_JSON_BYTES} bytes')
    return safetensors_file.parse_json(path.read_bytes())
  except errors.CheckpointError:
    raise
  except (OSError, ValueError, RecursionError) as error:
    raise errors.CheckpointError(what='unreadable JSON', where=str(path), got=str(error)) from error


def _prefix(config, tensors, path):
  if isinstance(config, t5.T5Config):
    return ''
  found = [prefix for prefix in _PREFIXES if f'{prefix}embed_tokens.weight' in tensors]
  if len(found) != 1:
    names = ', '.join(f'{prefix}embed_tokens.weight' for prefix in _PREFIXES)
    raise errors.CheckpointError(what='embedding', where=str(path), got=found or 'none', expected=f'one of {names}')
  return found[0]


def _leaf(copies, transposed):
  """The leaf of a tensor; of several copies the first, once they are known to be equal."""
  first = copies[0]
  shape = first.shape[::-1] if transposed else first.shape

  def read():
    value = first.read()
    for other in copies[1:]:
      if other.dtype != first.dtype or other.shape != first.shape or not _same(value, other):
        raise errors.CheckpointError(
            what=f'{first.name} and {other.name}', where=str(first.path), got='different numbers',
            expected='two copies of one matrix, as the configuration ties them')
    return value.T if transposed else value

  return leaves.Leaf(shape, first.dtype, read, first.name)


def _same(value, tensor, chunk_bytes=1 << 24):
  """Whether the stored tensor has the bytes of `value`; read in chunks, as a second copy would be the largest one."""
  expected = value.reshape(-1).view(np.uint8)
  for start in range(0, expected.size, chunk_bytes):
    part = expected[start:start + chunk_bytes]
    if not np.array_equal(part, np.fromfile(tensor.path, np.uint8, part.size, offset=tensor.offset + start)):
      return False
  return True
