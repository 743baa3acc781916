"""An n-gram model as drafter: trained beforehand, or counted in the row's own text."""

from typing import Any, ClassVar, Literal

from flax import struct
import jax
import jax.numpy as jnp

from specjax.core import types
from specjax.ops import categorical
from specjax.ops import commit
from specjax.ops import lookup
from specjax.ops import ngrams
from specjax.ops import warping


@struct.dataclass(kw_only=True)
class NgramDrafter:
  """Drafts a chain from an n-gram model's law of the next token, at no model's cost.

  The trained model is `params['ngrams']`, a `specjax.ops.ngrams.NgramModel`. With `text_order` the model is learned on the
  stream: counts of the committed text, shorter n-grams being what longer ones are smoothed with, the last of them uniform:

      P_m(v | h) = (count of h v + a P_{m-1}(v | h')) / (count of h + a),      h the last m - 1 tokens, h' the last m - 2

  Drafts extend the history; they are counted once they are committed.

  Attributes:
    vocab_size: V, static.
    num_draft_tokens: K >= 1, static.
    draws: static; 'sampled' draws each token from the law, 'greedy' takes the most probable with a one-hot law.
    text_order: n of the model of the text, static; None for the trained one.
    concentration: a, float[].
    max_draft_tokens: int32[], traced cap on the proposal's length; None is K.
  """

  vocab_size: int = struct.field(pytree_node=False)
  num_draft_tokens: int = struct.field(pytree_node=False)
  draws: Literal['sampled', 'greedy'] = struct.field(pytree_node=False, default='sampled')
  text_order: int | None = struct.field(pytree_node=False, default=None)
  concentration: Any = 1.0
  max_draft_tokens: Any = None
  params_from: ClassVar[str] = 'both'

  def init(self, params, prompt, prefill, capacity) -> Any:
    del params, prompt, prefill, capacity
    return ()

  def propose(self, params, state, uniforms, *, tokens, length, sampling, live, with_bonus):
    order = params['ngrams'].order if self.text_order is None else self.text_order
    # The law behind the committed text and the drafts so far, of each row.
    history = jax.vmap(lambda row, end: commit.recent_tokens(row, length=end, start=0, count=order - 1))(tokens, length)
    drafted, laws, logits = [], [], []
    for index in range(self.num_draft_tokens + int(with_bonus)):
      own = self._log_probs(params, history, tokens, length).astype(uniforms.accept.dtype)[:, None]
      logits.append(own)
      if index == self.num_draft_tokens:
        break
      token, law = self._drawn(own, uniforms.draft[:, index], sampling, live)
      drafted.append(token)
      laws.append(law)
      history = jnp.concatenate([history, token], axis=1)[:, 1:]
    if not with_bonus:
      logits.append(jnp.zeros_like(logits[0]))
    cap = self.num_draft_tokens if self.max_draft_tokens is None else self.max_draft_tokens
    length = jnp.where(live, jnp.minimum(jnp.asarray(cap, jnp.int32), self.num_draft_tokens), 0)
    return types.Proposal(
        tokens=jnp.concatenate(drafted, axis=1), length=length, log_probs=jnp.concatenate(laws, axis=1),
        logits=jnp.concatenate(logits, axis=1) if self.draws == 'sampled' else None,
        has_bonus=with_bonus and self.draws == 'sampled'), state

  def commit(self, params, state, *, tokens, length, verdict, target_output):
    del params, tokens, length, verdict, target_output
    return state

  def num_calls(self, proposal):
    """int32[B], passes of a model: none."""
    return jnp.zeros_like(proposal.length)

  def _drawn(self, log_probs, uniforms, sampling, live):
    """(the next draft token int32[B, 1], the law [B, 1, V] it was drawn from)."""
    if self.draws == 'sampled':
      law = warping.sampling_log_probs(log_probs, sampling, live=live)
      return jax.vmap(categorical.draw)(uniforms.astype(law.dtype), law[:, 0])[:, None], law
    scores = warping.adjust(log_probs, sampling)
    token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    is_token = jnp.arange(self.vocab_size, dtype=jnp.int32)[None, None, :] == token[:, :, None]
    law = jnp.where(is_token, 0.0, -jnp.inf).astype(scores.dtype)
    return token, jnp.where(jnp.isfinite(jnp.max(scores, axis=-1, keepdims=True)), law, jnp.nan)

  def _log_probs(self, params, history, tokens, length):
    """float[B, V], the model's law behind `history` int32[B, n - 1]."""
    if self.text_order is None:
      model = params['ngrams']
      return jax.vmap(lambda recent: ngrams.law(model, ngrams.history(model, recent)))(history)
    return jax.vmap(self._text_law)(history, tokens, length)

  def _text_law(self, recent, text, length):
    """float[V] of one row: what followed the latest tokens in its text."""
    weight = jnp.asarray(self.concentration, jnp.result_type(float))
    # Something follows all places of the text but the last.
    matched = lookup.match_lengths(text, length - 1, recent)
    follows = jnp.arange(text.shape[0], dtype=jnp.int32) < length - 1
    following = jnp.where(follows, jnp.roll(text, -1), self.vocab_size)
    probs = jnp.full((self.vocab_size,), 1 / self.vocab_size, weight.dtype)
    for span in range(recent.shape[0] + 1):
      is_match = follows & (matched >= span)
      counts = jnp.zeros((self.vocab_size,), weight.dtype).at[following].add(
          is_match.astype(weight.dtype), mode='drop')
      probs = (counts + weight * probs) / (jnp.sum(is_match).astype(weight.dtype) + weight)
    return jnp.log(probs)
