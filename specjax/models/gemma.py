"""Decoder-only transformers: Gemma 1, 2 and 3 (text), Llama 2 and 3. One family, told apart by `DecoderConfig`.

Parameters, one leaf per matrix and layer (V vocabulary, D embed_dim, N heads, K key heads, H head_dim, F hidden_dim):

    embedder/embedding [V, D]                     head/kernel [D, V], untied models only
    layer_{i}/attention/{query,key,value}/kernel [D, N*H or K*H]      layer_{i}/attention/output/kernel [N*H, D]
    layer_{i}/attention/{query_norm,key_norm}/scale [H]               where query_key_norm
    layer_{i}/mlp/{gate,up}/kernel [D, F]         layer_{i}/mlp/down/kernel [F, D]
    layer_{i}/{pre_attention_norm,pre_mlp_norm}/scale [D]
    layer_{i}/{post_attention_norm,post_mlp_norm}/scale [D]           where post_norms
    final_norm/scale [D]
"""

import dataclasses
import math
from typing import Any, Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

from specjax.core import checks
from specjax.core import errors
from specjax.core import types
from specjax.models import kv_cache
from specjax.models import layers

GLOBAL, LOCAL = 'global', 'local'


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Shape and arithmetic of one decoder; hashable.

  Attributes:
    vocab_size: rows of the embedding, padding included.
    embed_dim, hidden_dim: width of the residual stream and of the MLP.
    num_heads, num_kv_heads, head_dim: query heads, key heads (a divisor of them), width of a head.
    layer_kinds: 'global' or 'local' of each layer; local layers see `window` tokens, themselves included.
    activation: 'gelu' (tanh form) or 'silu'; the MLP is gated.
    window: tokens, None where no layer is local.
    query_scale: factor of the queries; None is head_dim ** -0.5.
    global_rotary, local_rotary: position embedding of each kind of layer.
    norm_epsilon: added to the mean square.
    norm_plus_one: norms multiply by 1 + scale.
    post_norms: norms also behind attention and MLP.
    query_key_norm: norms on every head's queries and keys.
    attention_softcap, final_softcap: caps of scores and logits, or None.
    scale_embeddings: embeddings are multiplied by sqrt(embed_dim), rounded to the dtype of the computation.
    tied_head: logits come from the embedding.
    max_length: tokens, the longest sequence the model was made for; None is not known and not checked.
  """

  vocab_size: int
  embed_dim: int
  hidden_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  layer_kinds: tuple[str, ...]
  activation: str
  window: int | None = None
  query_scale: float | None = None
  global_rotary: layers.Rotary = layers.Rotary()
  local_rotary: layers.Rotary = layers.Rotary()
  norm_epsilon: float = 1e-6
  norm_plus_one: bool = False
  post_norms: bool = False
  query_key_norm: bool = False
  attention_softcap: float | None = None
  final_softcap: float | None = None
  scale_embeddings: bool = False
  tied_head: bool = True
  max_length: int | None = None

  def __post_init__(self):
    unknown = set(self.layer_kinds) - {GLOBAL, LOCAL}
    if unknown:
      raise errors.ParamError(what='layer_kinds', got=sorted(unknown), expected=f"'{GLOBAL}' or '{LOCAL}'")
    if LOCAL in self.layer_kinds and not self.window:
      raise errors.ParamError(what='window', got=self.window, expected='a positive number, as there are local layers')
    if self.max_length is not None and self.max_length < 1:
      raise errors.ParamError(what='max_length', got=self.max_length, expected='a positive number, or None')
    if self.num_heads % self.num_kv_heads:
      raise errors.ParamError(what='num_kv_heads', got=self.num_kv_heads, expected=f'a divisor of {self.num_heads}')

  @property
  def num_layers(self) -> int:
    return len(self.layer_kinds)

  def window_of(self, kind: str) -> int | None:
    """The window of a layer of this kind (tokens), None where it sees everything."""
    return self.window if kind == LOCAL else None


# Attention of one layer: (queries, keys, values) -> (output, what the caller keeps of the layer).
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class Attention(nn.Module):
  """Projections, norms and rotation around an `Attend`."""

  config: DecoderConfig
  kind: str
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, positions: jax.Array, attend: Attend) -> tuple[jax.Array, Any]:
    config = self.config

    def heads(name, num_heads, *, norm):
      y = layers.Projection(num_heads * config.head_dim, self.dtype, self.param_dtype, name=name)(x)
      y = y.reshape(*x.shape[:2], num_heads, config.head_dim)
      if norm and config.query_key_norm:
        y = _norm(config, self.dtype, self.param_dtype, f'{name}_norm')(y)
      return y

    rotary = config.local_rotary if self.kind == LOCAL else config.global_rotary
    scale = config.head_dim ** -0.5 if config.query_scale is None else config.query_scale
    query = rotary(heads('query', config.num_heads, norm=True), positions)
    # The product is rounded, not the scale: in bfloat16 1/12 would be 0.2 % too large.
    query = (query.astype(layers.float32_or_wider(self.dtype)) * scale).astype(self.dtype)
    key = rotary(heads('key', config.num_kv_heads, norm=True), positions)
    output, kept = attend(query, key, heads('value', config.num_kv_heads, norm=False))
    output = output.reshape(*x.shape[:2], -1)
    return layers.Projection(config.embed_dim, self.dtype, self.param_dtype, name='output')(output), kept


class DecoderLayer(nn.Module):
  """Attention and MLP, each with its norms and residual."""

  config: DecoderConfig
  kind: str
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, positions: jax.Array, attend: Attend) -> tuple[jax.Array, Any]:
    config = self.config
    norm = lambda name: _norm(config, self.dtype, self.param_dtype, name)
    y = norm('pre_attention_norm')(x)
    y, kept = Attention(config, self.kind, self.dtype, self.param_dtype, name='attention')(y, positions, attend)
    x = x + (norm('post_attention_norm')(y) if config.post_norms else y)
    y = norm('pre_mlp_norm')(x)
    y = layers.GatedMLP(config.hidden_dim, config.activation, self.dtype, self.param_dtype, name='mlp')(y)
    return x + (norm('post_mlp_norm')(y) if config.post_norms else y), kept


class Embedder(nn.Module):
  """The table of embeddings, read by rows for tokens and as a whole for tied logits."""

  config: DecoderConfig
  dtype: Any
  param_dtype: Any

  def setup(self):
    std = self.config.embed_dim ** -0.5 if self.config.scale_embeddings else 0.02
    shape = (self.config.vocab_size, self.config.embed_dim)
    self.embedding = self.param('embedding', nn.initializers.normal(std), shape, self.param_dtype)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    x = self.embedding.at[tokens].get(mode='clip').astype(self.dtype)
    return x * jnp.asarray(math.sqrt(self.config.embed_dim), self.dtype) if self.config.scale_embeddings else x

  def logits(self, hidden: jax.Array) -> jax.Array:
    embedding = self.embedding.astype(self.dtype)
    return jnp.einsum('btd,vd->btv', hidden, embedding, preferred_element_type=layers.float32_or_wider(self.dtype))


class Decoder(nn.Module):
  """The whole network. Caches are arguments and results of the layers' `Attend`, never module state."""

  config: DecoderConfig
  dtype: Any
  param_dtype: Any

  def setup(self):
    config = self.config
    self.embedder = Embedder(config, self.dtype, self.param_dtype)
    self.layer = [DecoderLayer(config, kind, self.dtype, self.param_dtype) for kind in config.layer_kinds]
    self.final_norm = _norm(config, self.dtype, self.param_dtype, None)
    if not config.tied_head:
      self.head = layers.Projection(config.vocab_size, self.dtype, self.param_dtype)

  def __call__(
      self, tokens: jax.Array, positions: jax.Array, attends: list[Attend], logits_at: jax.Array | None = None
  ) -> tuple[types.LMOutput, list[Any]]:
    """Output of all tokens int32[B, T] or of index `logits_at` int32[B], and what each layer's `Attend` kept."""
    hidden, kept = self.encode(tokens, positions, attends)
    if logits_at is not None:
      hidden = jnp.take_along_axis(hidden, logits_at[:, None, None], axis=1)
    return types.LMOutput(self.unembed(hidden), hidden), kept

  def unembed(self, hidden: jax.Array) -> jax.Array:
    """Logits [B, T, V] of normed hidden states [B, T, D]."""
    if self.config.tied_head:
      logits = self.embedder.logits(hidden)
    else:
      logits = self.head(hidden, layers.float32_or_wider(self.dtype))
    return layers.soft_cap(logits, self.config.final_softcap)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Embeddings [B, T, D]."""
    return self.embedder(tokens)

  def encode(self, tokens: jax.Array, positions: jax.Array, attends: list[Attend]) -> tuple[jax.Array, list[Any]]:
    """As `__call__`, without logits: the normed hidden states [B, T, D]."""
    x, kept = self.embedder(tokens), []
    for layer, attend in zip(self.layer, attends, strict=True):
      x, of_layer = layer(x, positions, attend)
      kept.append(of_layer)
    return self.final_norm(x), kept


@dataclasses.dataclass(frozen=True)
class DecoderLM:
  """A decoder as a `specjax.core.protocols.LanguageModel`.

  Attributes:
    config: the architecture.
    dtype: of the computation and the cache; logits and softmax in at least float32.
    param_dtype: of fresh parameters.
    max_extend: the widest extend and the longest rewind (tokens); the slack of ring layers.
    return_hidden: whether `prefill` returns hidden states.
    block_size: slots per step of attention.
  """

  config: DecoderConfig
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  max_extend: int = 32
  return_hidden: bool = False
  block_size: int = kv_cache.BLOCK_SIZE

  def __post_init__(self):
    object.__setattr__(self, 'dtype', jnp.dtype(self.dtype))
    object.__setattr__(self, 'param_dtype', jnp.dtype(self.param_dtype))

  @property
  def vocab_size(self) -> int:
    return self.config.vocab_size

  @property
  def max_length(self) -> int | None:
    """The longest sequence (tokens); see `DecoderConfig`."""
    return self.config.max_length

  @property
  def embed_dim(self) -> int:
    return self.config.embed_dim

  def first_layers(self, num_layers: int) -> 'DecoderLM':
    """The model that leaves behind its first `num_layers` layers; it reads the parameters of this one.

    Raises:
      ParamError: not a number in 1..num_layers of this one.
    """
    checks.integer('num_layers', num_layers, low=1, high=self.config.num_layers, over=errors.ParamError)
    return dataclasses.replace(
        self, config=dataclasses.replace(self.config, layer_kinds=self.config.layer_kinds[:num_layers]))

  @property
  def network(self) -> Decoder:
    """The flax module."""
    return Decoder(self.config, self.dtype, self.param_dtype)

  def init(self, key: jax.Array) -> Any:
    """Fresh parameters, laid out as this module's docstring shows."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    masks = {kind: jnp.ones((1, 1, 1), bool) for kind in (GLOBAL, LOCAL)}
    return self.network.init(key, tokens, tokens, self._plain_attends(masks))['params']

  def forward(self, params: Any, batch: types.TrainingBatch) -> types.LMOutput:
    """Teacher-forced output of a packed batch; attention stays inside a segment."""
    masks = self._masks(batch.positions, batch.segments)
    output, _ = self.network.apply({'params': params}, batch.tokens, batch.positions, self._plain_attends(masks))
    return output

  def prefill(self, params: Any, prompt: types.Prompt, capacity: int) -> tuple[types.Prefill, kv_cache.KVCache]:
    """The cache covering `prompt.length - 1` tokens of each row; hidden states where `return_hidden`."""
    batch, width = prompt.tokens.shape
    positions = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None], (batch, width))
    attends = self._plain_attends(self._masks(positions, jnp.ones_like(positions)))
    hidden, kept = self.network.apply({'params': params}, prompt.tokens, positions, attends, method='encode')
    length = prompt.length - 1
    cache = self._empty_cache(batch, capacity)
    filled = tuple(kv_cache.prefill_layer(layer, *of_layer, length) for layer, of_layer in zip(cache.layers, kept))
    return types.Prefill(hidden=hidden if self.return_hidden else None), kv_cache.KVCache(length=length, layers=filled)

  def extend(
      self, params: Any, cache: kv_cache.KVCache, tokens: jax.Array, *, count: jax.Array, layout: Any = types.CHAIN,
      logits_at: jax.Array | None = None,
  ) -> tuple[types.LMOutput, kv_cache.KVCache]:
    """Feeds the first `count` of `tokens` at each row's end; see `LanguageModel.extend`.

    Raises:
      ParamError: the block is wider than `max_extend`.
    """
    width = tokens.shape[1]
    if width > self.max_extend:
      raise errors.ParamError(
          what='width of extend', got=width, expected=f'at most max_extend {self.max_extend}', fix='raise max_extend')
    block = kv_cache.create_block(cache.length, count, width, layout)

    def attend_of(layer):
      def attend(query, keys, values):
        filled = kv_cache.append(layer, block, keys, values)
        return kv_cache.attend(filled, block, query, softcap=self.config.attention_softcap), filled
      return attend

    attends = [attend_of(layer) for layer in cache.layers]
    output, filled = self.network.apply({'params': params}, tokens, block.positions, attends, logits_at)
    return output, kv_cache.KVCache(length=cache.length + count, layers=tuple(filled))

  def unembed(self, params: Any, hidden: jax.Array) -> jax.Array:
    """Logits [B, T, V] of hidden states [B, T, D] as in `LMOutput.hidden`, or of what draft heads make of them."""
    return self.network.apply({'params': params}, hidden, method=Decoder.unembed)

  def embed(self, params: Any, tokens: jax.Array) -> jax.Array:
    """Embeddings [B, T, D] of tokens int32[B, T] as the first layer reads them."""
    return self.network.apply({'params': params}, tokens, method=Decoder.embed)

  def length(self, cache: kv_cache.KVCache) -> jax.Array:
    """int32[B], tokens each row covers."""
    return cache.length

  def rewind(self, cache: kv_cache.KVCache, length: jax.Array) -> kv_cache.KVCache:
    """Forgets everything past `length`, at most `max_extend` tokens back."""
    return kv_cache.rewind(cache, length)

  def keep_path(self, cache: kv_cache.KVCache, length: jax.Array, path: jax.Array) -> kv_cache.KVCache:
    """Keeps one path of the last block; see `kv_cache.keep_path`."""
    return kv_cache.keep_path(cache, length, path)

  def _empty_cache(self, batch: int, capacity: int) -> kv_cache.KVCache:
    config = self.config
    create = lambda kind: kv_cache.create_layer(
        batch, capacity, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim, dtype=self.dtype,
        window=config.window_of(kind), slack=self.max_extend, block_size=self.block_size)
    return kv_cache.KVCache(
        length=jnp.zeros(batch, jnp.int32), layers=tuple(create(kind) for kind in config.layer_kinds))

  def _masks(self, positions: jax.Array, segments: jax.Array) -> dict[str, jax.Array]:
    """bool[B, T, T] of each kind of layer: earlier positions of the same segment; segment 0 is padding."""
    query, key = positions[:, :, None], positions[:, None, :]
    together = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]
    seen = together & (key <= query)
    return {GLOBAL: seen, LOCAL: seen & (key > query - self.config.window) if self.config.window else seen}

  def _plain_attends(self, masks: dict[str, jax.Array]) -> list[Attend]:
    """Attention over the tokens themselves; keeps keys and values."""
    def attend_of(kind):
      return lambda query, keys, values: (
          layers.masked_attention(query, keys, values, masks[kind], softcap=self.config.attention_softcap),
          (keys, values))
    return [attend_of(kind) for kind in self.config.layer_kinds]


def _norm(config: DecoderConfig, dtype: Any, param_dtype: Any, name: str | None) -> layers.RMSNorm:
  return layers.RMSNorm(config.norm_epsilon, dtype, param_dtype, config.norm_plus_one, name=name)
