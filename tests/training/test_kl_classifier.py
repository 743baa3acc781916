"""A probe learns which points lie above a level, and its probabilities are what they say."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.checkpoints import classifier_file
from specjax.core import errors
from specjax.models import gemma
from specjax.models import t5
from specjax.ops import probes
from specjax.training import batches
from specjax.training import kl_classifier
from specjax.training import language_model
from specjax.training import loop
from specjax.training import optimizer as optimizers

WIDTH, LEVEL = 3, 0.5


@dataclasses.dataclass(frozen=True)
class Points:
  """Points in memory."""

  features: np.ndarray
  divergence: np.ndarray

  def __len__(self):
    return len(self.divergence)

  def rows(self, index, *, input_weight=0.0):
    del input_weight
    return kl_classifier.PointBatch(self.features[index], self.divergence[index])

  def fingerprint(self):
    return hashlib.sha256(self.features.tobytes() + self.divergence.tobytes()).hexdigest()


def points(seed, count=4000):
  """The logarithm of the divergence is 2 |first feature| - 2.2 + noise: no linear probe sees it."""
  rng = np.random.default_rng(seed)
  features = rng.standard_normal((count, WIDTH)).astype(np.float32)
  logs = 2 * np.abs(features[:, 0]) - 2.2 + 0.4 * rng.standard_normal(count)
  return Points(features * np.array([2, 1, 0.1], np.float32) + 3, np.exp(logs).astype(np.float32))


@dataclasses.dataclass
class StopAfter:
  steps: int = 10**6

  @property
  def requested(self):
    self.steps -= 1
    return self.steps < 0


def config(hidden_dims=(16,)):
  return classifier_file.ClassifierConfig(embed_dim=WIDTH, hidden_dims=hidden_dims, level=LEVEL)


def train(directory, *, learns='class', hidden_dims=(16,), steps=300, stop=None):
  data = points(0)
  mean, scale = kl_classifier.moments(data)
  params, complete = language_model.train(
      kl_classifier.objective(config(hidden_dims), mean=mean, scale=scale, learns=learns), train_data=data,
      validation_data=points(1, 500), output_dir=str(directory), model_description={'learns': learns},
      config=language_model.LanguageModelConfig(seed=0, batch_size=128, optimizer=optimizers.OptimizerConfig(
          learning_rate=1e-2, num_steps=steps, warmup_steps=5, weight_decay=0.0)),
      loop_config=loop.LoopConfig(num_steps=steps, log_every=50, evaluate_every=1000, save_every=1000),
      stop=stop or StopAfter(), tensorboard=False, show_progress=False)
  return kl_classifier.as_probe(params, mean=mean, scale=scale), complete


def test_moments_are_those_of_all_points():
  data = points(2)
  mean, scale = kl_classifier.moments(data)
  np.testing.assert_allclose(mean, data.features.mean(axis=0), rtol=1e-5)
  np.testing.assert_allclose(scale, data.features.std(axis=0), rtol=1e-4)
  constant = Points(np.full((5, 2), 7, np.float32), np.ones(5, np.float32))
  np.testing.assert_array_equal(kl_classifier.moments(constant), [[7, 7], [1, 1]])
  with pytest.raises(errors.DataError, match='points'):
    kl_classifier.moments(Points(np.zeros((0, 2), np.float32), np.zeros(0, np.float32)))


def probe_of(logits):
  """(params, constants, features) of a linear probe whose logits are these."""
  return ({'kernels': [jnp.ones((1, 1))], 'biases': [jnp.zeros(1)]}, {'mean': jnp.zeros(1), 'scale': jnp.ones(1)},
          np.array(logits, np.float32)[:, None])


def test_log_loss_by_hand_and_a_divergence_at_the_level_is_not_above_it():
  params, constants, features = probe_of([2.0, -1.0, 0.5])
  batch = kl_classifier.PointBatch(features, np.array([0.6, 0.1, LEVEL], np.float32))
  loss, metrics = kl_classifier.make_loss(level=LEVEL, learns='class')(params, constants, batch)
  wanted = np.mean([np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0)), np.log1p(np.exp(0.5))])
  np.testing.assert_allclose(loss, wanted, rtol=1e-6)
  assert metrics['accuracy'] == np.float32(2 / 3) and metrics['num_scored'] == 3


def test_the_squared_error_of_the_log_divergence_by_hand_with_its_floor():
  params, constants, features = probe_of([2.0, -1.0])
  batch = kl_classifier.PointBatch(features, np.array([1.0, 0.0], np.float32))
  loss, _ = kl_classifier.make_loss(level=LEVEL, learns='log_divergence')(params, constants, batch)
  wanted = np.mean([(2 - np.log(2)) ** 2, (-1 - np.log(kl_classifier.SMALLEST_DIVERGENCE / LEVEL)) ** 2])
  np.testing.assert_allclose(loss, wanted, rtol=1e-6)


@pytest.mark.parametrize('change', [dict(level=0.0), dict(level=float('nan')), dict(learns='rank')])
def test_a_loss_without_meaning_is_refused(change):
  with pytest.raises(errors.ParamError):
    kl_classifier.make_loss(**(dict(level=LEVEL, learns='class') | change))


def test_a_fresh_probe_says_one_half_and_a_point_counts_as_a_token():
  made = kl_classifier.objective(config(), mean=np.zeros(WIDTH), scale=np.ones(WIDTH), learns='class')
  params = made.init(jax.random.key(0))
  probe = kl_classifier.as_probe(params, mean=np.zeros(WIDTH, np.float32), scale=np.ones(WIDTH, np.float32))
  assert probes.probability(probe, jnp.ones(WIDTH)) == 0.5
  assert float(jnp.abs(params['kernels'][0]).min()) > 0
  assert batches.count_tokens(points(0, 7).rows(np.arange(5))) == 5


@pytest.mark.parametrize('learns', ['class', 'log_divergence'])
def test_a_hidden_layer_learns_what_a_linear_probe_cannot_and_calibration_makes_it_true(tmp_path, learns):
  held_out, fresh = points(7), points(8)
  labels = held_out.divergence > LEVEL
  found = {}
  for hidden_dims in ((16,), ()):
    probe, complete = train(tmp_path / str(len(hidden_dims)), learns=learns, hidden_dims=hidden_dims)
    assert complete
    fitted = kl_classifier.calibrated(probe, fresh, level=LEVEL, max_knots=20)
    found[hidden_dims] = kl_classifier.figures(kl_classifier.probabilities_of(fitted, held_out)[0], labels)
    raw = kl_classifier.figures(kl_classifier.probabilities_of(probe, held_out)[0], labels)
    if hidden_dims:  # The order stays but where knots are pooled, and where there is none to be found all are.
      assert abs(raw['auc'] - found[hidden_dims]['auc']) < 0.01
    assert found[hidden_dims]['ece'] < 0.04, found
    assert len(fitted['knots']['x']) <= 20 and fitted['temperature'] > 0
  # A linear probe meets a valley: pooling one of its sides gains a little.
  assert found[16,]['auc'] > 0.93 and found[16,]['brier_skill'] > 0.5 and found[()]['auc'] < 0.7, found


def test_probabilities_are_those_that_routers_compute(tmp_path):
  probe, _ = train(tmp_path, steps=20)
  fitted, data = kl_classifier.calibrated(probe, points(8, 500), level=LEVEL), points(9, 50)
  found, divergences = kl_classifier.probabilities_of(fitted, data)
  wanted = [probes.probability(fitted, jnp.asarray(features)) for features in data.features]
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  np.testing.assert_array_equal(divergences, data.divergence)
  config_of_it = dataclasses.replace(config(), num_knots=len(fitted['knots']['x']))
  shapes = jax.tree.map(lambda leaf: leaf.shape, classifier_file.template(config_of_it))
  assert jax.tree.map(jnp.shape, fitted) == shapes


def test_stopped_training_goes_on_to_the_same_bits(tmp_path):
  whole, complete = train(tmp_path / 'whole', steps=40)
  assert complete
  for stop in (1, 13, 22):
    _, complete = train(tmp_path / 'parts', steps=40, stop=StopAfter(stop))
    assert not complete
  parts, complete = train(tmp_path / 'parts', steps=40)
  assert complete
  jax.tree.map(np.testing.assert_array_equal, whole, parts)


def hundred_million(family):
  """(model, parameters) of about 100 M."""
  if family == 'decoder-only':
    model = gemma.DecoderLM(gemma.DecoderConfig(
        vocab_size=32128, embed_dim=768, hidden_dim=2048, num_heads=12, num_kv_heads=12, head_dim=64,
        layer_kinds=('global',) * 12, activation='gelu', tied_head=True))
  else:
    model = t5.T5LM(t5.T5Config(
        vocab_size=32128, embed_dim=768, num_heads=12, head_dim=64, mlp_dim=2048, num_encoder_layers=2,
        num_decoder_layers=8, mlp='gated_gelu', tied_head=False, scale_logits=False))
  params = jax.eval_shape(model.init, jax.random.key(0))
  return model, sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.nightly
@pytest.mark.parametrize('family', ['decoder-only', 'encoder-decoder'])
def test_a_hidden_layer_of_four_widths_costs_three_percent_of_a_drafter_of_100_million(family):
  model, size = hundred_million(family)
  assert 90e6 < size < 170e6
  wide = classifier_file.ClassifierConfig(embed_dim=768, hidden_dims=(4 * 768,), level=1.0)
  cost = kl_classifier.overhead(wide, model, family=family)
  assert 0.01 < cost.flops < 0.03 and 0.01 < cost.bytes < 0.03, cost
  linear = kl_classifier.overhead(classifier_file.ClassifierConfig(embed_dim=768, level=1.0), model, family=family)
  assert linear.flops < 1e-4 and linear.bytes < 1e-4


def test_overhead_counts_the_weights_of_a_step_by_hand():
  model = gemma.DecoderLM(gemma.DecoderConfig(
      vocab_size=64, embed_dim=8, hidden_dim=16, num_heads=2, num_kv_heads=1, head_dim=4, layer_kinds=('global',),
      activation='gelu', tied_head=True))
  weights = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))
  shape = classifier_file.ClassifierConfig(embed_dim=8, hidden_dims=(4,), level=1.0)
  cost = kl_classifier.overhead(shape, model, family='decoder-only', context=32)
  # mean, scale, two kernels, two biases, temperature; the step also reads tokens and counts.
  assert cost.bytes == pytest.approx((8 + 8 + 32 + 4 + 4 + 1 + 1) / weights, rel=0.02)
