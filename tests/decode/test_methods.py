"""Rules that are refused on the host, before anything compiles."""

import jax
import numpy as np
import pytest

import specjax
from specjax import routers
from specjax import rules
from specjax.core import errors
from specjax.decode import methods
from specjax.decode import recorders
from specjax.decode import run
from specjax.drafters import stopping
from specjax.models import gemma
from specjax.testing import exactness
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
  with pytest.raises(errors.ParamError, match=r'in \[0, 0.99999994\].*l is 1 - lenience'):
    methods.check_rule(rules.LossySpeculative(lenience=1.0, residual='mass_balance'))


@pytest.mark.parametrize('rule', [
    rules.LossySpeculative(lenience=0.0, residual='target'), rules.LossyGreedy(lenience=np.float32(0.999)),
    rules.Mixture(target_weight=1), rules.Opt(threshold=-100.0), rules.Diff(threshold=-1), rules.Bild(rollback_threshold=0)])
def test_a_knob_in_its_range_is_kept(rule):
  kept = methods.check_rule(rule)
  assert kept == rule and all(isinstance(getattr(kept, knob), float) for knob in rule.knobs)


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


@pytest.mark.parametrize('options, named', [
    (dict(verifier='block'), 'verifier'), (dict(bonus='target'), 'bonus'), (dict(max_draft_tokens=0), 'max_draft_tokens'),
    (dict(stopping=stopping.MaxProbability(threshold=0.5)), 'stopping')])
def test_options_without_effect_are_refused_without_drafts(options, named):
  with pytest.raises(errors.ParamError, match=f'num_draft_tokens with {named}'):
    specjax.speculative(num_draft_tokens=0, **options)


@pytest.mark.parametrize('options', [
    dict(verifier=['token']), dict(with_log_probs='no'), dict(recorder='summary'), dict(recorder=recorders.SummaryRecorder),
    dict(bonus=None)])
def test_parts_of_the_wrong_kind_are_refused(options):
  with pytest.raises(errors.ParamError):
    specjax.speculative(num_draft_tokens=2, **options)


def test_a_rate_outside_0_and_1_is_refused():
  with pytest.raises(errors.ParamError, match='RandomRouter.rate'):
    specjax.token_cascade(router=routers.RandomRouter(rate=7.0), chunk=2)


def test_an_array_of_one_number_is_a_number():
  assert methods.check_rule(rules.Chow(threshold=np.array(0.25))).threshold == 0.25


def test_integer_and_float_knobs_share_an_executable():
  pair = toy.toy_pair(vocab_size=5, seed=0)
  compiled = []
  for threshold in (0, 0.5, 1):
    specjax.generate(pair, [[1, 2]], method=specjax.speculative(num_draft_tokens=2, rule=rules.Chow(threshold=threshold)),
                     sampling=specjax.SamplingParams(temperature=1.0), max_new_tokens=4, seed=0)
    compiled.append(len(run.compile_log()))
  assert compiled[0] == compiled[-1]


def test_the_record_of_every_row_comes_back():
  pair = toy.toy_pair(vocab_size=5, seed=0)
  result = specjax.generate(
      pair, [[1, 2], [3], [4]], method=specjax.speculative(num_draft_tokens=2, recorder=recorders.SummaryRecorder()),
      sampling=specjax.SamplingParams(temperature=1.0), max_new_tokens=4, seed=0, batch_size=2)
  assert all(len(leaf) == 3 for leaf in jax.tree.leaves(result.record)) and jax.tree.leaves(result.record)


def test_the_truncated_target_gives_way_to_the_target_at_the_bonus_position():
  decoder = lambda bonus: specjax.speculative(
      num_draft_tokens=1, rule=rules.TruncatedTarget(threshold=0.0), bonus=bonus)(toy.toy_pair(vocab_size=4, seed=0))
  pair = toy.toy_pair(vocab_size=4, seed=0)
  laws = []
  for bonus in ('rule', 'target'):
    result = specjax.generate(
        pair, [[1]], method=decoder(bonus), sampling=specjax.SamplingParams(temperature=1.0), max_new_tokens=2, seed=0,
        num_samples=2048, batch_size=2048)
    laws.append(len({tuple(tokens.tolist()) for tokens in result.tokens}))
  assert laws[0] == 1 and laws[1] > 1  # Only best tokens, or any token behind an accepted one.


@pytest.mark.parametrize('options', [
    dict(stop_sequences=None), dict(stop_sequences=5), dict(stop_strings=None), dict(stop_strings=5)])
def test_stops_of_the_wrong_kind_are_refused(options):
  pair = toy.toy_pair(vocab_size=5, seed=0)
  with pytest.raises(errors.ParamError, match='stop_'):
    specjax.generate(pair, [[1]], method=specjax.autoregressive(), sampling=specjax.SamplingParams(temperature=1.0),
                     max_new_tokens=2, seed=0, **options)


@pytest.mark.parametrize('num_layers', [0, 3, True, 1.5])
def test_early_exit_behind_no_layer_of_the_target_is_refused(num_layers):
  target = gemma.DecoderLM(gemma.DecoderConfig(
      vocab_size=7, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4,
      layer_kinds=(gemma.GLOBAL, gemma.GLOBAL), activation='gelu'))
  pair = specjax.Pair(target=target, drafter=target, params={'target': {}, 'drafter': {}}, family='decoder-only')
  with pytest.raises(errors.ParamError, match='num_layers'):
    specjax.early_exit(num_layers=num_layers, num_draft_tokens=2)(pair)


def test_early_exit_of_a_model_without_layers_is_refused():
  with pytest.raises(errors.ParamError, match="early_exit of the target: got 'ToyLM'"):
    specjax.early_exit(num_layers=1, num_draft_tokens=2)(toy.toy_pair(vocab_size=5, seed=0))


def test_early_exit_of_all_layers_accepts_everything_and_shares_the_arrays():
  target = gemma.DecoderLM(gemma.DecoderConfig(
      vocab_size=7, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4,
      layer_kinds=(gemma.GLOBAL, gemma.GLOBAL), activation='gelu'))
  params = exactness.random_params(target, 0, dtype=np.float32)
  pair = specjax.Pair(target=target, drafter=target, params={'target': params, 'drafter': {}}, family='decoder-only')
  run_with = lambda num_layers: specjax.generate(
      pair, [[1, 2, 3], [4]], method=specjax.early_exit(num_layers=num_layers, num_draft_tokens=3),
      sampling=specjax.SamplingParams(temperature=1.0), max_new_tokens=12, seed=0, eos_ids=())
  whole, first = run_with(2), run_with(1)
  assert np.all(whole.stats.target_calls == 3) and np.all(first.stats.target_calls > 3)
