"""The t5x plug-in under t5x itself: equal to its own greedy decoding, in its scripts and by its checkpoint managers."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from specjax.core import checks
from specjax.core import errors
from specjax.decode import methods

pytest.importorskip('t5x', reason='t5x is not installed: pip install -e .[t5x]')

from t5x import decoding
from t5x import partitioning
from t5x import train_state as train_state_lib
import t5x_files

from specjax.integrations import t5x_checkpoints
from specjax.integrations import t5x_model

ROOT = pathlib.Path(__file__).resolve().parents[2]
GREEDY = checks.SamplingParams(temperature=0.0)


@pytest.fixture(scope='module', autouse=True)
def promotion_of_t5x():
  """t5x's own modules promote ranks and types."""
  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'), jax.debug_key_reuse(False):
    yield


def pair(method=methods.speculative(num_draft_tokens=3), sampling=GREEDY, drafter=t5x_files.DRAFTER, **options):
  return t5x_model.EncoderDecoderPair(
      t5x_files.transformer(**t5x_files.TARGET), t5x_files.transformer(**drafter), t5x_files.vocabulary(),
      t5x_files.vocabulary(), None, method=method, sampling=sampling, **options)


def greedy(params, batch):
  """t5x's own greedy decoding."""
  decode_fn = functools.partial(decoding.temperature_sample, temperature=0.0, topk=1, rescale_log_probs=False)
  model = t5x_files.stock(t5x_files.transformer(**t5x_files.TARGET), decode_fn)
  return jax.device_get(jax.jit(model.predict_batch_with_aux)(params, batch))


@pytest.fixture(scope='module')
def variables():
  return pair().get_initial_variables(jax.random.PRNGKey(0), t5x_files.SHAPES)


def test_greedy_tokens_and_scores_are_those_of_t5x(variables):
  params = variables['params']
  tokens, aux = jax.device_get(jax.jit(pair().predict_batch_with_aux)(params, t5x_files.batch()))
  expected, expected_aux = greedy(params['target'], t5x_files.batch())
  np.testing.assert_array_equal(tokens, expected)
  np.testing.assert_allclose(aux['scores'], expected_aux['scores'], atol=1e-4)
  assert all(values.shape == (5,) for values in aux.values())
  assert {'status', 'target_calls', 'drafter_calls', 'proposed', 'accepted'} <= set(aux)


def test_a_forced_prefix_is_read_as_t5x_reads_it(variables):
  batch = t5x_files.batch()
  batch['decoder_input_tokens'][:, 1:4] = [[5, 9, 1], [7, 1, 0], [3, 4, 5], [0, 0, 0], [8, 0, 0]]
  tokens, _ = jax.jit(functools.partial(pair().predict_batch_with_aux, prompt_with_targets=True))(variables['params'], batch)
  decode_fn = functools.partial(decoding.temperature_sample, temperature=0.0, topk=1)
  model = t5x_files.stock(t5x_files.transformer(**t5x_files.TARGET), decode_fn)
  expected, _ = jax.jit(functools.partial(model.predict_batch_with_aux, prompt_with_targets=True))(
      variables['params']['target'], batch)
  np.testing.assert_array_equal(tokens, expected)
  assert tokens[0, :2].tolist() == [5, 9] and tokens[2, :3].tolist() == [3, 4, 5]


def test_scores_and_losses_are_the_targets(variables):
  batch = t5x_files.batch() | {
      'decoder_target_tokens': np.full((5, 12), 4, np.int32), 'decoder_loss_weights': np.ones((5, 12), np.float32)}
  stock = t5x_files.stock(t5x_files.transformer(**t5x_files.TARGET))
  params = variables['params']
  np.testing.assert_array_equal(pair().score_batch(params, batch), stock.score_batch(params['target'], batch))
  np.testing.assert_array_equal(
      pair().loss_fn(params, batch, None)[0], stock.loss_fn(params['target'], batch, None)[0])


def test_samples_follow_the_key_and_need_one(variables):
  model = pair(sampling=checks.SamplingParams(temperature=1.0))
  predict = jax.jit(functools.partial(model.predict_batch_with_aux, num_decodes=2, return_all_decodes=True))
  first, aux = predict(variables['params'], t5x_files.batch(), jax.random.PRNGKey(1))
  again, _ = predict(variables['params'], t5x_files.batch(), jax.random.PRNGKey(1))
  other, _ = predict(variables['params'], t5x_files.batch(), jax.random.PRNGKey(2))
  assert first.shape == (5, 2, 12) and aux['scores'].shape == (5, 2)
  assert np.array_equal(first, again) and not np.array_equal(first, other)
  with pytest.raises(errors.ParamError, match='rng'):
    model.predict_batch(variables['params'], t5x_files.batch())


def test_what_cannot_be_decoded_is_refused():
  with pytest.raises(errors.ConfigError, match='mlp_activations'):
    pair(drafter=t5x_files.DRAFTER | {'mlp_activations': ('silu', 'linear')})
  with pytest.raises(errors.ParamError, match='decode_fn'):
    pair(decode_fn=decoding.beam_search)
  with pytest.raises(errors.ParamError, match='decoder_params'):
    pair().predict_batch_with_aux({}, t5x_files.batch(), decoder_params={'alpha': 0.6})


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
  """(target's path in the legacy format, drafter's folder in Orbax's, their parameters)."""
  folder = tmp_path_factory.mktemp('checkpoints')
  target, target_params = t5x_files.save(
      folder / 'target', t5x_files.stock(t5x_files.transformer(**t5x_files.TARGET)), seed=0, layout='legacy')
  rng = np.random.default_rng(1)
  noisy = jax.tree.map(
      lambda x: x + (0.02 * np.std(x) * rng.standard_normal(x.shape)).astype(np.float32), target_params)
  _, drafter_params = t5x_files.save(
      folder / 'drafter', t5x_files.stock(t5x_files.transformer(**t5x_files.TARGET)), seed=1, layout='orbax', params=noisy)
  return target, str(folder / 'drafter'), {'target': target_params, 'drafter': drafter_params}


def manager(checkpoints, **options):
  variables = jax.eval_shape(
      lambda key: pair(drafter=t5x_files.TARGET).get_initial_variables(key, t5x_files.SHAPES), jax.random.PRNGKey(0))
  state = train_state_lib.InferenceState.create(variables)
  options = {'drafter_path': checkpoints[1]} | options
  return t5x_checkpoints.PairCheckpointManager(
      os.path.dirname(checkpoints[0]), state, partitioning.PjitPartitioner(num_partitions=1), **options)


def test_both_checkpoints_are_restored_bitwise_whatever_their_format(checkpoints):
  restored = manager(checkpoints).restore(path=checkpoints[0])
  jax.tree.map(np.testing.assert_array_equal, dict(restored.params), checkpoints[2])


def test_a_missing_drafter_and_a_fallback_are_refused(checkpoints, tmp_path):
  with pytest.raises(errors.CheckpointError, match='drafter_path'):
    manager(checkpoints, drafter_path=str(tmp_path)).restore(path=checkpoints[0])
  with pytest.raises(errors.ParamError, match='fallback_state'):
    manager(checkpoints).restore(path=checkpoints[0], fallback_state={})
  trained = manager(checkpoints)
  trained._pair_state = object()
  with pytest.raises(errors.ConfigError, match='train the two models apart'):
    trained.restore(path=checkpoints[0])


def test_position_biases_that_differ_between_layers_are_refused():
  bias = np.arange(6.0).reshape(2, 3)
  tree = lambda other: {'decoder': {f'layers_{i}': {'relpos_bias': {'rel_embedding': x}} for i, x in enumerate([bias, other])}}
  t5x_checkpoints._check_biases(tree(bias), 'here')
  t5x_checkpoints._check_biases({'decoder': {'rel_embedding': np.stack([bias, bias], axis=1)}}, 'here')
  for broken in (tree(bias + 1), {'decoder': {'rel_embedding': np.stack([bias, bias + 1], axis=1)}}):
    with pytest.raises(errors.CheckpointError, match='position bias of the decoder'):
      t5x_checkpoints._check_biases(broken, 'here')


def run_script(script, output, checkpoints, *flags, environment=None):
  """Runs a script of t5x as a user would, with the gin files that specjax ships."""
  settings = {
      'MIXTURE_OR_TASK_NAME': t5x_files.TASK, 'MIXTURE_OR_TASK_MODULE': 't5x_files', 'CHECKPOINT_PATH': checkpoints[0],
      'DRAFTER_CHECKPOINT': checkpoints[1], 'TASK_FEATURE_LENGTHS': t5x_files.LENGTHS,
      {'infer': 'INFER_OUTPUT_DIR', 'eval': 'EVAL_OUTPUT_DIR'}[script]: str(output)}
  here = str(pathlib.Path(__file__).parent)
  done = subprocess.run(
      [sys.executable, '-m', f't5x.{script}', f'--gin_file=specjax/integrations/t5x_{script}.gin',
       f'--gin_file={here}/tiny_pair.gin', *(f'--gin.{name}={value!r}' for name, value in settings.items()), *flags],
      cwd=ROOT, text=True, capture_output=True, timeout=600,
      env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), here, os.environ.get('PYTHONPATH', '')]),
               **(environment or {})))
  assert done.returncode == 0, done.stderr[-3000:]


def inferred(output):
  lines = (output / f'{t5x_files.TASK}-predict_with_aux.jsonl-00000-of-00001').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.mark.nightly
def test_infer_writes_greedy_answers_and_fewer_calls_than_tokens(checkpoints, tmp_path):
  run_script('infer', tmp_path / 'one', checkpoints)
  rows = inferred(tmp_path / 'one')
  expected, _ = greedy(checkpoints[2]['target'], t5x_files.batch())
  assert [row['prediction'] for row in rows] == expected.tolist()
  aux = [row['aux'] for row in rows]
  assert sum(row['target_calls'] for row in aux) < sum(row['emitted'] for row in aux)


@pytest.mark.nightly
def test_infer_over_four_devices_writes_the_same(checkpoints, tmp_path):
  # On CPUs t5x's mesh has all devices of a process along 'model'.
  run_script(
      'infer', tmp_path / 'four', checkpoints, environment={'XLA_FLAGS': '--xla_force_host_platform_device_count=4'})
  expected, _ = greedy(checkpoints[2]['target'], t5x_files.batch())
  assert [row['prediction'] for row in inferred(tmp_path / 'four')] == expected.tolist()


@pytest.mark.nightly
def test_eval_scores_the_same_answers(checkpoints, tmp_path):
  run_script('eval', tmp_path / 'eval', checkpoints)
  folder = tmp_path / 'eval' / 'inference_eval'
  assert 'exact_match' in json.loads((folder / f'{t5x_files.TASK}-metrics.jsonl').read_text())
  expected, _ = greedy(checkpoints[2]['target'], t5x_files.batch())
  written = [json.loads(line)['output'] for line in (folder / f'{t5x_files.TASK}-000000.jsonl').read_text().splitlines()]
  # t5x cuts the padding behind an EOS.
  assert [row + [0] * (expected.shape[1] - len(row)) for row in written] == expected.tolist()
