"""AdamW: which leaves decay, the schedule's corners, the clip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import errors
from specjax.pairs import builtin
from specjax.training import optimizer as optimizers

CONFIG = optimizers.OptimizerConfig(learning_rate=0.5, num_steps=100, warmup_steps=10, weight_decay=0.1)
PARAMS = {
    'embedding': np.full((3, 2), 2.0, np.float32), 'norm': {'scale': np.full(2, 2.0, np.float32)},
    'bias': np.full(2, 2.0, np.float32),
}


def one_update(config, grads, steps=1):
  optimizer = optimizers.make_optimizer(config)
  params = jax.tree.map(jnp.asarray, PARAMS)
  state = optimizer.init(params)
  for _ in range(steps):
    updates, state = optimizer.update(grads, state, params)
  return updates


def test_schedule_warms_up_from_zero_peaks_and_ends_at_zero():
  rate = optimizers.schedule(CONFIG)
  np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(55), rate(100)], [0, 0.25, 0.5, 0.25, 0], atol=1e-7)


def test_schedule_never_rises_after_the_peak():
  rates = np.array([optimizers.schedule(CONFIG)(step) for step in range(10, 101)])
  assert (np.diff(rates) <= 0).all()


def test_only_matrices_decay():
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  updates = one_update(CONFIG, zero, steps=2)  # The first step has learning rate 0.
  rate = 0.05
  np.testing.assert_allclose(updates['embedding'], np.full((3, 2), -rate * 0.1 * 2), rtol=1e-5)
  np.testing.assert_array_equal(updates['norm']['scale'], np.zeros(2))
  np.testing.assert_array_equal(updates['bias'], np.zeros(2))


def test_gradients_are_clipped_by_their_global_norm():
  huge = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e6), PARAMS)
  state = optimizers.make_optimizer(CONFIG).init(PARAMS)
  _, state = optimizers.make_optimizer(CONFIG).update(huge, state, PARAMS)
  moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
  # Ten leaves' elements, each 1 / sqrt(10) after the clip; the first moment holds (1 - beta1) of that.
  np.testing.assert_allclose(max(float(jnp.max(leaf)) for leaf in moments), 0.1 / np.sqrt(10), rtol=1e-5)


def test_query_scale_shrinks_the_steps_of_query_projections_only():
  kernel = np.ones((2, 2), np.float32)
  params = {'layer': {'query': {'kernel': kernel}, 'key': {'kernel': kernel}, 'query_norm': {'scale': kernel[0]}}}
  changed = {}
  for scale in (1.0, 0.25):
    config = optimizers.OptimizerConfig(learning_rate=0.5, num_steps=9, warmup_steps=0, query_learning_rate_scale=scale)
    optimizer = optimizers.make_optimizer(config)
    changed[scale], _ = optimizer.update(params, optimizer.init(params), params)
  ratios = jax.tree.map(lambda scaled, plain: float((scaled / plain).ravel()[0]), changed[0.25], changed[1.0])
  assert ratios == {'layer': {'query': {'kernel': 0.25}, 'key': {'kernel': 1.0}, 'query_norm': {'scale': 1.0}}}


@pytest.mark.parametrize('name', builtin.MODELS)
def test_every_attention_of_the_built_in_models_has_its_queries_found(name):
  spec = builtin.MODELS[name]
  params = jax.eval_shape(builtin.make_model(spec).init, jax.random.key(0))
  attentions = (
      spec.config.num_layers if spec.kind == 'decoder-only'
      else spec.config.num_encoder_layers + 2 * spec.config.num_decoder_layers)
  assert sum(jax.tree.leaves(optimizers.query_mask(params))) == attentions


@pytest.mark.parametrize('change', [
    dict(warmup_steps=100), dict(warmup_steps=-1), dict(learning_rate=0.0), dict(learning_rate=float('nan')),
    dict(query_learning_rate_scale=0.0), dict(learning_rate=float('inf')), dict(num_steps=0), dict(num_steps=1.5),
    dict(weight_decay=-0.1), dict(beta1=1.0), dict(clip_norm=0)])
def test_numbers_without_meaning_are_refused(change):
  with pytest.raises(errors.ParamError, match=next(iter(change))):
    optimizers.OptimizerConfig(**(dict(learning_rate=0.5, num_steps=100, warmup_steps=10) | change))
