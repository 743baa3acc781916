"""Mutated configurations: whatever the text, `ConfigError` or a run that means what gin says it means.
"""

import os
import random

import gin
import gin.config
import pytest
import toy_entry

from specjax import config
from specjax.config import statements
from specjax.core import errors

SEED = 20_240_601

HEAD = 'from __gin__ import dynamic_registration\nimport toy_parts\nimport toy_entry\n'
SEEDS = [
    HEAD + """
K = 4
TEMPERATURE = 0.5
toy_entry.evaluate.temperature = %TEMPERATURE
toy_entry.evaluate.seed = 3
toy_entry.evaluate.num_draft_tokens = %K
toy_entry.evaluate.rule = @toy_parts.Rule()
toy_parts.Rule.threshold = 0.5
""",
    HEAD + """
# The rule is chosen here.
toy_entry.evaluate:
  temperature = 1.0  # neutral
  seed = 0
  tasks = ('a', 'b')
  drafter = @small/toy_parts.Drafter()
  options = {'a': 1, 'b': -2}
toy_parts.Drafter.num_draft_tokens = 3
toy_parts.Drafter.model = @toy_parts.model()
toy_parts.model.name = 'large'
small/toy_parts.model.scale = 2.5
""",
    HEAD + "toy_entry.evaluate.temperature = 1.0\ntoy_entry.evaluate.seed = 0\nA = [%B, (%B,), 'x' 'y', None]\nB = True\n"
    'toy_entry.evaluate.drafter = %A\n',
]
PIECES = [
    '@', '%', '(', ')', '()', '[', ']', '{', '}', ':', ',', '.', '/', '=', '\n', '\n  ', ' ', '\\', '"', "'", '"""', '#', '-',
    'K', 'TEMPERATURE', 'toy_parts', 'toy_entry', 'Rule', 'Lossless', 'evaluate', 'model', 'seed', 'small/', '1', '1.5', '1e999',
    'None', 'True', 'import os\n', 'import toy_parts as t\n', "include 'x'\n", 'from a import b\n', '%gin.REQUIRED', 'gin.macro',
    '\x00', '\r', '\u202e', 'é', '0x', '1_0', 'lambda', 'f"{1}"', 'b""', '@toy_parts.Lossless()', '%K', '__init__', '\t',
]


def mutated(rng):
  """A seed text after one to four random edits of characters, pieces or lines."""
  text = rng.choice(SEEDS)
  for _ in range(rng.randint(1, 4)):
    position, kind = rng.randrange(len(text) + 1), rng.randrange(7)
    lines = text.split('\n')
    if kind == 0:
      text = text[:position] + text[position + rng.randint(1, 8):]
    elif kind == 1:
      text = text[:position] + rng.choice(PIECES) + text[position:]
    elif kind == 2:
      text = text[:position] + rng.choice(PIECES) + text[position + rng.randint(1, 6):]
    elif kind == 3:
      lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
      text = '\n'.join(lines)
    elif kind == 4:
      lines.pop(rng.randrange(len(lines)))
      text = '\n'.join(lines) or 'K'
    elif kind == 5:
      lines.insert(rng.randrange(len(lines) + 1), lines.pop(rng.randrange(len(lines))))
      text = '\n'.join(lines)
    else:
      other = rng.choice(SEEDS).split('\n')
      text = '\n'.join([*lines, rng.choice(other)])
  return text


def check_against_gin(text, run):
  """gin calls the entry with the same values, and reads every binding of the file."""
  bindings = [item for item in statements.parse(text, 'x.gin') if isinstance(item, statements.Binding)]
  assert len({(item.scope, item.selector, item.parameter) for item in bindings}) == len(bindings)
  leaves = [leaf for item in bindings for leaf in statements.leaves(item.value)]
  if any(isinstance(leaf, statements.Reference) and not leaf.evaluated for leaf in leaves):
    return  # Nobody calls it: gin would not have read its bindings, and its wrapper compares to nothing.
  gin.clear_config()
  try:
    gin.parse_config(text)
    assert gin.get_configurable(toy_entry.evaluate)() == run.call()
    used = gin.config._OPERATIVE_CONFIG  # pylint: disable=protected-access
    for (scope, selector), parameters in gin.config._CONFIG.items():  # pylint: disable=protected-access
      reached = [values for (inner, name), values in used.items()
                 if name == selector and f'{inner}/'.startswith(f'{scope}/' if scope else '')]
      assert all(any(name in values for values in reached) for name in parameters), (scope, selector)
  finally:
    gin.clear_config()


@pytest.mark.parametrize('num_texts', [3_000, pytest.param(100_000, marks=[pytest.mark.nightly, pytest.mark.timeout(3_600)])])
def test_mutated_texts_raise_only_config_errors_or_mean_what_gin_says(tmp_path, num_texts):
  rng, path, accepted = random.Random(SEED + num_texts), tmp_path / 'fuzz.gin', 0
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT)  # Kept open: opening a file anew for each text costs ten times the check.
  for number in range(num_texts):
    text = mutated(rng)
    os.ftruncate(descriptor, os.pwrite(descriptor, text.encode(), 0))
    try:
      run = config.resolve(entry=toy_entry.evaluate, files=[str(path)], allow_modules=['toy_parts'])
      run.call()
    except errors.ConfigError as error:
      assert error.where, text
      continue
    except Exception as error:  # pylint: disable=broad-except
      pytest.fail(f'text {number} of {num_texts}: {type(error).__name__}: {error}\n{text}')
    accepted += 1
    check_against_gin(text, run)
  os.close(descriptor)
  # Some mutations are harmless (comments, numbers); were none accepted, the comparison would have said nothing.
  assert 0.02 * num_texts < accepted < 0.5 * num_texts


def test_mutated_bindings_and_flags_raise_only_config_errors():
  rng = random.Random(SEED)
  for _ in range(1_000):
    words = []
    for _ in range(rng.randint(1, 4)):
      word = ''.join(rng.choice(PIECES) for _ in range(rng.randint(1, 5)))
      words.append(rng.choice(['--gin.', '--', '--seed=', '--temperature=', '--gin.K=', '--tasks=', '--gin.evaluate.rule=', '']) + word)
    try:
      given = config.parse(words, toy_entry.evaluate, max_operands=9)
      config.resolve(entry=toy_entry.evaluate, **given.sources()).arguments()
    except errors.ConfigError:
      pass
