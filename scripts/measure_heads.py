"""How good a built-in pair's draft heads are: accuracy per head, and how many tokens each pass of the target gives.

    python scripts/measure_heads.py --pair=gemma --num_examples=200
    python scripts/measure_heads.py --pair=gemma --data_dir=RUN/export  # heads that are not shipped yet

Accuracy is top-1 on the reference answers of held-out questions, teacher-forced. Block efficiency is tokens emitted per pass
of the target, at temperature 0 and 1, with every head that is there and with the pair's drafter model beside; at temperature
0 all answers are compared with the target's own.
"""

import dataclasses
import json
import pathlib
import tempfile

from absl import app
from absl import flags
import jax
import numpy as np

import specjax
from specjax.checkpoints import heads_file
from specjax.decode import methods
from specjax.pairs import builtin
from specjax.pairs import heads_recipe
from specjax.pairs import packed_examples
from specjax.tasks import synthetic
from specjax.training import batches
from specjax.training import language_model

_PAIR = flags.DEFINE_enum('pair', None, list(builtin.PAIRS), 'Which pair.', required=True)
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Holds <pair>/heads.safetensors; without it the package.')
_NUM_EXAMPLES = flags.DEFINE_integer('num_examples', 200, 'Held-out questions, all domains together.', lower_bound=1)
_NUM_DRAFT_TOKENS = flags.DEFINE_list('num_draft_tokens', ['2', '4', '7'], 'K of the chains.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 50, 'Rows decoded together.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the questions and of sampling.', lower_bound=0)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file.')

ROLES = ('heads', 'autoregressive_head')
MAX_NEW_TOKENS = 64


def load_heads():
  """Role -> (heads, parameters) of what there is."""
  found = {}
  with builtin.target_file(_PAIR.value) as target:
    folder = target.parent if _DATA_DIR.value is None else pathlib.Path(_DATA_DIR.value) / _PAIR.value
    for role in ROLES:
      if (folder / f'{role}.safetensors').exists():
        found[role] = heads_file.load(folder / f'{role}.safetensors', target=target)
  if not found:
    raise app.UsageError(f'{folder}: no {" and no ".join(ROLES)}')
  return found


def accuracies(role, params):
  """The validation metrics of training: `accuracy_1`, ... of heads, `agreement` of an autoregressive head."""
  run = heads_recipe.HeadsRun.of(f'{_PAIR.value}_{role}', heads_recipe.Options())
  family = builtin.MODELS[f'{_PAIR.value}_target'].kind
  with tempfile.TemporaryDirectory() as directory:
    data = batches.PackedData(packed_examples.packed_examples(
        split='validation', seed=_SEED.value + 1, num_examples=1000, family=family, length=128, encoder_length=128,
        cache_dir=directory))
  return language_model.make_evaluate(run.objective(z_loss=0.0), data, batch_size=16)(params)


def block_efficiency(pair, examples, method, temperature):
  """Tokens per pass of the target, and the generated tokens."""
  result = specjax.generate(
      pair, [example.inputs for example in examples], method=method, max_new_tokens=MAX_NEW_TOKENS, seed=_SEED.value,
      sampling=specjax.SamplingParams(temperature=temperature), batch_size=min(_BATCH_SIZE.value, len(examples)),
      example_ids=[example.id for example in examples])
  stats = result.stats
  accepted = np.sum(np.asarray(stats.accepted_by_position), axis=0) / max(np.sum(stats.steps), 1)
  emitted = int(np.sum(stats.emitted)) / int(np.sum(stats.target_calls))
  return emitted, [round(float(x), 3) for x in accepted], [row.tolist() for row in result.tokens]


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected argument {argv[1]!r}')
  loaded = load_heads()
  pair = specjax.load_pair(_PAIR.value)
  params = {**pair.params, **{role: params for role, (_, params) in loaded.items()}}
  pair = dataclasses.replace(pair, params=params)
  record = {'pair': _PAIR.value, 'num_examples': _NUM_EXAMPLES.value, 'seed': _SEED.value, 'validation': {}, 'decoding': []}
  for role, (_, params) in loaded.items():
    record['validation'][role] = accuracies(role, jax.tree.map(np.asarray, params))
    print(role, {name: round(value, 4) for name, value in sorted(record['validation'][role].items())}, flush=True)
  examples = synthetic.examples('test', _NUM_EXAMPLES.value, seed=_SEED.value)
  _, _, plain = block_efficiency(pair, examples, specjax.autoregressive(), 0.0)
  print(f'{"":24}{"K":>3}{"T":>5}{"tokens/pass":>13}   share of rounds in which draft token 1, 2, ... was kept')
  for count in map(int, _NUM_DRAFT_TOKENS.value):
    named = {'drafter model': specjax.speculative(num_draft_tokens=count)}
    if 'heads' in loaded and count <= loaded['heads'][0].num_heads:
      named['heads'] = specjax.draft_heads(heads=loaded['heads'][0], num_draft_tokens=count)
    if 'autoregressive_head' in loaded:
      named['autoregressive_head'] = methods.autoregressive_head(
          head=loaded['autoregressive_head'][0], num_draft_tokens=count)
    for name, method in named.items():
      for temperature in (0.0, 1.0):
        emitted, accepted, tokens = block_efficiency(pair, examples, method, temperature)
        same = 'tokens equal the target\'s' if temperature or tokens == plain else 'TOKENS DIFFER FROM THE TARGET\'S'
        record['decoding'].append(dict(
            method=name, num_draft_tokens=count, temperature=temperature, block_efficiency=emitted, accepted=accepted,
            same_tokens=tokens == plain if not temperature else None))
        print(f'{name:24}{count:>3}{temperature:>5.1f}{emitted:>13.3f}   {accepted} {"" if temperature else same}', flush=True)
  if _OUTPUT.value:
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
