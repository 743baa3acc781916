"""Opens every folder that it is given and prints, as JSON lines, how that ended and how much memory it took.

A process of its own, so that the peak of its memory is that of what it opens.
"""

import json
import pathlib
import resource
import sys

import jax

from specjax.checkpoints import leaves
from specjax.checkpoints import t5x
from specjax.core import errors
from specjax.models import t5


def peak():
  """Largest resident size so far, MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def load(path):
  config, found, extra = t5x.open_checkpoint(path)
  template = jax.eval_shape(t5.T5LM(config).init, jax.random.key(0))
  return leaves.load(found, template, where=str(path), extra=extra)


def main():
  folders = [pathlib.Path(line) for line in sys.stdin.read().splitlines()]
  load(folders[0])  # a good one: imports and compiles
  for folder in folders[1:]:
    before = peak()
    try:
      t5x.is_t5x(folder)
      load(folder)
      ended = 'loaded'
    except errors.CheckpointError as error:
      ended = f'CheckpointError: {error}'
    except BaseException as error:  # Whatever it is, the test names it.
      ended = f'{type(error).__name__}: {error}'
    print(json.dumps([folder.parent.name, ended[:500], peak() - before]), flush=True)


if __name__ == '__main__':
  main()
