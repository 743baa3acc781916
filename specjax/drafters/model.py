"""A language model as drafter: K tokens drawn one by one from its own law."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jax import lax

from specjax.core import protocols
from specjax.core import types
from specjax.ops import categorical
from specjax.ops import warping


@struct.dataclass(kw_only=True)
class ModelDrafter:
  """Draws `num_draft_tokens` tokens from a smaller language model, in K passes.

  After full acceptance the last draft token has not been fed: the first extend of the next round is two wide.

      committed   a b c d e          length = 5, pending e
      cache       a b c d            first extend feeds e (count 1)
      cache       a b c              after full acceptance: feeds d, e (count 2), law read behind e

  Attributes:
    model: the `LanguageModel`, static.
    num_draft_tokens: K >= 1, static.
    max_draft_tokens: int32[], traced cap on the proposal's length; 0 runs the same executable without speculation, the
      baseline that is bitwise equal to greedy speculative decoding. None is K.
  """

  model: protocols.LanguageModel = struct.field(pytree_node=False)
  num_draft_tokens: int = struct.field(pytree_node=False)
  max_draft_tokens: Any = None

  def init(self, params, prompt, prefill, capacity) -> Any:
    del prefill
    return self.model.prefill(params, prompt, capacity)[1]

  def propose(self, params, state, uniforms, *, tokens, length, sampling, live, with_bonus):
    cache = state
    behind = self.model.length(cache)
    count = jnp.where(live, length - behind, 0)
    index = behind[:, None] + jnp.arange(2, dtype=jnp.int32)[None, :]
    first = jnp.take_along_axis(tokens, jnp.minimum(index, tokens.shape[1] - 1), axis=1)
    output, cache = self.model.extend(params, cache, first, count=count)
    last = jnp.maximum(count - 1, 0)[:, None, None]
    logits = jnp.take_along_axis(output.logits, last, axis=1)[:, 0]
    draft = _Draft.empty(logits, self.num_draft_tokens)
    draft = draft.extended(0, logits, uniforms, sampling, live)

    def another(i, carry):
      draft, cache = carry
      output, cache = self.model.extend(
          params, cache, lax.dynamic_slice_in_dim(draft.tokens, i - 1, 1, axis=1), count=live.astype(jnp.int32))
      return draft.extended(i, output.logits[:, 0], uniforms, sampling, live), cache

    draft, cache = lax.fori_loop(1, self.num_draft_tokens, another, (draft, cache))
    if with_bonus:
      output, cache = self.model.extend(params, cache, draft.tokens[:, -1:], count=live.astype(jnp.int32))
      draft = draft.with_bonus(output.logits)
    cap = self.num_draft_tokens if self.max_draft_tokens is None else self.max_draft_tokens
    cap = jnp.minimum(jnp.asarray(cap, jnp.int32), self.num_draft_tokens)
    return types.Proposal(
        tokens=draft.tokens, length=jnp.where(live, cap, 0), log_probs=draft.log_probs, logits=draft.logits,
        has_bonus=with_bonus), cache

  def commit(self, params, state, *, tokens, length, verdict, target_output):
    del params, tokens, verdict, target_output
    return self.model.rewind(state, jnp.minimum(self.model.length(state), length - 1))

  def num_calls(self, proposal):
    """int32[B], drafter passes of this round."""
    return jnp.full_like(proposal.length, self.num_draft_tokens + int(proposal.has_bonus))


@struct.dataclass(kw_only=True)
class _Draft:
  """Tokens int32[B, K] drawn so far, the laws [B, K, V] they were drawn from, and raw logits [B, K + 1, V]."""

  tokens: jax.Array
  log_probs: jax.Array
  logits: jax.Array

  @classmethod
  def empty(cls, logits, num_draft_tokens):
    batch, vocab_size = logits.shape
    dtype = warping.probability_dtype(logits.dtype)
    return cls(
        tokens=jnp.zeros((batch, num_draft_tokens), jnp.int32),
        log_probs=jnp.zeros((batch, num_draft_tokens, vocab_size), dtype),
        logits=jnp.zeros((batch, num_draft_tokens + 1, vocab_size), logits.dtype))

  def extended(self, i, logits, uniforms, sampling, live):
    """With token i drawn from exactly the law that is stored beside it."""
    log_probs = warping.sampling_log_probs(logits, sampling, live=live)
    pair = lax.dynamic_index_in_dim(uniforms.draft, i, axis=1, keepdims=False)
    drawn = jax.vmap(categorical.draw)(pair.astype(log_probs.dtype), log_probs)
    put = lambda array, value: lax.dynamic_update_index_in_dim(array, value, i, axis=1)
    return _Draft(
        tokens=put(self.tokens, drawn), log_probs=put(self.log_probs, log_probs), logits=put(self.logits, logits))

  def with_bonus(self, logits):
    return _Draft(tokens=self.tokens, log_probs=self.log_probs, logits=self.logits.at[:, -1:].set(logits))
