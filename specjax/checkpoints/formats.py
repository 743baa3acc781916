"""`load`: a checkpoint of any format that is known, found by looking at it, as a model and its parameters."""

import importlib
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specjax.checkpoints import leaves
from specjax.core import errors
from specjax.core import protocols
from specjax.models import gemma
from specjax.models import t5


class Format(NamedTuple):
  """A format: the module that reads it, which has `open_checkpoint` and the named test of a path."""

  module: str
  detect: str
  description: str


# In the order in which they are tried. A row of this table is all that a file can choose.
FORMATS = {
    'hf': Format('specjax.checkpoints.hf', 'is_hf', 'Hugging Face folder: config.json and safetensors'),
    't5x': Format('specjax.checkpoints.t5x', 'is_t5x', 'T5X step: checkpoint_<step>, legacy or Orbax'),
}
_MODELS = {gemma.DecoderConfig: gemma.DecoderLM, t5.T5Config: t5.T5LM}
_REMOTE = re.compile(r'(hf|kaggle)://.*', re.DOTALL)


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
  path = pathlib.Path(path)
  config, found, extra = open_checkpoint(path, format=format, config=config)
  if dtype is None:
    dtype = jnp.bfloat16 if all(leaf.dtype == jnp.bfloat16 for leaf in found.values()) else jnp.float32
  model = make_model(config, dtype=dtype)
  template = template_of(model, where=str(path))
  return model, leaves.load(found, template, dtype=dtype, shardings=shardings, where=str(path), extra=extra)


def open_checkpoint(
    path: str | os.PathLike, *, format: str | None = None, config: Any = None
) -> tuple[Any, dict[str, leaves.Leaf], dict[str, str]]:
  """The configuration, the leaves by our names, and stored tensors without a parameter -> why; nothing is read yet.

  See `load` for arguments and errors.
  """
  path = pathlib.Path(path)
  if config is not None and type(config) not in _MODELS:
    raise errors.ParamError(
        what='config', got=type(config).__name__, expected=' or '.join(kind.__name__ for kind in _MODELS))
  name = detect(path) if format is None else format
  if name not in FORMATS:
    raise errors.ParamError(what='format', got=name, expected=f'one of {", ".join(FORMATS)}')
  if not path.exists():
    raise errors.CheckpointError(what='no such file or folder', where=str(path))
  return importlib.import_module(FORMATS[name].module).open_checkpoint(path, config=config)


def detect(path: str | os.PathLike) -> str:
  """The name in `FORMATS` of what lies at `path`.

  Raises:
    CheckpointError: nothing is there, or nothing that is known.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise errors.CheckpointError(what='no such file or folder', where=str(path))
  for name, form in FORMATS.items():
    if getattr(importlib.import_module(form.module), form.detect)(path):
      return name
  known = '; '.join(f'{name}: {form.description}' for name, form in FORMATS.items())
  raise errors.CheckpointError(
      what='checkpoint of an unknown format', where=str(path),
      got=sorted(entry.name for entry in path.iterdir())[:20] if path.is_dir() else 'a file', expected=known)


def make_model(config: Any, *, dtype: Any) -> protocols.LanguageModel:
  """The model of a configuration, with activations and fresh parameters in `dtype`.

  Raises:
    ParamError: models do not compute in `dtype`.
  """
  try:
    kind = jnp.dtype(dtype)
  except TypeError:
    kind = None
  if kind not in (np.dtype(kind) for kind in (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64)):
    raise errors.ParamError(what='dtype', got=str(dtype), expected='bfloat16, float16, float32 or float64')
  return _MODELS[type(config)](config, dtype=kind, param_dtype=kind)


def template_of(model: protocols.LanguageModel, *, where: str) -> Any:
  """Shapes of the parameters; numbers that fit no network together are a CheckpointError."""
  try:
    return jax.eval_shape(model.init, jax.random.key(0))
  except Exception as error:  # flax and JAX raise many types.
    raise errors.CheckpointError(what='configuration', where=where, got=str(error)) from error
