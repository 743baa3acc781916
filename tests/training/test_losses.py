"""The next-token loss against a table worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.training import losses

LOG2, LOG3, LOG4 = np.log(2), np.log(3), np.log(4)

# Laws of four positions over four tokens, chosen so that every quantity is a logarithm of a small integer.
PROBS = np.array([[1, 1, 1, 1], [2, 4, 1, 1], [1, 1, 4, 2], [2, 2, 2, 2]], np.float32) / 8
LOGITS = np.log(PROBS)[None] + np.array([LOG2, 0, 0, 0], np.float32)[None, :, None]
TARGETS = np.array([[3, 1, 2, 0]], np.int32)
WEIGHTS = np.array([[1, 1, 0.5, 0]], np.float32)


def loss(z_loss, logits=LOGITS, weights=WEIGHTS, targets=TARGETS):
  return losses.next_token_loss(jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(weights), z_loss=z_loss)


def test_hand_table():
  # position  law          shift  target  nats              log normaliser  weight
  # 0         1/8 each (*) log 2  3       log 4             0               1
  # 1         2 4 1 1 / 8  0      1       log 2             0               1
  # 2         1 1 4 2 / 8  0      2       log 2             0               0.5
  # 3         2 2 2 2 / 8  0      0       log 4             0               0
  # (*) the four eighths sum to 1/2, so the shift of log 2 makes them a law.
  objective, metrics = loss(0.0)
  np.testing.assert_allclose(objective, (LOG4 + LOG2 + 0.5 * LOG2) / 2.5, rtol=1e-6)
  np.testing.assert_allclose(metrics['loss'], (LOG4 + LOG2) / 2, rtol=1e-6)
  assert metrics['num_scored'] == 2 and metrics['accuracy'] == 1.0  # A tie for the largest counts as right.


def test_accuracy_counts_scored_positions_whose_target_is_largest():
  _, metrics = loss(0.0, targets=np.array([[3, 0, 0, 0]], np.int32))
  assert metrics['accuracy'] == 0.5  # Position 1 misses; 2 and 3 are not scored.


def test_z_loss_is_the_squared_log_normaliser():
  shifted = LOGITS + np.array([0, LOG3, -LOG3, 5], np.float32)[None, :, None]
  plain, metrics = loss(0.0, shifted)
  penalised, same_metrics = loss(0.1, shifted)
  np.testing.assert_allclose(penalised - plain, 0.1 * 1.5 * LOG3**2 / 2.5, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], same_metrics['loss'])


@pytest.mark.parametrize('z_loss', [0.0, 0.3])
def test_gradient_is_that_of_the_textbook_formula(z_loss):
  def textbook(logits):
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, jnp.asarray(TARGETS)[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.asarray(WEIGHTS) * (log_normaliser - picked + z_loss * log_normaliser**2)) / 2.5

  logits = jnp.asarray(np.random.default_rng(1).normal(size=LOGITS.shape).astype(np.float32) * 3)
  np.testing.assert_allclose(jax.grad(lambda x: loss(z_loss, x)[0])(logits), jax.grad(textbook)(logits), atol=1e-6)


def test_padding_contributes_nothing_however_wild():
  wild = LOGITS.copy()
  wild[0, 3] = [1e4, -1e4, 0, 0]
  np.testing.assert_array_equal(loss(0.1)[0], loss(0.1, wild)[0])


def test_a_batch_without_weights_is_zero_not_nan():
  objective, metrics = loss(0.1, weights=np.zeros_like(WEIGHTS))
  assert objective == 0 and metrics['loss'] == 0 and metrics['accuracy'] == 0


def test_bfloat16_logits_are_summed_in_float32():
  objective, _ = loss(0.0, LOGITS.astype(jnp.bfloat16))
  assert objective.dtype == jnp.float32
