"""The tasks on the files of SPECJAX_DATA_DIR: every line is read, references score most, silence least."""

import os
import pathlib

import pytest

from specjax.core.errors import ConfigError
from specjax.tasks import catalogue, datasets, judges

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# Examples of the files as they were published; lines without an answer or with control characters are left out.
SIZES = {
    ('wmt14_en_de', 'validation'): 50, ('flores_en_de', 'validation'): 997, ('flores_en_ro', 'validation'): 997,
    ('tatoeba_en_fr', 'test'): 3411, ('xsum', 'test'): 200, ('cnn_dailymail', 'test'): 200, ('gsm8k', 'test'): 660,
    ('scitldr', 'train'): 1992, ('scitldr', 'validation'): 619,
    ('commonsense_qa', 'test'): 1221, ('mbpp', 'test'): 500, ('mbpp', 'validation'): 90, ('mbpp_sanitized', 'test'): 427,
    ('adversarial_qa', 'test'): 400, ('natural_questions', 'test'): 3610, ('web_questions', 'test'): 2032,
    ('trivia_qa', 'test'): 1000, ('spec_bench', 'test'): 480, ('mt_bench', 'test'): 80, ('grimm', 'test'): 516}


@pytest.fixture(scope='module')
def data_dir():
  path = pathlib.Path(os.environ.get('SPECJAX_DATA_DIR', ROOT.parent / 'shared' / 'data'))
  if not path.is_dir():
    pytest.skip(f'no data at {path}: set SPECJAX_DATA_DIR')
  return path


def _load(name, data_dir, split='test', count=10**6, **options):
  try:
    return datasets.load(catalogue.lookup(name), split=split, count=count, data_dir=data_dir, **options)
  except ConfigError as error:
    pytest.skip(str(error))


@pytest.mark.parametrize('name, split', SIZES)
def test_every_line_is_an_example(data_dir, name, split):
  loaded = _load(name, data_dir, split)
  assert len(loaded.examples) == SIZES[name, split] and not loaded.errors


@pytest.mark.parametrize('name', [name for name, split in SIZES if split == 'test' and catalogue.RECORDS[name].metric
                                  and not judges.METRICS[catalogue.RECORDS[name].metric].runs_code])
def test_references_score_most_silence_least_and_others_between(data_dir, name):
  record, examples = catalogue.lookup(name), _load(name, data_dir, count=30).examples
  judge = lambda example, text: judges.METRICS[record.metric].score(example, judges.cut(text, record.answer_ends)).value
  assert [judge(example, example.targets) for example in examples] == [1.0] * len(examples)
  assert [judge(example, '') for example in examples] == [0.0] * len(examples)
  assert 0.0 <= sum(judge(a, b.targets) for a, b in zip(examples, examples[1:])) < len(examples) / 2


def test_published_solutions_of_gsm8k_are_judged_as_published(data_dir):
  """6B models' answers with their own verdicts, which were found by another program."""
  import json
  path = data_dir / 'gsm8k' / 'example_model_solutions_first_half.jsonl'
  if not path.exists():
    pytest.skip('no published solutions')
  from specjax.metrics import answers
  rows = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  agreed = [answers.same_number(row['ground_truth'], row[model]['solution']) == float(row[model]['is_correct'])
            for row in rows for model in row if isinstance(row[model], dict)]
  assert len(agreed) > 2000 and sum(agreed) / len(agreed) > 0.99


# The sanitized file cuts helpers and imports off some of its own solutions.
@pytest.mark.parametrize('name, right', [('mbpp', 6), ('mbpp_sanitized', 4)])
def test_reference_programs_pass(data_dir, name, right):
  record, examples = catalogue.lookup(name), _load(name, data_dir, count=6).examples
  judge = judges.METRICS[record.metric].score
  assert sum(judge(example, example.targets).value for example in examples) >= right
  assert [judge(a, b.targets).value for a, b in zip(examples, examples[1:3])] == [0.0] * 2


@pytest.mark.nightly
@pytest.mark.parametrize('name, share', [('mbpp', 0.99), ('mbpp_sanitized', 0.85)])
def test_nearly_all_reference_programs_pass(data_dir, name, share):
  record, examples = catalogue.lookup(name), _load(name, data_dir).examples
  failed = [example.id for example in examples if not judges.METRICS[record.metric].score(example, example.targets).value]
  assert len(failed) <= (1 - share) * len(examples), failed


@pytest.mark.parametrize('name, shots', [('gsm8k', 8), ('web_questions', 1), ('mbpp', 3), ('commonsense_qa', 5)])
def test_worked_examples_come_from_other_questions(data_dir, name, shots):
  loaded = _load(name, data_dir, count=5, num_fewshot=shots)
  worked = datasets.shots(catalogue.lookup(name), split='test', count=shots, data_dir=data_dir)
  for example in loaded.examples:
    assert all(fields.inputs in example.inputs for fields in worked)
    assert example.inputs.endswith(datasets.prompt(catalogue.lookup(name), '').lstrip()[-7:])


@pytest.mark.nightly
@pytest.mark.parametrize('name, split', [('web_questions', 'test'), ('flores_en_de', 'validation'), ('spec_bench', 'test'),
                                         ('mt_bench', 'test'), ('commonsense_qa', 'test'), ('natural_questions', 'test'),
                                         ('tatoeba_en_fr', 'test'), ('mbpp', 'test')])
def test_a_few_prompts_through_evaluate(data_dir, tmp_path, name, split):
  _load(name, data_dir, split, count=1)
  from specjax.evaluation import evaluate, report, row_log
  evaluate.evaluate(
      pairs=['gemma'], tasks=[name], methods=['autoregressive', 'speculative'], greedy_methods=None, thresholds={},
      num_draft_tokens=[2], temperatures=[0.0], top_p=[1.0], top_k=0, min_p=0.0, seeds=[0], batch_sizes=[2], max_new_tokens=6,
      max_samples=2, repeats=1, warmups=1, dtype='float32', bonus='rule', detail='none', split=split, data_seed=0,
      force_length=False, output_path=str(tmp_path / 'out'), data_dir=str(data_dir), allow_code_execution=True)
  rows = row_log.read(tmp_path / 'out' / 'rows.jsonl')[0]
  assert len(rows) == 4 and all(row['error'] is None for row in rows)
  scored = catalogue.lookup(name).metric is not None
  assert all((row['score'] is not None) == scored for row in rows)
  assert report.write(tmp_path / 'out').series
