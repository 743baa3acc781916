"""Lossy verification: the hand tables, the closed forms, the procedures they come from, and the balance of masses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import rules
from specjax.core import errors
from specjax.ops import acceptance
from specjax.rules import lossy
from specjax.testing import oracles
from specjax.testing import rule_oracles

P, Q = rule_oracles.EXAMPLE_TARGET, rule_oracles.EXAMPLE_DRAFTER
RESIDUALS = ('difference', 'mass_balance', 'target')
LENIENCES = (0.0, 0.05, 0.3, 0.5, 0.9, 0.999)


def law_of(rule, inputs):
  goal = rule(None, inputs)
  return np.exp(np.asarray(goal.log_probs)), float(goal.deferral)


def lossy_inputs(target, drafter, **options):
  return rule_oracles.rule_inputs(target, drafter, truncates='inputs', **options)


def random_laws(vocab_size, *, count, seed=0):
  """Pairs of laws, peaked and flat, with common support, partly common support and none."""
  random = np.random.RandomState(seed)
  for i in range(count):
    target, drafter = random.dirichlet(np.full(vocab_size, (0.05, 0.3, 2.0)[i % 3]), 2)
    if i % 4:
      target[random.rand(vocab_size) < 0.3] = 0
      drafter[random.rand(vocab_size) < 0.3] = 0
    if i % 11 == 5:
      target[vocab_size // 2:], drafter[:vocab_size // 2] = 0, 0
    if target.sum() > 0 and drafter.sum() > 0:
      yield target / target.sum(), drafter / drafter.sum()


def test_acceptance_of_the_worked_example():
  accept = rule_oracles.relaxed_acceptance(P, Q, 0.5)
  np.testing.assert_allclose(accept, [0.52, 1, 1, 1], atol=1e-12)
  np.testing.assert_allclose(Q * accept, [0.26, 0.25, 0.15, 0.10], atol=1e-12)
  assert rule_oracles.lossy_rejection(P, Q, 0.5) == pytest.approx(0.24, abs=1e-12)


@pytest.mark.parametrize('residual, drawn, goal', [
    ('difference', [0, 0.840909, 0, 0.159091], [0.26, 0.451818, 0.15, 0.138182]),
    ('mass_balance', [0, 0.887658, 0, 0.112342], [0.26, 0.463038, 0.15, 0.126962]),
    ('target', P, [0.2912, 0.3988, 0.1692, 0.1408])])
def test_residual_and_goal_of_the_worked_example(residual, drawn, goal, x64):
  inputs = lossy_inputs(P, Q)
  found, rejected = law_of(rules.LossySpeculative(lenience=0.5, residual=residual), inputs)
  np.testing.assert_allclose(found, goal, atol=1e-6)
  assert rejected == pytest.approx(0.24, abs=1e-12)
  np.testing.assert_allclose((found - [0.26, 0.25, 0.15, 0.10]) / 0.24, drawn, atol=1e-6)
  accept = np.asarray(acceptance.accept_probability(np.log(found), inputs.drafter_log_probs))
  rest = np.asarray(acceptance.residual_probs(found, Q))
  if residual == 'target':  # the law alone is the procedure's: it rejects less
    assert rule_oracles.total_variation(found, Q) == pytest.approx(0.2088, abs=1e-12) and accept[0] > 0.52
  else:
    assert rule_oracles.total_variation(found, Q) == pytest.approx(0.24, abs=1e-12)
    np.testing.assert_allclose(accept, [0.52, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(rest / rest.sum(), drawn, atol=1e-6)


def test_delta_and_beta_of_the_worked_example(x64):
  """Delta by both formulas; the three regimes are tokens 0 (p / l), 2 (q) and 1, 3 (q + Delta (p - q)); the max form."""
  rejected, distance = 0.24, 0.44
  delta = (0.5 * np.abs(Q - P / 0.5).sum() + 0.5 - 1 / (2 * 0.5)) / distance
  assert delta == pytest.approx(rejected / distance, abs=1e-12) and delta == pytest.approx(0.545455, abs=1e-6)
  found, _ = law_of(rules.LossySpeculative(lenience=0.5, residual='difference'), lossy_inputs(P, Q))
  regimes = np.where(Q <= P, Q + delta * (P - Q), np.where(Q <= P / 0.5, Q, P / 0.5))
  np.testing.assert_allclose(found, regimes, atol=1e-12)
  inverse = float(lossy.inverse_beta(jnp.asarray(Q), jnp.asarray(P), jnp.asarray(rejected)))
  assert 1 / inverse == pytest.approx(1.338983, abs=1e-6)
  found, _ = law_of(rules.LossySpeculative(lenience=0.5, residual='mass_balance'), lossy_inputs(P, Q))
  np.testing.assert_allclose(found, np.maximum(np.minimum(Q, P / 0.5), P * inverse), atol=1e-12)


def test_truncating_the_goal_instead_of_its_inputs_changes_even_the_support(x64):
  warp, rule = oracles.Warp(top_p=0.8), rules.LossySpeculative(lenience=0.5, residual='difference')
  found, _ = law_of(rule, lossy_inputs(P, Q, warp=warp))
  np.testing.assert_allclose(found, [0.282609, 0.577556, 0, 0.139835], atol=1e-6)
  wrong = warp.truncated(law_of(rule, rule_oracles.rule_inputs(P, Q, warp=warp))[0])
  np.testing.assert_allclose(wrong, [0.301688, 0.524262, 0.174051, 0], atol=1e-6)


@pytest.mark.parametrize('residual', RESIDUALS)
@pytest.mark.parametrize('lenience', LENIENCES)
def test_goal_is_the_law_of_the_procedure(residual, lenience, x64):
  rule = jax.jit(lambda inputs: rules.LossySpeculative(lenience=lenience, residual=residual)(None, inputs))
  for target, drafter in random_laws(13, count=60):
    found, rejected = law_of(lambda _, inputs: rule(inputs), lossy_inputs(target, drafter))
    np.testing.assert_allclose(found, rule_oracles.lossy_law(target, drafter, lenience, residual), atol=1e-13)
    assert found.sum() == pytest.approx(1, abs=1e-13)
    assert rejected == pytest.approx(rule_oracles.lossy_rejection(target, drafter, lenience), abs=1e-13)
    rejection = rule_oracles.total_variation(found, drafter)
    if residual == 'target':
      assert rejection <= rejected + 1e-13
    else:
      assert rejection == pytest.approx(rejected, abs=1e-13)


@pytest.mark.parametrize('lenience', LENIENCES)
def test_balance_is_exact_and_beta_at_least_1(lenience, x64):
  solve = jax.jit(lossy.inverse_beta)
  for target, drafter in random_laws(40, count=60, seed=1):
    rejected = rule_oracles.lossy_rejection(target, drafter, lenience)
    inverse = float(solve(drafter, target, rejected))
    balance = np.clip(target * inverse - drafter, 0, None).sum()
    if rejected > 0:
      assert balance == pytest.approx(rejected, abs=1e-13) and inverse <= 1 + 1e-13
    else:
      assert balance <= 1e-13


@pytest.mark.parametrize('residual', ['difference', 'mass_balance'])
def test_lenience_0_is_lossless(residual, x64):
  for target, drafter in random_laws(9, count=20, seed=2):
    found, _ = law_of(rules.LossySpeculative(lenience=0.0, residual=residual), lossy_inputs(target, drafter))
    np.testing.assert_allclose(found, target, atol=1e-13)


def test_residual_of_the_target_is_not_lossless_at_lenience_0(x64):
  found, _ = law_of(rules.LossySpeculative(lenience=0.0, residual='target'), lossy_inputs(P, Q))
  np.testing.assert_allclose(found, np.minimum(P, Q) + 0.44 * P, atol=1e-12)
  assert rule_oracles.total_variation(found, P) == pytest.approx(0.0972, abs=1e-12)


@pytest.mark.parametrize('residual', RESIDUALS)
def test_equal_laws_stay_and_disjoint_laws_become_the_target(residual, x64):
  rule = rules.LossySpeculative(lenience=0.3, residual=residual)
  found, rejected = law_of(rule, lossy_inputs(P, P))
  np.testing.assert_allclose(found, P, atol=1e-15)
  assert rejected == 0
  found, rejected = law_of(rule, lossy_inputs([0.0, 0.4, 0.6, 0.0], [0.7, 0.0, 0.0, 0.3]))
  np.testing.assert_allclose(found, [0, 0.4, 0.6, 0], atol=1e-15)
  assert rejected == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize('residual', RESIDUALS)
def test_every_lenience_is_lossless_at_temperature_0(residual, x64):
  """The relaxed ratio of two one-hot laws is 0 or more than 1."""
  inputs = lossy_inputs(P, Q, warp=oracles.Warp(temperature=0.0))
  found, _ = law_of(rules.LossySpeculative(lenience=0.9, residual=residual), inputs)
  assert np.array_equal(found, np.eye(4)[1])


def test_newton_needs_few_steps_on_a_large_vocabulary():
  """The number of passes over 65,536 tokens, counted by taking them by hand."""
  random = np.random.RandomState(3)
  drafter, target = random.dirichlet(np.full(65536, 0.1), 2)
  rejected = rule_oracles.lossy_rejection(target, drafter, 0.5)
  scale, previous, passes = 1 + rejected, np.inf, 0
  while scale < previous:
    above, previous, passes = scale * target > drafter, scale, passes + 1
    scale = (rejected + drafter[above].sum()) / target[above].sum()
  assert passes <= 20
  with jax.enable_x64(True):
    assert float(lossy.inverse_beta(drafter, target, rejected)) == pytest.approx(previous, abs=1e-12)


@pytest.mark.parametrize('draft, stays', [(0, False), (1, True), (2, False), (3, False)])
def test_greedy_version_of_the_worked_example(draft, stays, x64):
  """At lenience 0.5 the bound is 0.31: of all draft tokens only 1 stays, any other is replaced by 1."""
  drafter = np.full(4, 0.1)
  drafter[draft] = 0.7
  inputs = rule_oracles.rule_inputs(P, drafter, warp=oracles.Warp(temperature=0.0))
  found, deferral = law_of(rules.LossyGreedy(lenience=0.5), inputs)
  assert np.array_equal(found, np.eye(4)[1]) and deferral == (not stays)


@pytest.mark.parametrize('lenience, stays', [(0.72, False), (0.73, True), (0.0, False), (0.79, True)])
def test_greedy_version_keeps_what_is_near_the_targets_best(lenience, stays, x64):
  """Draft token 3 has 0.17 / 0.62 = 0.2742 of the best."""
  inputs = rule_oracles.rule_inputs(P, [0.1, 0.1, 0.1, 0.7], warp=oracles.Warp(temperature=0.0))
  found, _ = law_of(rules.LossyGreedy(lenience=lenience), inputs)
  assert np.array_equal(found, np.eye(4)[3 if stays else 1])
  token_rule, _ = law_of(rules.TokenV3(threshold=lenience), inputs)
  assert np.array_equal(found, token_rule)


def test_residual_is_named_by_the_caller():
  with pytest.raises(TypeError, match='residual'):
    rules.LossySpeculative(lenience=0.3)
  with pytest.raises(errors.ParamError, match="LossySpeculative.residual: got 'p'"):
    rules.LossySpeculative(lenience=0.3, residual='p')
