"""A pair on files of the user: trained, opened, asked; stopped and resumed; what cannot be trained is named."""

import dataclasses
import json
import pathlib
import random
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'tasks'))

import specjax
from specjax import config
from specjax import eval as eval_binary
from specjax import train as binary
from specjax.core import errors
from specjax.pairs import loaded
from specjax.pairs import text_recipe
from specjax.tasks import tokenizers
from specjax.training import stopping
import tiny_tokenizers

WORDS = [word for text in tiny_tokenizers.TEXTS for word in text.split()]
BY_ROLE = dict(
    embed_dim={'target': 24, 'drafter': 8}, num_heads={'target': 2, 'drafter': 1}, head_dim=8, hidden_dim=16,
    num_layers={'target': 4, 'drafter': 1}, steps={'target': 8, 'drafter': 5}, learning_rate=1e-2, warmup_steps=2)


def files(folder):
  """Names of a book and of a file of questions in `folder`."""
  draws = random.Random(1)
  sentence = lambda count: ' '.join(draws.choices(WORDS, k=count))
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'book.txt').write_text('\n\n'.join(sentence(100) for _ in range(200)))
  (folder / 'mine.jsonl').write_text(''.join(
      json.dumps({'inputs': sentence(9), 'targets': sentence(2)}) + '\n' for _ in range(90)))
  return [f'text:{folder / "book.txt"}', f'jsonl:{folder / "mine.jsonl"}']


def arguments(folder, **changes):
  overrides = dict(
      tasks=files(folder), output_dir=str(folder / 'out'), vocab_size=300, sequence_length=192, num_validation=8,
      batch_size=2, window=16, log_every=4, evaluate_every=100, save_every=100, tensorboard=False, progress=False)
  return config.resolve(
      entry=text_recipe.train, files=['train_text.gin'], overrides=overrides | BY_ROLE | changes,
      provided=binary.PROVIDED).arguments()


def train(folder, **changes):
  return text_recipe.train(**arguments(folder, **changes), stop=stopping.StopRequest(), operative_config='# gin\n')


class StopAfter:
  """A request that comes when the loop has asked `count` times."""

  def __init__(self, count):
    self.left = count

  @property
  def requested(self):
    self.left -= 1
    return self.left < 0


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text')
  assert train(folder)
  return folder / 'out'


@pytest.mark.nightly
def test_the_pair_opens_with_its_tokenizer_and_answers(trained):
  pair = loaded.load_pair_of(trained / 'target', trained / 'drafter')
  assert pair.tokenizer.sha256 == json.loads((trained / 'tokenizer' / 'training.json').read_text())['sha256']
  assert pair.tokenizer.vocab_size == 300 and pair.tokenizer.separator_id is not None
  result = specjax.generate(
      pair, ['the cat'], method=specjax.speculative(num_draft_tokens=2), max_new_tokens=4, seed=0,
      sampling=specjax.SamplingParams(temperature=0.0))
  assert len(result.text) == 1
  model, _ = specjax.load(trained / 'target')
  assert dataclasses.replace(model.config, max_length=None) == text_recipe.decoder_config(
      vocab_size=300, embed_dim=24, num_heads=2, head_dim=8, hidden_dim=16, num_layers=4, window=16)
  assert model.config.layer_kinds == ('local', 'local', 'global', 'global')


@pytest.mark.nightly
def test_the_folder_says_what_it_was_trained_on(trained):
  found = json.loads((trained / 'drafter' / 'training.json').read_text())
  book, mine = sorted(found['tasks'], reverse=True)
  assert book.startswith('text:') and found['tasks'][mine]['train'] > 50
  assert set(found['validation']) == {book, mine} and all(v['loss'] > 0 for v in found['validation'].values())
  assert found['tokenizer_sha256'] == tokenizers.load(trained / 'target').sha256
  assert found['optimizer']['num_steps'] == 5 and found['model']['multiplications_per_token'] > 300 * 8


@pytest.mark.nightly
def test_the_command_it_ends_with_evaluates_what_was_held_out(trained, tmp_path, capsys):
  assert train(trained.parent)  # Complete: nothing is trained again, nothing is written again.
  output = capsys.readouterr().out
  words = output[output.index('python -m specjax.eval'):].split()
  argv = [word for word in words[3:] if not word.startswith('--output_path')]
  argv += [
      '--max_samples=3', '--max_new_tokens=6', '--batch_sizes=2', '--repeats=1', '--warmups=1', '--methods=speculative',
      f'--output_path={tmp_path}/out']
  assert eval_binary.main(argv) == 0
  rows = [json.loads(line) for line in (tmp_path / 'out' / 'rows.jsonl').read_text().splitlines()]
  assert len(rows) == 6 and len({row['task'] for row in rows}) == 2 and all(row['error'] is None for row in rows)


@pytest.mark.nightly
def test_a_stopped_run_goes_on_to_the_same_bytes(trained, tmp_path):
  stop = StopAfter(4)  # Once before the third step, and never asked again.
  settings = arguments(tmp_path, models=['drafter'])
  assert not text_recipe.train(**settings, stop=stop, operative_config='# gin\n')
  assert not (tmp_path / 'out' / 'drafter').exists()
  assert text_recipe.train(**settings, stop=stopping.StopRequest(), operative_config='# gin\n')
  for name in ('model.safetensors', 'tokenizer.model', 'config.json'):
    assert (tmp_path / 'out' / 'drafter' / name).read_bytes() == (trained / 'drafter' / name).read_bytes(), name


@pytest.mark.nightly
def test_the_same_folder_refuses_another_run(trained):
  for change, named in (dict(vocab_size=290), 'tokenizer'), (dict(seed=2), 'seed'), (dict(steps=9), 'num_steps'):
    with pytest.raises(errors.ConfigError, match=named):
      train(trained.parent, **change)


def test_a_tokenizer_and_a_layout_of_the_users_own(tmp_path):
  (tmp_path / 'own.model').write_bytes(tiny_tokenizers.sentencepiece_model())
  assert train(tmp_path, tokenizer=str(tmp_path / 'own.model'), export_format='native', steps=3, models=['drafter'])
  model, _ = specjax.load(tmp_path / 'out' / 'drafter')
  beside = tokenizers.load(tmp_path / 'out' / 'drafter')
  assert beside.sha256 == tokenizers.load(tmp_path / 'own.model').sha256 and beside.vocab_size == model.vocab_size
  assert (tmp_path / 'out' / 'drafter' / 'model.json').is_file() and not (tmp_path / 'out' / 'tokenizer').exists()


class TokenizerLike:
  """What `check_tokenizer` looks at."""

  def __init__(self, vocab_size, eos_id):
    self.vocab_size, self.eos_id = vocab_size, eos_id


@pytest.mark.parametrize('tokenizer, named', [
    (TokenizerLike((1 << 15) + 1, 1), '32769 tokens'), (TokenizerLike(100, -1), 'ends a text')])
def test_a_tokenizer_that_does_not_fit_is_refused(tokenizer, named):
  text_recipe.check_tokenizer(TokenizerLike(1 << 15, 1), where='x.model')
  with pytest.raises(errors.VocabError, match=named):
    text_recipe.check_tokenizer(tokenizer, where='x.model')


@pytest.mark.parametrize('change, named', [
    (dict(vocab_size=20_000), 'vocab_size'), (dict(vocab_size=100), 'vocab_size'),
    (dict(tokenizer='absent.model'), 'absent.model'), (dict(sequence_length=4), 'sequence_length'),
    (dict(tasks=['grimm']), '--data_dir'), (dict(repeats={'grim': 2}), 'grim'), (dict(models=['teacher']), 'models'),
    (dict(held_out_percent=50), 'held_out_percent'), (dict(embed_dim=0), 'embed_dim'),
    (dict(steps={'target': 3}), 'drafter'), (dict(export_format='t5x'), 'export_format'),
    (dict(held_out_tasks=['mt_bench']), '--data_dir')])
def test_what_cannot_be_trained_is_named(tmp_path, change, named):
  with pytest.raises(errors.SpecjaxError, match=named):
    train(tmp_path, **change)
  assert not (tmp_path / 'out' / 'runs').exists()


def test_the_shipped_drafter_costs_less_than_a_tenth():
  run = config.resolve(
      entry=text_recipe.train, files=['runs/train_text_pair.gin'], overrides={'output_dir': 'out'},
      provided=binary.PROVIDED)
  settings = run.arguments()
  names = ('embed_dim', 'num_heads', 'head_dim', 'hidden_dim', 'num_layers')
  costs = {
      role: text_recipe.num_multiplications(text_recipe.decoder_config(
          vocab_size=settings['vocab_size'], window=settings['window'],
          **{name: settings[name][role] for name in names}))
      for role in text_recipe.ROLES}
  assert costs['drafter'] < costs['target'] / 10 and settings['tasks']


def test_multiplications_are_those_of_the_matrices():
  shape = text_recipe.decoder_config(
      vocab_size=64, embed_dim=8, num_heads=2, head_dim=4, hidden_dim=12, num_layers=3, window=4)
  from specjax.checkpoints import descriptions
  params = jax.eval_shape(descriptions.make_model(shape, dtype=np.float32).init, jax.random.key(0))
  matrices = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
  assert text_recipe.num_multiplications(shape) == matrices


@pytest.mark.parametrize('argv, entry', [
    (['--gin_file=runs/train_text_pair.gin'], 'text'), (['text', '--seed=1'], 'text'),
    (['--gin-file', 'runs/train_text_pair.gin', '--steps=3'], 'text'),
    (['--gin_file=runs/train_t5_pair.gin'], 'builtin'), (['--models=t5_drafter'], 'builtin'),
    (['builtin'], 'builtin')])
def test_a_verb_or_the_gin_file_says_what_is_trained(argv, entry):
  verb, words = binary.chosen(argv)
  assert verb is binary.VERBS[entry] and words == [word for word in argv if word not in binary.VERBS]


def test_an_unknown_verb_is_refused_and_help_has_the_flags_of_its_own(capsys):
  assert config.run_main(binary.main, ['texts', '--output_dir=x']) == 2
  assert 'builtin, text' in capsys.readouterr().err
  assert binary.main(['text', '--help']) == 0
  output = capsys.readouterr().out
  assert '--tasks' in output and '--tokenizer' in output and '--stop' not in output
