"""Trains a language model from scratch: `python -m specjax.train --model=gemma_target --output_dir=/tmp/run ...`.

Running the same command again continues from the newest valid checkpoint of `--output_dir`, bit for bit. SIGTERM and
SIGINT finish the step, save, and exit with code 75 (EX_TEMPFAIL: run again to go on). Exit code 0: complete, exported.
"""

import dataclasses
import os
import sys

from absl import app
from absl import flags
from absl import logging

from specjax.core import errors
from specjax.training import stopping

_MODEL = flags.DEFINE_enum(
    'model', None, ['gemma_target', 'gemma_drafter', 't5_target', 't5_drafter'], 'Which model of the built-in pairs.'
)
_TASK = flags.DEFINE_enum('task', 'specjax_synthetic', ['specjax_synthetic'], 'What it is trained on.')
_OUTPUT_DIR = flags.DEFINE_string('output_dir', None, 'Checkpoints, metrics and packed data of this run.')
_EXPORT = flags.DEFINE_string('export', None, 'Where the trained model goes, as .safetensors with a .json beside it.')
_STEPS = flags.DEFINE_integer('steps', None, 'Length of the run and of its learning-rate schedule.', lower_bound=2)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 16, 'Packed rows per step.', lower_bound=1)
_LENGTH = flags.DEFINE_integer('sequence_length', 128, 'Tokens per packed row (of the decoder).', lower_bound=8)
_ENCODER_LENGTH = flags.DEFINE_integer('encoder_length', 128, 'Encoder tokens per packed row.', lower_bound=8)
_NUM_EXAMPLES = flags.DEFINE_integer('num_examples', 400_000, 'Training examples before they repeat.', lower_bound=1)
_NUM_VALIDATION = flags.DEFINE_integer('num_validation', 2_000, 'Validation examples.', lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float('learning_rate', None, 'Peak learning rate.')
_WARMUP = flags.DEFINE_integer('warmup_steps', 200, 'Steps of linear warm-up.')
_WEIGHT_DECAY = flags.DEFINE_float('weight_decay', 0.1, 'Decoupled weight decay of matrices.')
_Z_LOSS = flags.DEFINE_float('z_loss', 1e-4, 'Weight of the squared log-normaliser.')
_INPUT_WEIGHT = flags.DEFINE_float('input_weight', 0.1, 'Loss weight of the input part (decoder-only).')
_SEED = flags.DEFINE_integer('seed', None, 'Initialisation, order of examples and the examples themselves.')
_LOG_EVERY = flags.DEFINE_integer('log_every', 50, 'Steps between training reports.')
_EVALUATE_EVERY = flags.DEFINE_integer('evaluate_every', 500, 'Steps between validations.')
_SAVE_EVERY = flags.DEFINE_integer('save_every', 500, 'Steps between checkpoints.')
_TENSORBOARD = flags.DEFINE_bool('tensorboard', True, 'Write TensorBoard event files (imports TensorFlow).')
_PROGRESS = flags.DEFINE_bool('progress', True, 'Show a progress bar.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected argument {argv[1]!r}: every setting is a flag')
  if not any(argument.startswith(('-v', '--v')) for argument in sys.argv):
    logging.set_verbosity(logging.WARNING)  # Orbax writes two dozen info lines for every checkpoint.
  try:
    with stopping.StopRequest() as stop:
      complete = train(stop)
  except errors.SpecjaxError as error:
    logging.error('%s: %s', type(error).__name__, error)
    sys.exit(2)
  if not complete:
    logging.warning('stopped by a signal; saved. Run the same command again to go on.')
    sys.exit(stopping.EXIT_RESUMABLE)


def train(stop: stopping.StopRequest) -> bool:
  """Runs what the flags say; whether it is complete."""
  from specjax.checkpoints import native  # After the flags are parsed: --help does not wait for jax.
  from specjax.pairs import builtin
  from specjax.pairs import packed_examples
  from specjax.training import batches
  from specjax.training import language_model
  from specjax.training import loop
  from specjax.training import optimizer

  spec = builtin.MODELS[_MODEL.value]
  model = builtin.make_model(spec)

  def data(split, num_examples):
    return batches.PackedData(packed_examples.packed_examples(
        split=split, seed=_SEED.value, num_examples=num_examples, family=spec.kind, length=_LENGTH.value,
        encoder_length=_ENCODER_LENGTH.value, cache_dir=os.path.join(_OUTPUT_DIR.value, 'data'),
    ))

  config = language_model.LanguageModelConfig(
      seed=_SEED.value, batch_size=_BATCH_SIZE.value, z_loss=_Z_LOSS.value, input_weight=_INPUT_WEIGHT.value,
      optimizer=optimizer.OptimizerConfig(
          learning_rate=_LEARNING_RATE.value, num_steps=_STEPS.value, warmup_steps=_WARMUP.value,
          weight_decay=_WEIGHT_DECAY.value,
      ),
  )
  params, complete = language_model.train_language_model(
      model, train_data=data('train', _NUM_EXAMPLES.value), validation_data=data('validation', _NUM_VALIDATION.value),
      config=config, stop=stop, output_dir=_OUTPUT_DIR.value, model_description=builtin.describe(spec),
      loop_config=loop.LoopConfig(
          num_steps=_STEPS.value, log_every=_LOG_EVERY.value, evaluate_every=_EVALUATE_EVERY.value,
          save_every=_SAVE_EVERY.value,
      ),
      tensorboard=_TENSORBOARD.value, show_progress=_PROGRESS.value,
  )
  if complete and _EXPORT.value:
    recipe = dict(dataclasses.asdict(config), task=_TASK.value, num_examples=_NUM_EXAMPLES.value,
                  sequence_length=_LENGTH.value, encoder_length=_ENCODER_LENGTH.value)
    native.save_safetensors(_EXPORT.value, params, dict(builtin.describe(spec), recipe=recipe))
    print(f'exported {_EXPORT.value}', flush=True)
  return complete


def run() -> None:
  """The console entry point."""
  flags.mark_flags_as_required(['model', 'output_dir', 'steps', 'learning_rate', 'seed'])
  app.run(main)


if __name__ == '__main__':
  run()
