"""Draft heads are trained by the train binary's entry: their options, what is written, and what is refused."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest

from specjax import config
from specjax import train as binary
from specjax.checkpoints import heads_file
from specjax.checkpoints import native
from specjax.core import errors
from specjax.models import autoregressive_head
from specjax.models import heads as heads_lib
from specjax.pairs import builtin
from specjax.pairs import heads_recipe
from specjax.pairs import recipe
from specjax.training import stopping

TARGET = dataclasses.replace(builtin.GEMMA_TARGET, config=dataclasses.replace(
    builtin.GEMMA_TARGET.config, embed_dim=16, hidden_dim=24, num_heads=2, head_dim=8, layer_kinds=('local', 'global')))
HEADS = builtin.HeadsSpec('gemma', heads_lib.HeadsConfig(kind='blockwise', num_heads=2, embed_dim=16, hidden_dim=8))
AUTOREGRESSIVE = builtin.AutoregressiveHeadSpec('gemma', autoregressive_head.AutoregressiveHeadConfig(
    embed_dim=16, hidden_dim=8, num_heads=2, num_kv_heads=1, head_dim=8))


@pytest.fixture(scope='module')
def target(tmp_path_factory):
  """The file of a tiny target."""
  path = tmp_path_factory.mktemp('shipped') / 'gemma' / 'target.safetensors'
  params = jax.jit(builtin.make_model(TARGET).init)(jax.random.key(0))
  native.save_safetensors(path, params, builtin.describe(TARGET))
  return path


@pytest.fixture(autouse=True)
def tiny(target, monkeypatch):
  monkeypatch.setattr(builtin, 'target_file', lambda name, **unused: contextlib.nullcontext(target))
  monkeypatch.setitem(heads_recipe.SPECS, 'gemma_heads', HEADS)
  monkeypatch.setitem(heads_recipe.SPECS, 'gemma_autoregressive_head', AUTOREGRESSIVE)


def train(directory, **changes):
  arguments = config.resolve(
      entry=recipe.train, files=(binary.DEFAULTS,), provided=binary.PROVIDED, overrides=dict(
          output_dir=str(directory / 'out'), export_dir=str(directory / 'export'), models=['gemma_heads'], steps=3,
          learning_rate=1e-2, warmup_steps=1, batch_size=2, num_examples=8, num_validation=8, sequence_length=96,
          tensorboard=False, progress=False, evaluate_every=3)).arguments()
  return recipe.train(**(arguments | changes), stop=stopping.StopRequest())


@pytest.mark.parametrize('name', ['gemma_heads', 'gemma_autoregressive_head'])
def test_trained_heads_are_exported_for_the_target_they_were_trained_on(tmp_path, target, name):
  assert train(tmp_path, models=[name])
  path = tmp_path / 'export' / 'gemma' / f'{name.partition("_")[2]}.safetensors'
  heads, _ = heads_file.load(path, target=target)
  assert heads.config == heads_recipe.SPECS[name].config
  description = json.loads(path.with_suffix('.json').read_text())
  assert description['training'] == dict(answers='text', hidden_states='computed', target_weight=None)
  assert description['recipe']['num_examples'] == 8 and description['vocab_size'] == builtin.VOCAB_SIZE


@pytest.mark.nightly
def test_heads_trained_on_states_from_disk_are_the_same_and_the_states_are_written_once(tmp_path, target):
  computed, stored = tmp_path / 'computed', tmp_path / 'stored'
  assert train(computed) and train(stored, hidden_states='float32')
  path = 'export/gemma/heads.safetensors'
  one, other = (native.flatten(heads_file.load(base / path, target=target)[1]) for base in (computed, stored))
  for name in one:
    np.testing.assert_allclose(one[name], other[name], rtol=0, atol=5e-3)  # bfloat16, and Adam's first steps have size 1.
  folders = list((stored / 'out' / 'data').glob('hidden-*'))
  assert len(folders) == 2  # Of training and validation.
  times = {part: part.stat().st_mtime_ns for folder in folders for part in folder.iterdir()}
  assert train(stored, hidden_states='float32')
  assert times == {part: part.stat().st_mtime_ns for part in times}


def test_a_stop_before_the_states_are_written_is_a_run_that_can_go_on(tmp_path):
  class Stop(stopping.StopRequest):
    requested = property(lambda self: True, lambda self, value: None)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stopping, 'StopRequest', Stop)
    assert not train(tmp_path, hidden_states='bfloat16')
  assert train(tmp_path, hidden_states='bfloat16')


def test_joint_training_exports_the_target_it_ends_with_and_says_so(tmp_path, target):
  assert train(tmp_path, target_weight=2.0)
  folder = tmp_path / 'export' / 'gemma'
  heads_file.load(folder / 'heads.safetensors', target=folder / 'target.safetensors')
  with pytest.raises(errors.CheckpointError, match='target_sha256'):
    heads_file.load(folder / 'heads.safetensors', target=target)
  for name in ('heads', 'target'):
    description = json.loads((folder / f'{name}.json').read_text())
    assert description['trained_from_sha256'] == native.sha256_file(target)
  assert json.loads((folder / 'heads.json').read_text())['training']['target_weight'] == 2.0
  model, trained = builtin.load_model(folder / 'target.safetensors')
  _, started = builtin.load_model(target)
  assert model.config == TARGET.config
  assert any(np.any(x != y) for x, y in zip(jax.tree.leaves(trained), jax.tree.leaves(started)))


def test_joint_training_never_replaces_the_target_it_started_from(tmp_path, target):
  before = target.read_bytes()
  with pytest.raises(errors.ConfigError, match='export_dir'):
    train(tmp_path, target_weight=1.0, export_dir=str(target.parent.parent))
  assert target.read_bytes() == before and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('change, error, named', [
    (dict(answers='mine'), errors.ParamError, 'answers'),
    (dict(hidden_states='float16'), errors.ParamError, 'hidden_states'),
    (dict(target_weight=-1.0), errors.ParamError, 'target_weight'),
    (dict(target_weight=1.0, hidden_states='float32'), errors.ConfigError, 'hidden_states with target_weight'),
    (dict(target_weight=1.0, models=['gemma_autoregressive_head']), errors.ConfigError, 'target_weight'),
    (dict(answers='target_greedy', models=['gemma_target']), errors.ConfigError, 'gemma_target: answers, hidden_states'),
    (dict(models=['gemma_eagle']), errors.ConfigError, 'gemma_autoregressive_head')])
def test_options_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, change, error, named):
  with pytest.raises(error, match=named):
    train(tmp_path, **change)
  assert not list(tmp_path.iterdir())


@pytest.mark.nightly
def test_the_same_run_with_other_options_is_another_run(tmp_path):
  train(tmp_path)
  with pytest.raises(errors.ConfigError, match='model.training.hidden_states'):
    train(tmp_path, hidden_states='float32')
