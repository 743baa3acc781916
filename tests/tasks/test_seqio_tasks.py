"""The seqio task of a record gives the plain loader's examples, whatever source they come from."""

import json

import pytest

import task_cases
from specjax.core.errors import ParamError
from specjax.tasks import catalogue, datasets, prompts
from specjax.tasks.vocabulary import load_builtin_tokenizer

pytestmark = pytest.mark.nightly  # TensorFlow: ten seconds of import, and a gigabyte
seqio = pytest.importorskip('seqio')

NAMES = ('wmt14_en_de', 'xsum', 'gsm8k', 'commonsense_qa', 'lambada', 'squad_v1', 'squad_v2', 'natural_questions', 'web_questions',
         'trivia_qa', 'spec_bench')


def _registered(name, folder, **options):
  from specjax.tasks import registry, seqio_tasks
  settings = dict(data_dir=str(folder), num_fewshot=0, vocabulary=registry.vocabulary()) | options
  return seqio_tasks.register(catalogue.lookup(name), **settings)


@pytest.fixture
def folder(tmp_path):
  yield tmp_path
  from specjax.tasks import seqio_tasks
  for name in list(seqio_tasks._registered):
    seqio.TaskRegistry.remove(name)
    del seqio_tasks._registered[name]


@pytest.mark.parametrize('name', NAMES)
def test_tokens_are_those_of_the_plain_loader(folder, name):
  task_cases.write(folder, name)
  tokenizer = load_builtin_tokenizer()
  plain = datasets.load(catalogue.lookup(name), split='test', count=9, data_dir=folder).examples
  rows = list(seqio.get_mixture_or_task(_registered(name, folder)).get_dataset(
      split='test', sequence_length=None, shuffle=False).as_numpy_iterator())
  assert len(rows) == len(plain) == 3
  for ours, theirs in zip(plain, rows, strict=True):
    assert theirs['inputs'].tolist() == prompts.encoder_tokens(ours, tokenizer)
    assert theirs['targets'].tolist() == prompts.target_tokens(ours, tokenizer)
    assert json.loads(theirs['check']) == json.loads(json.dumps(ours.check))


@pytest.mark.parametrize('name', ['gsm8k', 'squad_v1', 'wmt14_en_de'])
def test_seqio_evaluator_scores_references_one_and_silence_zero(folder, name):
  task_cases.write(folder, name)
  from specjax.tasks import seqio_tasks
  plain = datasets.load(catalogue.lookup(name), split='test', count=9, data_dir=folder).examples
  score = seqio.get_mixture_or_task(_registered(name, folder)).metric_fns[0]
  assert list(score(plain, [example.targets for example in plain]).values()) == [1.0]
  assert list(score(plain, ['' for _ in plain]).values()) == [0.0]
  assert seqio_tasks._postprocess('x', {}, is_target=False) == 'x'


def test_registering_twice_needs_the_same_settings(folder):
  task_cases.write(folder, 'gsm8k')
  assert _registered('gsm8k', folder) == _registered('gsm8k', folder)
  with pytest.raises(ParamError):
    _registered('gsm8k', folder, count=3)


@pytest.mark.parametrize('name', [name for name, record in catalogue.RECORDS.items() if record.tfds_name])
def test_records_of_tfds_have_the_schema_that_the_parser_reads(folder, name, monkeypatch):
  """TFDS' own features, filled at random: the parser finds its fields, whatever the text is."""
  tfds = pytest.importorskip('tensorflow_datasets')
  from specjax.tasks import seqio_tasks
  record = catalogue.lookup(name)
  monkeypatch.setattr(datasets, '_is_prepared', lambda folder: True)
  with tfds.testing.mock_data(num_examples=4):
    raws = list(seqio_tasks.tfds_records(record.tfds_name, record.tfds_splits['test'], data_dir=folder))
  assert len(raws) == 4
  for raw, where in raws:
    raw = dict(raw)
    if name == 'gsm8k':
      raw['answer'] += ' #### 3'
    if name == 'lambada':
      raw['passage'] = f'the {raw["passage"]} end'
    for key in ('question', 'document', 'article', 'dialogue', 'en', 'de'):
      if key in raw:
        raw[key] = f'text {raw[key]}'
    if 'answers' in raw and isinstance(raw['answers'], list) or isinstance(raw.get('answer'), list):
      key = 'answers' if 'answers' in raw else 'answer'
      raw[key] = ['one', *raw[key]]
    if name == 'squad_v1':
      raw['answers'] = {'text': ['one', *raw['answers']['text']]}
    fields = record.parsed(raw, where)
    assert fields.inputs and isinstance(fields.targets, str)


def test_both_sources_give_equal_examples(folder, monkeypatch):
  """The same records, once as JSONL and once through TFDS' interface."""
  tfds = pytest.importorskip('tensorflow_datasets')
  import tensorflow as tf
  monkeypatch.setattr(datasets, '_is_prepared', lambda folder: True)
  for name, keys in (('gsm8k', ('question', 'answer')), ('xsum', ('document', 'summary'))):
    task_cases.write(folder / 'local', name)
    local = datasets.load(catalogue.lookup(name), split='test', count=9, data_dir=folder / 'local')

    def as_dataset(*_, name=name, keys=keys, **__):
      columns = {key: [record[key] for record in task_cases.RAW[name]] for key in keys}
      return tf.data.Dataset.from_tensor_slices(columns)

    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
      other = datasets.load(catalogue.lookup(name), split='test', count=9, data_dir=folder / 'prepared')
    assert other.source.startswith('tfds:') and other.examples == local.examples
