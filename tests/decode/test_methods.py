"""Rules that are refused on the host, before anything compiles."""

import numpy as np
import pytest

import specjax
from specjax import rules
from specjax.core import errors
from specjax.decode import methods
from specjax.decode import run
from specjax.testing import toy

GREEDY_RULES = [rules.Bild(rollback_threshold=2.0), rules.LossyGreedy(lenience=0.3)]


@pytest.mark.parametrize('rule, named', [
    (rules.LossySpeculative(lenience=1.0, residual='difference'), 'LossySpeculative.lenience'),
    (rules.LossySpeculative(lenience=-0.1, residual='target'), 'LossySpeculative.lenience'),
    (rules.LossyGreedy(lenience=1), 'LossyGreedy.lenience'), (rules.LossyGreedy(lenience=np.nan), 'LossyGreedy.lenience'),
    (rules.Mixture(target_weight=1.01), 'Mixture.target_weight'), (rules.Mixture(target_weight=-0.01), 'target_weight'),
    (rules.Diff(threshold=np.inf), 'Diff.threshold'), (rules.Opt(threshold=np.nan), 'Opt.threshold'),
    (rules.TokenV1(threshold='0.3'), 'TokenV1.threshold'), (rules.Bild(rollback_threshold=-np.inf), 'rollback_threshold'),
    (rules.TruncatedTarget(threshold=True), 'TruncatedTarget.threshold')])
def test_a_knob_out_of_its_range_is_refused(rule, named):
  with pytest.raises(errors.ParamError, match=named) as caught:
    specjax.speculative(num_draft_tokens=2, rule=rule)
  assert caught.value.expected.startswith('a number in') and caught.value.got is not None


def test_lenience_of_1_is_explained():
  with pytest.raises(errors.ParamError, match=r'in \[0, 1\).*l is 1 - lenience'):
    methods.check_rule(rules.LossySpeculative(lenience=1.0, residual='mass_balance'))


@pytest.mark.parametrize('rule', [
    rules.LossySpeculative(lenience=0.0, residual='target'), rules.LossyGreedy(lenience=np.float32(0.999)),
    rules.Mixture(target_weight=1), rules.Opt(threshold=-100.0), rules.Diff(threshold=-1), rules.Bild(rollback_threshold=0)])
def test_a_knob_in_its_range_is_kept(rule):
  assert methods.check_rule(rule) is rule


@pytest.mark.parametrize('rule', GREEDY_RULES)
@pytest.mark.parametrize('call', [
    lambda *args, **kwargs: specjax.generate(*args, **kwargs), lambda *args, **kwargs: next(specjax.stream(*args, **kwargs))])
def test_a_greedy_rule_above_temperature_0_is_refused_before_compilation(rule, call):
  pair = toy.toy_pair(vocab_size=5, seed=0)
  compiled = len(run.compile_log())
  with pytest.raises(errors.ParamError, match=f'{type(rule).__name__}: got 0.5, expected 0') as caught:
    call(pair, [[1, 2]], method=specjax.speculative(num_draft_tokens=2, rule=rule),
         sampling=specjax.SamplingParams(temperature=0.5), max_new_tokens=4, seed=0)
  assert 'temperature' in caught.value.what and 'temperature=0' in caught.value.fix
  assert len(run.compile_log()) == compiled


@pytest.mark.parametrize('rule', [rules.Lossless(), rules.Mixture(target_weight=0.5), *GREEDY_RULES])
def test_temperature_0_suits_every_rule(rule):
  methods.check_sampling(rule, specjax.SamplingParams(temperature=0.0))
