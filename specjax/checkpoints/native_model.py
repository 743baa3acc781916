"""specjax's own models: safetensors beside a JSON description, and checkpoints of training or of `convert` (Orbax).

    NAME.safetensors, NAME.json       '/'-joined names; {"family", "config", "sha256", ...}. A folder may stand for its
                                      model.safetensors
    step_00000100/                    see `native.TrainingCheckpoints`: the leaves below 'params', nothing of an optimizer.
                                      A folder of them stands for its newest intact one
"""

import functools
import os
import pathlib
from typing import Any, Mapping

import numpy as np

from specjax.checkpoints import descriptions
from specjax.checkpoints import leaves
from specjax.checkpoints import native
from specjax.checkpoints import safetensors_file
from specjax.checkpoints import zarr_arrays
from specjax.core import errors

FILE = 'model.safetensors'
_PREFIX = 'params.'


def is_file(path: str | os.PathLike) -> bool:
  """Whether there are a safetensors file and a description beside it, whatever they hold."""
  path = _weights(pathlib.Path(path))
  return path.suffix == '.safetensors' and path.is_file() and path.with_suffix('.json').is_file()


def open_file(
    path: str | os.PathLike, *, config: descriptions.Config | None = None
) -> tuple[descriptions.Config, dict[str, leaves.Leaf], dict[str, str]]:
  """(configuration, leaves, nothing extra) of a safetensors file with its description, once its SHA-256 is verified."""
  path = _weights(pathlib.Path(path))
  description = native.load_description(path)
  if config is None:
    config = descriptions.parse(description, where=str(path.with_suffix('.json')))
  tensors, _ = safetensors_file.read_header(path)
  return config, {
      name: leaves.Leaf(tensor.shape, tensor.dtype, tensor.read, name) for name, tensor in tensors.items()}, {}


def write_file(folder: pathlib.Path, config: descriptions.Config, found: Mapping[str, leaves.Leaf], *, dtype: Any) -> None:
  """Writes model.safetensors and model.json into `folder`, one leaf in memory at a time."""
  named = dict(sorted(found.items()))
  safetensors_file.write(
      folder / FILE, {name: (np.dtype(dtype or leaf.dtype), leaf.shape) for name, leaf in named.items()},
      (functools.partial(leaves.read_as, leaf, dtype or leaf.dtype, name) for name, leaf in named.items()))
  description = descriptions.describe(config) | {
      'sha256': native.sha256_file(folder / FILE),
      'num_parameters': sum(int(np.prod(leaf.shape)) for leaf in named.values())}
  (folder / FILE).with_suffix('.json').write_text(descriptions.as_text(description))


def is_orbax(path: str | os.PathLike) -> bool:
  """Whether a folder is a step of `native.TrainingCheckpoints`, or holds some."""
  path = pathlib.Path(path)
  return _is_step(path) or path.is_dir() and any(_is_step(entry) for entry in path.glob('step_*'))


def open_orbax(
    path: str | os.PathLike, *, config: descriptions.Config | None = None
) -> tuple[descriptions.Config, dict[str, leaves.Leaf], dict[str, str]]:
  """(configuration, leaves, nothing extra) of a checkpoint, once every file has been verified against its manifest."""
  path = pathlib.Path(path).absolute()
  if _is_step(path):
    checkpoints, step = native.TrainingCheckpoints(path.parent), native.step_of(path)
  else:
    checkpoints = native.TrainingCheckpoints(path)
    step = checkpoints.newest()
    if step is None:
      raise errors.CheckpointError(what='no checkpoint', where=str(path), expected='folders step_<number>')
  metadata, folder = checkpoints.metadata(step), checkpoints.path(step)
  if config is None:
    model = metadata.get('model')
    if not isinstance(model, dict):
      raise errors.CheckpointError(what='description of the model', where=str(folder), got=model, expected='an object')
    config = descriptions.parse(model, where=str(folder))
  arrays = zarr_arrays.ArrayFolder(folder / 'arrays')
  found = {}
  for name in sorted(arrays.names):
    if name.startswith(_PREFIX):
      info = arrays.describe(name)
      ours = name.removeprefix(_PREFIX).replace('.', '/')
      found[ours] = leaves.Leaf(info.shape, info.dtype, functools.partial(arrays.read, name), name)
  return config, found, {}


def write_orbax(folder: pathlib.Path, config: descriptions.Config, found: Mapping[str, leaves.Leaf], *, dtype: Any) -> None:
  """Writes step_00000000 into `folder`; the whole model is in memory."""
  params = {name.replace('/', '.'): leaves.read_as(leaf, dtype or leaf.dtype, name) for name, leaf in found.items()}
  native.TrainingCheckpoints(folder).save(0, {'params': params}, {'model': descriptions.describe(config)})


def _weights(path):
  return path / FILE if path.is_dir() else path


def _is_step(path):
  return native.step_of(path) is not None and (path / 'manifest.json').is_file() and (path / 'arrays').is_dir()
