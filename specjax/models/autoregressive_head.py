"""An autoregressive draft head: one decoder layer that continues a target's hidden states, reading the tokens as well.

Pair n of a sequence is the target's hidden state behind token n with the embedding of token n + 1. Fused into one vector
and read with the pairs before it, it predicts the hidden state behind token n + 1, and the target's own output embedding
makes of that the law of token n + 2:

    tokens      x_0    x_1    x_2    x_3
    hidden      f_0    f_1    f_2                the target's: x_3 is pending
    pairs       f_0 x_1   f_1 x_2   f_2 x_3
    predicts    f_1       f_2       f_3          -> the law of x_4; then f_3 (predicted) x_4 is the next pair, ...

Parameters (D width of the target's hidden state):

    fuse/kernel [2 D, D]      layer/...  as layer_{i} of `models.gemma`      final_norm/scale [D]

Source: Li et al. 2024 (EAGLE); Ankner et al. 2024 (Hydra). The norm at the end is ours: it keeps what the head feeds itself
on the scale of the target's normed states.
"""

import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from specjax.core import checks
from specjax.core import errors
from specjax.models import gemma
from specjax.models import kv_cache
from specjax.models import layers

MAX_DIM = 2**20


@dataclasses.dataclass(frozen=True)
class AutoregressiveHeadConfig:
  """Shape of an autoregressive draft head; hashable.

  Attributes:
    embed_dim: D, the width of the target's hidden state and of its token embedding.
    hidden_dim: width of the MLP.
    num_heads, num_kv_heads, head_dim: query heads, key heads (a divisor of them), width of a head (even).
  """

  embed_dim: int
  hidden_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int

  def __post_init__(self):
    for field in dataclasses.fields(self):
      checks.integer(field.name, getattr(self, field.name), low=1, high=MAX_DIM, where='AutoregressiveHeadConfig')
    if self.head_dim % 2:
      raise errors.ParamError(what='head_dim', where='AutoregressiveHeadConfig', got=self.head_dim, expected='an even number')
    self.decoder  # Checks that the key heads divide the query heads.

  @property
  def decoder(self) -> gemma.DecoderConfig:
    """The decoder whose only layer this is. It has no vocabulary of its own."""
    return gemma.DecoderConfig(
        vocab_size=1, embed_dim=self.embed_dim, hidden_dim=self.hidden_dim, num_heads=self.num_heads,
        num_kv_heads=self.num_kv_heads, head_dim=self.head_dim, layer_kinds=(gemma.GLOBAL,), activation='gelu',
        norm_plus_one=True, query_key_norm=True)


class _Head(nn.Module):
  config: AutoregressiveHeadConfig
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, features, embeddings, positions, attend):
    """Predicted features [B, T, D], and what `attend` kept, of pairs of `features` and `embeddings` [B, T, D]."""
    decoder = self.config.decoder
    pairs = jnp.concatenate([features.astype(self.dtype), embeddings.astype(self.dtype)], axis=-1)
    x = layers.Projection(decoder.embed_dim, self.dtype, self.param_dtype, name='fuse')(pairs)
    x, kept = gemma.DecoderLayer(decoder, gemma.GLOBAL, self.dtype, self.param_dtype, name='layer')(x, positions, attend)
    norm = layers.RMSNorm(decoder.norm_epsilon, self.dtype, self.param_dtype, decoder.norm_plus_one, name='final_norm')
    return norm(x), kept


@dataclasses.dataclass(frozen=True)
class AutoregressiveHead:
  """An autoregressive draft head behind plain functions; holds no arrays. All features and embeddings are [B, T, D].

  Attributes:
    config: the shape.
    dtype: of the computation and the cache.
    param_dtype: of fresh parameters.
    block_size: slots per step of attention.
  """

  config: AutoregressiveHeadConfig
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  block_size: int = kv_cache.BLOCK_SIZE

  def __post_init__(self):
    object.__setattr__(self, 'dtype', jnp.dtype(self.dtype))
    object.__setattr__(self, 'param_dtype', jnp.dtype(self.param_dtype))

  @property
  def network(self) -> _Head:
    """The flax module."""
    return _Head(self.config, self.dtype, self.param_dtype)

  def init(self, key: jax.Array) -> Any:
    """Fresh parameters, laid out as this module's docstring shows."""
    zeros = jnp.zeros((1, 1, self.config.embed_dim), self.dtype)
    positions = jnp.zeros((1, 1), jnp.int32)
    return self.network.init(key, zeros, zeros, positions, _attend(jnp.ones((1, 1, 1), bool)))['params']

  def forward(
      self, params: Any, features: jax.Array, embeddings: jax.Array, *, positions: jax.Array, segments: jax.Array
  ) -> jax.Array:
    """Predicted features of a packed batch of pairs; attention stays inside a segment (int32[B, T], 0 is padding)."""
    return self._read(params, features, embeddings, positions, segments)[0]

  def prefill(
      self, params: Any, features: jax.Array, embeddings: jax.Array, *, length: jax.Array, capacity: int
  ) -> kv_cache.KVCache:
    """The cache covering the first `length` int32[B] pairs of each row.

    `capacity` is static: the number of slots (pairs).
    """
    batch, width, _ = features.shape
    config = self.config
    layer = kv_cache.create_layer(
        batch, capacity, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim, dtype=self.dtype,
        block_size=self.block_size)
    if width:
      positions = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None], (batch, width))
      _, (keys, values) = self._read(params, features, embeddings, positions, jnp.ones_like(positions))
      layer = kv_cache.prefill_layer(layer, keys, values, length)
    return kv_cache.KVCache(length=jnp.array(length, jnp.int32), layers=(layer,))

  def extend(
      self, params: Any, cache: kv_cache.KVCache, features: jax.Array, embeddings: jax.Array, *, count: jax.Array
  ) -> tuple[jax.Array, kv_cache.KVCache]:
    """Predicted features of the first `count` int32[B] pairs, fed at each row's end, and the cache with them.

    What stands at index >= count is unspecified.
    """
    block = kv_cache.create_block(cache.length, count, features.shape[1])

    def attend(query, keys, values):
      filled = kv_cache.append(cache.layers[0], block, keys, values)
      return kv_cache.attend(filled, block, query), filled

    predicted, filled = self.network.apply({'params': params}, features, embeddings, block.positions, attend)
    return predicted, kv_cache.KVCache(length=cache.length + count, layers=(filled,))

  def length(self, cache: kv_cache.KVCache) -> jax.Array:
    """int32[B], pairs each row covers."""
    return cache.length

  def rewind(self, cache: kv_cache.KVCache, length: jax.Array) -> kv_cache.KVCache:
    """The cache covering the first `length` int32[B] pairs."""
    return kv_cache.rewind(cache, length)

  def _read(self, params, features, embeddings, positions, segments):
    """Predicted features and (keys, values) of pairs that see the earlier ones of their segment."""
    together = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]
    seen = together & (positions[:, None, :] <= positions[:, :, None])
    return self.network.apply({'params': params}, features, embeddings, positions, _attend(seen))


def _attend(mask):
  """Attention over the pairs themselves under `mask` bool[B, T, T]; keeps keys and values."""
  attention = functools.partial(layers.masked_attention, mask=mask)
  return lambda query, keys, values: (attention(query, keys, values), (keys, values))
