"""Shapes of trees, and their verification against what the published procedures give on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import errors
from specjax.ops import trees
from specjax.ops import verification

VERIFIERS = [trees.verify_recursively, trees.verify_by_traversal, trees.verify_k_sequentially]


def test_shapes_of_branchings():
  shape = trees.TreeShape.from_branching((2, 1, 2))
  assert shape.parents == (0, 0, 1, 2, 3, 3, 4, 4) and shape.depth == (1, 1, 2, 2, 3, 3, 3, 3)
  assert shape.ranks == (0, 1, 0, 0, 0, 1, 0, 1) and shape.max_depth == 3 and shape.level(2) == (3, 5)
  assert hash(shape) == hash(trees.TreeShape.from_branching((2, 1, 2)))


def test_shapes_of_medusa_choices_hold_their_prefixes():
  shape = trees.TreeShape.from_paths([(0, 1), (2,), (0, 0, 0)])
  assert shape.parents == (0, 0, 1, 1, 3)
  assert trees.TreeShape.from_paths([(0,), (0, 0), (0, 0, 0)]) == trees.TreeShape.from_branching((1, 1, 1))


@pytest.mark.parametrize('parents, named', [
    ((), 'nodes of a tree'), ((0,) * 257, 'nodes of a tree'), ((1,), 'parent of node 1'), ((0, 2), 'parent of node 2'),
    ((0, -1), 'parent of node 2'), ((0, 1, 0), 'order of the nodes'), ((0, 1.0), 'parent of node 2')])
def test_what_is_no_tree_is_refused(parents, named):
  with pytest.raises(errors.ParamError, match=named):
    trees.TreeShape(parents)


def all_shapes(num_nodes, acceptance):
  """Every tree of so many nodes that fits the levels and ranks, as tuples of paths."""
  found = {frozenset()}
  for _ in range(num_nodes):
    larger = set()
    for tree in found:
      for path in [(), *tree]:
        if len(path) < len(acceptance):
          rank = sum(len(other) == len(path) + 1 and other[:-1] == path for other in tree)
          if rank < len(acceptance[len(path)]):
            larger.add(tree | {(*path, rank)})
    found = larger
  return found


@pytest.mark.parametrize('seed', range(8))
def test_the_tree_of_measured_acceptance_is_the_best_of_all(seed):
  random = np.random.RandomState(seed)
  acceptance = [sorted(random.dirichlet(np.ones(4))[:3], reverse=True) for _ in range(3)]
  for num_nodes in range(1, 6):
    others = map(trees.TreeShape.from_paths, all_shapes(num_nodes, acceptance))
    best = max(other.expected_accepted(acceptance) for other in others)
    built = trees.TreeShape.from_acceptance(acceptance, num_nodes)
    assert built.num_nodes == num_nodes
    np.testing.assert_allclose(built.expected_accepted(acceptance), best, rtol=1e-12)


@pytest.mark.parametrize('acceptance, num_nodes, named', [
    ([[0.2, 0.5]], 1, 'acceptance of a level'), ([[0.9, 0.5]], 1, 'acceptance of a level'), ([[]], 1, 'acceptance of a level'),
    ([[0.5, 0.2]], 3, 'num_nodes'), ([[float('nan')]], 1, 'acceptance of a level')])
def test_acceptance_that_is_none_is_refused(acceptance, num_nodes, named):
  with pytest.raises(errors.ParamError, match=named):
    trees.TreeShape.from_acceptance(acceptance, num_nodes)


def random_tree(shape, *, vocab_size=4, seed=0, distinct=False):
  """Tokens, laws and goals of a random tree as keyword arguments of a verifier."""
  random = np.random.RandomState(seed)
  law = lambda *lead: np.log(random.dirichlet(np.ones(vocab_size), size=lead))
  goals, behind = law(shape.num_nodes + 1), law(shape.num_nodes + 1)
  tokens, laws = np.zeros(shape.num_nodes, np.int32), np.zeros((shape.num_nodes, vocab_size))
  for node, parent in enumerate(shape.parents):
    probs = np.exp(behind[parent])
    if distinct:
      elders = [tokens[other] for other in range(node) if shape.parents[other] == parent]
      probs[elders] = 0
      probs /= probs.sum()
    tokens[node] = random.choice(vocab_size, p=probs)
    with np.errstate(divide='ignore'):
      laws[node] = np.log(probs)
  return dict(tokens=tokens, parents=np.array(shape.parents, np.int32), count=np.int32(shape.num_nodes + 1),
              max_depth=shape.max_depth, drafter_log_probs=laws.astype(np.float32),
              goal_log_probs=goals.astype(np.float32))


def run(verify, tree, seed):
  """(`Verdict`, `VerdictTrace`) with random numbers of a seed."""
  random = np.random.RandomState(seed)
  accept = random.uniform(size=len(tree['tokens'])).astype(np.float32)
  tree = {name: value if name == 'max_depth' else jnp.asarray(value) for name, value in tree.items()}
  return verify(jnp.array(accept), jnp.array(random.uniform(size=2).astype(np.float32)), **tree), accept


@pytest.mark.parametrize('verify, chain', [
    (trees.verify_recursively, verification.verify_tokens), (trees.verify_k_sequentially, verification.verify_tokens)])
def test_a_chain_is_verified_as_a_chain(verify, chain):
  shape = trees.TreeShape.from_branching((1, 1, 1))
  for seed in range(20):
    tree = random_tree(shape, seed=seed)
    (verdict, trace), accept = run(verify, tree, seed)
    final = np.random.RandomState(seed)
    final.uniform(size=3)
    expected, _ = chain(
        jnp.array(accept), jnp.array(final.uniform(size=2).astype(np.float32)), tokens=jnp.array(tree['tokens']),
        length=jnp.int32(3), drafter_log_probs=jnp.array(tree['drafter_log_probs']),
        goal_log_probs=jnp.array(tree['goal_log_probs']))
    assert (int(verdict.num_accepted), int(verdict.next_token)) == (int(expected.num_accepted), int(expected.next_token))
    path = [*range(int(verdict.num_accepted) + 1), *[-1] * (3 - int(verdict.num_accepted))]
    np.testing.assert_array_equal(verdict.path, path)


@pytest.mark.parametrize('verify', VERIFIERS)
def test_paths_lead_from_the_pending_token_and_unused_nodes_are_never_accepted(verify):
  shape = trees.TreeShape.from_branching((3, 2, 1))
  verify = jax.jit(verify, static_argnames='max_depth')
  for seed in range(40):
    tree = random_tree(shape, seed=seed) | dict(count=np.int32(1 + seed % 11))
    (verdict, trace), _ = run(verify, tree, seed)
    path = [node for node in np.asarray(verdict.path).tolist() if node >= 0]
    assert path[0] == 0 and len(path) == int(verdict.num_accepted) + 1
    assert all(shape.parents[child - 1] == parent for parent, child in zip(path, path[1:], strict=False))
    assert max(path) < tree['count'] and np.all(np.asarray(trace.accept_probs)[tree['count'] - 1:] == 0)


def test_a_second_child_meets_what_the_goal_has_left():
  """By hand: goal (.5, .3, .2), law (.2, .6, .2) twice; child 1 is token 1, child 2 is token 0."""
  with np.errstate(divide='ignore'):
    tree = dict(
        tokens=jnp.array([1, 0]), parents=jnp.array([0, 0]), count=jnp.int32(3), max_depth=1,
        drafter_log_probs=jnp.log(jnp.array([[.2, .6, .2]] * 2)), goal_log_probs=jnp.log(jnp.array([[.5, .3, .2]] * 3)))
  verdict, trace = trees.verify_recursively(jnp.array([0.6, 0.99]), jnp.array([0.5, 0.5]), **tree)
  # Left behind the first: (.3, 0, 0) normalised, so token 0 is certain.
  np.testing.assert_allclose(trace.accept_probs, [0.5, 1.0], rtol=1e-5)
  np.testing.assert_array_equal(verdict.path, [0, 2])


def test_k_sequential_constants_by_hand():
  """J = 2, goal (.5, .5), law (1, 0): b = .5 / rho with rho = 1.5 (1 - (1 - b)^2 = rho b); residual (0, .5)."""
  rho, residual = trees._k_sequential_law(jnp.array([.5, .5]), jnp.array([1., 0.]), jnp.int32(2))
  # 1 - (1 - .5 / rho)^2 = .5 gives rho = .5 / (1 - sqrt(.5)).
  np.testing.assert_allclose(rho, .5 / (1 - np.sqrt(.5)), rtol=1e-5)
  np.testing.assert_allclose(residual, [0, .5], atol=1e-6)


@pytest.mark.parametrize('verify', VERIFIERS)
def test_a_broken_goal_ends_the_tree_in_front_of_it(verify):
  shape = trees.TreeShape.from_branching((1, 1, 1))
  tree = random_tree(shape, seed=1)
  tree['goal_log_probs'] = np.where(np.arange(4)[:, None] == 1, np.nan, tree['goal_log_probs'])
  tree['drafter_log_probs'] = np.broadcast_to(
      np.where(np.arange(4) == tree['tokens'][:, None], 0, -np.inf), (3, 4)).astype(np.float32)
  tree['goal_log_probs'][0] = tree['drafter_log_probs'][0]
  (verdict, trace), _ = run(verify, tree, 0)
  assert int(verdict.num_accepted) == 1 and np.isnan(np.asarray(trace.final_probs)).all()
