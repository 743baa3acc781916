"""The official checkpoints of Gemma 1, 2 and 3 (Orbax), read without Orbax or the gemma package.

Three layouts, told apart by the names, here with '/' between all parts ('.' stands for some of them in the files):

    flat      transformer/layer_0/attn/q_einsum/w         as released
    nested    layer_0/attn/q_einsum/w                     a saved params tree; the MLP's leaves have no /w
    stacked   transformer/stacked_layers/attention_type_1/attn/q_einsum/w     leading axis: every so many layers

Shapes (N heads, K key heads, D width, H of a head, F of the MLP): q_einsum [N, D, H] and kv_einsum [2, K, D, H], or
qkv_einsum [3, N, D, H]; attn_vec_einsum [N, H, D]; gating_einsum [2, D, F] or, transposed, [2, F, D]; linear [F, D].
"""

import os
import pathlib
import re
from typing import Iterator, Mapping, NamedTuple

import numpy as np

from specjax.checkpoints import leaves
from specjax.checkpoints import zarr_arrays
from specjax.core import errors
from specjax.models import gemma
from specjax.models import gemma_configs

_VISION = re.compile(r'(.*/)?(SigLiPFromPatches_0|vision_encoder)/.*|embedder/mm_.*')
_LAYER = re.compile(r'layer_(\d{1,4})/(.+)')
_STACKED = re.compile(r'stacked_layers/attention_type_(\d{1,4})/(.+)')
_MAX_LAYERS = 1024
_NORMS = {
    'pre_attention_norm/scale': 'pre_attention_norm/scale', 'post_attention_norm/scale': 'post_attention_norm/scale',
    'pre_ffw_norm/scale': 'pre_mlp_norm/scale', 'post_ffw_norm/scale': 'post_mlp_norm/scale',
    'attn/_query_norm/scale': 'attention/query_norm/scale', 'attn/_key_norm/scale': 'attention/key_norm/scale'}

# Shapes do not tell windows, caps, rotary embeddings and scales: they come from the published model of the same shapes.
PUBLISHED = (
    gemma_configs.gemma_2b, gemma_configs.gemma_7b, gemma_configs.gemma2_2b, gemma_configs.gemma2_9b,
    gemma_configs.gemma2_27b, gemma_configs.gemma3_270m, gemma_configs.gemma3_1b, gemma_configs.gemma3_4b,
    gemma_configs.gemma3_12b, gemma_configs.gemma3_27b)


class _Array(NamedTuple):
  """One stored array, or one slice of its leading axis."""

  arrays: zarr_arrays.ArrayFolder
  name: str
  info: zarr_arrays.ArrayInfo
  index: int | None = None

  @property
  def shape(self):
    return self.info.shape if self.index is None else self.info.shape[1:]

  def part(self, *index):
    """The array at `index` of its own axes."""
    whole = (*(() if self.index is None else (self.index,)), *index)
    return self.arrays.read(self.name, whole if whole else ...)


def is_gemma_orbax(path: str | os.PathLike) -> bool:
  """Whether a folder holds arrays by the official names of Gemma."""
  path = pathlib.Path(path)
  if not (path / 'manifest.ocdbt').is_file() and not (path / '_METADATA').is_file():
    return False
  try:
    names = zarr_arrays.ArrayFolder(path).names
  except errors.CheckpointError:
    return False
  return any(_plain(name) == 'embedder/input_embedding' for name in names)


def open_checkpoint(
    path: str | os.PathLike, *, config: gemma.DecoderConfig | None = None
) -> tuple[gemma.DecoderConfig, dict[str, leaves.Leaf], dict[str, str]]:
  """The configuration, the leaves under our names, and what else is stored: name -> why no parameter takes it.

  Args:
    path: the folder with `manifest.ocdbt`.
    config: None takes the published model that has the shapes. The parts of multimodal models that read images are
      left out.

  Raises:
    CheckpointError: damaged metadata, or shapes of no published model without a configuration.
  """
  path = pathlib.Path(path)
  arrays, found, extra = zarr_arrays.ArrayFolder(path), {}, {}
  for plain, array in _stored(arrays, str(path)):
    if _VISION.fullmatch(plain):
      continue
    ours = _our_leaves(plain, array)
    if not ours or any(name in found for name in ours):
      extra[array.name] = 'no Gemma has it' if not ours else f'a second {next(iter(ours))}'
    found |= ours or {}
  return config or infer({name: leaf.shape for name, leaf in found.items()}, where=str(path)), _oriented(found), extra


def infer(shapes: Mapping[str, tuple[int, ...]], *, where: str) -> gemma.DecoderConfig:
  """The published configuration whose parameters have `shapes` (by our names), vocabulary aside.

  Raises:
    CheckpointError: there is none.
  """
  layers = {name.split('/')[0] for name in shapes if name.startswith('layer_')}
  stored = dict(
      num_layers=len(layers), post_norms='layer_0/post_mlp_norm/scale' in shapes,
      query_key_norm='layer_0/attention/query_norm/scale' in shapes)
  try:
    vocab_size, stored['embed_dim'] = shapes['embedder/embedding']
    stored['hidden_dim'] = shapes['layer_0/mlp/down/kernel'][0]
    stored['queries'] = shapes['layer_0/attention/query/kernel'][1]
    stored['keys'] = shapes['layer_0/attention/key/kernel'][1]
  except (KeyError, ValueError, IndexError) as error:
    raise errors.CheckpointError(
        what='official Gemma checkpoint', where=where, got=f'no matrix {error}', fix='a file is missing') from error
  for published in PUBLISHED:
    config = published(vocab_size=vocab_size)
    described = dict(
        num_layers=config.num_layers, post_norms=config.post_norms, query_key_norm=config.query_key_norm,
        embed_dim=config.embed_dim, hidden_dim=config.hidden_dim, queries=config.num_heads * config.head_dim,
        keys=config.num_kv_heads * config.head_dim)
    if described == stored:
      return config
  raise errors.CheckpointError(
      what='official Gemma checkpoint', where=where, got=stored,
      expected=f'the shapes of one of {", ".join(published.__name__ for published in PUBLISHED)}',
      fix='The files hold no configuration: pass config=DecoderConfig(...).')


def _plain(name):
  """A stored name in the spelling of the nested layout."""
  name = name.replace('.', '/').removeprefix('params/').removeprefix('transformer/')
  return name.removesuffix('/w') if '/mlp/' in name else name


def _stored(arrays, where) -> Iterator[tuple[str, _Array]]:
  """(plain name, array) of everything that is stored; stacked layers one by one, under their own numbers."""
  named = sorted((_plain(name), name) for name in arrays.names)
  kinds = {int(match[1]) for plain, _ in named if (match := _STACKED.fullmatch(plain))}
  for plain, name in named:
    array = _Array(arrays, name, arrays.describe(name))
    match = _STACKED.fullmatch(plain)
    if match is None:
      yield plain, array
      continue
    if not array.info.shape or array.info.shape[0] * len(kinds) > _MAX_LAYERS:
      raise errors.CheckpointError(what=f'stacked array {name}', where=where, got=list(array.info.shape))
    for index in range(array.info.shape[0]):
      yield f'layer_{index * len(kinds) + int(match[1])}/{match[2]}', array._replace(index=index)


def _our_leaves(plain, array):
  """{our name: leaf} of a stored array; None where it has no name or rank that is known."""
  whole = {'embedder/input_embedding': 'embedder/embedding', 'final_norm/scale': 'final_norm/scale'}
  if plain in whole:
    return {whole[plain]: _leaf(array, array.shape, lambda value: value)}
  match = _LAYER.fullmatch(plain)
  if match is None or int(match[1]) != 0 and match[1].startswith('0'):
    return None
  layer, name, shape = f'layer_{match[1]}', match[2], array.shape
  if name in _NORMS:
    return {f'{layer}/{_NORMS[name]}': _leaf(array, shape, lambda value: value)}
  heads_apart = lambda value: np.swapaxes(value, 0, 1).reshape(value.shape[1], -1)  # [N, D, H] -> [D, N * H]
  match name, len(shape):
    case 'attn/q_einsum/w', 3:
      return {f'{layer}/attention/query/kernel': _leaf(array, (shape[1], shape[0] * shape[2]), heads_apart)}
    case ('attn/kv_einsum/w' | 'attn/qkv_einsum/w'), 4:
      parts = ('key', 'value') if 'attn/kv' in name else ('query', 'key', 'value')
      joined = (shape[2], shape[1] * shape[3])
      return None if shape[0] != len(parts) else {
          f'{layer}/attention/{part}/kernel': _leaf(array, joined, heads_apart, index)
          for index, part in enumerate(parts)}
    case 'attn/attn_vec_einsum/w', 3:
      joined = (shape[0] * shape[1], shape[2])
      return {f'{layer}/attention/output/kernel': _leaf(array, joined, lambda value: value.reshape(joined))}
    case 'mlp/gating_einsum', 3:
      return None if shape[0] != 2 else {
          f'{layer}/mlp/{part}/kernel': _leaf(array, shape[1:], lambda value: value, index)
          for index, part in enumerate(('gate', 'up'))}
    case 'mlp/linear', 2:
      return {f'{layer}/mlp/down/kernel': _leaf(array, shape, lambda value: value)}
  return None


def _leaf(array, shape, convert, *index):
  """A leaf of the part of `array` at `index`, turned into `shape` by `convert`."""
  stored_as = array.name + ''.join(f'[{i}]' for i in ((array.index,) if array.index is not None else ()) + index)
  return leaves.Leaf(tuple(shape), array.info.dtype, lambda: convert(array.part(*index)), stored_as)


def _oriented(found):
  """The leaves with the gating matrices as [D, F]; transposed ones are seen by the shape of `down`, [F, D]."""
  def oriented(name, leaf):
    down = found.get(f'{name.split("/")[0]}/mlp/down/kernel')
    if not name.endswith(('mlp/gate/kernel', 'mlp/up/kernel')) or down is None or leaf.shape != down.shape:
      return leaf
    if leaf.shape[0] == leaf.shape[1]:
      raise errors.CheckpointError(
          what=f'matrix {leaf.stored_as}', got=f'{list(leaf.shape)}, the same both ways',
          expected='a hidden width that differs from the embedding\'s', fix='whether it is transposed cannot be seen')
    return leaf._replace(shape=leaf.shape[::-1], read=lambda: leaf.read().T)

  return {name: oriented(name, leaf) for name, leaf in found.items()}
