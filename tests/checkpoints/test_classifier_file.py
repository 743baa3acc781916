"""A KL classifier on disk belongs to one pair."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.checkpoints import classifier_file
from specjax.checkpoints import native
from specjax.core import errors
from specjax.ops import probes

CONFIG = classifier_file.ClassifierConfig(embed_dim=4, hidden_dims=(3,), level=0.7, num_knots=3)
LINEAR = classifier_file.ClassifierConfig(embed_dim=4, level=0.1, direction='drafter_target')


def save_model(path, *, seed=0.0, vocab_size=11, embed_dim=8, tokenizer='t'):
  native.save_safetensors(path, {'kernel': np.full((2, 2), 1 + seed, np.float32)}, {
      'family': 'gemma', 'config': {'vocab_size': vocab_size, 'embed_dim': embed_dim}, 'tokenizer_sha256': tokenizer})
  return path


@pytest.fixture
def pair(tmp_path):
  return dict(target=save_model(tmp_path / 'target.safetensors'),
              drafter=save_model(tmp_path / 'drafter.safetensors', seed=0.5, embed_dim=4))


def random_probe(config, seed=0):
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
      lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), classifier_file.template(config))
  knots = {'x': jnp.sort(params['knots']['x']), 'y': jnp.linspace(0.1, 0.9, config.num_knots)}
  return params | {'scale': jnp.exp(params['scale']), 'temperature': jnp.float32(1.5), 'knots': knots}


@pytest.mark.parametrize('config', [CONFIG, LINEAR], ids=['mlp', 'linear'])
def test_what_is_saved_is_loaded_to_the_bit(tmp_path, pair, config):
  params = random_probe(config)
  path = tmp_path / 'kl_classifier.safetensors'
  classifier_file.save(path, params, config, **pair, held_out={'auc': 0.9})
  loaded_config, loaded = classifier_file.load(path, **pair)
  assert loaded_config == config
  jax.tree.map(np.testing.assert_array_equal, params, loaded)
  assert 0 <= probes.probability(loaded, jnp.ones(4)) <= 1
  description = json.loads(path.with_suffix('.json').read_text())
  assert description['held_out'] == {'auc': 0.9} and description['vocab_size'] == 11


@pytest.mark.parametrize('role, change, error, named', [
    ('target', dict(seed=1.0), errors.CheckpointError, 'target_sha256.*another pair'),
    ('drafter', dict(seed=1.0, embed_dim=4), errors.CheckpointError, 'drafter_sha256.*another pair'),
    ('drafter', dict(embed_dim=16), errors.CheckpointError, "width of the features.*got 4.*drafter's 16"),
    ('target', dict(vocab_size=12), errors.VocabError, "vocab_size of the classifier.*got 11.*pair's 12"),
    ('target', dict(tokenizer='u'), errors.VocabError, 'tokenizer_sha256 of the classifier')])
def test_a_classifier_of_another_pair_is_refused_by_what_tells_most(tmp_path, pair, role, change, error, named):
  path = tmp_path / 'kl_classifier.safetensors'
  classifier_file.save(path, random_probe(CONFIG), CONFIG, **pair)
  other = save_model(tmp_path / 'other.safetensors', **change)
  with pytest.raises(error, match=named):
    classifier_file.load(path, **(pair | {role: other}))


def test_target_and_drafter_are_not_taken_for_one_another(tmp_path, pair):
  pair = dict(target=pair['target'], drafter=save_model(tmp_path / 'same_width.safetensors', seed=0.5))
  config = classifier_file.ClassifierConfig(embed_dim=8, level=1.0)
  path = tmp_path / 'kl_classifier.safetensors'
  classifier_file.save(path, random_probe(config), config, **pair)
  with pytest.raises(errors.CheckpointError, match='target_sha256'):
    classifier_file.load(path, target=pair['drafter'], drafter=pair['target'])


@pytest.mark.parametrize('change, named', [
    (dict(hidden_dims=[5]), 'kernels'), (dict(hidden_dims='3'), 'hidden_dims'), (dict(hidden_dims=[10**9]), 'hidden_dims'),
    (dict(num_knots=2), 'knots'), (dict(level=0), 'level'), (dict(level=None), 'level'),
    (dict(direction='sideways'), 'direction'), (dict(family='heads'), 'family'), (dict(family=['x']), 'family')])
def test_a_description_that_does_not_fit_is_refused(tmp_path, pair, change, named):
  path = tmp_path / 'kl_classifier.safetensors'
  classifier_file.save(path, random_probe(CONFIG), CONFIG, **pair)
  beside = path.with_suffix('.json')
  beside.write_text(json.dumps(json.loads(beside.read_text()) | change))
  with pytest.raises(errors.CheckpointError, match=named):
    classifier_file.load(path, **pair)


@pytest.mark.parametrize('change, named', [
    (dict(scale=jnp.array([1.0, 0.0, 1.0, 1.0])), 'scale'), (dict(temperature=jnp.float32(-1.0)), 'temperature'),
    (dict(knots={'x': jnp.array([0.0, 2.0, 1.0]), 'y': jnp.array([0.1, 0.2, 0.3])}), 'knots/x'),
    (dict(knots={'x': jnp.array([0.0, 1.0, 2.0]), 'y': jnp.array([0.1, 0.3, 0.2])}), 'knots/y'),
    (dict(knots={'x': jnp.array([0.0, 1.0, 2.0]), 'y': jnp.array([0.1, 0.3, 1.2])}), 'knots/y'),
    (dict(mean=jnp.zeros(5)), 'parameters of the classifier')])
def test_numbers_that_are_no_probe_are_refused_when_saved_and_when_loaded(tmp_path, pair, change, named):
  params, path = random_probe(CONFIG), tmp_path / 'kl_classifier.safetensors'
  with pytest.raises(errors.CheckpointError, match=named):
    classifier_file.save(path, params | change, CONFIG, **pair)
  described = classifier_file.describe(CONFIG, **pair)
  native.save_safetensors(path, params | change, described, dtype=np.float32)
  with pytest.raises(errors.CheckpointError):
    classifier_file.load(path, **pair)


def test_a_damaged_file_and_a_missing_one_are_named(tmp_path, pair):
  path = tmp_path / 'kl_classifier.safetensors'
  with pytest.raises(errors.CheckpointError, match='kl_classifier.safetensors'):
    classifier_file.load(path, **pair)
  classifier_file.save(path, random_probe(CONFIG), CONFIG, **pair)
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  with pytest.raises(errors.CheckpointError, match='SHA-256'):
    classifier_file.load(path, **pair)
