"""Every task of the catalogue on three small records: prompts, and what references, silence and others' answers score."""

import json
import string

import pytest

import task_cases
from specjax.core.errors import ConfigError, DataError
from specjax.tasks import catalogue, datasets, judges

RUNS_CODE = ('mbpp', 'humaneval', 'mbpp_sanitized')
SCORED = [name for name, record in catalogue.RECORDS.items() if record.metric and name not in RUNS_CODE]


def _load(tmp_path, name, **options):
  settings = dict(split='test', count=10, data_dir=task_cases.write(tmp_path, name)) | options
  return datasets.load(catalogue.lookup(name), **settings)


def _judge(name, example, text):
  record = catalogue.lookup(name)
  return judges.METRICS[record.metric].score(example, judges.cut(text, record.answer_ends))


def test_every_task_has_cases_and_cases_no_task():
  assert set(task_cases.RAW) == set(catalogue.RECORDS)


@pytest.mark.parametrize('name', catalogue.RECORDS)
def test_records_become_examples(tmp_path, name):
  record, loaded = catalogue.lookup(name), _load(tmp_path, name)
  assert len(loaded.examples) == 3 and not loaded.errors
  assert len({example.id for example in loaded.examples}) == 3
  for example in loaded.examples:
    json.dumps(example.check)
    assert example.inputs.strip() and example.inputs == example.inputs.rstrip(' ')
    assert '{' not in record.template.replace('{inputs}', '') and record.licence and record.summary


@pytest.mark.parametrize('name', SCORED)
def test_references_score_most_silence_least_and_others_between(tmp_path, name):
  examples = _load(tmp_path, name).examples
  right = [_judge(name, example, example.targets).value for example in examples]
  silent = [_judge(name, example, '').value for example in examples]
  other = [_judge(name, example, examples[(i + 1) % 3].targets).value for i, example in enumerate(examples)]
  assert right == [1.0] * 3 and silent == [0.0] * 3
  assert sum(other) < 3.0 and all(0.0 <= value <= 1.0 for value in other)


@pytest.mark.parametrize('name', SCORED)
@pytest.mark.parametrize('text', ['\x00', '\ud800', '9' * 5000, '#### ' + '1,' * 300, '(' * 2000, 'answer is' * 500, '\n\n', '\u202e'])
def test_no_text_breaks_a_judge(tmp_path, name, text):
  for example in _load(tmp_path, name).examples:
    assert 0.0 <= _judge(name, example, text).value <= 1.0


@pytest.mark.parametrize('name', RUNS_CODE)
def test_programs_pass_their_own_tests_only(tmp_path, name):
  examples = _load(tmp_path, name).examples
  assert _judge(name, examples[0], examples[0].targets).value == 1.0
  assert _judge(name, examples[0], '').value == 0.0
  assert _judge(name, examples[0], examples[1].targets).value == 0.0


def test_text_behind_the_end_of_an_answer_is_not_judged(tmp_path):
  example = _load(tmp_path, 'gsm8k').examples[0]
  assert _judge('gsm8k', example, ' It is 4.\nQuestion: What is 7 + 9?\nAnswer: 16').answer == '4'
  question = _load(tmp_path, 'trivia_qa').examples[0]
  assert _judge('trivia_qa', question, '\nMark Twain\nQuestion: x').value == 1.0


def test_squad_without_an_answer(tmp_path):
  task_cases.write(tmp_path, 'squad_v2', records=[task_cases.NO_ANSWER])
  example = datasets.load(catalogue.lookup('squad_v2'), split='test', count=1, data_dir=tmp_path).examples[0]
  assert example.targets == 'unanswerable'
  assert [_judge('squad_v2', example, text).value for text in ('unanswerable', '', 'Moravia')] == [1.0, 1.0, 0.0]
  task_cases.write(tmp_path, 'squad_v1', records=[task_cases.NO_ANSWER])
  with pytest.raises(DataError, match='no answer'):
    datasets.load(catalogue.lookup('squad_v1'), split='test', count=1, data_dir=tmp_path)


def test_published_squad_json_is_the_same_as_jsonl(tmp_path):
  asked = [{'id': r['id'], 'question': r['question'], 'answers': [
      {'text': text, 'answer_start': 0} for text in r['answers']['text']]} for r in task_cases.SQUAD]
  nested = {'version': '1.1', 'data': [{'title': 'Rivers', 'paragraphs': [
      {'context': r['context'], 'qas': [q]} for r, q in zip(task_cases.SQUAD, asked)]}]}
  (tmp_path / 'squad').mkdir()
  (tmp_path / 'squad' / 'dev-v1.1.json').write_text(json.dumps(nested))
  record = catalogue.lookup('squad_v1')
  published = datasets.load(record, split='test', count=9, data_dir=tmp_path)
  assert published.source == 'squad/dev-v1.1.json'
  assert published.examples == _load(tmp_path, 'squad_v1').examples


def test_turns_are_kept(tmp_path):
  first = _load(tmp_path, 'spec_bench').examples[0]
  assert first.inputs == 'Write a poem.' and first.check['turns'] == ['Write a poem.', 'Shorten it.']
  assert [example.domain for example in _load(tmp_path, 'spec_bench').examples] == ['writing', 'translation', 'rag']


def test_mbpp_problems_belong_to_the_splits_of_the_paper(tmp_path):
  records = [task_cases._mbpp(1, number) for number in (1, 10, 11, 510, 511, 600, 601, 974)]
  task_cases.write(tmp_path, 'mbpp', records=records)
  (tmp_path / 'mbpp' / 'mbpp.jsonl').write_bytes((tmp_path / 'mbpp' / 'test.jsonl').read_bytes())
  (tmp_path / 'mbpp' / 'test.jsonl').unlink()
  ids = lambda split: [e.id for e in datasets.load(catalogue.lookup('mbpp'), split=split, count=9, data_dir=tmp_path).examples]
  assert [ids(split) for split in ('test', 'validation', 'train')] == [['11', '510'], ['511', '600'], ['601', '974']]


def test_names_are_plain():
  assert all(set(name) <= set(string.ascii_lowercase + string.digits + '_') for name in catalogue.RECORDS)
  with pytest.raises(ConfigError):
    catalogue.lookup('gsm9k')
