"""The fixed mixture."""

import numpy as np
import pytest

from specjax import rules
from specjax.testing import oracles
from specjax.testing import rule_oracles

P, Q = rule_oracles.EXAMPLE_TARGET, rule_oracles.EXAMPLE_DRAFTER


@pytest.mark.parametrize('weight', [0.0, 0.25, 1.0])
@pytest.mark.parametrize('temperature', [0.5, 1.0])
def test_goal_is_the_weighted_mean_and_rejects_in_proportion(weight, temperature, x64):
  inputs = rule_oracles.rule_inputs(P, Q, warp=oracles.Warp(temperature=temperature))
  p, q = np.exp(inputs.target_log_probs), np.exp(inputs.drafter_log_probs)
  goal = rules.Mixture(target_weight=weight)(None, inputs)
  found = np.exp(np.asarray(goal.log_probs))
  np.testing.assert_allclose(found, (1 - weight) * q + weight * p, atol=1e-15)
  assert float(goal.deferral) == weight
  assert rule_oracles.total_variation(found, q) == pytest.approx(weight * rule_oracles.total_variation(p, q), abs=1e-12)


def test_a_token_of_either_model_keeps_its_mass(x64):
  goal = rules.Mixture(target_weight=0.3)(None, rule_oracles.rule_inputs([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]))
  np.testing.assert_allclose(np.exp(goal.log_probs), [0.3, 0.7, 0.0], atol=1e-15)
