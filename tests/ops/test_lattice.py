"""The best paths of a lattice equal brute force, and their prefix tree holds them all."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.ops import lattice

# (k, K, tokens of the state, p); 100 lattices each.
SHAPES = [
    (1, 3, 0, 1), (4, 4, 0, 1), (4, 4, 0, 16), (3, 5, 1, 1), (3, 5, 1, 16), (5, 3, 1, 125), (2, 6, 3, 7), (3, 4, 3, 16),
    (4, 2, 3, 5), (6, 1, 1, 6)]


def brute_force(scores, arcs, num_best):
  """The best paths and their scores: all paths, sorted by score and then by candidate numbers."""
  num_places, num_candidates = scores.shape
  found = []
  for path in itertools.product(range(num_candidates), repeat=num_places):
    total, state = 0.0, 0
    for place, candidate in enumerate(path):
      total += arcs[place, state, candidate] + scores[place, candidate]
      state = (state * num_candidates + candidate) % arcs.shape[1]
    found.append((-total, path))
  found = sorted(found)[:num_best]
  return np.array([path for _, path in found]), -np.array([total for total, _ in found])


def random_lattices(shape, count, draw):
  num_candidates, num_places, span, num_best = shape
  random = np.random.RandomState(sum(shape))
  return draw(random, (count, num_places, num_candidates)), draw(
      random, (count, num_places, num_candidates**span, num_candidates)), num_best


@functools.partial(jax.jit, static_argnums=2)
def best_paths(scores, arcs, num_best):
  return jax.vmap(lambda *row: lattice.best_paths(*row, num_best=num_best))(scores, arcs)


@pytest.mark.parametrize('shape', SHAPES)
def test_a_thousand_random_lattices_equal_brute_force(shape, x64):
  scores, arcs, num_best = random_lattices(shape, 100, lambda random, size: random.randn(*size))
  found = best_paths(scores, arcs, num_best)
  for row in range(100):
    paths, totals = brute_force(scores[row], arcs[row], num_best)
    np.testing.assert_array_equal(found.candidates[row], paths)
    np.testing.assert_allclose(found.scores[row], totals, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('shape', [(3, 4, 0, 16), (3, 4, 1, 9), (2, 5, 3, 32)])
def test_equal_scores_are_ordered_by_candidates(shape):
  # Small integers are exact, and most paths tie.
  scores, arcs, num_best = random_lattices(shape, 25, lambda random, size: random.randint(-1, 1, size).astype(np.float32))
  found = best_paths(scores, arcs, num_best)
  for row in range(25):
    paths, totals = brute_force(scores[row], arcs[row], num_best)
    np.testing.assert_array_equal(found.candidates[row], paths)
    np.testing.assert_array_equal(found.scores[row], totals)


def test_a_candidate_that_is_forbidden_is_on_no_path_while_others_are_left():
  scores = jnp.array([[0.0, -jnp.inf], [0.0, -1.0]])
  arcs = jnp.zeros((2, 2, 2)).at[1, 0, 0].set(-jnp.inf)
  found = lattice.best_paths(scores, arcs, num_best=2)
  np.testing.assert_array_equal(found.scores, [-1.0, -jnp.inf])
  np.testing.assert_array_equal(found.candidates[0], [0, 1])


def as_paths(tree, num_levels):
  """Every root-to-node path of a tree as tokens, in the order of the nodes."""
  paths = [()]
  for node in range(int(tree.count) - 1):
    parent = int(tree.parents[node])
    assert parent <= node and int(tree.depth[node]) == len(paths[parent]) + 1 <= num_levels
    paths.append((*paths[parent], int(tree.tokens[node])))
  return paths[1:]


@pytest.mark.parametrize('seed', range(6))
def test_the_prefix_tree_holds_every_prefix_once(seed):
  random = np.random.RandomState(seed)
  num_best, num_places = 7, 4
  every = list(itertools.product(range(3), repeat=num_places))
  paths = np.array([every[i] for i in random.permutation(len(every))[:num_best]], np.int32)
  num_nodes = lattice.num_tree_nodes(num_best, num_places, 3)
  tree = jax.jit(lambda paths: lattice.prefix_tree(paths, num_nodes=num_nodes))(paths)
  expected = {tuple(int(token) for token in path[:size]) for path in paths for size in range(1, num_places + 1)}
  found = as_paths(tree, num_places)
  assert len(found) == len(set(found)) and set(found) == expected
  # Level by level, and the siblings on better paths first.
  assert [len(path) for path in found] == sorted(len(path) for path in found)
  rank = {path: min(i for i, other in enumerate(map(tuple, paths.tolist())) if other[:len(path)] == path) for path in found}
  for first, second in itertools.combinations(found, 2):
    if first[:-1] == second[:-1]:
      assert rank[first] < rank[second]


def test_the_number_of_nodes_of_a_tree():
  assert lattice.num_tree_nodes(16, 4, 16) == 64 and lattice.num_tree_nodes(16, 3, 2) == 2 + 4 + 8
  assert lattice.num_tree_nodes(1, 5, 16) == 5
