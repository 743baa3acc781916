"""Where parameters and caches live on a mesh: logical axis names from paths, and rules that turn them into shardings.

The mesh has axes of type Auto: `jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))`.
"""

from typing import Any, Mapping

import jax

from specjax.core import errors

# Logical axes of a kernel by the name of its projection. Both families name their projections alike.
KERNEL_AXES = {
    'query': ('embed', 'heads'),
    'key': ('embed', 'kv_heads'),
    'value': ('embed', 'kv_heads'),
    'output': ('heads', 'embed'),
    'gate': ('embed', 'mlp'),
    'up': ('embed', 'mlp'),
    'down': ('mlp', 'embed'),
    'head': ('embed', 'vocab'),
}
# Embeddings of tokens; T5's other embedding is of relative positions, a small table that is never split.
TOKEN_TABLES = ('embedder', 'token_embedder')
# Tensor parallel over 'model', rows over 'data'. A mesh axis that does not divide a dimension replicates it.
DEFAULT_RULES = {
    'batch': 'data', 'vocab': 'model', 'heads': 'model', 'kv_heads': 'model', 'mlp': 'model', 'embed': None}


def parameter_axes(path: tuple[str, ...], num_dims: int) -> tuple[str | None, ...]:
  """Logical axis name of each dimension of the parameter at `path`; None where it is never split."""
  *_, owner, name = ('', *path)
  if name == 'embedding' and owner in TOKEN_TABLES:
    return ('vocab', 'embed')
  if name == 'kernel':
    return KERNEL_AXES.get(owner, (None,) * num_dims)
  return (None,) * num_dims


def parameter_shardings(
    mesh: jax.sharding.Mesh, params: Any, *, num_heads: int, num_kv_heads: int,
    rules: Mapping[str, str | None] = DEFAULT_RULES,
) -> Any:
  """A NamedSharding for every leaf of `params` (arrays or their shapes).

  Attention kernels are split between heads only: where the heads do not divide by the mesh axis they are replicated.

  Raises:
    TopologyError: a rule names a logical axis that no parameter has, or a mesh axis that the mesh has not.
  """
  _check_rules(mesh, rules)
  num_blocks = {'heads': num_heads, 'kv_heads': num_kv_heads}

  def of_leaf(path, leaf):
    axes = parameter_axes(tuple(key.key for key in path), len(leaf.shape))
    blocks = [num_blocks.get(axis, size) for axis, size in zip(axes, leaf.shape)]
    return _sharding(mesh, axes, blocks, rules)

  return jax.tree_util.tree_map_with_path(of_leaf, params)


def state_shardings(mesh: jax.sharding.Mesh, state: Any, *, rules: Mapping[str, str | None] = DEFAULT_RULES) -> Any:
  """A NamedSharding for every leaf of a cache or decoding state: rows over 'batch', of [B, H_kv, S, D_h] also heads.

  Raises:
    TopologyError: as for `parameter_shardings`.
  """
  _check_rules(mesh, rules)

  def of_leaf(leaf):
    num_dims = len(leaf.shape)
    axes = ('batch', 'kv_heads', None, None) if num_dims == 4 else ('batch', *(None,) * (num_dims - 1))
    return _sharding(mesh, axes, leaf.shape, rules)

  return jax.tree.map(of_leaf, state)


def _check_rules(mesh, rules):
  for axis, name in rules.items():
    if axis not in DEFAULT_RULES:
      raise errors.TopologyError(
          what='logical axis of a sharding rule', got=axis, expected=f'one of {tuple(DEFAULT_RULES)}')
    if name is not None and name not in mesh.shape:
      raise errors.TopologyError(
          what=f'mesh axis of the rule for {axis!r}', got=name, expected=f'one of {tuple(mesh.shape)}, or None',
          fix=f'replicate it: rules=dict(DEFAULT_RULES, {axis}=None)')


def _sharding(mesh, axes, sizes, rules):
  def mesh_axis(axis, size):
    name = rules.get(axis)
    return name if name is not None and size % mesh.shape[name] == 0 else None
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*map(mesh_axis, axes, sizes)))
