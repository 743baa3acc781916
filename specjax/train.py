"""Trains the built-in models from scratch: `python -m specjax.train --gin_file=runs/train_gemma_pair.gin --output_dir=DIR`.

Flags are the parameters of `specjax.pairs.recipe.train` (--help lists them), --gin_file=FILE and --gin.NAME=value; what is
not given comes from gin/train.gin. Running the same command again continues from the newest valid checkpoints, bit for bit.
SIGTERM and SIGINT finish the step, save, and exit with code 75 (EX_TEMPFAIL: run again to go on). Exit code 0: complete.
"""

import logging
import sys

from specjax import config
from specjax.core import compilation_cache
from specjax.pairs import recipe
from specjax.training import stopping

ALIASES = {'model': 'models'}
DEFAULTS = 'train.gin'

# Parameters of `recipe.train` that this binary gives, not the configuration.
PROVIDED = ('stop', 'operative_config')


def main(argv):
  """Trains what the flags say; returns the exit code."""
  logging.getLogger('absl').setLevel(logging.WARNING)  # Orbax writes two dozen info lines for every checkpoint.
  given = config.parse(argv, recipe.train, aliases=ALIASES)
  if given.help:
    hidden = tuple(f'  --{name}:' for name in PROVIDED)
    lines = config.usage(recipe.train, aliases=ALIASES).splitlines()
    print(__doc__, *(line for line in lines if not line.startswith(hidden)), sep='\n')
    return 0
  sources = given.sources()
  if not sources['files']:
    sources['files'] = (DEFAULTS,)
  resolved = config.resolve(entry=recipe.train, provided=PROVIDED, **sources)
  compilation_cache.keep()
  with stopping.StopRequest() as stop:
    complete = resolved.call(stop=stop, operative_config=resolved.operative())
  if not complete:
    print('stopped by a signal; saved. Run the same command again to go on.', file=sys.stderr)
    return stopping.EXIT_RESUMABLE
  return 0


if __name__ == '__main__':
  sys.exit(config.run_main(main))
