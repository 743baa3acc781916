"""The classifiers in the package belong to the pairs in the package, and tell tokens apart on questions never seen."""

import importlib.resources
import json
import pathlib

import pytest

from specjax.pairs import builtin
from specjax.pairs import classifier_recipe
from specjax.pairs import kl_points
from specjax.tasks import synthetic
from specjax.training import kl_classifier
from specjax.training import stopping

pytest.importorskip('array_record')

DATA = pathlib.Path(str(importlib.resources.files('specjax.pairs'))) / 'data'


@pytest.mark.parametrize('name', builtin.PAIRS)
def test_the_figures_of_the_training_reach_the_goals(name):
  config, _ = classifier_recipe.load_classifier(name)
  description = json.loads((DATA / name / 'kl_classifier.json').read_text())
  held_out = description['held_out']
  assert 0.15 <= held_out['base_rate'] <= 0.3 and held_out['num_points'] > 5_000
  assert held_out['auc'] >= 0.85 and held_out['ece'] <= 0.02 and held_out['brier_skill'] >= 0.25
  cost = kl_classifier.overhead(config, builtin.make_model(builtin.MODELS[f'{name}_drafter']),
                                family=builtin.MODELS[f'{name}_drafter'].kind)
  assert cost.flops < 0.03 and cost.bytes < 0.04, cost


@pytest.mark.parametrize('name', builtin.PAIRS)
def test_they_hold_on_test_questions(name, tmp_path):
  config, probe = classifier_recipe.load_classifier(name)
  sha256 = classifier_recipe.Files.of(name, None).sha256
  assert kl_points.write(
      tmp_path, pair=builtin.load_pair(name), sha256=sha256, examples=synthetic.examples('test', 64, seed=21),
      answers=kl_points.Answers(), batch_size=32, stop=stopping.StopRequest(), show_progress=False)
  points = kl_points.KLPoints(tmp_path, sha256=sha256, direction=config.direction)
  probabilities, divergences = kl_classifier.probabilities_of(probe, points)
  found = kl_classifier.figures(probabilities, divergences > config.level)
  assert found['auc'] > 0.85 and found['ece'] < 0.06 and found['brier_skill'] > 0.25, found
