"""Decisions of the routers by hand, at their extremes, on broken laws, and through vmap and jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import routers
from specjax.core import types

DRAFTER, TARGET = np.array([0.50, 0.25, 0.15, 0.10]), np.array([0.13, 0.62, 0.08, 0.17])


def inputs(drafter=DRAFTER, target=None, uniform=0.5, temperature=0.5):
  """`RouterInputs` of laws at temperature 1; the sampling laws are tempered, so that reading them shows."""
  log = lambda probs: jnp.log(jnp.asarray(probs, jnp.float32))
  sampling = lambda probs: None if probs is None else jax.nn.log_softmax(log(probs) / temperature)
  return types.RouterInputs(
      drafter_log_probs=sampling(drafter), drafter_plain_log_probs=log(drafter), drafter_features=None,
      target_log_probs=sampling(target), target_plain_log_probs=None if target is None else log(target),
      uniform=jnp.float32(uniform), position=jnp.int32(3))


@pytest.mark.parametrize('router, defers', [
    # The largest probability of the drafter is 0.50 (0.72 at the sampling temperature), of the target 0.62.
    (routers.ChowRouter(threshold=0.48), True), (routers.ChowRouter(threshold=0.55), False),
    (routers.ChowRouter(threshold=0.5), False), (routers.ChowRouter(threshold=-0.01), True),
    (routers.ChowRouter(threshold=1.0), False), (routers.DiffOracle(threshold=0.10), True),
    (routers.DiffOracle(threshold=0.20), False), (routers.DiffOracle(threshold=-1.0), True),
    (routers.DiffOracle(threshold=1.0), False),
    # Entropy 1.2080 nats.
    (routers.EntropyRouter(threshold=1.2), True), (routers.EntropyRouter(threshold=1.21), False),
    (routers.EntropyRouter(threshold=-0.01), True), (routers.EntropyRouter(threshold=1.39), False),
    (routers.RandomRouter(rate=0.51), True), (routers.RandomRouter(rate=0.5), False),
    (routers.RandomRouter(rate=0.0), False), (routers.RandomRouter(rate=1.0), True)])
def test_decision_by_hand(router, defers):
  got = router(None, inputs(target=TARGET if router.needs_target else None))
  assert got.shape == () and got.dtype == bool and bool(got) == defers


def test_chow_keeps_a_certain_drafter_at_threshold_zero():
  certain = inputs(drafter=np.array([0.0, 1.0, 0.0]))
  assert not routers.ChowRouter(threshold=0.0)(None, certain) and not routers.EntropyRouter(threshold=0.0)(None, certain)
  assert routers.ChowRouter(threshold=0.0)(None, inputs())


def test_a_uniform_of_zero_defers_at_every_positive_rate_and_not_at_zero():
  for rate, defers in ((0.0, False), (1e-6, True), (1.0, True)):
    assert bool(routers.RandomRouter(rate=rate)(None, inputs(uniform=0.0))) == defers


@pytest.mark.parametrize('name', ['ChowRouter', 'EntropyRouter', 'DiffOracle'])
def test_a_law_that_is_nan_is_never_a_reason_to_defer(name):
  kind = getattr(routers, name)
  broken = np.full(4, np.nan)
  pairs = [(broken, TARGET), (broken, broken)] + ([(DRAFTER, broken)] if kind.needs_target else [])
  for drafter, target in pairs:
    for threshold in (-2.0, 0.0, 2.0):
      assert not kind(threshold=threshold)(None, inputs(drafter, target if kind.needs_target else None))


@pytest.mark.parametrize('name', ['ChowRouter', 'DiffOracle', 'EntropyRouter', 'KLOracle', 'RandomRouter'])
def test_routers_are_unbatched_and_their_numbers_traced(name):
  kind = getattr(routers, name)
  random = np.random.RandomState(0)
  laws = random.dirichlet(np.ones(5), size=(2, 32)).astype(np.float32)
  log = np.log(laws)
  target = log[1] if kind.needs_target else None
  batch = types.RouterInputs(
      drafter_log_probs=log[0], drafter_plain_log_probs=log[0], drafter_features=None, target_log_probs=target,
      target_plain_log_probs=target, uniform=random.uniform(size=32).astype(np.float32),
      position=np.arange(32, dtype=np.int32))
  traces, seen = [], []

  @jax.jit
  def decide(router, batch):
    traces.append(1)
    return jax.vmap(lambda one: router(None, one))(batch)

  for value in (-1.0, 0.2, 0.5, 0.9, 1.6):
    router = kind(**{knob: np.float32(value) for knob in kind.knobs})
    got = np.asarray(decide(router, batch))
    alone = [bool(router(None, jax.tree.map(lambda x: jnp.asarray(x[i]), batch))) for i in range(32)]
    assert got.tolist() == alone
    seen += got.tolist()
  assert len(traces) == 1 and {True, False} == set(seen)
