"""Draft heads: small networks that read a target's last hidden state and predict the tokens behind the next one.

Head j (from 1) predicts the token j places behind the one that the target itself predicts from that state. All heads end in
the target's own output embedding. Parameters (H heads, D hidden width of the target, F of a head):

    blockwise   up [H, D, F], up_bias [H, F], down [H, F, D]      h + down relu(up h + up_bias)
    medusa      up [H, D, D], up_bias [H, D]                      h + silu(up h + up_bias)

Source: Stern et al. 2018 (blockwise parallel decoding); Cai et al. 2024 (Medusa), with the tied head in place of its own.
"""

import dataclasses
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from specjax.core import checks

MAX_HEADS = 32


@dataclasses.dataclass(frozen=True)
class HeadsConfig:
  """Shape of a set of draft heads; hashable.

  Attributes:
    kind: 'blockwise' or 'medusa'.
    num_heads: H.
    embed_dim: D, the width of the target's hidden state.
    hidden_dim: F of blockwise heads; Medusa's have D.
  """

  kind: Literal['blockwise', 'medusa']
  num_heads: int
  embed_dim: int
  hidden_dim: int | None = None

  def __post_init__(self):
    checks.choice('kind', self.kind, ('blockwise', 'medusa'), where='HeadsConfig')
    checks.integer('num_heads', self.num_heads, low=1, high=MAX_HEADS, where='HeadsConfig')
    checks.integer('embed_dim', self.embed_dim, low=1, high=2**20, where='HeadsConfig')
    if self.kind == 'blockwise':
      checks.integer('hidden_dim', self.hidden_dim, low=1, high=2**20, where='HeadsConfig')


class _Heads(nn.Module):
  config: HeadsConfig
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, hidden):
    """[..., H, D] from `hidden` [..., D]."""
    config = self.config
    is_medusa = config.kind == 'medusa'
    width = config.embed_dim if is_medusa else config.hidden_dim
    # Heads that add nothing at first: each starts as the target's own prediction.
    zeros, spread = nn.initializers.zeros, nn.initializers.normal(config.embed_dim**-0.5)
    shape = (config.num_heads, config.embed_dim, width)
    up = self.param('up', zeros if is_medusa else spread, shape, self.param_dtype).astype(self.dtype)
    bias = self.param('up_bias', zeros, (config.num_heads, width), self.param_dtype).astype(self.dtype)
    hidden = hidden.astype(self.dtype)
    inner = jnp.einsum('...d,hdf->...hf', hidden, up)
    inner = inner + bias.reshape((1,) * (inner.ndim - 2) + bias.shape)
    if is_medusa:
      return hidden[..., None, :] + nn.silu(inner)
    down = self.param('down', zeros, (config.num_heads, width, config.embed_dim), self.param_dtype).astype(self.dtype)
    return hidden[..., None, :] + jnp.einsum('...hf,hfd->...hd', nn.relu(inner), down)


@dataclasses.dataclass(frozen=True)
class DraftHeads:
  """A set of draft heads behind plain functions; holds no arrays.

  Attributes:
    config: the shape.
    dtype: of the computation.
    param_dtype: of fresh parameters.
  """

  config: HeadsConfig
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def __post_init__(self):
    object.__setattr__(self, 'dtype', jnp.dtype(self.dtype))
    object.__setattr__(self, 'param_dtype', jnp.dtype(self.param_dtype))

  @property
  def num_heads(self) -> int:
    """H."""
    return self.config.num_heads

  @property
  def network(self) -> _Heads:
    """The flax module."""
    return _Heads(self.config, self.dtype, self.param_dtype)

  def init(self, key: jax.Array) -> Any:
    """Fresh parameters, laid out as this module's docstring shows."""
    return self.network.init(key, jnp.zeros((1, self.config.embed_dim), self.dtype))['params']

  def __call__(self, params: Any, hidden: jax.Array) -> jax.Array:
    """What each head hands to the output embedding, [..., H, D], from the target's last hidden state [..., D]."""
    return self.network.apply({'params': params}, hidden)
