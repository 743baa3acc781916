"""The classifier recipe: from questions to a file that a router takes, and the same bits however often it is stopped."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_pairs

import specjax
from specjax import train
from specjax.checkpoints import native
from specjax.core import errors
from specjax.pairs import builtin
from specjax.pairs import classifier_recipe
from specjax.pairs import kl_points
from specjax.routers import divergence as routers
from specjax.tasks import synthetic
from specjax.training import stopping

pytest.importorskip('array_record')

FLAGS = dict(
    pairs='t5', num_questions=40, seed=2, max_new_tokens=8, point_batch_size=8, steps=12, batch_size=32, warmup_steps=2,
    positive_rate=0.3, log_every=4, evaluate_every=100, save_every=5, max_knots=8, tensorboard='false', progress='false',
    answers='reference', classifiers="{'kl_classifier': [4], 'other': []}")


def run(directory, models, **changes):
  flags = [f'--{"gin.classifier_recipe.train." * (name == "classifiers")}{name}={value}'
           for name, value in (FLAGS | changes).items()]
  return train.main(['classifier', f'--output_dir={directory}', f'--models_dir={models}', f'--export_dir={models}', *flags])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(output folder, folder of the models and of what was exported)."""
  folder = tmp_path_factory.mktemp('classifier')
  models = tiny_pairs.save(folder / 'models', 't5')
  assert run(folder / 'out', models) == 0
  return folder / 'out', models


@pytest.fixture(scope='module')
def trained_on_both(tmp_path_factory):
  """As `trained`, with texts that the pair wrote."""
  folder = tmp_path_factory.mktemp('both')
  models = tiny_pairs.save(folder / 'models', 't5')
  assert run(folder / 'out', models, answers='reference,backoff') == 0
  return folder / 'out', models


@pytest.mark.nightly
def test_the_binary_exports_classifiers_that_routers_take(trained):
  _, models = trained
  for name, hidden_dims in (('kl_classifier', (4,)), ('other', ())):
    config, probe = classifier_recipe.load_classifier('t5', classifier=name, data_dir=models)
    assert config.hidden_dims == hidden_dims and config.embed_dim == 8 and 1 <= config.num_knots <= 8
    pair = builtin.load_pair('t5', data_dir=models)
    pair = dataclasses.replace(pair, params={**pair.params, 'router': probe})
    rates = []
    for threshold in (-1.0, 0.3, 1.0):
      found = specjax.generate(
          pair, ['a', 'b'], method=specjax.token_cascade(router=routers.LearnedRouter(threshold=threshold), chunk=4),
          sampling=specjax.SamplingParams(temperature=1.0), max_new_tokens=10, seed=0)
      rates.append(found.stats.target_calls.sum() / found.stats.emitted.sum())
    assert rates[0] == 1 and rates[-1] == 0 and rates == sorted(rates, reverse=True)


def test_the_report_says_what_was_found_and_figures_are_drawn(trained):
  directory, models = trained[0] / 't5', trained[1]
  report = json.loads((directory / 'report.json').read_text())
  assert 0.1 < report['classifiers']['kl_classifier']['calibrated']['base_rate'] < 0.6
  assert report['num_points'].keys() == {'train', 'calibration', 'held_out'} and sum(report['num_points'].values()) > 200
  assert report['sha256']['drafter'] == native.sha256_file(models / 't5' / 'drafter.safetensors')
  for histogram in report['histogram'].values():
    assert sum(histogram['shares']) == pytest.approx(1)
  by_domain = report['classifiers']['other']['by_domain']
  assert sum(one['num_points'] for one in by_domain.values()) == report['num_points']['held_out']
  for name in ('reliability', 'divergences'):
    assert (directory / f'{name}.png').stat().st_size > 10_000
  description = json.loads((models / 't5' / 'kl_classifier.json').read_text())
  assert description['held_out'] == report['classifiers']['kl_classifier']['calibrated']
  assert description['recipe']['answers'] == ['reference'] and description['level'] == report['level']


@pytest.mark.nightly
def test_texts_that_the_pair_wrote_are_added_with_the_level_of_the_others(trained, trained_on_both):
  before, report = (json.loads((folder / 't5' / 'report.json').read_text()) for folder, _ in (trained, trained_on_both))
  directory = trained_on_both[0] / 't5'
  assert report['level'] == before['level'] and report['num_points']['train'] > before['num_points']['train']
  manifest = json.loads((directory / 'points' / 'train_backoff' / 'manifest.json').read_text())
  assert manifest['answers']['level'] == report['level'] and manifest['drafter_sha256'] == report['sha256']['drafter']


def test_a_run_that_is_complete_gives_the_same_file_again_without_training(trained):
  path = trained[1] / 't5' / 'kl_classifier.safetensors'
  before = path.read_bytes()
  path.unlink()
  assert run(*trained) == 0
  assert path.read_bytes() == before


def test_another_configuration_in_the_same_folder_is_refused(trained):
  with pytest.raises(errors.ConfigError, match='questions of the KL points'):
    run(*trained, num_questions=41)
  with pytest.raises(errors.ConfigError, match='learns'):
    run(*trained, learns='log_divergence')


class StopAfter(stopping.StopRequest):
  """A request to stop at the n-th look."""

  def __init__(self, looks):
    super().__init__()
    self._looks = looks

  @property
  def requested(self):
    self._looks -= 1
    return self._looks < 0

  @requested.setter
  def requested(self, value):
    del value


@pytest.mark.nightly
def test_stopped_anywhere_it_goes_on_to_the_same_bits(trained_on_both, tmp_path, monkeypatch):
  models, codes = tiny_pairs.save(tmp_path / 'models', 't5'), []
  while not codes or codes[-1]:  # In the collection, then in the training.
    monkeypatch.setattr(stopping, 'StopRequest', lambda: StopAfter(11))
    codes.append(run(tmp_path / 'out', models, answers='reference,backoff'))
    assert len(codes) < 12, codes
  assert set(codes[:-1]) == {stopping.EXIT_RESUMABLE} and len(codes) > 3, codes
  for name in ('kl_classifier', 'other'):
    one, other = (folder / 't5' / f'{name}.safetensors' for folder in (models, trained_on_both[1]))
    assert one.read_bytes() == other.read_bytes()


def test_questions_are_split_by_their_text_and_no_test_question_is_among_them():
  split = classifier_recipe.Questions(seed=3, count=600, domains=('arithmetic', 'translation')).split()
  texts = {name: {example.inputs for example in examples} for name, examples in split.items()}
  assert not texts['train'] & texts['held_out'] and not texts['train'] & texts['calibration']
  assert not texts['calibration'] & texts['held_out'] and sum(map(len, split.values())) == 600
  assert 430 < len(split['train']) < 530 and 30 < len(split['held_out']) < 95
  held_out = {example.inputs for example in synthetic.examples('test', 200, domains=('arithmetic', 'translation'))}
  assert not held_out & set.union(*texts.values())


def test_a_histogram_by_hand():
  found = classifier_recipe.histogram(np.array([0.0, 0.02, 2.0, 4.0, 5.0, 12.0]))
  assert found['shares'] == pytest.approx([1 / 6, 1 / 6, 0, 0, 0, 0, 2 / 6, 1 / 6, 1 / 6])
  assert found['at_least'] == pytest.approx({'2': 4 / 6, '5': 2 / 6, '10': 1 / 6})


@pytest.mark.parametrize('change, named', [
    (dict(pairs='llama'), 'pair'), (dict(classifiers='{}'), 'classifiers'), (dict(classifiers="{'target': []}"), 'name'),
    (dict(classifiers="{'../x': []}"), 'name'), (dict(classifiers="{'x': [0]}"), 'hidden_dims'),
    (dict(answers='teacher'), 'answers'), (dict(answers='target,target'), 'answers'),
    (dict(positive_rate=1.0), 'positive_rate'), (dict(level=0.0), 'level'), (dict(num_questions=0), 'num_questions'),
    (dict(max_knots=65), 'max_knots'), (dict(steps=0), 'num_steps')])
def test_a_configuration_without_meaning_is_refused_before_anything_is_collected(tmp_path, change, named):
  with pytest.raises((errors.ConfigError, errors.ParamError, errors.LimitError), match=named):
    run(tmp_path / 'out', tmp_path, **change)
  assert not (tmp_path / 'out').exists()


def test_backoff_answers_need_a_level_or_another_kind_before(tmp_path):
  models = tiny_pairs.save(tmp_path / 'models', 't5')
  with pytest.raises(errors.ConfigError, match="level of 'backoff' answers"):
    run(tmp_path / 'out', models, answers='backoff')
  with pytest.raises(errors.DataError, match='questions of the split'):
    run(tmp_path / 'out', models, num_questions=1)


def test_a_pair_that_does_not_exist_is_named():
  with pytest.raises(errors.ParamError, match='pair'):
    classifier_recipe.load_classifier('llama')


def test_a_classifier_is_for_one_pair_only(trained, tmp_path):
  folder = tmp_path / 't5'
  folder.mkdir()
  for path in (trained[1] / 't5').iterdir():
    (folder / path.name).write_bytes(path.read_bytes())
  params = jax.tree.map(lambda leaf: leaf * 0.5, tiny_pairs.models('t5')['drafter'][1])
  native.save_safetensors(folder / 'drafter.safetensors', params, builtin.describe(tiny_pairs.specs('t5')['drafter']))
  with pytest.raises(errors.CheckpointError, match='drafter_sha256.*another pair'):
    classifier_recipe.load_classifier('t5', data_dir=tmp_path)
  with pytest.raises(errors.CheckpointError, match='drafter_sha256 of KL points'):
    sha256 = classifier_recipe.Files.of('t5', tmp_path).sha256
    kl_points.KLPoints(trained[0] / 't5' / 'points' / 'train_reference', sha256=sha256)
