"""The synthetic tasks as seqio tasks, for code that speaks seqio: one per domain and the mixture `specjax_synthetic`.

Importing this file imports seqio and TensorFlow (about ten seconds) and registers nothing; `register` does.
"""

import functools
import importlib.resources
import itertools
import json

import numpy as np
import seqio
import tensorflow as tf

from specjax.core.errors import ParamError
from specjax.metrics.quality import exact_match
from specjax.tasks import synthetic
from specjax.tasks.example import SPLITS, Example

MIXTURE = 'specjax_synthetic'

_FIELDS = ('id', 'domain', 'inputs', 'targets', 'check')
_registered = {}  # mixture name to the settings it was registered with: seqio's registry is global too


def vocabulary() -> seqio.SentencePieceVocabulary:
  """The shipped tokenizer as a seqio vocabulary, without extra ids."""
  return seqio.SentencePieceVocabulary(str(importlib.resources.files('specjax.tasks') / 'data/synthetic.model'),
                                       extra_ids=0)


def register(*, num_train: int, num_held_out: int, seed: int) -> str:
  """The name of the mixture, after registering it and its tasks `specjax_synthetic_<domain>`.

  Registering twice with the same sizes changes nothing.

  Args:
    num_train: train examples of each domain.
    num_held_out: validation examples of each domain, and test examples.
    seed: of the streams.

  Raises:
    ParamError: registered before with other sizes or another seed.
  """
  settings = num_train, num_held_out, seed
  if MIXTURE in seqio.MixtureRegistry.names():
    if settings != _registered[MIXTURE]:
      raise ParamError(f'{MIXTURE} is registered with {_registered[MIXTURE]}', what=MIXTURE, where='registry.register',
                       got=settings, expected=_registered[MIXTURE], fix='use one setting in a process')
    return MIXTURE
  sizes = {'train': num_train, 'validation': num_held_out, 'test': num_held_out}
  feature = seqio.Feature(vocabulary(), add_eos=True, dtype=tf.int32)
  names = []
  for domain in synthetic.DOMAINS:
    names.append(f'{MIXTURE}_{domain}')
    seqio.TaskRegistry.add(
        names[-1],
        source=seqio.FunctionDataSource(functools.partial(_dataset, domain=domain, sizes=sizes, stream_seed=seed),
                                        splits=SPLITS, num_input_examples=sizes),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={'inputs': feature, 'targets': feature},
        postprocess_fn=_postprocess,
        metric_fns=[accuracy, exact_match_rate])
  seqio.MixtureRegistry.add(MIXTURE, names, default_rate=1.0)
  _registered[MIXTURE] = settings
  return MIXTURE


def accuracy(targets: list[Example], predictions: list[str]) -> dict[str, float]:
  """The mean of `synthetic.score`; an example is its own target, since its text alone cannot judge a program."""
  return {'accuracy': float(np.mean([synthetic.score(example, prediction)
                                     for example, prediction in zip(targets, predictions, strict=True)]))}


def exact_match_rate(targets: list[Example], predictions: list[str]) -> dict[str, float]:
  """How many predictions equal the reference text."""
  return {'exact_match': float(np.mean([exact_match(example.targets, prediction)
                                        for example, prediction in zip(targets, predictions, strict=True)]))}


def _dataset(split: str, shuffle_files: bool, seed: int | None = None, *, domain: str, sizes: dict[str, int],
             stream_seed: int) -> tf.data.Dataset:
  """The examples of a split as string features; the signature is seqio's, whose seed orders files only."""
  del shuffle_files, seed

  def rows():
    stream = synthetic.stream(split, seed=stream_seed, domains=(domain,))
    for example in itertools.islice(stream, sizes[split]):
      yield {'id': example.id, 'domain': example.domain, 'level': example.level, 'inputs': example.inputs,
             'targets': example.targets, 'check': json.dumps(example.check, sort_keys=True)}

  signature = {name: tf.TensorSpec([], tf.string) for name in _FIELDS} | {'level': tf.TensorSpec([], tf.int32)}
  return tf.data.Dataset.from_generator(rows, output_signature=signature)


def _postprocess(text: str, example: dict, is_target: bool) -> Example | str:
  """A prediction as it is; a target as the example that its scorer needs."""
  if not is_target:
    return text
  return Example(id=_text(example['id']), domain=_text(example['domain']), level=int(example['level']),
                 inputs=_text(example['inputs_pretokenized']), targets=_text(example['targets_pretokenized']),
                 check=json.loads(_text(example['check'])))


def _text(value) -> str:
  return value.decode('utf-8') if isinstance(value, bytes) else str(value)
