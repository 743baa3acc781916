"""Prompt lookup: drafts are copied from where the latest tokens were seen before."""

from typing import Any, ClassVar, Literal

from flax import struct
import jax
import jax.numpy as jnp

from specjax.core import types
from specjax.ops import commit
from specjax.ops import lookup


@struct.dataclass(kw_only=True)
class PromptLookup:
  """Copies what followed the longest earlier occurrence of the latest tokens; without a model (Saxena 2023).

  It looks in the committed text and, for an encoder-decoder, in the encoder's input, where copies of the source are found;
  the text wins where both match equally long. A copy that reaches the end of the text goes on with itself: the text behind
  the match is a period. Drafts are deterministic, so their law is one-hot and verification stays lossless at any temperature.

      text   the cat sat . the cat        max_match = 2, K = 3
      match  [the cat]                    draft: sat . the

  Attributes:
    vocab_size: V, static.
    num_draft_tokens: K >= 1, static.
    max_match, min_match: at most and at least so many of the latest tokens must agree, static.
    prefers: static; 'last' or 'first' of equally long matches.
    max_draft_tokens: int32[], traced cap on the proposal's length; None is K.
  """

  vocab_size: int = struct.field(pytree_node=False)
  num_draft_tokens: int = struct.field(pytree_node=False)
  max_match: int = struct.field(pytree_node=False, default=3)
  min_match: int = struct.field(pytree_node=False, default=1)
  prefers: Literal['first', 'last'] = struct.field(pytree_node=False, default='last')
  max_draft_tokens: Any = None
  params_from: ClassVar[str] = 'drafter'

  def init(self, params, prompt, prefill, capacity) -> Any:
    del params, prefill, capacity
    if prompt.encoder_tokens is None:
      return jnp.zeros((prompt.tokens.shape[0], 0), jnp.int32), jnp.zeros_like(prompt.length)
    return prompt.encoder_tokens, prompt.encoder_length

  def propose(self, params, state, uniforms, *, tokens, length, sampling, live, with_bonus):
    del params, sampling, with_bonus
    source, source_length = state
    drafted, count = jax.vmap(self._copy)(tokens, length, source, source_length)
    cap = self.num_draft_tokens if self.max_draft_tokens is None else self.max_draft_tokens
    is_drafted = drafted[:, :, None] == jnp.arange(self.vocab_size, dtype=jnp.int32)[None, None, :]
    return types.Proposal(
        tokens=drafted,
        length=jnp.where(live, jnp.minimum(count, jnp.asarray(cap, jnp.int32)), 0),
        log_probs=jnp.where(is_drafted, 0.0, -jnp.inf).astype(uniforms.accept.dtype),
    ), state

  def commit(self, params, state, *, tokens, length, verdict, target_output):
    del params, tokens, length, verdict, target_output
    return state

  def num_calls(self, proposal):
    """int32[B], drafter passes of this round."""
    return jnp.zeros_like(proposal.length)

  def _copy(self, text, length, source, source_length):
    """(tokens int32[K], how many of them int32[]) for one row."""
    recent = commit.recent_tokens(text, length=length, start=0, count=self.max_match)
    prefers_last = self.prefers == 'last'
    index = jnp.arange(1, self.num_draft_tokens + 1, dtype=jnp.int32)
    # Something must follow the match: the text's own end is no place to copy from.
    own = lookup.longest_match(text, length - 1, recent, prefers_last=prefers_last)
    period = jnp.maximum(length - 1 - own.index, 1)
    copied = text[own.index + 1 + (index - 1) % period]
    matched, count = own.length, jnp.int32(self.num_draft_tokens)
    if source.shape[0]:
      other = lookup.longest_match(source, source_length - 1, recent, prefers_last=prefers_last)
      is_longer = other.length > own.length
      there = source[jnp.minimum(other.index + index, source.shape[0] - 1)]
      copied, matched = jnp.where(is_longer, there, copied), jnp.maximum(matched, other.length)
      count = jnp.where(is_longer, jnp.minimum(count, source_length - 1 - other.index), count)
    return copied, jnp.where(matched >= self.min_match, count, 0)
