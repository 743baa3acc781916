"""Draft heads on disk belong to one target."""

import jax
import numpy as np
import pytest

from specjax.checkpoints import heads_file
from specjax.checkpoints import native
from specjax.core import errors
from specjax.models import heads as heads_lib

CONFIG = heads_lib.HeadsConfig(kind='blockwise', num_heads=2, embed_dim=8, hidden_dim=6)


@pytest.fixture
def target(tmp_path):
  path = tmp_path / 'target.safetensors'
  native.save_safetensors(path, {'kernel': np.ones((2, 2), np.float32)}, {'family': 'gemma'})
  return path


def test_what_is_saved_is_loaded(tmp_path, target):
  # The format holds bfloat16.
  fresh = heads_lib.DraftHeads(CONFIG).init(jax.random.key(0))
  params = jax.tree.map(lambda x: x.astype('bfloat16').astype('float32'), fresh)
  heads_file.save(tmp_path / 'heads.safetensors', params, CONFIG, target=target)
  heads, loaded = heads_file.load(tmp_path / 'heads.safetensors', target=target)
  assert heads.config == CONFIG
  jax.tree.map(np.testing.assert_array_equal, params, loaded)


def test_heads_of_another_target_are_refused(tmp_path, target):
  params = heads_lib.DraftHeads(CONFIG).init(jax.random.key(0))
  heads_file.save(tmp_path / 'heads.safetensors', params, CONFIG, target=target)
  native.save_safetensors(target, {'kernel': np.zeros((2, 2), np.float32)}, {'family': 'gemma'})
  with pytest.raises(errors.CheckpointError, match='target_sha256.*another target'):
    heads_file.load(tmp_path / 'heads.safetensors', target=target)


def test_a_model_is_no_set_of_heads(target):
  with pytest.raises(errors.CheckpointError, match="family.*got 'gemma'"):
    heads_file.load(target, target=target)


@pytest.mark.parametrize('change, named', [
    (dict(kind='eagle'), 'kind'), (dict(num_heads=0), 'num_heads'), (dict(hidden_dim=None), 'hidden_dim')])
def test_shapes_without_meaning_are_refused(change, named):
  with pytest.raises(errors.ParamError, match=named):
    heads_lib.HeadsConfig(**(dict(kind='blockwise', num_heads=2, embed_dim=8, hidden_dim=6) | change))
