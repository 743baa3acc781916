"""Saves a checkpoint again and again, killed with SIGKILL each time; prints what was left as JSON. See test_native.

Every trial is a fork of this process, which has imported everything and started nothing: a fork costs less than the two
seconds of importing Orbax.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time
import traceback

import numpy as np
import orbax.checkpoint  # Before the forks.

from specjax.checkpoints import native

_SYSTEM_CALLS = ('fsync', 'rename')


def tree_of(step):
  return {'params': {'kernel': np.full((64, 32), step, np.float32), 'scale': np.arange(8, dtype=np.float32) + step},
          'step': np.int32(step)}


def forked(function):
  """The id of a new process that runs `function` and exits with 0, or with 1 and a traceback."""
  child = os.fork()
  if not child:
    try:
      function()
    finally:  # Whatever happens, the copy of the test process ends here.
      failure = sys.exc_info()
      if failure[0]:
        traceback.print_exception(*failure)
      os._exit(bool(failure[0]))
  return child


def ended(child):
  """How a process ended: its exit code, or minus the signal."""
  return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def save_and_die(directory, step, nth_call):
  """Saves `step`; the process dies at its nth system call that makes something durable (0: never)."""
  calls = 0

  def dying(real):
    def call(*args, **kwargs):
      nonlocal calls
      calls += 1
      if calls == nth_call:
        os.kill(os.getpid(), signal.SIGKILL)
      return real(*args, **kwargs)
    return call

  for name in _SYSTEM_CALLS:
    setattr(os, name, dying(getattr(os, name)))
  native.TrainingCheckpoints(directory).save(step, tree_of(step), {'step': step})


def check(directory, newest):
  """Dies unless the newest valid checkpoint is `newest` or the one after it, exact to the bit."""
  step, tree, metadata = native.TrainingCheckpoints(directory).restore_newest(tree_of(0))
  assert step in (newest, newest + 1) and metadata == {'step': step}, (step, newest)
  for name, leaf in native.flatten(tree_of(step)).items():
    np.testing.assert_array_equal(native.flatten(tree)[name], leaf, strict=True)


def main(directory, num_calls, num_times, seed):
  directory, draws = pathlib.Path(directory), random.Random(seed)
  began = time.monotonic()
  assert ended(forked(lambda: save_and_die(directory, 1, 0))) == 0
  duration, step, killed, wrong = time.monotonic() - began, 1, 0, []
  moments = [('call', n) for n in range(1, num_calls + 1)] + [('time', draws.uniform(0, duration)) for _ in range(num_times)]
  for kind, moment in moments:
    child = forked(lambda: save_and_die(directory, step + 1, moment if kind == 'call' else 0))
    if kind == 'time':
      time.sleep(moment)
      os.kill(child, signal.SIGKILL)
    killed += ended(child) == -signal.SIGKILL
    if ended(forked(lambda: check(directory, step))) != 0:
      wrong.append([kind, moment, sorted(os.listdir(directory))])
    step = native.TrainingCheckpoints(directory).newest()
  print(json.dumps({'killed': killed, 'wrong': wrong, 'step': step}))


if __name__ == '__main__':
  main(sys.argv[1], *map(int, sys.argv[2:]))
