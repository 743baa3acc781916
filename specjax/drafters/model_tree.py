"""A language model that drafts a tree: level by level, each node's children drawn from the model's law behind it."""

from typing import Any, ClassVar, Literal

from flax import struct
import jax
import jax.numpy as jnp

from specjax.core import protocols
from specjax.core import types
from specjax.ops import categorical
from specjax.ops import trees
from specjax.ops import warping


@struct.dataclass(kw_only=True)
class ModelTreeDrafter:
  """Drafts a tree of a static shape in as many passes of a smaller language model as the tree has levels.

  Pass i feeds the nodes of all levels up to i as one block behind the text and rewinds it: only what was committed stays in
  the drafter's cache. The first pass of a round feeds all that the last round committed, up to D + 1 tokens in one pass.

  Attributes:
    model: the `LanguageModel`, static.
    shape: the `TreeShape`, static.
    children: static; how the children of a node are chosen. 'replacement': independent draws from its law. 'distinct':
      draws without replacement; behind all that the law holds (one token at temperature 0) the most probable of the others,
      for certain. 'top': the most probable tokens in turn, a deterministic tree.
  """

  model: protocols.LanguageModel = struct.field(pytree_node=False)
  shape: trees.TreeShape = struct.field(pytree_node=False)
  children: Literal['replacement', 'distinct', 'top'] = struct.field(pytree_node=False, default='distinct')
  params_from: ClassVar[str] = 'drafter'

  @property
  def num_draft_tokens(self):
    """N, the nodes of the tree."""
    return self.shape.num_nodes

  @property
  def max_depth(self):
    """D, the levels of the tree."""
    return self.shape.max_depth

  def init(self, params, prompt, prefill, capacity) -> Any:
    del prefill
    return self.model.prefill(params, prompt, capacity)[1]

  def propose(self, params, state, uniforms, *, tokens, length, sampling, live, with_bonus):
    behind = self.model.length(state)
    count = jnp.where(live, length - behind, 0)
    index = behind[:, None] + jnp.arange(self.max_depth + 1, dtype=jnp.int32)[None, :]
    committed = jnp.take_along_axis(tokens, jnp.minimum(index, tokens.shape[1] - 1), axis=1)
    output, cache = self.model.extend(params, state, committed, count=count, logits_at=jnp.maximum(count - 1, 0))
    batch, num_nodes = length.shape[0], self.shape.num_nodes
    vocab_size = output.logits.shape[-1]
    dtype = warping.probability_dtype(output.logits.dtype)
    drafted = jnp.zeros((batch, num_nodes), jnp.int32)
    laws = jnp.zeros((batch, num_nodes, vocab_size), dtype)
    logits = jnp.zeros((batch, num_nodes + 1, vocab_size), output.logits.dtype).at[:, 0].set(output.logits[:, 0])
    for depth in range(1, self.max_depth + 1):
      drafted, laws = self._draw_level(depth, drafted, laws, logits, uniforms, sampling, live)
      if depth < self.max_depth or with_bonus:
        start, stop = self.shape.level(depth)
        behind_level, cache = self._logits_of(params, cache, drafted[:, :stop - 1], live)
        logits = logits.at[:, start:stop].set(behind_level[:, start - 1:])
    broadcast = lambda values: jnp.tile(jnp.array(values, jnp.int32)[None, :], (batch, 1))
    return types.TreeProposal(
        tokens=drafted, parents=broadcast(self.shape.parents), depth=broadcast(self.shape.depth),
        count=jnp.where(live, num_nodes + 1, 1), log_probs=laws, logits=logits, max_depth=self.max_depth,
        has_bonus=with_bonus), cache

  def commit(self, params, state, *, tokens, length, verdict, target_output):
    del params, tokens, verdict, target_output
    return self.model.rewind(state, jnp.minimum(self.model.length(state), length - 1))

  def num_calls(self, proposal):
    """int32[], drafter passes of this round."""
    return jnp.int32(self.max_depth + int(proposal.has_bonus))

  def _logits_of(self, params, cache, drafted, live):
    """([B, n, V] behind the first n nodes, the cache without them): they are fed as one block and forgotten."""
    num_fed, committed = drafted.shape[1], self.model.length(cache)
    # The pending token is in the cache: the nodes of the first level are roots here.
    parents = jnp.array(self.shape.parents[:num_fed], jnp.int32) - 1
    depth = jnp.array(self.shape.depth[:num_fed], jnp.int32) - 1
    layout = types.Tree(*(jnp.tile(values[None, :], (drafted.shape[0], 1)) for values in (parents, depth)))
    output, cache = self.model.extend(
        params, cache, drafted, count=jnp.where(live, num_fed, 0), layout=layout)
    return output.logits, self.model.rewind(cache, committed)

  def _draw_level(self, depth, drafted, laws, logits, uniforms, sampling, live):
    """`drafted` and `laws` with the nodes at `depth`: siblings one after the other, parents side by side."""
    start, stop = self.shape.level(depth)
    for rank in range(1 + max(self.shape.ranks[start - 1:stop - 1])):
      nodes = [node for node in range(start, stop) if self.shape.ranks[node - 1] == rank]
      parents = [self.shape.parents[node - 1] for node in nodes]
      at, behind = jnp.array(nodes, jnp.int32) - 1, jnp.array(parents, jnp.int32)
      law = warping.sampling_log_probs(logits[:, behind], sampling, live=live)
      # At temperature 0 the law has no second best token, the logits have.
      scores = warping.adjust(logits[:, behind], sampling)
      elders = [
          [elder for elder in range(start, node) if self.shape.parents[elder - 1] == self.shape.parents[node - 1]]
          for node in nodes]
      taken = drafted[:, jnp.array(elders, jnp.int32).reshape(len(nodes), rank) - 1]
      drawn, law = self._draw(law, scores, taken, uniforms.draft[:, at], rank)
      drafted, laws = drafted.at[:, at].set(drawn), laws.at[:, at].set(law)
    return drafted, laws

  def _draw(self, law, scores, taken, uniforms, rank):
    """(tokens int32[B, n], the laws they were drawn from [B, n, V]) from `law`, with elder siblings `taken` [B, n, rank]."""
    vocab = jnp.arange(law.shape[-1], dtype=jnp.int32)[None, None, :]
    is_taken = jnp.any(vocab[:, :, None, :] == taken[:, :, :, None], axis=2)
    if self.children == 'top':
      return _certain(law, jnp.where(is_taken, -jnp.inf, scores))
    if self.children == 'distinct' and rank:
      law = jnp.where(is_taken & ~jnp.isnan(law), -jnp.inf, law)
      total = jnp.log(jnp.sum(jnp.exp(law), axis=-1, keepdims=True))
      certain = _certain(law, jnp.where(is_taken, -jnp.inf, scores))[1]
      law = jnp.where(total > -jnp.inf, law - jnp.where(total > -jnp.inf, total, 0), certain)
    drawn = jax.vmap(jax.vmap(categorical.draw))(uniforms.astype(law.dtype), law)
    return drawn, law


def _certain(law, scores):
  """(the tokens of the largest `scores` [B, n, V], their one-hot laws): no mass where none is left, NaN where `law` is."""
  token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
  vocab = jnp.arange(law.shape[-1], dtype=jnp.int32)[None, None, :]
  has_mass = jnp.max(scores, axis=-1, keepdims=True) > -jnp.inf
  one_hot = jnp.where((vocab == token[:, :, None]) & has_mass, 0.0, -jnp.inf).astype(law.dtype)
  return token, jnp.where(jnp.isnan(law[:, :, :1]), jnp.nan, one_hot)
