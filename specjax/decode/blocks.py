"""The two layouts of a round's block, chain and tree, behind one interface: what is fed, verified, kept and counted.

    chain    pending, draft 1, ..., draft K           a prefix is accepted
    tree     pending, node 1, ..., node N             a path from the pending token is accepted

`of(proposal)` gives the block of a proposal. Positions along the block are those of the goal, [B, T, ...]; positions along
the *text* are those of what is emitted, [B, D + 1, ...], D the most tokens that can be accepted.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core import types


def of(proposal):
  """The block of a `Proposal` or a `TreeProposal`."""
  return TreeBlock(proposal) if isinstance(proposal, types.TreeProposal) else ChainBlock(proposal)


@dataclasses.dataclass(frozen=True)
class ChainBlock:
  """The pending token and the drafts behind it, one after the other."""

  proposal: Any
  layout = types.CHAIN

  @property
  def max_accepted(self):
    """D, static."""
    return self.proposal.tokens.shape[1]

  @property
  def num_fed(self):
    """int32[B], tokens of the block that the target is fed."""
    return self.proposal.length + 1

  @property
  def length(self):
    """int32[B], how many tokens of the row's block could be accepted."""
    return self.proposal.length

  @property
  def offsets(self):
    """int32[1 or B, T], how far each token of the block is behind the pending one."""
    return jnp.arange(self.max_accepted + 1, dtype=jnp.int32)[None, :]

  @property
  def is_end(self):
    """bool[B, T], behind which tokens of the block nothing is drafted: what follows there is the bonus token."""
    return self.offsets == self.proposal.length[:, None]

  def verify(self, verifier, uniforms, goal_log_probs):
    """(`Verdict`, `VerdictTrace`) of every row."""
    proposal = self.proposal
    return jax.vmap(lambda accept, final, tokens, length, drafter, goal: verifier(
        accept, final, tokens=tokens, length=length, drafter_log_probs=drafter, goal_log_probs=goal))(
            uniforms.accept, uniforms.final, proposal.tokens, proposal.length, proposal.log_probs, goal_log_probs)

  def drafted(self, verdict):
    """int32[B, D], the draft tokens along the text; garbage behind the accepted ones."""
    del verdict
    return self.proposal.tokens

  def along_text(self, values, verdict):
    """`values` [B, T, ...] of the block, [B, D + 1, ...] along the text."""
    del verdict
    return values

  def drafter_broke(self, verdict):
    """bool[B, D + 1], the positions of the text whose draft was drawn from a law that is not finite."""
    del verdict
    proposal = self.proposal
    # A broken drafter law is all NaN, its token's entry too.
    at_token = jnp.take_along_axis(proposal.log_probs, proposal.tokens[:, :, None], axis=2)[:, :, 0]
    broke = jnp.isnan(at_token) & (self.offsets[:, :-1] < proposal.length[:, None])
    return jnp.pad(broke, ((0, 0), (0, 1)))

  def keep(self, model, cache, verdict, *, live, length, num_kept):
    """The cache of the model that was fed the block, covering `length` - 1 tokens of the live rows.

    `num_kept` int32[B] tokens of the round were kept, the last of which is pending now.
    """
    del verdict, num_kept
    return model.rewind(cache, jnp.where(live, length - 1, model.length(cache)))


@dataclasses.dataclass(frozen=True)
class TreeBlock:
  """The pending token as root, and the tree of drafts below it. Members as of `ChainBlock`."""

  proposal: Any

  @property
  def max_accepted(self):
    return self.proposal.max_depth

  @property
  def num_fed(self):
    return self.proposal.count

  @property
  def length(self):
    in_use = jnp.arange(1, self._num_nodes + 1, dtype=jnp.int32)[None, :] < self.proposal.count[:, None]
    return jnp.max(jnp.where(in_use, self.proposal.depth, 0), axis=1)

  @property
  def layout(self):
    root = lambda values, value: jnp.pad(values, ((0, 0), (1, 0)), constant_values=value)
    return types.Tree(root(self.proposal.parents, -1), root(self.proposal.depth, 0))

  @property
  def offsets(self):
    return self.layout.depth

  @property
  def is_end(self):
    return ~self._has_child

  @property
  def _num_nodes(self):
    return self.proposal.tokens.shape[1]

  @property
  def _has_child(self):
    node = jnp.arange(self._num_nodes + 1, dtype=jnp.int32)
    in_use = node[None, 1:] < self.proposal.count[:, None]
    parents = jnp.where(in_use, self.proposal.parents, -1)
    return jnp.any(parents[:, :, None] == node[None, None, :], axis=1)

  def verify(self, verifier, uniforms, goal_log_probs):
    proposal = self.proposal
    return jax.vmap(lambda accept, final, tokens, parents, count, drafter, goal: verifier(
        accept, final, tokens=tokens, parents=parents, count=count, max_depth=proposal.max_depth,
        drafter_log_probs=drafter, goal_log_probs=goal))(
            uniforms.accept, uniforms.final, proposal.tokens, proposal.parents, proposal.count, proposal.log_probs,
            goal_log_probs)

  def drafted(self, verdict):
    return jnp.take_along_axis(self.proposal.tokens, jnp.maximum(verdict.path[:, 1:] - 1, 0), axis=1)

  def along_text(self, values, verdict):
    index = jnp.maximum(verdict.path, 0).reshape(verdict.path.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)

  def drafter_broke(self, verdict):
    proposal = self.proposal
    at_token = jnp.take_along_axis(proposal.log_probs, proposal.tokens[:, :, None], axis=2)[:, :, 0]
    node = jnp.arange(1, self._num_nodes + 1, dtype=jnp.int32)[None, :]
    broke = jnp.isnan(at_token) & (node < proposal.count[:, None])
    # A node of the text with a broken child.
    return jnp.any(broke[:, None, :] & (proposal.parents[:, None, :] == verdict.path[:, :, None]), axis=2)

  def keep(self, model, cache, verdict, *, live, length, num_kept):
    # What was pending, and all kept tokens but the last.
    index = jnp.arange(verdict.path.shape[1], dtype=jnp.int32)[None, :]
    path = jnp.where(live[:, None] & (index < num_kept[:, None]), verdict.path, -1)
    return model.keep_path(cache, jnp.where(live, length - num_kept - 1, model.length(cache)), path)
