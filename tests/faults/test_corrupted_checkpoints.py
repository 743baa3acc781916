"""Corrupted checkpoints of every format: one damaged file each, and none may load as if nothing had happened.

A format without checksums cannot show every flip or swap inside its payload; what such a format does not see is counted
apart, per kind of damage, and printed. The other kinds, and every format with checksums, must show everything.
"""

import collections
import functools
import json
import pathlib
import random
import shutil
import sys

from absl import logging
import jax
import numpy as np
import pytest
import safetensors.numpy

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1] / 'checkpoints')]

import damage
from specjax.checkpoints import formats
from specjax.checkpoints import gemma_orbax
from specjax.checkpoints import hf
from specjax.checkpoints import leaves
from specjax.checkpoints import manifest
from specjax.checkpoints import native
from specjax.checkpoints import t5x
from specjax.core import errors
from specjax.models import gemma
from specjax.models import t5
import t5x_writer

_RANDOM = np.random.RandomState(1)
_numbers = lambda *shape: _RANDOM.standard_normal(shape).astype(np.float32)
WEIGHTS = {'kernel': _numbers(40, 30), 'norm': {'scale': _numbers(40)}}
TREE = {'kernel': _numbers(40, 30), 'moments': (_numbers(40), {'count': np.array([3], np.int32)})}


def _t5_weights():
  embed, joined, hidden = 8, 12, 10
  weights = {'token_embedder/embedding': _numbers(32, embed), 'decoder/logits_dense/kernel': _numbers(embed, 32)}
  for stack, attentions, norms in (
      ('encoder', ('attention',), ('attention', 'mlp')),
      ('decoder', ('self_attention', 'encoder_decoder_attention'), ('self_attention', 'cross_attention', 'mlp'))):
    weights |= {f'{stack}/{stack}_norm/scale': _numbers(embed), f'{stack}/relpos_bias/rel_embedding': _numbers(4, 8)}
    layer = f'{stack}/layers_0'
    weights |= {f'{layer}/pre_{norm}_layer_norm/scale': _numbers(embed) for norm in norms}
    weights |= {f'{layer}/mlp/{wi}/kernel': _numbers(embed, hidden) for wi in ('wi_0', 'wi_1')}
    weights |= {f'{layer}/mlp/wo/kernel': _numbers(hidden, embed)}
    for kind in attentions:
      weights |= {f'{layer}/{kind}/{name}/kernel': _numbers(embed, joined) for name in ('query', 'key', 'value')}
      weights |= {f'{layer}/{kind}/out/kernel': _numbers(joined, embed)}
  return weights


def _llama_tensors():
  tensors = {'model.embed_tokens.weight': _numbers(32, 8), 'model.norm.weight': _numbers(8), 'lm_head.weight': _numbers(32, 8)}
  for i in range(2):
    layer = f'model.layers.{i}'
    tensors |= {f'{layer}.{name}.weight': _numbers(8) for name in ('input_layernorm', 'post_attention_layernorm')}
    tensors |= {f'{layer}.self_attn.{name}_proj.weight': _numbers(8, 8) for name in 'qkvo'}
    tensors |= {f'{layer}.mlp.{name}_proj.weight': _numbers(12, 8) for name in ('gate', 'up')}
    tensors |= {f'{layer}.mlp.down_proj.weight': _numbers(8, 12)}
  return tensors


_LLAMA = {
    'model_type': 'llama', 'vocab_size': 32, 'hidden_size': 8, 'intermediate_size': 12, 'num_hidden_layers': 2,
    'num_attention_heads': 2, 'num_key_value_heads': 2, 'head_dim': 4, 'hidden_act': 'silu', 'rms_norm_eps': 1e-5,
    'rope_theta': 10000.0, 'max_position_embeddings': 64, 'tie_word_embeddings': False, 'attention_bias': False}


def write_hf(folder, *, sharded):
  tensors = _llama_tensors()
  (folder / 'config.json').write_text(json.dumps(_LLAMA))
  if not sharded:
    safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
    return folder
  names, places = sorted(tensors), {}
  for number in (1, 2):
    file = f'model-0000{number}-of-00002.safetensors'
    shard = {name: tensors[name] for name in names[number - 1::2]}
    safetensors.numpy.save_file(shard, folder / file)
    places |= {name: file for name in shard}
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': places}))
  return folder


def write_sealed_hf(folder):
  write_hf(folder, sharded=True)
  manifest.write(folder)
  return folder


def write_gemma(folder):
  """The nested layout of official checkpoints, in OCDBT."""
  tensors = {'embedder.input_embedding': _numbers(32, 8), 'final_norm.scale': _numbers(8)}
  for i in range(2):
    layer = f'layer_{i}'
    tensors |= {f'{layer}.{name}.scale': _numbers(8) for name in ('pre_attention_norm', 'pre_ffw_norm')}
    tensors |= {
        f'{layer}.attn.q_einsum.w': _numbers(2, 8, 4), f'{layer}.attn.kv_einsum.w': _numbers(2, 1, 8, 4),
        f'{layer}.attn.attn_vec_einsum.w': _numbers(2, 4, 8), f'{layer}.mlp.gating_einsum': _numbers(2, 8, 12),
        f'{layer}.mlp.linear': _numbers(12, 8)}
  for name, value in tensors.items():
    t5x_writer.write_array(
        {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{folder}/'}, 'path': f'{name}/'}, value, compressor='zstd')
  return folder


def write_native_model(folder):
  native.save_safetensors(folder / 'model.safetensors', WEIGHTS, {'name': 'x'})
  return folder


def write_native_training(folder):
  checkpoints = native.TrainingCheckpoints(folder)
  checkpoints.save(1, TREE, {'step': 1})
  checkpoints.save(2, jax.tree.map(lambda leaf: leaf + 1, TREE), {'step': 2})
  return folder


@functools.cache
def _template(config):
  model = t5.T5LM(config) if isinstance(config, t5.T5Config) else gemma.DecoderLM(config)
  return jax.eval_shape(model.init, jax.random.key(0))


def read_foreign(reader, path, **options):
  """(configuration, bytes of each leaf), by the way that `specjax.load` goes."""
  config, found, extra = reader.open_checkpoint(path, **options)
  loaded = leaves.load(found, _template(config), where=str(path), extra=extra)
  return config, jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), loaded)


def read_native_model(path):
  native.load_description(path / 'model.safetensors')  # of which only the checksum of the weights is used here
  params = native.load_safetensors(path / 'model.safetensors', WEIGHTS)
  return jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), params)


def read_native_training(path):
  found = native.TrainingCheckpoints(path).restore_newest(TREE)
  if found is None:
    raise errors.CheckpointError(what='no checkpoint')
  return jax.tree.map(lambda leaf: leaf.tobytes(), found[1])


class Format:
  """How a format is written and read, and which kinds of damage it has no means of seeing everywhere.

  Attributes:
    blind: kinds of damage that may stay unseen in what the format does not check.
    fallback: whether an older checkpoint may be read instead (with an error in the log).
  """

  def __init__(self, write, read, *, blind=(), fallback=False):
    self.write, self.read, self.blind, self.fallback = write, read, blind, fallback


GEMMA = gemma.DecoderConfig(
    vocab_size=32, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4, layer_kinds=(gemma.GLOBAL,) * 2,
    activation='gelu', norm_plus_one=True, scale_embeddings=True)
_t5x = functools.partial(read_foreign, t5x)
_hf = functools.partial(read_foreign, hf)
T5_WEIGHTS = _t5_weights()
FORMATS = {
    'native model': Format(write_native_model, read_native_model),
    'native training': Format(write_native_training, read_native_training, fallback=True),
    'hf': Format(lambda folder: write_hf(folder, sharded=False), _hf, blind=('flip',)),
    'hf, sharded': Format(lambda folder: write_hf(folder, sharded=True), _hf, blind=('flip',)),
    'hf, manifest': Format(write_sealed_hf, functools.partial(read_foreign, formats, format='hf')),
    'gemma, orbax': Format(
        write_gemma, functools.partial(read_foreign, gemma_orbax, config=GEMMA), blind=('flip', 'swap')),
    # gzip has a checksum of each chunk, but a chunk does not know its array.
    't5x, gzip': Format(lambda folder: t5x_writer.write_legacy(folder, T5_WEIGHTS), _t5x, blind=('swap',)),
    't5x, plain': Format(
        lambda folder: t5x_writer.write_legacy(folder, T5_WEIGHTS, compressor=None), _t5x, blind=('flip', 'swap')),
    # OCDBT has a checksum of its tree, not of the chunks; a damaged zstd frame can be told by its form alone.
    't5x, orbax': Format(lambda folder: t5x_writer.write_orbax(folder, T5_WEIGHTS), _t5x, blind=('flip', 'swap')),
}


def outcome(form, path, expected):
  """'refused', 'same' or 'wrong'; any other error than ours is one of the test."""
  try:
    found = form.read(path)
  except errors.CheckpointError as error:
    assert str(path) in str(error) or path.name in str(error), error
    return 'refused'
  return 'same' if found in expected else 'wrong'


def campaign(name, folder, *, count, seed):
  """(kind of damage, outcome) -> number of `count` damaged copies of one checkpoint, and what was wrong without leave."""
  form, generator = FORMATS[name], random.Random(seed)
  original = folder / 'original'
  original.mkdir()
  inside = form.write(original).relative_to(original)
  expected = [form.read(original / inside)]
  if form.fallback:
    shutil.copytree(original, folder / 'older')
    shutil.rmtree(folder / 'older' / 'step_00000002')
    expected.append(form.read(folder / 'older'))
  counts, unseen = collections.Counter(), []
  for number in range(count):
    kind = list(damage.DAMAGES)[number % len(damage.DAMAGES)]
    copy = folder / 'copy'
    shutil.copytree(original, copy)
    path, detail = damage.DAMAGES[kind](copy / inside, generator)
    found = outcome(form, copy / inside, expected)
    counts[kind, found] += 1
    if found == 'wrong' and kind not in form.blind:
      unseen.append(f'{kind} {path.relative_to(copy)}: {detail}')
    shutil.rmtree(copy)
  return counts, unseen


def _report(name, counts):
  for kind in damage.DAMAGES:
    numbers = ', '.join(f'{counts[kind, found]} {found}' for found in ('refused', 'same', 'wrong'))
    print(f'{name:16} {kind:9} {numbers}')


@pytest.mark.parametrize('name', FORMATS)
def test_no_damage_is_silent(name, tmp_path, monkeypatch):
  monkeypatch.setattr(logging, 'error', lambda *args: None)
  counts, unseen = campaign(name, tmp_path, count=10, seed=7)
  _report(name, counts)
  assert not unseen, unseen
  refused = sum(number for (_, found), number in counts.items() if found == 'refused')
  assert refused >= 3 or FORMATS[name].fallback


@pytest.mark.nightly
@pytest.mark.parametrize('name', FORMATS)
def test_no_damage_is_silent_in_two_thousand(name, tmp_path, monkeypatch):
  monkeypatch.setattr(logging, 'error', lambda *args: None)
  counts, unseen = campaign(name, tmp_path, count=-(-2000 // len(FORMATS)), seed=11)
  _report(name, counts)
  assert not unseen, unseen


def test_the_campaign_sees_a_reader_that_checks_nothing(tmp_path):
  """Negative control: the same damage under a reader that fills in what it cannot read."""
  def careless(path):
    try:
      return read_foreign(t5x, path)
    except errors.CheckpointError:
      return None

  form = Format(FORMATS['t5x, gzip'].write, careless)
  FORMATS['careless'] = form
  try:
    counts, unseen = campaign('careless', tmp_path, count=15, seed=7)
  finally:
    del FORMATS['careless']
  assert len(unseen) >= 5 and not any(found == 'refused' for _, found in counts)
