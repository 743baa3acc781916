"""Chow's rule against the hand tables."""

import numpy as np
import pytest

from specjax import rules
from specjax.testing import oracles
from specjax.testing import rule_oracles

P, Q = rule_oracles.EXAMPLE_TARGET, rule_oracles.EXAMPLE_DRAFTER


@pytest.mark.parametrize('temperature, threshold, defers', [
    (1.0, 0.48, True), (1.0, 0.55, False), (0.5, 0.40, True), (0.5, 0.55, False), (1.0, 0.0, True), (1.0, 1.0, False)])
def test_decision_and_rejection_of_the_worked_example(temperature, threshold, defers, x64):
  inputs = rule_oracles.rule_inputs(P, Q, warp=oracles.Warp(temperature=temperature))
  goal = rules.Chow(threshold=threshold)(None, inputs)
  assert np.array_equal(goal.log_probs, inputs.target_log_probs if defers else inputs.drafter_log_probs)
  assert float(goal.deferral) == defers


def test_reading_the_tempered_law_would_keep(x64):
  """At temperature 0.5 the drafter's tempered peak is 0.72, past the bound of 0.60 that 0.50 does not reach."""
  inputs = rule_oracles.rule_inputs(P, Q, warp=oracles.Warp(temperature=0.5))
  tempered = np.exp(inputs.drafter_log_probs)
  assert tempered.max() == pytest.approx(0.724638, abs=1e-6) and tempered.max() >= 0.60 > Q.max()
  wrong = rules.Chow(threshold=0.40)(None, inputs.replace(drafter_plain_log_probs=inputs.drafter_log_probs))
  assert float(wrong.deferral) == 0
