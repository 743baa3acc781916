"""The accept test and the residual against hand tables, and their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.ops import acceptance

DRAFTER = np.array([0.50, 0.25, 0.15, 0.10])
TARGET = np.array([0.13, 0.62, 0.08, 0.17])


def log(probs):
  with np.errstate(divide='ignore'):
    return jnp.asarray(np.log(probs), jnp.float32)


def test_acceptance_and_residual_of_the_hand_table():
  accept = np.asarray(acceptance.accept_probability(log(TARGET), log(DRAFTER)))
  np.testing.assert_allclose(accept, [0.26, 1, 0.533333, 1], atol=1e-6)
  accepted = DRAFTER * accept
  np.testing.assert_allclose(accepted, [0.13, 0.25, 0.08, 0.10], atol=1e-6)
  residual = np.asarray(acceptance.residual_probs(jnp.asarray(TARGET), jnp.asarray(DRAFTER)))
  np.testing.assert_allclose(residual / residual.sum(), [0, 0.840909, 0, 0.159091], atol=1e-6)
  assert residual.sum() == pytest.approx(0.44, abs=1e-6)  # the rejected mass, D_TV
  np.testing.assert_allclose(accepted + (1 - accepted.sum()) * residual / residual.sum(), TARGET, atol=1e-6)


def test_one_hot_draft_of_the_hand_table():
  drafter = np.array([1.0, 0, 0, 0])
  assert float(acceptance.accept_probability(log(TARGET)[0], log(drafter)[0])) == pytest.approx(0.13, abs=1e-6)
  residual = np.asarray(acceptance.residual_probs(jnp.asarray(TARGET), jnp.asarray(drafter)))
  np.testing.assert_allclose(residual / residual.sum(), [0, 0.712644, 0.091954, 0.195402], atol=1e-6)


@pytest.mark.parametrize('goal, drafter', [(0, 0.5), (0.5, 0), (0, 0), (np.nan, 0.5), (0.5, np.nan), (np.nan, np.nan)])
def test_impossible_and_broken_drafts_are_never_accepted(goal, drafter):
  assert float(acceptance.accept_probability(log(goal), log(drafter))) == 0
  # Compiled too: XLA simplifies comparisons of what it thinks cannot be negative.
  assert float(jax.jit(acceptance.accept_probability)(log(goal), log(drafter))) == 0


def test_a_residual_without_mass_is_the_goal():
  law = jnp.asarray(TARGET, jnp.float32)
  assert np.array_equal(acceptance.residual_probs(law, law), law)
  assert np.array_equal(acceptance.residual_probs(law, law * 1.0001), law)


def test_no_token_without_residual_mass_gets_any():
  residual = np.asarray(acceptance.residual_probs(jnp.asarray(TARGET), jnp.asarray(DRAFTER)))
  assert residual[0] == 0 and residual[2] == 0


def test_random_laws_are_reassembled_exactly(x64):
  """accepted + rejected mass * residual law = goal, for laws with and without common support."""
  random = np.random.RandomState(0)
  for _ in range(50):
    goal, drafter = random.dirichlet(np.full(7, 0.3), 2)
    goal[random.rand(7) < 0.3] = 0
    drafter[random.rand(7) < 0.3] = 0
    goal, drafter = goal / goal.sum(), drafter / drafter.sum()
    with np.errstate(divide='ignore'):
      accept = np.asarray(acceptance.accept_probability(jnp.log(jnp.asarray(goal)), jnp.log(jnp.asarray(drafter))))
    residual = np.asarray(acceptance.residual_probs(jnp.asarray(goal), jnp.asarray(drafter)))
    kept = drafter * accept
    np.testing.assert_allclose(kept + (1 - kept.sum()) * residual / residual.sum(), goal, atol=1e-14)
    assert jax.dtypes.result_type(residual) == np.float64
