"""Models seen through another vocabulary: rows that no token has are never drawn, or token ids are translated."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core import errors
from specjax.core import protocols
from specjax.core import types


@dataclasses.dataclass(frozen=True)
class PaddedLM:
  """A `LanguageModel` whose tokens are the first `num_tokens`; what is behind them has no mass.

  Embeddings are padded to round numbers of rows (32,100 tokens in 32,128), and the logits of the padding are whatever
  training left there. Here they are -inf, so the law is over the tokens that exist, with the parameters of `model`.

  Attributes:
    model: the model.
    num_tokens: how many ids mean something, at most the model's rows.
    vocab_size: rows of the logits; more than the model's where its partner is padded further.
  """

  model: protocols.LanguageModel
  num_tokens: int
  vocab_size: int

  def __post_init__(self):
    if not 0 < self.num_tokens <= min(self.model.vocab_size, self.vocab_size):
      raise errors.VocabError(
          what='number of tokens', got=self.num_tokens,
          expected=f'at most {min(self.model.vocab_size, self.vocab_size)}, the rows of the model',
          fix='the tokenizer is not the one of this model')

  @property
  def max_extend(self) -> int | None:
    return self.model.max_extend

  @property
  def max_length(self) -> int | None:
    return self.model.max_length

  @property
  def embed_dim(self) -> int:
    """D, the width of the hidden states."""
    return self.model.embed_dim

  def init(self, key: jax.Array) -> Any:
    """Parameters of `model`."""
    return self.model.init(key)

  def forward(self, params: Any, batch: types.TrainingBatch) -> types.LMOutput:
    return self._output(self.model.forward(params, batch))

  def first_layers(self, num_layers: int) -> 'PaddedLM':
    """The view of the model's first layers."""
    return dataclasses.replace(self, model=self.model.first_layers(num_layers))

  def prefill(self, params: Any, prompt: types.Prompt, capacity: int, **shared: Any) -> tuple[types.Prefill, Any]:
    return self.model.prefill(params, prompt, capacity, **shared)

  def extend(
      self, params: Any, cache: Any, tokens: jax.Array, *, count: jax.Array, layout: Any = types.CHAIN,
      logits_at: jax.Array | None = None,
  ) -> tuple[types.LMOutput, Any]:
    output, cache = self.model.extend(params, cache, tokens, count=count, layout=layout, logits_at=logits_at)
    return self._output(output), cache

  def length(self, cache: Any) -> jax.Array:
    return self.model.length(cache)

  def rewind(self, cache: Any, length: jax.Array) -> Any:
    return self.model.rewind(cache, length)

  def keep_path(self, cache: Any, length: jax.Array, path: jax.Array) -> Any:
    return self.model.keep_path(cache, length, path)

  def unembed(self, params: Any, hidden: jax.Array) -> jax.Array:
    return self._logits(self.model.unembed(params, hidden))

  def embed(self, params: Any, tokens: jax.Array) -> jax.Array:
    return self.model.embed(params, tokens)

  def _output(self, output):
    return output._replace(logits=self._logits(output.logits))

  def _logits(self, logits):
    logits = logits[..., :self.num_tokens]
    padding = [(0, 0)] * (logits.ndim - 1) + [(0, self.vocab_size - self.num_tokens)]
    return jnp.pad(logits, padding, constant_values=-jnp.inf)


@dataclasses.dataclass(frozen=True)
class TranslatedLM:
  """A `LanguageModel` that speaks another vocabulary: it is fed translated ids, and its logits come back translated.

  Tokens that `model` does not have get -inf. So its law is renormalised over the tokens that both have before anything is
  drawn, and that law is what acceptance divides by: decoding with it as drafter stays lossless.

  The target commits tokens that the model does not have. It is fed its unknown token instead and drafts on. That moves its
  law, not the output's: the law that a draft token was drawn from is a function of the prefix whatever the model was fed,
  and it is the one that is verified.

  Parameters: {'model': those of `model`, 'token_of': int32[V], 'is_shared': bool[V]}. `token_of` gives the model's id of
  each outer id, its unknown token where it has none; `is_shared` says where it has one.

  Attributes:
    model: the model.
    vocab_size: V, rows of the outer vocabulary.
  """

  model: protocols.LanguageModel
  vocab_size: int

  @property
  def max_extend(self) -> int | None:
    return self.model.max_extend

  @property
  def max_length(self) -> int | None:
    return self.model.max_length

  def init(self, key: jax.Array) -> Any:
    """Parameters of `model`, and a translation that changes nothing where there are as many rows."""
    token_of = jnp.arange(self.vocab_size, dtype=jnp.int32)
    is_shared = token_of < self.model.vocab_size
    return {'model': self.model.init(key), 'token_of': jnp.where(is_shared, token_of, 0), 'is_shared': is_shared}

  def forward(self, params: Any, batch: types.TrainingBatch) -> types.LMOutput:
    tokens = {name: self._tokens(params, getattr(batch, name)) for name in ('tokens', 'encoder_tokens')}
    return self._output(params, self.model.forward(params['model'], batch._replace(**tokens)))

  def prefill(self, params: Any, prompt: types.Prompt, capacity: int) -> tuple[types.Prefill, Any]:
    tokens = {name: self._tokens(params, getattr(prompt, name)) for name in ('tokens', 'encoder_tokens')}
    return self.model.prefill(params['model'], prompt._replace(**tokens), capacity)

  def extend(
      self, params: Any, cache: Any, tokens: jax.Array, *, count: jax.Array, layout: Any = types.CHAIN,
      logits_at: jax.Array | None = None,
  ) -> tuple[types.LMOutput, Any]:
    output, cache = self.model.extend(
        params['model'], cache, self._tokens(params, tokens), count=count, layout=layout, logits_at=logits_at)
    return self._output(params, output), cache

  def length(self, cache: Any) -> jax.Array:
    return self.model.length(cache)

  def rewind(self, cache: Any, length: jax.Array) -> Any:
    return self.model.rewind(cache, length)

  def keep_path(self, cache: Any, length: jax.Array, path: jax.Array) -> Any:
    return self.model.keep_path(cache, length, path)

  def _tokens(self, params, tokens):
    # 'clip': a slot that nothing was written to may hold any number.
    return None if tokens is None else jnp.take(params['token_of'], tokens, axis=0, mode='clip')

  def _output(self, params, output):
    logits = jnp.take(output.logits, params['token_of'], axis=-1, mode='clip')
    is_shared = params['is_shared'].reshape((1,) * (logits.ndim - 1) + (-1,))
    return output._replace(logits=jnp.where(is_shared, logits, -jnp.inf))
