"""The rule OPT against the hand tables, with both losses."""

import numpy as np
import pytest

from specjax import rules
from specjax.core import errors
from specjax.testing import oracles
from specjax.testing import rule_oracles

P, Q = rule_oracles.EXAMPLE_TARGET, rule_oracles.EXAMPLE_DRAFTER


def deferral(rule, inputs):
  return float(rule(None, inputs).deferral)


@pytest.mark.parametrize('threshold, defers, rejection', [
    (0.20, True, 0.44), (0.30, False, 0.0), (-5.0, True, 0.44), (5.0, False, 0.0)])
def test_decision_and_rejection_of_the_worked_example(threshold, defers, rejection, x64):
  inputs = rule_oracles.rule_inputs(P, Q)
  goal = rules.Opt(threshold=threshold)(None, inputs)
  assert np.array_equal(goal.log_probs, inputs.target_log_probs if defers else inputs.drafter_log_probs)
  assert float(goal.deferral) == defers
  assert rule_oracles.total_variation(np.exp(goal.log_probs), Q) == pytest.approx(rejection, abs=1e-12)


@pytest.mark.parametrize('bound, threshold, holds', [(0.532, 0.20, False), (0.488, 0.30, True)])
def test_bounds_of_the_worked_example(bound, threshold, holds):
  assert P.max() - threshold * rule_oracles.total_variation(P, Q) == pytest.approx(bound, abs=1e-12)
  assert (Q.max() >= bound) == holds


def test_total_variation_is_over_the_tempered_laws(x64):
  """At temperature 0.5 the rule keeps; on tempered confidences, or with the untempered distance, it would defer."""
  inputs = rule_oracles.rule_inputs(P, Q, warp=oracles.Warp(temperature=0.5))
  tempered = np.exp(inputs.drafter_log_probs), np.exp(inputs.target_log_probs)
  np.testing.assert_allclose(tempered[0], [0.724638, 0.181159, 0.065217, 0.028986], atol=1e-6)
  np.testing.assert_allclose(tempered[1], [0.038708, 0.880440, 0.014659, 0.066193], atol=1e-6)
  distance = rule_oracles.total_variation(*tempered)
  assert distance == pytest.approx(0.736488, abs=1e-6)
  rule = rules.Opt(threshold=0.20)
  assert P.max() - 0.20 * distance == pytest.approx(0.472702, abs=1e-6) and deferral(rule, inputs) == 0
  wrong_confidence = inputs.replace(
      drafter_plain_log_probs=inputs.drafter_log_probs, target_plain_log_probs=inputs.target_log_probs)
  assert tempered[1].max() - 0.20 * distance == pytest.approx(0.733142, abs=1e-6)
  assert tempered[0].max() == pytest.approx(0.724638, abs=1e-6) and deferral(rule, wrong_confidence) == 1
  wrong_distance = inputs.replace(
      drafter_truncated_log_probs=inputs.drafter_plain_log_probs, target_truncated_log_probs=inputs.target_plain_log_probs)
  assert deferral(rule, wrong_distance) == 1


def test_total_variation_is_over_the_truncated_laws(x64):
  """With top-p 0.6 the drafter keeps (2/3, 1/3) on tokens 0 and 1, the target token 1 alone: 0.44 becomes 2/3."""
  inputs = rule_oracles.rule_inputs(P, Q, warp=oracles.Warp(top_p=0.6))
  truncated = np.exp(inputs.drafter_truncated_log_probs), np.exp(inputs.target_truncated_log_probs)
  distance = rule_oracles.total_variation(*truncated)
  assert distance == pytest.approx(2 / 3, abs=1e-12)
  # 0.50 >= 0.62 - 0.25 * 2/3 = 0.4533 keeps; 0.62 - 0.25 * 0.44 = 0.51 would not.
  assert deferral(rules.Opt(threshold=0.25), inputs) == 0
  untruncated = inputs.replace(
      drafter_truncated_log_probs=inputs.drafter_log_probs, target_truncated_log_probs=inputs.target_log_probs)
  assert deferral(rules.Opt(threshold=0.25), untruncated) == 1


def test_a_larger_distance_defers_less(x64):
  """The sign: verification that would reject much is worth less."""
  inputs = rule_oracles.rule_inputs(P, Q)
  decisions = [deferral(rules.Opt(threshold=threshold), inputs) for threshold in (-1.0, 0.0, 0.2, 0.28, 0.3, 1.0)]
  assert decisions == [1, 1, 1, 0, 0, 0]  # 0.50 = 0.62 - 0.2727 * 0.44


def test_entropy_loss_compares_entropies(x64):
  inputs = rule_oracles.rule_inputs(P, Q)
  drafter, target = rule_oracles.entropy(Q), rule_oracles.entropy(P)
  tie = (drafter - target) / 0.44
  assert drafter > target and tie == pytest.approx(0.325163, abs=1e-6)
  for threshold, defers in ((tie - 1e-6, 1), (tie + 1e-6, 0), (0.0, 1), (-3.0, 1), (3.0, 0)):
    goal = rules.Opt(threshold=threshold, loss='entropy')(None, inputs)
    assert float(goal.deferral) == defers
    assert np.array_equal(goal.log_probs, inputs.target_log_probs if defers else inputs.drafter_log_probs)


def test_the_two_losses_can_disagree(x64):
  """A drafter with the larger peak and the larger entropy."""
  drafter, target = np.array([0.52, 0.16, 0.16, 0.16]), np.array([0.5, 0.5, 0.0, 0.0])
  inputs = rule_oracles.rule_inputs(target, drafter)
  assert deferral(rules.Opt(threshold=0.0), inputs) == 0
  assert deferral(rules.Opt(threshold=0.0, loss='entropy'), inputs) == 1


def test_an_unknown_loss_is_refused():
  with pytest.raises(errors.ParamError, match="Opt.loss: got 'log', expected one of .'zero_one', 'entropy'"):
    rules.Opt(threshold=0.1, loss='log')
