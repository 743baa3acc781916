"""T5 as a `LanguageModel`: encoder-decoders 1.0, 1.1 and Flan."""

import dataclasses
import functools
from typing import Any, ClassVar

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from specjax.core import checks
from specjax.core import errors
from specjax.core import types
from specjax.models import kv_cache
from specjax.models import layers
from specjax.models import t5_configs
from specjax.models import t5_layers

T5Config = t5_configs.T5Config


@struct.dataclass(kw_only=True)
class T5Cache:
  """What decoding keeps of each row. Only the self-attention part grows, and is rewound.

  Attributes:
    self_attention: the decoder tokens' keys and values, with the length of each row.
    cross: per layer the keys and values dtype[B, N, S, H] of the encoder output, computed once.
    encoder_length: int32[B], the encoder slots that exist; the others are never seen.
  """

  self_attention: kv_cache.KVCache
  cross: tuple[tuple[jax.Array, jax.Array], ...]
  encoder_length: jax.Array

  @property
  def length(self) -> jax.Array:
    """int32[B], decoder tokens that each row covers."""
    return self.self_attention.length

  @property
  def cross_mask(self) -> jax.Array:
    """bool[B, 1, S]."""
    index = jnp.arange(self.cross[0][0].shape[2], dtype=self.encoder_length.dtype)
    return index[None, None, :] < self.encoder_length[:, None, None]


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
      self.head = layers.Projection(self.config.vocab_size, **dtypes)

  def encode(self, tokens, segments):
    """Encoder output [B, S, D], 0 on padding, and the cross-attention keys and values of each decoder layer."""
    encoded = self.encoder(self.token_embedder(tokens), segments)
    return encoded, self.cross_keys_values(encoded)

  def cross_keys_values(self, encoded):
    """The cross-attention keys and values of each decoder layer, of an encoder output [B, S, D]."""
    return self.decoder.cross_keys_values(encoded)

  def decode(self, tokens, *, attend_self, cross, cross_mask, logits_at=None):
    """`LMOutput` of decoder tokens [B, T], or of index `logits_at` [B] alone; see `t5_layers.Decoder`."""
    hidden = self.decoder(
        self.token_embedder(tokens), attend_self=attend_self, cross=cross, cross_mask=cross_mask)
    if logits_at is not None:
      hidden = jnp.take_along_axis(hidden, logits_at[:, None, None], axis=1)
    return types.LMOutput(logits=self.unembed(hidden), hidden=hidden)

  def embed(self, tokens):
    """Embeddings [B, T, D] of tokens int32[B, T]."""
    return self.token_embedder(tokens)

  def unembed(self, hidden):
    """Logits [B, T, V] of hidden states [B, T, D]."""
    scaled = hidden * self.config.embed_dim**-0.5 if self.config.scale_logits else hidden
    if self.config.tied_head:
      return self.token_embedder.attend(scaled)
    return self.head(scaled, layers.float32_or_wider(self.dtype))

  def __call__(self, batch):
    """`LMOutput` of a `TrainingBatch`."""
    _, cross = self.encode(batch.encoder_tokens, batch.encoder_segments)
    index = jnp.arange(batch.tokens.shape[1], dtype=jnp.int32)
    causal = index[:, None] >= index[None, :]
    mask = t5_layers.same_segment(batch.segments, batch.segments) & causal[None]
    bias = t5_layers.position_bias(self.decoder.relative_bias(), index[None], index[None])

    def attend_self(layer, queries, keys, values):
      del layer
      return layers.masked_attention(queries, keys, values, mask, bias=bias)

    cross_mask = t5_layers.same_segment(batch.segments, batch.encoder_segments)
    return self.decode(batch.tokens, attend_self=attend_self, cross=cross, cross_mask=cross_mask)


  def extend(self, cache, tokens, *, count, layout, logits_at):
    """`LMOutput` of tokens [B, T] fed behind each row of a `T5Cache`, and the cache with them."""
    block = kv_cache.create_block(cache.length, count, tokens.shape[1], layout)
    bias = functools.partial(t5_layers.position_bias, self.decoder.relative_bias())
    cached = list(cache.self_attention.layers)

    def attend_self(layer, queries, keys, values):
      cached[layer] = kv_cache.append(cached[layer], block, keys, values)
      return kv_cache.attend(cached[layer], block, queries, bias=bias)

    output = self.decode(
        tokens, attend_self=attend_self, cross=cache.cross, cross_mask=cache.cross_mask, logits_at=logits_at)
    return output, cache.replace(self_attention=kv_cache.KVCache(length=cache.length + count, layers=tuple(cached)))


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

  max_extend: ClassVar[None] = None  # full caches: any width fits

  @property
  def vocab_size(self) -> int:
    """Number of tokens, padding of the table included."""
    return self.config.vocab_size

  @property
  def max_length(self) -> int | None:
    """The longest encoder input and decoder sequence (tokens); see `T5Config`."""
    return self.config.max_length

  @property
  def embed_dim(self) -> int:
    """Width of the hidden states."""
    return self.config.embed_dim

  def first_layers(self, num_layers: int) -> 'T5LM':
    """The model that leaves the decoder behind its first `num_layers` layers; it reads the parameters of this one.

    Raises:
      ParamError: not a number in 1..num_decoder_layers.
    """
    checks.integer('num_layers', num_layers, low=1, high=self.config.num_decoder_layers, over=errors.ParamError)
    return dataclasses.replace(self, config=dataclasses.replace(self.config, num_decoder_layers=num_layers))

  @property
  def network(self) -> T5Network:
    """The flax module."""
    return T5Network(self.config, self.dtype, self.param_dtype)

  def init(self, key: jax.Array) -> Any:
    """Fresh parameters: queries at (embed_dim * head_dim) ** -0.5, embeddings at 1, other kernels at fan_in ** -0.5."""
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

  def prefill(
      self, params: Any, prompt: types.Prompt, capacity: int, *, encoder_hidden: jax.Array | None = None,
  ) -> tuple[types.Prefill, T5Cache]:
    """Runs the encoder, and all but the last token of each row's decoder prompt.

    Args:
      params: as from `init`.
      prompt: `tokens` begins with the decoder start token (0); more tokens are a forced prefix of the output.
      capacity: slots for decoder tokens (static); the encoder output has its own.
      encoder_hidden: [B, S, D], this encoder's output for this prompt where it is known; the encoder then does not run.

    Returns:
      `Prefill` with both hidden states (the encoder's is 0 on padding), and the cache.

    Raises:
      PromptError: no encoder input.
      LimitError: the decoder prompt does not fit.
    """
    if prompt.encoder_tokens is None or prompt.encoder_length is None:
      raise errors.PromptError(
          what='prompt without encoder_tokens or encoder_length', fix='T5 is an encoder-decoder: give it both.')
    batch, width = prompt.tokens.shape
    if width - 1 > capacity:
      raise errors.LimitError(what='decoder prompt', got=width, expected=f'at most {capacity + 1} tokens')
    index = jnp.arange(prompt.encoder_tokens.shape[1], dtype=jnp.int32)
    segments = (index[None, :] < prompt.encoder_length[:, None]).astype(jnp.int32)
    if encoder_hidden is None:
      encoded, cross = self.network.apply(
          {'params': params}, prompt.encoder_tokens, segments, method=T5Network.encode)
    else:
      encoded = encoder_hidden
      cross = self.network.apply({'params': params}, encoded, method=T5Network.cross_keys_values)
    # Buffers of their own for each layer, and a copy of the lengths: outside jit too, the cache may be donated.
    empty = tuple(
        kv_cache.create_layer(
            batch, capacity, num_kv_heads=self.config.num_heads, head_dim=self.config.head_dim, dtype=self.dtype)
        for _ in range(self.config.num_decoder_layers))
    cache = T5Cache(
        self_attention=kv_cache.KVCache(length=jnp.zeros((batch,), jnp.int32), layers=empty), cross=cross,
        encoder_length=jnp.array(prompt.encoder_length, jnp.int32))
    hidden = jnp.zeros((batch, 1, self.config.embed_dim), self.dtype)  # No token follows the last one: never valid.
    if width > 1:
      output, cache = self.extend(params, cache, prompt.tokens[:, :-1], count=prompt.length - 1)
      hidden = jnp.concatenate([output.hidden, hidden], axis=1)
    return types.Prefill(hidden=hidden, encoder_hidden=encoded), cache

  def extend(
      self, params: Any, cache: T5Cache, tokens: jax.Array, *, count: jax.Array, layout: Any = types.CHAIN,
      logits_at: jax.Array | None = None,
  ) -> tuple[types.LMOutput, T5Cache]:
    """Feeds the first `count` int32[B] of decoder `tokens` int32[B, T]; `hidden` is what the final norm returns."""
    return self.network.apply(
        {'params': params}, cache, tokens, count=count, layout=layout, logits_at=logits_at, method=T5Network.extend)

  def unembed(self, params: Any, hidden: jax.Array) -> jax.Array:
    """Logits [B, T, V] of hidden states [B, T, D] as in `LMOutput.hidden`, or of what draft heads make of them."""
    return self.network.apply({'params': params}, hidden, method=T5Network.unembed)

  def embed(self, params: Any, tokens: jax.Array) -> jax.Array:
    """Embeddings [B, T, D] of tokens int32[B, T] as the first layer reads them."""
    return self.network.apply({'params': params}, tokens, method=T5Network.embed)

  def length(self, cache: T5Cache) -> jax.Array:
    """int32[B], decoder tokens that each row covers."""
    return cache.length

  def rewind(self, cache: T5Cache, length: jax.Array) -> T5Cache:
    """The cache covering the first `length` int32[B] decoder tokens; the encoder's part stays."""
    return cache.replace(self_attention=kv_cache.rewind(cache.self_attention, length))

  def keep_path(self, cache: T5Cache, length: jax.Array, path: jax.Array) -> T5Cache:
    """The cache with one path of the tree that was fed at slot `length`; see `LanguageModel.keep_path`."""
    return cache.replace(self_attention=kv_cache.keep_path(cache.self_attention, length, path))
