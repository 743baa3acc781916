"""Names of tasks: what they load, who judges, and what is refused."""

import json
import logging

import pytest

from specjax import eval as eval_binary
from specjax.core.errors import ConfigError, DataError
from specjax.evaluation import listing
from specjax.evaluation import task_sources
from specjax.tasks import catalogue


def _data(tmp_path, name, records, **settings):
  path = tmp_path / name / 'test.jsonl'
  path.parent.mkdir()
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return task_sources.DataSettings(data_dir=str(tmp_path), **settings)


def _load(name, data=task_sources.DataSettings(), count=9):
  return task_sources.load(name, split='test', count=count, seed=0, data=data)


def test_data_set_by_name(tmp_path):
  data = _data(tmp_path, 'gsm8k', [{'question': 'What is 1 + 1?', 'answer': '#### 2'}])
  task = _load('gsm8k', data)
  assert task.score_name == 'accuracy|extract:####,last_number' and task.source == 'gsm8k/test.jsonl'
  assert task.judge(task.examples[0], ' 2').value == task.score(task.examples[0], ' 2') == 1.0


def test_numbers_of_worked_examples_by_name(tmp_path):
  data = _data(tmp_path, 'gsm8k', [{'question': 'What is 1 + 1?', 'answer': '#### 2'}])
  (tmp_path / 'gsm8k' / 'train.jsonl').write_text(''.join(
      json.dumps({'question': f'What is {n} + 2?', 'answer': f'#### {n + 2}'}) + '\n' for n in range(50)))
  plain, worked = _load('gsm8k', data._replace(num_fewshot={'other': 5})), _load('gsm8k', data._replace(num_fewshot={'gsm8k': 5}))
  assert worked.examples[0].inputs.count('Question:') == 6 and plain.examples[0].inputs.count('Question:') == 1
  assert plain.sha256 != worked.sha256


def test_programs_are_judged_only_when_allowed(tmp_path, caplog):
  record = {'task_id': 'Toy/1', 'prompt': 'def f(x):\n', 'entry_point': 'f', 'canonical_solution': '  return x\n',
            'test': 'def check(candidate):\n  assert candidate(3) == 3\n'}
  data = _data(tmp_path, 'humaneval', [record])
  with caplog.at_level(logging.WARNING):
    assert _load('humaneval', data).judge is None
  assert '--allow_code_execution' in caplog.text
  task = _load('humaneval', data._replace(allow_code_execution=True))
  assert task.score_name.startswith('pass@1|tests:humaneval|isolation:')
  assert [task.score(task.examples[0], text) for text in ('  return x\n', '  return 0\n')] == [1.0, 0.0]


def test_conversations_have_no_score_and_all_turns_in_their_hash(tmp_path):
  record = {'question_id': 1, 'category': 'math', 'turns': ['One?', 'Two?']}
  first = _load('mt_bench', _data(tmp_path, 'mt_bench', [record]))
  (tmp_path / 'mt_bench' / 'test.jsonl').write_text(json.dumps(record | {'turns': ['One?', 'Three?']}) + '\n')
  second = _load('mt_bench', task_sources.DataSettings(data_dir=str(tmp_path)))
  assert first.judge is None and first.examples[0].domain == 'math' and first.sha256 != second.sha256


def test_user_files(tmp_path, caplog):
  path = tmp_path / 'mine.jsonl'
  path.write_text('{"q": "one", "a": "1"}\nbroken\n{"q": "two", "a": "2"}\n')
  task = _load(f'jsonl:{path}', task_sources.DataSettings(input_key='q', target_key='a'))
  assert len(task.examples) == 2 and task.num_left_out == 1 and task.score(task.examples[0], '1') == 1.0
  with caplog.at_level(logging.WARNING):
    unlabelled = _load(f'jsonl:{path}', task_sources.DataSettings(input_key='q', target_key='b'))
  assert unlabelled.judge is None and "no line of it has the target_key 'b'" in caplog.text
  with pytest.raises(DataError):
    _load('tsv:' + str(tmp_path / 'missing.tsv'))


def test_a_file_with_some_references_is_not_scored_and_says_so(tmp_path, caplog):
  path = tmp_path / 'mine.jsonl'
  path.write_text('{"inputs": "one", "targets": "1"}\n{"inputs": "two"}\n')
  with caplog.at_level(logging.WARNING):
    assert _load(f'jsonl:{path}').judge is None
  assert 'only 1 of its 2 examples have a reference' in caplog.text
  caplog.clear()
  path.write_text('{"inputs": "two"}\n')
  with caplog.at_level(logging.WARNING):
    assert _load(f'jsonl:{path}').judge is None and not caplog.text


@pytest.mark.parametrize('name, message', [('gsm9k', "'gsm8k'"), ('jsonl', 'unknown task'), ('gsm8k', '--data_dir')])
def test_what_cannot_be_loaded_says_what_can(name, message):
  with pytest.raises(ConfigError, match=message):
    _load(name)


def test_listing_names_every_task_with_metric_and_licence(capsys):
  text = listing.text('tasks')
  for record in catalogue.RECORDS.values():
    assert f'{record.name} ' in text and record.licence in text
  assert 'BLEU' in text and '--allow_code_execution' in text
  assert eval_binary.main(['list', 'tasks']) == 0 and capsys.readouterr().out.strip() == text.strip()
