"""Rows: the schema, the field's names, and what Spec-Bench's script makes of them."""

import json

import numpy as np
import pytest

import fake_runner
from specjax.core import checks
from specjax.core import types
from specjax.evaluation import grid
from specjax.evaluation import row_log
from specjax.evaluation import rows
from specjax.metrics import efficiency
from specjax.metrics import scores
from specjax.tasks import synthetic

# Fields of every row.
FIELDS = {
    'question_id', 'category', 'answer_id', 'model_id', 'tstamp', 'choices', 'prompt_tokens', 'cached_tokens',
    'prompt_sha256', 'mean_acceptance_length', 'draft_acceptance_rate', 'acceptance_histogram', 'per_step', 'steps',
    'proposed', 'evaluated', 'accepted', 'emitted', 'deferral', 'acceptance_rate', 'overlap', 'block_efficiency',
    'acceptance_per_pos_cond', 'acceptance_per_pos_uncond', 'deferral_rate', 'rejection_rate', 'tv_to_target',
    'kl_to_target', 'knob', 'score', 'score_name', 'reference_id', 'filtered_answer', 'equal_to_ar', 'first_diff',
    'diff_cause', 'method', 'num_draft_tokens', 'temperature', 'top_p', 'top_k', 'min_p', 'seed', 'batch',
    'concurrency', 'run_id', 'point_id', 'repeat', 'error', 'row_version'}
CHOICE_FIELDS = {
    'index', 'turns', 'decoding_steps', 'new_tokens', 'wall_time', 'accept_lengths', 'proposed', 'drafter_ids',
    'finish_reason', 'token_ids', 'logprobs', 'ttft', 'prefill_time', 'decode_time', 'time_draft', 'time_verify',
    'time_other', 'target_calls', 'draft_calls'}


def _points(methods=('autoregressive', 'speculative', 'cascade_chow')):
  return grid.blocks(
      pairs=['gemma'], tasks=['synthetic'], methods=list(methods), thresholds=[0.3], num_draft_tokens=[4],
      samplings=[checks.SamplingParams(temperature=0.0)], seeds=[0], batch_sizes=[4])[0].points


def _rows(point, count=4, *, detail='none', change=None):
  runner = fake_runner.FakeRunner('gemma', detail=detail)
  asked = [rows.Question(e.id, e.domain, runner.encode(e), i, e)
           for i, e in enumerate(synthetic.examples('test', count))]
  generation = runner.generate(point, asked, runner.shape(asked, max_new_tokens=24, points=[point]))
  if change is not None:
    generation = generation._replace(collected=generation.collected._replace(record=change(generation.collected.record)))
  return [rows.build(
      run_id='r', point=point, answers=[rows.Answer(question, generation, row, count, f'answer {row} x')], repeat=0,
      batch_index=0, scores=scores.Scores(1.0), score_name='accuracy', model_id=runner.model_id)
          for row, question in enumerate(asked)], generation


@pytest.mark.parametrize('point', _points(), ids=lambda p: p.method)
def test_every_field_of_the_schema_is_there(point):
  built, _ = _rows(point)
  for row in built:
    assert FIELDS <= row.keys()
    assert CHOICE_FIELDS <= row['choices'][0].keys()
    assert json.loads(row_log.encode_line(row))['question_id'] == row['question_id']


def test_times_of_a_batch_are_shared_equally():
  built, generation = _rows(_points()[1])
  wall = [row['choices'][0]['wall_time'][0] for row in built]
  assert sum(wall) == pytest.approx(generation.prefill_seconds + generation.decode_seconds)
  assert len(set(wall)) == 1
  assert sum(row['choices'][0]['prefill_time'][0] for row in built) == pytest.approx(generation.prefill_seconds)


def test_counters_agree_with_the_lists_of_a_choice():
  for row in _rows(_points()[2])[0]:
    choice = row['choices'][0]
    assert len(choice['accept_lengths']) == choice['decoding_steps'][0] == row['steps']
    assert sum(choice['accept_lengths']) == row['steps'] + row['accepted']
    assert choice['proposed'] == [4] * row['steps'] and row['proposed'] == 4 * row['steps']
    assert choice['new_tokens'] == [row['emitted']] == [len(choice['token_ids'][0])]
    assert row['acceptance_per_pos_uncond'][0] == row['accepted_by_position'][0] / row['steps']
    assert rows.counts_of(row).accepted == row['accepted']
    assert row['target_passes'] >= row['target_calls']


def test_autoregressive_rows_have_accept_lengths_of_one():
  for row in _rows(_points()[0])[0]:
    assert set(row['choices'][0]['accept_lengths']) == {1}
    assert row['mean_acceptance_length'] == 1.0 and row['acceptance_rate'] is None
    assert row['rule'] is None and row['verifier'] is None and row['knob'] == {}


def _spec_bench(answers, baseline, count_tokens):
  """What Spec-Bench's evaluation/speed.py computes, restated: mean of per-question rates, mean of accept_lengths."""
  rates = [sum(row['choices'][0]['new_tokens']) / sum(row['choices'][0]['wall_time']) for row in answers]
  lengths = [n for row in answers for n in row['choices'][0]['accept_lengths']]
  old = [sum(count_tokens(turn) - 1 for turn in row['choices'][0]['turns']) / sum(row['choices'][0]['wall_time'])
         for row in baseline]
  return np.mean(rates) / np.mean(old), np.mean(lengths)


def test_spec_bench_reads_the_rows_of_a_point():
  ours, _ = _rows(_points()[1])
  baseline, _ = _rows(_points()[0])
  ours, baseline = json.loads(json.dumps(ours)), json.loads(json.dumps(baseline))
  speedup, length = _spec_bench(ours, baseline, lambda text: len(text.split()))
  assert speedup > 0
  counts = efficiency.sum_counts(rows.counts_of(row) for row in ours)
  assert length == pytest.approx(efficiency.mean_acceptance_length(counts))
  assert {row['category'] for row in ours} == set(synthetic.DOMAINS)


@pytest.mark.parametrize('method', ['speculative', 'cascade_chow', 'lossy'])
def test_recorded_sums_become_means_over_evaluated_drafts(method):
  point = _points((method,))[0]
  for row in _rows(point, detail='summary')[0]:
    assert row['deferral'] == pytest.approx(row['deferral_rate'] * row['evaluated'], rel=1e-6)
    assert row['overlap'] == pytest.approx(0.6) and 0 <= row['tv_goal_drafter'] <= 1
    assert row['tv_to_target'] is not None and row['kl_to_target'] is not None
  for row in _rows(point)[0]:
    assert {row[name] for name in ('deferral', 'deferral_rate', 'overlap', 'tv_to_target', 'kl_to_target')} == {None}


def test_infinite_divergence_is_null():
  point = _points(('cascade_chow',))[0]
  infinite = lambda record: record._replace(kl_to_target=record.kl_to_target + np.inf)
  row = _rows(point, detail='summary', change=infinite)[0][0]
  assert row['kl_to_target'] is None and row['tv_to_target'] is not None
  json.loads(row_log.encode_line(row))


def test_deferral_of_a_cascade_of_two_models_needs_no_recorder():
  for row in _rows(_points(('token_cascade_chow',))[0])[0]:
    assert row['deferral'] == row['target_calls'] and row['deferral_rate'] == row['target_calls'] / row['emitted']
    assert row['rejection_rate'] is None and row['verifier'] is None and row['rule'] == 'chow'
  for row in _rows(_points(('sequence_cascade_chow',))[0])[0]:
    assert row['deferral'] == row['deferral_rate'] == (row['target_calls'] > 0)


def test_agreement_names_only_known_causes():
  never = lambda position: pytest.fail('asked for a tie')
  compare = lambda a, b, lossless=True, is_tie=never: tuple(
      rows.agreement(a, b, lossless=lossless, is_tie=is_tie).values())
  assert compare([1, 2], [1, 2]) == (True, None, 'none') == compare([1, 2], [1, 2], lossless=False)
  assert compare([1, 3, 4], [1, 2, 4], lossless=False) == (False, 1, 'lossy')
  asked = []
  assert compare([1, 3, 4], [1, 2, 4], is_tie=lambda i: asked.append(i) or True) == (False, 1, 'tie') and asked == [1]
  assert compare([1, 3, 4], [1, 2, 4], is_tie=lambda i: False) == (False, 1, None)
  assert compare([1, 2], [1, 2, 4]) == (False, 2, None)  # one ends early: no token to compare


def test_broken_row_keeps_its_place_with_an_error():
  point = _points()[0]
  runner = fake_runner.FakeRunner('gemma')
  example = synthetic.examples('test', 1)[0]
  question = rows.Question(example.id, example.domain, runner.encode(example), 0, example)
  made = runner.generate(point, [question], runner.shape([question], max_new_tokens=24, points=[point]))
  made.collected.status[0] = types.Status.NONFINITE
  row = rows.build(
      run_id='r', point=point, answers=[rows.Answer(question, made, 0, 1, '')], repeat=0, batch_index=0,
      scores=scores.Scores(0.0), score_name='accuracy', model_id='m')
  assert row['error'] == {'class': 'LogitsError', 'message': f'target logits are not finite: example {example.id}'}
  assert row['choices'][0]['finish_reason'] == ['NONFINITE']


def test_numbers_that_json_cannot_hold_become_null():
  assert rows.finite({'a': [float('nan'), 1.5], 'b': float('inf'), 'c': (2,)}) == {'a': [None, 1.5], 'b': None, 'c': [2]}
