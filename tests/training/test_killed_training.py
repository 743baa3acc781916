"""Training of draft heads that is killed at random moments ends, to the bit, where training in peace ends."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def train_under_kill(directory, num_kills, plant):
  script = pathlib.Path(__file__).parent / 'train_under_kill.py'
  seed = '7'
  process = subprocess.run(
      [sys.executable, str(script), str(directory), str(num_kills), seed, plant], text=True, capture_output=True,
      env=dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu', XDG_CACHE_HOME=str(directory / 'cache')))
  assert process.returncode == 0, process.stdout + process.stderr
  return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_killed_at_twenty_random_moments_gives_the_same_parameters(tmp_path):
  result = train_under_kill(tmp_path, 20, 'as_it_is')
  assert result['killed'] == 20 and result['leaves'] > 10, result
  assert result['reached'] > 20, result  # Most lives did train.
  assert result['different'] == [] and result['same_metrics'], result


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_the_comparison_sees_a_run_that_forgets_its_moments(tmp_path):
  result = train_under_kill(tmp_path, 3, 'forgetful')
  assert result['different'], result
