"""Draft heads as drafter: several tokens from one hidden state of the target, without a pass of their own."""

from typing import Any, ClassVar, Literal, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from specjax.core import errors
from specjax.core import protocols
from specjax.core import types
from specjax.drafters import refinement as refinement_lib
from specjax.ops import categorical
from specjax.ops import lattice
from specjax.ops import trees
from specjax.ops import warping


class HeadState(NamedTuple):
  """`hidden` float[B, D], the state from which the target predicted the pending token; `is_known` bool[B]; the refinement's
  own state, or ()."""

  hidden: jax.Array
  is_known: jax.Array
  refinement: Any = ()


@struct.dataclass(kw_only=True)
class HeadDrafter:
  """Drafts with heads on the target's last hidden state: a chain (blockwise parallel decoding) or a tree (Medusa).

  The state that predicted the pending token comes with the verification of the round before, so drafting costs the heads
  alone. Head j gives the law of the token j places behind the pending one, whatever is drafted in between. Before the first
  pass of the target there is no state, and nothing is drafted: the first round of a one-token prompt.

  With a refinement another model chooses among the best tokens of the heads, in view of each other. What it chooses is
  certain, so its law is one-hot and verification lossless at any temperature.

  Attributes:
    heads: the `DraftHeads` network, static; params['heads'] are its parameters.
    model: the target, static; its `unembed` reads params['target'].
    num_draft_tokens: K <= number of heads for a chain; N nodes for a tree, static.
    shape: the `TreeShape` of at most as many levels as heads, whose children are the most probable tokens in turn; None for
      a chain and for the tree of a refinement's best paths.
    draws: static; 'sampled' draws each token of a chain from its head's law, 'greedy' takes the most probable with a one-hot
      law. Trees and refined drafts are greedy.
    max_draft_tokens: int32[], traced cap on how many tokens follow each other; None is no cap.
    refinement: a `LocalRescoring` or `LatticeRescoring` of `specjax.drafters.refinement`, or None.
    num_levels: K, heads in use where num_draft_tokens counts the nodes of a refinement's best paths; None otherwise, static.
  """

  heads: Any = struct.field(pytree_node=False)
  model: protocols.LanguageModel = struct.field(pytree_node=False)
  num_draft_tokens: int = struct.field(pytree_node=False)
  shape: trees.TreeShape | None = struct.field(pytree_node=False, default=None)
  draws: Literal['sampled', 'greedy'] = struct.field(pytree_node=False, default='sampled')
  max_draft_tokens: Any = None
  refinement: Any = None
  num_levels: int | None = struct.field(pytree_node=False, default=None)
  params_from: ClassVar[str] = 'both'

  def __post_init__(self):
    if self.refinement is not None and self.shape is None and self.draws == 'sampled':
      raise errors.ParamError(
          what='draws with a refinement', where='HeadDrafter', got=self.draws, expected="'greedy'",
          fix='a rescored token is not drawn from any law of its own')

  @property
  def max_depth(self):
    """The most tokens that can be accepted."""
    if self.shape is not None:
      return self.shape.max_depth
    return self.num_draft_tokens if self.num_levels is None else self.num_levels

  def init(self, params, prompt, prefill, capacity) -> Any:
    batch = prompt.tokens.shape[0]
    refined = () if self.refinement is None else self.refinement.init(params, prompt, capacity)
    if prefill.hidden is None:
      width, dtype = self.heads.config.embed_dim, self.heads.dtype
      return HeadState(jnp.zeros((batch, width), dtype), jnp.zeros((batch,), bool), refined)
    # The token in front of the pending one is the last that prefill fed.
    index = jnp.maximum(prompt.length - 2, 0)
    hidden = jnp.take_along_axis(prefill.hidden, index[:, None, None], axis=1)[:, 0]
    return HeadState(hidden.astype(self.heads.dtype), prompt.length >= 2, refined)

  def propose(self, params, state, uniforms, *, tokens, length, sampling, live, with_bonus):
    del with_bonus  # Heads do not see the drafts, so there is no law behind the last one.
    logits = self.model.unembed(params['target'], self.heads(params['heads'], state.hidden))[:, :self.max_depth]
    drafts = live & state.is_known
    if self.draws == 'sampled' and self.shape is None:
      laws = warping.sampling_log_probs(logits, sampling, live=live)
      drawn = jax.vmap(jax.vmap(categorical.draw))(uniforms.draft[:, :self.max_depth].astype(laws.dtype), laws)
      return self._chain(drawn, laws, drafts), state
    # What is certain is chosen by the heads' own scores: at temperature 0 a sampling law has no second best token.
    scores = warping.adjust(logits, sampling)
    refined, text = state.refinement, dict(tokens=tokens, length=length, live=live)
    is_broken = jnp.zeros(scores.shape[:2], bool)
    if self.shape is not None:
      proposal, refined = self._tree(params, refined, scores, drafts, text)
    elif self.refinement is None:
      proposal = self._certain_chain(jnp.argmax(scores, axis=-1).astype(jnp.int32), scores, is_broken, drafts)
    else:
      (paths, is_broken), refined = self.refinement.refine(params, refined, scores, **text)
      if self.num_levels is None:
        proposal = self._certain_chain(paths[:, 0], scores, is_broken, drafts)
      else:
        proposal = self._best_paths(paths, scores, is_broken, drafts)
    return proposal, state._replace(refinement=refined)

  def commit(self, params, state, *, tokens, length, verdict, target_output):
    del params, tokens, length
    last = verdict.num_accepted
    if verdict.path is not None:
      last = jnp.take_along_axis(verdict.path, last[:, None], axis=1)[:, 0]
    hidden = jnp.take_along_axis(target_output.hidden, jnp.maximum(last, 0)[:, None, None], axis=1)[:, 0]
    return HeadState(hidden.astype(state.hidden.dtype), jnp.ones_like(state.is_known), state.refinement)

  def num_calls(self, proposal):
    """int32[], passes of a model of its own in this round: those of the refinement."""
    del proposal
    return jnp.int32(0 if self.refinement is None else self.refinement.num_calls(self.max_depth))

  @property
  def _cap(self):
    return self.max_depth if self.max_draft_tokens is None else jnp.asarray(self.max_draft_tokens, jnp.int32)

  def _chain(self, drawn, laws, drafts):
    return types.Proposal(
        tokens=drawn, length=jnp.where(drafts, self._cap, 0).astype(jnp.int32), log_probs=laws)

  def _certain_chain(self, chosen, scores, is_broken, drafts):
    place = jnp.broadcast_to(jnp.arange(self.max_depth, dtype=jnp.int32)[None, :], chosen.shape)
    return self._chain(chosen, _one_hot(chosen, scores, place, is_broken), drafts)

  def _tree(self, params, refined, scores, drafts, text):
    """(`TreeProposal` of the static shape, state of the refinement); nodes of rank r are r-th best of their head."""
    depth, ranks = (jnp.array(values, jnp.int32) for values in (self.shape.depth, self.shape.ranks))
    if self.refinement is None:
      ranked = refinement_lib.best_candidates(scores, 1 + max(self.shape.ranks))[1]
      nodes = ranked[:, depth - 1, ranks]
      is_broken = jnp.zeros(nodes.shape, bool)
    else:
      nodes, is_broken, refined = self.refinement.refine_tree(params, refined, scores, self.shape, **text)
    broadcast = lambda values: jnp.broadcast_to(values[None, :], nodes.shape)
    in_use = 1 + jnp.sum(depth <= self._cap, dtype=jnp.int32)
    return types.TreeProposal(
        tokens=nodes, parents=broadcast(jnp.array(self.shape.parents, jnp.int32)), depth=broadcast(depth),
        count=jnp.where(drafts, in_use, 1), log_probs=_one_hot(nodes, scores, broadcast(depth - 1), is_broken),
        max_depth=self.max_depth), refined

  def _best_paths(self, paths, scores, is_broken, drafts):
    """The `TreeProposal` of the refinement's best paths, what they share merged."""
    tree = jax.vmap(lambda row: lattice.prefix_tree(row, num_nodes=self.num_draft_tokens))(paths)
    node = jnp.arange(1, self.num_draft_tokens + 1, dtype=jnp.int32)[None, :]
    in_use = (node < tree.count[:, None]) & (tree.depth <= self._cap)  # level by level: those within the cap come first
    return types.TreeProposal(
        tokens=tree.tokens, parents=tree.parents, depth=tree.depth,
        count=jnp.where(drafts, 1 + jnp.sum(in_use, axis=1, dtype=jnp.int32), 1),
        log_probs=_one_hot(tree.tokens, scores, tree.place, jnp.take_along_axis(is_broken, tree.place, axis=1)),
        max_depth=self.max_depth)


def _one_hot(tokens, scores, place, is_broken):
  """The one-hot laws [B, n, V] of `tokens` int32[B, n], candidates of the heads at `place` int32[B, n].

  NaN where `is_broken` bool[B, n] or the head's `scores` [B, K, V] are; no mass where the head has none.
  """
  rows = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]
  has_mass = scores[rows, place, tokens] > -jnp.inf
  is_broken = is_broken | jnp.take_along_axis(~jnp.isfinite(jnp.max(scores, axis=-1)), place, axis=1)
  vocab = jnp.arange(scores.shape[-1], dtype=jnp.int32)[None, None, :]
  one_hot = jnp.where((vocab == tokens[:, :, None]) & has_mass[:, :, None], 0.0, -jnp.inf).astype(scores.dtype)
  return jnp.where(is_broken[:, :, None], jnp.nan, one_hot)
