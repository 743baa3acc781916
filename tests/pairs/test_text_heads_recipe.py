"""Heads on the target of a text run: trained on its rows, written beside it, refused where there is no run."""

import jax
import numpy as np
import pytest

from specjax import config
from specjax.checkpoints import formats
from specjax.checkpoints import heads_file
from specjax.checkpoints import leaves
from specjax.core import errors
from specjax.models import gemma
from specjax.pairs import text_heads_recipe
from specjax.training import stopping

VOCAB, LENGTH = 13, 16
TARGET = gemma.DecoderConfig(
    vocab_size=VOCAB, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4, layer_kinds=('global',),
    activation='gelu', tied_head=True)


def rows(seed, count=6):
  tokens = np.random.default_rng(seed).integers(1, VOCAB, (count, LENGTH + 1)).astype(np.int16)
  return dict(
      tokens=tokens[:, :-1], targets=tokens[:, 1:], segments=np.ones((count, LENGTH), np.int16),
      weights=np.ones((count, LENGTH), np.float16),
      positions=np.broadcast_to(np.arange(LENGTH, dtype=np.int16), (count, LENGTH)))


@pytest.fixture
def text_run(tmp_path):
  """A folder as `train text` leaves it, of a tiny target."""
  params = gemma.DecoderLM(TARGET).init(jax.random.key(0))
  with formats.writing(tmp_path / 'target', TARGET, leaves.of(params), format='native'):
    pass
  packed = tmp_path / 'packed' / '0123'
  packed.mkdir(parents=True)
  for number, name in enumerate(('train', 'validation-one', 'validation-two')):
    np.savez(packed / f'{name}.npz', **rows(number))
  return tmp_path


def train(text_run, **changes):
  overrides = dict(
      text_run=str(text_run), steps=3, batch_size=2, warmup_steps=1, hidden_dim=8, num_heads=2, attention_heads=2,
      head_dim=4, tensorboard=False, progress=False)
  arguments = config.resolve(
      entry=text_heads_recipe.train, files=('train_heads.gin',), provided=('stop', 'operative_config'),
      overrides=overrides).arguments()
  return text_heads_recipe.train(**(arguments | changes), stop=stopping.StopRequest())


def test_both_kinds_of_heads_are_trained_and_belong_to_the_runs_target(text_run):
  assert train(text_run, hidden_states='float32')
  [target] = (text_run / 'target').glob('*.safetensors')
  for role in text_heads_recipe.ROLES:
    heads, params = heads_file.load(text_run / f'{role}.safetensors', target=target)
    assert heads.config.embed_dim == TARGET.embed_dim and jax.tree.leaves(params)
  assert len(list((text_run / 'packed').glob('hidden-*'))) == 2  # Both read the states of the same two sets of rows.
  with pytest.raises(errors.ConfigError, match='config.seed'):
    train(text_run, hidden_states='float32', seed=5)


@pytest.mark.parametrize('break_run, named', [
    (lambda run: next((run / 'target').glob('*.safetensors')).unlink(), 'target of a text run.*0 .safetensors'),
    (lambda run: (run / 'packed' / '0123' / 'train.npz').unlink(), 'packed rows of a text run.*0 sets'),
    (lambda run: (run / 'packed' / '0123').rename(run / 'packed2'), 'packed rows')])
def test_a_folder_that_is_no_complete_run_is_refused(text_run, break_run, named):
  break_run(text_run)
  with pytest.raises(errors.ConfigError, match=named):
    train(text_run)


@pytest.mark.parametrize('change, named', [
    (dict(models=['medusa']), 'models'), (dict(models=[]), 'models'), (dict(steps={'heads': 3}), 'autoregressive_head'),
    (dict(hidden_states='int8'), 'hidden_states'), (dict(head_decay=0.0), 'head_decay'), (dict(num_heads=0), 'num_heads'),
    (dict(batch_size=0), 'batch_size'), (dict(attention_heads=0), 'num_heads')])
def test_bad_options_are_named_before_anything_is_written(text_run, change, named):
  with pytest.raises(errors.SpecjaxError, match=named):
    train(text_run, **change)
  assert not (text_run / 'runs').exists()
