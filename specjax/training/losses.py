"""Losses over teacher-forced logits."""

import jax
import jax.numpy as jnp

from specjax.ops import warping


def next_token_loss(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, *, z_loss: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted mean cross-entropy in nats per token, and the metrics beside it.

  Args:
    logits: float[B, T, V].
    targets: int32[B, T].
    weights: float[B, T], 0 where nothing is to be predicted.
    z_loss: weight of log(normaliser)^2, which keeps logits from drifting; 0 for none.

  Returns:
    The loss with the z-loss, and `loss` (without it) and `accuracy` over the positions whose weight is at least 1.
  """
  logits = logits.astype(warping.probability_dtype(logits.dtype))
  largest_logits = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  log_normaliser = largest_logits + jnp.log(jnp.sum(jnp.exp(logits - largest_logits[..., None]), axis=-1))
  # A masked sum, because the gradient of a gather is a scatter, which is serial on CPU.
  is_target = jnp.arange(logits.shape[-1], dtype=targets.dtype)[None, None, :] == targets[..., None]
  picked_logits = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
  nats = log_normaliser - picked_logits
  total = jnp.maximum(jnp.sum(weights), 1.0)
  objective = jnp.sum(weights * (nats + z_loss * jnp.square(log_normaliser))) / total
  scored = weights >= 1.0
  num_scored = jnp.maximum(jnp.sum(scored), 1).astype(nats.dtype)
  correct = jnp.sum(scored & (picked_logits >= largest_logits))  # argmax costs ten times as much on CPU.
  metrics = {
      'loss': jnp.sum(jnp.where(scored, nats, 0.0)) / num_scored,
      'accuracy': correct.astype(nats.dtype) / num_scored,
      'num_scored': jnp.sum(scored),
  }
  return objective, metrics
