"""Figures of a classifier show the numbers of its report."""

import csv
import json

import numpy as np
import pytest

from specjax.core import errors
from specjax.evaluation import reliability_plots

SIZE = 3000


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  divergence = np.exp(rng.standard_normal(SIZE) * 2 - 2)
  chance = 1 / (1 + np.exp(-(np.log(divergence / 0.5) + rng.standard_normal(SIZE))))
  histogram = {'edges': [0.0, 1.0, 2.0], 'shares': [0.7, 0.2, 0.1], 'at_least': {'2': 0.1, '5': 0.03, '10': 0.0}}
  report = {'pair': 'gemma', 'level': 0.5, 'direction': 'target_drafter',
            'classifiers': {'kl_classifier': {}, 'linear': {}},
            'histogram': {'target_drafter': histogram, 'drafter_target': histogram | {'shares': [0.8, 0.1, 0.1]}}}
  (tmp_path / 'report.json').write_text(json.dumps(report))
  np.savez(tmp_path / 'held_out.npz', target_drafter=divergence, drafter_target=divergence,
           raw_kl_classifier=chance**2, probabilities_kl_classifier=chance, raw_linear=chance**3,
           probabilities_linear=chance)
  return tmp_path


def rows(path):
  with open(path) as file:
    return list(csv.DictReader(file))


def test_both_figures_and_their_numbers_are_written(folder):
  paths = reliability_plots.write(folder)
  assert [path.name for path in paths] == ['reliability.png', 'divergences.png']
  assert all(path.read_bytes().startswith(b'\x89PNG') for path in paths)
  reliability = rows(folder / 'reliability.csv')
  for classifier in ('kl_classifier', 'linear'):
    for kind in ('before', 'after'):
      mine = [row for row in reliability if (row['classifier'], row['calibration']) == (classifier, kind)]
      assert len(mine) == 15 and sum(int(row['count']) for row in mine) == SIZE
  shares = [float(row['share']) for row in rows(folder / 'divergences.csv') if row['direction'] == 'drafter_target']
  assert shares == [0.8, 0.1, 0.1]


def test_equal_inputs_give_equal_files(folder):
  first = [path.read_bytes() for path in reliability_plots.write(folder)]
  assert [path.read_bytes() for path in reliability_plots.write(folder)] == first


@pytest.mark.parametrize('name, content', [
    ('report.json', b'{'), ('report.json', b'{}'), ('report.json', None), ('held_out.npz', None),
    ('held_out.npz', b'PK')])
def test_what_is_missing_or_damaged_is_named(folder, name, content):
  (folder / name).unlink()
  if content is not None:
    (folder / name).write_bytes(content)
  with pytest.raises(errors.DataError, match='figures of a classifier'):
    reliability_plots.write(folder)
