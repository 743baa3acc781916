"""Training draft heads on a frozen target: each predicts the tokens behind the one that the target predicts."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from specjax.core import checks
from specjax.core import errors
from specjax.core import protocols
from specjax.core import types
from specjax.training import language_model
from specjax.training import losses
from specjax.training import loop


def shifted(batch: types.TrainingBatch, offset: int) -> tuple[jax.Array, jax.Array]:
  """(targets int32[B, T], weights float[B, T]) of the head that predicts `offset` tokens further than the target does.

  What lies in another segment of a packed row, or behind its end, has no weight.
  """
  back = lambda values: jnp.pad(values, ((0, 0), (0, offset)))[:, offset:]
  same = (batch.segments > 0) & (back(batch.segments) == batch.segments)
  return back(batch.targets), jnp.where(same, back(batch.weights), 0)


def make_loss(
    target: protocols.LanguageModel, heads: Any, *, head_weights: Sequence[float], z_loss: float
) -> loop.LossFunction:
  """The loss of all heads, weighted, of text that the frozen target (params in `constants`) has read.

  Metrics: `loss` (nats) and `accuracy` as means over heads and scored tokens, `accuracy_1`, ... by head.

  Args:
    target: the model; `forward` with hidden states, and `unembed`.
    heads: a `DraftHeads`.
    head_weights: one per head; Medusa has 0.8^j.
    z_loss: see `losses.next_token_loss`.
  """
  head_weights = [checks.real('head_weights', weight, low=0) for weight in head_weights]
  if len(head_weights) != heads.num_heads:
    raise errors.ParamError(what='head_weights', got=len(head_weights), expected=f'{heads.num_heads}, one per head')

  def loss_function(params, constants, batch):
    hidden = jax.lax.stop_gradient(target.forward(constants, batch).hidden)
    predictions = heads(params, hidden)
    total, found = 0.0, []
    # Head by head: the logits of all heads together would take H times the memory.
    for index, weight in enumerate(head_weights):
      targets, weights = shifted(batch, index + 1)
      objective, metrics = losses.next_token_loss(
          target.unembed(constants, predictions[:, :, index]), targets, weights, z_loss=z_loss)
      total = total + weight * objective
      found.append(metrics)
    scored = sum(metrics['num_scored'] for metrics in found)
    share = [metrics['num_scored'] / jnp.maximum(scored, 1) for metrics in found]
    mean = lambda name: sum(part * metrics[name] for part, metrics in zip(share, found, strict=True))
    by_head = {f'accuracy_{index}': metrics['accuracy'] for index, metrics in enumerate(found, start=1)}
    return total / sum(head_weights), {'loss': mean('loss'), 'accuracy': mean('accuracy'), 'num_scored': scored} | by_head

  return loss_function


def objective(
    target: protocols.LanguageModel, target_params: Any, heads: Any, *, head_weights: Sequence[float], z_loss: float
) -> language_model.Objective:
  """The `Objective` of heads on a frozen target."""
  return language_model.Objective(
      init=heads.init, loss=make_loss(target, heads, head_weights=head_weights, z_loss=z_loss),
      validation=make_loss(target, heads, head_weights=head_weights, z_loss=0.0), constants=target_params)
