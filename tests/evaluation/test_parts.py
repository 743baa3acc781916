"""Where the parts of a pair come from: shipped, a file, or nowhere."""

import jax.numpy as jnp
import numpy as np
import pytest

from specjax.checkpoints import arpa
from specjax.checkpoints import heads_file
from specjax.checkpoints import native
from specjax.core import errors
from specjax.decode import pair as pair_lib
from specjax.evaluation import parts
from specjax.models import heads as heads_lib
from specjax.pairs import builtin
from specjax.tasks import vocabulary
from specjax.testing import exactness
from specjax.testing import toy
from specjax.training import ngram_counts

CONFIG = heads_lib.HeadsConfig(kind='medusa', num_heads=2, embed_dim=4)
HEADS = heads_lib.DraftHeads(CONFIG)
PARAMS = exactness.random_params(HEADS, 0, dtype=np.float32)


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
  """A built-in pair in a folder, without heads."""
  folder = tmp_path / 'gemma'
  folder.mkdir()
  native.save_safetensors(folder / 'target.safetensors', {'x': np.ones(3, np.float32)}, {})
  original = builtin.target_file
  monkeypatch.setattr(builtin, 'target_file', lambda name, data_dir=None: original(name, data_dir=tmp_path))
  return folder


def load(name, **files):
  loader = parts.loader(name, dtype=jnp.float32, files=files)
  return lambda role, pair=None: loader(role, pair)


def save(path, target):
  heads_file.save(path, PARAMS, CONFIG, target=target)


def test_a_built_in_pair_brings_what_it_is_shipped_with(checkpoints):
  assert load('gemma')('heads') is None
  save(checkpoints / 'heads.safetensors', checkpoints / 'target.safetensors')
  heads, params = load('gemma')('heads')
  assert heads.config == CONFIG and set(params) == set(PARAMS)


def test_a_named_file_goes_before_what_is_shipped(checkpoints, tmp_path):
  save(tmp_path / 'mine.safetensors', checkpoints / 'target.safetensors')
  heads, _ = load('gemma', heads=str(tmp_path / 'mine.safetensors'))('heads')
  assert heads.config == CONFIG


def test_heads_of_another_target_are_refused(checkpoints, tmp_path):
  native.save_safetensors(tmp_path / 'other.safetensors', {'x': np.zeros(3, np.float32)}, {})
  save(tmp_path / 'mine.safetensors', tmp_path / 'other.safetensors')
  with pytest.raises(errors.CheckpointError, match='another target'):
    load('gemma', heads=str(tmp_path / 'mine.safetensors'))('heads')


def test_a_pair_of_two_checkpoints_has_what_is_named(checkpoints, tmp_path):
  target = checkpoints / 'target.safetensors'
  save(tmp_path / 'mine.safetensors', target)
  assert load(f'{checkpoints}::x')('heads') is None
  for name in (f'{target}::x', f'{checkpoints}::x'):
    heads, _ = load(name, heads=str(tmp_path / 'mine.safetensors'))('heads')
    assert heads.config == CONFIG


def test_a_target_of_several_files_is_refused_by_name(checkpoints, tmp_path):
  native.save_safetensors(checkpoints / 'more.safetensors', {'x': np.ones(3, np.float32)}, {})
  with pytest.raises(errors.ConfigError, match='heads of a target in 2 files'):
    load(f'{checkpoints}::x', heads='y')('heads')


def test_what_is_no_file_is_not_looked_for(checkpoints):
  assert load('gemma')('layers') is None and load('gemma')('rescorer') is None


def test_heads_of_the_other_kind_are_refused(checkpoints, tmp_path):
  save(tmp_path / 'mine.safetensors', checkpoints / 'target.safetensors')
  with pytest.raises(errors.ConfigError, match='autoregressive_head file.*DraftHeads'):
    load('gemma', autoregressive_head=str(tmp_path / 'mine.safetensors'))('autoregressive_head')


def small_pair():
  model = toy.ToyLM(vocab_size=896)
  return pair_lib.Pair(target=model, drafter=model, params={'target': {}, 'drafter': {}}, family='decoder-only',
                       tokenizer=vocabulary.load_builtin_tokenizer())


def test_ngrams_of_a_built_in_pair_are_counted_on_training_answers(monkeypatch):
  monkeypatch.setattr(parts, 'NUM_EXAMPLES', 64)
  order, model = load('gemma')('ngrams_2', small_pair())
  assert (order, model.order, model.vocab_size) == (2, 2, 896) and model.num_entries[1] > 100
  again = load('gemma')('ngrams_2', small_pair())[1]
  np.testing.assert_array_equal(model.log_probs[1], again.log_probs[1])
  assert load('target::drafter')('ngrams_2', small_pair()) is None


def test_of_several_ngram_files_the_one_of_the_order_is_taken(tmp_path):
  files = []
  for order in (2, 4):
    model = ngram_counts.train([[1, 2, 3, 1, 2, 4, 5]], order=order, vocab_size=896, discount_fallback=ngram_counts.FALLBACK)
    files.append(str(tmp_path / f'{order}.arpa'))
    arpa.write(files[-1], model)
  order, model = load('x::y', ngrams=files)('ngrams_4', small_pair())
  assert (order, model.order) == (4, 4)
  assert load('gemma', ngrams=files[:1])('ngrams_4', small_pair()) is None
