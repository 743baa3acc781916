"""Trains draft heads twice, once in peace and once killed with SIGKILL again and again; prints a comparison as JSON.

Every life is a fork of this process, which has imported everything and started nothing (see save_under_kill). With 'forgetful'
a resumed run starts with fresh optimizer moments: the planted bug that the comparison must see.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

import jax
from jax._src import xla_bridge  # Nothing public says whether a backend was started.
import numpy as np
import orbax.checkpoint  # Before the forks.

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'checkpoints'))
import save_under_kill

from specjax import train
from specjax.checkpoints import native
from specjax.models import heads as heads_lib
from specjax.pairs import builtin
from specjax.training import loop
from specjax.training import metric_log
from specjax.training import optimizer as optimizers

NAME, STEPS, SAVE_EVERY, MOST_STEPS = 'gemma_heads', 240, 4, 12
FLAGS = dict(
    models=NAME, steps=STEPS, batch_size=2, sequence_length=80, num_examples=200, num_validation=20, seed=1,
    learning_rate=1e-3, warmup_steps=2, log_every=1, evaluate_every=1000, save_every=SAVE_EVERY, tensorboard='false',
    progress='false')


def life(directory, forgetful):
  """The id of a new process that trains in `directory` to the end."""

  def run():
    if forgetful:
      restore = native.TrainingCheckpoints.restore_newest

      def forgetting(self, template):
        found = restore(self, template)
        if found is None:
          return None
        zeros = jax.tree.map(lambda leaf: np.zeros_like(leaf) if leaf.ndim else leaf, found[1].opt_state)
        return found[0], found[1].replace(opt_state=zeros), found[2]

      native.TrainingCheckpoints.restore_newest = forgetting
    assert train.main([f'--output_dir={directory}', *(f'--{name}={value}' for name, value in FLAGS.items())]) == 0

  return save_under_kill.forked(run)


def wait_and_kill(child, run_dir, draws, startup):
  """Kills a life after some of its steps, or somewhere in the `startup` seconds before them; whether it was still alive."""
  metrics = run_dir / 'metrics.jsonl'
  inode = metrics.stat().st_ino if metrics.exists() else None
  steps = draws.randint(0, MOST_STEPS)
  resumed_at = max(native.TrainingCheckpoints(run_dir / 'checkpoints').steps(), default=0)
  if steps == 0:
    time.sleep(draws.uniform(0, startup))
  else:
    # A resumed run replaces the file first: until then its rows are of the life before.
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
      rows = metric_log.read_metrics(metrics) if metrics.exists() and metrics.stat().st_ino != inode else []
      if rows and rows[-1]['step'] >= resumed_at + steps:
        break
      time.sleep(0.005)
    time.sleep(draws.uniform(0, 0.2))  # A step or a save further on.
  os.kill(child, signal.SIGKILL)
  return save_under_kill.ended(child) == -signal.SIGKILL


def final_leaves(run_dir):
  """Every leaf of the last state (parameters, optimizer, step) as bytes, by name."""
  heads = heads_lib.DraftHeads(builtin.HEADS[NAME].config)
  optimizer = optimizers.make_optimizer(optimizers.OptimizerConfig(learning_rate=1e-3, num_steps=STEPS, warmup_steps=2))
  template = jax.eval_shape(lambda: loop.init_state(heads.init(jax.random.key(0)), optimizer))
  step, state, _ = native.TrainingCheckpoints(run_dir / 'checkpoints').restore_newest(template)
  assert step == STEPS, step
  return {name: (str(leaf.dtype), leaf.shape, leaf.tobytes()) for name, leaf in native.flatten(state).items()}


def rows_without_times(run_dir):
  volatile = ('seconds', 'tokens_per_second')
  rows = metric_log.read_metrics(run_dir / 'metrics.jsonl')
  return [{name: value for name, value in row.items() if name not in volatile} for row in rows]


def main(directory, num_kills, seed, forgetful):
  directory, draws = pathlib.Path(directory), random.Random(seed)
  assert not xla_bridge.backends_are_initialized()  # Its threads would not live on in a fork.
  peace, killed = directory / 'peace', directory / 'killed'
  began = time.monotonic()
  child, startup = life(peace, False), None
  while startup is None:
    startup = time.monotonic() - began if (peace / NAME / 'metrics.jsonl').exists() else None
    time.sleep(0.01)
  assert save_under_kill.ended(child) == 0
  kills = [wait_and_kill(life(killed, forgetful), killed / NAME, draws, startup) for _ in range(num_kills)]
  reached = max(native.TrainingCheckpoints(killed / NAME / 'checkpoints').steps(), default=0)
  assert save_under_kill.ended(life(killed, forgetful)) == 0
  first, second = (final_leaves(path / NAME) for path in (peace, killed))
  print(json.dumps({
      'killed': sum(kills), 'reached': reached, 'leaves': len(first),
      'different': sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name)),
      'same_metrics': rows_without_times(peace / NAME) == rows_without_times(killed / NAME)}))


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == 'forgetful')
