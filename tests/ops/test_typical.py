"""Typical acceptance by hand, and at its ends."""

import jax.numpy as jnp
import numpy as np
import pytest

from specjax.ops import typical

LAW = jnp.array([.5, .25, .125, .125])  # Its entropy is 1.75 log 2: exp(-H) = 2 ** -1.75 = .2973.
NODE = dict(epsilon=0.3, delta=0.5)


def verify(tokens, parents, goals, *, depth, laws=None, count=None, final=0.5, **knobs):
  with np.errstate(divide='ignore'):
    laws = np.log(np.eye(4)[np.array(tokens)]) if laws is None else laws
    return typical.verify_typically(
        jnp.zeros(len(tokens)), jnp.array([0.5, final]), tokens=jnp.array(tokens, jnp.int32),
        parents=jnp.array(parents, jnp.int32), count=jnp.int32(len(tokens) + 1 if count is None else count), max_depth=depth,
        drafter_log_probs=jnp.array(laws, jnp.float32), goal_log_probs=jnp.log(jnp.array(goals, jnp.float32)),
        **NODE | knobs)


@pytest.mark.parametrize('epsilon, delta, accepted', [
    (0.3, 0.5, [True, True, False, False]),      # delta exp(-H) = .1487
    (0.1, 0.5, [True, True, True, True]),        # epsilon is lower
    (0.4, 1.0, [True, False, False, False]),     # .2973
    (0.4, 0.42, [True, True, True, True]),       # .12486, just below .125
    (0.25, 9.0, [True, False, False, False]),    # strictly above epsilon
    (0.0, 1.0, [True, True, True, True])])
def test_the_bar_by_hand(epsilon, delta, accepted):
  found = [bool(typical.is_typical(jnp.log(LAW), token, epsilon=epsilon, delta=delta)) for token in range(4)]
  assert found == accepted


def test_a_sure_law_accepts_its_token_alone_whatever_the_bar():
  law = jnp.log(jnp.array([0., 1., 0., 0.]))
  for epsilon in (0.0, 0.09, 1 - 2**-24):
    found = [bool(typical.is_typical(law, token, epsilon=jnp.float32(epsilon), delta=1e6)) for token in range(4)]
    assert found == [False, True, False, False]


def test_a_broken_law_accepts_nothing():
  assert not any(typical.is_typical(jnp.full(4, jnp.nan), token, **NODE) for token in range(4))


def test_the_longest_path_of_typical_tokens_stays_and_a_token_of_the_law_follows():
  # Node 1 (token 0) is likelier than node 2 (token 1), yet what was drafted behind it is not typical.
  verdict, trace = verify([0, 1, 2, 0], [0, 0, 1, 2], [LAW] * 4 + [[0, 0, 0, 1.]], depth=2)
  np.testing.assert_array_equal(verdict.path, [0, 2, 4])
  assert (int(verdict.num_accepted), int(verdict.next_token)) == (2, 3)
  np.testing.assert_array_equal(trace.accept_probs, [0, 1, 0, 1])


def test_of_equally_long_paths_the_most_probable_stays():
  flat = [.26, .26, .24, .24]
  # .25 x .26 against .5 x .24: the second is likelier, though it comes later.
  verdict, _ = verify([1, 0, 0, 2], [0, 0, 1, 2], [LAW, flat, flat, LAW, LAW], depth=2)
  np.testing.assert_array_equal(verdict.path, [0, 2, 4])


def test_a_token_behind_one_that_is_not_typical_does_not_count():
  verdict, trace = verify([2, 0], [0, 1], [LAW] * 3, depth=2)
  assert int(verdict.num_accepted) == 0 and not np.any(trace.accept_probs)
  np.testing.assert_array_equal(verdict.path, [0, -1, -1])
  np.testing.assert_allclose(trace.final_probs, LAW, rtol=1e-6)


def test_nodes_without_law_and_out_of_use_are_not_accepted():
  without = np.full((1, 4), -np.inf)
  assert int(verify([0], [0], [LAW] * 2, depth=1, laws=without)[0].num_accepted) == 0
  assert int(verify([0], [0], [LAW] * 2, depth=1, laws=without * np.nan)[0].num_accepted) == 0
  assert int(verify([0], [0], [LAW] * 2, depth=1, count=1)[0].num_accepted) == 0
  assert int(verify([0], [0], [LAW] * 2, depth=1)[0].num_accepted) == 1
