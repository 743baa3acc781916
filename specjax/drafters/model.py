"""A language model as drafter: up to K tokens drawn one by one from its own law."""

from typing import Any, Literal, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
from jax import lax

from specjax.core import protocols
from specjax.core import types
from specjax.drafters import stopping as stopping_policies
from specjax.ops import categorical
from specjax.ops import warping


@struct.dataclass(kw_only=True)
class ModelDrafter:
  """Draws up to `num_draft_tokens` tokens from a smaller language model, in as many passes.

  After full acceptance the last draft token has not been fed: the first extend of the next round is two wide.

      committed   a b c d e          length = 5, pending e
      cache       a b c d            first extend feeds e (count 1)
      cache       a b c              after full acceptance: feeds d, e (count 2), law read behind e

  A row that a policy stops has fed all of its draft tokens (the law behind them is what the policy read).

  Attributes:
    model: the `LanguageModel`, static.
    num_draft_tokens: K >= 1, static.
    max_draft_tokens: int32[], traced cap on the proposal's length; 0 runs the same executable without speculation, the
      baseline that is bitwise equal to greedy speculative decoding. None is K.
    stopping: a policy of `specjax.drafters.stopping`, or None. Passes end when every row has stopped.
    params_from: static; 'target' where the model reads the target's parameters, as one of its first layers does. An
      encoder-decoder then reads the target's encoding too, which is not computed again.
    with_features: static; whether proposals carry the model's last hidden states, for rules that read them.
  """

  model: protocols.LanguageModel = struct.field(pytree_node=False)
  num_draft_tokens: int = struct.field(pytree_node=False)
  max_draft_tokens: Any = None
  stopping: Any = None
  params_from: Literal['drafter', 'target'] = struct.field(pytree_node=False, default='drafter')
  with_features: bool = struct.field(pytree_node=False, default=False)

  def init(self, params, prompt, prefill, capacity) -> Any:
    shares_encoding = self.params_from == 'target' and prefill.encoder_hidden is not None
    shared = {'encoder_hidden': prefill.encoder_hidden} if shares_encoding else {}
    return self.model.prefill(params, prompt, capacity, **shared)[1]

  def propose(self, params, state, uniforms, *, tokens, length, sampling, live, with_bonus):
    cache = state
    behind = self.model.length(cache)
    count = jnp.where(live, length - behind, 0)
    index = behind[:, None] + jnp.arange(2, dtype=jnp.int32)[None, :]
    first = jnp.take_along_axis(tokens, jnp.minimum(index, tokens.shape[1] - 1), axis=1)
    # Only the law behind the last token is read: a second row of logits would double the cost of a large vocabulary.
    output, cache = self.model.extend(params, cache, first, count=count, logits_at=jnp.maximum(count - 1, 0))
    draft = _Draft.empty(output.logits[:, 0], self._features(output), self.num_draft_tokens)
    progress = self._start(output, live)
    progress = self._decide(0, progress, output, uniforms, sampling)
    draft = draft.extended(0, output.logits[:, 0], self._features(output), uniforms, sampling, live)

    def unfinished(carry):
      index, _, progress, _ = carry
      return (index < self.num_draft_tokens) & jnp.any(progress.is_drafting & (index < self._cap))

    def another(carry):
      index, draft, progress, cache = carry
      last = lax.dynamic_slice_in_dim(draft.tokens, index - 1, 1, axis=1)
      feeds = progress.is_drafting & (index < self._cap)
      output, cache = self.model.extend(params, cache, last, count=feeds.astype(jnp.int32))
      progress = self._decide(index, progress.after(draft, index - 1), output, uniforms, sampling)
      draft = draft.extended(index, output.logits[:, 0], self._features(output), uniforms, sampling, live)
      return index + 1, draft, progress, cache

    _, draft, progress, cache = lax.while_loop(unfinished, another, (jnp.int32(1), draft, progress, cache))
    if with_bonus:
      draft, cache = self._bonus_row(params, draft, progress, cache)
    return types.Proposal(
        tokens=draft.tokens, length=progress.length, log_probs=draft.log_probs, logits=draft.logits,
        features=draft.features, has_bonus=with_bonus), cache

  def commit(self, params, state, *, tokens, length, verdict, target_output):
    del params, tokens, verdict, target_output
    return self.model.rewind(state, jnp.minimum(self.model.length(state), length - 1))

  def num_calls(self, proposal):
    """int32[B], drafter passes of this round: a row at its cap has not fed its last token unless the bonus row is asked for."""
    length = proposal.length
    at_cap = length + int(proposal.has_bonus)
    return jnp.maximum(jnp.where(length < self._cap, length + 1, at_cap), 1)

  @property
  def _cap(self):
    cap = self.num_draft_tokens if self.max_draft_tokens is None else self.max_draft_tokens
    return jnp.clip(jnp.asarray(cap, jnp.int32), 0, self.num_draft_tokens)

  def _features(self, output):
    """The hidden states float[B, D] behind the logits of `output`, or None where nobody reads them."""
    return output.hidden[:, 0] if self.with_features else None

  def _start(self, output, live):
    policy = previous = None
    if self.stopping is not None:
      policy = jax.tree.map(lambda x: jnp.broadcast_to(x, live.shape + jnp.shape(x)), self.stopping.init())
      dtype = warping.probability_dtype(output.logits.dtype)
      policy = jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, policy)
      previous = _Previous(
          jnp.zeros((live.shape[0], output.logits.shape[-1]), dtype), jnp.zeros(live.shape, dtype))
    return _Progress(is_drafting=live, length=jnp.zeros(live.shape, jnp.int32), policy=policy, previous=previous)

  def _decide(self, index, progress, output, uniforms, sampling):
    """`progress` with the decision, taken on its law alone, whether token `index` is drafted."""
    is_drafting = progress.is_drafting & (index < self._cap)
    policy, previous = progress.policy, progress.previous
    if self.stopping is not None:
      plain = warping.plain_log_probs(warping.adjust(output.logits, sampling))[:, 0]
      uniform = lax.dynamic_index_in_dim(uniforms.policy, index, axis=1, keepdims=False)
      inputs = stopping_policies.StoppingInputs(
          plain_log_probs=plain, previous_log_prob=previous.log_prob,
          index=jnp.full(is_drafting.shape, index, jnp.int32), uniform=uniform,
          features=None if output.hidden is None else output.hidden[:, 0])
      stops, policy = jax.vmap(self.stopping)(policy, inputs)
      is_drafting &= ~stops
      previous = previous._replace(plain_log_probs=plain)
    return _Progress(
        is_drafting=is_drafting, length=progress.length + is_drafting.astype(jnp.int32), policy=policy, previous=previous)

  def _bonus_row(self, params, draft, progress, cache):
    """The law behind the last draft token; rows that a policy stopped have read it already."""
    length = progress.length
    needed = (length > 0) & (length == self._cap)
    last = jnp.take_along_axis(draft.tokens, jnp.maximum(length - 1, 0)[:, None], axis=1)
    output, cache = self.model.extend(params, cache, last, count=needed.astype(jnp.int32))
    index = jnp.where(needed, length, draft.logits.shape[1])
    return draft.with_bonus(output.logits[:, 0], self._features(output), index), cache


class _Previous(NamedTuple):
  """What a policy is told about the last drawn token: its law float[B, V] and log-probability float[B], at temperature 1."""

  plain_log_probs: jax.Array
  log_prob: jax.Array


@struct.dataclass(kw_only=True)
class _Progress:
  """Which rows still draft bool[B], how many tokens each has int32[B], and what the policy carries."""

  is_drafting: jax.Array
  length: jax.Array
  policy: Any
  previous: Any

  def after(self, draft, index):
    """With token `index`, which is drawn now, made known to the policy."""
    if self.previous is None:
      return self
    token = lax.dynamic_slice_in_dim(draft.tokens, index, 1, axis=1)
    log_prob = jnp.take_along_axis(self.previous.plain_log_probs, token, axis=1)[:, 0]
    return self.replace(previous=self.previous._replace(log_prob=log_prob))


@struct.dataclass(kw_only=True)
class _Draft:
  """Tokens int32[B, K] drawn so far, the laws [B, K, V] they were drawn from, raw logits [B, K + 1, V], and features
  [B, K + 1, D] or None."""

  tokens: jax.Array
  log_probs: jax.Array
  logits: jax.Array
  features: jax.Array | None

  @classmethod
  def empty(cls, logits, features, num_draft_tokens):
    batch, vocab_size = logits.shape
    dtype = warping.probability_dtype(logits.dtype)
    rows = lambda like: jnp.zeros((batch, num_draft_tokens + 1, like.shape[-1]), like.dtype)
    return cls(
        tokens=jnp.zeros((batch, num_draft_tokens), jnp.int32),
        log_probs=jnp.zeros((batch, num_draft_tokens, vocab_size), dtype),
        logits=rows(logits), features=None if features is None else rows(features))

  def extended(self, i, logits, features, uniforms, sampling, live):
    """With token i drawn from exactly the law that is stored beside it."""
    log_probs = warping.sampling_log_probs(logits, sampling, live=live)
    pair = lax.dynamic_index_in_dim(uniforms.draft, i, axis=1, keepdims=False)
    drawn = jax.vmap(categorical.draw)(pair.astype(log_probs.dtype), log_probs)
    put = lambda array, value: lax.dynamic_update_index_in_dim(array, value, i, axis=1)
    return _Draft(
        tokens=put(self.tokens, drawn), log_probs=put(self.log_probs, log_probs), logits=put(self.logits, logits),
        features=None if features is None else put(self.features, features))

  def with_bonus(self, logits, features, index):
    """With `logits` [B, V] and `features` as row `index` int32[B] of each row; past the end they are dropped."""
    rows = jnp.arange(index.shape[0], dtype=jnp.int32)
    put = lambda array, value: array.at[rows, index].set(value, mode='drop')
    return self.replace(
        logits=put(self.logits, logits), features=None if features is None else put(self.features, features))
