"""Layers that the model families share. Kernels are separate two-dimensional leaves, used as stored.

`dtype` is what a layer computes in and `param_dtype` what it creates; parameters of another dtype are cast at use,
which costs a pass over the weights in every decoding step, so callers cast once when they load.
"""

import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def float32_or_wider(dtype: Any) -> Any:
  """float64 for float64, else float32: what softmax, norms and logits are computed in. Legal under strict promotion."""
  return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Rotary position embedding in the half-split layout.

  Attributes:
    base: the longest wavelength is 2 pi * base tokens.
    factor: positions are divided by it (linear scaling), or, with the Llama 3 fields, only at low frequencies.
    low_frequency_factor, high_frequency_factor, original_length: Llama 3 scaling. Wavelengths above original_length /
      low_frequency_factor are scaled, those below original_length / high_frequency_factor are not, and between them
      the share moves linearly.
  """

  base: float = 10_000.0
  factor: float = 1.0
  low_frequency_factor: float | None = None
  high_frequency_factor: float | None = None
  original_length: int | None = None

  def frequencies(self, head_dim: int) -> np.ndarray:
    """float64[head_dim / 2], radians per token."""
    plain = self.base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if self.original_length is None:
      return plain / self.factor
    turns = self.original_length * plain / (2 * math.pi)
    share = (turns - self.low_frequency_factor) / (self.high_frequency_factor - self.low_frequency_factor)
    share = np.clip(share, 0, 1)
    return plain * (share + (1 - share) / self.factor)

  def __call__(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    """dtype[B, T, H, D], `x` turned to `positions` int32[B, T]. Angles in at least float32."""
    dtype = float32_or_wider(x.dtype)
    frequencies = jnp.asarray(self.frequencies(x.shape[-1]), dtype)
    angles = positions.astype(dtype)[:, :, None, None] * frequencies[None, None, None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Projection(nn.Module):
  """x @ kernel, `kernel` [features in, features out]; or `kernel_t` in its place, its transpose, see `models.layouts`."""

  features: int
  dtype: Any
  param_dtype: Any
  init_scale: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array, out_dtype: Any = None) -> jax.Array:
    """[..., features] in `out_dtype` (default `dtype`)."""
    if self.has_variable('params', 'kernel_t'):
      kernel = self.get_variable('params', 'kernel_t').astype(self.dtype)
      return _transposed_product(x.astype(self.dtype), kernel, out_dtype or self.dtype)
    init = nn.initializers.variance_scaling(self.init_scale, 'fan_in', 'truncated_normal')
    kernel = self.param('kernel', init, (x.shape[-1], self.features), self.param_dtype)
    return jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=out_dtype or self.dtype)


def _transposed_product(x, kernel, dtype):
  """[..., F] of x [..., D] and `kernel` [F, D], as the product kernel @ x^T."""
  rows = x.reshape(-1, x.shape[-1])
  count = rows.shape[0]
  # Eight columns are the width of the inner loop on CPU: fewer take longer.
  width = count if count == 1 else max(count, 8)
  rows = jnp.pad(rows, ((0, width - count), (0, 0)))
  product = jnp.einsum('fd,td->ft', kernel, rows, preferred_element_type=dtype)
  return product[:, :count].T.reshape(*x.shape[:-1], kernel.shape[0])


class RMSNorm(nn.Module):
  """x / rms(x) * scale, or * (1 + scale) where `scale_plus_one`; statistics and product in at least float32."""

  epsilon: float
  dtype: Any
  param_dtype: Any
  scale_plus_one: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.zeros_init() if self.scale_plus_one else nn.initializers.ones_init()
    scale = self.param('scale', init, (x.shape[-1],), self.param_dtype)
    dtype = float32_or_wider(x.dtype)
    x, scale = x.astype(dtype), scale.astype(dtype)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
    scale = jnp.expand_dims(scale + 1 if self.scale_plus_one else scale, tuple(range(x.ndim - 1)))
    return (x * scale).astype(self.dtype)


class GatedMLP(nn.Module):
  """down(activation(gate(x)) * up(x)); activation 'gelu' (tanh form) or 'silu'."""

  hidden_dim: int
  activation: str
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    activation = {'gelu': lambda y: nn.gelu(y, approximate=True), 'silu': nn.silu}[self.activation]
    project = lambda features, name: Projection(features, self.dtype, self.param_dtype, name=name)
    hidden = activation(project(self.hidden_dim, 'gate')(x)) * project(self.hidden_dim, 'up')(x)
    return project(x.shape[-1], 'down')(hidden)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
  """cap * tanh(x / cap), or `x` where there is no cap."""
  return x if cap is None else jnp.tanh(x / cap) * cap


def masked_attention(
    query: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, *, softcap: float | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
  """Attention without a cache, differentiable; softmax in at least float32.

  Args:
    query: dtype[B, T, N, D], already scaled; head n reads key head n // (N // H_kv).
    keys, values: dtype[B, S, H_kv, D].
    mask: bool[B, T, S], what each query sees. A query that sees nothing gives 0.
    softcap: as in `soft_cap`.
    bias: float[B or 1, N, T, S] added to the scores, or None.

  Returns:
    dtype[B, T, N, D].
  """
  batch, width, num_heads, head_dim = query.shape
  num_kv_heads, num_keys = keys.shape[2], keys.shape[1]
  dtype = float32_or_wider(query.dtype)
  grouped = query.reshape(batch, width, num_kv_heads, -1, head_dim)
  scores = soft_cap(jnp.einsum('btkgd,bskd->bkgts', grouped, keys, preferred_element_type=dtype), softcap)
  if bias is not None:
    bias = bias.astype(dtype).reshape(bias.shape[0], num_kv_heads, -1, width, num_keys)
    scores = scores + jnp.broadcast_to(bias, scores.shape)
  mask = jnp.broadcast_to(mask[:, None, None], scores.shape)
  scores = jnp.where(mask, scores, -jnp.inf)
  peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores - jnp.where(peak == -jnp.inf, 0, peak), 0)), 0)
  mass = jnp.sum(weights, axis=-1, keepdims=True)
  weights = weights / jnp.where(mass == 0, 1, mass)
  output = jnp.einsum('bkgts,bskd->btkgd', weights.astype(values.dtype), values, preferred_element_type=dtype)
  return output.reshape(batch, width, num_heads, head_dim).astype(query.dtype)
