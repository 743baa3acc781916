"""Divergences against plain numpy, with tokens that have no mass."""

import jax.numpy as jnp
import numpy as np

from specjax.ops import divergences

P = np.array([0.13, 0.62, 0.08, 0.17])
Q = np.array([0.50, 0.25, 0.15, 0.10])
SPARSE = np.array([0.5, 0.5, 0.0, 0.0])


def log(probs):
  with np.errstate(divide='ignore'):
    return jnp.asarray(np.log(probs), jnp.float32)


def test_total_variation_of_the_hand_table():
  assert np.isclose(divergences.total_variation(log(P), log(Q)), 0.44, atol=1e-6)
  assert np.isclose(divergences.total_variation(log(SPARSE), log(SPARSE)), 0)


def test_kl_divergence_and_entropy():
  assert np.isclose(divergences.kl_divergence(log(P), log(Q)), np.sum(P * np.log(P / Q)), atol=1e-6)
  assert np.isclose(divergences.kl_divergence(log(SPARSE), log(Q)), np.log(0.5 / 0.5) / 2 + np.log(0.5 / 0.25) / 2, atol=1e-6)
  assert divergences.kl_divergence(log(Q), log(SPARSE)) == np.inf
  assert np.isclose(divergences.entropy(log(SPARSE)), np.log(2), atol=1e-6)


def test_a_broken_law_has_no_divergence():
  law, broken = jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.full(3, jnp.nan)
  assert jnp.isnan(divergences.entropy(broken))
  for first, second in ((law, broken), (broken, law), (broken, broken)):
    assert jnp.isnan(divergences.kl_divergence(first, second)) and jnp.isnan(divergences.total_variation(first, second))
