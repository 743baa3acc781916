"""The autoregressive head reads pairs in chunks as it reads them at once, and knows its shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import errors
from specjax.models import autoregressive_head
from specjax.testing import exactness

CONFIG = autoregressive_head.AutoregressiveHeadConfig(
    embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4)
BATCH, WIDTH = 3, 9


@pytest.fixture
def head(x64):
  return autoregressive_head.AutoregressiveHead(CONFIG, dtype=jnp.float64, param_dtype=jnp.float64, block_size=4)


@pytest.fixture
def pairs():
  random = np.random.RandomState(0)
  return [random.randn(BATCH, WIDTH, 8) for _ in range(2)]


def forward(head, params, features, embeddings):
  positions = np.broadcast_to(np.arange(WIDTH, dtype=np.int32), (BATCH, WIDTH))
  return np.asarray(head.forward(params, features, embeddings, positions=positions, segments=np.ones_like(positions)))


def test_chunks_of_any_width_give_what_one_pass_gives(head, pairs):
  params = exactness.random_params(head, 1)
  whole = forward(head, params, *pairs)
  # Row by row 2, 0 and 4 pairs are prefilled; then up to three are fed at a time.
  start = np.array([2, 0, 4], np.int32)
  cache = head.prefill(params, *(x[:, :6] for x in pairs), length=start, capacity=16)
  extend = jax.jit(head.extend)
  for counts in ([3, 1, 0], [0, 3, 3], [3, 2, 2]):
    count, done = np.array(counts, np.int32), np.asarray(head.length(cache))
    index = np.minimum(done[:, None] + np.arange(3), WIDTH - 1)
    chunk = [np.take_along_axis(x, index[:, :, None], axis=1) for x in pairs]
    predicted, cache = extend(params, cache, *chunk, count=count)
    for row in range(BATCH):
      np.testing.assert_allclose(
          predicted[row, :count[row]], whole[row, done[row]:done[row] + count[row]], rtol=0, atol=1e-12)
  np.testing.assert_array_equal(head.length(cache), [8, 6, 9])


@pytest.mark.nightly
def test_what_is_rewound_is_forgotten(head, pairs):
  params = exactness.random_params(head, 1)
  whole = forward(head, params, *pairs)
  length = np.full(BATCH, 4, np.int32)
  cache = head.prefill(params, *(x[:, :4] for x in pairs), length=length, capacity=16)
  noise = np.ones((BATCH, 3, 8))
  _, cache = head.extend(params, cache, noise, noise, count=np.full(BATCH, 3, np.int32))
  predicted, _ = head.extend(
      params, head.rewind(cache, jnp.asarray(length)), *(x[:, 4:7] for x in pairs), count=np.full(BATCH, 3, np.int32))
  np.testing.assert_allclose(predicted, whole[:, 4:7], rtol=0, atol=1e-12)


def test_segments_of_a_packed_row_do_not_see_each_other(head, pairs):
  params = exactness.random_params(head, 1)
  segments = np.array([[1] * 4 + [2] * 4 + [0]] * BATCH, np.int32)
  positions = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 0]] * BATCH, np.int32)
  packed = head.forward(params, *pairs, positions=positions, segments=segments)
  second = head.forward(params, *(x[:, 4:8] for x in pairs), positions=positions[:, :4], segments=segments[:, :4])
  np.testing.assert_allclose(packed[:, 4:8], second, rtol=0, atol=1e-12)


@pytest.mark.parametrize('change, named', [
    (dict(embed_dim=0), 'embed_dim'), (dict(hidden_dim=None), 'hidden_dim'), (dict(num_heads=3, num_kv_heads=2), 'num_kv_heads'),
    (dict(head_dim=3), 'head_dim'), (dict(head_dim=4.0), 'head_dim')])
def test_shapes_without_meaning_are_refused(change, named):
  shape = dict(embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4)
  with pytest.raises(errors.ParamError, match=named):
    autoregressive_head.AutoregressiveHeadConfig(**(shape | change))
