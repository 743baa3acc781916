"""Training an autoregressive draft head on a frozen target, teacher-forced on the target's own hidden states."""

from typing import Any

import jax
import jax.numpy as jnp

from specjax.core import checks
from specjax.core import errors
from specjax.core import protocols
from specjax.ops import warping
from specjax.training import draft_heads
from specjax.training import language_model
from specjax.training import losses
from specjax.training import loop

# Of EAGLE: smooth-L1 on features, a tenth of the cross-entropy on tokens.
FEATURE_WEIGHT, TOKEN_WEIGHT = 1.0, 0.1


def smooth_l1(predicted: jax.Array, wanted: jax.Array) -> jax.Array:
  """float[...], mean over the last axis of d^2 / 2 where the distance d is below 1, else d - 1/2. Source: Girshick 2015."""
  distance = jnp.abs(predicted - wanted)
  return jnp.mean(jnp.where(distance < 1, 0.5 * jnp.square(distance), distance - 0.5), axis=-1)


def make_loss(
    target: protocols.LanguageModel, head: Any, *, feature_weight: float, token_weight: float
) -> loop.LossFunction:
  """The loss of a head on text that the frozen target (params in `constants`) has read.

  A pair of the target's hidden state and the token behind it predicts the next hidden state (smooth-L1) and, through the
  target's output embedding, the target's law of the token behind that (cross-entropy, nats).

  Metrics: `loss` (nats) and `accuracy` against the text, `agreement` with the target's most probable token,
  `feature_loss` and `token_loss`; means over scored tokens.

  Args:
    target: the model; `forward` with hidden states, `embed` and `unembed`.
    head: an `AutoregressiveHead`.
    feature_weight, token_weight: of the two losses; EAGLE has 1 and 0.1.

  Source: Li et al. 2024 (EAGLE), section 4.2.
  """
  feature_weight = checks.real('feature_weight', feature_weight, low=0)
  token_weight = checks.real('token_weight', token_weight, low=0)
  if not feature_weight + token_weight:
    raise errors.ParamError(what='feature_weight and token_weight', got=(0.0, 0.0), expected='one above 0')

  def loss_function(params, constants, batch):
    batch, hidden = draft_heads.hidden_states(target, constants, batch)
    targets, weights = draft_heads.shifted(batch, 1)
    predicted = head.forward(
        params, hidden, target.embed(constants, batch.targets), positions=batch.positions, segments=batch.segments)
    wanted = jnp.pad(hidden, ((0, 0), (0, 1), (0, 0)))[:, 1:]
    logits = target.unembed(constants, predicted)
    logits = logits.astype(warping.probability_dtype(logits.dtype))
    target_logits = target.unembed(constants, wanted).astype(logits.dtype)
    nats = -jnp.sum(jax.nn.softmax(target_logits) * jax.nn.log_softmax(logits), axis=-1)
    mean = lambda values: jnp.sum(weights * values) / jnp.maximum(jnp.sum(weights), 1.0)
    feature_loss, token_loss = mean(smooth_l1(predicted, wanted.astype(predicted.dtype))), mean(nats)
    _, metrics = losses.next_token_loss(logits, targets, weights, z_loss=0.0)
    agrees = jnp.argmax(logits, axis=-1) == jnp.argmax(target_logits, axis=-1)
    metrics |= dict(agreement=mean(agrees.astype(nats.dtype)), feature_loss=feature_loss, token_loss=token_loss)
    return feature_weight * feature_loss + token_weight * token_loss, metrics

  return loss_function


def objective(
    target: protocols.LanguageModel, target_params: Any, head: Any, *, feature_weight: float = FEATURE_WEIGHT,
    token_weight: float = TOKEN_WEIGHT,
) -> language_model.Objective:
  """The `Objective` of an autoregressive head on a frozen target."""
  loss_function = make_loss(target, head, feature_weight=feature_weight, token_weight=token_weight)
  return language_model.Objective(
      init=head.init, loss=loss_function, validation=loss_function, constants=target_params)
