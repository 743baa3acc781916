"""Small checks of token and sequence cascades, each of which raises AssertionError when something is wrong.

They kill the mutants of `specjax.testing.routing_mutants`; like `detectors`, they take no arguments, find everything
through the library's modules and compile afresh.
"""

import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from specjax import routers
from specjax.core import types
from specjax.decode import routed
from specjax.decode import sequence_cascade
from specjax.ops import probes
from specjax.testing import detectors
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import routing_oracles
from specjax.testing import toy

W = oracles.Warp
Request = exactness.Request
_CHEAP = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
_THRESHOLD, _CONFIDENCE = 0.5, -1.0

_REQUESTS = [
    Request(prompt=(0, 1), max_new_tokens=4), Request(prompt=(2,), max_new_tokens=4, eos_ids=(1,)),
    Request(prompt=(1,), max_new_tokens=4, warp=W(temperature=0.5), eos_ids=(2,)),
    Request(prompt=(1, 1, 0), max_new_tokens=3, warp=W(temperature=1.7, top_p=0.75)),
    Request(prompt=(2, 1), max_new_tokens=4, warp=W(temperature=0.0))]


def _with_x64(function):
  @functools.wraps(function)
  def run(*args, **kwargs):
    with jax.enable_x64(True):
      return function(*args, **kwargs)
  return run


def _check(condition, message):
  if not condition:
    raise AssertionError(message)


def _pair():
  return toy.toy_pair(vocab_size=3, seed=1, scale=0.6)


def _routed(pair, *, router=None, chunk=2):
  router = router or routers.ChowRouter(threshold=_THRESHOLD)
  return routed.RoutedDecoder(target=pair.target, drafter=pair.drafter, router=router, chunk=chunk)


def _sequence(pair, threshold=_CONFIDENCE):
  return sequence_cascade.SequenceCascade(
      target=pair.target, drafter=pair.drafter, confidence='mean_log_prob', threshold=threshold)


def _found(decoder, pair, expected, *, rows, **kwargs):
  """The discrepancies of one enumeration; `expected` is a function of `routing_oracles.Models`."""
  joint = enumeration.Enumerator(rows=rows, **kwargs).joint(
      decoder, pair.params, exactness.arrays(_REQUESTS, vocab_size=3), capacity=exactness.capacity(decoder, _REQUESTS))
  oracle = exactness.Oracle.of(_REQUESTS, target=pair.target, drafter=pair.drafter, params=pair.params)
  return [routing_oracles.discrepancy(joint, row, expected(routing_oracles.Models.of(oracle, row)))
          for row in range(len(_REQUESTS))]


def _token_cascade():
  """Discrepancies of rows alone, whose target falls behind, and of rows whose neighbours make it catch up."""
  pair = _pair()
  expected = lambda models: routing_oracles.token_cascade(models, routing_oracles.chow(_THRESHOLD))
  return [one for rows in (1, 4) for one in _found(_routed(pair), pair, expected, rows=rows)]


@_with_x64
def token_cascade_law():
  """The joint law of a token cascade is q where its router keeps and p where it defers."""
  worst = max(max(one.law, one.mass) for one in _token_cascade())
  _check(worst <= 1e-12, f'the joint law is off by {worst:.2e} in total variation')


@_with_x64
def token_cascade_counters():
  """Expected target calls are the expected deferrals; drafter calls, rounds and emitted tokens are one another."""
  worst = max(one.counters for one in _token_cascade())
  _check(worst <= 1e-11, f'an expected counter is off by {worst:.2e}')


@_with_x64
def sequence_cascade_law():
  """The joint law of a sequence cascade is q(y) where y is confident, and the lost mass times p; counters too."""
  pair = _pair()
  found = _found(
      _sequence(pair), pair, lambda models: routing_oracles.sequence_cascade(models, 'mean_log_prob', _CONFIDENCE),
      rows=128, phase_of=lambda state: state.drafter_state.phase)
  worst = max(max(one.law, one.mass, one.counters) for one in found)
  _check(worst <= 1e-11, f'the joint law or a counter is off by {worst:.2e}')


def routers_see_no_target():
  """A router without `needs_target` is given no law of the target, an oracle is given both."""

  @struct.dataclass(kw_only=True)
  class Probe:
    needs_target: bool = struct.field(pytree_node=False)

    def __call__(self, params, inputs):
      for law in (inputs.target_log_probs, inputs.target_plain_log_probs):
        _check((law is not None) == self.needs_target, f'needs_target is {self.needs_target} and the law is {law}')
      return inputs.position < 0

  pair = toy.toy_pair(vocab_size=4, seed=5)
  arrays = exactness.arrays([Request(prompt=(0, 1), max_new_tokens=3)], vocab_size=4, dtype=np.float32)
  for needs_target in (False, True):
    decoder = _routed(pair, router=Probe(needs_target=needs_target))
    state = jax.eval_shape(lambda params, requests: decoder.init(params, requests, 9), pair.params, arrays)
    jax.eval_shape(lambda params, state: decoder.step(params, state), pair.params, state)


def second_answer_has_its_own_random_numbers():
  """One model in both places: with the random numbers of the first answer the second would be the first again."""
  pair = toy.toy_pair(vocab_size=5, seed=3, scale=0.4)
  params = {'target': pair.params['target'], 'drafter': pair.params['target']}
  arrays = exactness.arrays([Request(prompt=(1, 2), max_new_tokens=8)] * 16, vocab_size=5, dtype=np.float32)
  decoder = lambda threshold: sequence_cascade.SequenceCascade(
      target=pair.target, drafter=pair.target, confidence='mean_log_prob', threshold=threshold)
  first, second = (np.asarray(detectors.decode(decoder(threshold), params, arrays, capacity=12).tokens)[:, 2:10]
                   for threshold in (-1e9, 1.0))
  _check(len(np.unique(first, axis=0)) > 8, 'the first answers are alike')
  equal = np.mean(first == second)
  _check(equal < 0.5, f'{equal:.0%} of the tokens of both answers are equal')


def _integers(state, index):
  """Every number of one row but those that belong to its batch."""
  stats = state.stats.replace(target_passes=jnp.zeros_like(state.stats.steps))
  caches = jax.tree.leaves((state.target_cache, state.drafter_state))
  lengths = [leaf for leaf in caches if leaf.ndim == 1 and jnp.issubdtype(leaf.dtype, jnp.integer)]
  text = np.asarray(state.tokens)[index, :int(state.length[index])]
  return [text.tobytes()] + [np.asarray(leaf)[index].tobytes() for leaf in (
      state.length, state.status, *jax.tree.leaves(stats), *lengths)]


def finished_rows_are_inert():
  """A row that stopped, by itself or from outside, is fed, judged and counted no more while others run."""
  pair = toy.toy_pair(vocab_size=5, seed=3)
  requests = [Request(prompt=(1, 2), max_new_tokens=n) for n in (3, 12, 12)]
  arrays = exactness.arrays(requests, vocab_size=5, dtype=np.float32)
  for decoder in (_routed(pair, router=routers.RandomRouter(rate=0.6), chunk=2), _sequence(pair, 1.0)):
    decoder = jax.tree.map(np.asarray, decoder)
    init = jax.jit(lambda decoder, params, requests: decoder.init(params, requests, 17), compiler_options=_CHEAP)
    step = jax.jit(lambda decoder, params, state: decoder.step(params, state), compiler_options=_CHEAP)
    state = init(decoder, pair.params, arrays)
    for _ in range(4):
      state = step(decoder, pair.params, state)
    state = state.replace(status=jnp.where(jnp.array([False, True, False]), types.Status.STOP, state.status))
    kept = {}
    for _ in range(30):
      for index in np.flatnonzero(np.asarray(state.status) != types.Status.RUNNING):
        now = _integers(state, index)
        _check(kept.setdefault(index, now) == now, f'{type(decoder).__name__}: row {index} changed after it had stopped')
      state = step(decoder, pair.params, state)
    _check(len(kept) == 3, f'only {len(kept)} rows stopped')


def broken_law_stops_its_reader():
  """NaN from the model that is asked stops the row, NaN from the other does not."""
  pair = toy.toy_pair(vocab_size=4, seed=5)
  for broken, status in (('drafter', types.Status.NONFINITE_DRAFTER), ('target', types.Status.NONFINITE)):
    table = np.array(pair.params[broken]['table'])
    table[:, 3] = np.nan
    params = pair.params | {broken: pair.params[broken] | {'table': table}}
    allowed = W(allowed_tokens=(True, True, True, False))
    arrays = exactness.arrays(
        [Request(prompt=(3, 1), max_new_tokens=4, warp=allowed)], vocab_size=4, dtype=np.float32)
    for asked, rate in (('drafter', 0.0), ('target', 1.0)):
      decoder = _routed(pair, router=routers.RandomRouter(rate=rate))
      got = int(detectors.decode(decoder, params, arrays, capacity=9).status[0])
      expected = status if asked == broken else types.Status.LIMIT
      _check(got == expected, f'{asked} asked, {broken} broken: {types.Status(got).name}')


PROBE = (0.7, -1.1, 0.4), -0.3  # kernel on the drafter's logits, bias


@_with_x64
def backoff_law():
  """The joint law of backoff decoding by each divergence and by a probe, and its expected counters."""
  pair = _pair()
  pair = dataclasses.replace(pair, params=pair.params | {'router': toy.linear_probe(*PROBE)})
  for router, deferral in (
      (routers.KLOracle(threshold=0.3), routing_oracles.divergence(0.3)),
      (routers.KLOracle(threshold=0.3, direction='drafter_target'), routing_oracles.divergence(0.3, 'drafter_target')),
      (routers.KLOracle(threshold=0.3, is_flipped=True), routing_oracles.divergence(0.3, is_flipped=True)),
      (routers.LearnedRouter(threshold=0.45), routing_oracles.probe(0.45, *PROBE))):
    expected = lambda models, router=router, deferral=deferral: routing_oracles.token_cascade(
        models, deferral, needs_target=router.needs_target)
    found = _found(_routed(pair, router=router), pair, expected, rows=4)
    worst = max(max(one.law, one.mass, one.counters) for one in found)
    _check(worst <= 1e-11, f'{router}: the joint law or a counter is off by {worst:.2e}')


def probe_by_hand():
  """A probe standardises its features, divides its logit by the temperature and interpolates between its knots."""
  probe = toy.linear_probe((1.0, -1.0), 0.5) | {
      'mean': np.array([1.0, 0.0]), 'scale': np.array([2.0, 1.0]), 'temperature': np.array(2.0)}
  features = jnp.array([3.0, -1.0], jnp.float32)  # standardised (1, -1): log-odds 2.5, at temperature 2 1.25
  knots = {'x': np.array([1.0, 2.0]), 'y': np.array([0.2, 0.6])}
  for params, expected in ((probe, 0.7773), (probe | {'knots': knots}, 0.3)):
    found = float(probes.probability(jax.tree.map(jnp.float32, params), features))
    _check(abs(found - expected) < 1e-4, f'{found} not {expected}')


DETECTORS = {function.__name__: function for function in (
    token_cascade_law, token_cascade_counters, sequence_cascade_law, routers_see_no_target,
    second_answer_has_its_own_random_numbers, finished_rows_are_inert, broken_law_stops_its_reader,
    backoff_law, probe_by_hand)}
