"""`python -m specjax.convert`: what it writes, prints and refuses."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import specjax
from specjax import convert
from specjax.checkpoints import conversion
from specjax.checkpoints import descriptions
from specjax.checkpoints import formats
from specjax.checkpoints import manifest
from specjax.core import errors
from tests.checkpoints import tiny_models

CONFIG = tiny_models.CONFIGS['gemma3_text']


@pytest.fixture
def source(tmp_path):
  folder = tmp_path / 'source'
  formats.write(
      folder, CONFIG, tiny_models.random_leaves(CONFIG), format='hf',
      special_tokens={'bos_token_id': 2, 'eos_token_id': [1, 50]})
  (folder / manifest.NAME).unlink()
  (folder / 'tokenizer.json').write_text('{}')
  (folder / 'modeling_evil.py').write_text('raise SystemExit')
  return folder


def test_a_circle_through_every_format_is_bitwise(source, tmp_path, capsys):
  assert convert.main([str(source), str(tmp_path / 'a'), '--format=native']) == 0
  assert convert.main([str(tmp_path / 'a'), str(tmp_path / 'b'), '--format=native_orbax']) == 0
  assert convert.main([str(tmp_path / 'b'), str(tmp_path / 'c'), '--format=hf']) == 0
  config, found, _ = formats.open_checkpoint(tmp_path / 'c')
  assert config == CONFIG and tiny_models.same(found, tiny_models.random_leaves(CONFIG))
  printed = capsys.readouterr().out
  assert 'layer_0/mlp/up/kernel' in printed and 'model.layers.0.mlp.up_proj.weight' in printed
  assert '16x24' in printed and 'bitwise equal' in printed and '(native_orbax) -> ' in printed


def test_from_hf_to_hf_keeps_the_tokenizer_and_its_ids_and_no_code(source, tmp_path):
  report = conversion.convert(str(source), str(tmp_path / 'out'), format='hf', dtype='bfloat16')
  assert report.copied == ('tokenizer.json',)
  names = {path.name for path in (tmp_path / 'out').iterdir()}
  assert 'tokenizer.json' in names and 'modeling_evil.py' not in names
  assert json.loads((tmp_path / 'out' / 'config.json').read_text())['eos_token_id'] == [1, 50]
  assert all(row.dtype_in == 'float32' and row.dtype_out == 'bfloat16' for row in report.rows)
  assert report.rows[0].num_bytes == 2 * int(np.prod(report.rows[0].shape))
  model, params = specjax.load(tmp_path / 'out')
  assert model.dtype == ml_dtypes.bfloat16
  expected = tiny_models.random_leaves(CONFIG)['layer_0/mlp/up/kernel'].read().astype(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(np.asarray(params['layer_0']['mlp']['up']['kernel']), expected)


def test_output_that_exists_is_refused_and_unharmed(source, tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'mine').write_text('x')
  with pytest.raises(errors.ConfigError, match='exists'):
    conversion.convert(str(source), str(tmp_path / 'out'), format='native')
  with pytest.raises(errors.ConfigError, match='exists'):
    conversion.convert(str(source), str(source), format='native')
  assert (tmp_path / 'out' / 'mine').read_text() == 'x'


@pytest.mark.parametrize('options, kind', [
    (dict(format='t5x'), errors.ParamError), (dict(format='pickle'), errors.ParamError),
    (dict(format='hf', dtype='int8'), errors.ParamError), (dict(format='hf', max_shard_megabytes=0), errors.ParamError),
    (dict(format='hf', config='gemma9'), errors.ConfigError), (dict(format='hf', config='t5_small'), errors.CheckpointError),
    (dict(format='hf', source_format='t5x'), errors.CheckpointError)])
def test_what_makes_no_sense_is_refused_before_anything_is_written(source, tmp_path, options, kind):
  with pytest.raises(kind):
    conversion.convert(str(source), str(tmp_path / 'out'), **options)
  assert [path.name for path in tmp_path.iterdir()] == ['source']


def test_configuration_from_a_file(source, tmp_path):
  path = tmp_path / 'config.json'
  path.write_text(descriptions.as_text(descriptions.describe(CONFIG)))
  (source / 'config.json').write_text('{"model_type": "unknown"}')
  report = conversion.convert(
      str(source), str(tmp_path / 'out'), format='native', source_format='hf', config=str(path))
  assert report.config == CONFIG


def test_numbers_that_do_not_fit_the_dtype_are_refused(source, tmp_path):
  found = tiny_models.random_leaves(CONFIG)
  large = found['final_norm/scale'].read() + np.float32(1e6)
  found['final_norm/scale'] = found['final_norm/scale']._replace(read=lambda: large)
  formats.write(tmp_path / 'large', CONFIG, found, format='native')
  with pytest.raises(errors.CheckpointError, match='final_norm'):
    conversion.convert(str(tmp_path / 'large'), str(tmp_path / 'out'), format='hf', dtype='float16')
  assert not (tmp_path / 'out').exists()


def test_a_disk_that_loses_a_bit_is_seen(source, tmp_path, monkeypatch):
  verify = manifest.verify

  def flip(folder):
    path = folder / 'model.safetensors'
    if folder.name == 'out':
      content = bytearray(path.read_bytes())
      content[-1] ^= 1
      path.write_bytes(content)
    return verify(folder)

  monkeypatch.setattr(manifest, 'verify', flip)
  with pytest.raises(errors.CheckpointError, match='SHA-256'):
    conversion.convert(str(source), str(tmp_path / 'out'), format='hf')


def test_control_characters_of_a_checkpoint_do_not_reach_the_terminal():
  row = conversion.Row('a\x1b[31m', 'b\x07', (1,), 'float32', 'float32', 4)
  report = conversion.Report('in', 'hf', 'out', 'hf', CONFIG, (row,), (), ())
  assert all(line.isprintable() for line in conversion.text(report).splitlines())


@pytest.mark.parametrize('arguments', [
    [], ['source'], ['source', 'x'], ['source', 'x', 'y', '--format=hf'], ['source', 'x', '--format=t5x'],
    ['no', 'x', '--format=hf'], ['source', 'x', '--format=hf', '--source=y'], ['source', 'x', '--format=hf', '--nonsense=1']])
def test_wrong_command_lines_are_refused(source, monkeypatch, arguments):
  monkeypatch.chdir(source.parent)
  with pytest.raises(errors.SpecjaxError):
    convert.main(arguments)
  assert [path.name for path in source.parent.iterdir()] == ['source']


def test_an_error_is_one_line_with_exit_code_2(tmp_path):
  done = subprocess.run(
      [sys.executable, '-m', 'specjax.convert', 'no', 'x', '--format=hf'], capture_output=True, text=True, timeout=300,
      cwd=tmp_path)
  assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
