"""What holds for every exported rule with every static option: broken laws, massless tokens, large vocabularies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import rules
from specjax.testing import conformance
from specjax.testing import oracles
from specjax.testing import rule_oracles
from specjax.testing import toy


VARIANTS = conformance.rule_variants(rules)
named = pytest.mark.parametrize('name, options', VARIANTS, ids=[' '.join([n, *o.values()]) for n, o in VARIANTS])


def build(name, options, value=0.4):
  rule = getattr(rules, name)
  return rule(**{knob: value for knob in rule.knobs}, **options)


def params_of(rule, vocab_size):
  """A probe of the drafter's law for rules that read one."""
  return toy.linear_probe(np.linspace(-1, 1, vocab_size)) if getattr(rule, 'needs_drafter_features', False) else None


def test_all_variants_are_found():
  assert len(VARIANTS) == len(rules.__all__) + 1 + 2  # the other loss of Opt, the other residuals of LossySpeculative


@named
def test_metadata_is_complete(name, options):
  rule = build(name, options)
  assert rule.truncates in ('output', 'inputs') and isinstance(rule.needs_drafter_law, bool)
  assert isinstance(rule.greedy_only, bool) and isinstance(rule.is_lossless, bool)
  assert len(jax.tree.leaves(rule)) == len(rule.knobs)
  assert rule.is_lossless == (name == 'Lossless')
  assert rule.greedy_only == (name in ('Bild', 'LossyGreedy'))


@named
@pytest.mark.parametrize('value', [0.0, 0.4, 0.9])
def test_a_large_float32_law_stays_normalised(name, options, value):
  """V = 262,144: the total is off by rounding only, with laws that share little of their mass."""
  random = np.random.RandomState(0)
  rule = build(name, options, np.float32(value))
  for temperature in (1.0, 0.0):
    laws = [random.dirichlet(np.full(262144, concentration)) for concentration in (0.01, 1.0)]
    inputs = rule_oracles.rule_inputs(
        *laws, warp=oracles.Warp(temperature=temperature), truncates=rule.truncates, dtype=np.float32)
    goal = rule(params_of(rule, 262144), inputs)
    probs = np.exp(np.asarray(goal.log_probs, np.float64))
    assert goal.log_probs.dtype == jnp.float32 and np.all(probs >= 0)
    assert abs(probs.sum() - 1) < 2e-5, probs.sum()
    if temperature == 0:
      assert np.count_nonzero(probs) <= (2 if name == 'Mixture' else 1)


@named
@pytest.mark.parametrize('seed', range(4))
def test_no_token_without_mass_in_either_law_gets_any(name, options, seed, x64):
  random = np.random.RandomState(seed)
  target, drafter = random.dirichlet(np.ones(8), 2)
  target[[0, 1, 2]], drafter[[2, 3, 4]] = 0, 0
  target, drafter = target / target.sum(), drafter / drafter.sum()
  for warp in (oracles.Warp(), oracles.Warp(top_k=2), oracles.Warp(temperature=0.0)):
    rule = build(name, options)
    goal = rule(params_of(rule, 8), rule_oracles.rule_inputs(target, drafter, warp=warp, truncates=rule.truncates))
    probs = np.exp(np.asarray(goal.log_probs))
    assert probs.sum() == pytest.approx(1, abs=1e-12) and not np.isnan(goal.log_probs).any()
    assert probs[2] == 0 and np.all(probs[(target == 0) & (drafter == 0)] == 0)
    assert 0 <= float(goal.deferral) <= 1 + 1e-12


def broken_inputs(rule, which, warp):
  """Inputs in which the laws of one model, or of both, are NaN."""
  inputs = rule_oracles.rule_inputs([0.2, 0.5, 0.3], [0.6, 0.3, 0.1], warp=warp, truncates=rule.truncates)
  broken = {f'{model}{kind}_log_probs': jnp.full(3, jnp.nan) for model in which for kind in ('', '_truncated', '_plain')}
  return inputs.replace(**broken)


@named
@pytest.mark.parametrize('temperature', [0.0, 1.0])
@pytest.mark.parametrize('value', [0.0, 0.4, 0.9])
def test_a_broken_law_stays_broken(name, options, temperature, value, x64):
  """A goal that reads a NaN law is NaN: that is what stops the row. One that ignores it is untouched."""
  rule, warp = build(name, options, value), oracles.Warp(temperature=temperature)
  healthy = np.asarray(rule(params_of(rule, 3), broken_inputs(rule, (), warp)).log_probs)
  both = np.asarray(rule(params_of(rule, 3), broken_inputs(rule, ('drafter', 'target'), warp)).log_probs)
  assert np.isnan(both).all()
  drafter = np.asarray(rule(params_of(rule, 3), broken_inputs(rule, ('drafter',), warp)).log_probs)
  assert np.isnan(drafter).all() if rule.needs_drafter_law else np.array_equal(drafter, healthy)
  # A broken target stops its row by its logits; the goal is NaN or a whole law, never something between.
  target = np.asarray(rule(params_of(rule, 3), broken_inputs(rule, ('target',), warp)).log_probs)
  assert np.isnan(target).all() or np.exp(target).sum() == pytest.approx(1, abs=1e-12)
