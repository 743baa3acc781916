"""An autoregressive head as drafter: it continues the target's hidden states by itself, one draft token after the other."""

from typing import Any, ClassVar, Literal, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
from jax import lax

from specjax.core import errors
from specjax.core import protocols
from specjax.core import types
from specjax.ops import categorical
from specjax.ops import warping


class AutoregressiveHeadState(NamedTuple):
  """`cache` of the head over pairs with hidden states of the target alone; `features` float[B, K + 1, D] of the pairs
  behind them that it has not read yet, as many as the committed text allows."""

  cache: Any
  features: jax.Array


@struct.dataclass(kw_only=True)
class AutoregressiveHeadDrafter:
  """Drafts with an autoregressive head on the target (`models.autoregressive_head`), in the manner of EAGLE.

  Text of n tokens gives n - 1 pairs of a hidden state of the target and the token behind it. What a round has verified
  is read at the next one's start in one pass K + 1 wide; each further draft token takes a pass over the head's own
  prediction, which is forgotten when the round ends.

      committed   a b c d            length = 4, pending d
      cache       a b                covers the pairs (f_a, b), (f_b, c)
      features    f_c                one pair waits: (f_c, d), whose prediction gives the law of the first draft token

  Before the first pass of the target there is no state: a one-token prompt drafts nothing in its first round.

  Attributes:
    head: the `AutoregressiveHead` network, static; params['autoregressive_head'] are its parameters.
    model: the target, static; its `embed` and `unembed` read params['target'].
    num_draft_tokens: K >= 1, static.
    draws: static; 'sampled' draws each token from the head's law, 'greedy' takes the most probable with a one-hot law.
    max_draft_tokens: int32[], traced cap on the proposal's length; None is K.
  """

  head: Any = struct.field(pytree_node=False)
  model: protocols.LanguageModel = struct.field(pytree_node=False)
  num_draft_tokens: int = struct.field(pytree_node=False)
  draws: Literal['sampled', 'greedy'] = struct.field(pytree_node=False, default='sampled')
  max_draft_tokens: Any = None
  params_from: ClassVar[str] = 'both'

  def init(self, params, prompt, prefill, capacity) -> Any:
    if prefill.hidden is None:
      raise errors.ParamError(
          what='prefill of the target', got='no hidden states', expected='a target whose prefill returns them',
          fix='return_hidden=True')
    # All pairs of the prompt but the last, which is read with the first draft.
    features = prefill.hidden[:, :-1].astype(self.head.dtype)
    embeddings = self.model.embed(params['target'], prompt.tokens[:, 1:])
    cache = self.head.prefill(
        params['autoregressive_head'], features, embeddings, length=jnp.maximum(prompt.length - 2, 0), capacity=capacity)
    last = jnp.take_along_axis(prefill.hidden, jnp.maximum(prompt.length - 2, 0)[:, None, None], axis=1)
    waiting = jnp.pad(last, ((0, 0), (0, self.num_draft_tokens), (0, 0)))
    return AutoregressiveHeadState(cache, waiting.astype(self.head.dtype))

  def propose(self, params, state, uniforms, *, tokens, length, sampling, live, with_bonus):
    del with_bonus  # Rules that would ask for it are refused: the first round may have no law at all.
    covered = self.head.length(state.cache)
    count = jnp.where(live, length - 1 - covered, 0)
    drafts = count > 0
    index = covered[:, None] + 1 + jnp.arange(self.num_draft_tokens + 1, dtype=jnp.int32)[None, :]
    behind = jnp.take_along_axis(tokens, jnp.minimum(index, tokens.shape[1] - 1), axis=1)
    predicted, cache = self._extend(params, state.cache, state.features, behind, count)
    feature = jnp.take_along_axis(predicted, jnp.maximum(count - 1, 0)[:, None, None], axis=1)
    draft = self._drawn(params, feature, uniforms, sampling, live, jnp.int32(0))
    put = lambda array, value, i: lax.dynamic_update_index_in_dim(array, value, i, axis=1)
    room = lambda value: jnp.zeros((value.shape[0], self.num_draft_tokens, *value.shape[1:]), value.dtype)
    chain = jax.tree.map(lambda value: put(room(value), value, 0), draft)

    def another(i, carry):
      chain, feature, cache = carry
      last = lax.dynamic_slice_in_dim(chain[0], i - 1, 1, axis=1)
      feature, cache = self._extend(params, cache, feature, last, drafts.astype(jnp.int32))
      draft = self._drawn(params, feature, uniforms, sampling, live, i)
      return jax.tree.map(lambda array, value: put(array, value, i), chain, draft), feature, cache

    passes = jnp.where(jnp.any(drafts), self._cap, 0)
    (drawn, laws), _, cache = lax.fori_loop(jnp.int32(1), passes, another, (chain, feature, cache))
    proposal = types.Proposal(tokens=drawn, length=jnp.where(drafts, self._cap, 0).astype(jnp.int32), log_probs=laws)
    return proposal, state._replace(cache=self.head.rewind(cache, covered + count))

  def commit(self, params, state, *, tokens, length, verdict, target_output):
    del params, tokens, length, verdict  # Behind the pairs that were read lie those of this pass, up to `length`.
    return state._replace(features=target_output.hidden.astype(state.features.dtype))

  def num_calls(self, proposal):
    """int32[B], passes of the head in this round: one per draft token, and one to read where none is drafted."""
    return jnp.maximum(proposal.length, 1)

  @property
  def _cap(self):
    cap = self.num_draft_tokens if self.max_draft_tokens is None else self.max_draft_tokens
    return jnp.clip(jnp.asarray(cap, jnp.int32), 0, self.num_draft_tokens)

  def _extend(self, params, cache, features, tokens, count):
    """Predicted features of pairs of `features` [B, T, D] and `tokens` int32[B, T], and the cache with them."""
    embeddings = self.model.embed(params['target'], tokens)
    return self.head.extend(params['autoregressive_head'], cache, features, embeddings, count=count)

  def _drawn(self, params, feature, uniforms, sampling, live, index):
    """(tokens int32[B], laws float[B, V]): draft token number `index` and the law it was drawn from."""
    logits = self.model.unembed(params['target'], feature)[:, 0]
    laws = warping.sampling_log_probs(logits, sampling, live=live)
    if self.draws == 'sampled':
      pair = lax.dynamic_index_in_dim(uniforms.draft, index, axis=1, keepdims=False)
      return jax.vmap(categorical.draw)(pair.astype(laws.dtype), laws), laws
    best = jnp.argmax(laws, axis=-1).astype(jnp.int32)
    is_best = jnp.arange(laws.shape[-1], dtype=jnp.int32)[None, :] == best[:, None]
    one_hot = jnp.where(is_best, 0.0, -jnp.inf).astype(laws.dtype)
    return best, jnp.where(jnp.isnan(laws[:, :1]), jnp.nan, one_hot)  # A law that is none stays none.
