"""A stand-in for the gemma package's Transformer: its interface and its cache, for tests where the package is absent.

One slot for the whole batch (`end_index[0]`), a causal mask that the caller gives, positions that sliding windows read.
"""

import dataclasses

from flax import linen as nn
from flax import struct
import jax
from jax import lax
import jax.numpy as jnp


@struct.dataclass
class Output:
  logits: jax.Array
  cache: dict | None
  hidden_states: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Config:
  num_embed: int = 23
  embed_dim: int = 12
  head_dim: int = 6
  num_layers: int = 2
  window: int | None = 5  # of every second layer

  def init_cache(self, batch_size, dtype, *, cache_length):
    layer = lambda: {
        'k': jnp.zeros((batch_size, cache_length, 1, self.head_dim), dtype),
        'v': jnp.zeros((batch_size, cache_length, 1, self.head_dim), dtype),
        'positions': jnp.zeros((batch_size, cache_length), jnp.int32), 'end_index': jnp.zeros((batch_size,), jnp.int32)}
    return {f'layer_{i}': layer() for i in range(self.num_layers)}


class Embedder(nn.Module):
  config: Config

  def setup(self):
    self.input_embedding = self.param('input_embedding', nn.initializers.normal(1.0), (
        self.config.num_embed, self.config.embed_dim))

  def encode(self, tokens):
    return self.input_embedding[tokens]  # ids outside the table read as NaN, as in the package

  def decode(self, x):
    return x @ self.input_embedding.T


class Layer(nn.Module):
  config: Config
  window: int | None

  @nn.compact
  def __call__(self, x, positions, mask, cache):
    draw = lambda name, *shape: self.param(name, nn.initializers.normal(shape[0] ** -0.5), shape)
    width, head = self.config.embed_dim, self.config.head_dim
    angle = 0.3 * positions[..., None].astype(jnp.float32)
    rotate = lambda y: y * jnp.cos(angle) + jnp.roll(y, 1, axis=-1) * jnp.sin(angle)
    query, key, value = (x @ draw(name, width, head) for name in 'qkv')
    query, key = rotate(query), rotate(key)[:, :, None]
    value, key_positions = value[:, :, None], positions
    if cache is not None:
      start = cache['end_index'][0] % cache['v'].shape[1]
      key, value = (lax.dynamic_update_slice(cache[n], y, (0, start, 0, 0)) for n, y in (('k', key), ('v', value)))
      key_positions = lax.dynamic_update_slice(cache['positions'], positions, (0, start))
      cache = {'k': key, 'v': value, 'positions': key_positions, 'end_index': cache['end_index'] + x.shape[1]}
    if self.window is not None:
      mask = mask & (key_positions[:, None, :] > positions[:, :, None] - self.window)
    scores = jnp.where(mask, jnp.einsum('bth,bsh->bts', query, key[:, :, 0]), -1e30)
    x = x + jnp.einsum('bts,bsh->bth', nn.softmax(scores), value[:, :, 0]) @ draw('o', head, width)
    return x + jnp.tanh(x @ draw('up', width, width)), cache


class Transformer(nn.Module):
  config: Config = Config()
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.embedder = Embedder(self.config)
    self.layers = [Layer(self.config, self.config.window if i % 2 else None, name=f'layer_{i}')
                   for i in range(self.config.num_layers)]

  def __call__(
      self, tokens, *, positions=None, attention_mask=None, cache=None, return_last_only=None, return_hidden_states=None):
    assert not return_last_only
    if positions is None:
      positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
      attention_mask = jnp.broadcast_to(jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool)), (*tokens.shape, tokens.shape[1]))
    x, after = self.embedder.encode(tokens), {}
    for i, layer in enumerate(self.layers):
      x, after[f'layer_{i}'] = layer(x, positions, attention_mask, None if cache is None else cache[f'layer_{i}'])
    return Output(self.embedder.decode(x), None if cache is None else after, x if return_hidden_states else None)
