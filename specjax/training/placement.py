"""Where the arrays of a training step live: the rows of a batch over devices, all else on every one of them."""

import dataclasses
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from specjax.core import errors


@dataclasses.dataclass(frozen=True)
class Placement:
  """Data parallelism over the first `num_devices` devices; with one, arrays stay where JAX puts them.

  The compiler sums gradients over the devices, in another order than one device does: what is trained on four is resumed on
  four.
  """

  num_devices: int

  def __post_init__(self):
    if self.num_devices > len(jax.devices()):
      raise errors.TopologyError(
          what='num_devices', got=self.num_devices, expected=f'at most the {len(jax.devices())} that there are')

  def replicated(self, tree: Any) -> Any:
    """`tree` with every array on each device."""
    return self._put(tree, PartitionSpec())

  def split(self, batch: Any) -> Any:
    """`batch` with the rows (leading axis) of every array over the devices."""
    return self._put(batch, PartitionSpec('data'))

  def _put(self, tree, spec):
    if self.num_devices == 1:
      return tree
    mesh = jax.sharding.Mesh(
        np.array(jax.devices()[:self.num_devices]), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.device_put(tree, NamedSharding(mesh, spec))
