"""The jit boundary refuses what the device would drop or misread without a word."""

import concurrent.futures

import jax
import numpy as np
import pytest

import specjax
from specjax.core import errors
from specjax.decode import generate
from specjax.decode import run
from specjax.testing import toy


@pytest.fixture(scope='module')
def work():
  pair = toy.toy_pair(vocab_size=7, seed=0)
  return pair, generate.plan(
      pair, [[1, 2], [3], [4], [5]], method=specjax.speculative(num_draft_tokens=2),
      sampling=specjax.SamplingParams(temperature=1.0), max_new_tokens=8, seed=0, num_samples=1, batch_size=4,
      example_ids=None, eos_ids=())


@pytest.mark.parametrize('rows', [[0, 4], [-1, 0], [1, 1], [0], [0, 1, 2], [[0, 1]], [0.0, 1.0], 2])
def test_rows_that_cannot_be_inserted_are_refused(work, rows):
  pair, batches = work
  state = run.prefill(batches.decoder, pair.params, batches.requests[0], capacity=batches.capacity)
  before = len(run.compile_log())
  with pytest.raises(errors.ParamError, match='rows to insert'):
    run.insert(state, rows, jax.tree.map(lambda x: x[:2], state))
  assert len(run.compile_log()) == before


def test_rows_may_be_a_list(work):
  pair, batches = work
  state = run.prefill(batches.decoder, pair.params, batches.requests[0], capacity=batches.capacity)
  fresh = jax.tree.map(lambda x: x[:2], state)
  tokens = np.asarray(state.tokens)
  state = run.insert(state, [3, 0], fresh)
  np.testing.assert_array_equal(state.tokens, tokens[[1, 1, 2, 0]])


def test_prompts_wider_than_the_capacity_are_refused(work):
  pair, batches = work
  width = batches.requests[0].prompt.tokens.shape[1]
  with pytest.raises(errors.LimitError, match=f'capacity: got {width - 1}, expected at least the {width} tokens'):
    run.prefill(batches.decoder, pair.params, batches.requests[0], capacity=width - 1)


def test_what_several_threads_compile_ahead_is_compiled_once_and_used(work):
  pair, batches = work
  run.clear()
  ahead = lambda _: run.compile_ahead(batches.decoder, pair.params, batches.requests[0], capacity=batches.capacity)
  with concurrent.futures.ThreadPoolExecutor(max_workers=3) as pool:
    records = [record.name for found in pool.map(ahead, range(3)) for record in found]
  assert sorted(records) == ['decode', 'prefill'] and len(run.compile_log()) == 2
  state = run.prefill(batches.decoder, pair.params, jax.device_put(batches.requests[0]), capacity=batches.capacity)
  run.decode(batches.decoder, pair.params, state, max_steps=20)
  assert len(run.compile_log()) == 2
