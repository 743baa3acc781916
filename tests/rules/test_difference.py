"""The rule Diff against the hand tables."""

import numpy as np
import pytest

from specjax import rules
from specjax.testing import oracles
from specjax.testing import rule_oracles

P, Q = rule_oracles.EXAMPLE_TARGET, rule_oracles.EXAMPLE_DRAFTER


@pytest.mark.parametrize('threshold, defers, rejection', [
    (0.10, True, 0.44), (0.20, False, 0.0), (-1.0, True, 0.44), (1.0, False, 0.0)])
def test_decision_and_rejection_of_the_worked_example(threshold, defers, rejection, x64):
  inputs = rule_oracles.rule_inputs(P, Q)
  goal = rules.Diff(threshold=threshold)(None, inputs)
  assert np.array_equal(goal.log_probs, inputs.target_log_probs if defers else inputs.drafter_log_probs)
  assert float(goal.deferral) == defers
  assert rule_oracles.total_variation(np.exp(goal.log_probs), Q) == pytest.approx(rejection, abs=1e-12)


def test_a_criterion_of_the_other_sign_decides_otherwise(x64):
  """0.50 >= 0.62 - 0.20 holds, 0.50 >= 0.62 + 0.20 does not."""
  inputs = rule_oracles.rule_inputs(P, Q)
  assert float(rules.Diff(threshold=0.20)(None, inputs).deferral) == 0
  assert float(rules.Diff(threshold=-0.20)(None, inputs).deferral) == 1


def test_criteria_are_read_at_temperature_1_and_the_goal_is_tempered(x64):
  inputs = rule_oracles.rule_inputs(P, Q, warp=oracles.Warp(temperature=0.5))
  goal = rules.Diff(threshold=0.13)(None, inputs)
  np.testing.assert_allclose(np.exp(goal.log_probs), [0.724638, 0.181159, 0.065217, 0.028986], atol=1e-6)
  # The tempered peaks are 0.7246 and 0.8804, further apart than the threshold.
  wrong = inputs.replace(
      drafter_plain_log_probs=inputs.drafter_log_probs, target_plain_log_probs=inputs.target_log_probs)
  assert float(rules.Diff(threshold=0.13)(None, wrong).deferral) == 1
