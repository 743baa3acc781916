"""The tables of latency gain at matched quality, on rows small enough to follow by hand."""

import pytest

from specjax.evaluation import aggregate
from specjax.evaluation import matched
from specjax.evaluation import table

SECONDS = {'autoregressive': 1.0, 'speculative': 0.5}


def _row(method, question, *, seconds, score, knob=(), seed=0):
  drafts = method not in ('autoregressive', 'autoregressive_drafter')
  return {
      'pair': 'gemma', 'task': 't', 'batch': 1, 'temperature': 1.0, 'top_p': 1.0, 'top_k': 0, 'min_p': 0.0,
      'method': method, 'rule': 'r', 'knob': dict(knob), 'num_draft_tokens': 4 if drafts else 0, 'verifier': None,
      'seed': seed, 'repeat': 0, 'question_id': f'q{question}', 'category': 'c', 'batch_index': question, 'batch_rows': 1,
      'point_id': method + str(knob), 'score': score, 'score_name': 's', 'error': None, 'prompt_tokens': [3],
      'target_passes': 1, 'draft_calls': 0, 'deferral': None, 'deferral_rate': None, 'equal_to_ar': None,
      'choices': [{'new_tokens': [10], 'wall_time': [seconds], 'prefill_time': [0.0], 'decode_time': [seconds],
                   'token_ids': [[1]], 'finish_reason': ['EOS']}],
      'steps': 1, 'emitted': 10, 'target_calls': 1, 'proposed': 0, 'evaluated': 0, 'accepted': 0,
      'drafted_by_position': [], 'evaluated_by_position': [], 'accepted_by_position': []}


def _rows(points, *, questions=40):
  """Rows of points (method, knob, seconds per question, number of right answers)."""
  return [_row(method, question, seconds=seconds * (1 + 0.1 * (question % 3)), score=float(question < right), knob=knob)
          for method, knob, seconds, right in points for question in range(questions)]


def _tables(points, **settings):
  rows = _rows(points, **settings)
  every = aggregate.all_series(rows, {})
  return {line.method: line for line in matched.tables(rows, every)}


CHOW = [('cascade_chow', (('threshold', t),), seconds, right)
        for t, seconds, right in ((0.1, 0.8, 40), (0.3, 0.4, 36), (0.5, 0.25, 30), (0.9, 0.2, 10))]
BASE = [('autoregressive', (), 1.0, 36), ('speculative', (), 0.5, 30)]


def test_gain_is_the_fastest_point_that_reaches_the_fraction():
  line = _tables(BASE + CHOW)['cascade_chow']
  estimates = {fraction: best.interval.estimate for fraction, best in line.gains.items()}
  assert estimates == pytest.approx({1.0: 2.5, 0.99: 2.5, 0.97: 2.5, 0.95: 2.5, 0.5: 4.0})
  assert dict(line.gains[1.0].series.knob) == {'threshold': 0.3} and dict(line.gains[0.5].series.knob) == {'threshold': 0.5}
  assert line.quality.interval.estimate == pytest.approx(1.0)  # threshold 0.1: slower than the others, not than the target


def test_intervals_include_the_choice_of_the_point():
  rows = [row | {'score': float(int(row['question_id'][1:]) >= 4)} if row['knob'] == {'threshold': 0.3} else row
          for row in _rows(BASE + CHOW)]
  best = {line.method: line for line in matched.tables(rows, aggregate.all_series(rows, {}))}['cascade_chow'].gains[1.0]
  # As many right answers as the target, to other questions: in many bootstrap samples a slower point must serve.
  assert best.interval.estimate == pytest.approx(2.5) and best.share == 1.0
  assert best.interval.low == pytest.approx(1.25) and best.interval.high == pytest.approx(2.5)


def test_a_lossless_method_has_the_quality_by_law():
  line = _tables(BASE + CHOW)['speculative']
  assert line.gains[1.0].interval.estimate == pytest.approx(2.0)  # though only 30 of its samples are right
  assert line.quality.interval.estimate == pytest.approx(0.75)


def test_a_method_that_never_reaches_the_fraction_has_no_gain():
  line = _tables(BASE + [('cascade_chow', (('threshold', 0.9),), 0.2, 10)])['cascade_chow']
  assert line.gains[1.0].interval.estimate is None and not line.gains[1.0].is_leading
  assert table.matched_cells(line)[1] == '-'


def test_a_point_that_rarely_qualifies_has_a_share_and_no_interval():
  points = [('autoregressive', (), 1.0, 36), ('cascade_chow', (('threshold', 0.5),), 0.5, 36)]
  best = _tables(points)['cascade_chow'].gains[1.0]
  assert best.interval.estimate == pytest.approx(2.0)  # the same questions are right: it always qualifies
  assert best.interval.low is not None
  rows = _rows([('autoregressive', (), 1.0, 20)])
  rows += [_row('cascade_chow', q, seconds=0.5, score=float(q >= 20), knob=(('threshold', 0.5),)) for q in range(40)]
  best = {line.method: line for line in matched.tables(rows, aggregate.all_series(rows, {}))}['cascade_chow'].gains[1.0]
  assert best.interval.low is None and 0.4 < best.share < 0.7
  assert 'reached in' in table.best_cell(best, unit='x')


def test_what_is_not_separated_from_the_best_leads_with_it():
  points = BASE + [('cascade_chow', (('threshold', 0.3),), 0.30, 40), ('cascade_diff', (('threshold', 0.1),), 0.30, 40),
                   ('cascade_opt', (('threshold', 0.1),), 0.6, 40)]
  lines = _tables(points)
  assert [lines[name].gains[1.0].is_leading for name in ('cascade_chow', 'cascade_diff', 'cascade_opt')] == [
      True, True, False]
  cells = {name: table.matched_cells(line)[1] for name, line in lines.items()}
  assert cells['cascade_chow'].endswith(' *') and not cells['cascade_opt'].endswith('*')


def test_unfinished_points_and_settings_without_scores_are_left_out():
  rows = _rows(BASE + CHOW[:1])
  assert set(line.method for line in matched.tables(rows[:-1], aggregate.all_series(rows[:-1], {}))) == {'speculative'}
  blank = [row | {'score': None} for row in rows]
  assert matched.tables(blank, aggregate.all_series(blank, {})) == []
  only = [row for row in rows if row['method'] == 'autoregressive']
  assert matched.tables(only, aggregate.all_series(only, {})) == []


def test_one_clock_reading_has_no_interval_and_ranks_nothing():
  rows = [row | {'batch': 40, 'batch_index': 0} for row in _rows(BASE + CHOW)]
  lines = matched.tables(rows, aggregate.all_series(rows, {}))
  assert lines and all(best.interval.low is None for line in lines for best in line.gains.values())
  assert all(best.is_leading for line in lines for best in line.gains.values() if best.interval.estimate is not None)


def test_json_names_the_point():
  found = _tables(BASE + CHOW)['cascade_chow'].as_json()
  assert found['gains']['0.5']['knob'] == {'threshold': 0.5} and found['gains']['1']['leading'] in (True, False)
  assert found['top_p'] == 1.0 and found['best_quality']['num_draft_tokens'] == 4
