"""Moves a model between formats: `python -m specjax.convert SOURCE TARGET --format=FORMAT [flags]`.

  python -m specjax.convert gemma-2-2b model --format=native --dtype=bfloat16
  python -m specjax.convert checkpoint_1000000 t5 --format=hf
  python -m specjax.convert gemma2-2b-flax gemma2 --format=hf --config=gemma2_2b

Reads Hugging Face folders, T5X and official Gemma checkpoints and specjax's own; writes hf, native and native_orbax. TARGET
must not exist and appears whole or not at all. What was written is read back and compared bit by bit. Flags are the
parameters of `specjax.checkpoints.conversion.convert`. Exit codes: 0 done; 2 something to mend, in one line.
"""

import logging
import sys

from specjax import config
from specjax.checkpoints import conversion
from specjax.core.errors import ConfigError

ALIASES = {'input_format': 'source_format', 'to': 'format'}

# Parameters of `convert` that this binary gives: they are operands.
PROVIDED = ('source', 'target')


def main(argv):
  """Converts one checkpoint; returns the exit code."""
  logging.getLogger('absl').setLevel(logging.WARNING)
  given = config.parse(argv, conversion.convert, aliases=ALIASES, max_operands=2, provided=PROVIDED)
  if given.help:
    hidden = tuple(f'  --{name}:' for name in PROVIDED)
    lines = config.usage(conversion.convert, aliases=ALIASES).splitlines()
    print(__doc__, *(line for line in lines if not line.startswith(hidden)), sep='\n')
    return 0
  if len(given.operands) != 2 or 'format' not in given.overrides:
    raise ConfigError(
        what='arguments', where='command line', got=' '.join(given.operands) or 'none',
        expected='SOURCE TARGET --format=FORMAT')
  resolved = config.resolve(entry=conversion.convert, provided=PROVIDED, **given.sources())
  source, target = given.operands
  print(conversion.text(resolved.call(source=source, target=target)))
  return 0


if __name__ == '__main__':
  sys.exit(config.run_main(main))
