"""The token-specific rules against the hand tables."""

import numpy as np
import pytest

from specjax import rules
from specjax.ops import acceptance
from specjax.testing import oracles
from specjax.testing import rule_oracles

P, Q = rule_oracles.EXAMPLE_TARGET, rule_oracles.EXAMPLE_DRAFTER
V1, V2, V3 = rules.TokenV1, rules.TokenV2, rules.TokenV3
NARROW = [0.0975, 0.715, 0.06, 0.1275]  # the mix with A = {1}


def law_of(rule, inputs):
  goal = rule(None, inputs)
  return np.exp(np.asarray(goal.log_probs)), float(goal.deferral)


@pytest.mark.parametrize('rule, eta, goal, accept, rejection, residual', [
    (V1, 0.10, [0.513, 0.312, 0.158, 0.017], [1, 1, 1, 0.17], 0.083, [0.156627, 0.746988, 0.096386, 0]),
    (V2, 0.65, [0.0845, 0.653, 0.052, 0.2105], [0.169, 1, 0.346667, 1], 0.5135, [0, 0.784810, 0, 0.215190]),
    (V3, 0.75, NARROW, [0.195, 1, 0.4, 1], 0.4925, [0, 0.944162, 0, 0.055838])])
def test_worked_example_at_temperature_1(rule, eta, goal, accept, rejection, residual, x64):
  inputs = rule_oracles.rule_inputs(P, Q)
  found, deferral = law_of(rule(threshold=0.48), inputs)
  np.testing.assert_allclose(found, goal, atol=1e-12)
  assert deferral == pytest.approx(eta, abs=1e-12)
  got = acceptance.accept_probability(np.log(found), inputs.drafter_log_probs)
  np.testing.assert_allclose(got, accept, atol=1e-6)
  assert rule_oracles.total_variation(found, Q) == pytest.approx(rejection, abs=1e-12)
  rest = np.asarray(acceptance.residual_probs(found, Q))
  np.testing.assert_allclose(rest / rest.sum(), residual, atol=1e-6)


@pytest.mark.parametrize('rule, threshold, goal, rejection', [
    (V1, 0.48, [0.725760, 0.206679, 0.065642, 0.001919], 0.027067),
    (V2, 0.48, [0.030574, 0.876579, 0.011578, 0.081269], 0.747703),
    (V3, 0.75, [0.030574, 0.876579, 0.011578, 0.081269], 0.747703)])
def test_worked_example_at_temperature_one_half(rule, threshold, goal, rejection, x64):
  inputs = rule_oracles.rule_inputs(P, Q, warp=oracles.Warp(temperature=0.5))
  found, _ = law_of(rule(threshold=threshold), inputs)
  np.testing.assert_allclose(found, goal, atol=1e-6)
  assert rule_oracles.total_variation(found, np.exp(inputs.drafter_log_probs)) == pytest.approx(rejection, abs=1e-6)


@pytest.mark.parametrize('rule, threshold, goal', [
    (V1, 0.48, [0.735296, 0.242440, 0.004036, 0.018227]), (V2, 0.48, [0.031696, 0.902099, 0.012003, 0.054202]),
    (V3, 0.75, [0.031696, 0.902099, 0.012003, 0.054202])])
def test_criteria_on_tempered_laws_would_give_another_goal(rule, threshold, goal, x64):
  inputs = rule_oracles.rule_inputs(P, Q, warp=oracles.Warp(temperature=0.5))
  wrong = inputs.replace(
      drafter_plain_log_probs=inputs.drafter_log_probs, target_plain_log_probs=inputs.target_log_probs)
  found, _ = law_of(rule(threshold=threshold), wrong)
  np.testing.assert_allclose(found, goal, atol=1e-6)
  assert rule_oracles.total_variation(found, law_of(rule(threshold=threshold), inputs)[0]) > 0.02


@pytest.mark.parametrize('rule', [V2, V3])
def test_threshold_0_is_not_lossless_and_below_0_is(rule, x64):
  inputs = rule_oracles.rule_inputs(P, Q)
  at_0, _ = law_of(rule(threshold=0.0), inputs)
  np.testing.assert_allclose(at_0, NARROW, atol=1e-12)
  assert rule_oracles.total_variation(at_0, P) == pytest.approx(0.095, abs=1e-12)
  below, deferral = law_of(rule(threshold=-0.1), inputs)
  np.testing.assert_allclose(below, P, atol=1e-12)
  assert deferral == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize('rule', [V2, V3])
def test_the_example_rejects_more_than_lossless_decoding(rule, x64):
  found, _ = law_of(rule(threshold=0.48), rule_oracles.rule_inputs(P, Q))
  assert rule_oracles.total_variation(found, Q) > rule_oracles.total_variation(P, Q) == pytest.approx(0.44)


@pytest.mark.parametrize('rule, low', [(V1, -1.0), (V2, -1.0), (V3, -0.1)])
def test_ends_of_the_range_are_target_and_drafter(rule, low, x64):
  inputs = rule_oracles.rule_inputs(P, Q)
  np.testing.assert_allclose(law_of(rule(threshold=low), inputs)[0], P, atol=1e-12)
  np.testing.assert_allclose(law_of(rule(threshold=1.0), inputs)[0], Q, atol=1e-12)


def test_tokens_of_the_set_are_always_accepted(x64):
  """In the set the goal is at least the drafter's mass; outside it is eta p."""
  random = np.random.RandomState(0)
  for _ in range(20):
    target, drafter = random.dirichlet(np.full(9, 0.4), 2)
    found, eta = law_of(V3(threshold=0.7), rule_oracles.rule_inputs(target, drafter))
    good = target >= 0.3 * target.max()
    assert np.all(found[good] >= drafter[good] - 1e-15)
    np.testing.assert_allclose(found[~good], eta * target[~good], atol=1e-15)
