"""Training resumes bit for bit: a run that was stopped and continued ends where the uninterrupted one ends."""

import dataclasses

import jax
import numpy as np
import pytest

from specjax.checkpoints import native
from specjax.core import errors
from specjax.models import gemma
from specjax.training import batches
from specjax.training import language_model
from specjax.training import loop
from specjax.training import metric_log
from specjax.training import optimizer as optimizers

VOCAB, LENGTH, STEPS = 11, 9, 20
make_evaluate = language_model.make_evaluate
MODEL = gemma.DecoderLM(gemma.DecoderConfig(
    vocab_size=VOCAB, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4, layer_kinds=('global',),
    activation='gelu', tied_head=True))
OBJECTIVE = language_model.objective_of(MODEL, z_loss=0.0)
CONFIG = language_model.LanguageModelConfig(
    seed=3, batch_size=4, z_loss=1e-3, input_weight=0.1,
    optimizer=optimizers.OptimizerConfig(learning_rate=1e-2, num_steps=STEPS, warmup_steps=3))


@dataclasses.dataclass
class StopAfter:
  """A stop request that arrives before step `steps` of this process begins."""

  steps: int

  @property
  def requested(self):
    self.steps -= 1
    return self.steps < 0


def data(seed, count=30):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, VOCAB, (count, LENGTH + 1)).astype(np.int16)
  weights = np.broadcast_to((np.arange(LENGTH) > 2).astype(np.float16), (count, LENGTH))
  return batches.PackedData(dict(
      tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=weights, segments=np.ones_like(tokens[:, 1:]),
      positions=np.broadcast_to(np.arange(LENGTH, dtype=np.int16), (count, LENGTH))))


def train(directory, *, stop_after=STEPS + 1, **changes):
  arguments = dict(
      train_data=data(0), validation_data=data(1, 8), config=CONFIG, output_dir=directory,
      model_description={'family': 'toy', 'layers': ['global']}, stop=StopAfter(stop_after), tensorboard=False,
      show_progress=False, loop_config=loop.LoopConfig(num_steps=STEPS, log_every=5, evaluate_every=10, save_every=5))
  return language_model.train_language_model(MODEL, **(arguments | changes))


def state_template():
  optimizer = optimizers.make_optimizer(CONFIG.optimizer)
  return jax.eval_shape(lambda: loop.init_state(MODEL.init(jax.random.key(0)), optimizer))


def final_leaves(directory):
  """Every leaf of the last state (parameters, optimizer, step) as bytes."""
  step, state, _ = native.TrainingCheckpoints(directory / 'checkpoints').restore_newest(state_template())
  assert step == STEPS
  return {name: (str(leaf.dtype), leaf.shape, leaf.tobytes()) for name, leaf in native.flatten(state).items()}


def rows_without_times(directory):
  volatile = ('seconds', 'tokens_per_second')
  rows = metric_log.read_metrics(directory / 'metrics.jsonl')
  return [{name: value for name, value in row.items() if name not in volatile} for row in rows]


@pytest.fixture(scope='module', autouse=True)
def compiled_once():
  """The train step and the evaluation, compiled for the first of the two dozen runs here and kept."""
  train_step = loop.make_train_step(
      language_model.make_loss(MODEL, z_loss=CONFIG.z_loss), optimizers.make_optimizer(CONFIG.optimizer))
  evaluate = language_model.make_evaluate(OBJECTIVE, data(1, 8), batch_size=CONFIG.batch_size)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'make_train_step', lambda *unused: train_step)
    patch.setattr(language_model, 'make_evaluate', lambda *unused, **unused_sizes: evaluate)
    yield


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """The output directory of the uninterrupted run."""
  directory = tmp_path_factory.mktemp('straight')
  _, complete = train(directory)
  assert complete
  return directory


@pytest.mark.parametrize('stop_after', [10, 7], ids=['at_a_checkpoint', 'between_checkpoints'])
def test_stopped_and_resumed_equals_straight_bitwise(tmp_path, straight, stop_after):
  params, complete = train(tmp_path, stop_after=stop_after)
  assert not complete
  resumed, complete = train(tmp_path)
  assert complete
  assert final_leaves(tmp_path) == final_leaves(straight)
  assert rows_without_times(tmp_path) == rows_without_times(straight)
  before, after = native.flatten(params), native.flatten(resumed)
  assert any(not np.array_equal(before[name], after[name]) for name in before)  # The second half did train.


def test_killed_after_a_report_resumes_from_the_checkpoint_before(tmp_path, straight):
  train(tmp_path, stop_after=13)
  newest = tmp_path / 'checkpoints' / 'step_00000013'
  (newest / 'manifest.json').unlink()  # As if the process had died before this save.
  train(tmp_path)
  assert final_leaves(tmp_path) == final_leaves(straight)
  assert rows_without_times(tmp_path) == rows_without_times(straight)


def plant_batches_counted_from_the_restart(monkeypatch):
  real, calls = batches.batch_indices, []
  monkeypatch.setattr(batches, 'batch_indices', lambda step, **sizes: real(len(calls), **sizes, **(calls.append(1) or {})))


def plant_forgotten_moments(monkeypatch):
  real = native.TrainingCheckpoints.restore_newest

  def forgetful(self, template):
    found = real(self, template)
    if found is None:
      return None
    step, state, metadata = found
    forgotten = jax.tree.map(lambda leaf: np.zeros_like(leaf) if leaf.ndim else leaf, state.opt_state)
    return step, state.replace(opt_state=forgotten), metadata

  monkeypatch.setattr(native.TrainingCheckpoints, 'restore_newest', forgetful)


@pytest.mark.parametrize('plant', [plant_batches_counted_from_the_restart, plant_forgotten_moments])
def test_the_comparison_sees_a_resume_that_is_not_exact(tmp_path, straight, monkeypatch, plant):
  train(tmp_path, stop_after=10)
  with monkeypatch.context() as planted:
    plant(planted)
    train(tmp_path)
  assert final_leaves(tmp_path) != final_leaves(straight)


def test_reported_seconds_go_on_where_the_checkpoint_was_saved(tmp_path):
  train(tmp_path, stop_after=10)
  _, _, metadata = native.TrainingCheckpoints(tmp_path / 'checkpoints').restore_newest(state_template())
  assert metadata['seconds'] > 0
  train(tmp_path)
  seconds = [row['seconds'] for row in metric_log.read_metrics(tmp_path / 'metrics.jsonl') if row['kind'] == 'train']
  assert seconds == sorted(seconds)
  assert seconds[2] > metadata['seconds'] > seconds[1]


def test_a_checkpoint_of_the_first_version_still_resumes(tmp_path, straight):
  checkpoints = native.TrainingCheckpoints(tmp_path / 'checkpoints')
  train(tmp_path, stop_after=10)
  _, state, metadata = checkpoints.restore_newest(state_template())
  del metadata['seconds'], metadata['config']['optimizer']['query_learning_rate_scale']  # Both came later.
  checkpoints.save(10, state, metadata)
  train(tmp_path)
  assert final_leaves(tmp_path) == final_leaves(straight)


@pytest.mark.parametrize('change, named', [
    (dict(config=dataclasses.replace(CONFIG, seed=4)), 'config.seed'),
    (dict(config=dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, beta1=0.8))),
     'config.optimizer.beta1'),
    (dict(config=dataclasses.replace(CONFIG, optimizer=dataclasses.replace(
        CONFIG.optimizer, query_learning_rate_scale=0.5))), 'config.optimizer.query_learning_rate_scale'),
    (dict(train_data=data(5)), 'train_data'),
    (dict(model_description={'family': 'toy', 'layers': ['local']}), 'model.layers'),
    (dict(loop_config=loop.LoopConfig(num_steps=21)), 'num_steps'),
], ids=['seed', 'optimizer', 'query_scale', 'data', 'model', 'steps'])
def test_a_run_of_another_configuration_is_refused_by_name(straight, change, named):
  with pytest.raises(errors.ConfigError, match=named):
    train(straight, **change)


def test_a_run_of_another_model_is_refused_as_another_configuration(straight):
  other = gemma.DecoderLM(dataclasses.replace(MODEL.config, embed_dim=16))
  with pytest.raises(errors.ConfigError, match='model.layers'):
    language_model.train_language_model(
        other, train_data=data(0), validation_data=data(1, 8), config=CONFIG, output_dir=straight,
        model_description={'family': 'toy', 'layers': ['global'] * 2}, stop=StopAfter(0), tensorboard=False,
        show_progress=False, loop_config=loop.LoopConfig(num_steps=STEPS))


def test_the_configuration_kept_is_that_of_the_run_that_is_there(tmp_path):
  train(tmp_path, stop_after=5, operative_config='first')
  with pytest.raises(errors.ConfigError, match='config.seed'):
    train(tmp_path, config=dataclasses.replace(CONFIG, seed=4), operative_config='second')
  assert (tmp_path / 'operative.gin').read_text() == 'first'
  train(tmp_path, stop_after=0, operative_config='third')
  assert (tmp_path / 'operative.gin').read_text() == 'third'
  assert not list(tmp_path.glob('.tmp-*'))


def test_a_second_trainer_of_one_directory_is_refused_by_name(tmp_path):

  class Second:
    @property
    def requested(self):
      with pytest.raises(errors.ConfigError, match=f'{tmp_path}: directory in use'):
        train(tmp_path)
      return True

  _, complete = train(tmp_path, stop=Second())
  assert not complete


def test_a_relative_directory_trains_and_resumes(tmp_path, straight, monkeypatch):
  monkeypatch.chdir(tmp_path)
  train('runs/relative', stop_after=7)
  train('runs/relative')
  assert final_leaves(tmp_path / 'runs' / 'relative') == final_leaves(straight)


@pytest.mark.parametrize('build', [
    lambda: loop.LoopConfig(num_steps=0), lambda: loop.LoopConfig(num_steps=5, log_every=0),
    lambda: loop.LoopConfig(num_steps=5, evaluate_every=-1), lambda: loop.LoopConfig(num_steps=5, save_every=2.0),
    lambda: dataclasses.replace(CONFIG, batch_size=0), lambda: dataclasses.replace(CONFIG, batch_size=-1),
    lambda: dataclasses.replace(CONFIG, num_devices=0), lambda: dataclasses.replace(CONFIG, num_devices=3),
    lambda: dataclasses.replace(CONFIG, z_loss=-1.0), lambda: dataclasses.replace(CONFIG, input_weight=float('nan')),
    lambda: dataclasses.replace(CONFIG, seed=2**32)])
def test_numbers_without_meaning_are_refused(build):
  with pytest.raises(errors.ParamError):
    build()


def test_an_empty_validation_set_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
  monkeypatch.setattr(language_model, 'make_evaluate', make_evaluate)
  with pytest.raises(errors.DataError, match='validation set'):
    train(tmp_path, validation_data=data(1, 0))
  assert not list(tmp_path.iterdir())


def test_divergence_is_an_error_and_keeps_the_last_good_checkpoint(tmp_path):
  train(tmp_path, stop_after=10)
  real = batches.PackedData.rows
  poisoned = lambda self, index, **keywords: real(self, index, **keywords)._replace(
      weights=np.full((len(index), LENGTH), np.inf, np.float32))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(batches.PackedData, 'rows', poisoned)
    with pytest.raises(errors.LogitsError, match='training metric'):
      train(tmp_path)
  assert native.TrainingCheckpoints(tmp_path / 'checkpoints').steps()[-1] == 10


def test_evaluation_weighs_positions_not_batches():
  validation = data(2, 6)
  validation.arrays['weights'] = validation.arrays['weights'].copy()
  validation.arrays['weights'][0, 4:] = 0
  params = MODEL.init(jax.random.key(0))
  by_two = make_evaluate(OBJECTIVE, validation, batch_size=2)(params)
  by_six = make_evaluate(OBJECTIVE, validation, batch_size=6)(params)
  np.testing.assert_allclose(by_two['loss'], by_six['loss'], rtol=1e-5)
  np.testing.assert_allclose(by_two['accuracy'], by_six['accuracy'], rtol=1e-5)
