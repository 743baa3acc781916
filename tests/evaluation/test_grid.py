"""Points of a sweep: ids apart, structures shared, orders balanced."""

import dataclasses
import hashlib
import json

import pytest

from specjax.core import checks
from specjax.core.errors import ConfigError, SpecjaxError
from specjax.evaluation import grid
from specjax.evaluation import methods as methods_lib

AXES = dict(
    pairs=['gemma', 't5'], tasks=['synthetic'], methods=['autoregressive', 'speculative', 'cascade_chow'],
    thresholds={'cascade_chow': [0.1, 0.2]}, num_draft_tokens=[2, 4],
    samplings=[checks.SamplingParams(temperature=t) for t in (0.0, 1.0)], seeds=[0, 1], batch_sizes=[1, 8])


def _points(**changes):
  return [point for block in grid.blocks(**AXES | changes) for point in block.points]


def test_every_point_of_the_grid_has_its_own_id():
  points = _points()
  # Per block: 1 autoregressive, 2 draft lengths, 2 x 2 of the cascade; temperature 0 with one seed, 1 with two.
  assert len(points) == 2 * 2 * (1 + 2) * (1 + 2 + 4)
  assert len({point.point_id for point in points}) == len(points)


def test_point_id_is_the_hash_of_the_canonical_json():
  point = _points()[-1]
  expected = {
      'method': 'cascade_chow', 'rule': 'chow', 'knob': {'threshold': 0.2}, 'num_draft_tokens': 4, 'verifier': 'token',
      'sampling': {'temperature': 1.0, 'top_p': 1.0, 'top_k': 0, 'min_p': 0.0}, 'seed': 1, 'batch': 8, 'pair': 't5',
      'task': 'synthetic'}
  text = json.dumps(expected, sort_keys=True, separators=(',', ':'))
  assert point.point_id == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize('change', [
    dict(pair='x'), dict(task='x'), dict(method='x'), dict(rule='x'), dict(knob=(('threshold', 0.3),)),
    dict(num_draft_tokens=5), dict(verifier='block'), dict(seed=7), dict(batch=3),
    dict(sampling=checks.SamplingParams(temperature=0.5)),
    dict(sampling=checks.SamplingParams(temperature=1.0, top_k=3))])
def test_each_part_of_a_point_changes_its_id(change):
  point = _points()[-1]
  assert dataclasses.replace(point, **change).point_id != point.point_id


def test_thresholds_and_temperatures_share_a_structure():
  chow = [p for p in _points() if p.method == 'cascade_chow' and p.pair == 't5' and p.batch == 8]
  assert len(chow) == 12 and len({p.structure for p in chow}) == 2  # one per draft length


def test_integers_and_floats_of_one_value_are_one_point():
  a, b = _points(thresholds=[1])[-1], _points(thresholds=[1.0])[-1]
  assert a.point_id == b.point_id


def test_visits_go_forward_and_backward():
  block = grid.blocks(**AXES)[0]
  assert block.order(0) == block.points and block.order(1) == block.points[::-1] and block.order(2) == block.points


@pytest.mark.parametrize('changes, text', [
    (dict(methods=['speculativ']), "Did you mean 'speculative'"), (dict(pairs=[]), 'empty pairs'),
    (dict(thresholds=[(0.1, 0.2)]), 'knobs of cascade_chow'), (dict(thresholds={'cascade_chw': [0.1]}), 'cascade_chw'),
    (dict(methods=['bild'], thresholds=[0.5]), r'expected \(fallback_threshold, rollback_threshold\)'),
    (dict(methods=['lossy'], thresholds=[0.5, 1.0]), r'LossySpeculative.lenience: got 1.0, expected a number in \[0, 0.99999994'),
    (dict(methods=['cascade_mixture'], thresholds=[1.5]), 'Mixture.target_weight'),
    (dict(greedy_methods=['bild']), "'bild' is not among methods"),
    (dict(num_draft_tokens=[0]), 'num_draft_tokens'), (dict(num_draft_tokens=[True]), 'num_draft_tokens'),
    (dict(seeds=[-1]), 'seeds'), (dict(seeds=[2**32]), 'seeds'), (dict(batch_sizes=[0]), 'batch_sizes')])
def test_bad_axes_are_named(changes, text):
  with pytest.raises(SpecjaxError, match=text):
    grid.blocks(**AXES | changes)


def test_a_threshold_for_a_method_that_is_not_run_is_allowed_for_shared_blocks():
  assert grid.blocks(**AXES | dict(thresholds={'cascade_chow': [0.1], 'cascade_token_v3': [0.1]}))


def test_every_method_brings_a_sweep_along_that_its_rule_accepts():
  for method in methods_lib.METHODS.values():
    found = grid.knob_values(method, {})
    assert len(found) >= 6 if method.knobs else found == [()]
    assert all(tuple(name for name, _ in knob) == method.knob_names for knob in found)
    for knob in found:
      for (_, value), of in zip(knob, method.knobs, strict=True):
        assert of.low <= value <= of.high


def test_thresholds_of_other_methods_leave_the_own_sweep():
  chow = methods_lib.lookup('cascade_chow')
  assert grid.knob_values(chow, {'cascade_token_v3': [0.5]}) == grid.knob_values(chow, [])
  assert grid.knob_values(chow, {'cascade_chow': [0.5, 0.5]}) == [(('threshold', 0.5),)]
  assert grid.knob_values(methods_lib.lookup('bild'), {'bild': [(0.5, 3)]}) == [
      (('fallback_threshold', 0.5), ('rollback_threshold', 3.0))]


def test_temperature_0_has_one_top_p_and_says_so(caplog):
  with caplog.at_level('INFO', logger='specjax.eval'):
    found = grid.samplings(temperatures=[0.0, 1.0, 0.5], top_p=[0.25, 1.0], top_k=0, min_p=0.0)
  assert [(s.temperature, s.top_p) for s in found] == [(0.0, 1.0), (1.0, 0.25), (1.0, 1.0), (0.5, 0.25), (0.5, 1.0)]
  assert [r.getMessage() for r in caplog.records] == [
      'temperature 0 is run once, untruncated: top_p [0.25, 1.0], top_k 0 and min_p 0 have no effect there']


def test_temperature_0_has_one_seed_and_says_so_once(caplog):
  with caplog.at_level('INFO', logger='specjax.eval'):
    points = _points(seeds=[7, 3, 7])
  assert {p.seed for p in points if p.sampling.temperature == 0} == {7}
  assert {p.seed for p in points if p.sampling.temperature == 1} == {7, 3}
  assert [r.getMessage() for r in caplog.records] == [
      'temperature 0 is run with seed 7 only: seeds change no greedy token']


def test_greedy_only_methods_are_left_out_above_0_with_a_line_each(caplog):
  with caplog.at_level('INFO', logger='specjax.eval'):
    points = _points(methods=['autoregressive', 'bild', 'lossy_greedy'], thresholds={}, seeds=[0], batch_sizes=[1])
  assert {(p.method, p.sampling.temperature) for p in points} == {
      ('autoregressive', 0.0), ('autoregressive', 1.0), ('bild', 0.0), ('lossy_greedy', 0.0)}
  assert [r.getMessage() for r in caplog.records] == [
      f'{name} exists at temperature 0 only: left out at 1' for name in ('bild', 'lossy_greedy')]


def test_a_method_without_a_point_is_refused():
  warm = [checks.SamplingParams(temperature=1.0)]
  with pytest.raises(ConfigError, match=r'no point of bild is left.*it exists at 0 only'):
    _points(methods=['autoregressive', 'bild'], thresholds={}, samplings=warm)
  with pytest.raises(ConfigError, match='no point of speculative is left'):
    _points(samplings=[checks.SamplingParams(temperature=0.0)], greedy_methods=['autoregressive', 'cascade_chow'])


def test_greedy_methods_choose_what_is_run_at_0(caplog):
  with caplog.at_level('INFO', logger='specjax.eval'):
    points = _points(greedy_methods=['autoregressive', 'speculative'], seeds=[0], batch_sizes=[1])
  assert {p.method for p in points if p.sampling.temperature == 0} == {'autoregressive', 'speculative'}
  assert 'cascade_chow' in {p.method for p in points if p.sampling.temperature == 1}
  assert [r.getMessage() for r in caplog.records] == [
      'cascade_chow is not among greedy_methods: left out at temperature 0']


def test_what_drafts_nothing_is_not_multiplied_by_draft_lengths():
  points = _points(methods=['autoregressive', 'token_cascade_chow', 'speculative_block'], thresholds=[0.3], seeds=[0],
                   pairs=['t5'], batch_sizes=[1], samplings=AXES['samplings'][:1])
  assert [(p.method, p.num_draft_tokens, p.verifier) for p in points] == [
      ('autoregressive', 0, None), ('token_cascade_chow', 0, None), ('speculative_block', 2, 'block'),
      ('speculative_block', 4, 'block')]


def test_knob_scales_are_increasing_and_invert():
  for method in methods_lib.METHODS.values():
    for knob in method.knobs:
      low, high = knob.coordinate(knob.low), knob.coordinate(knob.high)
      values = [knob.value(low + (high - low) * i / 16) for i in range(17)]
      assert values == sorted(values) and values[0] == pytest.approx(knob.low) and values[-1] == pytest.approx(knob.high)
      assert [knob.value(knob.coordinate(value)) for value in values] == pytest.approx(values, abs=1e-12)


def test_config_error_is_a_value_error():
  assert issubclass(ConfigError, ValueError)
