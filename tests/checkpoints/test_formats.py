"""`specjax.load` and the table of formats: what is found, what is refused, what is written whole or not at all."""

import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax.checkpoints import downloads
from specjax.checkpoints import formats
from specjax.checkpoints import leaves
from specjax.checkpoints import manifest
from specjax.checkpoints import native
from specjax.core import errors
from specjax.pairs import builtin
from tests.checkpoints import tiny_models

CONFIG = tiny_models.CONFIGS['gemma3_text']
WRITTEN = [name for name, form in formats.FORMATS.items() if form.write]


def write(folder, format, config=CONFIG, **options):
  formats.write(folder, config, tiny_models.random_leaves(config), format=format, **options)
  return folder


@pytest.mark.parametrize('format', WRITTEN)
@pytest.mark.parametrize('name', ['gemma3_text', 't5_1_1'])
def test_what_is_written_is_found_and_read_back_bitwise(format, name, tmp_path):
  config = tiny_models.CONFIGS[name]
  folder = write(tmp_path / 'model', format, config)
  assert formats.detect(folder) == format
  read_config, read, extra = formats.open_checkpoint(folder)
  assert read_config == config and not extra
  assert tiny_models.same(read, tiny_models.random_leaves(config))


def test_built_in_models_are_found():
  path = os.path.join(os.path.dirname(builtin.__file__), 'data', 't5', 'drafter.safetensors')
  model, params = specjax.load(path, dtype='float32')
  expected_model, expected = builtin.load_model(path)
  assert model == expected_model
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_params_of_a_training_checkpoint_are_read_and_its_optimizer_is_not(tmp_path):
  found = tiny_models.random_leaves(CONFIG)
  params = {name.replace('/', '.'): leaf.read() for name, leaf in found.items()}
  from specjax.checkpoints import descriptions
  checkpoints = native.TrainingCheckpoints(tmp_path / 'run')
  for step in (3, 5):
    state = {'params': params, 'step': np.int32(step), 'opt_state': {'mu': params}}
    checkpoints.save(step, state, {'model': descriptions.describe(CONFIG), 'seconds': 2.0})
  for path in (tmp_path / 'run', tmp_path / 'run' / 'step_00000003'):
    config, read, extra = formats.open_checkpoint(path)
    assert config == CONFIG and not extra and tiny_models.same(read, found)
  payload = max((tmp_path / 'run' / 'step_00000003' / 'arrays').rglob('*'), key=lambda path: path.stat().st_size)
  content = bytearray(payload.read_bytes())
  content[len(content) // 2] ^= 1
  payload.write_bytes(content)
  with pytest.raises(errors.CheckpointError, match='SHA-256'):
    specjax.load(tmp_path / 'run' / 'step_00000003')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', jnp.float16])
def test_leaves_are_cast_and_placed(dtype, tmp_path):
  folder = write(tmp_path / 'model', 'hf')
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  model, params = specjax.load(folder, dtype=dtype, shardings=sharding)
  assert model.dtype == model.param_dtype == jnp.dtype(dtype)
  for name, leaf in native.flatten(params).items():
    assert leaf.dtype == jnp.dtype(dtype) and leaf.sharding == sharding
    expected = tiny_models.random_leaves(CONFIG)[name].read().astype(jnp.dtype(dtype))
    np.testing.assert_array_equal(np.asarray(leaf), expected)


@pytest.mark.parametrize('arguments, kind', [
    (dict(format='pickle'), errors.ParamError), (dict(dtype='int8'), errors.ParamError),
    (dict(dtype='float31'), errors.ParamError), (dict(config='gemma2_2b'), errors.ParamError)])
def test_arguments_without_meaning_are_refused(arguments, kind, tmp_path):
  folder = write(tmp_path / 'model', 'hf')
  with pytest.raises(kind):
    specjax.load(folder, **arguments)


def test_nothing_and_things_that_are_no_checkpoint_are_named(tmp_path):
  with pytest.raises(errors.CheckpointError, match='no such file'):
    specjax.load(tmp_path / 'nothing')
  (tmp_path / 'notes.txt').write_text('x')
  for path in (tmp_path, tmp_path / 'notes.txt'):
    with pytest.raises(errors.CheckpointError, match='unknown format'):
      specjax.load(path)


def test_another_configuration_than_the_weights_is_refused(tmp_path):
  folder = write(tmp_path / 'model', 'native')
  with pytest.raises(errors.CheckpointError, match='another model'):
    specjax.load(folder, config=tiny_models.CONFIGS['gemma2'])


@pytest.mark.parametrize('format', ['hf', 'native'])
def test_flips_truncations_deletions_and_swaps_are_named(format, tmp_path):
  folder, other = write(tmp_path / 'model', format), write(tmp_path / 'other', format, tiny_models.CONFIGS['gemma2'])
  rng = np.random.default_rng(5)
  for path in sorted(folder.iterdir()):
    content = path.read_bytes()
    damaged = [content[:int(rng.integers(len(content)))], b'', (other / path.name).read_bytes(), bytes(len(content))]
    for at in rng.integers(len(content), size=6):
      damaged.append(content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1:])
    for version in damaged:
      path.write_bytes(version)
      with pytest.raises(errors.CheckpointError) as caught:
        formats.open_checkpoint(folder, format=format)
      assert str(folder) in str(caught.value)
    path.unlink()
    if path.name != manifest.NAME:
      with pytest.raises(errors.CheckpointError):
        formats.open_checkpoint(folder, format=format)
    path.write_bytes(content)
  formats.open_checkpoint(folder, format=format)


def test_output_that_exists_is_left_alone(tmp_path):
  folder = write(tmp_path / 'model', 'hf')
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  with pytest.raises(errors.ConfigError, match='exists'):
    write(folder, 'native')
  assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
  (tmp_path / 'empty').mkdir()  # A rename would replace it.
  with pytest.raises(errors.ConfigError, match='exists'):
    write(tmp_path / 'empty', 'native')
  assert {path.name for path in tmp_path.iterdir()} == {'model', 'empty'}


def test_a_writer_that_fails_leaves_nothing(tmp_path):
  found = tiny_models.random_leaves(CONFIG)
  found['final_norm/scale'] = found['final_norm/scale']._replace(read=lambda: 1 / 0)
  for format in WRITTEN:
    with pytest.raises(errors.CheckpointError, match='final_norm'):
      formats.write(tmp_path / 'model', CONFIG, found, format=format)
    assert not list(tmp_path.iterdir())


# Names in the network.


@pytest.mark.parametrize('name', ['hf://google/gemma-2-2b', 'kaggle://google/gemma/flax/2b/1', 'hf://x'])
def test_names_in_the_network_need_permission(name):
  with pytest.raises(errors.CheckpointError, match='allow_download') as caught:
    specjax.load(name)
  assert 'licensed' in str(caught.value) and '40 hexadecimal' in str(caught.value)


@pytest.mark.parametrize('name', [
    'hf://google/gemma-2-2b', 'hf://google/gemma-2-2b@main', f'hf://google/../x@{"a" * 40}', f'hf://google/x@{"A" * 40}',
    f'hf://google/x@{"a" * 40}/y', 'kaggle://google/gemma/flax/2b', 'kaggle://google/gemma/flax/2b/latest',
    'kaggle://google/gemma/flax/2b/0'])
def test_only_pinned_names_are_fetched(name, monkeypatch):
  for library in ('huggingface_hub', 'kagglehub'):
    monkeypatch.setitem(sys.modules, library, types.SimpleNamespace())  # Every use of it would be an AttributeError.
  with pytest.raises(errors.CheckpointError, match='pinned'):
    downloads.fetch(name)


def test_pinned_names_are_fetched_by_their_libraries(tmp_path, monkeypatch):
  asked = []

  def snapshot_download(repository, *, revision, allow_patterns):
    asked.append((repository, revision))
    assert not any('bin' in pattern or '*.py' in pattern for pattern in allow_patterns)
    return str(tmp_path)

  monkeypatch.setitem(
      sys.modules, 'huggingface_hub', types.SimpleNamespace(snapshot_download=snapshot_download))
  monkeypatch.setitem(
      sys.modules, 'kagglehub', types.SimpleNamespace(model_download=lambda name: asked.append(name) or str(tmp_path)))
  assert downloads.fetch(f'hf://google/gemma-2-2b@{"0a" * 20}') == tmp_path
  assert downloads.fetch('kaggle://google/gemma/flax/2b/12') == tmp_path
  assert asked == [('google/gemma-2-2b', '0a' * 20), 'google/gemma/flax/2b/12']


def test_a_refused_download_explains_the_licence(monkeypatch):
  def snapshot_download(*_, **__):
    raise OSError('403 Client Error: gated repository')

  monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(snapshot_download=snapshot_download))
  with pytest.raises(errors.CheckpointError, match='gated') as caught:
    downloads.fetch(f'hf://google/gemma-2-2b@{"0a" * 20}')
  assert 'accept its terms' in str(caught.value)
  monkeypatch.setitem(sys.modules, 'kagglehub', None)
  with pytest.raises(errors.CheckpointError, match='kagglehub is not installed'):
    downloads.fetch('kaggle://google/gemma/flax/2b/12')


# Memory.

_MEASURE = '''
import resource, sys, jax
from specjax.checkpoints import formats, hf
import specjax
jax.device_put(jax.numpy.zeros(8)).block_until_ready()
formats.FORMATS, specjax.load
import specjax.models.gemma
resident = int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
model, params = specjax.load(sys.argv[1], dtype=sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(before - resident, peak - resident, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
'''


@pytest.mark.nightly
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_loading_500_megabytes_takes_at_most_a_quarter_more(dtype, tmp_path):
  config = tiny_models.gemma.DecoderConfig(
      vocab_size=64_000, embed_dim=640, hidden_dim=2560, num_heads=10, num_kv_heads=5, head_dim=64,
      layer_kinds=('local', 'global') * 7, window=512, activation='gelu', norm_plus_one=True, post_norms=True,
      query_key_norm=True, scale_embeddings=True)
  zeros = lambda leaf: leaves.Leaf(leaf.shape, np.dtype(np.float32), lambda: np.full(leaf.shape, 0.5, np.float32), 'x')
  found = {name: zeros(leaf) for name, leaf in tiny_models.shapes_of(config).items()}
  formats.write(tmp_path / 'model', config, found, format='hf', max_shard_bytes=200 << 20)
  size = sum(path.stat().st_size for path in (tmp_path / 'model').glob('*.safetensors'))
  assert 4.8e8 < size < 5.6e8
  done = subprocess.run(
      [sys.executable, '-c', _MEASURE, str(tmp_path / 'model'), dtype], capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr
  slack, peak, held = map(int, done.stdout.split())
  print(f'{dtype}: {size} bytes in files, {held} in parameters, {peak} at the peak ({peak / size:.3f}), slack {slack}')
  assert held == size // (1 if dtype == 'float32' else 2) or abs(held * (1 if dtype == 'float32' else 2) - size) < 1e6
  assert peak <= 1.25 * size
