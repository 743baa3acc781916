"""Configurations as JSON, and models of configurations: a file selects a row of a table and never code."""

import dataclasses
import json
import math
import typing
from typing import Any, Literal, Mapping

import jax
import jax.numpy as jnp

from specjax.core import errors
from specjax.core import protocols
from specjax.models import gemma
from specjax.models import gemma_configs
from specjax.models import t5
from specjax.models import t5_configs

Config = gemma.DecoderConfig | t5.T5Config

FAMILIES = {'gemma': gemma.DecoderConfig, 't5': t5.T5Config}
_MODELS = {gemma.DecoderConfig: gemma.DecoderLM, t5.T5Config: t5.T5LM}
_LARGEST, _LARGEST_COUNT = 1 << 24, 1024  # Beyond this a number is an attack on memory or patience, not a network.

# What a configuration is called on a command line.
PUBLISHED = {
    name: function for module in (gemma_configs, t5_configs) for name, function in vars(module).items()
    if not name.startswith('_') and callable(function) and not isinstance(function, type)
    and function.__module__ == module.__name__}


def describe(config: Config) -> dict[str, Any]:
  """A JSON-able description; `parse` is its inverse."""
  family = next(name for name, kind in FAMILIES.items() if type(config) is kind)
  return {'family': family, 'config': _jsonable(dataclasses.asdict(config))}


def parse(description: Mapping[str, Any], *, where: str) -> Config:
  """The configuration in a description; further entries are left alone.

  Raises:
    CheckpointError: unknown family or field, or a value that is not of its field's type; `where` says in which file.
  """
  family = description.get('family')
  if not isinstance(family, str) or family not in FAMILIES:
    raise errors.CheckpointError(what='family', where=where, got=family, expected=f'one of {sorted(FAMILIES)}')
  try:
    return _from_json(FAMILIES[family], description.get('config'), 'config', where)
  except (TypeError, errors.ParamError, errors.ConfigError) as error:
    raise errors.CheckpointError(what='config', where=where, got=str(error)) from error


def published(name: str) -> Config:
  """The configuration of a published model, by the name of its function in `gemma_configs` or `t5_configs`.

  Raises:
    ConfigError: no such model.
  """
  if name not in PUBLISHED:
    raise errors.ConfigError(what='configuration', got=name, expected=f'one of {", ".join(PUBLISHED)}')
  return PUBLISHED[name]()


def make_model(config: Config, *, dtype: Any) -> protocols.LanguageModel:
  """The model of a configuration, with activations and fresh parameters in `dtype`.

  Raises:
    ParamError: not a configuration, or models do not compute in `dtype`.
  """
  if type(config) not in _MODELS:
    raise errors.ParamError(
        what='config', got=type(config).__name__, expected=' or '.join(kind.__name__ for kind in _MODELS))
  try:
    kind = jnp.dtype(dtype)
  except TypeError:
    kind = None
  names = ('bfloat16', 'float16', 'float32', *(('float64',) if jax.config.jax_enable_x64 else ()))
  if kind is None or kind.name not in names:  # By name: to numpy, None is equal to float64.
    raise errors.ParamError(what='dtype', got=str(dtype), expected=f'one of {", ".join(names)}')
  return _MODELS[type(config)](config, dtype=kind, param_dtype=kind)


def template(model: protocols.LanguageModel, *, where: str) -> Any:
  """Shapes of the parameters, in their structure.

  Raises:
    CheckpointError: the configuration has numbers that fit no network together.
  """
  try:
    return jax.eval_shape(model.init, jax.random.key(0))
  except Exception as error:  # flax and JAX raise many types.
    raise errors.CheckpointError(what='configuration', where=where, got=str(error)) from error


def as_text(description: Mapping[str, Any]) -> str:
  """The JSON text of a description."""
  return json.dumps(description, indent=2, sort_keys=True) + '\n'


def _from_json(kind, values, what, where):
  """The dataclass `kind` from a JSON object; what does not fit its annotations is refused."""
  if not isinstance(values, dict):
    raise errors.CheckpointError(what=what, where=where, got=values, expected='an object')
  hints = typing.get_type_hints(kind)
  converted = {}
  for name, value in values.items():
    if name not in hints:
      raise errors.CheckpointError(what=f'{what} field {name!r}', where=where, expected=f'one of {sorted(hints)}')
    if dataclasses.is_dataclass(hints[name]):
      converted[name] = _from_json(hints[name], value, f'{what}.{name}', where)
    elif _fits(value, hints[name]) and not (name.startswith('num_') and value > _LARGEST_COUNT):
      converted[name] = tuple(value) if isinstance(value, list) else value
    else:
      raise errors.CheckpointError(
          what=f'{what} field {name!r}', where=where, got=value, expected=getattr(hints[name], '__name__', hints[name]))
  return kind(**converted)


def _fits(value, kind):
  """Whether a JSON value is of an annotated type, and of a size that a network could have."""
  arguments = typing.get_args(kind)
  if kind is int:
    return type(value) is int and 0 < value <= _LARGEST
  if kind is float:
    return type(value) in (int, float) and math.isfinite(value)
  if typing.get_origin(kind) is Literal:
    return isinstance(value, str) and value in arguments
  if typing.get_origin(kind) is tuple:
    return isinstance(value, list) and len(value) <= _LARGEST_COUNT and all(_fits(item, arguments[0]) for item in value)
  if arguments:  # A union.
    return any(_fits(value, alternative) for alternative in arguments)
  return isinstance(value, kind)


def _jsonable(value):
  if isinstance(value, dict):
    return {name: _jsonable(item) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_jsonable(item) for item in value]
  return value
