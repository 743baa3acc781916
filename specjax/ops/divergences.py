"""Divergences between laws given as log-probabilities float[..., V]; results float[...], in nats where logarithmic.

A law that is NaN has a divergence of NaN."""

import jax.numpy as jnp


def total_variation(first_log_probs, second_log_probs):
  """Half the L1 distance, in [0, 1]; 1 minus it is the acceptance probability of a draft from one for the other."""
  return 0.5 * jnp.sum(jnp.abs(jnp.exp(first_log_probs) - jnp.exp(second_log_probs)), axis=-1)


def kl_divergence(first_log_probs, second_log_probs):
  """KL(first || second) in nats; +inf where the first has mass and the second has none."""
  has_mass = first_log_probs != -jnp.inf
  difference = jnp.where(has_mass, first_log_probs, 0) - jnp.where(has_mass, second_log_probs, 0)
  return jnp.sum(jnp.where(has_mass, jnp.exp(first_log_probs) * difference, 0), axis=-1)


def entropy(log_probs):
  """Shannon entropy in nats."""
  has_mass = log_probs != -jnp.inf
  return -jnp.sum(jnp.where(has_mass, jnp.exp(log_probs) * jnp.where(has_mass, log_probs, 0), 0), axis=-1)
