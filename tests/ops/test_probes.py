"""What a probe computes, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from specjax.ops import probes


def random_probe(widths, seed=0, knots=()):
  """A probe with layers of these widths."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  pairs = list(zip(widths[:-1], widths[1:]))
  return {
      'mean': normal(widths[0]), 'scale': jnp.exp(normal(widths[0])), 'kernels': [normal(*pair) for pair in pairs],
      'biases': [normal(width) for _, width in pairs], 'temperature': jnp.float32(1.7),
      'knots': {'x': jnp.array([x for x, _ in knots], jnp.float32), 'y': jnp.array([y for _, y in knots], jnp.float32)}}


def expected_logit(params, features):
  hidden = (features - params['mean']) / params['scale']
  for index, (kernel, bias) in enumerate(zip(params['kernels'], params['biases'])):
    hidden = (np.maximum(hidden, 0) if index else hidden) @ np.asarray(kernel) + np.asarray(bias)
  return hidden[0] / 1.7


def test_linear_and_deep_probes_equal_numpy():
  features = np.random.default_rng(1).standard_normal((20, 5)).astype(np.float32)
  for widths in ((5, 1), (5, 8, 1), (5, 8, 3, 1)):
    params = random_probe(widths)
    got = jax.vmap(lambda one: probes.probability(params, one))(jnp.asarray(features))
    expected = [1 / (1 + np.exp(-expected_logit(params, one))) for one in features]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_knots_are_interpolated_and_constant_beyond_their_ends():
  params = random_probe((5, 1), knots=((-1.0, 0.1), (0.0, 0.1), (2.0, 0.9)))
  features = np.random.default_rng(2).standard_normal((50, 5)).astype(np.float32) * 3
  got = jax.vmap(lambda one: probes.probability(params, one))(jnp.asarray(features))
  logits = np.array([expected_logit(params, one) for one in features])
  np.testing.assert_allclose(got, np.interp(logits, [-1, 0, 2], [0.1, 0.1, 0.9]), atol=1e-5)
  assert logits.min() < -1 and logits.max() > 2
