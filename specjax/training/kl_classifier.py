"""Training a probe of the drafter's hidden state to tell where its law is far from the target's, and calibrating it."""

from typing import Any, Callable, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from specjax.checkpoints import classifier_file
from specjax.core import checks
from specjax.core import errors
from specjax.core import protocols
from specjax.core import types
from specjax.metrics import calibration
from specjax.ops import probes
from specjax.training import language_model

Learns = Literal['class', 'log_divergence']

# Nats. What lies below is rounding of two float32 laws; its logarithm is noise that a regression would learn.
SMALLEST_DIVERGENCE = 1e-4
_ROWS = 1 << 14  # of one pass over all points: a few megabytes
_SMALLEST_SCALE = 1e-6


class PointBatch(NamedTuple):
  """Points: `features` float[B, D], hidden states of the drafter; `divergence` float[B] of the laws behind them, nats."""

  features: Any
  divergence: Any

  @property
  def segments(self):
    """int32[B] of ones: a point counts as a token, see `batches.count_tokens`."""
    return np.ones(len(self.divergence), np.int32)

  @property
  def encoder_segments(self):
    """None."""
    return None


class PointData(Protocol):
  """Points in memory or on disk; it stands where `batches.PackedData` stands."""

  def __len__(self) -> int:
    """How many."""

  def rows(self, index: np.ndarray, *, input_weight: float = 0.0) -> PointBatch:
    """The points `index` int[B]."""

  def fingerprint(self) -> str:
    """What the points are, as a hash."""


def moments(data: PointData) -> tuple[np.ndarray, np.ndarray]:
  """(mean, standard deviation) float32[D] of the features; 1 for the deviation of a constant one.

  Raises:
    DataError: there are no points.
  """
  if not len(data):
    raise errors.DataError(what='points', got='none', expected='at least one', fix='collect more questions')
  total = squares = 0.0
  for batch in _passes(data):
    features = np.asarray(batch.features, np.float64)
    total, squares = total + features.sum(axis=0), squares + (features**2).sum(axis=0)
  mean = total / len(data)
  scale = np.sqrt(np.maximum(squares / len(data) - mean**2, 0))
  return mean.astype(np.float32), np.where(scale > _SMALLEST_SCALE, scale, 1).astype(np.float32)


def make_loss(*, level: float, learns: Learns) -> Callable:
  """The loss of a probe: kernels and biases are the parameters, {'mean', 'scale'} of the features the `constants`.

  Metrics: `loss`, means over points: log loss (nats) of 'class', the squared error of the log of the divergence for
  'log_divergence'; and `accuracy` of telling on which side of the level a point lies.

  Args:
    level: nats. A regression predicts log(divergence / level), so that its sign is the class: a logit in the layout of
      `specjax.ops.probes` either way.
    learns: 'class' or 'log_divergence'.
  """
  level = checks.real('level', level, low=SMALLEST_DIVERGENCE)
  checks.choice('learns', learns, ('class', 'log_divergence'))

  def loss_function(params, constants, batch):
    logits = jax.vmap(lambda one: probes.logit(params | constants, one))(batch.features)
    is_far = batch.divergence > level
    if learns == 'class':
      losses = jax.nn.softplus(logits) - jnp.where(is_far, logits, 0)
    else:
      losses = jnp.square(logits - jnp.log(jnp.maximum(batch.divergence, SMALLEST_DIVERGENCE) / level))
    loss = jnp.mean(losses)
    accuracy = jnp.mean(((logits > 0) == is_far).astype(loss.dtype))
    return loss, {'loss': loss, 'accuracy': accuracy, 'num_scored': jnp.asarray(len(logits), loss.dtype)}

  return loss_function


def objective(
    config: classifier_file.ClassifierConfig, *, mean: np.ndarray, scale: np.ndarray, learns: Learns
) -> language_model.Objective:
  """The `Objective` of the kernels and biases of a probe; `mean` and `scale` are those of the features."""
  loss = make_loss(level=config.level, learns=learns)
  return language_model.Objective(
      init=lambda key: _fresh(config, key), loss=loss, validation=loss,
      constants={'mean': jnp.asarray(mean), 'scale': jnp.asarray(scale)})


def as_probe(params: Any, *, mean: np.ndarray, scale: np.ndarray) -> dict[str, Any]:
  """A probe that is not calibrated: temperature 1, no knots."""
  none = jnp.zeros((0,), jnp.float32)
  return dict(params, mean=jnp.asarray(mean), scale=jnp.asarray(scale), temperature=jnp.ones((), jnp.float32),
              knots={'x': none, 'y': none})


def calibrated(
    probe: dict[str, Any], data: PointData, *, level: float, max_knots: int = calibration.MAX_KNOTS
) -> dict[str, Any]:
  """The probe with the temperature and the isotonic knots that fit points it was not trained on."""
  logits, divergences = logits_of(probe, data)
  labels = divergences > level
  temperature = np.float32(calibration.fit_temperature(logits, labels))
  x, y = calibration.isotonic_knots(logits / temperature, labels, max_knots=max_knots)
  x, y = x.astype(np.float32), y.astype(np.float32)
  keep = np.append(True, np.diff(x) > 0)  # Two knots may fall together in float32.
  return dict(probe, temperature=jnp.asarray(temperature), knots={'x': jnp.asarray(x[keep]), 'y': jnp.asarray(y[keep])})


def logits_of(probe: dict[str, Any], data: PointData) -> tuple[np.ndarray, np.ndarray]:
  """(logits before the temperature, divergences in nats) float64[N] of all points."""
  return _scores(probes.logit, probe, data)


def probabilities_of(probe: dict[str, Any], data: PointData) -> tuple[np.ndarray, np.ndarray]:
  """(calibrated probabilities, divergences in nats) float64[N] of all points, as routers compute them."""
  return _scores(probes.probability, probe, data)


def figures(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
  """AUC, ECE with 15 bins of equal mass and of equal width, Brier score and its skill over the base rate, JSON-able."""
  return {
      'num_points': len(labels), 'base_rate': float(np.mean(labels)), 'auc': calibration.auc(probabilities, labels),
      'ece': calibration.expected_calibration_error(probabilities, labels),
      'ece_equal_width': calibration.expected_calibration_error(probabilities, labels, bins='width'),
      'brier': calibration.brier_score(probabilities, labels),
      'brier_skill': calibration.brier_skill(probabilities, labels)}


class Overhead(NamedTuple):
  """What a probe costs as a share of a step of the drafter for one row: multiplications, and bytes of weights read."""

  flops: float
  bytes: float


def overhead(
    config: classifier_file.ClassifierConfig, drafter: protocols.LanguageModel, *, family: str, context: int = 128
) -> Overhead:
  """The `Overhead` of a probe on a drafter, as the compiler counts multiplications; nothing is run.

  Args:
    config: of the probe.
    drafter: a model; a table of embeddings that is only looked up in is not counted as read.
    family: 'decoder-only' or 'encoder-decoder'.
    context: tokens in the cache.
  """
  numbers = jax.ShapeDtypeStruct((1, context), jnp.int32)
  one = jax.ShapeDtypeStruct((1,), jnp.int32)
  prompt = types.Prompt(numbers, one)
  if family == 'encoder-decoder':
    prompt = types.Prompt(jax.ShapeDtypeStruct((1, 1), jnp.int32), one, numbers, one)
  params = jax.eval_shape(drafter.init, jax.random.key(0))
  cache = jax.eval_shape(lambda params, prompt: drafter.prefill(params, prompt, 2 * context)[1], params, prompt)
  step = jax.jit(lambda params, cache, tokens, count: drafter.extend(params, cache, tokens, count=count))
  compiled = step.lower(params, cache, jax.ShapeDtypeStruct((1, 1), jnp.int32), one).compile()
  # The program takes only those of its arguments that it reads.
  weights = compiled.memory_analysis().argument_size_in_bytes - _bytes(cache)
  if not drafter.config.tied_head:
    weights -= drafter.vocab_size * drafter.embed_dim * jnp.dtype(jnp.float32).itemsize
  shapes = classifier_file.template(config)
  multiplications = sum(kernel.shape[0] * kernel.shape[1] for kernel in shapes['kernels'])
  return Overhead(2 * multiplications / compiled.cost_analysis()['flops'], _bytes(shapes) / weights)


def _fresh(config, key):
  """Kernels with variance 1 / fan-in, doubled behind a relu; the last one and biases are 0, which predicts one half."""
  kernels, biases = [], []
  widths = config.widths
  for index, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
    key, own = jax.random.split(key)
    is_last = index == len(config.hidden_dims)
    deviation = 0.0 if is_last else ((2 if index else 1) / fan_in) ** 0.5
    kernels.append(jax.random.normal(own, (fan_in, fan_out), jnp.float32) * deviation)
    biases.append(jnp.zeros((fan_out,), jnp.float32))
  return {'kernels': kernels, 'biases': biases}


def _passes(data):
  """All points as batches, in order."""
  for start in range(0, len(data), _ROWS):
    yield data.rows(np.arange(start, min(start + _ROWS, len(data))))


def _scores(function, probe, data):
  apply = jax.jit(jax.vmap(function, in_axes=(None, 0)))
  found = [(apply(probe, batch.features), batch.divergence) for batch in _passes(data)]
  scores, divergences = zip(*found, strict=True)
  return tuple(np.concatenate([np.asarray(one, np.float64) for one in values]) for values in (scores, divergences))


def _bytes(tree):
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
