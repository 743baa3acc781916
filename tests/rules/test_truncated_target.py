"""The control: the target restricted to the set of TokenV3."""

import numpy as np
import pytest

from specjax import rules
from specjax.testing import oracles
from specjax.testing import rule_oracles

P, Q = rule_oracles.EXAMPLE_TARGET, rule_oracles.EXAMPLE_DRAFTER


def law_of(threshold, inputs):
  goal = rules.TruncatedTarget(threshold=threshold)(None, inputs)
  assert float(goal.deferral) == 1
  return np.exp(np.asarray(goal.log_probs))


@pytest.mark.parametrize('threshold, kept', [
    (0.0, [1]), (0.48, [1]), (0.75, [1, 3]), (0.8, [0, 1, 3]), (1.0, [0, 1, 2, 3])])
def test_goal_is_the_target_on_the_good_tokens(threshold, kept, x64):
  expected = np.where(np.isin(np.arange(4), kept), P, 0)
  found = law_of(threshold, rule_oracles.rule_inputs(P, Q, truncates='inputs'))
  np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-15)


def test_the_set_is_that_of_the_token_rule_and_the_drafter_is_not_read(x64):
  inputs = rule_oracles.rule_inputs(P, Q, truncates='inputs')
  mixed = np.exp(rules.TokenV3(threshold=0.75)(None, inputs).log_probs)
  assert mixed[3] > Q[3] and mixed[0] < Q[0]  # A = {1, 3}
  blind = inputs.replace(drafter_log_probs=None, drafter_plain_log_probs=None, drafter_truncated_log_probs=None)
  np.testing.assert_allclose(law_of(0.75, blind), [0, 0.62 / 0.79, 0, 0.17 / 0.79], atol=1e-15)


def test_the_set_is_read_at_temperature_1_and_the_law_tempered(x64):
  inputs = rule_oracles.rule_inputs(P, Q, warp=oracles.Warp(temperature=0.5), truncates='inputs')
  squares = np.array([0, 0.62**2, 0, 0.17**2])
  np.testing.assert_allclose(law_of(0.75, inputs), squares / squares.sum(), atol=1e-12)


def test_an_empty_set_leaves_the_target(x64):
  inputs = rule_oracles.rule_inputs(P, Q, truncates='inputs')
  assert np.array_equal(law_of(-0.1, inputs), np.exp(inputs.target_log_probs))


def test_the_best_token_survives_every_truncation(x64):
  for warp in (oracles.Warp(top_k=1), oracles.Warp(top_p=0.1), oracles.Warp(min_p=1.0), oracles.Warp(temperature=0.0)):
    np.testing.assert_allclose(
        law_of(0.0, rule_oracles.rule_inputs(P, Q, warp=warp, truncates='inputs')), np.eye(4)[1], atol=1e-15)
