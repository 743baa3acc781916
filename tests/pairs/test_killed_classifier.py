"""Collection and training of a classifier that are killed at random moments end, to the bit, where they end in peace."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip('array_record')

ROOT = pathlib.Path(__file__).resolve().parents[2]


def train_under_kill(directory, num_kills, plant):
  script = pathlib.Path(__file__).parent / 'classifier_under_kill.py'
  seed = '5'
  process = subprocess.run(
      [sys.executable, str(script), str(directory), str(num_kills), seed, plant], text=True, capture_output=True,
      env=dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu', XDG_CACHE_HOME=str(directory / 'cache')))
  assert process.returncode == 0, process.stdout + process.stderr
  return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_killed_at_random_moments_gives_the_same_classifier(tmp_path):
  result = train_under_kill(tmp_path, 8, 'as_it_is')
  assert result['killed'] >= 5 and result['different'] == [], result
  assert any(0 < moment < 3000 for moment in result['moments']), result  # Some died in training.


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_the_comparison_sees_a_run_that_forgets_its_moments(tmp_path):
  result = train_under_kill(tmp_path, 4, 'forgetful')
  assert result['different'], result
