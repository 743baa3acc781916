"""Draft heads on disk belong to one target."""

import json

import jax
import numpy as np
import pytest

from specjax.checkpoints import heads_file
from specjax.checkpoints import native
from specjax.core import errors
from specjax.models import autoregressive_head
from specjax.models import heads as heads_lib

CONFIG = heads_lib.HeadsConfig(kind='blockwise', num_heads=2, embed_dim=8, hidden_dim=6)
AUTOREGRESSIVE = autoregressive_head.AutoregressiveHeadConfig(
    embed_dim=8, hidden_dim=6, num_heads=2, num_kv_heads=1, head_dim=4)
CONFIGS = [
    CONFIG, heads_lib.HeadsConfig(kind='medusa', num_heads=3, embed_dim=8), AUTOREGRESSIVE]


def save_target(path, *, seed=0.0, vocab_size=11, embed_dim=8, tokenizer='t'):
  native.save_safetensors(path, {'kernel': np.full((2, 2), 1 + seed, np.float32)}, {
      'family': 'gemma', 'config': {'vocab_size': vocab_size, 'embed_dim': embed_dim}, 'tokenizer_sha256': tokenizer})
  return path


@pytest.fixture
def target(tmp_path):
  return save_target(tmp_path / 'target.safetensors')


@pytest.mark.parametrize('config', CONFIGS, ids=['blockwise', 'medusa', 'autoregressive'])
def test_what_is_saved_is_loaded(tmp_path, target, config):
  # The format holds bfloat16.
  fresh = heads_file.make(config).init(jax.random.key(0))
  params = jax.tree.map(lambda x: x.astype('bfloat16').astype('float32'), fresh)
  heads_file.save(tmp_path / 'heads.safetensors', params, config, target=target)
  heads, loaded = heads_file.load(tmp_path / 'heads.safetensors', target=target)
  assert heads == heads_file.make(config)
  jax.tree.map(np.testing.assert_array_equal, params, loaded)


@pytest.mark.parametrize('change, error, named', [
    (dict(seed=1.0), errors.CheckpointError, 'target_sha256.*another target'),
    (dict(embed_dim=16), errors.CheckpointError, "width of the heads.*got 8.*target's 16"),
    (dict(vocab_size=12), errors.VocabError, "vocab_size of the heads.*got 11.*target's 12"),
    (dict(tokenizer='u'), errors.VocabError, 'tokenizer_sha256 of the heads')])
@pytest.mark.parametrize('config', [CONFIG, AUTOREGRESSIVE], ids=['blockwise', 'autoregressive'])
def test_heads_of_another_target_are_refused_by_what_tells_most(tmp_path, target, config, change, error, named):
  params = heads_file.make(config).init(jax.random.key(0))
  heads_file.save(tmp_path / 'heads.safetensors', params, config, target=target)
  other = save_target(tmp_path / 'other.safetensors', **change)
  with pytest.raises(error, match=named):
    heads_file.load(tmp_path / 'heads.safetensors', target=other)


@pytest.mark.parametrize('change, named', [
    (dict(num_heads=3), 'up'), (dict(num_heads=10**6), 'shape of the heads'), (dict(hidden_dim='6'), 'shape of the heads'),
    (dict(family='eagle'), 'family'), (dict(family=['heads']), 'family'), (dict(kind='medusa'), 'down')])
def test_a_description_that_does_not_fit_is_refused(tmp_path, target, change, named):
  path = tmp_path / 'heads.safetensors'
  heads_file.save(path, heads_file.make(CONFIG).init(jax.random.key(0)), CONFIG, target=target)
  beside = path.with_suffix('.json')
  beside.write_text(json.dumps(json.loads(beside.read_text()) | change))
  with pytest.raises(errors.CheckpointError, match=named):
    heads_file.load(path, target=target)


def test_a_model_is_no_set_of_heads(target):
  with pytest.raises(errors.CheckpointError, match="family.*got 'gemma'"):
    heads_file.load(target, target=target)


@pytest.mark.parametrize('change, named', [
    (dict(kind='eagle'), 'kind'), (dict(num_heads=0), 'num_heads'), (dict(hidden_dim=None), 'hidden_dim'),
    (dict(embed_dim=0), 'embed_dim'), (dict(embed_dim='8'), 'embed_dim')])
def test_shapes_without_meaning_are_refused(change, named):
  with pytest.raises(errors.ParamError, match=named):
    heads_lib.HeadsConfig(**(dict(kind='blockwise', num_heads=2, embed_dim=8, hidden_dim=6) | change))
