"""The tasks of the catalogue as seqio tasks, and TFDS' records as plain Python.

Importing this file imports seqio and TensorFlow (about ten seconds) and registers nothing; `register` does. A seqio task is
built from the same `TaskRecord`, by the same parser and the same prompts, as the plain loader's examples.
"""

import functools
import json
import os
from collections.abc import Iterator

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from specjax.core.errors import ParamError
from specjax.tasks import datasets, judges
from specjax.tasks.example import Example
from specjax.tasks.readers import Raw
from specjax.tasks.task_records import TaskRecord

_FIELDS = ('id', 'domain', 'inputs', 'targets', 'check')
_registered = {}  # seqio's registry is global too


def tfds_records(name: str, split: str, *, data_dir: str | os.PathLike) -> Iterator[Raw]:
  """The records of a data set that TFDS has prepared in `data_dir`, as Python values; nothing is downloaded."""
  dataset = tfds.load(name, split=split, data_dir=str(data_dir), download=False, shuffle_files=False)
  for number, record in enumerate(dataset.as_numpy_iterator(), start=1):
    yield Raw(_plain(record), f'tfds:{name}/{split}:{number}')


def _plain(value):
  """Numbers, text, lists and dicts of Python; bytes are UTF-8, which TFDS promises for text."""
  if isinstance(value, dict):
    return {key: _plain(inner) for key, inner in value.items()}
  if isinstance(value, np.ndarray):
    return [_plain(inner) for inner in value]
  if isinstance(value, bytes):
    return value.decode('utf-8', 'replace')
  return value.item() if isinstance(value, np.generic) else value


def register(record: TaskRecord, *, data_dir: str, num_fewshot: int, vocabulary: seqio.Vocabulary, splits=('test',),
             count: int = 1 << 30, allow_code_execution: bool = False) -> str:
  """The name of the seqio task `specjax_<name>_<shots>shot`, after registering it.

  Args:
    record: of the catalogue.
    data_dir, num_fewshot, count: as of `datasets.load`.
    vocabulary: of both features.
    splits: those that are there to read.
    allow_code_execution: without it, a metric that runs programs is left out.

  Raises:
    ParamError: registered before with other settings.
  """
  name = f'specjax_{record.name}_{num_fewshot}shot'
  settings = str(data_dir), tuple(splits), count, vocabulary, allow_code_execution
  if name in seqio.TaskRegistry.names():
    if settings != _registered.get(name):
      raise ParamError(what=name, where='seqio_tasks.register', got=settings, expected=_registered.get(name),
                       fix='use one setting in a process')
    return name
  feature = seqio.Feature(vocabulary, add_eos=True, dtype=tf.int32)
  seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(
          functools.partial(_dataset, record=record, data_dir=data_dir, num_fewshot=num_fewshot, count=count),
          splits=tuple(splits)),
      preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
      output_features={'inputs': feature, 'targets': feature}, postprocess_fn=_postprocess,
      metric_fns=_metrics(record, allow_code_execution))
  _registered[name] = settings
  return name


def _metrics(record, allow_code_execution):
  metric = judges.METRICS.get(record.metric)
  if metric is None or (metric.runs_code and not allow_code_execution):
    return []

  def score(targets, predictions):
    found = [metric.score(example, judges.cut(text, record.answer_ends))
             for example, text in zip(targets, predictions, strict=True)]
    return {metric.name(): float(np.mean([scores.value for scores in found])) if found else 0.0}

  return [score]


def _dataset(split, shuffle_files, seed=None, *, record, data_dir, num_fewshot, count):
  """The examples of a split as string features; the signature is seqio's."""
  del shuffle_files, seed

  def rows():
    loaded = datasets.load(record, split=split, count=count, data_dir=data_dir, num_fewshot=num_fewshot)
    for example in loaded.examples:
      yield {'id': example.id, 'domain': example.domain, 'inputs': example.inputs, 'targets': example.targets,
             'check': json.dumps(example.check, sort_keys=True)}

  return tf.data.Dataset.from_generator(rows, output_signature={key: tf.TensorSpec([], tf.string) for key in _FIELDS})


def _postprocess(text, example, is_target):
  """A prediction as it is; a target as the example that its scorer needs."""
  if not is_target:
    return text
  text_of = lambda value: value.decode('utf-8') if isinstance(value, bytes) else str(value)
  return Example(id=text_of(example['id']), domain=text_of(example['domain']), level=1,
                 inputs=text_of(example['inputs_pretokenized']), targets=text_of(example['targets_pretokenized']),
                 check=json.loads(text_of(example['check'])))
