"""The training loop. It knows states, batches and a loss; what is trained is an argument."""

import dataclasses
import time
from typing import Any, Callable

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from specjax.checkpoints import native
from specjax.core import checks
from specjax.core import errors
from specjax.training import metric_log
from specjax.training import stopping

LossFunction = Callable[[Any, Any, Any], tuple[jax.Array, dict[str, jax.Array]]]


@struct.dataclass(kw_only=True)
class TrainState:
  """What the next step needs: `params`, `opt_state`, `step` int32[] (steps already taken)."""

  params: Any
  opt_state: Any
  step: jax.Array


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How often the loop reports, evaluates and saves, in steps."""

  num_steps: int
  log_every: int = 50
  evaluate_every: int = 500
  save_every: int = 500

  def __post_init__(self):
    for field in dataclasses.fields(self):
      checks.integer(field.name, getattr(self, field.name), low=1, high=checks.MAX_STEPS)


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  return TrainState(params=params, opt_state=optimizer.init(params), step=jnp.zeros((), jnp.int32))


def make_train_step(loss_function: LossFunction, optimizer: optax.GradientTransformation) -> Callable:
  """`train_step(state, constants, batch) -> (state, metrics)`, compiled, donating the state.

  Args:
    loss_function: (params, constants, batch) -> (loss, metrics). `constants` are arrays that are read, not trained
      (a frozen target); passing them keeps them out of the executable.
    optimizer: the gradient transformation.
  """

  def train_step(state, constants, batch):
    gradient_of = jax.value_and_grad(loss_function, has_aux=True)
    (_, metrics), grads = gradient_of(state.params, constants, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = dict(metrics, grad_norm=optax.global_norm(grads))
    return TrainState(params=params, opt_state=opt_state, step=state.step + 1), metrics

  return jax.jit(train_step, donate_argnums=0)


def fit(
    state: TrainState, *, constants: Any, train_step: Callable, batch_at: Callable[[int], Any],
    evaluate: Callable[[Any], dict[str, float]], count_tokens: Callable[[Any], int], learning_rate: Callable,
    config: LoopConfig, checkpoints: native.TrainingCheckpoints, metadata: dict[str, Any],
    log: metric_log.MetricLog, stop: stopping.StopRequest, show_progress: bool, seconds_before: float = 0.0,
) -> tuple[TrainState, bool]:
  """The state after training, and whether it reached `config.num_steps` (if not, `stop` asked; it is saved).

  Args:
    state: where to start; donated.
    batch_at: the batch of a step; a pure function of the step.
    evaluate: validation metrics of parameters.
    count_tokens: tokens of a batch, for the throughput.
    learning_rate: the schedule, reported only.
    metadata: JSON-able, stored in every checkpoint; `seconds` (of training until then) is added.
    seconds_before: training time behind `state`, so that the reported seconds go on where the checkpoint was saved.
  """
  step = int(state.step)
  bar = tqdm.tqdm(total=config.num_steps, initial=step, unit='step', disable=not show_progress, dynamic_ncols=True)
  saved, tokens, since = step, 0, time.perf_counter()
  started = since - seconds_before
  with bar:
    while step < config.num_steps and not stop.requested:
      batch = batch_at(step)
      state, metrics = train_step(state, constants, batch)
      step += 1
      tokens += count_tokens(batch)
      bar.update()
      if step % config.log_every == 0 or step == config.num_steps:
        values = _finite(jax.device_get(metrics), step)
        now = time.perf_counter()
        values |= {
            'learning_rate': float(learning_rate(step - 1)), 'tokens_per_second': tokens / (now - since),
            'seconds': now - started,
        }
        log.write(step, 'train', values)
        bar.set_postfix(loss=f'{values["loss"]:.4f}', tokens_s=f'{values["tokens_per_second"]:.0f}')
        tokens, since = 0, time.perf_counter()
      if step % config.evaluate_every == 0 or step == config.num_steps:
        values = _finite(evaluate(state.params), step)
        log.write(step, 'validation', values)
        bar.write(f'step {step}: ' + ', '.join(f'{name} {value:.4f}' for name, value in sorted(values.items())))
        tokens, since = 0, time.perf_counter()
      if step % config.save_every == 0 or step == config.num_steps:
        _save(checkpoints, step, state, metrics, metadata, started)
        saved = step
  if saved != step:
    _save(checkpoints, step, state, metrics, metadata, started)
  return state, step >= config.num_steps


def _save(checkpoints, step, state, metrics, metadata, started):
  _finite(jax.device_get(metrics), step)  # A diverged state must not push the last good one out.
  checkpoints.save(step, state, dict(metadata, seconds=time.perf_counter() - started))


def _finite(metrics, step):
  for name, value in metrics.items():
    if not np.isfinite(value):
      raise errors.LogitsError(
          what=f'training metric {name}', where=f'step {step}', got=float(value), expected='a finite number',
          fix='lower the learning rate; the newest checkpoint is from before this step',
      )
  return {name: float(value) for name, value in metrics.items()}
