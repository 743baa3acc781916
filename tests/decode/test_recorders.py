"""The summary recorder through the jit boundary: what a row keeps, and what it never sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import rules
from specjax.core import types
from specjax.decode import recorders
from specjax.decode import run
from specjax.decode import speculative
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import toy

V, K, CAPACITY = 6, 3, 40
W = oracles.Warp
ASKED = [
    exactness.Request(prompt=(1, 2), max_new_tokens=20), exactness.Request(prompt=(3,), max_new_tokens=9, eos_ids=(2,)),
    exactness.Request(prompt=(5, 0, 1), max_new_tokens=16, warp=W(temperature=0.7)),
    exactness.Request(prompt=(4,), max_new_tokens=0)]


@pytest.fixture(scope='module')
def pair():
  return toy.toy_pair(vocab_size=V, seed=12, scale=0.5)


def decoder_of(pair, rule=None, recorder=recorders.SummaryRecorder()):
  return speculative.SpeculativeDecoder(
      target=pair.target, drafter=drafters.ModelDrafter(model=pair.drafter, num_draft_tokens=K),
      rule=rule or rules.Chow(threshold=0.6), recorder=recorder)


def arrays(asked=ASKED):
  return exactness.arrays(asked, vocab_size=V, dtype=np.float32)


def decoded(decoder, params, requests, chunks=(100,)):
  state = run.prefill(decoder, params, requests, capacity=CAPACITY)
  for steps in chunks:
    state = run.decode(decoder, params, state, max_steps=steps)
  return state


def test_a_record_does_not_change_what_is_decoded(pair):
  plain = run.collect(decoded(decoder_of(pair, recorder=None), pair.params, arrays()))
  found = run.collect(decoded(decoder_of(pair), pair.params, arrays()))
  assert plain.record is None
  np.testing.assert_array_equal(plain.tokens, found.tokens)
  for ours, theirs in zip(jax.tree.leaves(found.stats), jax.tree.leaves(plain.stats)):
    np.testing.assert_array_equal(ours, theirs)


def test_sums_lie_between_zero_and_the_evaluated_positions(pair):
  found = run.collect(decoded(decoder_of(pair), pair.params, arrays()))
  evaluated = found.stats.evaluated
  assert evaluated[3] == 0 and np.all(evaluated[:3] > 0)
  for name, values in found.record._asdict().items():
    assert values.dtype == np.float32 and values.shape == (4,) and np.all(values >= 0) and np.all(np.isfinite(values))
    assert np.all(values <= evaluated + 1e-4) or name == 'kl_to_target'
    assert values[3] == 0
  # Chow's deferral is 0 or 1 at each position.
  np.testing.assert_allclose(found.record.deferral, np.round(found.record.deferral))


def test_rows_do_not_depend_on_chunks_neighbours_or_being_finished(pair):
  decoder = decoder_of(pair)
  whole = run.collect(decoded(decoder, pair.params, arrays())).record
  again = run.collect(decoded(decoder, pair.params, arrays(), chunks=(1, 2, 100, 100))).record
  jax.tree.map(np.testing.assert_array_equal, whole, again)
  other = ASKED[:1] + [exactness.Request(prompt=(0,), max_new_tokens=20, warp=W(temperature=1.5))] * 3
  crowd = run.collect(decoded(decoder, pair.params, arrays(other).replace(eos_ids=arrays().eos_ids))).record
  for ours, theirs in zip(whole, crowd):
    assert ours[0] == theirs[0]


def test_laws_of_positions_that_were_not_evaluated_may_be_broken(pair):
  """The target is NaN behind token 5: rows that emit it stop, and no sum of any row is NaN."""
  table = np.array(pair.params['target']['table'])
  table[:, 5] = np.nan
  params = pair.params | {'target': pair.params['target'] | {'table': table}}
  asked = [exactness.Request(prompt=(i % 5,), max_new_tokens=20) for i in range(8)]
  for rule in (rules.Lossless(), rules.Chow(threshold=0.6)):
    found = run.collect(decoded(decoder_of(pair, rule), params, arrays(asked)))
    assert types.Status.NONFINITE in found.status
    assert all(np.all(np.isfinite(values)) for values in found.record)


def test_rows_with_their_records_are_replaced_without_compiling(pair):
  decoder = decoder_of(pair)
  state = decoded(decoder, pair.params, arrays())
  expected = run.collect(state).record
  fresh = run.prefill(decoder, pair.params, arrays(ASKED[::-1]).replace(
      example_id=np.array([3, 2, 1, 0], np.uint32), eos_ids=arrays().eos_ids[::-1]), capacity=CAPACITY)
  state = run.insert(state, np.arange(4, dtype=np.int32), fresh)
  assert not any(values.any() for values in run.collect(state).record)
  compiled = len(run.compile_log())
  again = run.collect(run.decode(decoder, pair.params, state, max_steps=100)).record
  assert len(run.compile_log()) == compiled
  for ours, theirs in zip(expected, again):
    np.testing.assert_array_equal(ours, theirs[::-1])


def test_without_a_recorder_nothing_is_computed(pair):
  """The step's operations: those of the recorder are there with it and absent without."""
  state = run.prefill(decoder_of(pair, rules.Lossless(), None), pair.params, arrays(), capacity=CAPACITY)

  def operations(recorder):
    decoder = decoder_of(pair, rules.Lossless(), recorder)
    record = None if recorder is None else recorder.init(4, CAPACITY)
    lowered = jax.jit(decoder.step).lower(pair.params, state.replace(record=record))
    return lowered.compile().as_text().count('= ')

  class Nothing:

    def init(self, batch, capacity):
      return jnp.zeros((batch,))

    def update(self, record, **given):
      return record

  plain, nothing, summary = operations(None), operations(Nothing()), operations(recorders.SummaryRecorder())
  assert nothing <= plain + 4 and summary > plain + 10
