"""An autoregressive head learns from the target's own states, each pair from the next state, never across segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import errors
from specjax.core import types
from specjax.models import autoregressive_head as head_lib
from specjax.models import gemma
from specjax.testing import exactness
from specjax.training import autoregressive_head
from specjax.training import loop
from specjax.training import optimizer as optimizers

VOCAB = 9
TARGET = gemma.DecoderLM(gemma.DecoderConfig(
    vocab_size=VOCAB, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4, layer_kinds=('global',),
    activation='gelu', tied_head=True))
HEAD = head_lib.AutoregressiveHead(head_lib.AutoregressiveHeadConfig(
    embed_dim=8, hidden_dim=24, num_heads=2, num_kv_heads=1, head_dim=4))


def batch_of(text, segments=None):
  """A `TrainingBatch` of rows: tokens [B, T + 1] shifted by one, everything scored but padding."""
  text = np.asarray(text, np.int32)
  segments = np.ones_like(text[:, 1:]) if segments is None else np.asarray(segments, np.int32)
  starts = np.concatenate([np.ones((len(text), 1), bool), segments[:, 1:] != segments[:, :-1]], axis=1)
  index = np.arange(segments.shape[1], dtype=np.int32)
  positions = index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)
  return types.TrainingBatch(
      tokens=text[:, :-1], targets=text[:, 1:], weights=(segments > 0).astype(np.float32),
      positions=positions.astype(np.int32), segments=segments)


def random_params():
  return [jax.tree.map(jnp.asarray, exactness.random_params(part, seed, dtype=np.float32))
          for part, seed in ((HEAD, 1), (TARGET, 0))]


def test_smooth_l1_by_hand():
  distances = np.array([[0.0, 0.5, -1.0, 3.0]], np.float32)
  np.testing.assert_allclose(
      autoregressive_head.smooth_l1(distances, np.zeros_like(distances)), [(0 + 0.125 + 0.5 + 2.5) / 4], rtol=1e-6)


def test_loss_is_that_of_the_next_state_and_of_its_law_by_hand():
  params, constants = random_params()
  batch = batch_of(np.random.RandomState(0).randint(0, VOCAB, (2, 8)))
  make = lambda **weights: autoregressive_head.make_loss(TARGET, HEAD, **weights)(params, constants, batch)
  loss, metrics = make(feature_weight=1.0, token_weight=0.1)
  hidden = TARGET.forward(constants, batch).hidden
  predicted = HEAD.forward(
      params, hidden, TARGET.embed(constants, batch.targets), positions=batch.positions, segments=batch.segments)[:, :-1]
  distance = np.abs(np.asarray(predicted - hidden[:, 1:]))
  features = np.mean(np.where(distance < 1, distance**2 / 2, distance - 0.5))
  law, wanted = (jax.nn.log_softmax(TARGET.unembed(constants, x)) for x in (predicted, hidden[:, 1:]))
  tokens = -np.mean(np.sum(np.exp(wanted) * law, axis=-1))
  text = -np.mean(np.take_along_axis(np.asarray(law), batch.targets[:, 1:, None], axis=2))
  np.testing.assert_allclose(loss, features + 0.1 * tokens, rtol=1e-5)
  np.testing.assert_allclose(
      [metrics[name] for name in ('feature_loss', 'token_loss', 'loss')], [features, tokens, text], rtol=1e-5)
  np.testing.assert_allclose(make(feature_weight=0.0, token_weight=2.0)[0], 2 * tokens, rtol=1e-5)


@pytest.mark.nightly
def test_segments_are_scored_as_if_they_stood_alone():
  params, constants = random_params()
  text = np.random.RandomState(1).randint(0, VOCAB, (1, 10))
  loss = autoregressive_head.make_loss(TARGET, HEAD, feature_weight=1.0, token_weight=0.1)
  packed, _ = loss(params, constants, batch_of(text, [[1, 1, 1, 1, 2, 2, 2, 2, 0]]))
  apart = [loss(params, constants, batch_of(text[:, start:start + 5], [[1] * 4]))[0] for start in (0, 4)]
  np.testing.assert_allclose(packed, np.mean(apart), rtol=1e-5)


@pytest.mark.nightly
def test_a_head_learns_what_a_frozen_target_will_say():
  constants = exactness.random_params(TARGET, 0, dtype=np.float32)
  optimizer = optimizers.make_optimizer(optimizers.OptimizerConfig(learning_rate=2e-2, num_steps=150, warmup_steps=5))
  objective = autoregressive_head.objective(TARGET, constants, HEAD)
  step = loop.make_train_step(objective.loss, optimizer)
  state = loop.init_state(objective.init(jax.random.key(0)), optimizer)
  before = jax.tree.map(np.array, constants)
  batch = batch_of(np.array([[(3 * i + row) % VOCAB for i in range(12)] for row in range(VOCAB)]))
  for _ in range(150):
    state, metrics = step(state, constants, batch)
  assert metrics['agreement'] > 0.75
  jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, constants))


@pytest.mark.parametrize('weights, named', [
    (dict(feature_weight=-1.0, token_weight=0.1), 'feature_weight'), (dict(feature_weight=1.0, token_weight=None), 'token_weight'),
    (dict(feature_weight=0.0, token_weight=0.0), 'feature_weight and token_weight')])
def test_weights_without_meaning_are_refused(weights, named):
  with pytest.raises(errors.ParamError, match=named):
    autoregressive_head.make_loss(TARGET, HEAD, **weights)
