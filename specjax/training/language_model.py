"""Training on packed examples: a language model from scratch, or whatever an `Objective` says."""

import collections
import dataclasses
import pathlib
from typing import Any, Callable

from absl import logging
import jax
import numpy as np

from specjax.checkpoints import durable
from specjax.checkpoints import native
from specjax.core import checks
from specjax.core import errors
from specjax.core import protocols
from specjax.training import batches
from specjax.training import loop
from specjax.training import losses
from specjax.training import metric_log
from specjax.training import optimizer as optimizers
from specjax.training import placement as placement_lib
from specjax.training import stopping


MAX_BATCH_SIZE = 1 << 20


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
  """Everything a run's result depends on, besides the model and the data.

  Attributes:
    seed: of the initialisation and of the order of the examples.
    batch_size: packed rows per step.
    z_loss: see `losses.next_token_loss`.
    input_weight: loss weight of input tokens of a decoder-only model.
    optimizer: the optimizer.
    num_devices: over which the rows of a batch are split, a divisor of `batch_size`.
  """

  seed: int
  batch_size: int
  optimizer: optimizers.OptimizerConfig
  z_loss: float = 0.0
  input_weight: float = 0.0
  num_devices: int = 1

  def __post_init__(self):
    checks.seed(self.seed)
    checks.integer('batch_size', self.batch_size, low=1, high=MAX_BATCH_SIZE)
    checks.real('z_loss', self.z_loss, low=0)
    checks.real('input_weight', self.input_weight, low=0)
    checks.integer('num_devices', self.num_devices, low=1, high=MAX_BATCH_SIZE)
    if self.batch_size % self.num_devices:
      raise errors.ParamError(
          what='num_devices', got=self.num_devices, expected=f'a divisor of batch_size {self.batch_size}')


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is trained, for `train`.

  Attributes:
    init: (key) -> fresh parameters.
    loss: the loss function of the training steps.
    validation: one whose metrics `loss`, `accuracy` and others are means over `num_scored` tokens.
    constants: arrays that are read and not trained, such as a frozen target; None without.
  """

  init: Callable[[jax.Array], Any]
  loss: loop.LossFunction
  validation: loop.LossFunction
  constants: Any = None


def make_loss(model: protocols.LanguageModel, *, z_loss: float) -> loop.LossFunction:
  """Next-token loss of `model` as a loss function of the loop; it needs no constants."""

  def loss_function(params, unused_constants, batch):
    return losses.next_token_loss(model.forward(params, batch).logits, batch.targets, batch.weights, z_loss=z_loss)

  return loss_function


def objective_of(model: protocols.LanguageModel, *, z_loss: float) -> Objective:
  """The `Objective` of a language model that is trained as a whole."""
  return Objective(init=model.init, loss=make_loss(model, z_loss=z_loss), validation=make_loss(model, z_loss=0.0))


def make_evaluate(objective: Objective, data: batches.PackedData, *, batch_size: int) -> Callable:
  """`evaluate(params)`: the validation metrics, means per scored token over all whole batches of `data`."""
  if not len(data):
    raise errors.DataError(what='validation set', got='no rows', expected='at least one')
  loss_function = jax.jit(objective.validation)
  num_batches = max(len(data) // batch_size, 1)

  def evaluate(params):
    sums, total = collections.Counter(), 0.0
    for number in range(num_batches):
      index = np.arange(number * batch_size, min((number + 1) * batch_size, len(data)))
      _, metrics = loss_function(params, objective.constants, data.rows(index))
      scored = float(metrics['num_scored'])
      total += scored
      sums.update({name: float(value) * scored for name, value in metrics.items() if name != 'num_scored'})
    return {name: value / max(total, 1) for name, value in sums.items()}

  return evaluate


def train_language_model(
    model: protocols.LanguageModel, *, train_data: batches.PackedData, validation_data: batches.PackedData,
    config: LanguageModelConfig, loop_config: loop.LoopConfig, output_dir: str, model_description: dict[str, Any],
    stop: stopping.StopRequest, tensorboard: bool = True, show_progress: bool = True, keep_checkpoints: int = 2,
    operative_config: str | None = None,
) -> tuple[Any, bool]:
  """The trained parameters, and whether training is complete; continues from `output_dir` if there is a checkpoint.

  Returns early with False once `stop` is requested, with everything saved. `operative_config` is kept beside the
  checkpoints as operative.gin, once `output_dir` is known to hold this run or none.

  Raises:
    ConfigError: when `output_dir` holds a run of another model, data or configuration (names the first difference), or
      another process trains in it.
  """
  return train(
      objective_of(model, z_loss=config.z_loss), train_data=train_data, validation_data=validation_data, config=config,
      loop_config=loop_config, output_dir=output_dir, model_description=model_description, stop=stop, tensorboard=tensorboard,
      show_progress=show_progress, keep_checkpoints=keep_checkpoints, operative_config=operative_config)


def train(
    objective: Objective, *, train_data: batches.PackedData, validation_data: batches.PackedData,
    config: LanguageModelConfig, loop_config: loop.LoopConfig, output_dir: str, model_description: dict[str, Any],
    stop: stopping.StopRequest, tensorboard: bool = True, show_progress: bool = True, keep_checkpoints: int = 2,
    operative_config: str | None = None,
) -> tuple[Any, bool]:
  """As `train_language_model`, for any objective; `model_description` says what it depends on, constants included."""
  with durable.locked(output_dir):
    return _train(
        objective, train_data=train_data, validation_data=validation_data, config=config, loop_config=loop_config,
        output_dir=pathlib.Path(output_dir), model_description=model_description, stop=stop, tensorboard=tensorboard,
        show_progress=show_progress, keep_checkpoints=keep_checkpoints, operative_config=operative_config)


def _train(
    objective, *, train_data, validation_data, config, loop_config, output_dir, model_description, stop, tensorboard,
    show_progress, keep_checkpoints, operative_config,
):
  """As `train`, with `output_dir` locked."""
  placement = placement_lib.Placement(config.num_devices)
  evaluate = make_evaluate(objective, validation_data, batch_size=config.batch_size)
  optimizer = optimizers.make_optimizer(config.optimizer)
  identity = {
      'model': model_description, 'config': dataclasses.asdict(config), 'train_data': train_data.fingerprint(),
      'num_steps': loop_config.num_steps,
  }
  checkpoints = native.TrainingCheckpoints(output_dir / 'checkpoints', keep=keep_checkpoints)
  newest = checkpoints.newest()
  if newest is not None:  # Before the arrays: another model has other ones.
    _check_same_run(identity, _with_defaults(checkpoints.metadata(newest)), str(output_dir))
  if operative_config is not None:
    durable.replace(output_dir / 'operative.gin', operative_config.encode())
  fresh_state = lambda: loop.init_state(objective.init(jax.random.key(config.seed)), optimizer)
  restored = checkpoints.restore_newest(jax.eval_shape(fresh_state))
  if restored is None:
    state, seconds = jax.jit(fresh_state)(), 0.0
  else:
    seconds = restored[2].get('seconds', 0.0)
    state = jax.tree.map(jax.numpy.array, restored[1])
    logging.warning('resuming %s at step %d', output_dir, restored[0])

  def batch_at(step):
    index = batches.batch_indices(
        step, num_examples=len(train_data), batch_size=config.batch_size, seed=config.seed
    )
    return placement.split(train_data.rows(index, input_weight=config.input_weight))

  with metric_log.MetricLog(output_dir, resume_step=int(state.step), tensorboard=tensorboard) as log:
    state, complete = loop.fit(
        placement.replicated(state), constants=placement.replicated(objective.constants),
        train_step=loop.make_train_step(objective.loss, optimizer),
        batch_at=batch_at, evaluate=evaluate, count_tokens=batches.count_tokens,
        learning_rate=optimizers.schedule(config.optimizer), config=loop_config, checkpoints=checkpoints,
        metadata=identity, log=log, stop=stop, show_progress=show_progress, seconds_before=seconds,
    )
  return state.params, complete


def _with_defaults(stored):
  """The metadata of a checkpoint, where a setting that did not exist yet when it was saved has its default."""
  defaults = lambda kind: {
      field.name: field.default for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
  config = defaults(LanguageModelConfig) | stored.get('config', {})
  config['optimizer'] = defaults(optimizers.OptimizerConfig) | config.get('optimizer', {})
  return {name: value for name, value in stored.items() if name != 'seconds'} | {'config': config}


def _check_same_run(wanted, stored, where, path=''):
  for name in sorted(wanted.keys() | stored.keys()):
    ours, theirs = wanted.get(name), stored.get(name)
    if isinstance(ours, dict) and isinstance(theirs, dict):
      _check_same_run(ours, theirs, where, f'{path}{name}.')
    elif ours != theirs:
      raise errors.ConfigError(
          what=f'{path}{name} of the run to resume', where=where, got=theirs, expected=ours,
          fix='choose another --output_dir or restore the old setting',
      )
