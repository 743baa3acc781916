"""The official gemma package's Transformer as a `LanguageModel`: its own modules and parameters under the loops of specjax.

The package writes new keys into one slot for the whole batch, `end_index[0]`, but rows accept different numbers of tokens. So
every row is a batch of one, mapped over with `jax.vmap`: each has its own end, and a slot is the index of its token.

    cache    a  b  c  x  x  .        length 3: x is what was rejected, masked, and overwritten by the next block
    block             d  e           count 2, written to slots 3 and 4; d sees slots 0..3, e sees 0..4

Masks and positions are given, so trees need nothing special. Nothing here imports the package: an instance of its Transformer
brings all that is used (`apply`, `init`, `dtype`, and `config` with `num_embed` and `init_cache`). specjax's own Gemma
(`specjax.models.gemma`, same checkpoints) is faster: its caches of sliding-window layers are as long as the window and its
attention reads the live prefix only, while here every pass reads all slots.
"""

import dataclasses
from typing import Any, ClassVar

from flax import struct
import jax
import jax.numpy as jnp

from specjax.core import errors
from specjax.core import types

_OWN = 'end_index'  # what the package keeps of a row's end; `GemmaCache.length` is ours


@struct.dataclass(kw_only=True)
class GemmaCache:
  """`length` int32[B], tokens that each row covers; `layers`: by layer 'k' and 'v' dtype[B, S, K, H], 'positions' int32[B, S]."""

  length: jax.Array
  layers: dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class GemmaPackageLM:
  """A `gm.nn` Transformer behind `specjax.core.protocols.LanguageModel`; text only.

  Parameters are the package's nested tree, as of `gm.ckpts.load_params`.

  Attributes:
    transformer: the package's module, such as `gm.nn.Gemma3_1B()`.
    return_hidden: whether outputs carry the hidden states, for drafters and rules that read them.
  """

  transformer: Any
  return_hidden: bool = False

  max_extend: ClassVar[None] = None  # full caches: any width fits
  max_length: ClassVar[None] = None

  def __post_init__(self):
    for name in ('apply', 'init', 'config'):
      if not hasattr(self.transformer, name):
        raise errors.ConfigError(
            what='transformer', got=type(self.transformer).__name__, expected='a Transformer of the gemma package',
            fix='write GemmaPackageLM(gm.nn.Gemma3_1B())')

  @property
  def vocab_size(self) -> int:
    """Number of tokens."""
    return self.transformer.config.num_embed

  def init(self, key: jax.Array) -> Any:
    """Fresh parameters, in the package's dtype."""
    return self.transformer.init(key, jnp.ones((1, 1), jnp.int32))['params']

  def forward(self, params: Any, batch: types.TrainingBatch) -> types.LMOutput:
    """Logits of a packed or padded batch; attention is causal and stays inside a segment."""
    causal = jnp.tril(jnp.ones((batch.tokens.shape[1],) * 2, bool))
    same = (batch.segments[:, :, None] == batch.segments[:, None, :]) & (batch.segments[:, None, :] > 0)
    return self._output(self._apply(params, batch.tokens, batch.positions, same & causal[None]))

  def prefill(self, params: Any, prompt: types.Prompt, capacity: int) -> tuple[types.Prefill, GemmaCache]:
    """Feeds all but the last token of each row into a new cache of `capacity` slots.

    Raises:
      LimitError: the prompt does not fit.
    """
    batch, width = prompt.tokens.shape
    if width - 1 > capacity:
      raise errors.LimitError(what='prompt', got=width, expected=f'at most {capacity + 1} tokens')
    dtype = params['embedder']['input_embedding'].dtype
    fresh = self.transformer.config.init_cache(batch_size=batch, dtype=dtype, cache_length=capacity)
    layers = {name: {key: value for key, value in layer.items() if key != _OWN} for name, layer in fresh.items()}
    cache = GemmaCache(length=jnp.zeros((batch,), jnp.int32), layers=layers)
    if width == 1:
      return types.Prefill(), cache
    output, cache = self.extend(params, cache, prompt.tokens[:, :-1], count=prompt.length - 1)
    if output.hidden is None:
      return types.Prefill(), cache
    return types.Prefill(hidden=jnp.pad(output.hidden, ((0, 0), (0, 1), (0, 0)))), cache

  def extend(
      self, params: Any, cache: GemmaCache, tokens: jax.Array, *, count: jax.Array, layout: Any = types.CHAIN,
      logits_at: jax.Array | None = None,
  ) -> tuple[types.LMOutput, GemmaCache]:
    """Feeds the first `count` int32[B] of `tokens` int32[B, T] at each row's own end, in a chain or a tree."""
    width = tokens.shape[1]
    index = jnp.arange(width, dtype=jnp.int32)
    if isinstance(layout, types.Tree):
      depth, sees = layout.depth, _ancestors(layout.parents)
    else:
      depth = jnp.broadcast_to(index, tokens.shape)
      sees = jnp.broadcast_to(index[:, None] >= index[None, :], (*tokens.shape, width))
    # Behind the count may stand anything; the package reads ids outside its table as NaN, and a masked NaN is still one.
    tokens = jnp.where(index[None, :] < count[:, None], tokens, 0)
    mask = _mask(cache, sees)
    positions = cache.length[:, None] + depth

    def one_row(layers, length, tokens, positions, mask):
      mine = {name: {key: value[None] for key, value in layer.items()} | {_OWN: length[None]} for name, layer in layers.items()}
      output = self._apply(params, tokens[None], positions[None], mask[None], cache=mine)
      after = {name: {key: value[0] for key, value in layer.items() if key != _OWN} for name, layer in output.cache.items()}
      return output.replace(logits=output.logits[0], hidden_states=_first(output.hidden_states), cache=after)

    output = jax.vmap(one_row)(cache.layers, cache.length, tokens, positions, mask)
    made = self._output(output)
    if logits_at is not None:
      made = jax.tree.map(lambda x: jnp.take_along_axis(x, logits_at[:, None, None], axis=1), made)
    return made, GemmaCache(length=cache.length + count, layers=output.cache)

  def length(self, cache: GemmaCache) -> jax.Array:
    """int32[B], tokens that each row covers."""
    return cache.length

  def rewind(self, cache: GemmaCache, length: jax.Array) -> GemmaCache:
    """The cache covering the first `length` int32[B] tokens: what lies behind is masked until it is overwritten."""
    return cache.replace(length=length)

  def keep_path(self, cache: GemmaCache, length: jax.Array, path: jax.Array) -> GemmaCache:
    """The cache with one path of the tree that was fed at slot `length`; see `LanguageModel.keep_path`."""
    # A kept node's depth is its place in the path: its keys were rotated for the slot that it moves to.
    slots = jnp.arange(next(iter(cache.layers.values()))['positions'].shape[1], dtype=jnp.int32)[None, :]
    place = slots - length[:, None]
    node = jnp.take_along_axis(path, jnp.clip(place, 0, path.shape[1] - 1), axis=1)
    is_kept = (place >= 0) & (place < path.shape[1]) & (node >= 0)
    source = jnp.where(is_kept, length[:, None] + node, slots)
    move = lambda x: jax.vmap(lambda row, index: row[index])(x, source)
    return GemmaCache(
        length=length + jnp.sum(path >= 0, axis=1, dtype=jnp.int32), layers=jax.tree.map(move, cache.layers))

  def _apply(self, params, tokens, positions, mask, cache=None):
    return self.transformer.apply(
        {'params': params}, tokens, positions=positions, attention_mask=mask, cache=cache, return_last_only=False,
        return_hidden_states=self.return_hidden)

  def _output(self, output):
    return types.LMOutput(logits=output.logits, hidden=output.hidden_states if self.return_hidden else None)


def _first(x):
  return None if x is None else x[0]


def _ancestors(parents):
  """bool[B, T, T]: the nodes that each node of a tree sees, itself included; parents come first."""
  width = parents.shape[1]
  own = jnp.eye(width, dtype=bool)
  sees = jnp.broadcast_to(own, (parents.shape[0], width, width))
  for node in range(1, width):
    of_parent = jnp.take_along_axis(sees, jnp.clip(parents[:, node], 0)[:, None, None], axis=1)[:, 0]
    sees = sees.at[:, node].set(of_parent | own[node])
  return sees


def _mask(cache, sees):
  """bool[B, T, S]: the committed slots, and inside the block what `sees` bool[B, T, T] says."""
  width = sees.shape[1]
  slots = jnp.arange(next(iter(cache.layers.values()))['positions'].shape[1], dtype=jnp.int32)[None, :]
  place = slots - cache.length[:, None]
  at_place = jnp.broadcast_to(jnp.clip(place, 0, width - 1)[:, None, :], (*sees.shape[:2], slots.shape[1]))
  inside = jnp.take_along_axis(sees, at_place, axis=2) & ((place >= 0) & (place < width))[:, None, :]
  return (place < 0)[:, None, :] | inside
