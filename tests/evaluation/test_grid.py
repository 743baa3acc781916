"""Points of a sweep: ids apart, structures shared, orders balanced."""

import dataclasses
import hashlib
import json

import pytest

from specjax import rules
from specjax.core import checks
from specjax.core.errors import ConfigError, ParamError, SpecjaxError
from specjax.evaluation import grid
from specjax.evaluation import methods

AXES = dict(
    pairs=['gemma', 't5'], tasks=['synthetic'], methods=['autoregressive', 'speculative', 'cascade_chow'],
    thresholds={'cascade_chow': [0.1, 0.2]}, num_draft_tokens=[2, 4],
    samplings=[checks.SamplingParams(temperature=t) for t in (0.0, 1.0)], seeds=[0, 1], batch_sizes=[1, 8])


def _points(**changes):
  return [point for block in grid.blocks(**AXES | changes) for point in block.points]


def test_every_point_of_the_grid_has_its_own_id():
  points = _points()
  # Per block: 1 autoregressive, 2 draft lengths, 2 x 2 of the cascade.
  assert len(points) == 2 * 2 * 2 * 2 * (1 + 2 + 4)
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
  assert len(chow) == 16 and len({p.structure for p in chow}) == 2  # one per draft length


def test_integers_and_floats_of_one_value_are_one_point():
  a, b = _points(thresholds=[1])[-1], _points(thresholds=[1.0])[-1]
  assert a.point_id == b.point_id


def test_visits_go_forward_and_backward():
  block = grid.blocks(**AXES)[0]
  assert block.order(0) == block.points and block.order(1) == block.points[::-1] and block.order(2) == block.points


@pytest.mark.parametrize('changes, text', [
    (dict(methods=['speculativ']), "Did you mean 'speculative'"), (dict(pairs=[]), 'empty pairs'),
    (dict(thresholds={}), 'no value of threshold'), (dict(thresholds={'cascade_chw': [0.1]}), 'cascade_chw'),
    (dict(num_draft_tokens=[0]), 'num_draft_tokens'), (dict(num_draft_tokens=[True]), 'num_draft_tokens'),
    (dict(seeds=[-1]), 'seeds'), (dict(seeds=[2**32]), 'seeds'), (dict(batch_sizes=[0]), 'batch_sizes')])
def test_bad_axes_are_named(changes, text):
  with pytest.raises(SpecjaxError, match=text):
    grid.blocks(**AXES | changes)


def test_a_threshold_for_a_method_that_is_not_run_is_allowed_for_shared_blocks():
  assert grid.blocks(**AXES | dict(thresholds={'cascade_chow': [0.1], 'cascade_token_v3': [0.1]}))


def test_config_error_is_a_value_error():
  assert issubclass(ConfigError, ValueError)


def test_a_greedy_rule_above_temperature_0_is_refused_before_a_pair_is_loaded(monkeypatch):
  monkeypatch.setitem(methods.METHODS, 'greedy', methods.Method(
      'greedy', 'Greedy', 'a rule for temperature 0', rule='lossy_greedy', rule_type=rules.LossyGreedy, knob='lenience'))
  greedy = [checks.SamplingParams(temperature=0.0)]
  assert _points(methods=['greedy'], thresholds=[0.3], samplings=greedy)
  with pytest.raises(ParamError, match='temperature with the rule LossyGreedy: got 1.0'):
    _points(methods=['greedy'], thresholds=[0.3])
  with pytest.raises(ParamError, match=r'LossyGreedy.lenience: got 1.0, expected a number in \[0, 1\)'):
    _points(methods=['greedy'], thresholds=[0.3, 1.0], samplings=greedy)
