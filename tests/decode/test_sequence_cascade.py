"""Relations of the sequence cascade through the jit boundary: both phases, their random numbers, rows, what compiles."""

import jax
import numpy as np
import pytest
from routing_cases import (
    CAPACITY, FAMILIES, MIXED, V, arrays, decoded, family_models, family_requests, request, row, rows, text, texts)

import specjax
from specjax.core import errors
from specjax.core import types
from specjax.decode import autoregressive
from specjax.decode import run
from specjax.decode import sequence_cascade
from specjax.ops import keys
from specjax.testing import executables
from specjax.testing import oracles
from specjax.testing import routing_oracles
from specjax.testing import toy

ALWAYS, NEVER = 1.0, -1e9  # thresholds of the mean at which every answer is written again, or none
KINDS = (('mean_log_prob', None), ('sum_log_prob', None), ('minimum', None), ('quantile', 0.25))


@pytest.fixture(scope='module')
def pair():
  return toy.toy_pair(vocab_size=V, seed=11, scale=0.8)


def cascade(pair, threshold, confidence='mean_log_prob', quantile=None):
  return sequence_cascade.SequenceCascade(
      target=pair.target, drafter=pair.drafter, confidence=confidence, threshold=threshold, quantile=quantile)


def alone(model, params, batch):
  """`Collected` of one model decoding by itself, without log-probabilities."""
  return decoded(autoregressive.decoder(model).replace(with_log_probs=False), {'target': params}, batch)


def test_a_threshold_below_everything_keeps_the_drafters_answers(pair):
  batch = arrays(MIXED)
  found, drafter = decoded(cascade(pair, NEVER), pair.params, batch), alone(pair.drafter, pair.params['drafter'], batch)
  assert texts(found) == texts(drafter) and np.array_equal(found.status, drafter.status)
  assert np.array_equal(found.stats.drafter_calls, found.stats.emitted)
  assert not found.stats.target_calls.any() and not found.stats.target_passes.any()


@pytest.mark.parametrize('name', FAMILIES)
def test_a_threshold_above_everything_is_the_target_with_random_numbers_of_its_own(name, monkeypatch):
  """Token for token the target decoding alone at the addresses of phase 1."""
  target, drafter, params = family_models(name)
  batch = arrays(family_requests(name, *MIXED), vocab_size=16)
  decoder = sequence_cascade.SequenceCascade(
      target=target, drafter=drafter, confidence='mean_log_prob', threshold=ALWAYS)
  found = decoded(decoder, params, batch)
  fresh = alone(target, params['target'], batch)
  original = keys.round_uniforms
  monkeypatch.setattr(keys, 'round_uniforms', lambda key, start, **rest: original(
      key, keys.phase_start(start, jax.numpy.ones_like(start)), **rest))
  run.clear()
  expected = alone(target, params['target'], batch)
  run.clear()
  assert texts(found) == texts(expected)
  # Greedy rows need no random numbers, the others must not have those of the first phase.
  differs = [a != b for a, b in zip(texts(found), texts(fresh))]
  greedy = [one.warp.temperature == 0 for one in MIXED]
  assert not any(d for d, g in zip(differs, greedy) if g) and any(differs)
  stats = found.stats
  assert np.array_equal(stats.target_calls, stats.emitted)
  assert np.array_equal(stats.steps, stats.drafter_calls + stats.emitted)


@pytest.mark.parametrize('kind, level', KINDS)
def test_confidence_of_an_answer_is_that_of_the_drawn_tokens_at_temperature_one(pair, kind, level):
  """Each row is written again exactly at thresholds above the confidence worked out from the drafter's answer."""
  batch = arrays(MIXED)
  drafter = alone(pair.drafter, pair.params['drafter'], batch)
  tokens = np.asarray(drafter.tokens)
  own = drafter_probs(pair, tokens)
  for i in range(4):
    span = range(int(drafter.prompt_length[i]), int(drafter.length[i]))
    probs = [float(own[i, t - 1, tokens[i, t]]) for t in span]
    sure = routing_oracles.confidence(kind, probs, level)
    for shift, again in ((1e-3, True), (-1e-3, False)):
      found = decoded(cascade(pair, sure + shift, kind, level), pair.params, batch)
      assert (found.stats.target_calls[i] > 0) == again
      assert again or text(found, i) == text(drafter, i)


def drafter_probs(pair, tokens):
  """float64[B, L, V], the drafter's probabilities at temperature 1 behind every token."""
  logits = oracles.toy_forward(pair.drafter, pair.params['drafter'])(types.TrainingBatch(tokens, None, None, None, None))
  return np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)


def test_rows_of_both_phases_run_side_by_side(pair):
  """Passes: the target runs while a row that is written again is live, and at no other time."""
  batch = arrays([request((1, 2), n) for n in (3, 6, 6, 6)], addresses=[1, 2, 3, 4])
  found = decoded(cascade(pair, ALWAYS), pair.params, batch)
  # Row 0 starts again behind round 3 and ends with round 6; the others start again there and end with round 12.
  assert found.stats.steps.tolist() == [6, 12, 12, 12]
  assert found.stats.target_passes.tolist() == [3, 9, 9, 9] and found.stats.target_calls.tolist() == [3, 6, 6, 6]


@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize('kind, level, threshold', [('mean_log_prob', None, -2.55), ('quantile', 0.5, 0.078)])
def test_row_of_a_real_model_does_not_see_neighbours_slot_or_padding(name, kind, level, threshold):
  target, drafter, params = family_models(name)
  decoder = sequence_cascade.SequenceCascade(
      target=target, drafter=drafter, confidence=kind, threshold=threshold, quantile=level)
  others = [request((5,), 9), request((2, 4, 4, 8), 4, temperature=0.0), request((1, 1), 14, temperature=1.3)]
  seen = set()
  for subject in (request((3, 1, 9), 12, temperature=0.7), request((2, 8), 12), request((4,), 12, temperature=1.5)):
    results = set()
    for slot, crowd, poison in ((0, others, 0), (2, others[::-1], -1), (3, [others[1]] * 3, 2**31 - 1)):
      batch = family_requests(name, *crowd[:slot], subject, *crowd[slot:])
      ids = [7 + i for i in range(slot)] + [99] + [20 + i for i in range(3 - slot)]
      found = decoded(decoder, params, arrays(batch, vocab_size=16, addresses=ids, poison=poison))
      results.add(row(found, slot))
      seen.add(bool(found.stats.target_calls[slot]))
    assert len(results) == 1
  assert seen == {False, True}


def test_stopping_and_going_on_is_running_through(pair):
  through = decoded(cascade(pair, -1.6), pair.params, arrays(MIXED))
  for chunks in ((1, 1000), (2, 3, 1000), (1,) * 40):
    assert rows(decoded(cascade(pair, -1.6), pair.params, arrays(MIXED), chunks=chunks)) == rows(through)


def test_finished_rows_are_inert_and_can_be_replaced_without_compiling(pair):
  """A row that is stopped from outside is not judged: it does not start again."""
  decoder = cascade(pair, ALWAYS)
  through = decoded(decoder, pair.params, arrays(MIXED))
  state = run.prefill(decoder, pair.params, arrays(MIXED), capacity=CAPACITY)
  state = run.finish(run.decode(decoder, pair.params, state, max_steps=2), np.array([True, False, False, False]))
  kept = row(run.collect(state), 0)
  state = run.decode(decoder, pair.params, state, max_steps=1000)
  stopped = run.collect(state)
  assert stopped.status[0] == types.Status.STOP and row(stopped, 0) == kept and rows(stopped)[1:] == rows(through)[1:]
  fresh = run.prefill(decoder, pair.params, arrays(MIXED[::-1], addresses=[3, 2, 1, 0]), capacity=CAPACITY)
  state = run.insert(state, np.array([0, 2], np.int32), jax.tree.map(lambda x: x[:2], fresh))
  compiled = len(run.compile_log())
  replaced = run.collect(run.decode(decoder, pair.params, state, max_steps=1000))
  assert row(replaced, 0) == row(through, 3) and row(replaced, 2) == row(through, 2)
  assert len(run.compile_log()) == compiled


@pytest.mark.parametrize('threshold, broken, status', [
    (NEVER, 'drafter', types.Status.NONFINITE_DRAFTER), (ALWAYS, 'drafter', types.Status.NONFINITE_DRAFTER),
    (ALWAYS, 'target', types.Status.NONFINITE), (NEVER, 'target', types.Status.LIMIT)])
def test_a_broken_law_stops_the_row_that_reads_it(pair, threshold, broken, status):
  """Token 6 is poison in one model's table and stands in one prompt; nobody may draw it."""
  table = np.array(pair.params[broken]['table'])
  table[:, 6] = np.nan
  params = pair.params | {broken: pair.params[broken] | {'table': table}}
  batch = arrays([
      request((1, 6), 9), request((3,), 12, temperature=0.0), request((5, 0, 1), 7, top_k=3), request((2, 2, 4), 15)])
  allowed = np.ones((4, V), bool)
  allowed[:, 6] = False
  batch = batch.replace(sampling=batch.sampling.replace(allowed_tokens=allowed))
  healthy, found = (decoded(cascade(pair, threshold), p, batch) for p in (pair.params, params))
  assert found.status[0] == status and rows(found)[1:] == rows(healthy)[1:]
  assert found.length[0] == (healthy.length[0] if status == types.Status.LIMIT else found.prompt_length[0])


def test_a_row_without_room_stops_with_capacity_in_both_phases(pair):
  batch = arrays([request((1, 2), 20), request((3,), 3)])
  for threshold in (NEVER, ALWAYS):
    full, tight = (decoded(cascade(pair, threshold), pair.params, batch, capacity=size) for size in (30, 14))
    assert tight.status[0] == types.Status.CAPACITY and tight.length[0] == 14
    assert np.array_equal(tight.tokens[0, :14], full.tokens[0, :14]) and row(tight, 1) == row(full, 1)
    assert tight.stats.target_calls[0] == (12 if threshold == ALWAYS else 0)


def test_a_sweep_over_thresholds_and_levels_is_one_executable_per_confidence(pair):
  for kind, level in KINDS:
    run.clear()
    found = set()
    for i, threshold in enumerate(np.linspace(-3.0, 1.0, 20)):
      quantile = None if level is None else i / 20
      decoder = cascade(pair, float(threshold), kind, quantile)
      found.add(rows(decoded(decoder, pair.params, arrays([request((1, 2), 8, temperature=0.2 * (i % 10))] * 4)))[0])
    assert [one.name for one in run.compile_log()] == ['prefill', 'decode'] and len(found) > 3


@pytest.mark.parametrize('name', FAMILIES)
def test_compiled_loop_has_no_callback_and_copies_no_cache(name):
  target, drafter, params = family_models(name)
  decoder = sequence_cascade.SequenceCascade(
      target=target, drafter=drafter, confidence='quantile', threshold=0.1, quantile=0.5)
  state = run.prefill(decoder, params, arrays(family_requests(name, *MIXED), vocab_size=16), capacity=CAPACITY)
  compiled = run.compiled('decode', decoder, params, state, np.int32(1)).as_text()
  buffers = {leaf.shape for leaf in jax.tree.leaves((state.target_cache, state.drafter_state)) if leaf.ndim == 4}
  assert buffers and not executables.host_callbacks(compiled)
  assert not executables.copies_inside_loops(compiled, buffers)


def test_generate_runs_a_sequence_cascade_and_stream_refuses_it(pair):
  arguments = dict(
      sampling=specjax.SamplingParams(temperature=1.0), max_new_tokens=40, seed=0,
      method=specjax.sequence_cascade(confidence='minimum', threshold=2.0))
  result = specjax.generate(pair, [[1, 2, 3], [4], [5, 6]], batch_size=4, **arguments)
  # Twice as many rounds as tokens: the loop must not stop in the middle of the second answer.
  assert result.status == [types.Status.LIMIT] * 3 and result.length.tolist() == [40, 40, 40] and result.log_probs is None
  assert result.stats.steps.tolist() == [80, 80, 80]
  with pytest.raises(errors.ParamError, match='takes no token back'):
    next(specjax.stream(pair, [[1, 2, 3]], **arguments))


@pytest.mark.parametrize('arguments', [
    dict(confidence='sure', threshold=0.5), dict(confidence='minimum', threshold=float('inf')),
    dict(confidence='quantile', threshold=0.5), dict(confidence='minimum', threshold=0.5, quantile=0.5),
    dict(confidence='quantile', threshold=0.5, quantile=1.5)])
def test_bad_arguments_are_refused_before_anything_compiles(arguments):
  with pytest.raises(errors.ParamError):
    specjax.sequence_cascade(**arguments)
