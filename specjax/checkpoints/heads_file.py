"""Draft heads on disk: NAME.safetensors beside NAME.json, which names the target they belong to by its bytes."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from specjax.checkpoints import native
from specjax.core import errors
from specjax.models import autoregressive_head as autoregressive_lib
from specjax.models import heads as heads_lib

Config = heads_lib.HeadsConfig | autoregressive_lib.AutoregressiveHeadConfig

# Of a description's 'family': the configuration, and the network of it.
_FAMILIES = {
    'heads': (heads_lib.HeadsConfig, heads_lib.DraftHeads),
    'autoregressive_head': (autoregressive_lib.AutoregressiveHeadConfig, autoregressive_lib.AutoregressiveHead)}


def make(config: Config, *, dtype: Any = jnp.float32) -> heads_lib.DraftHeads | autoregressive_lib.AutoregressiveHead:
  """The network of a configuration, with activations and fresh parameters in `dtype`."""
  return _FAMILIES[_family_of(config)][1](config, dtype=dtype, param_dtype=dtype)


def describe(config: Config, *, target: str | os.PathLike) -> dict[str, Any]:
  """The JSON-able description of heads on the target whose .safetensors file is `target`."""
  numbers = _target_numbers(target)
  return {
      'family': _family_of(config), **dataclasses.asdict(config), 'target_sha256': native.sha256_file(target),
      **{name: numbers[name] for name in ('vocab_size', 'tokenizer_sha256') if name in numbers}}


def save(path: str | os.PathLike, params: Any, config: Config, *, target: str | os.PathLike, **more: Any) -> None:
  """Writes the heads and their description, with `more` in it."""
  native.save_safetensors(path, params, describe(config, target=target) | more)


def load(path: str | os.PathLike, *, target: str | os.PathLike, dtype: Any = jnp.float32) -> tuple[Any, Any]:
  """(heads, parameters) of a file, for the target whose .safetensors file is `target`.

  Heads are a `DraftHeads` or an `AutoregressiveHead`, as the file says.

  Raises:
    VocabError: the target has another vocabulary than the one they were trained with.
    CheckpointError: a file is missing or damaged, or the heads are of another width or were trained on another target.
  """
  description = native.load_description(path)
  beside = str(pathlib.Path(path).with_suffix('.json'))
  family = description.get('family')
  if not isinstance(family, str) or family not in _FAMILIES:
    raise errors.CheckpointError(what='family', where=beside, got=family, expected=f'one of {", ".join(_FAMILIES)}')
  _check_target(description, target, path)
  kind, network = _FAMILIES[family]
  try:
    config = kind(**{field.name: description.get(field.name) for field in dataclasses.fields(kind)})
  except (errors.ParamError, errors.LimitError) as error:
    raise errors.CheckpointError(what='shape of the heads', where=beside, got=str(error)) from error
  heads = network(config, dtype=dtype, param_dtype=dtype)
  template = jax.eval_shape(heads.init, jax.random.key(0))
  return heads, native.load_safetensors(path, template, dtype=dtype)


def _family_of(config):
  return next(name for name, (kind, _) in _FAMILIES.items() if type(config) is kind)


def _check_target(description, target, path):
  """Refuses heads of another target, by the most telling difference: vocabulary, then width, then the bytes."""
  numbers = _target_numbers(target)
  for name in ('vocab_size', 'tokenizer_sha256'):
    if name in numbers and name in description and description[name] != numbers[name]:
      raise errors.VocabError(
          what=f'{name} of the heads', where=str(path), got=description[name], expected=f"the target's {numbers[name]}",
          fix='these heads were trained on another target: train them again on this one')
  if numbers.get('embed_dim') not in (None, description.get('embed_dim')):
    raise errors.CheckpointError(
        what='width of the heads', where=str(path), got=description.get('embed_dim'),
        expected=f"the target's {numbers['embed_dim']}",
        fix='these heads were trained on another target: train them again on this one')
  sha256 = native.sha256_file(target)
  if description.get('target_sha256') != sha256:
    raise errors.CheckpointError(
        what='target_sha256', where=str(path), got=description.get('target_sha256'), expected=sha256,
        fix='these heads were trained on another target: train them again on this one')


def _target_numbers(target):
  """What the description beside the target's file says of its vocabulary and width; {} where it says nothing."""
  own, of_folder = (_json_object(path) for path in (
      pathlib.Path(target).with_suffix('.json'), pathlib.Path(target).with_name('config.json')))
  if not own:  # A checkpoint in Hugging Face's layout.
    names = {'vocab_size': 'vocab_size', 'embed_dim': 'hidden_size'}
    return {name: of_folder[theirs] for name, theirs in names.items() if theirs in of_folder}
  config = own.get('config')
  config = config if isinstance(config, dict) else {}
  return {name: config[name] for name in ('vocab_size', 'embed_dim') if name in config} | {
      name: own[name] for name in ('tokenizer_sha256',) if name in own}


def _json_object(path):
  """The object in a JSON file; {} where there is none: the bytes of the target decide in any case."""
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}
