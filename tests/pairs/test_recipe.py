"""The entry function of the train binary and the configuration files that name it."""

import numpy as np
import pytest

from specjax import config
from specjax import train as binary
from specjax.core import errors
from specjax.pairs import builtin
from specjax.pairs import packed_examples
from specjax.pairs import recipe
from specjax.tasks import synthetic
from specjax.training import stopping


def resolved(*files, **overrides):
  return config.resolve(entry=recipe.train, files=files, overrides=overrides, provided=binary.PROVIDED)


def test_the_recipes_train_every_built_in_model():
  models = []
  for pair in builtin.PAIRS:
    arguments = resolved(f'runs/train_{pair}_pair.gin', output_dir='out').arguments()
    assert arguments['models'] == [f'{pair}_target', f'{pair}_drafter']
    assert all(set(arguments[name]) == set(arguments['models']) for name in ('steps', 'learning_rate'))
    models += arguments['models']
  assert set(models) == set(builtin.MODELS)


def test_flags_and_defaults_are_enough_for_one_model():
  given = config.parse(
      ['--model=t5_drafter', '--output_dir=out', '--steps=9', '--learning_rate', '1e-3', '--tensorboard=false'],
      recipe.train, aliases=binary.ALIASES)
  arguments = resolved(binary.DEFAULTS, **given.overrides).arguments()
  assert arguments['models'] == ('t5_drafter',) and arguments['steps'] == 9 and arguments['learning_rate'] == 1e-3
  assert arguments['tensorboard'] is False and arguments['warmup_steps'] == 300


def test_the_operative_configuration_reads_back_to_the_same_run(tmp_path):
  first = resolved('runs/train_t5_pair.gin', output_dir='out', seed=4)
  path = tmp_path / 'operative.gin'
  path.write_text(first.operative())
  assert resolved(str(path)).arguments() == first.arguments()


@pytest.mark.parametrize('argv, named', [
    (['--models=gpt', '--steps=9', '--learning_rate=1'], 'gpt'),
    (['--models=gemma_target', '--learning_rate=1'], 'steps'),
    (['--models=gemma_target', '--step=9'], 'did you mean --steps'),
    (['--models=gemma_target', '--gin.recipe.train.stesp=9'], 'steps'),
])
def test_a_command_that_cannot_run_is_refused_in_one_line(tmp_path, capsys, argv, named):
  assert config.run_main(binary.main, [f'--output_dir={tmp_path}', *argv]) == 2
  output = capsys.readouterr().err
  assert 'ConfigError' in output and named in output and output.count('\n') == 1
  assert not list(tmp_path.iterdir())


def test_help_lists_the_flags_and_not_what_the_binary_provides(capsys):
  assert binary.main(['--help']) == 0
  output = capsys.readouterr().out
  assert '--learning_rate' in output and '--stop' not in output


def test_numbers_by_model_must_name_the_model():
  arguments = resolved('runs/train_t5_pair.gin', output_dir='unused').arguments()
  arguments['models'] = ['gemma_target']
  with pytest.raises(errors.ConfigError, match='gemma_target'):
    recipe.train(**arguments, stop=stopping.StopRequest())


@pytest.mark.parametrize('change', [
    dict(num_validation=0), dict(num_examples=-1), dict(batch_size=0), dict(log_every=0), dict(sequence_length=0),
    dict(encoder_length=0), dict(steps=0), dict(steps={'gemma_drafter': 9, 'gemma_target': 0})])
def test_numbers_without_meaning_are_refused_before_anything_is_written(tmp_path, change):
  arguments = resolved(
      binary.DEFAULTS, output_dir=str(tmp_path / 'out'), models=['gemma_drafter', 'gemma_target'], steps=9,
      learning_rate=1e-3, warmup_steps=2).arguments()
  with pytest.raises(errors.ParamError, match='num_steps' if 'steps' in change else next(iter(change))):
    recipe.train(**(arguments | change), stop=stopping.StopRequest())
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('largest', [2**15 - 1, 2**15])
def test_a_token_id_that_16_bits_cannot_hold_is_refused(largest):
  tokens = np.array([[0, largest]])
  if largest < 2**15:
    assert packed_examples.narrow(tokens, where='tokens').tolist() == tokens.tolist()
  else:
    with pytest.raises(errors.DataError, match='packed tokens: got 32768'):
      packed_examples.narrow(tokens, where='tokens')


def test_packed_examples_of_another_generator_are_made_again(tmp_path, monkeypatch):
  packed(tmp_path)
  monkeypatch.setattr(synthetic, 'VERSION', synthetic.VERSION + 1)
  packed(tmp_path)
  assert len(list(tmp_path.iterdir())) == 2


def packed(directory):
  return packed_examples.packed_examples(
      split='validation', seed=3, num_examples=12, family='decoder-only', length=80, encoder_length=8, cache_dir=directory)


def test_packed_examples_are_kept_and_a_damaged_cache_is_made_again(tmp_path, caplog):
  made = packed(tmp_path)
  [path] = tmp_path.iterdir()
  stored, changed = path.read_bytes(), path.stat().st_mtime_ns
  assert all((packed(tmp_path)[name] == made[name]).all() for name in made) and path.stat().st_mtime_ns == changed
  for content in (b'', stored[:100], b'\0' * len(stored)):
    path.write_bytes(content)
    assert all((packed(tmp_path)[name] == made[name]).all() for name in made)
    assert 'damaged' in caplog.text
