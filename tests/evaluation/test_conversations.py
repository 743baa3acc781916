"""Questions with several turns through `evaluate`: one row each, lists by turn, the model's own answer in the context."""

import json

import pytest

import fake_runner
from specjax.evaluation import evaluate
from specjax.evaluation import report
from specjax.evaluation import row_log
from specjax.pairs import builtin
from specjax.tasks import prompts

RECORDS = [{'question_id': 81, 'category': 'writing', 'turns': ['Write a poem.', 'Shorten it.']},
           {'question_id': 161, 'category': 'translation', 'turns': ['Translate: ja'], 'reference': ['yes']},
           {'question_id': 82, 'category': 'writing', 'turns': ['Name a river.', 'Why?', 'Go on.']}]


@pytest.fixture
def rows(tmp_path):
  return _run(tmp_path, fake_runner.FakeRunner)


def _run(tmp_path, load_runner, **changes):
  folder = tmp_path / 'data' / 'spec_bench'
  folder.mkdir(parents=True)
  (folder / 'test.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in RECORDS))
  evaluate.evaluate(**fake_runner.settings(
      tasks=['spec_bench'], methods=['autoregressive', 'speculative'], data_dir=str(tmp_path / 'data'), split='test',
      output_path=str(tmp_path / 'out'), load_runner=load_runner, batch_sizes=[2], **changes))
  return row_log.read(tmp_path / 'out' / 'rows.jsonl')[0]


def test_one_row_a_question_with_lists_by_turn(rows):
  assert sorted(row['question_id'] for row in rows) == ['161', '161', '81', '81', '82', '82']
  for row in rows:
    turns = {'81': 2, '161': 1, '82': 3}[row['question_id']]
    choice = row['choices'][0]
    for name in ('turns', 'decoding_steps', 'new_tokens', 'wall_time', 'finish_reason', 'token_ids', 'target_calls'):
      assert len(choice[name]) == turns
    assert len(row['prompt_tokens']) == turns and row['category'] in ('writing', 'translation')
    assert sum(choice['new_tokens']) == row['emitted'] and sum(choice['decoding_steps']) == row['steps']
    assert len(choice['accept_lengths']) == row['steps'] and row['score'] is None


def test_a_prompt_holds_the_turns_and_answers_before_it(rows):
  for row in rows:
    lengths, made = row['prompt_tokens'], row['choices'][0]['new_tokens']
    assert all(later >= earlier + new for earlier, later, new in zip(lengths, lengths[1:], made))


def test_greedy_rows_are_compared_over_all_turns(rows):
  compared = [row for row in rows if row['method'] == 'speculative']
  assert len(compared) == 3 and all(row['equal_to_ar'] for row in compared)


def test_report_and_totals_count_every_turn(rows, tmp_path):
  written = report.write(tmp_path / 'out')
  series = next(s for s in written.series if s.method == 'speculative')
  mine = [row for row in rows if row['method'] == 'speculative']
  assert series.tokens == sum(sum(row['choices'][0]['new_tokens']) for row in mine)
  assert series.seconds == pytest.approx(sum(sum(row['choices'][0]['wall_time']) for row in mine))
  assert series.quality.estimate is None


def test_follow_up_prompts_of_both_families():
  tokenizer = builtin.load_pair('gemma').tokenizer
  ask, answer, turn = (tokenizer.encode(text) for text in ('12+7?', '19', 'and 3?'))
  first = [tokenizer.bos_id, *ask, tokenizer.separator_id]
  assert prompts.follow_up(first, [*answer, tokenizer.eos_id], turn, tokenizer, 'decoder-only') == [
      *first, *answer, tokenizer.eos_id, *turn, tokenizer.separator_id]
  assert prompts.follow_up([*ask, tokenizer.eos_id], answer, turn, tokenizer, 'encoder-decoder') == [
      *ask, *answer, *turn, tokenizer.eos_id]


@pytest.mark.nightly
@pytest.mark.parametrize('pair', ['gemma', 't5'])
def test_conversations_with_a_real_pair(tmp_path, pair):
  from specjax.evaluation import runner
  rows = _run(tmp_path, runner.load_runner, pairs=[pair], max_new_tokens=12)
  assert all(row['equal_to_ar'] is not False for row in rows) and len(rows) == 6
