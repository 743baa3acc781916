"""The two-level draw: in range, never a token without mass, and its law counted exactly on the grid of float32 uniforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.ops import categorical


def test_small_vocabularies_invert_the_cdf():
  log_probs = jnp.log(jnp.array([0.25, 0.5, 0.25]))
  drawn = [int(categorical.draw(jnp.array([0.9, u]), log_probs)) for u in (0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999)]
  assert drawn == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize('vocab_size', [1, 2, 512, 513, 1024, 8193])
def test_every_draw_has_mass_and_is_in_range(vocab_size):
  random = np.random.RandomState(vocab_size)
  draw = jax.jit(jax.vmap(categorical.draw_from_probs, in_axes=(0, None)))
  edges = np.array([0.0, 2.0**-23, 0.5, 1 - 2.0**-23, 1 - 2.0**-24], np.float32)
  uniforms = np.stack(np.meshgrid(edges, edges), axis=-1).reshape(-1, 2)
  for share in (1.0, 0.3, 0.0):
    probs = np.where(random.rand(vocab_size) < share, random.exponential(size=vocab_size), 0).astype(np.float32)
    probs[random.randint(vocab_size)] = 0.5  # never without mass
    tokens = np.asarray(draw(uniforms, probs))
    assert tokens.min() >= 0 and tokens.max() < vocab_size and np.all(probs[tokens] > 0)


def test_no_uniform_reaches_an_entry_without_mass():
  """A running sum that rises by rounding where there is no mass would let a forbidden token through, once in 10^7 draws."""
  random = np.random.default_rng(0)
  rises = 0
  for _ in range(50):
    probs = random.dirichlet(np.full(512, 0.3)).astype(np.float32)
    probs = np.where(random.random(512) < 0.5, probs, 0).astype(np.float32)
    rises += np.sum((np.diff(np.asarray(jnp.cumsum(probs))) > 0) & (probs[1:] == 0))
    running = np.asarray(categorical.cdf(jnp.asarray(probs)))
    assert np.all(np.diff(running) >= 0) and np.all((np.diff(running) > 0) <= (probs[1:] > 0))
  assert rises > 0, 'the plain sum does not show the fault any more'


def test_unnormalised_probabilities_give_the_same_draw():
  uniforms = jnp.asarray(np.random.RandomState(0).rand(100, 2), jnp.float32)
  probs = jnp.asarray(np.random.RandomState(1).rand(700), jnp.float32)
  draw = jax.vmap(categorical.draw_from_probs, in_axes=(0, None))
  assert np.array_equal(draw(uniforms, probs), draw(uniforms, probs * 4))


def test_law_of_the_float32_draw_is_right_where_a_flat_one_is_not():
  """Every cell of the two-level draw at V = 8192, counted over the 2^23 grid points of each uniform."""
  vocab_size, grid = 8192, 2**23
  random = np.random.RandomState(3)
  probs = (random.exponential(size=vocab_size)**3).astype(np.float32)
  probs /= probs.sum()
  chunks = probs.reshape(-1, categorical.CHUNK)

  def shares(weights):
    # The fraction of the grid points k / 2^23 in each cell of the comparison running <= u * total.
    running = np.asarray(categorical.cdf(jnp.asarray(weights)))
    points = np.searchsorted((np.arange(grid) / grid).astype(np.float32) * running[-1], running, side='left')
    return np.diff(np.concatenate([[0], points[:-1], [grid]])) / grid

  law = np.concatenate([share * shares(chunk) for share, chunk in zip(
      shares(np.asarray(jnp.asarray(chunks).sum(axis=1))), chunks)])
  exact = probs.astype(np.float64) / probs.astype(np.float64).sum()
  within = exact.reshape(chunks.shape) / exact.reshape(chunks.shape).sum(axis=1, keepdims=True)
  distance, flat = (0.5 * np.abs(found - exact).sum() for found in (law, shares(probs)))
  assert distance < 2e-5 < flat
  # A cell two grid points wide inside its chunk cannot be missed.
  assert np.all(law[within.reshape(-1) > 2.0**-22] > 0)
