"""The script behind the measured numbers of the README, on a handful of examples."""

import importlib.resources
import json
import os
import pathlib
import subprocess
import sys

import pytest

from specjax.tasks import synthetic

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = pathlib.Path(str(importlib.resources.files('specjax.pairs'))) / 'data'
FIELDS = ('examples', 'accepted', 'evaluated', 'emitted', 'target_calls')


@pytest.mark.skipif(not (DATA / 't5' / 'drafter.safetensors').is_file(), reason='no trained pair: run scripts/train_pairs.sh')
def test_numbers_add_up_over_levels_and_domains(tmp_path):
  output = tmp_path / 'measured.json'
  done = subprocess.run(
      [sys.executable, 'scripts/measure_pair.py', '--pair=t5', '--num_examples=32', f'--output={output}'], cwd=ROOT,
      env=dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu'), text=True, capture_output=True)
  assert done.returncode == 0, done.stderr
  groups = json.loads(output.read_text())['groups']
  levels = [group for name, group in groups.items() if ' ' in name]
  domains = [groups[name] for name in synthetic.DOMAINS]
  for field in FIELDS:
    assert sum(group[field] for group in levels) == sum(group[field] for group in domains) == groups['all'][field]
  assert groups['all']['examples'] == 32
  for name, group in groups.items():
    assert group['acceptance_rate'] == group['accepted'] / group['evaluated'] <= 1
    for role in ('target', 'drafter'):
      rate, low, high = group[f'{role}_exact_match']
      assert 0 <= low <= rate <= high <= 1 and name in done.stdout
  assert groups['all']['target_exact_match'][0] > groups['all']['drafter_exact_match'][0]
