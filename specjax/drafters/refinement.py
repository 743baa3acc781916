"""Refinement of the drafts of parallel heads: they did not see each other, so a model that does chooses among their best.

The published method counts the target's own next token as the first head's and never rescores it. In this loop that token is
the pending one, so every head of `HeadDrafter` is one that may be rescored.

Source: Kim et al. 2024, "Exploring and Improving Drafts in Blockwise Parallel Decoding". The weight is the additive one:
w z' + (1 - w) z and z + mu z' choose alike for mu = w / (1 - w), and the normaliser of z does not matter.
"""

from typing import Any, ClassVar, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
from jax import lax

from specjax.core import checks
from specjax.core import errors
from specjax.core import protocols
from specjax.core import types
from specjax.ops import commit
from specjax.ops import lattice
from specjax.ops import ngrams
from specjax.ops import trees

MAX_STATES = 1 << 16


class Refined(NamedTuple):
  """`paths` int32[B, p, K], the best first; `is_broken` bool[B, K], places where a score was read that is no number."""

  paths: jax.Array
  is_broken: jax.Array


@struct.dataclass(kw_only=True)
class LocalRescoring:
  """A small language model rescores the best tokens of each head in turn, along a chain or down a tree.

      y_j = argmax over the k best v of head j of  z_j(v) + weight log softmax s(v | text, y_1 .. y_{j-1})

  The normaliser of s is the same for all v and is left out. s reads the text with its pending token and the drafts as they
  were rescored. Its cache keeps committed tokens: the first pass of a round feeds what the last one committed, at most K + 1
  tokens, and K - 1 passes one draft each, which are forgotten again.

  Attributes:
    model: the rescorer, a `LanguageModel` of the target's vocabulary, static; `params['rescorer']` are its parameters. Behind
      an encoder-decoder a decoder-only model reads the decoder's text.
    top_k: k in 1..V, static.
    weight: float[], nats for nats; 0 is no refinement, exactly.
    reads_encoder: static; whether the rescorer is an encoder-decoder that reads the target's input too.
  """

  model: protocols.LanguageModel = struct.field(pytree_node=False)
  top_k: int = struct.field(pytree_node=False)
  weight: Any
  reads_encoder: bool = struct.field(pytree_node=False, default=False)
  num_best: ClassVar[int] = 1
  knobs: ClassVar[tuple[str, ...]] = ('weight',)

  def __post_init__(self):
    _check_static(self, ('top_k',))

  def check(self, params, *, vocab_size, num_heads):
    """Errors for parameters that are missing and sizes that do not fit."""
    del num_heads
    _check_top_k(self, vocab_size)
    checks.real('weight', self.weight, low=0, where='LocalRescoring')
    if 'rescorer' not in params:
      raise errors.ParamError(
          what='params of the pair', where='LocalRescoring', got=sorted(params), expected="the key 'rescorer'")
    if self.model.vocab_size != vocab_size:
      raise errors.VocabError(
          what="the rescorer's vocabulary", got=self.model.vocab_size, expected=f"the target's {vocab_size}",
          fix='rescoring needs one vocabulary: choose a rescorer of the same tokenizer')

  def num_nodes(self, num_heads):
    """K, the nodes of a refined chain."""
    return num_heads

  def init(self, params, prompt, capacity):
    """The rescorer's cache behind the prompt."""
    if not self.reads_encoder:
      prompt = types.Prompt(prompt.tokens, prompt.length)
    return self.model.prefill(params['rescorer'], prompt, capacity)[1]

  def refine(self, params, state, logits, *, tokens, length, live):
    """(`Refined`, the cache of the committed text) from `logits` [B, K, V] of the heads, adjusted."""
    num_heads = logits.shape[1]
    values, candidates = best_candidates(logits, self.top_k)
    output, cache = self._catch_up(params, state, tokens, length, live, width=num_heads + 1)
    drafts, broken = [], []
    for head in range(num_heads):
      if head:
        output, cache = self.model.extend(params['rescorer'], cache, drafts[-1], count=live.astype(jnp.int32))
      scores = self._scores(output.logits[:, 0], values[:, head], candidates[:, head])
      best = jnp.argmax(scores, axis=1)[:, None]
      drafts.append(jnp.take_along_axis(candidates[:, head], best, axis=1))
      broken.append(jnp.any(jnp.isnan(scores), axis=1, keepdims=True))
    cache = self.model.rewind(cache, jnp.where(live, length, self.model.length(cache)))
    return Refined(jnp.concatenate(drafts, axis=1)[:, None, :], jnp.concatenate(broken, axis=1)), cache

  def refine_tree(self, params, state, logits, shape, *, tokens, length, live):
    """(nodes int32[B, N], is_broken bool[B, N], the cache) of a tree; below each node its head's best tokens, rescored there.

    `shape` is the `TreeShape`; other arguments as of `refine`. Pass d feeds the nodes of all levels up to d as one block and
    forgets it.
    """
    values, candidates = best_candidates(logits, self.top_k)
    output, cache = self._catch_up(params, state, tokens, length, live, width=shape.max_depth + 1)
    drafted = jnp.zeros((length.shape[0], shape.num_nodes), jnp.int32)
    is_broken = jnp.zeros(drafted.shape, bool)
    behind = output.logits[:, 0][:, None]  # [B, nodes of the level above, V]
    above = 0  # the number of the first of them
    for depth in range(1, shape.max_depth + 1):
      start, stop = shape.level(depth)
      level = range(start, stop)
      scores = jax.vmap(self._scores, in_axes=(1, None, None), out_axes=1)(
          behind, values[:, depth - 1], candidates[:, depth - 1])
      ranked = lax.top_k(scores, 1 + max(shape.ranks[node - 1] for node in level))[1]
      parents = jnp.array([shape.parents[node - 1] - above for node in level], jnp.int32)
      chosen = ranked[:, parents, jnp.array([shape.ranks[node - 1] for node in level], jnp.int32)]
      drafted = drafted.at[:, start - 1:stop - 1].set(jnp.take_along_axis(candidates[:, depth - 1], chosen, axis=1))
      is_broken = is_broken.at[:, start - 1:stop - 1].set(jnp.any(jnp.isnan(scores), axis=2)[:, parents])
      if depth < shape.max_depth:
        logits_behind, cache = self._behind_nodes(params, cache, drafted[:, :stop - 1], shape, live)
        behind, above = logits_behind[:, start - 1:], start
    return drafted, is_broken, cache

  def num_calls(self, num_heads):
    """Passes of the rescorer in a round of `num_heads` heads."""
    return num_heads

  def _catch_up(self, params, cache, tokens, length, live, *, width):
    """(the rescorer's output behind the pending token, its cache) after feeding what was committed since, at most `width`."""
    behind = self.model.length(cache)
    count = jnp.where(live, length - behind, 0)
    index = behind[:, None] + jnp.arange(width, dtype=jnp.int32)[None, :]
    fed = jnp.take_along_axis(tokens, jnp.minimum(index, tokens.shape[1] - 1), axis=1)
    return self.model.extend(params['rescorer'], cache, fed, count=count, logits_at=jnp.maximum(count - 1, 0))

  def _behind_nodes(self, params, cache, drafted, shape, live):
    """([B, n, V] behind the first n nodes of a tree, the cache without them)."""
    num_fed, committed = drafted.shape[1], self.model.length(cache)
    # The pending token is in the cache: the nodes of the first level are roots here.
    values = (jnp.array(numbers[:num_fed], jnp.int32) - 1 for numbers in (shape.parents, shape.depth))
    layout = types.Tree(*(jnp.tile(value[None, :], (drafted.shape[0], 1)) for value in values))
    output, cache = self.model.extend(
        params['rescorer'], cache, drafted, count=jnp.where(live, num_fed, 0), layout=layout)
    return output.logits, self.model.rewind(cache, committed)

  def _scores(self, logits, values, candidates):
    """float[B, k] of one head's candidates, from the rescorer's `logits` [B, V]."""
    own = jnp.take_along_axis(logits, candidates, axis=1).astype(values.dtype)
    # Not a law: its normaliser is the same for all, and costs an exponential of every token of the vocabulary.
    own = jnp.where(own == -jnp.inf, -jnp.inf, own - jnp.max(own, axis=1, keepdims=True))
    return values + weighted(self.weight, own)


@struct.dataclass(kw_only=True)
class LatticeRescoring:
  """The best paths through the lattice of each head's best tokens, with an n-gram model between them; no model is run.

      score of a path = sum over j of  log softmax z_j(v_j) + weight log P(v_j | the n - 1 tokens before it)

  Found exactly, in a number of steps that K, k and n fix. The p best paths are verified together, as a prefix tree.

  Attributes:
    top_k: k in 1..V, static.
    order: n of the model `params['ngrams']` (`specjax.ops.ngrams.NgramModel`), static; 0 is none.
    num_best: p in 1..k^K, static; 1 is a chain.
    weight: float[], nats for nats; 0 scores the paths by their heads alone. None where there is no model.
  """

  top_k: int = struct.field(pytree_node=False)
  order: int = struct.field(pytree_node=False)
  num_best: int = struct.field(pytree_node=False, default=1)
  weight: Any = None
  knobs: ClassVar[tuple[str, ...]] = ('weight',)

  def __post_init__(self):
    _check_static(self, ('top_k', 'num_best'))
    checks.integer('order', self.order, low=0, high=ngrams.MAX_ORDER, where='LatticeRescoring', over=errors.ParamError)
    num_states = self.top_k**max(self.order - 1, 0)
    if num_states > MAX_STATES:
      raise errors.ParamError(
          what='states of the lattice, top_k^(order - 1)', where='LatticeRescoring', got=num_states,
          expected=f'at most {MAX_STATES}', fix='lower top_k or order')

  def check(self, params, *, vocab_size, num_heads):
    """Errors for parameters that are missing and sizes that do not fit."""
    self.num_nodes(num_heads)
    _check_top_k(self, vocab_size)
    if self.order == 0:
      return
    checks.real('weight', self.weight, low=0, where='LatticeRescoring')
    ngrams.check(params, order=self.order, vocab_size=vocab_size, where='LatticeRescoring')

  def num_nodes(self, num_heads):
    """N, the most nodes of the tree of the best paths; of one path K. Errors for more paths than the lattice has."""
    checks.integer('num_best', self.num_best, low=1, high=self.top_k**num_heads, where='LatticeRescoring',
                   over=errors.ParamError, fix=f'the lattice of {num_heads} heads has {self.top_k}^{num_heads} paths')
    num_nodes = lattice.num_tree_nodes(self.num_best, num_heads, self.top_k)
    if num_nodes > trees.MAX_NODES:
      raise errors.ParamError(
          what=f'tree of the {self.num_best} best paths', where='LatticeRescoring', got=f'{num_nodes} nodes',
          expected=f'at most {trees.MAX_NODES}', fix='lower num_best or num_draft_tokens')
    return num_nodes

  def init(self, params, prompt, capacity):
    """Nothing is carried along."""
    del params, prompt, capacity
    return ()

  def refine(self, params, state, logits, *, tokens, length, live):
    """As of `LocalRescoring`; the state is ()."""
    del live
    values, candidates = best_candidates(logits, self.top_k)
    # Without what all paths share, so that differences keep their bits.
    scores = jnp.where(values > -jnp.inf, values - values[:, :, :1], -jnp.inf)
    arcs = jnp.zeros((*candidates.shape[:2], 1, candidates.shape[2]), scores.dtype)
    if self.order:
      recent = jax.vmap(lambda row, end: commit.recent_tokens(row, length=end, start=0, count=self.order - 1))(tokens, length)
      log_probs = ngrams.lattice_log_probs(params['ngrams'], candidates, recent)
      arcs = weighted(self.weight, log_probs.astype(scores.dtype))
    found = jax.vmap(lambda *row: lattice.best_paths(*row, num_best=self.num_best))(scores, arcs)
    paths = jnp.take_along_axis(candidates[:, None], found.candidates[..., None], axis=3)[..., 0]
    is_broken = jnp.any(jnp.isnan(found.scores), axis=1, keepdims=True)
    return Refined(paths, jnp.broadcast_to(is_broken, logits.shape[:2])), state

  def num_calls(self, num_heads):
    """Passes of a model of its own: none."""
    del num_heads
    return 0


def best_candidates(logits, top_k):
  """(values [..., k], tokens int32[..., k]), the k most probable tokens of each head, ties in order of token id."""
  # top_k holds 0 above -0, a comparison does not.
  values, tokens = lax.top_k(jnp.where(logits == 0, jnp.zeros_like(logits), logits), top_k)
  return values, tokens.astype(jnp.int32)


def weighted(weight, log_probs):
  """`weight` times log-probabilities of one dtype: exactly 0 at weight 0, where a token that is never predicted stays too."""
  weight = jnp.asarray(weight).astype(log_probs.dtype)
  return jnp.where(weight == 0, jnp.zeros_like(log_probs), weight * log_probs)


def _check_static(refinement, names):
  for name in names:
    checks.integer(name, getattr(refinement, name), low=1, high=2**31 - 1, where=type(refinement).__name__)


def _check_top_k(refinement, vocab_size):
  checks.integer('top_k', refinement.top_k, low=1, high=vocab_size, where=type(refinement).__name__, over=errors.ParamError,
                 fix=f'the vocabulary has {vocab_size} tokens')
