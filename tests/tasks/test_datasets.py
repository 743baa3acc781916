"""Splits, worked examples, and what happens to bad lines: named, left out, the rest kept."""

import gzip
import json

import pytest

import task_cases
from specjax.core.errors import ConfigError, DataError
from specjax.tasks import catalogue, datasets, example, readers

GSM8K = catalogue.lookup('gsm8k')


def _problems(count, first=0):
  return [{'question': f'What is {n} + 1?', 'answer': f'#### {n + 1}'} for n in range(first, first + count)]


@pytest.fixture
def folder(tmp_path):
  task_cases.write(tmp_path, 'gsm8k', 'train', _problems(300))
  return task_cases.write(tmp_path, 'gsm8k', 'test', _problems(5, first=1000))


def test_validation_is_cut_from_train_where_there_is_none(folder):
  found = {split: {e.inputs for e in datasets.load(GSM8K, split=split, count=999, data_dir=folder).examples}
           for split in ('train', 'validation')}
  assert found['train'] and found['validation'] and not found['train'] & found['validation']
  assert len(found['train'] | found['validation']) == 300
  task_cases.write(folder, 'gsm8k', 'validation', _problems(7, first=2000))
  assert len(datasets.load(GSM8K, split='validation', count=999, data_dir=folder).examples) == 7
  assert len(datasets.load(GSM8K, split='train', count=999, data_dir=folder).examples) == 300


@pytest.mark.parametrize('few, many', [(1, 5), (5, 8)])
def test_worked_examples_are_fixed_and_nested(folder, few, many):
  first = datasets.shots(GSM8K, split='test', count=few, data_dir=folder)
  assert first == datasets.shots(GSM8K, split='test', count=many, data_dir=folder)[:few]
  assert all(example.split_of(fields.inputs) != 'validation' for fields in first)


def test_prompt_of_worked_examples(folder):
  plain = datasets.load(GSM8K, split='test', count=1, data_dir=folder).examples[0].inputs
  assert plain == 'Question: What is 1000 + 1?\nAnswer:'
  worked = datasets.load(GSM8K, split='test', count=1, data_dir=folder, num_fewshot=2).examples[0].inputs
  first, second, asked = worked.split('\n\n')
  assert asked == plain and first.startswith('Question: ') and '\nAnswer: #### ' in second


def test_the_asked_question_is_not_worked(tmp_path):
  task_cases.write(tmp_path, 'gsm8k', 'train', _problems(20))
  task_cases.write(tmp_path, 'gsm8k', 'test', _problems(20))
  loaded = datasets.load(GSM8K, split='test', count=99, data_dir=tmp_path, num_fewshot=8)
  assert len(loaded.examples) == 12
  for one in loaded.examples:
    assert one.inputs.count(one.inputs.rpartition('Question: ')[2]) == 1


@pytest.mark.parametrize('shots, message', [(400, 'num_fewshot'), (-1, 'num_fewshot')])
def test_impossible_numbers_of_worked_examples(folder, shots, message):
  with pytest.raises(ConfigError, match=message):
    datasets.load(GSM8K, split='test', count=1, data_dir=folder, num_fewshot=shots)


def test_worked_examples_need_a_split_of_their_own(tmp_path):
  task_cases.write(tmp_path, 'xsum')
  with pytest.raises(ConfigError, match='xsum/train.jsonl'):
    datasets.load(catalogue.lookup('xsum'), split='test', count=1, data_dir=tmp_path, num_fewshot=1)


@pytest.mark.parametrize('data_dir, split, message', [(None, 'test', '--data_dir'), ('empty', 'test', 'gsm8k/test.jsonl'),
                                                      ('empty', 'dev', 'split')])
def test_missing_data_say_what_to_do(tmp_path, data_dir, split, message):
  with pytest.raises(ConfigError, match=message):
    datasets.load(GSM8K, split=split, count=1, data_dir=data_dir and tmp_path / data_dir)


BAD_LINES = [b'{"question": "x"', b'["x"]', b'{"question": "x", "question": "y"}', b'\xff', b'{"question": "\x00"}',
             b'{"question": "x", "answer": "no mark"}', b'{"question": 7, "answer": "#### 1"}', b'{"question": " ", "answer": "#### 1"}',
             b'', b'{"text": "other schema"}', b'{"question": "' + b'x' * (1 << 20) + b'"}']


@pytest.mark.parametrize('bad', BAD_LINES)
def test_a_bad_line_is_named_and_the_rest_is_kept(tmp_path, bad, caplog):
  lines = [json.dumps(record).encode() for record in _problems(3)]
  path = task_cases.write(tmp_path, 'gsm8k') / 'gsm8k' / 'test.jsonl'
  path.write_bytes(b'\n'.join([lines[0], bad, *lines[1:]]) + b'\n')
  loaded = datasets.load(GSM8K, split='test', count=9, data_dir=tmp_path)
  assert [e.targets for e in loaded.examples] == ['#### 1', '#### 2', '#### 3']
  assert [error.where for error in loaded.errors] == [f'{path}:2']
  assert f'{path}:2' in caplog.text


def test_a_file_without_a_good_line_is_an_error(tmp_path):
  path = task_cases.write(tmp_path, 'gsm8k') / 'gsm8k' / 'test.jsonl'
  path.write_bytes(b'\n'.join(BAD_LINES[:3]))
  with pytest.raises(DataError) as error:
    datasets.load(GSM8K, split='test', count=9, data_dir=tmp_path)
  assert error.value.where == f'{path}:1'
  path.write_bytes(b'')
  with pytest.raises(DataError):
    datasets.load(GSM8K, split='test', count=9, data_dir=tmp_path)


def test_parallel_files_of_unequal_length_are_refused(tmp_path):
  (tmp_path / 'flores200').mkdir()
  (tmp_path / 'flores200' / 'eng_Latn.dev').write_text('a\nb\n')
  (tmp_path / 'flores200' / 'deu_Latn.dev').write_text('c\n')
  with pytest.raises(DataError, match='another number of lines'):
    datasets.load(catalogue.lookup('flores_en_de'), split='validation', count=9, data_dir=tmp_path)


def test_a_parallel_file_that_cannot_be_read_is_named_for_that(tmp_path):
  paths = [tmp_path / 'en.txt.gz', tmp_path / 'de.txt.gz']
  paths[0].write_bytes(gzip.compress(b'a\n' * 9))
  paths[1].write_bytes(gzip.compress(bytes(range(9)) * 99)[:20])
  with pytest.raises(DataError, match='a readable file') as error:
    list(readers.read(paths, columns=('en', 'de'), errors=[]))
  assert error.value.where == f'{paths[1]}:1'


def test_a_bad_line_of_a_parallel_file_takes_its_partner_along(tmp_path):
  (tmp_path / 'flores200').mkdir()
  (tmp_path / 'flores200' / 'eng_Latn.dev').write_bytes(b'a\n\xff\nc\n')
  (tmp_path / 'flores200' / 'deu_Latn.dev').write_bytes(b'A\nB\nC\n')
  loaded = datasets.load(catalogue.lookup('flores_en_de'), split='validation', count=9, data_dir=tmp_path)
  assert [e.targets for e in loaded.examples] == ['A', 'C'] and len(loaded.errors) == 1


@pytest.mark.parametrize('bad', [
    7, 'x', {}, {'paragraphs': [5]}, {'paragraphs': [{'qas': [{'question': 'no context?', 'answers': [{'text': 'x'}]}]}]},
    {'paragraphs': [{'context': 'c', 'qas': ['x']}]}, {'paragraphs': [{'context': 'c', 'qas': [{'question': 'q?'}]}]}])
def test_a_bad_part_of_nested_json_is_named_and_the_rest_is_kept(tmp_path, bad):
  good = {'title': 'T', 'paragraphs': [
      {'context': 'The cat sat.', 'qas': [{'id': 'a', 'question': 'Who sat?', 'answers': [{'text': 'The cat'}]}]},
      {'context': 'Nothing is asked.', 'qas': []}]}
  path = tmp_path / 'squad' / 'dev-v1.1.json'
  path.parent.mkdir()
  path.write_text(json.dumps({'data': [bad, good]}))
  loaded = datasets.load(catalogue.lookup('squad_v1'), split='test', count=9, data_dir=tmp_path)
  assert [e.id for e in loaded.examples] == ['a'] and [error.where for error in loaded.errors] == [f'{path}:1']


def _user(path, kind='jsonl', input_key='inputs', target_key='targets'):
  return datasets.user_file(str(path), kind=kind, input_key=input_key, target_key=target_key, count=9)


def test_user_jsonl_by_keys(tmp_path):
  path = tmp_path / 'mine.jsonl'
  path.write_text('{"q": "one", "a": "1"}\n{"q": 2}\n{"q": "three", "a": "3", "id": "x"}\nnot json\n{"q": "four", "id": "x"}\n')
  loaded = _user(path, input_key='q', target_key='a')
  assert [(e.id, e.inputs, e.targets) for e in loaded.examples] == [('1', 'one', '1'), ('x', 'three', '3')]
  assert sorted(error.where for error in loaded.errors) == [f'{path}:{n}' for n in (2, 4, 5)]
  with pytest.raises(DataError, match='--input_key'):
    _user(path)


@pytest.mark.parametrize('text, options, expected', [
    ('one\t1\ntwo\t2\n', {}, [('one', '1'), ('two', '2')]),
    ('inputs\ttargets\none\t1\n', {}, [('one', '1')]),
    ('a\tq\n1\tone\n', dict(input_key='q', target_key='a'), [('one', '1')]),
    ('1\tone\n', dict(input_key='1', target_key='0'), [('one', '1')]),
    ('say "hi"\t"1\n', {}, [('say "hi"', '"1')]),
    ('one\t1\nshort\n\t3\nfour\t4\n', {}, [('one', '1'), ('four', '4')])])
def test_user_tsv(tmp_path, text, options, expected):
  path = tmp_path / 'mine.tsv'
  path.write_text(text)
  loaded = _user(path, kind='tsv', **options)
  assert [(e.inputs, e.targets) for e in loaded.examples] == expected


@pytest.mark.parametrize('name', ['mine.txt', 'mine.tsv', 'mine'])
def test_what_the_user_calls_jsonl_is_read_so_whatever_its_name(tmp_path, name):
  path = tmp_path / name
  path.write_text('{"inputs": "one", "targets": "1"}\n')
  assert [(e.inputs, e.targets) for e in _user(path).examples] == [('one', '1')]


def test_user_tsv_without_the_column(tmp_path):
  path = tmp_path / 'mine.tsv'
  path.write_text('a\tb\n')
  with pytest.raises(ConfigError, match='input_key'):
    _user(path, kind='tsv', input_key='question')


def test_gzip_is_read_and_a_truncated_one_is_named(tmp_path):
  path = tmp_path / 'mine.jsonl.gz'
  whole = gzip.compress(b''.join(b'{"inputs": "text %d"}\n' % n for n in range(2000)))
  path.write_bytes(whole)
  assert len(_user(path).examples) == 9
  path.write_bytes(whole[:len(whole) // 2])
  with pytest.raises(DataError):
    _user(path)


@pytest.mark.parametrize('name', ['mine.txt', 'mine.md', 'mine', 'mine.json'])
def test_user_text_is_cut_into_passages(tmp_path, name):
  path = tmp_path / name
  path.write_text('\n\n'.join([' '.join(f'w{n}' for n in range(60))] * 4))
  found = _user(path, kind='text').examples
  assert [len(e.inputs.split()) for e in found] == [48, 48] and found[0].targets.split()[0] == 'w48'


def test_reading_local_files_needs_no_tensorflow(folder):
  import subprocess
  import sys
  program = ('import sys; from specjax.tasks import catalogue, datasets, judges; '
             f'datasets.load(catalogue.lookup("gsm8k"), split="test", count=2, data_dir={str(folder)!r}); '
             'assert not {"tensorflow", "seqio", "sacrebleu", "rouge_score"} & set(sys.modules)')
  subprocess.run([sys.executable, '-c', program], check=True)
