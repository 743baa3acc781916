"""Draft heads as drafter: several tokens from one hidden state of the target, without a pass of their own."""

from typing import Any, ClassVar, Literal, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from specjax.core import protocols
from specjax.core import types
from specjax.ops import categorical
from specjax.ops import trees
from specjax.ops import warping


class HeadState(NamedTuple):
  """`hidden` float[B, D], the state from which the target predicted the pending token; `is_known` bool[B]."""

  hidden: jax.Array
  is_known: jax.Array


@struct.dataclass(kw_only=True)
class HeadDrafter:
  """Drafts with heads on the target's last hidden state: a chain (blockwise parallel decoding) or a tree (Medusa).

  The state that predicted the pending token comes with the verification of the round before, so drafting costs the heads
  alone. Head j gives the law of the token j places behind the pending one, whatever is drafted in between. Before the first
  pass of the target there is no state, and nothing is drafted: the first round of a one-token prompt.

  Attributes:
    heads: the `DraftHeads` network, static; params['heads'] are its parameters.
    model: the target, static; its `unembed` reads params['target'].
    num_draft_tokens: K <= number of heads for a chain; N nodes for a tree, static.
    shape: the `TreeShape` of at most as many levels as heads, whose children are the most probable tokens in turn; None for
      a chain.
    draws: static; 'sampled' draws each token of a chain from its head's law, 'greedy' takes the most probable with a one-hot
      law. Trees are greedy.
    max_draft_tokens: int32[], traced cap on a chain's length; None is K.
  """

  heads: Any = struct.field(pytree_node=False)
  model: protocols.LanguageModel = struct.field(pytree_node=False)
  num_draft_tokens: int = struct.field(pytree_node=False)
  shape: trees.TreeShape | None = struct.field(pytree_node=False, default=None)
  draws: Literal['sampled', 'greedy'] = struct.field(pytree_node=False, default='sampled')
  max_draft_tokens: Any = None
  params_from: ClassVar[str] = 'both'

  @property
  def max_depth(self):
    """The most tokens that can be accepted."""
    return self.num_draft_tokens if self.shape is None else self.shape.max_depth

  def init(self, params, prompt, prefill, capacity) -> Any:
    del params, capacity
    batch = prompt.tokens.shape[0]
    if prefill.hidden is None:
      width, dtype = self.heads.config.embed_dim, self.heads.dtype
      return HeadState(jnp.zeros((batch, width), dtype), jnp.zeros((batch,), bool))
    # The token in front of the pending one is the last that prefill fed.
    index = jnp.maximum(prompt.length - 2, 0)
    hidden = jnp.take_along_axis(prefill.hidden, index[:, None, None], axis=1)[:, 0]
    return HeadState(hidden.astype(self.heads.dtype), prompt.length >= 2)

  def propose(self, params, state, uniforms, *, tokens, length, sampling, live, with_bonus):
    del tokens, length, with_bonus  # Heads do not see the drafts, so there is no law behind the last one.
    logits = self.model.unembed(params['target'], self.heads(params['heads'], state.hidden))
    drafts = live & state.is_known
    if self.shape is not None:
      return self._tree(logits, drafts, sampling), state
    laws = warping.sampling_log_probs(logits[:, :self.num_draft_tokens], sampling, live=live)
    if self.draws == 'sampled':
      drawn = jax.vmap(jax.vmap(categorical.draw))(uniforms.draft[:, :self.num_draft_tokens].astype(laws.dtype), laws)
    else:
      drawn, laws = _one_hot(jnp.argmax(laws, axis=-1).astype(jnp.int32), laws, jnp.ones(laws.shape[:2], bool))
    cap = self.num_draft_tokens if self.max_draft_tokens is None else jnp.asarray(self.max_draft_tokens, jnp.int32)
    return types.Proposal(
        tokens=drawn, length=jnp.where(drafts, cap, 0).astype(jnp.int32), log_probs=laws), state

  def commit(self, params, state, *, tokens, length, verdict, target_output):
    del params, tokens, length
    last = verdict.num_accepted
    if verdict.path is not None:
      last = jnp.take_along_axis(verdict.path, last[:, None], axis=1)[:, 0]
    hidden = jnp.take_along_axis(target_output.hidden, jnp.maximum(last, 0)[:, None, None], axis=1)[:, 0]
    return HeadState(hidden.astype(state.hidden.dtype), jnp.ones_like(state.is_known))

  def num_calls(self, proposal):
    """int32[], passes of a model of its own in this round: none."""
    del proposal
    return jnp.int32(0)

  def _tree(self, logits, drafts, sampling):
    """The `TreeProposal` whose node at depth d and rank r is the r-th most probable token of head d."""
    depth, ranks = (jnp.array(values, jnp.int32) for values in (self.shape.depth, self.shape.ranks))
    laws = warping.sampling_log_probs(logits[:, :self.shape.max_depth], sampling, live=drafts)
    values, ranked = jax.lax.top_k(laws, 1 + max(self.shape.ranks))
    nodes, log_probs = _one_hot(
        ranked[:, depth - 1, ranks].astype(jnp.int32), laws[:, depth - 1], values[:, depth - 1, ranks] > -jnp.inf)
    broadcast = lambda values: jnp.broadcast_to(values[None, :], nodes.shape)
    return types.TreeProposal(
        tokens=nodes, parents=broadcast(jnp.array(self.shape.parents, jnp.int32)), depth=broadcast(depth),
        count=jnp.where(drafts, self.shape.num_nodes + 1, 1), log_probs=log_probs, max_depth=self.max_depth)


def _one_hot(tokens, laws, has_mass):
  """`tokens` int32[B, n] and their one-hot laws [B, n, V]: NaN where `laws` are, no mass where there is none to draft."""
  vocab = jnp.arange(laws.shape[-1], dtype=jnp.int32)[None, None, :]
  one_hot = jnp.where((vocab == tokens[:, :, None]) & has_mass[:, :, None], 0.0, -jnp.inf).astype(laws.dtype)
  return tokens, jnp.where(jnp.isnan(laws[:, :, :1]), jnp.nan, one_hot)
