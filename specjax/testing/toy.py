"""Toy language models that are exact, tiny and honest: their logits depend on every cached token.

A wrong cache slot, a stale token or a missed rewind changes the law, so enumeration sees it.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import types
from specjax.models import kv_cache
from specjax.ops import commit


class ToyCache(NamedTuple):
  """`tokens` int32[B, S], `length` int32[B], `encoder` float[B, V], what the encoder adds to every logit."""

  tokens: jax.Array
  length: jax.Array
  encoder: jax.Array


@dataclasses.dataclass(frozen=True)
class ToyLM:
  """logits[t] = sum over the visible j <= t of table[(t - j) mod M, token j] + encoder sum. Implements `LanguageModel`.

  Its hidden states are its logits.

  Attributes:
    vocab_size: V.
    memory: M, how many distances are told apart.
    window: tokens further back than this are not seen; 0 sees everything.
    scale: standard deviation of the table's entries.
    has_encoder: whether prompts carry encoder tokens.
    max_length: the most tokens a row may have, None for any.
  """

  vocab_size: int
  memory: int = 5
  window: int = 0
  scale: float = 1.0
  has_encoder: bool = False
  max_extend: ClassVar[None] = None  # every token is kept
  max_length: int | None = None

  def init(self, key) -> Any:
    shape = (self.memory, self.vocab_size, self.vocab_size)
    return {'table': self.scale * jax.random.normal(key, shape, jnp.result_type(float)),
            'encoder': self.scale * jax.random.normal(jax.random.fold_in(key, 1), shape[1:], jnp.result_type(float))}

  def forward(self, params, batch):
    encoder = self._encode(params, batch.encoder_tokens, batch.encoder_segments, batch.tokens.shape[0])
    position = jnp.arange(batch.tokens.shape[1], dtype=jnp.int32)[None, :]
    return types.LMOutput(self._logits(params, batch.tokens, encoder, jnp.broadcast_to(position, batch.tokens.shape)))

  def prefill(self, params, prompt, capacity):
    tokens = jnp.pad(prompt.tokens, ((0, 0), (0, capacity - prompt.tokens.shape[1])))
    mask = None
    if prompt.encoder_tokens is not None:
      index = jnp.arange(prompt.encoder_tokens.shape[1], dtype=jnp.int32)[None, :]
      mask = (index < prompt.encoder_length[:, None]).astype(jnp.int32)
    encoder = self._encode(params, prompt.encoder_tokens, mask, prompt.tokens.shape[0])
    return types.Prefill(), ToyCache(tokens, prompt.length - 1, encoder)

  def extend(self, params, cache, tokens, *, count, layout=types.CHAIN, logits_at=None):
    stored = commit.append(
        cache.tokens, tokens, length=cache.length, count=jnp.full_like(cache.length, tokens.shape[1]))
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    where = {}
    if isinstance(layout, types.Tree):
      index, where = layout.depth, self._tree_keys(cache, layout)
    position = cache.length[:, None] + index
    if logits_at is not None:
      position = jnp.take_along_axis(position, logits_at[:, None], axis=1)
    logits = self._logits(params, stored, cache.encoder, position, **where)
    return types.LMOutput(logits, logits), ToyCache(stored, cache.length + count, cache.encoder)

  def length(self, cache):
    return cache.length

  def rewind(self, cache, length):
    return cache._replace(length=length)

  def keep_path(self, cache, length, path):
    source = jnp.clip(length[:, None] + jnp.maximum(path, 0), 0, cache.tokens.shape[1] - 1)
    kept = jnp.take_along_axis(cache.tokens, source, axis=1)
    count = jnp.sum(path >= 0, axis=1, dtype=jnp.int32)
    return cache._replace(
        tokens=commit.append(cache.tokens, kept, length=length, count=count), length=length + count)

  def _encode(self, params, tokens, mask, batch):
    if not self.has_encoder:
      return jnp.zeros((batch, self.vocab_size), params['table'].dtype)
    weights = (mask > 0).astype(params['encoder'].dtype)
    return jnp.sum(params['encoder'][tokens] * weights[:, :, None], axis=1)

  def _tree_keys(self, cache, layout):
    """The position of every slot int32[B, S], and which slots each node sees bool[B, T, S]."""
    slot = jnp.arange(cache.tokens.shape[1], dtype=jnp.int32)[None, :]
    node = slot - cache.length[:, None]
    width = layout.depth.shape[1]
    in_block = (node >= 0) & (node < width)
    node = jnp.clip(node, 0, width - 1)
    key_position = jnp.where(
        in_block, cache.length[:, None] + jnp.take_along_axis(layout.depth, node, axis=1), slot)
    ancestors = jnp.take_along_axis(
        kv_cache.tree_ancestors(layout.parents), jnp.broadcast_to(node[:, None, :], (*layout.depth.shape, node.shape[1])),
        axis=2)
    before = slot[:, None, :] < cache.length[:, None, None]
    return dict(key_position=key_position, seen=jnp.where(in_block[:, None, :], ancestors, before))

  def _logits(self, params, stored, encoder, position, *, key_position=None, seen=None):
    """float[B, T, V] of the queries at `position` int32[B, T] over `stored` int32[B, S]."""
    if key_position is None:
      key_position = jnp.arange(stored.shape[1], dtype=jnp.int32)[None, :]
    distance = position[:, :, None] - key_position[:, None, :]
    visible = distance >= 0 if seen is None else (distance >= 0) & seen
    if self.window:
      visible &= distance < self.window
    rows = params['table'][jnp.mod(distance, self.memory), stored[:, None, :]]
    return jnp.sum(jnp.where(visible[..., None], rows, 0), axis=2) + encoder[:, None, :]


@dataclasses.dataclass(frozen=True)
class ToyPair:
  """Two toy models with parameters, in the shape `specjax.generate` takes. No tokenizer."""

  target: ToyLM
  drafter: ToyLM
  params: Any
  family: str = 'decoder-only'
  tokenizer: Any = None
  name: str = 'toy'


def toy_pair(*, vocab_size, seed, window=0, has_encoder=False, scale=1.0, drafter_window=0):
  """A `ToyPair` with unrelated random tables."""
  target = ToyLM(vocab_size=vocab_size, window=window, has_encoder=has_encoder, scale=scale)
  drafter = ToyLM(vocab_size=vocab_size, window=drafter_window, has_encoder=has_encoder, scale=scale, memory=3)
  params = {'target': target.init(jax.random.key(seed)), 'drafter': drafter.init(jax.random.key(seed + 1))}
  params = jax.tree.map(np.asarray, params)
  return ToyPair(target, drafter, params, 'encoder-decoder' if has_encoder else 'decoder-only')


def linear_probe(kernel, bias=0.0):
  """Parameters as of `specjax.ops.probes` of one layer, float64, without standardisation and calibration.

  Args:
    kernel: float[D]; one that sums to 0 reads a `ToyLM`'s law as it reads its hidden state.
    bias: a number.
  """
  kernel = np.asarray(kernel, np.float64)
  return {
      'mean': np.zeros(len(kernel)), 'scale': np.ones(len(kernel)), 'kernels': [kernel[:, None]],
      'biases': [np.array([bias])], 'temperature': np.array(1.0), 'knots': {'x': np.zeros(0), 'y': np.zeros(0)}}
