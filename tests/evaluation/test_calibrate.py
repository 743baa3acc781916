"""Calibration: the threshold for a share to defer or of quality to keep, found by bisection, checked on other prompts."""

import functools
import json
import math
import os
import signal

import numpy as np
import pytest

import fake_runner
from specjax.core.errors import ConfigError, ParamError, SpecjaxError
from specjax.evaluation import calibrate
from specjax.evaluation import interrupts
from specjax.evaluation import methods
from specjax.evaluation import sweep
from specjax.evaluation import task_sources


def _settings(path, **changes):
  small = dict(
      what='threshold', method='cascade_chow', pair='gemma', task='synthetic', deferral_rate=0.3, quality_floor=None,
      calibration_samples=24, held_back_samples=24, num_draft_tokens=4, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0,
      seed=0, batch_size=8, max_new_tokens=24, dtype='float32', bonus='rule', split='validation', data_seed=0,
      output_path=str(path), load_runner=fake_runner.FakeRunner)
  return small | changes


ONE_KNOB = [name for name, method in methods.METHODS.items() if len(method.knobs) == 1 and method.defers]


@pytest.mark.parametrize('name', [name for name in ONE_KNOB if name != 'truncated_target'])
def test_every_method_with_one_knob_hits_the_rate(tmp_path, name):
  method = methods.lookup(name)
  goal = 0.3 if name != 'sequence_cascade_chow' else 0.5
  result = calibrate.calibrate(**_settings(
      tmp_path, method=name, deferral_rate=goal, temperature=0.0 if method.greedy_only else 1.0))
  assert result['holds'] and abs(result['calibration']['deferral_rate'] - goal) < 0.05
  low, high = result['attainable_deferral_rate']
  assert low <= goal <= high and result['level'] == method.execution
  values = [list(point.values())[0] for point in result['curve']]
  assert values == sorted(values) and len(set(values)) == len(values)
  assert values[0] == pytest.approx(method.knobs[0].low) and values[-1] == pytest.approx(method.knobs[0].high)


def test_the_file_holds_what_was_found_and_is_never_half_written(tmp_path):
  result = calibrate.calibrate(**_settings(tmp_path))
  kept = json.loads((tmp_path / 'calibration.json').read_text())
  assert [path.name for path in tmp_path.iterdir()] == ['calibration.json']
  assert kept['knob'] == result['knob'] and kept['held_back']['prompts'] == 24 and kept['config']['deferral_rate'] == 0.3
  assert kept['pair']['checkpoint_sha256'] == 'cd' and kept['session']['git'].keys() == {'commit', 'dirty'}
  with pytest.raises(ConfigError, match='a calibration is there'):
    calibrate.calibrate(**_settings(tmp_path))
  calibrate.calibrate(**_settings(tmp_path, overwrite=True))


def test_held_back_prompts_are_others(tmp_path):
  asked = []

  class Listening(fake_runner.FakeRunner):
    def generate(self, point, questions, shape):
      asked.append((point.knob, [question.id for question in questions], [question.index for question in questions]))
      return super().generate(point, questions, shape)

  result = calibrate.calibrate(**_settings(tmp_path, load_runner=Listening))
  found = tuple(result['knob'].items())
  last = {one for knob, ids, _ in asked[-3:] for one in ids}
  assert all(knob == found for knob, _, _ in asked[-3:])
  searched = {one for knob, ids, _ in asked[:-3] for one in ids}
  assert len(searched) == len(last) == 24 and not searched & last
  indices = [index for _, _, numbers in (*asked[:3], *asked[-3:]) for index in numbers]
  assert indices == list(range(48))  # no random number is used for two prompts


def test_a_rate_outside_the_range_names_the_nearest(tmp_path):
  with pytest.raises(ParamError, match='a rate that it can attain, 1.0000 to 1.0000. The nearest is 1.0000') as error:
    calibrate.calibrate(**_settings(tmp_path, method='truncated_target'))
  assert error.value.got == 0.3 and not (tmp_path / 'calibration.json').exists()


def test_a_rate_that_is_jumped_over_names_both_sides(tmp_path):
  class Stepping(fake_runner.FakeRunner):
    def _law(self, point):
      rate, quality, _ = super()._law(point)
      return rate, quality, 0.1 if dict(point.knob)['threshold'] > 0.25 else 0.9

  with pytest.raises(ParamError, match=r'it jumps from 0\.\d+ at threshold = 0.25\d* to 0\.\d+ at threshold = 0.2[45]') as error:
    calibrate.calibrate(**_settings(tmp_path, deferral_rate=0.5, load_runner=Stepping))
  assert 'The nearest is' in str(error.value) and not (tmp_path / 'calibration.json').exists()


def test_quality_floor_finds_the_least_deferral_that_keeps_it(tmp_path):
  result = calibrate.calibrate(**_settings(
      tmp_path, deferral_rate=None, quality_floor=0.9, calibration_samples=200, held_back_samples=200, batch_size=40))
  curve = sorted(result['curve'], key=lambda point: point['deferral_rate'])
  chosen = result['calibration']
  floor = 0.9 * _target_quality(200)
  assert chosen['quality'] >= floor
  below = [point for point in curve if point['deferral_rate'] < chosen['deferral_rate'] - 1e-9]
  assert below and below[-1]['quality'] < floor and chosen['deferral_rate'] - below[-1]['deferral_rate'] < 0.01
  held = result['held_back']
  assert held['quality_fraction'] == pytest.approx(held['quality'] / held['target_quality'])
  assert result['holds'] and held['quality_difference']['low'] < 0


def _target_quality(count):
  task = task_sources.load('synthetic', split='validation', count=count, seed=0)
  runner = fake_runner.FakeRunner('gemma')
  luck = [np.random.default_rng(runner.address('gemma', question.id, 'luck')).random()
          for question in sweep.ask(task.examples, runner)]
  return np.mean(np.array(luck) < fake_runner.TARGET_QUALITY)


def test_a_quality_that_is_never_reached_names_the_best(tmp_path):
  with pytest.raises(ParamError, match='expected a quality that it reaches, at most'):
    calibrate.calibrate(**_settings(tmp_path, deferral_rate=None, quality_floor=1.4))


@pytest.mark.parametrize('changes, text', [
    (dict(deferral_rate=None), 'exactly one of --deferral_rate and --quality_floor'),
    (dict(quality_floor=0.9), 'exactly one'),
    (dict(what='classifier'), 'one of threshold'), (dict(method='bild'), 'bild has 2 knobs'),
    (dict(method='speculative'), 'speculative has 0 knobs'), (dict(deferral_rate=1.2), 'deferral_rate'),
    (dict(method='bild_star'), 'greedy only'), (dict(method='cascade_cho'), "Did you mean 'cascade_chow'"),
    (dict(held_back_samples=1), 'held_back_samples'), (dict(temperature=-1.0), 'temperature')])
def test_what_cannot_be_calibrated_is_refused_before_a_pair_is_loaded(tmp_path, changes, text):
  def load(*args, **settings):
    pytest.fail('loaded')
  with pytest.raises(SpecjaxError, match=text):
    calibrate.calibrate(**_settings(tmp_path / 'out', load_runner=load, **changes))
  assert not (tmp_path / 'out').exists()


def test_another_value_that_compiles_is_refused(tmp_path):
  class Compiling(fake_runner.FakeRunner):
    def __init__(self, *args, **settings):
      super().__init__(*args, **settings)
      self.late_compiles = True

  with pytest.raises(SpecjaxError, match='another value of the knob compiled'):
    calibrate.calibrate(**_settings(tmp_path, load_runner=Compiling))


def test_prompts_are_clusters():
  # 100 prompts that defer all of their 10 tokens or none: 1,000 decisions, no more than 100 independent ones.
  together = np.array([(10.0 * (i < 30), 10.0) for i in range(100)])
  rate = calibrate.cluster_rate(together)
  assert rate.estimate == pytest.approx(0.3) and rate.decisions == 1000 and rate.prompts == 100
  assert rate.effective_sample == pytest.approx(99.0, rel=1e-6)
  assert rate.high - rate.low == pytest.approx(2 * 1.96 * (0.21 / 99) ** 0.5, rel=0.05)
  # Independent decisions count in full, and a rate without spread as one per prompt.
  generator = np.random.default_rng(3)
  apart = np.stack([generator.binomial(50, 0.3, 400), np.full(400, 50)], axis=1).astype(float)
  assert 0.75 < calibrate.cluster_rate(apart).effective_sample / 20_000 <= 1.0
  assert calibrate.cluster_rate(np.array([(5.0, 5.0)] * 20)).effective_sample == 20


def test_interval_of_a_clustered_rate_covers():
  # Prompts with rates of their own (beta-binomial): 95 % intervals over 400 replicas; 4 standard errors of slack.
  generator, covered = np.random.default_rng(7), 0
  for _ in range(400):
    rates = generator.beta(1.5, 3.5, 80)
    totals = np.stack([generator.binomial(40, rates), np.full(80, 40)], axis=1).astype(float)
    found = calibrate.cluster_rate(totals)
    covered += found.low <= 0.3 <= found.high
  assert covered / 400 > 0.95 - 4 * (0.95 * 0.05 / 400) ** 0.5


def test_text_says_range_threshold_and_effective_sample(tmp_path):
  text = calibrate.text(calibrate.calibrate(**_settings(tmp_path)))
  for part in ('attainable deferral rate: 0.0000 to 1.0000 of evaluated drafts', 'threshold = ',
               'held back: deferral rate 0.', 'independent ones', 'the goal is'):
    assert part in text


@pytest.mark.parametrize('low, high, outcome', [
    (-0.05, 0.02, 'met'), (-0.1, 0.0, 'met'), (-0.15, 0.05, 'not refuted'), (-0.2, -0.1, 'not refuted'),
    (-0.3, -0.11, 'missed'), (None, None, 'not refuted')])
def test_a_goal_is_met_only_where_all_of_the_interval_lies_within_it(low, high, outcome):
  assert calibrate._judged(low, high, -0.1, math.inf) == {'outcome': outcome, 'holds': outcome != 'missed'}


def test_a_rate_may_be_off_on_either_side():
  outcomes = [calibrate._judged(low, high, 0.28, 0.32)['outcome']
              for low, high in ((0.29, 0.31), (0.2, 0.3), (0.33, 0.4), (0.1, 0.27))]
  assert outcomes == ['met', 'not refuted', 'missed', 'missed']


def test_what_is_missed_on_held_back_prompts_does_not_hold(tmp_path):
  class Worse(fake_runner.FakeRunner):
    """Wrong on every held-back prompt but for the target alone."""

    def generate(self, point, questions, shape):
      self.is_wrong = questions[0].index >= 200 and bool(point.knob)
      return super().generate(point, questions, shape)

    def text(self, token_ids):
      return 'wrong' if self.is_wrong else super().text(token_ids)

  result = calibrate.calibrate(**_settings(
      tmp_path, deferral_rate=None, quality_floor=0.9, calibration_samples=200, held_back_samples=40, batch_size=40,
      load_runner=Worse))
  assert result['outcome'] == 'missed' and result['holds'] is False
  assert 'THE GOAL IS MISSED' in calibrate.text(result)


def test_ctrl_c_writes_nothing(tmp_path):
  calls = []

  def interrupt(point):
    calls.append(point)
    if len(calls) == 5:
      os.kill(os.getpid(), signal.SIGINT)

  with pytest.raises(interrupts.Stopped):
    calibrate.calibrate(**_settings(
        tmp_path / 'out', load_runner=functools.partial(fake_runner.FakeRunner, before_generate=interrupt)))
  assert not (tmp_path / 'out').exists()
