"""The train binary in a process of its own."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from specjax.checkpoints import native
from specjax.pairs import builtin
from specjax.training import metric_log
from specjax.training import stopping

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 40
FLAGS = dict(
    models='gemma_drafter', steps=STEPS, batch_size=2, sequence_length=80, num_examples=200, num_validation=20, seed=1,
    learning_rate=1e-3, warmup_steps=2, log_every=1, evaluate_every=1000, save_every=1000, tensorboard=False,
    progress=False)


def start(directory, *, cwd, **changes):
  flags = [f'--{name}={value}' for name, value in (FLAGS | changes).items()]
  return subprocess.Popen(
      [sys.executable, '-m', 'specjax.train', f'--output_dir={directory}', *flags], cwd=cwd, text=True,
      env=dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu', XDG_CACHE_HOME=str(cwd / 'cache')), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.timeout(240)
def test_sigterm_saves_exits_75_and_the_same_command_completes(tmp_path):
  run_dir, export = tmp_path / 'runs' / 'gemma_drafter', tmp_path / 'export' / 'gemma' / 'drafter.safetensors'
  first = start('runs', cwd=tmp_path, export_dir='export')  # Relative: what people type.
  while first.poll() is None and not metric_log.read_metrics(run_dir / 'metrics.jsonl'):
    time.sleep(0.005)
  first.send_signal(signal.SIGTERM)
  output, _ = first.communicate(timeout=60)
  assert first.returncode == stopping.EXIT_RESUMABLE, output
  assert 'Run the same command again' in output and not export.exists()
  [stopped_at] = native.TrainingCheckpoints(run_dir / 'checkpoints').steps()
  assert 1 <= stopped_at < STEPS

  assert list((tmp_path / 'cache' / 'specjax' / 'xla').iterdir())  # The second process compiles nothing.

  second = start('runs', cwd=tmp_path, export_dir='export')
  output, _ = second.communicate(timeout=120)
  assert second.returncode == 0, output
  assert f'at step {stopped_at}' in output
  rows = [row for row in metric_log.read_metrics(run_dir / 'metrics.jsonl') if row['kind'] == 'train']
  assert [row['step'] for row in rows] == list(range(1, STEPS + 1))
  seconds = [row['seconds'] for row in rows]
  assert seconds == sorted(seconds)
  assert 'recipe.train' in (run_dir / 'operative.gin').read_text()

  description = native.load_description(export)
  assert description['recipe']['seed'] == 1 and description['recipe']['num_examples'] == 200
  builtin.load_model(export)
