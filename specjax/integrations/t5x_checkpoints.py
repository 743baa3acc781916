"""Restores the two checkpoints of a pair into one t5x train state. Needs the extra `t5x`."""

from collections.abc import Mapping
import os
from typing import Any

import jax
import jax.numpy as jnp
from t5x import checkpoints
from t5x import train_state as train_state_lib

from specjax.core import errors
from specjax.integrations import t5x_decoding


class PairCheckpointManager(checkpoints.OrbaxCheckpointManagerInterface):
  """t5x's checkpoint manager for the parameters {'target': ..., 'drafter': ...} of `t5x_model.EncoderDecoderPair`.

  The target comes from the path that t5x is configured with, the drafter from `drafter_path`. Each is read by t5x's own manager,
  in any format that it reads (legacy and Orbax), into the sharding that the partitioner gives it.
  """

  def __init__(
      self, directory: str, train_state: Any, partitioner: Any, *, drafter_path: str, restore_dtype: Any = None,
      **options: Any):
    """The manager.

    Args:
      directory, train_state, partitioner, restore_dtype: as in t5x.
      drafter_path: checkpoint of the drafter (`.../checkpoint_<step>`), or a folder of them: the newest.
      **options: the others of t5x's manager.
    """
    super().__init__(directory, train_state, partitioner, restore_dtype=restore_dtype, **options)
    self._pair_state = train_state
    self._drafter_path = drafter_path
    self._read_with = dict(partitioner=partitioner, restore_dtype=restore_dtype)

  def restore(
      self, step: int | None = None, path: str | None = None, fallback_state: Mapping[str, Any] | None = None,
      state_transformation_fns: Any = (), lazy_parameters: bool = False) -> Any:
    """The train state with both models' parameters, and the target's step. Arguments as in t5x.

    Raises:
      ParamError: a fallback state: a drafter that is not restored is a mistake.
      ConfigError: a train state with an optimizer: pairs are decoded, not trained.
      CheckpointError: no checkpoint of the drafter, or position biases that differ between the layers of a stack.
    """
    if fallback_state is not None:
      raise errors.ParamError(what='fallback_state', got='one', expected='none for a pair')
    if not isinstance(self._pair_state, train_state_lib.InferenceState):
      raise errors.ConfigError(
          what='train state of a pair', got=type(self._pair_state).__name__, expected='InferenceState',
          fix='t5x.infer and t5x.eval decode pairs; train the two models apart')
    if path is None:
      path = os.path.join(str(self.directory), f'checkpoint_{self.latest_step() if step is None else step}')
    restored = {}
    for role, source in (('target', path), ('drafter', _newest(self._drafter_path))):
      state = self._role_state(role)
      manager = checkpoints.OrbaxCheckpointManagerInterface(os.path.dirname(source), state, **self._read_with)
      try:
        restored[role] = manager.restore(
            path=source, state_transformation_fns=state_transformation_fns, lazy_parameters=lazy_parameters)
      finally:
        manager.close()
      _check_biases(restored[role].params, source)
    return self._pair_state.restore_state({
        'target': {role: state.params for role, state in restored.items()},
        'state': {'step': restored['target'].step}})

  def restore_from_tf_checkpoint(self, *args: Any, **options: Any) -> Any:
    """Refused: convert it with t5x first."""
    raise errors.CheckpointError(
        what='TensorFlow checkpoint of a pair', expected='checkpoints of t5x', fix='convert both models with t5x first')

  def _role_state(self, role):
    """The train state of one model alone, of shapes."""
    pair = self._pair_state
    axes = None if pair.params_axes is None else pair.params_axes[role]
    return train_state_lib.InferenceState(step=pair.step, params=pair.params[role], params_axes=axes)


def _newest(path):
  """A checkpoint itself, or the newest one of a folder."""
  path = os.path.normpath(path) if '://' not in path else path.rstrip('/')
  if os.path.basename(path).startswith('checkpoint_'):
    return path
  step = checkpoints.latest_step(path)
  if step is None:
    raise errors.CheckpointError(
        what='drafter_path', where=path, got='no checkpoint', expected='a folder checkpoint_<step>, or one that holds some')
  return os.path.join(path, f'checkpoint_{step}')


def _check_biases(params, where):
  """`CheckpointError` unless all layers of a stack have the position bias that specjax shares among them."""
  biases = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    names = [str(key.key) for key in path]
    if names[-1] == 'rel_embedding':
      layers = jnp.moveaxis(leaf, 1, 0) if leaf.ndim == 3 else [leaf]
      biases.setdefault(names[0], []).extend(layers)
  for stack, found in biases.items():
    if not all(bool(jnp.array_equal(bias, found[0])) for bias in found[1:]):
      raise errors.CheckpointError(
          what=f'position bias of the {stack}', where=where, got='layers that differ', expected='the same in every layer',
          fix='specjax shares it among the layers of a stack, as the papers do')
