"""The leaves of a checkpoint in our layout: checked as a whole before any is read, then read one at a time.

A reader of a format gives `Leaf`s, which know their shape and type and nothing else until `read` is called. All that is
wrong with the names, shapes and types is one error, before memory is taken.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from specjax.checkpoints import native
from specjax.core import errors

FLOATS = tuple(np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16))
_LISTED = 40  # problems that an error spells out; a checkpoint of another model has hundreds


class Leaf(NamedTuple):
  """One parameter in a checkpoint.

  Attributes:
    shape: in our layout.
    dtype: as stored.
    read: () -> the array in our layout (numpy, `shape`, `dtype`); nothing is read before.
    stored_as: the name in the file, for errors.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
  stored_as: str


def load(
    leaves: Mapping[str, Leaf], template: Any, *, dtype: Any = None, shardings: Any = None, where: str,
    extra: Mapping[str, str] | None = None,
) -> Any:
  """Parameters in the structure of `template`, each leaf cast and placed before the next is read.

  Args:
    leaves: '/'-joined name of ours -> leaf.
    template: pytree of arrays or ShapeDtypeStructs, as of `jax.eval_shape(model.init, key)`.
    dtype: floating dtype of every leaf; None takes the template's.
    shardings: pytree of shardings in the structure of `template`, one for all, or None for the default device.
    where: the checkpoint, for errors.
    extra: stored tensors that no parameter takes -> why that is wrong; named in the same error.

  Raises:
    CheckpointError: every missing, extra, misshapen or mistyped leaf, before anything is read; or every leaf that holds
      NaN or infinity; or a leaf that cannot be read.
  """
  expected = native.flatten(template)
  check(leaves, template, where=where, extra=extra)
  structure = jax.tree.structure(template)
  if shardings is None or isinstance(shardings, jax.sharding.Sharding):
    placements = [shardings] * structure.num_leaves
  else:
    placements = jax.tree.leaves(shardings, is_leaf=lambda leaf: isinstance(leaf, jax.sharding.Sharding))
  placed, broken = [], []
  for (name, wanted), placement in zip(expected.items(), placements, strict=True):
    target = jnp.dtype(dtype or wanted.dtype)
    value = _cast(_read(leaves[name], name, where), target)
    if not _is_finite(value):  # Read on: every such leaf belongs in the error.
      broken.append(f'{leaves[name].stored_as} holds NaN or infinity, or numbers too large for {target}')
    if not broken:
      # Waits: transfers that run behind would keep the numpy arrays of several leaves alive.
      placed.append(jax.block_until_ready(jax.device_put(value, placement)))
    del value  # Or it would live until the next one has been read.
  if broken:
    raise errors.CheckpointError(what='weights', where=where, got=listed(broken), expected='finite numbers')
  return jax.tree.unflatten(structure, placed)


def of(params: Any) -> dict[str, Leaf]:
  """The leaves of parameters in memory, by our names."""
  def leaf(name, value):
    return Leaf(tuple(value.shape), np.dtype(value.dtype), lambda: np.asarray(value), name)
  return {name: leaf(name, value) for name, value in native.flatten(params).items()}


def read_as(leaf: Leaf, dtype: Any, where: str) -> np.ndarray:
  """A leaf in `dtype`, contiguous.

  Raises:
    CheckpointError: it cannot be read, or is not finite in this dtype.
  """
  value = _cast(_read(leaf, leaf.stored_as, where), np.dtype(dtype))
  if not _is_finite(value):
    raise errors.CheckpointError(
        what=f'tensor {leaf.stored_as}', where=where, got=f'NaN or infinity, or numbers too large for {value.dtype}',
        expected='finite numbers')
  return value


def check(leaves: Mapping[str, Leaf], template: Any, *, where: str, extra: Mapping[str, str] | None = None) -> None:
  """Compares names, shapes and types with `template`; see `load` for arguments and errors."""
  expected = native.flatten(template)
  problems = [f'missing {name}' for name in expected if name not in leaves]
  problems += [f'extra {leaf.stored_as}' for name, leaf in leaves.items() if name not in expected]
  problems += [f'extra {name} ({why})' for name, why in (extra or {}).items()]
  for name, wanted in expected.items():
    leaf = leaves.get(name)
    if leaf is not None and tuple(leaf.shape) != tuple(wanted.shape):
      problems.append(f'{leaf.stored_as} is {list(leaf.shape)} for {name}, expected {list(wanted.shape)}')
    if leaf is not None and np.dtype(leaf.dtype) not in FLOATS:
      problems.append(f'{leaf.stored_as} is {leaf.dtype}, expected one of {", ".join(map(str, FLOATS))}')
  if problems:
    raise errors.CheckpointError(
        what='checkpoint of another model', where=where, got=listed(problems),
        fix='the configuration and the weights do not belong together, or a file is missing')


def _read(leaf, name, where):
  try:
    value = leaf.read()
  except errors.CheckpointError:
    raise
  except Exception as error:  # Every library has its own types for a file that is cut or damaged.
    raise errors.CheckpointError(what=f'unreadable tensor {leaf.stored_as}', where=where, got=str(error)) from error
  if value.shape != tuple(leaf.shape) or value.dtype != leaf.dtype:
    raise errors.CheckpointError(
        what=f'tensor {leaf.stored_as}', where=where, got=f'{value.dtype}{list(value.shape)}',
        expected=f'{leaf.dtype}{list(leaf.shape)}')
  return value


def _cast(value, dtype):
  with np.errstate(over='ignore'):  # What is too large becomes infinity, which the callers look for.
    return value.astype(dtype, order='C', copy=False)


def _is_finite(value, chunk=1 << 22):
  """Whether all numbers are finite; in chunks, as the intermediate booleans of a large embedding are large too."""
  flat = value.reshape(-1)
  return all(np.isfinite(flat[start:start + chunk]).all() for start in range(0, flat.size, chunk))


def listed(problems: Sequence[str]) -> str:
  """The problems in one text, the first ones if there are many."""
  more = f'; and {len(problems) - _LISTED} more' if len(problems) > _LISTED else ''
  return '; '.join(problems[:_LISTED]) + more
