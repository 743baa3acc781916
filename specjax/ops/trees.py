"""Token trees: their static shapes, and their verification without loss. Functions are *unbatched*: vmap them over rows.

    node      0 pending        parents  [0, 0, 1]      of nodes 1, 2, 3
             / \\               depth    [1, 1, 2]
            1   2              siblings in the order in which they were drawn
            |
            3

A node's law is the one it was drawn from, given its parent and that its elder siblings were rejected: the same law for all
siblings with replacement, the elder ones' tokens removed without, one-hot where the tree is deterministic. A law without
mass at its token marks a place that nothing was drawn for; it is never accepted and changes nothing.
"""

import dataclasses
import functools
import heapq
import itertools

import jax
import jax.numpy as jnp
from jax import lax

from specjax.core import errors
from specjax.core import types
from specjax.ops import acceptance
from specjax.ops import categorical

MAX_NODES = 256


@dataclasses.dataclass(frozen=True)
class TreeShape:
  """A static tree in level order; hashable.

  Attributes:
    parents: of nodes 1..N, numbers of earlier nodes; 0 is the pending token.
  """

  parents: tuple[int, ...]

  def __post_init__(self):
    if not 1 <= len(self.parents) <= MAX_NODES:
      raise errors.ParamError(what='nodes of a tree', got=len(self.parents), expected=f'1 to {MAX_NODES}')
    for node, parent in enumerate(self.parents, start=1):
      if isinstance(parent, bool) or not isinstance(parent, int) or not 0 <= parent < node:
        raise errors.ParamError(
            what=f'parent of node {node}', got=parent, expected=f'an earlier node, 0 to {node - 1}',
            fix='a tree has no cycles, and parents come first')
    if list(self.depth) != sorted(self.depth):
      raise errors.ParamError(
          what='order of the nodes', got=self.parents, expected='level by level: no node before one that is less deep')

  @classmethod
  def from_branching(cls, branching):
    """The tree in which every node of level i has `branching[i]` children; (1, 1, 1) is a chain of three."""
    parents, level, number = [], [0], 0
    for children in branching:
      if isinstance(children, bool) or not isinstance(children, int) or not 1 <= children <= MAX_NODES:
        raise errors.ParamError(what='children of a level', got=children, expected=f'1 to {MAX_NODES}')
      below = []
      for parent in level:
        for _ in range(children):
          number += 1
          if number > MAX_NODES:
            raise errors.ParamError(what='nodes of a tree', got=f'more than {MAX_NODES}', expected=f'1 to {MAX_NODES}')
          parents.append(parent)
          below.append(number)
      level = below
    return cls(tuple(parents))

  @classmethod
  def from_paths(cls, paths):
    """The tree of Medusa's choices: (0,) is the first child of the root, (0, 2) its third child; prefixes may be left out.

    Ranks decide the order of siblings; they need not be consecutive where ranks between are missing.
    """
    wanted = {tuple(path[:size]) for path in paths for size in range(1, len(path) + 1)}
    ordered = sorted(wanted, key=lambda path: (len(path), path))
    number = {(): 0} | {path: index for index, path in enumerate(ordered, start=1)}
    return cls(tuple(number[path[:-1]] for path in ordered))

  @classmethod
  def from_acceptance(cls, acceptance, num_nodes):
    """The tree of `num_nodes` nodes with the most tokens accepted in expectation.

    Args:
      acceptance: float[D, R], at each level the probability that the accepted child is the one of rank r, given that their
        parent is accepted, as measured; it must not grow with r.
      num_nodes: N, at most as many as D levels of R children have.

    A node is on the accepted path with the product of the probabilities on its way, and products only fall along it, so
    the N most probable nodes are a tree (Chen et al. 2024, Sequoia, for probabilities that depend on level and rank).
    """
    levels = [[float(probability) for probability in level] for level in acceptance]
    for level in levels:
      is_law = all(0 <= probability <= 1 for probability in level) and sum(level) <= 1 + 1e-6
      if not level or not is_law or level != sorted(level, reverse=True):
        raise errors.ParamError(
            what='acceptance of a level', got=level, expected='probabilities by rank that do not grow and sum to at most 1')
    chosen, order = [], itertools.count()  # `order` breaks ties: first come, first served
    waiting = [(-levels[0][0], next(order), (0,))] if levels else []
    while waiting and len(chosen) < num_nodes:
      negative, _, path = heapq.heappop(waiting)
      chosen.append(path)
      depth, rank = len(path), path[-1]
      if depth < len(levels):
        heapq.heappush(waiting, (negative * levels[depth][0], next(order), (*path, 0)))
      of_level = levels[depth - 1]
      if rank + 1 < len(of_level):
        parent = negative / of_level[rank] if of_level[rank] else 0.0
        heapq.heappush(waiting, (parent * of_level[rank + 1], next(order), (*path[:-1], rank + 1)))
    if len(chosen) < num_nodes:
      raise errors.ParamError(what='num_nodes', got=num_nodes, expected=f'at most {len(chosen)}, all that the levels hold')
    return cls.from_paths(chosen)

  def expected_accepted(self, acceptance) -> float:
    """Tokens accepted in expectation, where `acceptance` [D, R] is as for `from_acceptance`."""
    reached = [1.0]
    for parent, depth, rank in zip(self.parents, self.depth, self.ranks, strict=True):
      reached.append(reached[parent] * float(acceptance[depth - 1][rank]))
    return sum(reached[1:])

  @property
  def num_nodes(self) -> int:
    """N, the pending token not counted."""
    return len(self.parents)

  @functools.cached_property
  def depth(self) -> tuple[int, ...]:
    """Of nodes 1..N, from 1."""
    depth = [0]
    for parent in self.parents:
      depth.append(depth[parent] + 1)
    return tuple(depth[1:])

  @property
  def max_depth(self) -> int:
    """D, the most tokens that can be accepted."""
    return max(self.depth)

  @functools.cached_property
  def ranks(self) -> tuple[int, ...]:
    """How many elder siblings each of the nodes 1..N has."""
    return tuple(self.parents[:index].count(parent) for index, parent in enumerate(self.parents))

  def level(self, depth: int) -> tuple[int, int]:
    """(first, last + 1) of the nodes at `depth`, in 1..N + 1."""
    start = 1 + self.depth.index(depth)
    return start, start + self.depth.count(depth)


def usable(parents, count, *, tokens, drafter_log_probs, goal_log_probs):
  """bool[N], the nodes that may be tested: in use, with a law, behind a node with a goal.

  Where a law is broken (NaN) the tree ends in front of it, as if nothing had been drafted there: a decision known before
  the token was drawn.
  """
  node = jnp.arange(1, tokens.shape[0] + 1, dtype=jnp.int32)
  has_goal = ~jnp.any(jnp.isnan(goal_log_probs), axis=-1)
  has_law = ~jnp.isnan(jnp.take_along_axis(drafter_log_probs, tokens[:, None], axis=1)[:, 0])
  return (node < count) & has_law & has_goal[parents]


def verify_recursively(
    accept_uniforms, final_uniforms, *, tokens, parents, count, max_depth, drafter_log_probs, goal_log_probs):
  """Recursive rejection sampling down the tree: children are tried in turn against what the goal has left.

      r = goal of the node; for each child x with law q: accept with min(1, r(x) / q(x)), else r = norm(max(0, r - q))

  Trying every child against the goal itself would be biased. Exact with and without replacement, as the laws say.

  Args:
    accept_uniforms: float[N], one per node.
    final_uniforms: float[2].
    tokens, parents: int32[N], of nodes 1..N.
    count: int32[], nodes in use, the pending one counted; the others are never tested.
    max_depth: D, static.
    drafter_log_probs: float[N, V], the law of each node.
    goal_log_probs: float[N + 1, V], the goal behind each node, behind the pending one first.

  Returns:
    (`Verdict` with `path` int32[D + 1] from node 0, -1 behind its end; `VerdictTrace`, whose tests are 0 where none was made).

  Source: Miao et al. 2024 (SpecInfer); without replacement Jeon et al. 2024, Chen et al. 2024 (Sequoia).
  """
  num_nodes = tokens.shape[0]
  is_usable = usable(
      parents, count, tokens=tokens, drafter_log_probs=drafter_log_probs, goal_log_probs=goal_log_probs)

  def test(node, carry):
    current, depth, path, residual, accept_probs = carry
    token, law = tokens[node], drafter_log_probs[node]
    is_tested = (parents[node] == current) & is_usable[node]
    probability = acceptance.accept_probability(jnp.log(residual[token]), law[token])
    accepts = is_tested & (accept_uniforms[node] < probability)
    left = acceptance.residual_probs(residual, jnp.where(law[token] > -jnp.inf, jnp.exp(law), 0))
    left = left / jnp.sum(left)
    residual = jnp.where(accepts, jnp.exp(goal_log_probs[node + 1]), jnp.where(is_tested, left, residual))
    depth = depth + accepts.astype(jnp.int32)
    path = jnp.where(accepts & (index == depth), node + 1, path)
    accept_probs = accept_probs.at[node].set(jnp.where(is_tested, probability, 0))
    return jnp.where(accepts, node + 1, current), depth, path, residual, accept_probs

  index = jnp.arange(max_depth + 1, dtype=jnp.int32)
  path = jnp.where(index == 0, 0, -1)
  start = (jnp.int32(0), jnp.int32(0), path, jnp.exp(goal_log_probs[0]), jnp.zeros_like(accept_uniforms))
  _, depth, path, residual, accept_probs = lax.fori_loop(jnp.int32(0), jnp.int32(num_nodes), test, start)
  next_token = categorical.draw_from_probs(final_uniforms, residual)
  return types.Verdict(depth, next_token, path), types.VerdictTrace(accept_probs, residual)


def verify_by_traversal(
    accept_uniforms, final_uniforms, *, tokens, parents, count, max_depth, drafter_log_probs, goal_log_probs):
  """Traversal verification: leaf by leaf from the left, a whole path is kept at once or its leaf is cut off.

      w of the root 1; w of a child x = min(1, w m(x) / q(x)), with w and m its parent's
      a leaf stays, and the path to it, with probability w; else at its parent, with r = max(0, w m - q):
      m = norm(r);  w = sum r / (sum r + 1 - w)

  m begins as the goal. A chain gives block verification. Exact with and without replacement. It keeps at least as many
  tokens as recursive rejection sampling does where there is one child per node; a whole path that is likely under the goal
  survives an unlikely token on its way.

  Arguments and result as of `verify_recursively`; each node is tested when nothing is left below it.

  Source: Weng et al. 2025 (Traversal Verification).
  """
  num_nodes = tokens.shape[0]
  node_index = jnp.arange(1, num_nodes + 1, dtype=jnp.int32)

  def move(_, carry):
    current, is_done, is_left, weights, goals, accept_probs = carry
    children = is_left & (parents == current)
    child = jnp.argmax(children).astype(jnp.int32)  # from 0: node child + 1
    enters = jnp.any(children)
    weight, goal = weights[current], goals[current]
    token, law = tokens[child], drafter_log_probs[child]
    ratio = acceptance.accept_probability(jnp.log(weight * goal[token]), law[token])
    entered = weights.at[child + 1].set(ratio)
    # Nothing below: the test of this node, and the cut of its leaf where it fails. The pending token needs no test.
    own = jnp.maximum(current - 1, 0)
    is_root = current == 0
    accepts = ~is_root & (accept_uniforms[own] < weight)
    parent = jnp.where(is_root, 0, parents[own])
    own_law = drafter_log_probs[own]
    was_drawn = own_law[tokens[own]] > -jnp.inf
    above, scaled = weights[parent], weights[parent] * goals[parent]
    residual = jnp.maximum(scaled - jnp.where(was_drawn, jnp.exp(own_law), 0), 0)
    mass = jnp.sum(residual)
    total = mass + (1 - above)
    # A law is left as it is where nothing was drawn, and where only rounding rejected: the residual has no mass then.
    left_goal = jnp.where(was_drawn & (mass > 0), residual / jnp.where(mass > 0, mass, 1), goals[parent])
    left_weight = jnp.where(was_drawn, jnp.where(total > 0, mass / jnp.where(total > 0, total, 1), 1), above)
    cuts = ~enters & ~is_root & ~accepts & ~is_done
    goes_down = enters & ~is_done
    accept_probs = accept_probs.at[own].set(
        jnp.where(~enters & ~is_root & ~is_done, jnp.minimum(weight, 1), accept_probs[own]))
    weights = jnp.where(goes_down, entered, jnp.where(cuts, weights.at[parent].set(left_weight), weights))
    goals = jnp.where(cuts, goals.at[parent].set(left_goal), goals)
    is_left = jnp.where(cuts, is_left & (node_index != current), is_left)
    is_done = is_done | (~enters & (is_root | accepts))
    current = jnp.where(goes_down, child + 1, jnp.where(cuts, parent, current))
    return current, is_done, is_left, weights, goals, accept_probs

  ones = jnp.ones((num_nodes + 1,), goal_log_probs.dtype)
  is_usable = usable(
      parents, count, tokens=tokens, drafter_log_probs=drafter_log_probs, goal_log_probs=goal_log_probs)
  start = (jnp.int32(0), jnp.bool_(False), is_usable, ones, jnp.exp(goal_log_probs), jnp.zeros_like(accept_uniforms))
  current, _, _, _, goals, accept_probs = lax.fori_loop(0, 2 * num_nodes + 1, move, start)
  path = path_to(current, parents, max_depth)
  final_probs = goals[current]
  next_token = categorical.draw_from_probs(final_uniforms, final_probs)
  num_accepted = jnp.sum(path >= 0, dtype=jnp.int32) - 1
  return types.Verdict(num_accepted, next_token, path), types.VerdictTrace(accept_probs, final_probs)


def verify_k_sequentially(
    accept_uniforms, final_uniforms, *, tokens, parents, count, max_depth, drafter_log_probs, goal_log_probs):
  """K-SEQ down the tree: the J children of a node, drawn independently from one law q, meet the same test in turn.

      accept x with min(1, p(x) / (rho q(x))); behind J rejections draw from norm(p - min(q, p / rho) (1 - (1 - b)^J) / b),
      b = sum over v of min(q(v), p(v) / rho), rho in [1, J] with 1 - (1 - b)^J = rho b

  Exact for any rho with which that residual is not negative; this one accepts most. Only for trees drawn with replacement.

  Arguments and result as of `verify_recursively`.

  Source: Sun et al. 2023 (SpecTr).
  """
  num_nodes = tokens.shape[0]
  is_usable = usable(
      parents, count, tokens=tokens, drafter_log_probs=drafter_log_probs, goal_log_probs=goal_log_probs)
  node_index = jnp.arange(num_nodes + 1, dtype=jnp.int32)
  is_child = (parents[None, :] == node_index[:, None]) & is_usable[None, :]
  num_children = jnp.sum(is_child, axis=1, dtype=jnp.int32)
  first = jnp.argmax(is_child, axis=1)
  goals = jnp.exp(goal_log_probs)
  rho, residuals = jax.vmap(_k_sequential_law)(goals, jnp.exp(drafter_log_probs[first]), num_children)

  def test(node, carry):
    current, depth, path, accept_probs = carry
    token, law = tokens[node], drafter_log_probs[node]
    is_tested = (parents[node] == current) & is_usable[node]
    probability = acceptance.accept_probability(goal_log_probs[current, token] - jnp.log(rho[current]), law[token])
    accepts = is_tested & (accept_uniforms[node] < probability)
    depth = depth + accepts.astype(jnp.int32)
    path = jnp.where(accepts & (index == depth), node + 1, path)
    accept_probs = accept_probs.at[node].set(jnp.where(is_tested, probability, 0))
    return jnp.where(accepts, node + 1, current), depth, path, accept_probs

  index = jnp.arange(max_depth + 1, dtype=jnp.int32)
  start = (jnp.int32(0), jnp.int32(0), jnp.where(index == 0, 0, -1), jnp.zeros_like(accept_uniforms))
  current, depth, path, accept_probs = lax.fori_loop(jnp.int32(0), jnp.int32(num_nodes), test, start)
  final_probs = jnp.where(num_children[current] > 0, residuals[current], goals[current])
  next_token = categorical.draw_from_probs(final_uniforms, final_probs)
  return types.Verdict(depth, next_token, path), types.VerdictTrace(accept_probs, final_probs)


def _k_sequential_law(goal, law, num_children):
  """(rho float[], the unnormalised law behind `num_children` rejections float[V]) of one node, of probabilities float[V]."""
  tries = jnp.maximum(num_children, 1).astype(goal.dtype)
  shared = lambda rho: jnp.minimum(law, goal / rho)
  # log1p keeps the difference from 1 where b is small.
  within = lambda mass: -jnp.expm1(tries * jnp.log1p(-jnp.minimum(mass, 1)))

  def halve(_, bounds):
    low, high = bounds
    rho = (low + high) / 2
    mass = jnp.sum(shared(rho))
    is_low = within(mass) > rho * mass
    return jnp.where(is_low, rho, low), jnp.where(is_low, high, rho)

  _, rho = lax.fori_loop(0, jnp.finfo(goal.dtype).nmant + 2, halve, (jnp.ones((), goal.dtype), tries))
  mass = jnp.sum(shared(rho))
  factor = jnp.where(mass > 0, within(mass) / jnp.where(mass > 0, mass, 1), 0)
  residual = jnp.maximum(goal - shared(rho) * factor, 0)
  return rho, jnp.where(jnp.sum(residual) > 0, residual, goal)


def path_to(node, parents, max_depth):
  """int32[D + 1], the nodes from 0 to `node` int32[], -1 behind."""

  def up(carry, _):
    parent = jnp.where(carry > 0, parents[jnp.maximum(carry - 1, 0)], -1)
    return parent, carry

  # From the node upwards, then turned round: what lies above the root is -1 and goes to the end.
  upwards = lax.scan(up, jnp.asarray(node, jnp.int32), None, length=max_depth + 1)[1]
  depth = jnp.sum(upwards >= 0, dtype=jnp.int32)
  index = depth - 1 - jnp.arange(max_depth + 1, dtype=jnp.int32)
  return jnp.where(index >= 0, upwards[jnp.maximum(index, 0)], -1)
