"""Certificates: methods that follow their law pass, planted faults fail, and what has no oracle says so."""

from flax import struct
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax.core import checks
from specjax.core import types
from specjax.decode import pair as pair_lib
from specjax.decode import speculative
from specjax.evaluation import methods
from specjax.testing import certificate
from specjax.testing import exactness
from specjax.testing import part_oracles
from specjax.testing import toy

SAMPLING = checks.SamplingParams(temperature=1.0)


def method_of(name, **knob):
  return methods.lookup(name).build(knob, methods.Setting(2, 'rule', 'none'))


@struct.dataclass(kw_only=True)
class Halfway:
  """A rule of a user: half of each law."""

  truncates = 'output'
  needs_drafter_law = True
  is_lossless = False
  greedy_only = False
  knobs = ()

  def __call__(self, params, inputs):
    del params
    log_probs = jnp.logaddexp(inputs.drafter_log_probs, inputs.target_log_probs)
    log_probs = log_probs - jnp.log(jnp.asarray(2, log_probs.dtype))
    return types.Goal(log_probs, jnp.asarray(0.5, log_probs.dtype))


@pytest.fixture(scope='module')
def pair():
  toys = toy.toy_pair(vocab_size=12, seed=3, scale=0.5)
  params = {role: {name: value.astype(np.float32) for name, value in of.items()} for role, of in toys.params.items()}
  return pair_lib.Pair(target=toys.target, drafter=toys.drafter, params=params, family='decoder-only')


@pytest.mark.parametrize('name, knob', [
    ('speculative_block', {}), ('cascade_token_v3', {'threshold': 0.6}), ('lossy', {'lenience': 0.4}),
    ('token_cascade_chow', {'threshold': 0.5}), ('sequence_cascade_chow', {'threshold': -0.9}),
    ('bild', {'fallback_threshold': 0.5, 'rollback_threshold': 1.0})])
def test_a_shipped_method_is_exact_on_toys(name, knob):
  sampling = checks.SamplingParams(temperature=0.0) if name == 'bild' else SAMPLING
  found = certificate.enumerate_structure(method_of(name, **knob), family='decoder-only', sampling=sampling)
  assert found.holds and found.is_independent and found.configurations == 8, found


def test_every_method_of_a_sweep_has_an_oracle():
  toys = toy.toy_pair(vocab_size=3, seed=0)
  pair = pair_lib.Pair(target=toys.target, drafter=toys.drafter, params=toys.params, family='decoder-only')
  for method in methods.METHODS.values():
    if method.model == 'drafter' or method.needs:  # The toys have no layers to leave behind and no heads.
      continue
    values = method.thresholds[0] if method.thresholds else ()
    knob = dict(zip(method.knob_names, values if isinstance(values, tuple) else (values,)))
    decoder = method.build(knob, methods.Setting(2, 'rule', 'none'))(pair)
    rule = getattr(decoder, 'rule', None)
    assert rule is None or part_oracles.goal_of(rule)[1], method.name


@pytest.mark.parametrize('name', ['speculative_tree', 'speculative_tree_traversal', 'prompt_lookup'])
def test_a_drafting_method_is_exact_on_toys(name):
  method = methods.lookup(name).build({}, methods.Setting(1, 'rule', 'none'))
  found = certificate.enumerate_structure(method, family='decoder-only', sampling=SAMPLING, seeds=(1,))
  assert found.holds and found.is_independent and found.configurations == 4, found


def test_typical_acceptance_has_no_law_of_single_tokens():
  verifier = speculative.TypicalVerifier(epsilon=0.09, delta=0.3)
  decoder = specjax.speculative_tree(shape=(2,), verifier=verifier)(toy.toy_pair(vocab_size=3, seed=0))
  assert certificate.token_law(decoder) is None
  with pytest.raises(NotImplementedError, match='TypicalVerifier'):
    part_oracles.law_of(decoder, exactness.Oracle.of(
        [exactness.Request(prompt=(1,), max_new_tokens=2)], target=decoder.target, drafter=None,
        params=toy.toy_pair(vocab_size=3, seed=0).params), 0)


def test_a_rule_of_the_user_is_acted_out():
  found = certificate.enumerate_structure(
      specjax.speculative(num_draft_tokens=2, rule=Halfway()), family='encoder-decoder', sampling=SAMPLING, seeds=(1,))
  assert found.holds and not found.is_independent, found


def test_another_law_fails_the_enumeration_and_the_samples(pair, monkeypatch):
  """The oracle of another threshold: what certifies one law refutes its neighbour."""
  method = method_of('cascade_token_v3', threshold=0.6)
  monkeypatch.setitem(part_oracles._RULES, specjax.TokenV3, lambda rule: part_oracles.oracles.token_v3_goal(0.3))
  assert certificate.enumerate_structure(method, family='decoder-only', sampling=SAMPLING).largest_variation > 1e-3
  found = certificate.sample_pair(
      method, pair, [[1, 2, 3]], sampling=SAMPLING, num_tokens=4, num_samples=8192, seed=0, batch_size=1024)
  assert not found.holds, found


@pytest.mark.parametrize('name, knob, temperature', [
    ('speculative', {}, 1.0), ('cascade_token_v3', {'threshold': 0.6}, 1.0), ('autoregressive', {}, 1.0),
    ('token_cascade_chow', {'threshold': 0.7}, 1.0), ('speculative', {}, 0.0)])
def test_samples_of_a_pair_follow_the_law(pair, name, knob, temperature):
  found = certificate.sample_pair(
      method_of(name, **knob), pair, [[1, 2, 3], [5]], sampling=checks.SamplingParams(temperature=temperature),
      num_tokens=4, num_samples=8192, seed=0, batch_size=1024)
  assert found.holds, found
  assert found.cells >= (100 if temperature else 2) and (not temperature or found.seen_variation <= 0.1), found


def test_a_law_of_whole_answers_is_not_sampled(pair):
  found = certificate.sample_pair(
      method_of('sequence_cascade_chow', threshold=-0.5), pair, [[1]], sampling=SAMPLING, num_tokens=3, num_samples=8, seed=0)
  assert found is None


def test_bias_belongs_to_a_vocabulary():
  with pytest.raises(specjax.SpecjaxError, match='logit_bias'):
    certificate.enumerate_structure(
        method_of('speculative'), family='decoder-only',
        sampling=checks.SamplingParams(temperature=1.0, logit_bias={1: 2.0}))
