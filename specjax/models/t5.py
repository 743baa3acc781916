"""T5 as a `LanguageModel`: encoder-decoders 1.0, 1.1 and Flan."""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from specjax.core import errors
from specjax.core import types
from specjax.models import t5_configs
from specjax.models import t5_layers

T5Config = t5_configs.T5Config


class T5Network(nn.Module):
  """The parameters of one T5 and the passes over them."""

  config: T5Config
  dtype: Any
  param_dtype: Any

  def setup(self):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.token_embedder = t5_layers.Embedder(self.config, **dtypes)
    self.encoder = t5_layers.Encoder(self.config, **dtypes)
    self.decoder = t5_layers.Decoder(self.config, **dtypes)
    if not self.config.tied_head:
      wide = t5_layers.accumulation_dtype(self.dtype)
      self.head = t5_layers.Linear(self.config.vocab_size, output_dtype=wide, **dtypes)

  def encode(self, tokens, segments):
    """Encoder output [B, S, D], 0 on padding, and the cross-attention keys and values of each decoder layer."""
    encoded = self.encoder(self.token_embedder(tokens), segments)
    return encoded, self.decoder.cross_keys_values(encoded)

  def decode(self, tokens, *, attend_self, cross, cross_mask):
    """`LMOutput` of decoder tokens [B, T]; see `t5_layers.Decoder`."""
    hidden = self.decoder(
        self.token_embedder(tokens), attend_self=attend_self, cross=cross, cross_mask=cross_mask)
    scaled = hidden * self.config.embed_dim**-0.5 if self.config.scale_logits else hidden
    logits = self.token_embedder.attend(scaled) if self.config.tied_head else self.head(scaled)
    return types.LMOutput(logits=logits, hidden=hidden)

  def __call__(self, batch):
    """`LMOutput` of a `TrainingBatch`."""
    _, cross = self.encode(batch.encoder_tokens, batch.encoder_segments)
    index = jnp.arange(batch.tokens.shape[1], dtype=jnp.int32)
    causal = index[:, None] >= index[None, :]
    mask = t5_layers.same_segment(batch.segments, batch.segments) & causal[None, None]
    bias = self.decoder.relative_bias(index[None], index[None])

    def attend_self(layer, queries, keys, values, relative_bias):
      del layer, relative_bias  # The bias is the same in every layer; it was computed once.
      return t5_layers.attention(queries, keys, values, mask=mask, bias=bias)

    cross_mask = t5_layers.same_segment(batch.segments, batch.encoder_segments)
    return self.decode(batch.tokens, attend_self=attend_self, cross=cross, cross_mask=cross_mask)


@dataclasses.dataclass(frozen=True)
class T5LM:
  """A T5 behind `specjax.core.protocols.LanguageModel`.

  Attributes:
    config: the structure.
    dtype: of activations; parameters of another dtype are cast at every use, so cast them once beforehand.
    param_dtype: of the parameters that `init` makes.
  """

  config: T5Config
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def __post_init__(self):
    object.__setattr__(self, 'dtype', jnp.dtype(self.dtype))
    object.__setattr__(self, 'param_dtype', jnp.dtype(self.param_dtype))

  @property
  def vocab_size(self) -> int:
    """Number of tokens, padding of the table included."""
    return self.config.vocab_size

  @property
  def embed_dim(self) -> int:
    """Width of the hidden states."""
    return self.config.embed_dim

  @property
  def network(self) -> T5Network:
    """The flax module."""
    return T5Network(self.config, self.dtype, self.param_dtype)

  def init(self, key: jax.Array) -> Any:
    """Fresh parameters. Queries start at (embed_dim * head_dim) ** -0.5, the embedding at 1, the rest at 1/sqrt(fan_in)."""
    ones = jnp.ones((1, 1), jnp.int32)
    batch = types.TrainingBatch(
        tokens=ones, targets=ones, weights=jnp.ones((1, 1), jnp.float32), positions=ones - 1, segments=ones,
        encoder_tokens=ones, encoder_positions=ones - 1, encoder_segments=ones)
    return self.network.init(key, batch)['params']

  def forward(self, params: Any, batch: types.TrainingBatch) -> types.LMOutput:
    """Logits of a packed or padded batch.

    Self-attention stays inside a segment (a contiguous run of one number), cross-attention inside the encoder segment
    of the same number. Positions are read off the index: inside a segment only differences matter.
    """
    if batch.encoder_tokens is None or batch.encoder_segments is None:
      raise errors.PromptError(
          what='batch without encoder_tokens or encoder_segments', fix='T5 is an encoder-decoder: give it both.')
    return self.network.apply({'params': params}, batch)
