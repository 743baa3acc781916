"""Exports as their readers read them: Spec-Bench's speed figures, vLLM's counters, the columns of vllm-project/speculators."""

import csv
import dataclasses
import itertools
import json
import re

import numpy as np
import pytest

import fake_runner
from specjax.core.errors import ConfigError
from specjax.evaluation import aggregate
from specjax.evaluation import evaluate
from specjax.evaluation import exports
from specjax.evaluation import output
from specjax.evaluation import row_log

QUESTIONS = [
    {'question_id': 81, 'category': 'writing', 'turns': ['Write a poem.', 'Shorten it.']},
    {'question_id': 101, 'category': 'reasoning', 'turns': ['Who is first?', 'Why?']},
    {'question_id': 161, 'category': 'translation', 'turns': ['Translate: ja'], 'reference': ['yes']},
    {'question_id': 241, 'category': 'summarization', 'turns': ['Summarize: x']},
    {'question_id': 321, 'category': 'qa', 'turns': ['Who?']},
    {'question_id': 401, 'category': 'math_reasoning', 'turns': ['1 + 1?']},
    {'question_id': 441, 'category': 'rag', 'turns': ['What does it say?']}]
MT_BENCH = ('writing', 'roleplay', 'reasoning', 'math', 'coding', 'extraction', 'stem', 'humanities')
SUBTASKS = ('mt_bench', 'translation', 'summarization', 'qa', 'math_reasoning', 'rag', 'overall')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run of Spec-Bench's questions: its directory and rows."""
  path = tmp_path_factory.mktemp('exports')
  folder = path / 'data' / 'spec_bench'
  folder.mkdir(parents=True)
  (folder / 'test.jsonl').write_text(''.join(json.dumps(question) + '\n' for question in QUESTIONS))
  evaluate.evaluate(**fake_runner.settings(
      tasks=['spec_bench'], methods=['autoregressive', 'speculative', 'cascade_chow'], thresholds=[0.5], batch_sizes=[1],
      data_dir=str(path / 'data'), temperatures=[0.0, 1.0], repeats=2, output_path=str(path / 'out')))
  return path / 'out', row_log.read(path / 'out' / output.ROWS)[0]


@pytest.fixture(scope='module')
def every(finished):
  return aggregate.all_series(finished[1], output.read_run(finished[0]))


def spec_bench_figures(path, base_path, task, count_tokens):
  """(mean accept length, tokens/s, baseline's tokens/s, ratio), by Spec-Bench's reading of two files of answers."""
  def choices(name):
    for line in name.read_text('utf-8').splitlines():
      answer = json.loads(line)
      is_in = answer['category'] in MT_BENCH if task == 'mt_bench' else answer['category'] == task
      if task == 'overall' or is_in:
        yield answer['choices'][0]

  ours = list(choices(path))
  rates = [sum(choice['new_tokens']) / sum(choice['wall_time']) for choice in ours]
  lengths = list(itertools.chain.from_iterable(choice['accept_lengths'] for choice in ours))
  # The baseline's tokens are counted from its texts, less the one that a tokenizer puts in front.
  old = [sum(count_tokens(turn) - 1 for turn in choice['turns']) / sum(choice['wall_time']) for choice in choices(base_path)]
  return np.mean(lengths), np.mean(rates), np.mean(old), np.mean(rates) / np.mean(old)


def test_spec_bench_reads_every_file_as_what_was_measured(finished):
  path, rows = finished
  index = exports.write_spec_bench(path)
  assert len(index) == 2 * 2 * 3 and {line['method'] for line in index} == {'autoregressive', 'speculative', 'cascade_chow'}
  count_tokens = lambda text: 2 + len(text)  # one in front, and none of these texts without any
  for line, task in itertools.product(index, SUBTASKS):
    setting = ('method', 'temperature', 'repeat')
    mine = [row for row in rows if all(row[name] == line[name] for name in setting)]
    theirs = [row for row in rows if row['method'] == 'autoregressive' and all(row[n] == line[n] for n in setting[1:])]
    is_in = {'overall': lambda row: True, 'mt_bench': lambda row: row['category'] in ('writing', 'reasoning')}.get(
        task, lambda row: row['category'] == task)
    mine, theirs = ([row for row in found if is_in(row)] for found in (mine, theirs))
    seconds = lambda row: sum(row['choices'][0]['wall_time'])
    rate = np.mean([row['emitted'] / seconds(row) for row in mine])
    old = np.mean([sum(1 + len(turn) for turn in row['choices'][0]['turns']) / seconds(row) for row in theirs])
    length = 1 + sum(row['accepted'] for row in mine) / sum(row['steps'] for row in mine)
    got = spec_bench_figures(path / 'spec_bench' / line['file'], path / 'spec_bench' / line['baseline'], task, count_tokens)
    assert got == pytest.approx((length, rate, old, rate / old)), (line, task)


def test_spec_bench_files_hold_its_fields_and_no_others(finished):
  path, _ = finished
  for line in exports.write_spec_bench(path):
    answers = [json.loads(text) for text in (path / 'spec_bench' / line['file']).read_text().splitlines()]
    assert sorted(answer['question_id'] for answer in answers) == [question['question_id'] for question in QUESTIONS]
    for answer in answers:
      assert answer.keys() == {'question_id', 'category', 'answer_id', 'model_id', 'choices', 'tstamp'}
      choice, = answer['choices']
      assert choice.keys() == {'index', 'turns', 'decoding_steps', 'new_tokens', 'wall_time', 'accept_lengths'}
      turns = next(len(q['turns']) for q in QUESTIONS if q['question_id'] == answer['question_id'])
      assert all(len(choice[name]) == turns for name in ('turns', 'decoding_steps', 'new_tokens', 'wall_time'))
      assert sum(choice['decoding_steps']) == len(choice['accept_lengths']) and all(t > 0 for t in choice['wall_time'])


def test_spec_bench_index_names_the_baseline_of_the_same_run(finished):
  path, _ = finished
  exports.write_spec_bench(path)
  with open(path / 'spec_bench' / 'index.csv', newline='') as file:
    lines = {line['file']: line for line in csv.DictReader(file)}
  for line in lines.values():
    baseline = lines[line['baseline']]
    assert baseline['method'] == 'autoregressive'
    assert all(line[name] == baseline[name] for name in ('pair', 'temperature', 'seed', 'repeat', 'batch'))


def test_spec_bench_of_no_run_is_refused_and_writes_nothing(tmp_path):
  with pytest.raises(ConfigError, match='no results'):
    exports.write_spec_bench(tmp_path)
  assert not list(tmp_path.iterdir())


def read_exposition(text):
  """{(name, labels): value} of Prometheus' text format."""
  label = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
  unescape = lambda value: re.sub(r'\\(.)', lambda match: {'n': '\n'}.get(match[1], match[1]), value)
  found = {}
  for line in text.splitlines():
    if line.startswith('#'):
      continue
    name, labels, value = re.fullmatch(r'([a-zA-Z_:][\w:]*)\{(.*)\} (\S+)', line).groups()
    found[name, tuple((key, unescape(text)) for key, text in label.findall(labels))] = float(value)
  return found


def test_vllm_counters_have_its_names_and_give_its_figures(finished, every):
  path, _ = finished
  exports.write_vllm_metrics(path, every)
  text = (path / 'vllm_metrics.prom').read_text()
  found = read_exposition(text)
  names = [f'vllm:spec_decode_num_{name}_total' for name in (
      'drafts', 'draft_tokens', 'accepted_tokens', 'accepted_tokens_per_pos')]
  assert {name for name, _ in found} == set(names)
  assert [line for line in text.splitlines() if line.startswith('# TYPE')] == [f'# TYPE {name} counter' for name in names]
  drafting = [series for series in every if series.drafts]
  assert len(drafting) == 4
  for series in drafting:
    mine = {}
    for (name, labels), value in found.items():
      labels = dict(labels)
      assert labels['engine'] == '0' and labels['model_name'] == series.pair
      if (labels['method'], float(labels['temperature'])) == (series.method, series.temperature):
        mine[name, labels.get('position')] = value
    drafts, tokens, accepted = (mine[name, None] for name in names[:3])
    assert (drafts, tokens, accepted) == (series.counts.steps, series.counts.proposed, series.counts.accepted)
    positions = [mine[names[3], str(position)] for position in range(4)]
    assert sum(positions) == accepted and positions == sorted(positions, reverse=True)


def test_labels_are_escaped(finished, every, tmp_path):
  odd = dataclasses.replace(next(s for s in every if s.drafts), pair='a"b\\c\nd')
  exports.write_vllm_metrics(tmp_path, [odd])
  labels = {dict(labels)['model_name'] for _, labels in read_exposition((tmp_path / 'vllm_metrics.prom').read_text())}
  assert labels == {'a"b\\c\nd'}


def test_a_step_that_proposes_nothing_is_no_draft(every, tmp_path):
  series = next(s for s in every if s.drafts)
  counts = dataclasses.replace(
      series.counts, steps=10, proposed=14, accepted=9, drafted_by_position=(8, 4, 2, 0), accepted_by_position=(6, 2, 1, 0))
  exports.write_acceptance(tmp_path, [dataclasses.replace(series, counts=counts)])
  with open(tmp_path / 'acceptance.csv', newline='') as file:
    line, = csv.DictReader(file)
  assert (line['num_drafts'], line['num_draft_tokens'], line['num_accepted_tokens']) == ('8', '14', '9')
  assert float(line['acceptance_length']) == 1 + 9 / 8
  assert [float(line[f'acceptance_at_pos_{i}']) for i in range(4)] == [6 / 8, 2 / 8, 1 / 8, 0]
