"""How good a pair is: exact match of target and drafter alone, and what the target accepts of the drafter's tokens.

    python scripts/measure_pair.py --data_dir=RUN/export --pair=gemma --num_examples=2000
    python scripts/measure_pair.py --pair=gemma --checkpoint_dir=RUN/gemma_target  # while training runs

Greedy exact match on held-out examples, with 95 % Wilson intervals; acceptance rate (accepted / evaluated) of lossless
speculative decoding at temperature 1 with K = 4. By domain and level, as a table and, with --output, as JSON.
"""

import collections
import dataclasses
import json
import pathlib
import time

from absl import app
from absl import flags
from absl import logging
import jax
import numpy as np

import specjax
from specjax.checkpoints import native
from specjax.metrics import statistics
from specjax.pairs import builtin
from specjax.tasks import synthetic
from specjax.training import loop
from specjax.training import optimizer as optimizers

_PAIR = flags.DEFINE_enum('pair', None, list(builtin.PAIRS), 'Which pair.', required=True)
_DATA_DIR = flags.DEFINE_string(
    'data_dir', None, 'Holds <pair>/target.safetensors; without it and without checkpoints the package.')
_CHECKPOINT_DIRS = flags.DEFINE_multi_string(
    'checkpoint_dir', [], 'Output directory of a training run whose newest checkpoint stands in for the exported model.')
_NUM_EXAMPLES = flags.DEFINE_integer('num_examples', 2000, 'Held-out examples, all domains together.', lower_bound=1)
_SPLIT = flags.DEFINE_enum('split', 'test', ['test', 'validation'], 'Which examples.')
_NUM_DRAFT_TOKENS = flags.DEFINE_integer('num_draft_tokens', 4, 'K of the acceptance rate.', lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Rows decoded together.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the examples and of sampling.', lower_bound=0)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file.')

ROLES = ('target', 'drafter')
MAX_NEW_TOKENS = 64  # The longest answer has 46 tokens, EOS included.


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model, its parameters, and where they come from."""

  model: object
  params: object
  source: str


def load_checkpoint(directory):
  """(role, `Loaded`) of the newest intact checkpoint of a training run."""
  checkpoints = native.TrainingCheckpoints(pathlib.Path(directory) / 'checkpoints')
  step = checkpoints.newest()
  if step is None:
    raise app.UsageError(f'{directory}: no checkpoint')
  description = checkpoints.metadata(step)['model']
  spec = builtin.spec_from_description(description, where=str(directory))
  role = next((role for role in ROLES if builtin.MODELS[f'{_PAIR.value}_{role}'] == spec), None)
  if role is None:
    raise app.UsageError(f'{directory}: not a model of the pair {_PAIR.value}')
  model = builtin.make_model(spec)
  any_optimizer = optimizers.make_optimizer(optimizers.OptimizerConfig(learning_rate=1, num_steps=2, warmup_steps=0))
  template = jax.eval_shape(lambda: loop.init_state(model.init(jax.random.key(0)), any_optimizer))
  state, _ = checkpoints.restore(step, template)
  return role, Loaded(model, state.params, f'{directory} at step {step}')


def load_models():
  """Role -> `Loaded` of what there is: checkpoints first, then exported files."""
  found = dict(load_checkpoint(directory) for directory in _CHECKPOINT_DIRS.value)
  if _DATA_DIR.value is not None or not found:
    data_dir = pathlib.Path(_DATA_DIR.value or pathlib.Path(builtin.__file__).parent / 'data') / _PAIR.value
    for role in set(ROLES) - set(found):
      path = data_dir / f'{role}.safetensors'
      if path.exists() or not found:
        found[role] = Loaded(*builtin.load_model(path), str(path))
  return {role: found[role] for role in ROLES if role in found}


def pair_of(target, drafter):
  """The `Pair` in which `drafter` drafts for `target`."""
  return builtin.make_pair(
      _PAIR.value, target=(target.model, target.params), drafter=(drafter.model, drafter.params))


def generate(pair, examples, method, temperature):
  """The `DecodeResult` of the examples' answers, and the seconds it took, compiling included."""
  start = time.perf_counter()
  result = specjax.generate(
      pair, [example.inputs for example in examples], method=method,
      sampling=specjax.SamplingParams(temperature=temperature), max_new_tokens=MAX_NEW_TOKENS, seed=_SEED.value,
      batch_size=min(_BATCH_SIZE.value, len(examples)), example_ids=[example.id for example in examples])
  return result, time.perf_counter() - start


def measure(models, examples):
  """Per-example columns: `target` and `drafter` (scores), `accepted`, `evaluated`, `emitted`, `target_calls`."""
  columns, seconds = {}, {}
  for role, loaded in models.items():
    result, seconds[role] = generate(pair_of(loaded, loaded), examples, specjax.autoregressive(), 0.0)
    columns[role] = np.array([synthetic.score(example, text) for example, text in zip(examples, result.text)])
  if len(models) == len(ROLES):
    method = specjax.speculative(num_draft_tokens=_NUM_DRAFT_TOKENS.value, with_log_probs=False)
    result, seconds['speculative'] = generate(pair_of(models['target'], models['drafter']), examples, method, 1.0)
    for name in ('accepted', 'evaluated', 'emitted', 'target_calls'):
      columns[name] = np.asarray(getattr(result.stats, name))
  return columns, seconds


def groups_of(examples):
  """Name -> indices of the examples: all, every domain, every level of every domain."""
  groups = collections.defaultdict(list)
  for index, example in enumerate(examples):
    for name in ('all', example.domain, f'{example.domain} {example.level}'):
      groups[name].append(index)
  order = ['all', *synthetic.DOMAINS, *(f'{domain} {level}' for domain in synthetic.DOMAINS for level in synthetic.LEVELS)]
  return {name: groups[name] for name in order if name in groups}


def summarise(columns, index):
  """The numbers of one group of examples, JSON-able."""
  row = {'examples': len(index)}
  for role in ROLES:
    if role in columns:
      interval = statistics.wilson_interval(int(columns[role][index].sum()), len(index))
      row[f'{role}_exact_match'] = [float(bound) for bound in interval]
  if 'accepted' in columns:
    total = {name: int(columns[name][index].sum()) for name in ('accepted', 'evaluated', 'emitted', 'target_calls')}
    row |= total | {
        'acceptance_rate': total['accepted'] / max(total['evaluated'], 1),
        'block_efficiency': total['emitted'] / max(total['target_calls'], 1),
    }
  return row


def print_table(rows):
  """The rows for people: per cent, with the interval beside."""
  percent = lambda interval: '{:5.1f} [{:4.1f}, {:5.1f}]'.format(*(100 * bound for bound in interval))
  print(f'{"":16}{"n":>6}  {"target %":>20}  {"drafter %":>20}  {"acceptance":>10}  {"tokens/pass":>11}')
  for name, row in rows.items():
    cells = [f'{percent(row[f"{role}_exact_match"]) if f"{role}_exact_match" in row else "-":>20}' for role in ROLES]
    rates = [f'{row[field]:.3f}' if field in row else '-' for field in ('acceptance_rate', 'block_efficiency')]
    print(f'{name:16}{row["examples"]:>6}  {"  ".join(cells)}  {rates[0]:>10}  {rates[1]:>11}')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected argument {argv[1]!r}')
  logging.set_verbosity(logging.WARNING)  # Orbax tells a dozen lines about every checkpoint it reads.
  models = load_models()
  examples = synthetic.examples(_SPLIT.value, _NUM_EXAMPLES.value, seed=_SEED.value)
  columns, seconds = measure(models, examples)
  rows = {name: summarise(columns, index) for name, index in groups_of(examples).items()}
  for role, loaded in models.items():
    print(f'{role}: {loaded.source}')
  print_table(rows)
  print('seconds: ' + ', '.join(f'{name} {value:.1f}' for name, value in seconds.items()))
  if _OUTPUT.value:
    record = {
        'pair': _PAIR.value, 'split': _SPLIT.value, 'seed': _SEED.value, 'num_draft_tokens': _NUM_DRAFT_TOKENS.value,
        'sources': {role: loaded.source for role, loaded in models.items()}, 'seconds': seconds, 'groups': rows,
    }
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
