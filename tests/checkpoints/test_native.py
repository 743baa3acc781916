"""specjax's own checkpoints under damage: an error that names the file, or an older checkpoint and a loud log."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from specjax.checkpoints import native
from specjax.core import errors

ROOT = pathlib.Path(__file__).resolve().parents[2]


def tree_of(step):
  return {
      'kernel': np.arange(600, dtype=np.float32).reshape(20, 30) + step, 'step': np.int32(step),
      'moments': (np.full(40, step, ml_dtypes.bfloat16), {'count': np.array([step], np.int32)}),
  }


def equal(left, right):
  left, right = native.flatten(left), native.flatten(right)
  same = lambda a, b: a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
  return left.keys() == right.keys() and all(same(np.asarray(left[name]), np.asarray(right[name])) for name in left)


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  """A directory with valid checkpoints of steps 1 and 2; copied, never changed."""
  directory = tmp_path_factory.mktemp('original')
  checkpoints = native.TrainingCheckpoints(directory)
  for step in (1, 2):
    checkpoints.save(step, tree_of(step), {'seed': 5, 'at': step})
  return directory


@pytest.fixture
def directory(original, tmp_path):
  return shutil.copytree(original, tmp_path / 'checkpoints')


def newest_dir(directory):
  return directory / 'step_00000002'


def files_of(step_dir):
  return sorted(path for path in step_dir.rglob('*') if path.is_file())


def payload(step_dir):
  """The largest file, which holds the arrays."""
  return max(files_of(step_dir / 'arrays'), key=lambda path: path.stat().st_size)


def flip_bit(path, bit):
  content = bytearray(path.read_bytes())
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)


def test_round_trip_is_exact(directory):
  step, tree, metadata = native.TrainingCheckpoints(directory).restore_newest(tree_of(0))
  assert step == 2 and metadata == {'seed': 5, 'at': 2}
  assert equal(tree, tree_of(2)) and not equal(tree, tree_of(1))


def test_template_may_be_shapes_alone(directory):
  template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree_of(0))
  assert equal(native.TrainingCheckpoints(directory).restore(1, template)[0], tree_of(1))


def test_no_checkpoint_is_none(tmp_path):
  assert native.TrainingCheckpoints(tmp_path / 'new').restore_newest(tree_of(0)) is None


def flip(path):
  flip_bit(path, 8 * (path.stat().st_size // 2) + 3)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


def empty(path):
  path.write_bytes(b'')


def zero(path):
  path.write_bytes(bytes(path.stat().st_size) if path.read_bytes().strip(b'\0') else b'\1' * path.stat().st_size)


DAMAGES = [flip, truncate, empty, zero, pathlib.Path.unlink]


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_to_any_file_is_an_error_that_names_it(directory, damage):
  checkpoints = native.TrainingCheckpoints(directory)
  paths = [path for path in files_of(newest_dir(directory)) if path.stat().st_size]
  assert len(paths) > 3
  for path in paths:
    content = path.read_bytes()
    damage(path)
    with pytest.raises(errors.CheckpointError) as caught:
      checkpoints.restore(2, tree_of(0))
    assert path.name in str(caught.value)
    path.write_bytes(content)
  assert equal(checkpoints.restore(2, tree_of(0))[0], tree_of(2))


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_falls_back_to_the_older_checkpoint_and_says_so(directory, damage, caplog):
  path = payload(newest_dir(directory))
  damage(path)
  step, tree, _ = native.TrainingCheckpoints(directory).restore_newest(tree_of(0))
  assert step == 1 and equal(tree, tree_of(1))
  [record] = [record for record in caplog.records if record.levelname == 'ERROR']
  assert path.name in record.getMessage() and 'step 2' in record.getMessage()


def test_every_flipped_bit_of_the_manifest_is_refused_or_harmless(directory):
  manifest = newest_dir(directory) / 'manifest.json'
  good = manifest.read_bytes()
  body = json.loads(good)['body']
  draws, refused = random.Random(20), 0
  for bit in draws.sample(range(8 * len(good)), 200):
    flip_bit(manifest, bit)
    try:
      assert native.TrainingCheckpoints(directory).metadata(2) == body['metadata']
    except errors.CheckpointError:
      refused += 1
    manifest.write_bytes(good)
  assert refused >= 190


def test_without_the_manifest_a_flipped_bit_restores_silently_wrong(directory, monkeypatch):
  # The guard's negative control: Orbax alone lets some damage through, or the manifest would be for nothing.
  monkeypatch.setattr(native, '_verified_manifest', lambda where, step: json.loads(
      (where / 'manifest.json').read_text())['body'])
  checkpoints, path = native.TrainingCheckpoints(directory), payload(newest_dir(directory))
  draws, size = random.Random(1), path.stat().st_size
  for _ in range(60):
    bit = draws.randrange(8 * size)
    flip_bit(path, bit)
    try:
      tree, _ = checkpoints.restore(2, tree_of(0))
      if not equal(tree, tree_of(2)):
        return
    except errors.CheckpointError:
      pass
    flip_bit(path, bit)
  pytest.fail('sixty flipped bits and none restored silently wrong: is the manifest still needed?')


def test_swapped_files_are_refused(directory):
  ours, theirs = payload(newest_dir(directory)), payload(directory / 'step_00000001')
  content = theirs.read_bytes()
  theirs.write_bytes(ours.read_bytes())
  ours.write_bytes(content)
  for step in (1, 2):
    with pytest.raises(errors.CheckpointError, match='SHA-256'):
      native.TrainingCheckpoints(directory).restore(step, tree_of(0))
  with pytest.raises(errors.CheckpointError, match='no valid checkpoint.*1, 2'):
    native.TrainingCheckpoints(directory).restore_newest(tree_of(0))


def test_a_checkpoint_under_the_name_of_another_step_is_refused(directory):
  newest_dir(directory).rename(directory / 'step_00000003')
  with pytest.raises(errors.CheckpointError, match='manifest'):
    native.TrainingCheckpoints(directory).restore(3, tree_of(0))
  assert native.TrainingCheckpoints(directory).newest() == 1


def test_a_file_or_link_that_the_manifest_does_not_know_is_refused(directory):
  extra = newest_dir(directory) / 'arrays' / 'extra'
  extra.write_text('x')
  with pytest.raises(errors.CheckpointError, match='extra.*not in the manifest'):
    native.TrainingCheckpoints(directory).restore(2, tree_of(0))
  extra.unlink()
  extra.symlink_to('/etc/hostname')
  with pytest.raises(errors.CheckpointError, match='symbolic link'):
    native.TrainingCheckpoints(directory).restore(2, tree_of(0))


def test_stray_entries_are_ignored_with_a_warning(directory, caplog):
  (directory / 'step_7').mkdir()
  (directory / 'latest').write_text('2')
  (directory / 'step_00000009').symlink_to(newest_dir(directory))
  (directory / '.tmp-3-1').mkdir()
  assert native.TrainingCheckpoints(directory).newest() == 2
  warned = ' '.join(record.getMessage() for record in caplog.records)
  assert all(name in warned for name in ('step_7', 'latest', 'step_00000009')) and '.tmp' not in warned


def test_an_empty_step_directory_is_passed_over(directory, caplog):
  (directory / 'step_00000003').mkdir()
  assert native.TrainingCheckpoints(directory).newest() == 2
  assert 'step 3 is damaged' in caplog.text


@pytest.mark.parametrize('manifest', [
    b'', b'[]', b'{}', b'{"body": 1}', b'\xff', b'[' * 20_000, b'{"body": {"step": 2}, "sha256": 0}', b'null'])
def test_a_hostile_manifest_is_one_kind_of_error(directory, manifest):
  (newest_dir(directory) / 'manifest.json').write_bytes(manifest)
  with pytest.raises(errors.CheckpointError, match='manifest'):
    native.TrainingCheckpoints(directory).metadata(2)


def test_another_tree_is_refused_with_every_difference(directory):
  template = tree_of(0)
  template['kernel'] = template['kernel'].T
  template['moments'] = (template['moments'][0].astype(np.float32), {'number': np.zeros(1)})
  with pytest.raises(errors.CheckpointError) as caught:
    native.TrainingCheckpoints(directory).restore(2, template)
  message = str(caught.value)
  assert 'missing moments.1.number' in message and 'extra moments.1.count' in message
  assert 'kernel is float32[20, 30], expected float32[30, 20]' in message
  assert 'moments.0 is bfloat16[40], expected float32[40]' in message


def test_only_the_newest_are_kept(directory):
  checkpoints = native.TrainingCheckpoints(directory, keep=2)
  checkpoints.save(3, tree_of(3), {})
  assert checkpoints.steps() == [2, 3]


def test_a_damaged_later_checkpoint_never_pushes_a_good_one_out(directory):
  checkpoints = native.TrainingCheckpoints(directory, keep=1)
  truncate(payload(newest_dir(directory)))
  (directory / 'step_00000009').mkdir()
  assert checkpoints.newest() == 1
  shutil.rmtree(newest_dir(directory))
  checkpoints.save(2, tree_of(2), {})
  assert checkpoints.steps() == [2] and checkpoints.newest() == 2


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(directory):
  checkpoints = native.TrainingCheckpoints(directory)
  truncate(payload(newest_dir(directory)))
  checkpoints.save(2, tree_of(22), {})
  assert equal(checkpoints.restore(2, tree_of(0))[0], tree_of(22))


def test_a_failing_write_leaves_the_older_checkpoints(directory, monkeypatch):
  checkpoints = native.TrainingCheckpoints(directory)

  def full(*unused):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'rename', full)
    with pytest.raises(OSError, match='No space'):
      checkpoints.save(3, tree_of(3), {})
  assert checkpoints.newest() == 2
  checkpoints.save(3, tree_of(3), {})  # Space came back; what was left behind is cleaned up.
  assert checkpoints.steps() == [2, 3] and not list(directory.glob('.tmp-*'))


def test_a_relative_directory_is_as_good(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  checkpoints = native.TrainingCheckpoints('runs/checkpoints')
  checkpoints.save(3, tree_of(3), {})
  monkeypatch.chdir('/')
  assert equal(checkpoints.restore_newest(tree_of(0))[1], tree_of(3))


def test_what_another_process_is_writing_is_left_alone(directory):
  owner = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
  unfinished = directory / f'.tmp-{owner.pid}-step_00000003'
  unfinished.mkdir()
  native.TrainingCheckpoints(directory).save(4, tree_of(4), {})
  assert unfinished.is_dir()
  owner.communicate(b'\n')
  native.TrainingCheckpoints(directory).save(5, tree_of(5), {})
  assert not unfinished.exists()


def kill_while_saving(directory, num_calls, num_times):
  script = pathlib.Path(__file__).parent / 'save_under_kill.py'
  process = subprocess.run(
      [sys.executable, str(script), str(directory), str(num_calls), str(num_times), '7'], text=True, capture_output=True,
      env=dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu'))
  assert process.returncode == 0, process.stdout + process.stderr
  return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.timeout(600)
def test_killed_while_saving_leaves_a_good_checkpoint(tmp_path):
  result = kill_while_saving(tmp_path, 8, 4)
  assert result['wrong'] == [] and result['killed'] >= 9, result


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_killed_while_saving_at_many_moments(tmp_path):
  result = kill_while_saving(tmp_path, 60, 240)
  assert result['wrong'] == [] and result['killed'] >= 200, result


# Models: safetensors and the JSON beside it.

PARAMS = {'embedding': np.arange(12, dtype=np.float32).reshape(4, 3), 'layer': {'kernel': np.ones((3, 3), np.float32)},
          'scale': np.full(3, 0.5, np.float32)}


@pytest.fixture
def model_file(tmp_path):
  path = tmp_path / 'model.safetensors'
  native.save_safetensors(path, PARAMS, {'family': 'toy'})
  return path


def rewrite(path, change):
  """Applies `change` to the stored tensors and seals the file again, as a hostile author would."""
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  path.write_bytes(safetensors.numpy.save(tensors))
  description = json.loads(path.with_suffix('.json').read_text())
  path.with_suffix('.json').write_text(json.dumps(dict(description, sha256=native.sha256_file(path))))


def test_model_round_trip_is_bfloat16(model_file):
  restored = native.load_safetensors(model_file, PARAMS)
  assert equal(restored, jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16).astype(np.float32), PARAMS))
  assert native.load_description(model_file) == {
      'family': 'toy', 'num_parameters': 24, 'sha256': native.sha256_file(model_file)}
  narrow = native.load_safetensors(model_file, PARAMS, dtype=jnp.bfloat16)
  assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(narrow))


def test_everything_wrong_with_a_model_file_is_listed_at_once(model_file):
  def change(tensors):
    tensors['surplus'] = tensors.pop('embedding')
    tensors['layer/kernel'] = np.full((3, 2), np.nan, np.float32)
    tensors['scale'] = np.ones(3, np.int32)

  rewrite(model_file, change)
  with pytest.raises(errors.CheckpointError) as caught:
    native.load_safetensors(model_file, PARAMS)
  message = str(caught.value)
  for problem in ('missing embedding', 'extra surplus', 'layer/kernel is float[3, 2], expected float[3, 3]',
                  'scale is int32[3], expected float[3]', 'layer/kernel holds NaN or infinity'):
    assert problem in message
  assert str(model_file) in message


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_neither_written_nor_read(model_file, tmp_path, value):
  with pytest.raises(errors.CheckpointError, match='scale'):
    native.save_safetensors(tmp_path / 'other.safetensors', dict(PARAMS, scale=np.full(3, value, np.float32)), {})
  assert not (tmp_path / 'other.safetensors').exists()
  rewrite(model_file, lambda tensors: tensors.update(scale=np.array([1, value, 1], np.float32)))
  with pytest.raises(errors.CheckpointError, match='scale holds NaN or infinity'):
    native.load_safetensors(model_file, PARAMS)


def test_the_check_for_finite_weights_is_what_refuses_them(model_file, monkeypatch):
  rewrite(model_file, lambda tensors: tensors.update(scale=np.full(3, np.nan, np.float32)))
  monkeypatch.setattr(native, '_is_finite', lambda leaf: True)
  assert np.isnan(native.load_safetensors(model_file, PARAMS)['scale']).all()


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_to_a_model_file_is_an_error_that_names_it(model_file, damage):
  damage(model_file)
  with pytest.raises(errors.CheckpointError, match='model.safetensors'):
    native.load_description(model_file)


def test_a_file_that_is_not_safetensors_is_one_kind_of_error(model_file):
  draws = random.Random(3)
  good = model_file.read_bytes()
  hostile = [b'', b'\xff' * 8, (1 << 62).to_bytes(8, 'little') + b'{}', good[:20], b'\x02' + bytes(7) + b'[]',
             b'PK\x03\x04' + good, *(bytes(draws.randrange(256) for _ in range(64)) for _ in range(50))]
  for content in hostile:
    model_file.write_bytes(content)
    with pytest.raises(errors.CheckpointError, match='model.safetensors'):
      native.load_safetensors(model_file, PARAMS)


@pytest.mark.parametrize('content', [
    b'', b'{', b'[]', b'7', b'"sha256"', b'{"family": "toy"}', b'\xff\xfe', b'[' * 100_000, b' ' * (2 << 20),
    b'{"sha256": [1]}', b'{"sha256": null}'], ids=range(11))
def test_a_hostile_description_is_one_kind_of_error(model_file, content):
  model_file.with_suffix('.json').write_bytes(content)
  with pytest.raises(errors.CheckpointError):
    native.load_description(model_file)


@pytest.mark.parametrize('suffix', ['.safetensors', '.json'])
def test_a_missing_half_names_the_way_to_make_it(model_file, suffix):
  model_file.with_suffix(suffix).unlink()
  with pytest.raises(errors.CheckpointError, match='train_pairs.sh'):
    native.load_description(model_file)


def test_a_single_number_stays_one(tmp_path):
  path = tmp_path / 'model.safetensors'
  native.save_safetensors(path, {'temperature': np.float32(1.5), 'one': np.ones(1, np.float32)}, {})
  template = {'temperature': np.zeros((), np.float32), 'one': np.zeros(1, np.float32)}
  found = native.load_safetensors(path, template)
  assert found['temperature'].shape == () and found['temperature'] == 1.5 and found['one'].shape == (1,)
