"""The layers of T5: relative position bias, attention without scaling, MLP, and the two stacks.

Every weight is a leaf of its own, 2-D, in the orientation in which it is multiplied, so that a decoding loop neither
slices, transposes nor copies it. Activations are `dtype`; norms, attention scores and logits at least float32.
"""

import functools
from typing import Any, Callable

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from specjax.models import layers
from specjax.models import t5_configs


def bucket_of_distance(num_buckets: int, max_distance: int, bidirectional: bool) -> np.ndarray:
  """Bucket of each relative position -max_distance..max_distance (key minus query), host int32[2 * max_distance + 1].

  Half of the buckets hold one distance each, the others grow geometrically up to `max_distance`. The boundaries are
  compared as integers: the usual float32 logarithm puts distance 16 of the encoder on an edge.
  """
  relative = np.arange(-max_distance, max_distance + 1)
  offset = np.zeros_like(relative)
  if bidirectional:
    num_buckets //= 2
    offset = np.where(relative > 0, num_buckets, 0)
    distance = np.abs(relative)
  else:
    distance = np.maximum(-relative, 0)
  exact = num_buckets // 2
  steps = num_buckets - exact
  # Bucket exact + j starts at the least n with n >= exact * (max_distance / exact) ** (j / steps).
  wide = [
      sum(int(n) ** steps >= exact ** (steps - j) * max_distance**j for j in range(1, steps)) for n in distance
  ]
  return (offset + np.where(distance < exact, distance, exact + np.array(wide))).astype(np.int32)


def cross_attention(queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
  """Attention dtype[B, T, N, H] of queries [B, T, N, H] to the encoder; softmax in at least float32.

  Args:
    queries: unscaled: T5 does not divide the scores by sqrt(H).
    keys, values: dtype[B, N, S, H], one contiguous matrix per row and head, so that a decoding step moves none of them.
    mask: bool[B, T or 1, S]. A query that sees no key returns 0.
  """
  wide = layers.float32_or_wider(queries.dtype)
  mask = mask[:, None]
  scores = jnp.einsum('btnh,bnsh->bnts', queries, keys, preferred_element_type=wide)
  weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(wide).min), axis=-1)
  weights = jnp.where(mask, weights, 0).astype(values.dtype)
  return jnp.einsum('bnts,bnsh->btnh', weights, values, preferred_element_type=wide).astype(queries.dtype)


class Embedder(nn.Module):
  """Token embeddings, unscaled."""

  config: t5_configs.T5Config
  dtype: Any
  param_dtype: Any

  def setup(self):
    shape = (self.config.vocab_size, self.config.embed_dim)
    self.embedding = self.param('embedding', nn.initializers.normal(1.0), shape, self.param_dtype)

  def __call__(self, tokens):
    # 'clip': whatever stands in a padding slot must not become NaN, which is what the default mode fills in.
    return jnp.take(self.embedding, tokens, axis=0, mode='clip').astype(self.dtype)

  def attend(self, x):
    """Logits [B, T, V] of the tied head."""
    return jnp.einsum(
        'btd,vd->btv', x, self.embedding.astype(self.dtype), preferred_element_type=layers.float32_or_wider(self.dtype))


class RelativeBias(nn.Module):
  """The position bias of one stack, shared by its layers: float[2 * max_distance + 1, N], a row per distance.

  Laid out by distance, so that a score costs one gather and no logarithm; `position_bias` reads it.
  """

  config: t5_configs.T5Config
  bidirectional: bool
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self):
    config = self.config
    table = self.param(
        'embedding', nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform'),
        (config.num_buckets, config.num_heads), self.param_dtype)
    buckets = bucket_of_distance(config.num_buckets, config.max_distance, self.bidirectional)
    return table[buckets].astype(layers.float32_or_wider(self.dtype))


def position_bias(by_distance: jax.Array, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
  """Bias float[B, N, T, S] of positions int32[B, T] and int32[B, S], from the rows of `RelativeBias`."""
  limit = by_distance.shape[0] // 2
  distance = key_positions[:, None, :] - query_positions[:, :, None]
  return jnp.transpose(by_distance[jnp.clip(distance, -limit, limit) + limit], (0, 3, 1, 2))


class Attention(nn.Module):
  """The four projections of one attention; what lies between them is the caller's."""

  config: t5_configs.T5Config
  dtype: Any
  param_dtype: Any

  def setup(self):
    config, dtypes = self.config, dict(dtype=self.dtype, param_dtype=self.param_dtype)
    joined = config.num_heads * config.head_dim
    # The missing 1 / sqrt(head_dim) of the scores is folded into the initial queries.
    self.query = layers.Projection(joined, init_scale=1 / config.head_dim, **dtypes)
    self.key = layers.Projection(joined, **dtypes)
    self.value = layers.Projection(joined, **dtypes)
    self.output = layers.Projection(config.embed_dim, **dtypes)

  def _split(self, x):
    return x.reshape(x.shape[0], x.shape[1], self.config.num_heads, self.config.head_dim)

  def queries(self, x):
    """[B, T, D] -> [B, T, N, H]."""
    return self._split(self.query(x))

  def keys_values(self, x):
    """[B, S, D] -> two of [B, S, N, H]."""
    return self._split(self.key(x)), self._split(self.value(x))

  def merge(self, context):
    """[B, T, N, H] -> [B, T, D]."""
    return self.output(context.reshape(context.shape[0], context.shape[1], -1))


class ReluMLP(nn.Module):
  """down(relu(up x))."""

  config: t5_configs.T5Config
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, x):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    hidden = nn.relu(layers.Projection(self.config.mlp_dim, name='up', **dtypes)(x))
    return layers.Projection(self.config.embed_dim, name='down', **dtypes)(hidden)


def _mlp(config, dtypes):
  if config.mlp == 'gated_gelu':
    return layers.GatedMLP(config.mlp_dim, activation='gelu', **dtypes)
  return ReluMLP(config, **dtypes)


class EncoderLayer(nn.Module):
  """Self-attention and MLP, pre-norm."""

  config: t5_configs.T5Config
  dtype: Any
  param_dtype: Any

  def setup(self):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.pre_attention_norm = layers.RMSNorm(self.config.norm_epsilon, **dtypes)
    self.attention = Attention(self.config, **dtypes)
    self.pre_mlp_norm = layers.RMSNorm(self.config.norm_epsilon, **dtypes)
    self.mlp = _mlp(self.config, dtypes)

  def __call__(self, x, *, mask, bias):
    y = self.pre_attention_norm(x)
    context = layers.masked_attention(self.attention.queries(y), *self.attention.keys_values(y), mask, bias=bias)
    x = x + self.attention.merge(context)
    return x + self.mlp(self.pre_mlp_norm(x))


class Encoder(nn.Module):
  """The encoder stack: embedded tokens [B, S, D] and segments int32[B, S] -> [B, S, D], 0 on padding."""

  config: t5_configs.T5Config
  dtype: Any
  param_dtype: Any

  def setup(self):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.layer = [EncoderLayer(self.config, **dtypes) for _ in range(self.config.num_encoder_layers)]
    self.relative_bias = RelativeBias(self.config, bidirectional=True, **dtypes)
    self.final_norm = layers.RMSNorm(self.config.norm_epsilon, **dtypes)

  def __call__(self, x, segments):
    # Segments are contiguous, so inside one of them the distance of two positions is that of their indices.
    positions = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    bias = position_bias(self.relative_bias(), positions, positions)
    mask = same_segment(segments, segments)
    for layer in self.layer:
      x = layer(x, mask=mask, bias=bias)
    return jnp.where(segments[:, :, None] > 0, self.final_norm(x), 0)


class DecoderLayer(nn.Module):
  """Self-attention, cross-attention and MLP, pre-norm."""

  config: t5_configs.T5Config
  dtype: Any
  param_dtype: Any

  def setup(self):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.pre_self_attention_norm = layers.RMSNorm(self.config.norm_epsilon, **dtypes)
    self.self_attention = Attention(self.config, **dtypes)
    self.pre_cross_attention_norm = layers.RMSNorm(self.config.norm_epsilon, **dtypes)
    self.cross_attention = Attention(self.config, **dtypes)
    self.pre_mlp_norm = layers.RMSNorm(self.config.norm_epsilon, **dtypes)
    self.mlp = _mlp(self.config, dtypes)

  def __call__(self, x, *, attend_self, attend_cross):
    y = self.pre_self_attention_norm(x)
    x = x + self.self_attention.merge(attend_self(self.self_attention.queries(y), *self.self_attention.keys_values(y)))
    y = self.pre_cross_attention_norm(x)
    x = x + self.cross_attention.merge(attend_cross(self.cross_attention.queries(y)))
    return x + self.mlp(self.pre_mlp_norm(x))


class Decoder(nn.Module):
  """The decoder stack. Where the keys of self-attention come from is the caller's: a whole sequence, or a cache."""

  config: t5_configs.T5Config
  dtype: Any
  param_dtype: Any

  def setup(self):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.layer = [DecoderLayer(self.config, **dtypes) for _ in range(self.config.num_decoder_layers)]
    self.relative_bias = RelativeBias(self.config, bidirectional=False, **dtypes)
    self.final_norm = layers.RMSNorm(self.config.norm_epsilon, **dtypes)

  def cross_keys_values(self, encoded):
    """Keys and values [B, N, S, H] of each layer's cross-attention, computed once per encoder input."""
    heads_first = lambda x: jnp.swapaxes(x, 1, 2)
    return tuple(jax.tree.map(heads_first, layer.cross_attention.keys_values(encoded)) for layer in self.layer)

  def __call__(
      self, x: jax.Array, *, attend_self: Callable[..., jax.Array], cross: Any, cross_mask: jax.Array
  ) -> jax.Array:
    """Last hidden states [B, T, D].

    Args:
      x: [B, T, D] embedded tokens.
      attend_self: (layer index, queries, keys, values, all [B, T, N, H]) -> context [B, T, N, H].
      cross: keys and values of each layer, from `cross_keys_values`.
      cross_mask: bool[B, T or 1, S].
    """
    for index, (layer, (keys, values)) in enumerate(zip(self.layer, cross, strict=True)):
      x = layer(
          x, attend_self=functools.partial(attend_self, index),
          attend_cross=functools.partial(cross_attention, keys=keys, values=values, mask=cross_mask))
    return self.final_norm(x)


def same_segment(query_segments: jax.Array, key_segments: jax.Array) -> jax.Array:
  """bool[B, T, S]: both sides carry the same segment number, and it is not padding."""
  queries, keys = query_segments[:, :, None], key_segments[:, None, :]
  return (queries == keys) & (keys > 0)
