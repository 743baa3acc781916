"""BiLD's rule: the greedy draft token stays unless the target finds it too unlikely."""

import numpy as np
import pytest

from specjax import rules
from specjax.core import errors
from specjax.testing import oracles
from specjax.testing import rule_oracles

P, Q = rule_oracles.EXAMPLE_TARGET, rule_oracles.EXAMPLE_DRAFTER
GREEDY = oracles.Warp(temperature=0.0)
LOSS = -np.log(0.13)  # 2.040 nats: what the target says about the drafter's best token


@pytest.mark.parametrize('threshold, token', [
    (LOSS + 1e-6, 0), (LOSS - 1e-6, 1), (5.0, 0), (2.0, 1), (0.0, 1), (-1.0, 1)])
def test_draft_token_stays_up_to_the_threshold(threshold, token, x64):
  inputs = rule_oracles.rule_inputs(P, Q, warp=GREEDY)
  goal = rules.Bild(rollback_threshold=threshold)(None, inputs)
  assert np.array_equal(np.exp(goal.log_probs), np.eye(4)[token]) and float(goal.deferral) == token


def test_the_discrepancy_is_read_at_temperature_1(x64):
  """The target's greedy law gives the draft token no mass at all: every threshold would roll back."""
  inputs = rule_oracles.rule_inputs(P, Q, warp=GREEDY)
  wrong = inputs.replace(target_plain_log_probs=inputs.target_log_probs)
  rule = rules.Bild(rollback_threshold=5.0)
  assert float(rule(None, inputs).deferral) == 0 and float(rule(None, wrong).deferral) == 1


def test_a_draft_token_without_mass_in_the_target_is_rolled_back(x64):
  inputs = rule_oracles.rule_inputs([0.0, 0.6, 0.4], [0.9, 0.05, 0.05], warp=GREEDY)
  goal = rules.Bild(rollback_threshold=1e9)(None, inputs)
  assert np.array_equal(np.exp(goal.log_probs), [0, 1, 0])


def test_agreement_costs_nothing(x64):
  inputs = rule_oracles.rule_inputs(P, [0.1, 0.7, 0.1, 0.1], warp=GREEDY)
  for threshold in (-1.0, 0.0, 3.0):
    assert np.array_equal(np.exp(rules.Bild(rollback_threshold=threshold)(None, inputs).log_probs), np.eye(4)[1])


def test_an_unknown_discrepancy_is_refused():
  with pytest.raises(errors.ParamError, match='Bild.discrepancy'):
    rules.Bild(rollback_threshold=2.0, discrepancy='kl')
