"""`train`: what makes the built-in models; the entry function of `python -m specjax.train`."""

import dataclasses
import pathlib
from typing import Mapping, Sequence, TypeVar

from specjax.checkpoints import native
from specjax.core import checks
from specjax.core import errors
from specjax.pairs import builtin
from specjax.pairs import heads_recipe
from specjax.pairs import packed_examples
from specjax.pairs import target_answers
from specjax.training import batches
from specjax.training import language_model
from specjax.training import loop
from specjax.training import optimizer
from specjax.training import stopping

MAX_EXAMPLES = 1 << 30

_T = TypeVar('_T')


def train(
    *, models: Sequence[str], output_dir: str, export_dir: str | None, seed: int,
    num_examples: int, num_validation: int, domains: Sequence[str] | Mapping[str, Sequence[str]],
    sequence_length: int | Mapping[str, int], encoder_length: int, steps: int | Mapping[str, int], batch_size: int,
    learning_rate: float | Mapping[str, float], warmup_steps: int | Mapping[str, int],
    weight_decay: float, query_learning_rate_scale: float | Mapping[str, float], z_loss: float, input_weight: float,
    log_every: int, evaluate_every: int, save_every: int, tensorboard: bool, progress: bool,
    stop: stopping.StopRequest, answers: str = 'text', hidden_states: str = 'computed', target_weight: float | None = None,
    num_devices: int = 1, operative_config: str | None = None,
) -> bool:
  """Trains models from scratch on the synthetic tasks, one after the other; whether all are complete.

  Called again it goes on from the newest valid checkpoints, bit for bit. Numbers may be given for all models or by name.

  Args:
    models: names of `builtin.MODELS`, or of `heads_recipe.SPECS`: draft heads on the target of a shipped pair.
    output_dir: checkpoints and metrics of each model, below its name; packed data, shared.
    export_dir: where `<pair>/<role>.safetensors` go, with a .json beside each; None exports nothing.
    seed: of initialisation, order of examples and the examples themselves.
    num_examples, num_validation: examples; training repeats them after an epoch.
    domains: of the training questions, in turn; one named twice comes twice as often. Validation takes all in turn.
    sequence_length: tokens per packed row (of the decoder).
    encoder_length: encoder tokens per packed row.
    steps: length of the run and of its learning-rate schedule.
    batch_size: packed rows per step.
    learning_rate: the peak.
    warmup_steps: of linear warm-up.
    weight_decay: decoupled, of matrices.
    query_learning_rate_scale: see `optimizer.OptimizerConfig`.
    z_loss: weight of the squared log-normaliser.
    input_weight: loss weight of the input part (decoder-only).
    log_every, evaluate_every, save_every: steps between training reports, validations, checkpoints.
    tensorboard: write TensorBoard event files (imports TensorFlow).
    progress: show a progress bar.
    stop: asks to save and return.
    answers, hidden_states, target_weight: of draft heads, see `heads_recipe.Options`.
    num_devices: over which the rows of a batch are split.
    operative_config: kept beside each model's checkpoints.

  Raises:
    ConfigError: an unknown model, or `output_dir` holds a run of another configuration or of another process.
    ParamError, LimitError: a number without meaning, before anything is trained.
  """
  if not models:
    raise errors.ConfigError(what='models', got=models, expected='at least one')
  known = (*builtin.MODELS, *heads_recipe.SPECS)
  options = heads_recipe.Options(answers, hidden_states, target_weight)
  for name in models:
    if name not in known:
      raise errors.ConfigError(what='model', got=name, expected=f'one of {", ".join(known)}')
    options.check(name)
  checks.integer('num_examples', num_examples, low=1, high=MAX_EXAMPLES)
  checks.integer('num_validation', num_validation, low=1, high=MAX_EXAMPLES)
  checks.integer('encoder_length', encoder_length, low=1, high=checks.MAX_PROMPT_TOKENS)
  runs = {}  # All are checked before the first one trains.
  for name in models:
    pick = lambda value: _for_model(value, name)
    checks.integer('sequence_length', pick(sequence_length), low=1, high=checks.MAX_PROMPT_TOKENS)
    config = language_model.LanguageModelConfig(
        seed=seed, batch_size=batch_size, z_loss=z_loss, input_weight=input_weight, num_devices=num_devices,
        optimizer=optimizer.OptimizerConfig(
            learning_rate=pick(learning_rate), num_steps=pick(steps), warmup_steps=pick(warmup_steps),
            weight_decay=weight_decay, query_learning_rate_scale=pick(query_learning_rate_scale)),
    )
    data = dict(
        num_examples=num_examples, domains=list(pick(domains)), sequence_length=pick(sequence_length),
        encoder_length=encoder_length)
    loop_config = loop.LoopConfig(
        num_steps=pick(steps), log_every=log_every, evaluate_every=evaluate_every, save_every=save_every)
    runs[name] = dict(config=config, data=data, loop_config=loop_config, options=options)
  for name, run in runs.items():
    try:
      complete = _train_one(
          name, **run, num_validation=num_validation, directory=pathlib.Path(output_dir) / name, export_dir=export_dir,
          stop=stop, tensorboard=tensorboard, progress=progress, operative_config=operative_config)
    except target_answers.Stopped:
      return False
    if not complete:
      return False
  return True


def _train_one(
    name, *, config, data, options, num_validation, directory, loop_config, export_dir, stop, tensorboard, progress,
    operative_config,
):
  """Trains one model and exports it; whether it is complete."""
  heads = heads_recipe.HeadsRun.of(name, options) if name in heads_recipe.SPECS else None
  spec = builtin.MODELS[name if heads is None else f'{heads.spec.pair}_target']
  cache_dir, shared = directory.parent / 'data', dict(stop=stop, show_progress=progress)
  answers = None if heads is None else heads.answers(
      directory=cache_dir / 'answers', seed=config.seed, max_new_tokens=data['sequence_length'], **shared)
  if heads is not None and export_dir is not None:
    heads.check_export(pathlib.Path(export_dir))

  def packed(split, num_examples, **mixture):
    arrays = batches.PackedData(packed_examples.packed_examples(
        split=split, seed=config.seed, num_examples=num_examples, family=spec.kind, length=data['sequence_length'],
        encoder_length=data['encoder_length'], cache_dir=cache_dir, answers=answers, **mixture))
    if heads is None:
      return arrays
    return heads.with_hidden_states(arrays, directory=cache_dir, batch_size=config.batch_size, **shared)

  if heads is None:
    objective = language_model.objective_of(builtin.make_model(spec), z_loss=config.z_loss)
    description = builtin.describe(spec)
  else:
    objective, description = heads.objective(z_loss=config.z_loss), heads.description()
  params, complete = language_model.train(
      objective, train_data=packed('train', data['num_examples'], domains=data['domains']),
      validation_data=packed('validation', num_validation), config=config, loop_config=loop_config,
      output_dir=str(directory), model_description=description, stop=stop, tensorboard=tensorboard,
      show_progress=progress, operative_config=operative_config)
  if complete and export_dir is not None:
    recipe = dict(dataclasses.asdict(config), task='specjax_synthetic', **data)
    if heads is None:
      pair, role = name.split('_')
      exported = [pathlib.Path(export_dir) / pair / f'{role}.safetensors']
      native.save_safetensors(exported[0], params, dict(description, recipe=recipe))
    else:
      exported = heads.export(params, export_dir=pathlib.Path(export_dir), recipe=recipe)
    for path in exported:
      print(f'exported {path}', flush=True)
  return complete


def _for_model(value: _T | Mapping[str, _T], name: str) -> _T:
  """The value for a model where it may be given by name."""
  if not isinstance(value, Mapping):
    return value
  if name not in value:
    raise errors.ConfigError(what='value by model', got=dict(value), expected=f'one for {name}')
  return value[name]
