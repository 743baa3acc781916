"""Training draft heads on a target, frozen or jointly: each predicts the tokens behind the one that the target predicts."""

from collections.abc import Sequence
from typing import Any, Callable

import jax
import jax.numpy as jnp

from specjax.core import checks
from specjax.core import errors
from specjax.core import protocols
from specjax.core import types
from specjax.ops import warping
from specjax.training import batches
from specjax.training import language_model
from specjax.training import losses
from specjax.training import loop


def shifted(batch: types.TrainingBatch, offset: int) -> tuple[jax.Array, jax.Array]:
  """(targets int32[B, T], weights float[B, T]) of the head that predicts `offset` tokens further than the target does.

  What lies in another segment of a packed row, or behind its end, has no weight.
  """
  same = (batch.segments > 0) & (_back(batch.segments, offset) == batch.segments)
  return _back(batch.targets, offset), jnp.where(same, _back(batch.weights, offset), 0)


def hidden_states(
    target: protocols.LanguageModel, target_params: Any, batch: types.TrainingBatch | batches.BatchWithHidden
) -> tuple[types.TrainingBatch, jax.Array]:
  """The batch, and the frozen target's last hidden states float[B, T, D]: those that come with it, or computed."""
  if isinstance(batch, batches.BatchWithHidden):
    return batch.batch, batch.hidden.astype(warping.probability_dtype(batch.hidden.dtype))
  return batch, jax.lax.stop_gradient(target.forward(target_params, batch).hidden)


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
  loss_of_heads = _make_loss_of_heads(target, heads, head_weights=head_weights, z_loss=z_loss)

  def loss_function(params, constants, batch):
    batch, hidden = hidden_states(target, constants, batch)
    return loss_of_heads(params, constants, hidden, batch)

  return loss_function


def make_joint_loss(
    target: protocols.LanguageModel, heads: Any, *, head_weights: Sequence[float], z_loss: float, target_weight: float
) -> loop.LossFunction:
  """The loss of heads and target trained together: parameters are {'target': ..., 'heads': ...}, there are no constants.

  The heads' loss is that of `make_loss`, whose gradient now reaches the target too; the target's own next-token loss is
  added with `target_weight`. Metrics: also `target_loss` and `target_accuracy`.
  """
  loss_of_heads = _make_loss_of_heads(target, heads, head_weights=head_weights, z_loss=z_loss)
  target_weight = checks.real('target_weight', target_weight, low=0)

  def loss_function(params, unused_constants, batch):
    output = target.forward(params['target'], batch)
    own, own_metrics = losses.next_token_loss(output.logits, batch.targets, batch.weights, z_loss=z_loss)
    of_heads, metrics = loss_of_heads(params['heads'], params['target'], output.hidden, batch)
    own_metrics = {f'target_{name}': own_metrics[name] for name in ('loss', 'accuracy')}
    return of_heads + target_weight * own, metrics | own_metrics

  return loss_function


def objective(
    target: protocols.LanguageModel, target_params: Any, heads: Any, *, head_weights: Sequence[float], z_loss: float
) -> language_model.Objective:
  """The `Objective` of heads on a frozen target."""
  return language_model.Objective(
      init=heads.init, loss=make_loss(target, heads, head_weights=head_weights, z_loss=z_loss),
      validation=make_loss(target, heads, head_weights=head_weights, z_loss=0.0), constants=target_params)


def joint_objective(
    target: protocols.LanguageModel, target_params: Any, heads: Any, *, head_weights: Sequence[float], z_loss: float,
    target_weight: float,
) -> language_model.Objective:
  """The `Objective` of heads and a target that starts at `target_params`; see `make_joint_loss`."""
  weights = dict(head_weights=head_weights, target_weight=target_weight)
  return language_model.Objective(
      init=lambda key: {'target': target_params, 'heads': heads.init(key)},
      loss=make_joint_loss(target, heads, z_loss=z_loss, **weights),
      validation=make_joint_loss(target, heads, z_loss=0.0, **weights))


def _back(values, offset):
  """`values` [B, T] moved `offset` places to the front, 0 behind."""
  return jnp.pad(values, ((0, 0), (0, offset)))[:, offset:]


def _make_loss_of_heads(target, heads, *, head_weights, z_loss) -> Callable:
  """(heads' params, target's params, hidden states, batch) -> (loss, metrics)."""
  head_weights = [checks.real('head_weights', weight, low=0) for weight in head_weights]
  if len(head_weights) != heads.num_heads:
    raise errors.ParamError(what='head_weights', got=len(head_weights), expected=f'{heads.num_heads}, one per head')
  if not sum(head_weights):
    raise errors.ParamError(what='head_weights', got=head_weights, expected='a positive sum')

  def loss_of_heads(params, target_params, hidden, batch):
    predictions = heads(params, hidden)
    total, found = 0.0, []
    # Head by head: the logits of all heads together would take H times the memory.
    for index, weight in enumerate(head_weights):
      targets, weights = shifted(batch, index + 1)
      objective, metrics = losses.next_token_loss(
          target.unembed(target_params, predictions[:, :, index]), targets, weights, z_loss=z_loss)
      total = total + weight * objective
      found.append(metrics)
    scored = sum(metrics['num_scored'] for metrics in found)
    share = [metrics['num_scored'] / jnp.maximum(scored, 1) for metrics in found]
    mean = lambda name: sum(part * metrics[name] for part, metrics in zip(share, found, strict=True))
    by_head = {f'accuracy_{index}': metrics['accuracy'] for index, metrics in enumerate(found, start=1)}
    return total / sum(head_weights), {'loss': mean('loss'), 'accuracy': mean('accuracy'), 'num_scored': scored} | by_head

  return loss_of_heads
