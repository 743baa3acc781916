"""The tables of latency gain at matched quality, on rows small enough to follow by hand."""

import numpy as np
import pytest
from scipy import special

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


def _simulated(generator, *, points, questions, seeds, quality=0.7):
  """(estimate, interval covers) of the best of some points of one true quality, twice as fast as the target."""
  shared = generator.normal(size=(1, questions, 1))
  luck = 0.6**0.5 * shared + 0.4**0.5 * generator.normal(size=(1 + points, questions, seeds))
  scores = (luck < special.ndtri(quality)).sum(axis=-1).astype(float)
  seconds = np.ones((1 + points, 8))
  seconds[1:] /= 2
  half = lambda size: np.arange(size) % 2
  found = matched.Points(
      matched.Totals(np.ones_like(seconds), seconds, scores, np.full_like(scores, seeds), half(8), half(questions)),
      resamples=400)
  figures, = matched.cross_fitted(found.quality, found.speedup >= 1, found.quality)
  interval = matched.interval_of(figures, found.quality_scale, limits=found.score_range)
  return interval.estimate, interval.low <= quality <= interval.high


@pytest.mark.parametrize('points, questions, seeds', [(8, 64, 1), (18, 64, 1), (18, 16, 3)])
def test_the_best_of_equal_points_is_estimated_without_bias_and_covered(points, questions, seeds):
  # The largest quality itself is 0.06 to 0.2 too large; a percentile interval of it covers 0.017 (8 points), 0.000 (18).
  generator = np.random.default_rng(points + questions)
  estimates, covered = zip(*(_simulated(generator, points=points, questions=questions, seeds=seeds) for _ in range(200)))
  assert abs(np.mean(estimates) - 0.7) < 0.01 and np.mean(covered) >= 0.88


def test_a_method_that_is_always_right_is_not_certain_to_be():
  lines = _tables([('autoregressive', (), 1.0, 40), ('speculative', (), 0.5, 40)])
  assert lines['speculative'].quality.interval == pytest.approx((1.0, 40 / (40 + 1.96**2), 1.0), abs=1e-4)


def test_halves_share_every_category_and_do_not_depend_on_order():
  strata = {f'q{number}': 'math' if number % 5 else 'code' for number in range(40)}
  found = matched.halves(strata)
  assert found == matched.halves(dict(reversed(strata.items())))
  for name in ('math', 'code'):
    sides = [found[unit] for unit in strata if strata[unit] == name]
    assert abs(sum(sides) - len(sides) / 2) <= 0.5
  assert [found[f'q{number}'] for number in range(40)] != [number % 2 for number in range(40)]


def test_times_are_split_where_each_half_has_three_groups():
  rows = _rows([('autoregressive', (), 1.0, 36)])
  alone = matched.totals_of([rows])
  assert sorted(alone.group_half) == sorted(alone.question_half) == [0] * 20 + [1] * 20
  for size, is_split in ((8, False), (6, True)):
    batched = matched.totals_of([[row | {'batch': size, 'batch_index': row['batch_index'] // size} for row in rows]])
    assert (batched.group_half is not None) == is_split and abs(int(batched.question_half.sum()) - 20) <= 4


def test_what_is_reported_had_no_part_in_the_choice():
  # One point is right on one half alone, the other one on the other half: each half chooses what is worth nothing elsewhere.
  values = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
  figures, chosen_with = matched.cross_fitted(values, np.ones_like(values, bool), values, values[::-1])
  assert figures == [0.0] and chosen_with == [1.0]
  nowhere, = matched.cross_fitted(values, values > 2, values)
  half, = matched.cross_fitted(values, np.array([[[True, True]], [[False, False]]]), values)
  assert np.isnan(nowhere) and np.isnan(half)


def test_gain_says_what_quality_its_points_keep_where_they_were_not_chosen():
  line = _tables(BASE + CHOW)
  assert line['cascade_chow'].gains[0.5].kept.estimate == pytest.approx(30 / 36, abs=0.05)
  assert line['speculative'].gains[0.5].kept.estimate is None  # by law
  assert line['cascade_chow'].quality.kept.estimate is None
  assert 'keeps 8' in table.matched_cells(line['cascade_chow'])[5]


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
  half = matched.halves({f'q{number}': 'c' for number in range(40)})
  rank = {name: place for side in (0, 1) for place, name in enumerate(name for name in half if half[name] == side)}
  rows = _rows([('autoregressive', (), 1.0, 0)], questions=40)
  rows = [row | {'score': float(rank[row['question_id']] < 10)} for row in rows]
  rows += [_row('cascade_chow', q, seconds=0.5, score=float(rank[f'q{q}'] >= 10), knob=(('threshold', 0.5),))
           for q in range(40)]
  # As many right answers as the target on both halves, to other questions.
  best = {line.method: line for line in matched.tables(rows, aggregate.all_series(rows, {}))}['cascade_chow'].gains[1.0]
  assert best.interval.estimate == pytest.approx(1.0975 / 0.5)
  assert best.interval.low is None and 0.15 < best.share < 0.5
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
