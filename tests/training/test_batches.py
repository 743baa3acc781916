"""Batches: a function of (seed, step), every row once per epoch."""

import numpy as np
import pytest

from specjax.core import errors
from specjax.training import batches

SIZES = dict(num_examples=23, batch_size=4, seed=7)


def packed(count=5, length=6):
  rng = np.random.default_rng(0)
  whole = lambda: rng.integers(1, 9, (count, length)).astype(np.int16)
  segments = np.ones((count, length), np.int16)
  segments[:, -1] = 0
  weights = np.zeros((count, length), np.float16)
  weights[:, 2:5] = 1
  return batches.PackedData(dict(
      tokens=whole(), targets=whole(), positions=whole(), segments=segments, weights=weights))


def test_indices_do_not_depend_on_what_was_asked_before():
  forward = [batches.batch_indices(step, **SIZES) for step in range(15)]
  backward = [batches.batch_indices(step, **SIZES) for step in reversed(range(15))][::-1]
  np.testing.assert_array_equal(forward, backward)


def test_an_epoch_reads_no_row_twice_and_the_next_one_in_another_order():
  per_epoch = SIZES['num_examples'] // SIZES['batch_size']
  epochs = [np.concatenate([batches.batch_indices(epoch * per_epoch + i, **SIZES) for i in range(per_epoch)])
            for epoch in range(3)]
  for epoch in epochs:
    assert len(set(epoch.tolist())) == per_epoch * SIZES['batch_size']
    assert set(epoch.tolist()) <= set(range(SIZES['num_examples']))
  assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])


def test_order_is_that_of_the_first_release():
  # A run that is resumed by a newer version must see the batches of the version that began it.
  np.testing.assert_array_equal(batches.batch_indices(0, **SIZES), [15, 4, 18, 3])
  np.testing.assert_array_equal(batches.batch_indices(12, **SIZES), [20, 4, 1, 3])


def test_another_seed_is_another_order():
  other = dict(SIZES, seed=8)
  assert not np.array_equal(batches.batch_indices(0, **SIZES), batches.batch_indices(0, **other))


def test_fewer_rows_than_a_batch_is_refused():
  with pytest.raises(errors.DataError, match='batch_size'):
    batches.batch_indices(0, num_examples=3, batch_size=4, seed=0)


def test_input_weight_goes_to_input_tokens_only():
  data = packed()
  index = np.array([3, 0])
  plain, weighted = data.rows(index), data.rows(index, input_weight=0.25)
  np.testing.assert_array_equal(plain.weights, [[0, 0, 1, 1, 1, 0]] * 2)
  np.testing.assert_array_equal(weighted.weights, [[0.25, 0.25, 1, 1, 1, 0]] * 2)
  np.testing.assert_array_equal(plain.tokens, data.arrays['tokens'][index])
  assert plain.tokens.dtype == np.int32 and weighted.weights.dtype == np.float32


def test_tokens_counted_are_those_that_are_not_padding():
  data = packed()
  assert batches.count_tokens(data.rows(np.array([0, 1]))) == 10
  encoder = dict(data.arrays, **{f'encoder_{name}': data.arrays[name] for name in ('tokens', 'positions', 'segments')})
  assert batches.count_tokens(batches.PackedData(encoder).rows(np.array([0, 1]))) == 20


def test_fingerprint_sees_one_changed_token():
  data, same = packed(), packed()
  assert data.fingerprint() == same.fingerprint()
  same.arrays['tokens'][4, 5] += 1
  assert data.fingerprint() != same.fingerprint()


@pytest.mark.parametrize('change', [dict(labels=np.zeros((5, 6))), dict(tokens=np.zeros((4, 6)))], ids=['name', 'rows'])
def test_arrays_that_are_not_a_batch_are_refused(change):
  with pytest.raises(errors.DataError):
    batches.PackedData(dict(packed().arrays, **change))


def test_an_epoch_is_shuffled_once(monkeypatch):
  shuffled, real = [], np.random.default_rng
  monkeypatch.setattr(np.random, 'default_rng', lambda seed: (shuffled.append(seed), real(seed))[1])
  for step in range(30):
    batches.batch_indices(step, num_examples=103, batch_size=10, seed=77)
  assert shuffled == [[77, 0], [77, 1], [77, 2]]


def test_the_order_that_is_kept_cannot_be_changed():
  with pytest.raises(ValueError, match='read-only'):
    batches.batch_indices(0, num_examples=5, batch_size=2, seed=78)[0] = 1
