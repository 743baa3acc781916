"""Draft heads learn the tokens behind the next one, each its own, and never across segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import errors
from specjax.core import types
from specjax.models import gemma
from specjax.models import heads as heads_lib
from specjax.testing import exactness
from specjax.training import draft_heads
from specjax.training import language_model
from specjax.training import loop
from specjax.training import optimizer as optimizers

VOCAB = 9
TARGET = gemma.DecoderLM(gemma.DecoderConfig(
    vocab_size=VOCAB, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4, layer_kinds=('global',),
    activation='gelu', tied_head=True))
HEADS = heads_lib.DraftHeads(heads_lib.HeadsConfig(kind='blockwise', num_heads=2, embed_dim=8, hidden_dim=16))


def batch_of(text):
  """A `TrainingBatch` of one packed row: tokens [1, T + 1] shifted by one, everything scored."""
  text = np.asarray(text, np.int32)
  ones = np.ones_like(text[:, 1:])
  return types.TrainingBatch(
      tokens=text[:, :-1], targets=text[:, 1:], weights=ones.astype(np.float32),
      positions=np.broadcast_to(np.arange(ones.shape[1], dtype=np.int32), ones.shape), segments=ones)


def test_targets_of_a_head_lie_behind_those_of_the_target_and_in_the_same_segment():
  batch = batch_of([[1, 2, 3, 4, 5, 6, 7]])._replace(
      segments=np.array([[1, 1, 1, 2, 2, 0]], np.int32), weights=np.array([[0, 1, 1, 1, 1, 0]], np.float32))
  targets, weights = draft_heads.shifted(batch, 1)
  np.testing.assert_array_equal(targets[0, :5], [3, 4, 5, 6, 7])
  np.testing.assert_array_equal(weights, [[1, 1, 0, 1, 0, 0]])
  np.testing.assert_array_equal(draft_heads.shifted(batch, 2)[1], [[1, 0, 0, 0, 0, 0]])


def test_loss_is_that_of_each_heads_logits_by_hand():
  params, constants = (
      jax.tree.map(jnp.asarray, exactness.random_params(part, seed, dtype=np.float32))
      for part, seed in ((HEADS, 1), (TARGET, 0)))
  batch = batch_of(np.random.RandomState(0).randint(0, VOCAB, (2, 8)))
  loss, metrics = draft_heads.make_loss(TARGET, HEADS, head_weights=(1.0, 0.5), z_loss=0.0)(params, constants, batch)
  hidden = TARGET.forward(constants, batch).hidden
  by_head = []
  for index in range(2):
    law = jax.nn.log_softmax(TARGET.unembed(constants, HEADS(params, hidden)[:, :, index]))
    targets = batch.targets[:, index + 1:]
    by_head.append(-np.mean(np.take_along_axis(np.asarray(law)[:, :targets.shape[1]], targets[:, :, None], axis=2)))
  np.testing.assert_allclose(loss, (by_head[0] + 0.5 * by_head[1]) / 1.5, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], (6 * by_head[0] + 5 * by_head[1]) / 11, rtol=1e-5)


def test_heads_learn_a_sequence_that_a_frozen_target_reads():
  constants = exactness.random_params(TARGET, 0, dtype=np.float32)
  optimizer = optimizers.make_optimizer(optimizers.OptimizerConfig(learning_rate=2e-2, num_steps=150, warmup_steps=5))
  objective = draft_heads.objective(TARGET, constants, HEADS, head_weights=(1.0, 0.8), z_loss=0.0)
  step = loop.make_train_step(objective.loss, optimizer)
  state = loop.init_state(objective.init(jax.random.key(0)), optimizer)
  before = jax.tree.map(np.array, constants)
  batch = batch_of(np.array([[(3 * i + row) % VOCAB for i in range(12)] for row in range(VOCAB)]))
  for _ in range(150):
    state, metrics = step(state, constants, batch)
  assert metrics['accuracy_1'] > 0.9 and metrics['accuracy_2'] > 0.9
  jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, constants))


def test_joint_loss_is_the_heads_with_the_targets_own():
  params = {name: jax.tree.map(jnp.asarray, exactness.random_params(part, seed, dtype=np.float32))
            for name, part, seed in (('heads', HEADS, 1), ('target', TARGET, 0))}
  batch = batch_of(np.random.RandomState(0).randint(0, VOCAB, (2, 8)))
  weights = dict(head_weights=(1.0, 0.5), z_loss=1e-3)
  of_heads, _ = draft_heads.make_loss(TARGET, HEADS, **weights)(params['heads'], params['target'], batch)
  own, metrics_of_own = language_model.make_loss(TARGET, z_loss=1e-3)(params['target'], None, batch)
  loss, metrics = draft_heads.make_joint_loss(TARGET, HEADS, target_weight=3.0, **weights)(params, None, batch)
  np.testing.assert_allclose(loss, of_heads + 3.0 * own, rtol=1e-6)
  np.testing.assert_allclose(metrics['target_loss'], metrics_of_own['loss'], rtol=1e-6)


def test_jointly_trained_heads_move_the_target_even_where_its_own_loss_has_no_weight():
  constants = exactness.random_params(TARGET, 0, dtype=np.float32)
  optimizer = optimizers.make_optimizer(optimizers.OptimizerConfig(learning_rate=1e-2, num_steps=60, warmup_steps=2))
  objective = draft_heads.joint_objective(
      TARGET, constants, HEADS, head_weights=(1.0, 0.8), z_loss=0.0, target_weight=0.0)
  assert objective.constants is None
  step = loop.make_train_step(objective.loss, optimizer)
  state = loop.init_state(jax.tree.map(jnp.array, objective.init(jax.random.key(0))), optimizer)
  jax.tree.map(np.testing.assert_array_equal, state.params['target'], constants)
  batch = batch_of(np.array([[(3 * i + row) % VOCAB for i in range(12)] for row in range(VOCAB)]))
  first = last = None
  for _ in range(60):
    state, metrics = step(state, None, batch)
    first, last = metrics if first is None else first, metrics
  assert last['loss'] < first['loss']
  moved = jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.any(x != y)), state.params['target'], constants))
  assert all(moved)


@pytest.mark.parametrize('weights', [(1.0,), (1.0, -1.0), (1.0, float('nan')), (0.0, 0.0)])
def test_weights_that_do_not_fit_are_refused(weights):
  with pytest.raises(errors.ParamError, match='head_weights'):
    draft_heads.make_loss(TARGET, HEADS, head_weights=weights, z_loss=0.0)


@pytest.mark.parametrize('weight', [-1.0, float('nan'), '1'])
def test_a_target_weight_without_meaning_is_refused(weight):
  with pytest.raises(errors.ParamError, match='target_weight'):
    draft_heads.make_joint_loss(TARGET, HEADS, head_weights=(1.0, 1.0), z_loss=0.0, target_weight=weight)
