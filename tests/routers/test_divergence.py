"""Backoff decoding's decisions by hand, on broken laws, and what a probe must be given."""

import jax.numpy as jnp
import numpy as np
import pytest

from specjax import routers
from specjax.core import errors
from specjax.core import types

DRAFTER, TARGET = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
# KL(target || drafter) = 0.25 log 0.5 + 0.5 log 2 = 0.25 log 2 = 0.1733 nats, the same in reverse.
OTHER = np.array([0.8, 0.1, 0.1])  # KL(target || other) = 0.7428, KL(other || target) = 0.6777


def inputs(drafter=DRAFTER, target=TARGET, features=None):
  """`RouterInputs` of laws at temperature 1."""
  drafter, target = (jnp.log(jnp.asarray(law, jnp.float32)) for law in (drafter, target))
  return types.RouterInputs(
      drafter_log_probs=drafter, drafter_plain_log_probs=drafter, drafter_features=features, target_log_probs=target,
      target_plain_log_probs=target, uniform=jnp.float32(0.5), position=jnp.int32(3))


@pytest.mark.parametrize('drafter, options, threshold, defers', [
    (DRAFTER, {}, 0.17, True), (DRAFTER, {}, 0.18, False), (DRAFTER, dict(is_flipped=True), 0.17, False),
    (DRAFTER, dict(is_flipped=True), 0.18, True), (TARGET, {}, 0.0, False), (TARGET, dict(is_flipped=True), 0.0, True),
    (OTHER, {}, 0.7, True), (OTHER, {}, 0.75, False), (OTHER, dict(direction='drafter_target'), 0.7, False),
    (OTHER, dict(direction='drafter_target'), 0.67, True)])
def test_decision_of_the_oracle_by_hand(drafter, options, threshold, defers):
  got = routers.KLOracle(threshold=threshold, **options)(None, inputs(drafter))
  assert got.shape == () and got.dtype == bool and bool(got) == defers


def test_a_token_that_the_drafter_never_writes_is_an_infinite_divergence():
  never = inputs(drafter=np.array([0.0, 0.5, 0.5]))
  assert routers.KLOracle(threshold=1e30)(None, never) and not routers.KLOracle(threshold=1e30, is_flipped=True)(None, never)


@pytest.mark.parametrize('is_flipped', [False, True])
@pytest.mark.parametrize('broken', [dict(drafter=np.full(3, np.nan)), dict(target=np.full(3, np.nan))])
def test_a_law_that_is_nan_is_never_a_reason_to_defer(broken, is_flipped):
  for threshold in (-1.0, 0.0, 1.0):
    assert not routers.KLOracle(threshold=threshold, is_flipped=is_flipped)(None, inputs(**broken))


def test_an_unknown_direction_is_named():
  with pytest.raises(errors.ParamError, match='direction'):
    routers.KLOracle(threshold=0.1, direction='both')


def probe(bias=0.0):
  """A linear probe of two features."""
  return {'mean': jnp.array([1.0, 0.0]), 'scale': jnp.array([2.0, 1.0]), 'kernels': [jnp.array([[1.0], [-1.0]])],
          'biases': [jnp.array([bias])], 'temperature': jnp.array(1.0), 'knots': {'x': jnp.zeros(0), 'y': jnp.zeros(0)}}


def test_decision_of_a_probe_by_hand():
  features = jnp.array([3.0, -1.0])  # standardised (1, -1): logit 2, probability 0.8808
  for threshold, defers in ((0.88, True), (0.89, False), (0.0, True), (1.0, False)):
    assert bool(routers.LearnedRouter(threshold=threshold)(probe(), inputs(features=features))) == defers
  assert not routers.LearnedRouter(threshold=0.0)(probe(), inputs(features=jnp.array([jnp.nan, 0.0])))


@pytest.mark.parametrize('params, features', [(None, jnp.zeros(2)), (probe(), jnp.zeros(3)), (probe(), None)])
def test_a_missing_probe_and_features_of_another_model_are_named(params, features):
  with pytest.raises(errors.ParamError, match='LearnedRouter|features of a probe'):
    routers.LearnedRouter(threshold=0.5)(params, inputs(features=features))
