"""`load`: a checkpoint of any format that is known, found by looking at it, as a model and its parameters."""

import collections
import contextlib
import importlib
import os
import pathlib
import re
from typing import Any, Iterator, Mapping, NamedTuple

import jax.numpy as jnp

from specjax.checkpoints import descriptions
from specjax.checkpoints import downloads
from specjax.checkpoints import durable
from specjax.checkpoints import leaves
from specjax.checkpoints import manifest
from specjax.core import errors
from specjax.core import protocols
from specjax.models import t5


class Format(NamedTuple):
  """A format: the module that knows it, and the names of its functions.

  Attributes:
    module: is imported when it is asked.
    description: for people.
    detect: (path) -> whether this is one.
    open: (path, config=) -> configuration, {our name: leaf}, {what else is stored: why}; nothing is read yet.
    write: (folder, config, leaves, dtype=) -> None, or None where specjax does not write it.
  """

  module: str
  description: str
  detect: str
  open: str = 'open_checkpoint'
  write: str | None = None


# In the order in which they are tried. A row of this table is all that a file can choose.
FORMATS = {
    'hf': Format('specjax.checkpoints.hf', 'Hugging Face: a folder of config.json and safetensors', 'is_hf', write='write'),
    'native': Format(
        'specjax.checkpoints.native_model', 'specjax: NAME.safetensors and NAME.json', 'is_file', 'open_file', 'write_file'),
    'native_orbax': Format(
        'specjax.checkpoints.native_model', 'specjax: a folder of step_<number>', 'is_orbax', 'open_orbax', 'write_orbax'),
    't5x': Format('specjax.checkpoints.t5x', 'T5X: checkpoint_<step>, legacy or Orbax', 'is_t5x'),
    'gemma_orbax': Format(
        'specjax.checkpoints.gemma_orbax', 'official Gemma: a folder with manifest.ocdbt', 'is_gemma_orbax'),
}
_LAYER = re.compile(r'(encoder/|decoder/|)layer_(\d{1,9})/')


def load(
    path: str | os.PathLike, *, format: str | None = None, config: Any = None, dtype: Any = None, shardings: Any = None,
) -> tuple[protocols.LanguageModel, Any]:
  """(model, parameters) of a checkpoint; each leaf is cast and placed before the next one is read.

  Args:
    path: a file or folder.
    format: a name of `FORMATS`; None finds out.
    config: a `DecoderConfig` or `T5Config`, for formats that hold none or hold a wrong one; None reads or infers it.
    dtype: of parameters and activations; None is bfloat16 where every leaf is stored so, and float32 otherwise.
    shardings: pytree of shardings in the structure of the parameters, one for all, or None for the default device.

  Raises:
    CheckpointError: no format fits, a file is damaged, or weights and configuration do not belong together; everything
      that is missing, extra, misshapen, mistyped or not finite is in the one error.
    ParamError: an unknown format, or a dtype that models do not compute in.
  """
  config, found, extra = open_checkpoint(path, format=format, config=config)
  if dtype is None:
    dtype = jnp.bfloat16 if all(leaf.dtype == jnp.bfloat16 for leaf in found.values()) else jnp.float32
  model = descriptions.make_model(config, dtype=dtype)
  template = descriptions.template(model, where=str(path))
  return model, leaves.load(found, template, dtype=dtype, shardings=shardings, where=str(path), extra=extra)


def open_checkpoint(
    path: str | os.PathLike, *, format: str | None = None, config: Any = None
) -> tuple[Any, dict[str, leaves.Leaf], dict[str, str]]:
  """The configuration, the leaves by our names, and stored tensors without a parameter -> why; nothing is read yet.

  See `load` for arguments and errors.
  """
  if config is not None and type(config) not in descriptions.FAMILIES.values():
    expected = ' or '.join(kind.__name__ for kind in descriptions.FAMILIES.values())
    raise errors.ParamError(what='config', got=type(config).__name__, expected=expected)
  path = local_path(path)
  name = detect(path) if format is None else format
  if name not in FORMATS:
    raise errors.ParamError(what='format', got=name, expected=f'one of {", ".join(FORMATS)}')
  folder = path if path.is_dir() else path.parent
  manifest.verify(folder)
  config, found, extra = _function(name, 'open')(path, config=config)
  _check_depth(config, found, str(path))
  return config, found, extra


def _check_depth(config, found, where):
  """Before a network of so many layers is built, even in the abstract: there are as many in the checkpoint."""
  stored = collections.Counter()
  for name in found:
    match = _LAYER.match(name)
    if match:
      stored[match[1]] = max(stored[match[1]], int(match[2]) + 1)
  if isinstance(config, t5.T5Config):
    wanted = {'encoder/': config.num_encoder_layers, 'decoder/': config.num_decoder_layers}
  else:
    wanted = {'': config.num_layers}
  for stack, count in wanted.items():
    if stored[stack] < count:
      raise errors.CheckpointError(
          what=f'number of {stack}layers', where=where, got=stored[stack], expected=f'{count}, as configured',
          fix='the configuration and the weights do not belong together, or a file is missing')


def local_path(path: str | os.PathLike) -> pathlib.Path:
  """`path`, if something is there.

  Raises:
    CheckpointError: nothing is, or it names a place in the network: `downloads.fetch` goes there, when it is asked to.
  """
  if isinstance(path, str) and downloads.is_remote(path):
    raise errors.CheckpointError(
        what='a checkpoint in the network', where=path, got='no permission to download',
        fix='Fetch it with python -m specjax.convert --allow_download, or specjax.checkpoints.downloads.fetch. '
        + downloads.REQUIREMENTS)
  path = pathlib.Path(path)
  if not path.exists():
    raise errors.CheckpointError(what='no such file or folder', where=str(path))
  return path


def detect(path: str | os.PathLike) -> str:
  """The name in `FORMATS` of what lies at `path`.

  Raises:
    CheckpointError: nothing is there, or nothing that is known.
  """
  path = local_path(path)
  for name in FORMATS:
    if _function(name, 'detect')(path):
      return name
  known = '; '.join(f'{name}: {form.description}' for name, form in FORMATS.items())
  raise errors.CheckpointError(
      what='checkpoint of an unknown format', where=str(path),
      got=sorted(entry.name for entry in path.iterdir())[:20] if path.is_dir() else 'a file', expected=known)


def write(
    folder: str | os.PathLike, config: descriptions.Config, found: Mapping[str, leaves.Leaf], *, format: str,
    dtype: Any = None, **options: Any,
) -> None:
  """Writes a model into the new folder `folder`, which appears whole or not at all; `open_checkpoint` reads it back.

  Args:
    found: leaves by our names; of parameters in memory, `leaves.of(params)`.
    format: a name of `FORMATS` that is written.
    dtype: of every leaf; None keeps each one's own.
    **options: of the format's writer.

  Raises:
    ConfigError: `folder` exists. ParamError: the format is not written.
    CheckpointError: the leaves are not those of `config`, are not finite, or the format has no such model.
  """
  with writing(folder, config, found, format=format, dtype=dtype, **options):
    pass


@contextlib.contextmanager
def writing(
    folder: str | os.PathLike, config: descriptions.Config, found: Mapping[str, leaves.Leaf], *, format: str,
    dtype: Any = None, **options: Any,
) -> Iterator[pathlib.Path]:
  """As `write`, as a context that gives the folder for more files before it gets its name."""
  if format not in FORMATS or FORMATS[format].write is None:
    written = [name for name, form in FORMATS.items() if form.write]
    raise errors.ParamError(what='format', got=format, expected=f'one of {", ".join(written)}')
  model = descriptions.make_model(config, dtype='float32')
  leaves.check(found, descriptions.template(model, where=str(folder)), where=str(folder))
  with durable.creating(folder) as temporary:
    _function(format, 'write')(temporary, config, found, dtype=dtype, **options)
    yield temporary
    if format != 'native_orbax':  # It has a manifest of its own.
      manifest.write(temporary)


def _function(name, role):
  form = FORMATS[name]
  return getattr(importlib.import_module(form.module), getattr(form, role))
