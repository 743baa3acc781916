"""What the tests of the t5x plug-in share: a task, two small networks, and their checkpoints written by t5x itself."""

import json
import os

import jax
import numpy as np
import seqio
from t5x import checkpoints
from t5x import models
from t5x import partitioning
from t5x import train_state as train_state_lib
from t5x.examples.t5 import network
import tensorflow as tf

VOCAB_SIZE = 40
LENGTHS = {'inputs': 10, 'targets': 12}
SHAPES = {'encoder_input_tokens': (5, 10), 'decoder_input_tokens': (5, 12)}
TASK = 'specjax_t5x_test'
TARGET = dict(num_encoder_layers=2, num_decoder_layers=3)
DRAFTER = dict(num_encoder_layers=1, num_decoder_layers=1)
_STRUCTURE = dict(
    vocab_size=VOCAB_SIZE, dtype='float32', emb_dim=16, num_heads=4, head_dim=6, mlp_dim=24,
    mlp_activations=('gelu', 'linear'), dropout_rate=0.0, logits_via_embedding=False)


def vocabulary():
  """Token ids as they are, EOS 1."""
  return seqio.PassThroughVocabulary(size=VOCAB_SIZE, eos_id=1)


def transformer(**changes):
  """A small network of t5x.examples.t5."""
  return network.Transformer(config=network.T5Config(**(_STRUCTURE | changes)))


def inputs():
  """Five inputs of different lengths, lists of token ids."""
  rng = np.random.default_rng(0)
  return [rng.integers(2, VOCAB_SIZE, length).tolist() for length in (9, 3, 5, 1, 7)]


def batch():
  """The inputs as t5x's feature converter hands them to a model; EOS is part of an input."""
  tokens = np.zeros(SHAPES['encoder_input_tokens'], np.int32)
  for row, ids in enumerate(inputs()):
    tokens[row, :len(ids) + 1] = ids + [1]
  return {'encoder_input_tokens': tokens, 'decoder_input_tokens': np.zeros(SHAPES['decoder_input_tokens'], np.int32)}


def save(folder, model, *, seed, layout, params=None):
  """Writes `checkpoint_0` of a t5x model with t5x's own manager, layout 'legacy' or 'orbax'; returns (path, parameters)."""
  variables = model.get_initial_variables(jax.random.PRNGKey(seed), SHAPES)
  state = train_state_lib.InferenceState.create(variables)
  if params is not None:
    state = state.replace_params(params)
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  os.makedirs(folder, exist_ok=True)
  if layout == 'legacy':
    checkpoints.Checkpointer(state, partitioner, str(folder)).save(state)
  else:
    manager = checkpoints.OrbaxCheckpointManagerInterface(str(folder), state, partitioner)
    manager.save(state)
    manager.wait_until_finished()
    manager.close()
  return os.path.join(folder, 'checkpoint_0'), state.params


def stock(module, decode_fn=None):
  """t5x's own model of a network."""
  options = {} if decode_fn is None else {'decode_fn': decode_fn}
  return models.EncoderDecoderModel(module, vocabulary(), vocabulary(), None, **options)


def _examples(split, shuffle_files, seed=None):
  del split, shuffle_files, seed
  tokens = [json.loads(line) for line in map(json.dumps, inputs())]
  return tf.data.Dataset.from_generator(
      lambda: ({'inputs': ids, 'targets': ids[:3]} for ids in tokens),
      output_signature={name: tf.TensorSpec([None], tf.int32) for name in ('inputs', 'targets')})


def _exact_match(targets, predictions):
  equal = [list(target) == list(prediction) for target, prediction in zip(targets, predictions, strict=True)]
  return {'exact_match': float(np.mean(equal))}


seqio.TaskRegistry.add(
    TASK, source=seqio.FunctionDataSource(_examples, splits=['test'], num_input_examples={'test': 5}),
    preprocessors=[seqio.preprocessors.append_eos],
    output_features={
        name: seqio.Feature(vocabulary(), add_eos=True, dtype=tf.int32) for name in ('inputs', 'targets')},
    metric_fns=[_exact_match])
