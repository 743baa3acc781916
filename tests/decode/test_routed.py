"""Relations of the routed loop through the jit boundary: its two extremes, independence of rows, and what compiles."""

from typing import Any, ClassVar

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import (
    CAPACITY, FAMILIES, MIXED, V, arrays, decoded, family_models, family_requests, request, row, rows, text, texts)

import specjax
from specjax import routers
from specjax.core import errors
from specjax.core import types
from specjax.decode import autoregressive
from specjax.decode import feeding
from specjax.decode import routed
from specjax.decode import run
from specjax.testing import executables
from specjax.testing import toy

ALWAYS, SOMETIMES, NEVER = -1.0, 0.7, 1.0


@pytest.fixture(scope='module')
def pair():
  return toy.toy_pair(vocab_size=V, seed=11, scale=0.8)


def cascade(pair, threshold=SOMETIMES, chunk=3, router=None):
  return routed.RoutedDecoder(
      target=pair.target, drafter=pair.drafter, router=router or routers.ChowRouter(threshold=threshold), chunk=chunk)


def alone(model, params, batch, **kwargs):
  """`Collected` of one model decoding by itself, without log-probabilities."""
  decoder = autoregressive.decoder(model).replace(with_log_probs=False)
  return decoded(decoder, {'target': params}, batch, **kwargs)


@pytest.mark.parametrize('has_encoder', [False, True])
@pytest.mark.parametrize('chunk', [1, 3])
def test_always_deferring_is_the_target_and_never_is_the_drafter(has_encoder, chunk):
  pair = toy.toy_pair(vocab_size=V, seed=5, has_encoder=has_encoder)
  batch = arrays([
      request((0,), one.max_new_tokens, (3,), encoder=one.prompt, temperature=one.warp.temperature) if has_encoder else one
      for one in MIXED])
  found = {threshold: decoded(cascade(pair, threshold, chunk), pair.params, batch) for threshold in (ALWAYS, NEVER)}
  target, drafter = (alone(getattr(pair, name), pair.params[name], batch) for name in ('target', 'drafter'))
  assert texts(found[ALWAYS]) == texts(target) and np.array_equal(found[ALWAYS].status, target.status)
  assert texts(found[NEVER]) == texts(drafter) and np.array_equal(found[NEVER].status, drafter.status)
  stats = found[ALWAYS].stats
  assert np.array_equal(stats.target_calls, stats.emitted) and np.array_equal(stats.drafter_calls, stats.emitted)
  assert np.array_equal(stats.target_passes, stats.target_calls)
  stats = found[NEVER].stats
  assert not stats.target_calls.any() and not stats.target_passes.any()
  assert np.array_equal(stats.drafter_calls, stats.emitted)


@pytest.mark.parametrize('name', FAMILIES)
def test_extremes_of_real_models(name):
  target, drafter, params = family_models(name)
  batch = arrays(family_requests(name, *MIXED), vocab_size=16)
  build = lambda threshold: routed.RoutedDecoder(
      target=target, drafter=drafter, router=routers.ChowRouter(threshold=threshold), chunk=4)
  assert texts(decoded(build(ALWAYS), params, batch)) == texts(alone(target, params['target'], batch))
  assert texts(decoded(build(NEVER), params, batch)) == texts(alone(drafter, params['drafter'], batch))


@pytest.mark.parametrize('chunk', [1, 2, 4, 7])
def test_the_chunk_changes_passes_and_nothing_else(pair, chunk):
  found, other = (decoded(cascade(pair, chunk=width), pair.params, arrays(MIXED)) for width in (chunk, 3))
  assert rows(found) == rows(other)
  assert 0 < found.stats.target_calls.sum() < found.stats.emitted.sum()


def test_passes_are_those_of_the_batch():
  """By hand: a router by position; chunk 2; the row that waits catches up in the other's passes and asks for none."""
  pair = toy.toy_pair(vocab_size=V, seed=3)

  @struct.dataclass(kw_only=True)
  class AtPositions:
    needs_target: ClassVar[bool] = False
    knobs: ClassVar[tuple[str, ...]] = ()
    positions: Any

    def __call__(self, params, inputs):
      return jnp.any(inputs.position == self.positions)

  router = AtPositions(positions=np.array([4, 7], np.int32))
  # Alone: prompt of 1; the deferral at 4 feeds 4 tokens (2 passes), the one at 7 feeds 3 (2 passes).
  single = decoded(cascade(pair, router=router, chunk=2), pair.params, arrays([request((1,), 8)]))
  assert single.stats.target_calls.tolist() == [2] and single.stats.target_passes.tolist() == [4]
  # A row of prompt 3 reaches position 4 two rounds earlier: row 0 has then 2 tokens and feeds both in the same pass.
  both = decoded(cascade(pair, router=router, chunk=2), pair.params, arrays([request((1,), 8), request((1, 2, 3), 6)]))
  assert text(both, 0) == text(single, 0) and both.stats.target_calls.tolist() == [2, 2]
  # One pass in each of round 2 (row 1 at 4: row 0 then covers 2), round 4 (row 0 at 4: row 1 then covers 6), round 5 (row 1
  # at 7: row 0 then covers 5) and round 7 (row 0 at 7; row 1 has stopped).
  assert both.stats.target_passes.tolist() == [4, 3]


def test_caches_follow_the_text(pair):
  """After every round each cache gives the logits of a fresh prefill of the text."""
  decoder = cascade(pair, chunk=2)
  state = run.prefill(decoder, pair.params, arrays(MIXED), capacity=CAPACITY)

  @jax.jit
  def probe(params, state):
    ones = jnp.ones_like(state.length, bool)
    result = []
    for name, cache in (('target', state.target_cache), ('drafter', state.drafter_state)):
      model = getattr(pair, name)
      fed = feeding.feed(
          model, params[name], cache, state.tokens, until=state.length, needed=ones, allowed=ones, width=2)
      _, fresh = model.prefill(params[name], types.Prompt(state.tokens, state.length), CAPACITY)
      pending = jnp.take_along_axis(state.tokens, state.length[:, None] - 1, axis=1)
      expected, _ = model.extend(params[name], fresh, pending, count=jnp.ones_like(state.length))
      result.append((fed.logits, expected.logits[:, 0], state.length - model.length(cache)))
    return result

  behind = set()
  for _ in range(10):
    running = np.asarray(state.status) == types.Status.RUNNING
    (target, fresh, lag), (drafter, fresh_drafter, one) = probe(pair.params, state)
    np.testing.assert_allclose(np.asarray(target)[running], np.asarray(fresh)[running], atol=1e-4)
    np.testing.assert_allclose(np.asarray(drafter)[running], np.asarray(fresh_drafter)[running], atol=1e-4)
    assert np.all(np.asarray(one)[running] == 1)
    behind |= set(np.asarray(lag)[running].tolist())
    state = run.step(decoder, pair.params, state)
  assert len(behind) > 2 and min(behind) == 1


@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize('router', [
    routers.ChowRouter(threshold=0.75), routers.RandomRouter(rate=0.3), routers.DiffOracle(threshold=0.05)])
def test_row_of_a_real_model_does_not_see_neighbours_slot_or_padding(name, router):
  """Bitwise, although neighbours decide in which passes a row catches up."""
  target, drafter, params = family_models(name)
  decoder = routed.RoutedDecoder(target=target, drafter=drafter, router=router, chunk=3)
  subjects = [request((3, 1, 9), 14, temperature=0.7), request((2, 8), 14, temperature=1.0)]
  others = [request((5,), 9), request((2, 4, 4, 8), 4, temperature=0.0), request((1, 1), 14, temperature=1.3)]
  for subject in subjects:
    results, calls = set(), None
    for slot, crowd, poison in ((0, others, 0), (2, others[::-1], -1), (3, [others[1]] * 3, 2**31 - 1)):
      batch = family_requests(name, *crowd[:slot], subject, *crowd[slot:])
      ids = [7 + i for i in range(slot)] + [99] + [20 + i for i in range(3 - slot)]
      found = decoded(decoder, params, arrays(batch, vocab_size=16, addresses=ids, poison=poison))
      results.add(row(found, slot))
      calls = int(found.stats.target_calls[slot])
    assert len(results) == 1 and 0 < calls < 14


def test_the_same_request_in_every_row_gives_the_same_result(pair):
  for one in MIXED:
    assert len(set(rows(decoded(cascade(pair), pair.params, arrays([one] * 4, addresses=[5] * 4))))) == 1


@pytest.mark.parametrize('field', ['seed', 'example_id', 'sample_index'])
def test_samples_and_examples_and_seeds_differ(pair, field):
  batch = arrays([request((1, 2), 20)] * 4, addresses=[5] * 4).replace(**{field: np.arange(4, dtype=np.uint32)})
  assert len({tuple(one) for one in texts(decoded(cascade(pair), pair.params, batch))}) == 4


def test_stopping_and_going_on_is_running_through(pair):
  through = decoded(cascade(pair), pair.params, arrays(MIXED))
  for chunks in ((1, 1000), (2, 3, 1000), (1,) * 20):
    assert rows(decoded(cascade(pair), pair.params, arrays(MIXED), chunks=chunks)) == rows(through)
  state = run.prefill(cascade(pair), pair.params, arrays(MIXED), capacity=CAPACITY)
  for _ in range(20):
    state = run.step(cascade(pair), pair.params, state)
  assert rows(run.collect(state)) == rows(through)


def test_finished_rows_are_inert_and_can_be_replaced_without_compiling(pair):
  decoder = cascade(pair)
  through = decoded(decoder, pair.params, arrays(MIXED))
  state = run.prefill(decoder, pair.params, arrays(MIXED), capacity=CAPACITY)
  state = run.finish(run.decode(decoder, pair.params, state, max_steps=1), np.array([True, False, False, False]))
  kept = row(run.collect(state), 0)
  fresh = run.prefill(decoder, pair.params, arrays(MIXED[::-1], addresses=[3, 2, 1, 0]), capacity=CAPACITY)
  state = run.decode(decoder, pair.params, state, max_steps=1000)
  stopped = run.collect(state)
  assert stopped.status[0] == types.Status.STOP and row(stopped, 0) == kept and rows(stopped)[1:] == rows(through)[1:]
  state = run.insert(state, np.array([0, 2], np.int32), jax.tree.map(lambda x: x[:2], fresh))
  compiled = len(run.compile_log())
  replaced = run.collect(run.decode(decoder, pair.params, state, max_steps=1000))
  assert row(replaced, 0) == row(through, 3) and row(replaced, 2) == row(through, 2)
  assert len(run.compile_log()) == compiled


@pytest.mark.parametrize('router, broken, status', [
    (routers.ChowRouter(threshold=ALWAYS), 'drafter', types.Status.NONFINITE_DRAFTER),
    (routers.ChowRouter(threshold=SOMETIMES), 'drafter', types.Status.NONFINITE_DRAFTER),
    (routers.EntropyRouter(threshold=-1.0), 'drafter', types.Status.NONFINITE_DRAFTER),
    (routers.RandomRouter(rate=0.0), 'drafter', types.Status.NONFINITE_DRAFTER),
    (routers.RandomRouter(rate=1.0), 'target', types.Status.NONFINITE),
    (routers.ChowRouter(threshold=ALWAYS), 'target', types.Status.NONFINITE),
    (routers.DiffOracle(threshold=1.0), 'target', types.Status.NONFINITE),
    (routers.DiffOracle(threshold=-1.0), 'drafter', types.Status.NONFINITE_DRAFTER),
    # Laws that are not read break nothing.
    (routers.ChowRouter(threshold=NEVER), 'target', types.Status.LIMIT),
    (routers.RandomRouter(rate=0.0), 'target', types.Status.LIMIT),
    (routers.RandomRouter(rate=1.0), 'drafter', types.Status.LIMIT)])
def test_a_broken_law_stops_the_row_that_reads_it(pair, router, broken, status):
  """Token 6 is poison in one model's table and stands in one prompt; nobody may draw it."""
  table = np.array(pair.params[broken]['table'])
  table[:, 6] = np.nan
  params = pair.params | {broken: pair.params[broken] | {'table': table}}
  batch = arrays([
      request((1, 6), 9), request((3,), 12, temperature=0.0), request((5, 0, 1), 7, top_k=3), request((2, 2, 4), 15)])
  allowed = np.ones((4, V), bool)
  allowed[:, 6] = False
  batch = batch.replace(sampling=batch.sampling.replace(allowed_tokens=allowed))
  healthy = decoded(cascade(pair, router=router), pair.params, batch)
  found = decoded(cascade(pair, router=router), params, batch)
  assert found.status[0] == status
  assert found.length[0] == (healthy.length[0] if status == types.Status.LIMIT else found.prompt_length[0])
  assert rows(found)[1:] == rows(healthy)[1:]


def test_a_row_without_room_stops_with_capacity(pair):
  batch = arrays([request((1, 2), 20), request((3,), 3)])
  full, tight = (decoded(cascade(pair, chunk=4), pair.params, batch, capacity=size) for size in (30, 14))
  length = tight.length[0]
  assert tight.status[0] == types.Status.CAPACITY and 14 - 4 < length <= 14
  assert np.array_equal(tight.tokens[0, :length], full.tokens[0, :length]) and row(tight, 1) == row(full, 1)


@pytest.mark.parametrize('router', routers.__all__)
def test_a_sweep_over_thresholds_and_temperatures_is_one_executable(pair, router):
  run.clear()
  kind, found = getattr(routers, router), set()
  probe = {'router': toy.linear_probe(np.linspace(-1, 1, pair.drafter.vocab_size))} if router == 'LearnedRouter' else {}
  for i, threshold in enumerate(np.linspace(-0.2, 1.1, 40)):
    batch = arrays([request((1, 2), 4, temperature=0.2 * (i % 10), top_k=i % 5, top_p=1 - 0.01 * i)] * 4)
    decoder = cascade(pair, router=kind(**{kind.knobs[0]: float(threshold)}))
    found.add(rows(decoded(decoder, pair.params | probe, batch))[0])
  assert [one.name for one in run.compile_log()] == ['prefill', 'decode'] and len(found) > 3


@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize('router', [routers.ChowRouter(threshold=0.5), routers.DiffOracle(threshold=0.0)])
def test_compiled_loop_has_no_callback_and_copies_no_cache(name, router):
  target, drafter, params = family_models(name)
  decoder = routed.RoutedDecoder(target=target, drafter=drafter, router=router, chunk=3)
  state = run.prefill(decoder, params, arrays(family_requests(name, *MIXED), vocab_size=16), capacity=CAPACITY)
  text = run.compiled('decode', decoder, params, state, np.int32(1)).as_text()
  buffers = {leaf.shape for leaf in jax.tree.leaves((state.target_cache, state.drafter_state)) if leaf.ndim == 4}
  assert buffers and not executables.host_callbacks(text)
  assert not executables.copies_inside_loops(text, buffers)


def test_generate_runs_a_token_cascade(pair):
  result = specjax.generate(
      pair, [[1, 2, 3], [4], [5, 6]], method=specjax.token_cascade(router=specjax.ChowRouter(threshold=0.7), chunk=4),
      sampling=specjax.SamplingParams(temperature=1.0), max_new_tokens=12, seed=0, batch_size=4)
  assert result.log_probs is None and result.length.tolist() == [12, 12, 12]
  assert 0 < result.stats.target_calls.sum() < 36 and np.all(result.stats.target_passes >= result.stats.target_calls)


@pytest.mark.parametrize('arguments', [
    dict(router=routers.ChowRouter(threshold=float('nan')), chunk=4),
    dict(router=routers.RandomRouter(rate='half'), chunk=4),
    dict(router=routers.ChowRouter(threshold=0.5), chunk=0), dict(router=routers.ChowRouter(threshold=0.5), chunk=2.5)])
def test_bad_arguments_are_refused_before_anything_compiles(arguments):
  with pytest.raises(errors.ParamError):
    specjax.token_cascade(**arguments)
