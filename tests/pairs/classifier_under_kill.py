"""Collects points and trains a classifier twice, in peace and killed with SIGKILL again and again; prints a comparison as JSON.

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
from jax._src import xla_bridge
import numpy as np
import orbax.checkpoint  # Before the forks.
import array_record.python.array_record_module
import tiny_pairs

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'checkpoints'))
import save_under_kill

from specjax import train
from specjax.checkpoints import native
from specjax.evaluation import reliability_plots

FLAGS = dict(
    pairs='t5', num_questions=120, seed=2, max_new_tokens=8, point_batch_size=8, steps=3000, batch_size=32, warmup_steps=2,
    positive_rate=0.3, log_every=50, evaluate_every=1000, save_every=50, tensorboard='false', progress='false',
    answers='reference,backoff', **{'gin.classifier_recipe.train.classifiers': "{'kl_classifier': [4]}"})


def life(models, directory, forgetful):
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
    flags = [f'--{name}={value}' for name, value in FLAGS.items()]
    assert train.main([
        'classifier', f'--output_dir={directory}', f'--models_dir={models}', f'--export_dir={directory}', *flags]) == 0

  return save_under_kill.forked(run)


def exported(directory):
  """The classifier's file, and the report, as bytes."""
  return {name: (directory / 't5' / name).read_bytes() for name in ('kl_classifier.safetensors', 'report.json')}


def main(directory, num_kills, seed, forgetful):
  directory, draws = pathlib.Path(directory), random.Random(seed)
  child = save_under_kill.forked(lambda: tiny_pairs.save(directory / 'models', 't5'))
  assert save_under_kill.ended(child) == 0
  assert not xla_bridge.backends_are_initialized()  # Its threads would not live on in a fork.
  models, peace, killed = directory / 'models', directory / 'peace', directory / 'killed'
  assert save_under_kill.ended(life(models, peace, False)) == 0
  began = time.monotonic()  # The second time everything is compiled.
  assert save_under_kill.ended(life(models, directory / 'warm', False)) == 0
  duration, kills, moments = time.monotonic() - began, 0, []
  for _ in range(num_kills):
    child = life(models, killed, forgetful)
    time.sleep(draws.uniform(0.2, 0.7) * duration)
    os.kill(child, signal.SIGKILL)
    kills += save_under_kill.ended(child) == -signal.SIGKILL
    checkpoints = killed / 't5' / 'kl_classifier' / 'checkpoints'
    moments.append(max(native.TrainingCheckpoints(checkpoints).steps(), default=0) if checkpoints.exists() else -1)
  assert save_under_kill.ended(life(models, killed, forgetful)) == 0
  first, second = exported(peace), exported(killed)
  print(json.dumps({
      'killed': kills, 'moments': moments, 'different': [name for name in first if first[name] != second[name]]}))


if __name__ == '__main__':
  assert reliability_plots  # Imported before the forks.
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == 'forgetful')
