"""Training on several devices takes the steps that one device takes, and stops and goes on like it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from specjax.core import errors
from specjax.training import placement

ROOT = pathlib.Path(__file__).resolve().parents[2]

SCRIPT = """
import dataclasses, json, pathlib, sys
import jax, numpy as np
import test_language_model as case
from specjax.checkpoints import native
base, found = pathlib.Path(sys.argv[1]), {}
def config(num_devices):
  return dataclasses.replace(case.CONFIG, num_devices=num_devices)
for name, num_devices, stops in (('one', 1, (99,)), ('four', 4, (99,)), ('stopped', 4, (7, 99))):
  for stop_after in stops:
    params, _ = case.train(base / name, config=config(num_devices), stop_after=stop_after)
  found[name] = params
found = {name: native.flatten(params) for name, params in found.items()}
print(json.dumps({
    'devices': len(next(iter(found['four'].values())).devices()),
    'far': max(float(np.max(np.abs(np.asarray(found['one'][name]) - np.asarray(found['four'][name])))) for name in found['one']),
    'resumed': all(np.array_equal(found['four'][name], found['stopped'][name]) for name in found['four'])}))
"""


@pytest.mark.nightly
def test_four_devices_train_like_one_and_resume_bit_for_bit(tmp_path):
  process = subprocess.run(
      [sys.executable, '-c', SCRIPT, str(tmp_path)], text=True, capture_output=True, cwd=pathlib.Path(__file__).parent,
      env=dict(os.environ, PYTHONPATH=f'{ROOT}:{pathlib.Path(__file__).parent}', JAX_PLATFORMS='cpu',
               XLA_FLAGS='--xla_force_host_platform_device_count=4'))
  assert process.returncode == 0, process.stdout + process.stderr
  result = json.loads(process.stdout.splitlines()[-1])
  assert result['devices'] == 4 and result['resumed'] and result['far'] < 1e-4, result


def test_more_devices_than_there_are_is_refused():
  with pytest.raises(errors.TopologyError, match='num_devices'):
    placement.Placement(1000)
