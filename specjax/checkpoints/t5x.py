"""Checkpoints of T5X, read without it: encoder-decoders, from the legacy files and from the Orbax layout.

    checkpoint_1000/checkpoint                        msgpack: a tree whose leaves are arrays, or point to folders
    checkpoint_1000/target.decoder.layers_0.mlp.wo.kernel/{.zarray,0.0}

    checkpoint_1000/state/{manifest.ocdbt,d/,...}     Orbax: the same names inside OCDBT, or as plain folders

Layers are folders of their own ('layers_3'), or scanned: one array with the layer as axis 1. Attention kernels are two- or
three-dimensional. The position bias belongs to a stack or to each layer; our family has one per stack, so those of the
layers must be equal.
"""

from collections.abc import Iterator, Mapping
import os
import pathlib
import re
from typing import Any, NamedTuple

from absl import logging
from flax import traverse_util
import ml_dtypes
import numpy as np

from specjax.checkpoints import leaves
from specjax.checkpoints import t5x_index
from specjax.checkpoints import zarr_arrays
from specjax.core import errors
from specjax.models import t5_configs

_STEP_NAME = re.compile(r'checkpoint_(\d+)')
_LAYER_NAME = re.compile(r'layers_(\d{1,4})')
_MAX_LAYERS = 1024

_NORMS = {
    'pre_attention_layer_norm': 'pre_attention_norm', 'pre_self_attention_layer_norm': 'pre_self_attention_norm',
    'pre_cross_attention_layer_norm': 'pre_cross_attention_norm', 'pre_mlp_layer_norm': 'pre_mlp_norm'}
_ATTENTIONS = {
    'attention': 'attention', 'self_attention': 'self_attention', 'encoder_decoder_attention': 'cross_attention'}
_PROJECTIONS = {'query': 'query', 'key': 'key', 'value': 'value', 'out': 'output'}
_MLP = {'wi_0': 'gate', 'wi_1': 'up', 'wi': 'up', 'wo': 'down'}
_WHOLE_MODEL = {
    'token_embedder.embedding': 'token_embedder/embedding', 'encoder.encoder_norm.scale': 'encoder/final_norm/scale',
    'decoder.decoder_norm.scale': 'decoder/final_norm/scale', 'decoder.logits_dense.kernel': 'head/kernel'}


def is_t5x(path: str | os.PathLike) -> bool:
  """Whether a folder is a T5X checkpoint, or holds some by the name checkpoint_<step>."""
  path = pathlib.Path(path)
  return path.is_dir() and (_is_checkpoint(path) or bool(_steps(path)))


def open_checkpoint(
    path: str | os.PathLike, *, config: t5_configs.T5Config | None = None,
) -> tuple[t5_configs.T5Config, dict[str, leaves.Leaf], dict[str, str]]:
  """The configuration, the leaves under our names, and what else is stored: name -> why no parameter takes it.

  Args:
    path: the folder of a checkpoint, or of a run: its newest one. Nothing of the optimizer is read.
    config: the structure; None infers it from the shapes. They do not tell `max_distance`, nor the activation: the MLP
      is gated GELU with two input kernels and ReLU with one, as in the published models.

  Raises:
    CheckpointError: not a T5X checkpoint, damaged metadata, a decoder-only model, or shapes that are no T5.
  """
  folder = _checkpoint_folder(pathlib.Path(path))
  return _opened(dict(_stored_leaves(folder)), config, str(folder))


def open_tree(
    params: Mapping[str, Any], *, config: t5_configs.T5Config | None = None, where: str,
) -> tuple[t5_configs.T5Config, dict[str, leaves.Leaf], dict[str, str]]:
  """As `open_checkpoint`, of a tree of T5X's parameters in memory: nested dicts of numpy or JAX arrays, traced ones too.

  The leaves are read as arrays of the same kind. Position biases of layers are compared only in numpy: traced numbers
  cannot be.
  """
  flat = traverse_util.flatten_dict(dict(params), sep='.')
  return _opened({name: _Inline(value, name) for name, value in flat.items()}, config, where)


def _opened(stored, config, where):
  if not stored:
    raise errors.CheckpointError(what='T5X checkpoint', where=where, got='no parameters', expected='arrays target.*')
  if not any(name.startswith('encoder.') for name in stored):
    raise errors.CheckpointError(
        what='decoder-only T5X checkpoint', where=where, expected='an encoder-decoder',
        fix='its layers have a relative position bias, which the decoder-only family of specjax does not have')
  found, extra, biases = {}, {}, {}
  for name, leaf in stored.items():
    ours = _our_leaves(name, leaf, biases)
    if ours is None:
      extra[f'target.{name}'] = 'no T5 has it'
    for our_name, our_leaf in ours or ():
      if our_name in found:
        extra[f'target.{name}'] = f'a second {our_name}'
      found[our_name] = our_leaf
  for stack, per_layer in biases.items():
    found[f'{stack}/relative_bias/embedding'] = _shared_bias(stack, per_layer, where)
  return config or _inferred(found, stored, where), found, extra


def _is_checkpoint(folder):
  state = folder / 'state'
  return t5x_index.is_index(folder / 'checkpoint') or (state / 'manifest.ocdbt').is_file() or any(
      state.glob('target.*/.zarray'))


def _steps(folder):
  """(step, folder) of the checkpoints in the folder of a run, oldest first."""
  found = []
  for entry in folder.iterdir():
    match = _STEP_NAME.fullmatch(entry.name)
    if match and entry.is_dir() and not entry.is_symlink() and _is_checkpoint(entry):
      found.append((int(match.group(1)), entry))
    elif match:
      logging.warning('%s: ignored, it is not a complete checkpoint', entry)
  return sorted(found)


def _checkpoint_folder(path):
  if path.is_dir() and _is_checkpoint(path):
    return path
  steps = _steps(path) if path.is_dir() else []
  if not steps:
    raise errors.CheckpointError(
        what='T5X checkpoint', where=str(path), got='no checkpoint',
        expected='a folder with a file checkpoint or a folder state, or one with folders checkpoint_<step>')
  return steps[-1][1]


def _stored_leaves(folder) -> Iterator[tuple[str, '_Stored']]:
  """(dotted name without 'target.', leaf) of every parameter."""
  if t5x_index.is_index(folder / 'checkpoint'):
    arrays = zarr_arrays.ArrayFolder(folder)  # First: it refuses links that lead out, the index's own too.
    entries = t5x_index.read(folder / 'checkpoint')
    unlisted = sorted(
        name for name in arrays.names if name.startswith('target.') and name.removeprefix('target.') not in entries)
    if unlisted:
      raise errors.CheckpointError(
          what='arrays that the file checkpoint does not list', where=str(folder), got=', '.join(unlisted[:10]))
    for name, entry in entries.items():
      yield name, _Inline(entry, name) if isinstance(entry, np.ndarray) else _listed_array(
          arrays, name, entry, str(folder))
    return
  arrays = zarr_arrays.ArrayFolder(folder / 'state')
  for name in sorted(arrays.names):
    if name.startswith('target.'):
      yield name.removeprefix('target.'), _Array(arrays, name, arrays.describe(name))


def _listed_array(arrays, name, entry, where):
  """`_Array` of a leaf that the legacy index describes; index and array must agree."""
  info = arrays.describe(f'target.{name}')
  dtype = np.dtype(ml_dtypes.bfloat16) if entry.is_bfloat16_as_uint16 else info.dtype
  if info.shape != entry.shape:
    raise errors.CheckpointError(
        what=f'array target.{name}', where=where, got=list(info.shape),
        expected=f'{list(entry.shape)}, as the file checkpoint says')
  return _Array(arrays, f'target.{name}', zarr_arrays.ArrayInfo(info.shape, dtype))


class _Inline(NamedTuple):
  """A parameter inside the legacy file itself, or in memory."""

  value: Any
  name: str

  @property
  def info(self):
    return zarr_arrays.ArrayInfo(self.value.shape, self.value.dtype)

  def read(self, index=...):
    return self.value[index]


class _Array(NamedTuple):
  """A parameter in an `ArrayFolder`; `info.dtype` may reinterpret what is stored in as many bytes."""

  arrays: zarr_arrays.ArrayFolder
  name: str
  info: zarr_arrays.ArrayInfo

  def read(self, index=...):
    value = self.arrays.read(self.name, index)
    return value if value.dtype == self.info.dtype else np.ascontiguousarray(value).view(self.info.dtype)


_Stored = _Inline | _Array


def _our_leaves(name, stored, biases):
  """[(our name, leaf)] of a stored parameter, or None; position biases are put into `biases`, stack -> {layer: leaf}."""
  if name in _WHOLE_MODEL:
    return [(_WHOLE_MODEL[name], _leaf(stored, stored.info.shape))]
  stack, *rest = name.split('.')
  if stack not in ('encoder', 'decoder'):
    return None
  if rest == ['relpos_bias', 'rel_embedding']:
    biases.setdefault(stack, {})[None] = _leaf(stored, stored.info.shape, transposed=True)
    return []
  match = _LAYER_NAME.fullmatch(rest[0]) if rest else None
  if match and match.group(1) == str(int(match.group(1))):
    numbers, axis = [int(match.group(1))], None
  elif rest and rest[0] == stack and 1 < len(stored.info.shape) and stored.info.shape[1] <= _MAX_LAYERS:
    numbers, axis = range(stored.info.shape[1]), 1
  else:
    return None
  found = []
  for number in numbers:
    index = ... if axis is None else (slice(None), number)
    shape = stored.info.shape if axis is None else (stored.info.shape[0], *stored.info.shape[2:])
    if rest[1:] == ['relpos_bias', 'rel_embedding']:
      biases.setdefault(stack, {})[number] = _leaf(stored, shape, index, transposed=True)
      continue
    ours = _layer_parameter(rest[1:], shape)
    if ours is None:
      return None
    found.append((f'{stack}/layer_{number}/{ours[0]}', _leaf(stored, ours[1], index)))
  return found


def _layer_parameter(parts, shape):
  """(our name below the layer, shape in our layout) of one layer's parameter, or None."""
  match parts:
    case [norm, 'scale'] if norm in _NORMS:
      return f'{_NORMS[norm]}/scale', shape
    case ['mlp', kernel, 'kernel'] if kernel in _MLP:
      return f'mlp/{_MLP[kernel]}/kernel', shape
    case [attention, projection, 'kernel'] if attention in _ATTENTIONS and projection in _PROJECTIONS:
      name = f'{_ATTENTIONS[attention]}/{_PROJECTIONS[projection]}/kernel'
      if len(shape) == 3:  # Heads apart: [D, N, H], and [N, H, D] of the output.
        shape = (shape[0] * shape[1], shape[2]) if projection == 'out' else (shape[0], shape[1] * shape[2])
      return name, shape
  return None


def _leaf(stored, shape, index=..., *, transposed=False):
  """`leaves.Leaf` that reads the part of a stored parameter at `index` in `shape`."""
  def read():
    value = stored.read(index)
    if not transposed:
      return value.reshape(shape)
    return np.ascontiguousarray(value.T) if isinstance(value, np.ndarray) else value.T
  stored_as = f'target.{stored.name.removeprefix("target.")}' + ('' if index is ... else f'[:, {index[1]}]')
  return leaves.Leaf(tuple(shape[::-1] if transposed else shape), stored.info.dtype, read, stored_as)


def _shared_bias(stack, per_layer: Mapping[int | None, leaves.Leaf], where):
  """One leaf for the position biases of a stack; reading it compares those of all its layers."""
  first = per_layer[min(per_layer, key=lambda number: -1 if number is None else number)]

  def read():
    value = first.read()
    for other in per_layer.values():
      if other is not first and isinstance(value, np.ndarray) and not np.array_equal(other.read(), value):
        raise errors.CheckpointError(
            what=f'position bias of the {stack}', where=where, got=f'{other.stored_as} differs from {first.stored_as}',
            expected='the same in every layer', fix='specjax shares it among the layers of a stack, as the papers do')
    return value

  odd = [leaf for leaf in per_layer.values() if leaf.shape != first.shape or leaf.dtype != first.dtype]
  if odd:
    raise errors.CheckpointError(
        what=f'position bias of the {stack}', where=where, got=f'{odd[0].dtype}{list(odd[0].shape)}',
        expected=f'{first.dtype}{list(first.shape)} in every layer')
  return first._replace(read=read)


def _inferred(found, stored, where):
  """`T5Config` of what was found; inconsistent leaves are for `leaves.check`, which lists them."""
  def shape(name, rank=2):
    leaf = found.get(name)
    if leaf is None or len(leaf.shape) != rank:
      raise errors.CheckpointError(
          what=f'parameter {name}', where=where, got='missing' if leaf is None else list(leaf.shape),
          expected=f'{rank} axes', fix='pass config= if this is a T5 of another shape; otherwise it is not one')
    return leaf.shape

  def depth(stack):
    numbers = {int(name.split('/')[1].removeprefix('layer_')) for name in found if name.startswith(f'{stack}/layer_')}
    return len(numbers)

  vocab_size, embed_dim = shape('token_embedder/embedding')
  num_buckets, num_heads = shape('decoder/relative_bias/embedding')
  joined = shape('decoder/layer_0/self_attention/query/kernel')[1]
  tied = 'head/kernel' not in found
  if joined % num_heads:
    raise errors.CheckpointError(
        what='width of queries', where=where, got=joined, expected=f'a multiple of {num_heads}, the number of heads')
  return t5_configs.T5Config(
      vocab_size=vocab_size, embed_dim=embed_dim, num_heads=num_heads, head_dim=joined // num_heads,
      mlp_dim=shape('decoder/layer_0/mlp/down/kernel')[0], num_encoder_layers=depth('encoder'),
      num_decoder_layers=depth('decoder'), mlp='gated_gelu' if 'decoder/layer_0/mlp/gate/kernel' in found else 'relu',
      tied_head=tied, scale_logits=tied, num_buckets=num_buckets)
