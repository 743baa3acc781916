"""T5X checkpoints: golden logits, every layout of the same weights, versions, and what is refused."""

import json
import os
import pathlib

from absl import logging
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import t5x_writer

from specjax.checkpoints import leaves
from specjax.checkpoints import native
from specjax.checkpoints import t5x
from specjax.core import errors
from specjax.core import types
from specjax.models import t5

_DEFAULT = pathlib.Path(__file__).resolve().parents[2] / '..' / 'shared' / 'golden'
GOLDEN = pathlib.Path(os.environ.get('SPECJAX_GOLDEN_DIR', _DEFAULT))
CHECKPOINTS = sorted(str(path.relative_to(GOLDEN)) for path in GOLDEN.glob('t5x/*/*') if path.is_dir())
NUM_HEADS = 4


def load(path, *, config=None):
  """(model, parameters) of a checkpoint."""
  config, found, extra = t5x.open_checkpoint(path, config=config)
  model = t5.T5LM(config)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return model, leaves.load(found, shapes, where=str(path), extra=extra)


def read_all(path):
  """Our name -> array, without a model; the leaves are checked against the configuration that was inferred."""
  config, found, extra = t5x.open_checkpoint(path)
  assert not extra
  template = jax.eval_shape(t5.T5LM(config).init, jax.random.key(0))
  leaves.check(found, template, where=str(path), extra=extra)
  return {name: leaf.read() for name, leaf in found.items()}


def same(left, right):
  """Equal names, types and bits."""
  return left.keys() == right.keys() and all(
      left[name].dtype == right[name].dtype and left[name].tobytes() == right[name].tobytes() for name in left)


@pytest.fixture(scope='module')
def weights():
  """Flat parameters of a small T5 1.1 under T5X's names; encoder and decoder differ in depth, N * H from D."""
  random = np.random.RandomState(3)
  embed, joined, hidden, buckets = 8, 12, 10, 8
  shapes = {'token_embedder/embedding': (16, embed), 'decoder/logits_dense/kernel': (embed, 16)}
  for stack, num_layers in (('encoder', 2), ('decoder', 3)):
    shapes |= {f'{stack}/{stack}_norm/scale': (embed,), f'{stack}/relpos_bias/rel_embedding': (NUM_HEADS, buckets)}
    attentions = ('attention',) if stack == 'encoder' else ('self_attention', 'encoder_decoder_attention')
    norms = ('attention',) if stack == 'encoder' else ('self_attention', 'cross_attention')
    for i in range(num_layers):
      layer = f'{stack}/layers_{i}'
      shapes |= {f'{layer}/pre_{norm}_layer_norm/scale': (embed,) for norm in (*norms, 'mlp')}
      shapes |= {f'{layer}/mlp/{wi}/kernel': (embed, hidden) for wi in ('wi_0', 'wi_1')}
      shapes |= {f'{layer}/mlp/wo/kernel': (hidden, embed)}
      shapes |= {f'{layer}/{kind}/{name}/kernel': (embed, joined) for kind in attentions for name in ('query', 'key', 'value')}
      shapes |= {f'{layer}/{kind}/out/kernel': (joined, embed) for kind in attentions}
  return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope='module')
def ours(weights, tmp_path_factory):
  """The weights under our names, read from the plainest layout, which the golden checkpoints have."""
  return read_all(t5x_writer.write_legacy(tmp_path_factory.mktemp('plain'), weights))


def _divergence(golden, logits):
  """Largest KL of one token, nats."""
  golden, logits = (x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64), -1, keepdims=True)
                    for x in (golden, logits))
  return float(np.max(np.sum(np.exp(golden) * (golden - logits), axis=-1)))


def _assert_golden(model, params, *, encoder_tokens, encoder_length, tokens, logits, mask):
  """Logits without and with cache: KL at most 1e-6 per token, difference at most 2e-4."""
  encoder_tokens, encoder_length, tokens = (
      jnp.asarray(x, jnp.int32) for x in (encoder_tokens, encoder_length, tokens))
  index = jnp.arange(encoder_tokens.shape[1], dtype=jnp.int32)[None, :]
  batch = types.TrainingBatch(
      tokens=tokens, targets=tokens, weights=jnp.ones(tokens.shape, jnp.float32), positions=jnp.zeros_like(tokens),
      segments=jnp.ones_like(tokens), encoder_tokens=encoder_tokens, encoder_positions=jnp.zeros_like(encoder_tokens),
      encoder_segments=(index < encoder_length[:, None]).astype(jnp.int32))
  prompt = types.Prompt(
      tokens=tokens[:, :1], length=jnp.ones(len(tokens), jnp.int32), encoder_tokens=encoder_tokens,
      encoder_length=encoder_length)
  _, cache = model.prefill(params, prompt, 16)
  cached, _ = model.extend(params, cache, tokens, count=jnp.full(len(tokens), tokens.shape[1], jnp.int32))
  for got in (model.forward(params, batch).logits, cached.logits):
    got = np.asarray(got)[mask]
    assert _divergence(logits[mask], got) <= 1e-6
    np.testing.assert_allclose(got, logits[mask], rtol=0, atol=2e-4)


@pytest.mark.parametrize('checkpoint', CHECKPOINTS or ['missing'])
def test_golden_checkpoint_gives_the_golden_logits(golden_dir, checkpoint):
  folder = (golden_dir / checkpoint).parent
  model, params = load(golden_dir / checkpoint)
  batch, golden = np.load(folder.parent / 'batch.npz'), np.load(folder / 'golden.npz')
  config = json.loads((folder / 'config.json').read_text())
  assert model.config.num_heads == config['num_heads'] and model.config.head_dim == config['head_dim']
  stored = {name: leaf.dtype for name, leaf in t5x.open_checkpoint(golden_dir / checkpoint)[1].items()}
  if set(stored.values()) == {np.dtype(ml_dtypes.bfloat16)}:
    # Golden logits are those of the float32 weights; these are the same weights, rounded.
    full = native.flatten(load(folder / 'legacy')[1])
    for name, value in native.flatten(params).items():
      np.testing.assert_array_equal(value, np.asarray(full[name]).astype(ml_dtypes.bfloat16).astype(np.float32))
    return
  _assert_golden(
      model, params, encoder_tokens=batch['encoder_input_tokens'],
      encoder_length=(batch['encoder_input_tokens'] > 0).sum(1), tokens=batch['decoder_input_tokens'],
      logits=golden['logits'], mask=batch['decoder_target_tokens'] > 0)


def test_relu_and_tied_head_give_the_golden_logits(golden_dir, tmp_path):
  """T5 1.0: the weights of the Hugging Face checkpoint in T5X's layout, against its logits."""
  from safetensors import numpy as safetensors_numpy

  folder = golden_dir / 'hf' / 't5_v1_0'
  tensors, golden = safetensors_numpy.load_file(folder / 'model.safetensors'), np.load(folder / 'golden.npz')
  params = {'token_embedder/embedding': tensors.pop('shared.weight')}
  roles = {'encoder': ('attention', 'mlp'), 'decoder': ('self_attention', 'encoder_decoder_attention', 'mlp')}
  norms = {'encoder_decoder_attention': 'pre_cross_attention_layer_norm'}
  projections = {'q': 'query', 'k': 'key', 'v': 'value', 'o': 'out'}
  for name, value in tensors.items():
    stack, *rest = name.split('.')
    if rest[0] == 'final_layer_norm':
      params[f'{stack}/{stack}_norm/scale'] = value
    elif 'relative_attention_bias' in rest:
      params[f'{stack}/relpos_bias/rel_embedding'] = np.ascontiguousarray(value.T)
    elif rest[4] == 'layer_norm':
      role = roles[stack][int(rest[3])]
      params[f'{stack}/layers_{rest[1]}/{norms.get(role, f"pre_{role}_layer_norm")}/scale'] = value
    else:
      role, kernel = roles[stack][int(rest[3])], projections.get(rest[5], rest[5])
      params[f'{stack}/layers_{rest[1]}/{role}/{kernel}/kernel'] = np.ascontiguousarray(value.T)
  model, loaded = load(t5x_writer.write_legacy(tmp_path, params))
  assert model.config.mlp == 'relu' and model.config.tied_head and model.config.scale_logits
  _assert_golden(
      model, loaded, encoder_tokens=golden['input_ids'], encoder_length=golden['attention_mask'].sum(1),
      tokens=golden['decoder_input_ids'], logits=golden['logits'],
      mask=np.ones(golden['decoder_input_ids'].shape, bool))


def test_names_and_orientation_are_ours(weights, ours):
  np.testing.assert_array_equal(
      ours['decoder/layer_2/cross_attention/output/kernel'],
      weights['decoder/layers_2/encoder_decoder_attention/out/kernel'])
  np.testing.assert_array_equal(ours['encoder/relative_bias/embedding'], weights['encoder/relpos_bias/rel_embedding'].T)
  np.testing.assert_array_equal(ours['head/kernel'], weights['decoder/logits_dense/kernel'])
  assert len(ours) == len(weights)


@pytest.mark.parametrize('scanned', [False, True])
@pytest.mark.parametrize('orbax', [False, True])
def test_scalable_layouts_hold_the_same_weights(weights, ours, tmp_path, scanned, orbax):
  stored = t5x_writer.as_scalable(weights, NUM_HEADS, scanned=scanned)
  path = (t5x_writer.write_orbax if orbax else t5x_writer.write_legacy)(tmp_path, stored)
  assert same(read_all(path), ours)


@pytest.mark.parametrize('options', [
    dict(version=0), dict(version=1), dict(version=2), dict(bucket='t5-data'), dict(old_paths=True),
    dict(inline=('token_embedder/embedding', 'encoder/encoder_norm/scale')), dict(compressor=None),
    dict(chunks=lambda shape: [max(size // 2, 1) for size in shape])], ids=lambda options: next(iter(options)))
def test_writers_of_any_age_hold_the_same_weights(weights, ours, tmp_path, options):
  assert same(read_all(t5x_writer.write_legacy(tmp_path, weights, **options)), ours)


@pytest.mark.parametrize('version', [2, 3])
def test_bfloat16_is_read_as_such_from_either_version(weights, ours, tmp_path, version):
  rounded = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights.items()}
  got = read_all(t5x_writer.write_legacy(tmp_path, rounded, version=version))
  assert same(got, {name: value.astype(ml_dtypes.bfloat16) for name, value in ours.items()})


def test_integers_are_no_bfloat16_in_version_3(weights, tmp_path):
  path = t5x_writer.write_legacy(
      tmp_path, weights | {'encoder/encoder_norm/scale': np.arange(8, dtype=np.uint16)}, version=3)
  with pytest.raises(errors.CheckpointError, match='encoder_norm.scale is uint16'):
    load(path)


def test_orbax_without_ocdbt_holds_the_same_weights(weights, ours, tmp_path):
  assert same(read_all(t5x_writer.write_orbax(tmp_path, weights, ocdbt=False)), ours)


def test_position_biases_that_differ_between_layers_are_refused(weights, tmp_path):
  stored = t5x_writer.as_scalable(weights, NUM_HEADS, scanned=False)
  name = 'decoder/layers_1/relpos_bias/rel_embedding'
  path = t5x_writer.write_legacy(tmp_path, stored | {name: stored[name] + 1})
  with pytest.raises(errors.CheckpointError, match='position bias of the decoder.*layers_1.*same in every layer'):
    load(path)


def test_a_run_gives_its_newest_complete_checkpoint(weights, ours, tmp_path, monkeypatch):
  path = t5x_writer.write_legacy(tmp_path, weights)
  path.rename(tmp_path / 'checkpoint_20')
  t5x_writer.write_legacy(tmp_path, weights | {'encoder/encoder_norm/scale': np.zeros(8, np.float32)}).rename(
      tmp_path / 'checkpoint_3')
  (tmp_path / 'checkpoint_500').mkdir()
  (tmp_path / 'checkpoint_70.tmp').mkdir()
  warnings = []
  monkeypatch.setattr(logging, 'warning', lambda *args: warnings.append(args))
  assert t5x.is_t5x(tmp_path)
  assert same(read_all(tmp_path), ours)
  assert {str(args[1]) for args in warnings} == {str(tmp_path / 'checkpoint_500')}


def test_decoder_only_checkpoint_says_what_is_missing(weights, tmp_path):
  only = {name: value for name, value in weights.items() if name.startswith('decoder') and 'encoder' not in name}
  only['decoder/token_embedder/embedding'] = weights['token_embedder/embedding']
  with pytest.raises(errors.CheckpointError, match='decoder-only T5X.*relative position bias'):
    t5x.open_checkpoint(t5x_writer.write_legacy(tmp_path, only))


def test_other_folders_are_no_t5x_checkpoints(tmp_path):
  assert not t5x.is_t5x(tmp_path) and not t5x.is_t5x(tmp_path / 'missing')
  (tmp_path / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-1000"\n')  # TensorFlow's
  assert not t5x.is_t5x(tmp_path)
  with pytest.raises(errors.CheckpointError, match='no checkpoint'):
    t5x.open_checkpoint(tmp_path)


def test_missing_extra_and_misshapen_leaves_are_one_error(weights, tmp_path):
  stored = dict(weights)
  del stored['decoder/layers_1/mlp/wo/kernel']
  stored |= {'decoder/layers_0/gadget/kernel': np.ones(2, np.float32),
             'encoder/layers_0/attention/key/kernel': np.ones((8, 4), np.float32)}
  with pytest.raises(errors.CheckpointError) as caught:
    load(t5x_writer.write_legacy(tmp_path, stored))
  text = str(caught.value)
  assert 'missing decoder/layer_1/mlp/down/kernel' in text and 'decoder.layers_0.gadget.kernel' in text
  assert 'target.encoder.layers_0.attention.key.kernel is [8, 4]' in text


def test_a_configuration_of_another_model_is_refused_before_anything_is_read(weights, tmp_path, monkeypatch):
  path = t5x_writer.write_orbax(tmp_path, weights)
  monkeypatch.setattr('specjax.checkpoints.zarr_arrays.ArrayFolder.read', None)
  with pytest.raises(errors.CheckpointError, match='checkpoint of another model'):
    load(path, config=t5.t5_configs.t5_small())


def test_a_gap_between_layers_is_refused(weights, tmp_path):
  stored = {name.replace('decoder/layers_2', 'decoder/layers_7'): value for name, value in weights.items()}
  with pytest.raises(errors.CheckpointError, match='missing decoder/layer_2/mlp'):
    load(t5x_writer.write_legacy(tmp_path, stored))


def test_numbers_that_are_not_finite_are_named(weights, tmp_path):
  broken = weights['encoder/encoder_norm/scale'].copy()
  broken[2] = np.nan
  with pytest.raises(errors.CheckpointError, match='target.encoder.encoder_norm.scale holds NaN'):
    load(t5x_writer.write_legacy(tmp_path, weights | {'encoder/encoder_norm/scale': broken}))
