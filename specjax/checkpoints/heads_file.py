"""Draft heads on disk: NAME.safetensors beside NAME.json, which names the target they belong to by its bytes."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from specjax.checkpoints import native
from specjax.core import errors
from specjax.models import heads as heads_lib


def describe(config: heads_lib.HeadsConfig, *, target: str | os.PathLike) -> dict[str, Any]:
  """The JSON-able description of heads on the target whose .safetensors file is `target`."""
  return {'family': 'heads', **dataclasses.asdict(config), 'target_sha256': native.sha256_file(target)}


def save(
    path: str | os.PathLike, params: Any, config: heads_lib.HeadsConfig, *, target: str | os.PathLike, **more: Any
) -> None:
  """Writes the heads and their description, with `more` in it."""
  native.save_safetensors(path, params, describe(config, target=target) | more)


def load(
    path: str | os.PathLike, *, target: str | os.PathLike, dtype: Any = jnp.float32
) -> tuple[heads_lib.DraftHeads, Any]:
  """(heads, parameters) of a file, for the target whose .safetensors file is `target`.

  Raises:
    CheckpointError: a file is missing or damaged, or the heads were trained on another target.
  """
  description = native.load_description(path)
  if description.get('family') != 'heads':
    raise errors.CheckpointError(
        what='family', where=str(pathlib.Path(path).with_suffix('.json')), got=description.get('family'), expected='heads')
  sha256 = native.sha256_file(target)
  if description.get('target_sha256') != sha256:
    raise errors.CheckpointError(
        what='target_sha256', where=str(path), got=description.get('target_sha256'), expected=sha256,
        fix='these heads were trained on another target: train them again on this one')
  fields = {field.name: description.get(field.name) for field in dataclasses.fields(heads_lib.HeadsConfig)}
  heads = heads_lib.DraftHeads(heads_lib.HeadsConfig(**fields), dtype=dtype, param_dtype=dtype)
  template = jax.eval_shape(heads.init, jax.random.key(0))
  return heads, native.load_safetensors(path, template, dtype=dtype)
