"""The best paths through a sausage lattice: k candidates at each of K places, scored by themselves and behind each other.

    place 1    place 2    place 3           a path takes one candidate of each place
      a          c          a               a c e   f c a   ...   k^K paths
      f          g          e

Functions are *unbatched* and pure. Equal scores are ordered by candidate numbers, the first place first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Paths(NamedTuple):
  """The best paths: `candidates` int32[p, K], numbers of candidates; `scores` float[p], falling."""

  candidates: jax.Array
  scores: jax.Array


class PrefixTree(NamedTuple):
  """Paths with what they share merged: nodes 1..N in level order, elder siblings on better paths.

  `tokens`, `parents`, `depth`, `place` int32[N] as in `TreeProposal` (`place` is depth - 1); `count` int32[], nodes in use
  and the root.
  """

  tokens: jax.Array
  parents: jax.Array
  depth: jax.Array
  place: jax.Array
  count: jax.Array


def best_paths(scores, arcs, *, num_best):
  """`Paths`, the `num_best` (static) paths of highest score, exactly.

  A path's score is the sum over places of scores[place, candidate] + arcs[place, state, candidate]; the state is the path's
  last s candidates before the place, a number in base k, the oldest first.

      backward   ahead(state) = max over candidates of what is gained by the best way on
      forward    the p prefixes with the best score on their best way on

  A prefix of one of the p best paths is among the p prefixes kept: each prefix before it begins another path before that one.

  Args:
    scores: float[K, k].
    arcs: float[K, k^s, k].
    num_best: p <= k^K.
  """
  num_places, num_candidates = scores.shape
  num_states = arcs.shape[1]

  def backward(ahead, place):
    scores, arcs = place
    # The state behind a candidate forgets the oldest of the state before it: one block of `ahead` for each oldest candidate.
    shape = (1, num_states // num_candidates, num_candidates) if num_states > 1 else (1, 1, 1)
    gained = arcs.reshape(-1, shape[1], num_candidates) + scores[None, None, :] + ahead.reshape(shape)
    return jnp.max(gained, axis=2).reshape(-1), ahead

  behind = lax.scan(backward, jnp.zeros((num_states,), scores.dtype), (scores, arcs), reverse=True)[1]
  candidate = jnp.arange(num_candidates, dtype=jnp.int32)[None, :]

  def forward(carry, place):
    number, scores, arcs, ahead = place
    state, total, paths = carry
    gained = total[:, None] + (arcs[state] + scores[None, :])
    next_state = (state[:, None] * num_candidates + candidate) % num_states
    kept = lax.top_k((gained + ahead[next_state]).reshape(-1), num_best)[1]
    # Prefixes stay in order of their candidate numbers, so that top_k, which prefers lower indices, breaks ties by them.
    kept = jnp.sort(kept).astype(jnp.int32)
    paths = paths[kept // num_candidates].at[:, number].set(kept % num_candidates)
    return (next_state.reshape(-1)[kept], gained.reshape(-1)[kept], paths), None

  start = (
      jnp.zeros((num_best,), jnp.int32),
      jnp.where(jnp.arange(num_best) == 0, jnp.zeros((num_best,), scores.dtype), -jnp.inf),
      jnp.zeros((num_best, num_places), jnp.int32))
  numbers = jnp.arange(num_places, dtype=jnp.int32)
  (_, total, paths), _ = lax.scan(forward, start, (numbers, scores, arcs, behind))
  total, order = lax.top_k(total, num_best)
  return Paths(paths[order], total)


def num_tree_nodes(num_best, num_places, num_candidates):
  """The most nodes of a `prefix_tree` of p paths: at each level as many as there are paths, or prefixes."""
  return sum(min(num_best, num_candidates**level) for level in range(1, num_places + 1))


def prefix_tree(tokens, *, num_nodes):
  """`PrefixTree` of the paths `tokens` int32[p, K], the best first; `num_nodes` (static) is at least what they need.

      a c e        a --- c --- e         nodes  a f c c e a
      f c a         \\      \\
      a c a          f --- c --- a   ...
  """
  num_best, num_places = tokens.shape
  same = tokens[:, None, :] == tokens[None, :, :]
  shares = jnp.cumprod(same.astype(jnp.int32), axis=2) > 0  # [p, p, K], whether two paths agree up to and with a place.
  # The first path with the same prefix stands for all of them.
  owner = jnp.argmax(shares, axis=1).astype(jnp.int32).T  # [K, p]
  is_node = owner == jnp.arange(num_best, dtype=jnp.int32)[None, :]
  number = jnp.cumsum(is_node.reshape(-1), dtype=jnp.int32).reshape(is_node.shape)
  of_prefix = jnp.take_along_axis(number, owner, axis=1)  # [K, p], the node of every path's prefix.
  above = jnp.concatenate([jnp.zeros((1, num_best), jnp.int32), of_prefix[:-1]])
  depth = jnp.broadcast_to(jnp.arange(1, num_places + 1, dtype=jnp.int32)[:, None], is_node.shape)
  slot = jnp.where(is_node, number - 1, num_nodes).reshape(-1)
  placed = lambda values, empty: jnp.full((num_nodes,), empty, jnp.int32).at[slot].set(values.reshape(-1), mode='drop')
  depth = placed(depth, 1)
  return PrefixTree(
      tokens=placed(tokens.T, 0), parents=placed(above, 0), depth=depth, place=depth - 1,
      count=1 + jnp.sum(is_node, dtype=jnp.int32))
