"""The weight of a refinement: found on some prompts, measured on others, weight 0 being no refinement."""

import json

import pytest

import test_runner
from specjax.core.errors import ConfigError
from specjax.evaluation import calibrate
from specjax.evaluation import methods
from specjax.evaluation import rescoring_weight


def settings(path, **changes):
  return dict(
      what='rescoring_weight', method='blockwise_local', pair='small', task='synthetic', deferral_rate=None, quality_floor=None,
      calibration_samples=4, held_back_samples=4, num_draft_tokens=3, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0,
      batch_size=4, max_new_tokens=10, dtype='float32', bonus='rule', split='validation', data_seed=0, output_path=str(path),
      load_runner=lambda name, **options: test_runner._runner('decoder-only', with_parts=True, **options)) | changes


class Hill:
  """A decoder whose tokens per call are highest at one weight; the texts are as long whatever the weight."""

  def __init__(self, top):
    self.top, self.calibration, self.held_back, self.asked = top, ['a', 'b', 'c'], ['d', 'e', 'f', 'g'], []

  def rows(self, name, knob, asked):
    weight = knob[0][1]
    self.asked.append((weight, tuple(asked)))
    knob = methods.lookup(name).knobs[0]
    distance = abs(knob.coordinate(weight) - knob.coordinate(self.top))
    return [dict(question_id=question, emitted=100, target_calls=50 + 10 * distance + number)
            for number, question in enumerate(asked)]


@pytest.mark.parametrize('top', [0.0, 0.3, 2.0, 16.0])
def test_the_top_of_a_hill_is_found_and_measured_on_other_prompts(top):
  decoder, method = Hill(top), methods.lookup('blockwise_local')
  result = rescoring_weight.search(decoder, method)
  knob = method.knobs[0]
  assert abs(knob.coordinate(result['knob']['weight']) - knob.coordinate(top)) <= (
      knob.coordinate(knob.high) / (rescoring_weight.COARSE - 1) / 2**rescoring_weight.REFINEMENTS)
  assert {asked for weight, asked in decoder.asked[:-2]} == {('a', 'b', 'c')}
  assert [asked for weight, asked in decoder.asked[-2:]] == [('d', 'e', 'f', 'g')] * 2
  gain = result['held_back']['gain']
  assert gain['low'] <= gain['estimate'] <= gain['high'] and (gain['estimate'] > 1) == (top > 0)
  weights = [one['weight'] for one in result['curve']]
  assert weights == sorted(weights) and weights[0] == 0 and weights[-1] == pytest.approx(16)
  assert len({weight for weight, _ in decoder.asked[:-2]}) == len(decoder.asked) - 2  # each once


def test_where_no_weight_helps_the_smallest_is_kept():
  class Flat(Hill):
    def rows(self, name, knob, asked):
      return [dict(question_id=question, emitted=100, target_calls=50) for question in asked]

  assert rescoring_weight.search(Flat(1.0), methods.lookup('blockwise_2gram'))['knob'] == {'weight': 0.0}


def test_a_weight_is_calibrated_on_a_pair_and_written(tmp_path):
  result = calibrate.calibrate(**settings(tmp_path))
  kept = json.loads((tmp_path / 'calibration.json').read_text())
  assert kept['knob'] == result['knob'] and kept['held_back']['prompts'] == 4 and result['holds']
  told = calibrate.text(result)
  assert 'weight = ' in told and 'held back: ' in told and 'without refinement' in told


@pytest.mark.parametrize('changes, text', [
    (dict(method='cascade_chow'), 'cascade_chow has no rescoring weight.*blockwise_local'),
    (dict(deferral_rate=0.3), 'deferral_rate with what=rescoring_weight'), (dict(what='weight'), 'rescoring_weight'),
    (dict(what='threshold', deferral_rate=0.3), 'blockwise_local defers nothing')])
def test_what_has_no_weight_is_refused(tmp_path, changes, text):
  with pytest.raises(ConfigError, match=text):
    calibrate.calibrate(**settings(tmp_path, **changes))
