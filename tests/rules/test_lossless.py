"""The lossless rule and what the verifier makes of it on the worked example: acceptance, residual, one-hot drafts."""

import jax.numpy as jnp
import numpy as np
import pytest

from specjax import rules
from specjax.ops import acceptance
from specjax.testing import rule_oracles

P, Q = rule_oracles.EXAMPLE_TARGET, rule_oracles.EXAMPLE_DRAFTER


def test_goal_is_the_targets_law_bit_for_bit(x64):
  inputs = rule_oracles.rule_inputs(P, Q)
  goal = rules.Lossless()(None, inputs.replace(drafter_log_probs=None, drafter_plain_log_probs=None))
  assert np.array_equal(goal.log_probs, inputs.target_log_probs) and float(goal.deferral) == 1


def test_acceptance_and_residual_of_the_worked_example(x64):
  np.testing.assert_allclose(P / Q, [0.26, 2.48, 0.533333, 1.7], atol=1e-6)
  accept = np.asarray(acceptance.accept_probability(jnp.log(P), jnp.log(Q)))
  np.testing.assert_allclose(accept, [0.26, 1, 0.533333, 1], atol=1e-6)
  np.testing.assert_allclose(accept * Q, [0.13, 0.25, 0.08, 0.10], atol=1e-12)
  assert np.sum(accept * Q) == pytest.approx(0.56, abs=1e-12)
  np.testing.assert_allclose(Q - accept * Q, [0.37, 0, 0.07, 0], atol=1e-12)
  residual = np.asarray(acceptance.residual_probs(jnp.asarray(P), jnp.asarray(Q)))
  assert residual.sum() == pytest.approx(0.44, abs=1e-12)
  np.testing.assert_allclose(residual / residual.sum(), [0, 0.840909, 0, 0.159091], atol=1e-6)
  np.testing.assert_allclose(accept * Q + residual, P, atol=1e-12)


def test_one_hot_draft_of_the_worked_example(x64):
  one_hot = np.eye(4)[0]
  with np.errstate(divide='ignore'):
    accept = np.asarray(acceptance.accept_probability(jnp.log(P), jnp.asarray(np.log(one_hot))))
  np.testing.assert_allclose(accept, [0.13, 0, 0, 0], atol=1e-12)
  residual = np.asarray(acceptance.residual_probs(jnp.asarray(P), jnp.asarray(one_hot)))
  np.testing.assert_allclose(residual / residual.sum(), [0, 0.712644, 0.091954, 0.195402], atol=1e-6)


def test_mean_of_min_under_the_drafter_is_not_the_acceptance_rate():
  minimum = np.minimum(P, Q)
  assert np.sum(Q * minimum) == pytest.approx(0.1495, abs=1e-12)
  assert np.sum(minimum) == pytest.approx(0.56, abs=1e-12)
