"""The cache against plain attention over a Python list of what each row holds."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import errors
from specjax.core import types
from specjax.models import kv_cache

HEADS, KV_HEADS, DIM = 4, 2, 8


def make_layer(batch, capacity, window=None, slack=8, block_size=16):
  return kv_cache.create_layer(
      batch, capacity, num_kv_heads=KV_HEADS, head_dim=DIM, dtype=jnp.float32, window=window, slack=slack,
      block_size=block_size)


def random(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def int32(*numbers):
  return jnp.asarray(numbers, jnp.int32)


def reference(query, position, keys, values, positions, window=None, softcap=None, bias=None):
  """Attention of one query [N, D] over lists of keys and values [H_kv, D], in float64."""
  out = np.zeros(query.shape)
  seen = [i for i, p in enumerate(positions) if window is None or p > position - window]
  for head in range(query.shape[0]):
    group = head // (query.shape[0] // KV_HEADS)
    scores = np.array([np.dot(query[head].astype(np.float64), keys[i][group]) for i in seen])
    if softcap is not None:
      scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
      scores = scores + np.array([bias(head, position, positions[i]) for i in seen])
    weights = np.exp(scores - scores.max())
    out[head] = sum(w * values[i][group] for w, i in zip(weights / weights.sum(), seen))
  return out


@functools.partial(jax.jit, static_argnames=('softcap', 'bias'))
def feed(layer, length, count, keys, values, query, layout=types.CHAIN, **kwargs):
  block = kv_cache.create_block(length, count, keys.shape[1], layout)
  layer = kv_cache.append(layer, block, keys, values)
  return layer, kv_cache.attend(layer, block, query, **kwargs)


class Mirror:
  """What each row should hold, and one layer that holds it."""

  def __init__(self, batch, capacity, **kwargs):
    self.layer = make_layer(batch, capacity, **kwargs)
    self.layer = self.layer.replace(
        keys=jnp.full_like(self.layer.keys, jnp.nan), values=jnp.full_like(self.layer.values, jnp.nan))
    self.rows = [[] for _ in range(batch)]
    self.seed = 0

  @property
  def length(self):
    return int32(*[len(row) for row in self.rows])

  def feed(self, counts, width, **kwargs):
    self.seed += 1
    batch = len(self.rows)
    keys, values, query = (
        random(3 * self.seed + i, batch, width, heads, DIM) for i, heads in enumerate((KV_HEADS, KV_HEADS, HEADS)))
    self.layer, out = feed(
        self.layer, self.length, int32(*counts), jnp.asarray(keys), jnp.asarray(values), jnp.asarray(query), **kwargs)
    assert np.all(np.isfinite(out))
    for b, count in enumerate(counts):
      for i in range(count):
        self.rows[b].append((keys[b, i], values[b, i]))
        expected = reference(
            query[b, i], len(self.rows[b]) - 1, *zip(*self.rows[b]), range(len(self.rows[b])), window=self.layer.window,
            softcap=kwargs.get('softcap'))
        np.testing.assert_allclose(out[b, i], expected, atol=2e-6)

  def rewind(self, lengths):
    self.rows = [row[:n] for row, n in zip(self.rows, lengths)]


@pytest.mark.parametrize('window', [None, 20])
def test_ragged_feeds_and_rewinds_match_plain_attention_in_nan_filled_buffers(window):
  mirror = Mirror(3, 128, window=window, block_size=4)
  assert mirror.layer.ring == (window is not None)
  rng = np.random.default_rng(5)
  for _ in range(40):
    width = int(rng.integers(1, 6))
    # Row 2 grows fastest, so the other rows must wait for its blocks; row 0 often feeds nothing.
    counts = [int(rng.integers(0, (b + 1) * width // 3 + 1)) if len(row) + width < 128 else 0
              for b, row in enumerate(mirror.rows)]
    mirror.feed(counts, width)
    mirror.rewind([len(row) - int(rng.integers(0, c + 1)) for row, c in zip(mirror.rows, counts)])


def test_ring_at_and_around_its_window_and_after_the_wrap():
  mirror = Mirror(1, 128, window=24, slack=8, block_size=8)
  assert mirror.layer.keys.shape[2] == 32
  for length in (23, 24, 25, 31, 32, 33, 63, 64, 65):
    while len(mirror.rows[0]) < length:
      mirror.feed([1], 1)
    mirror.feed([6], 6)
    mirror.rewind([length])


def test_window_within_a_full_layer():
  mirror = Mirror(2, 32, window=20)
  assert not mirror.layer.ring
  for _ in range(6):
    mirror.feed([5, 3], 5)


def test_softcap_is_applied_before_the_mask():
  mirror = Mirror(2, 64)
  for _ in range(6):
    mirror.feed([5, 3], 5, softcap=0.5)


def test_bias_reads_positions_and_not_slots():
  layer = make_layer(1, 64, window=20)
  table = random(3, HEADS, 64)
  def bias(query_positions, key_positions):
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    return jnp.swapaxes(jnp.asarray(table)[:, jnp.clip(distance, 0, 63)], 0, 1)
  keys, values, query = random(0, 1, 60, KV_HEADS, DIM), random(1, 1, 60, KV_HEADS, DIM), random(2, 1, 60, HEADS, DIM)
  for t in range(60):
    layer, out = feed(
        layer, int32(t), int32(1), keys[:, t:t + 1], values[:, t:t + 1], jnp.asarray(query[:, t:t + 1]), bias=bias)
    expected = reference(
        query[0, t], t, keys[0, :t + 1], values[0, :t + 1], range(t + 1), window=20,
        bias=lambda head, q, k: table[head, q - k])
    np.testing.assert_allclose(out[0, 0], expected, atol=2e-6)


@pytest.mark.parametrize('window', [None, 20])
@pytest.mark.parametrize('length', [0, 5, 19, 29, 47])
def test_prefill_equals_feeding_one_by_one(window, length):
  keys, values = random(0, 1, 50, KV_HEADS, DIM), random(1, 1, 50, KV_HEADS, DIM)
  keys[:, length:], values[:, length:] = np.nan, np.nan
  filled = kv_cache.prefill_layer(make_layer(1, 64, window), jnp.asarray(keys), jnp.asarray(values), int32(length))
  fed = make_layer(1, 64, window)
  for t in range(length):
    query = jnp.zeros((1, 1, HEADS, DIM))
    fed, _ = feed(fed, int32(t), int32(1), keys[:, t:t + 1], values[:, t:t + 1], query)
  new = [jnp.asarray(random(s, 1, 3, h, DIM)) for s, h in ((2, KV_HEADS), (3, KV_HEADS), (4, HEADS))]
  outputs = [feed(layer, int32(length), int32(3), *new)[1] for layer in (filled, fed)]
  assert np.all(np.isfinite(outputs[0]))
  np.testing.assert_array_equal(*outputs)


def test_prompt_longer_than_the_capacity_is_refused():
  layer = make_layer(1, 16)
  with pytest.raises(errors.LimitError, match='17'):
    kv_cache.prefill_layer(layer, jnp.zeros((1, 17, KV_HEADS, DIM)), jnp.zeros((1, 17, KV_HEADS, DIM)), int32(3))


def test_tree_ancestors():
  ancestors = kv_cache.tree_ancestors(jnp.asarray([[-1, 0, 0, 1, 3], [-1, 0, 1, 2, 3]], jnp.int32))
  expected = [[[0], [0, 1], [0, 2], [0, 1, 3], [0, 1, 3, 4]], [list(range(i + 1)) for i in range(5)]]
  for b in range(2):
    assert [list(np.nonzero(row)[0]) for row in np.asarray(ancestors[b])] == expected[b]


@pytest.mark.parametrize('window', [None, 20])
@pytest.mark.parametrize('length', [3, 18, 30, 45])
def test_tree_nodes_see_their_branch_and_keep_path_keeps_it(window, length):
  parents, depth = [-1, 0, 0, 2, 1, 3], [0, 1, 1, 2, 2, 3]
  prefix = [random(s, 1, length, KV_HEADS, DIM) for s in (0, 1)]
  base = kv_cache.prefill_layer(make_layer(1, 64, window), *map(jnp.asarray, prefix), int32(length))
  keys, values, query = (random(s, 1, 6, h, DIM) for s, h in ((2, KV_HEADS), (3, KV_HEADS), (4, HEADS)))
  layout = types.Tree(jnp.asarray([parents], jnp.int32), jnp.asarray([depth], jnp.int32))
  tree, out = feed(base, int32(length), int32(6), keys, values, jnp.asarray(query), layout)
  for path in ([0, 2, 3, 5], [0, 1, 4]):
    all_keys = np.concatenate([prefix[0][0], keys[0][path]])
    all_values = np.concatenate([prefix[1][0], values[0][path]])
    for j, node in enumerate(path):
      n = length + j + 1
      expected = reference(query[0, node], n - 1, all_keys[:n], all_values[:n], range(n), window=window)
      np.testing.assert_allclose(out[0, node], expected, atol=2e-6)
    cache = kv_cache.KVCache(length=int32(length), layers=(tree,))
    cache = kv_cache.keep_path(cache, int32(length), int32(*path, *[-1] * (6 - len(path)))[None])
    assert int(cache.length[0]) == length + len(path)
    chain, _ = feed(
        base, int32(length), int32(len(path)), keys[:, path], values[:, path], jnp.asarray(query[:, path]))
    new = [jnp.asarray(random(s, 1, 2, h, DIM)) for s, h in ((5, KV_HEADS), (6, KV_HEADS), (7, HEADS))]
    after = [feed(layer, cache.length, int32(2), *new)[1] for layer in (cache.layers[0], chain)]
    np.testing.assert_array_equal(*after)


@pytest.mark.parametrize('window', [None, 20])
def test_count_zero_leaves_every_bit_of_the_row(window):
  layer = make_layer(2, 64, window)
  shape = layer.keys.shape
  layer = layer.replace(keys=jnp.asarray(random(0, *shape)), values=jnp.asarray(random(1, *shape)))
  new = [jnp.asarray(random(s, 2, 4, h, DIM)) for s, h in ((2, KV_HEADS), (3, KV_HEADS), (4, HEADS))]
  fed, _ = feed(layer, int32(30, 30), int32(0, 4), *new)
  np.testing.assert_array_equal(layer.keys[0], fed.keys[0])
  np.testing.assert_array_equal(layer.values[0], fed.values[0])
  assert not np.array_equal(layer.keys[1], fed.keys[1])


def test_tokens_past_the_capacity_are_dropped_and_not_clamped():
  layer = make_layer(1, 16)
  new = [jnp.asarray(random(s, 1, 4, h, DIM)) for s, h in ((2, KV_HEADS), (3, KV_HEADS), (4, HEADS))]
  fed, _ = feed(layer, int32(14), int32(4), *new)
  np.testing.assert_array_equal(fed.keys[0, :, :14], layer.keys[0, :, :14])
  np.testing.assert_array_equal(fed.keys[0, :, 14:], jnp.swapaxes(new[0], 1, 2)[0, :, :2])


@pytest.mark.parametrize('window', [None, 20])
def test_row_bits_do_not_depend_on_neighbours(window):
  """Longer neighbours (more steps of the loop), NaN neighbours and NaN garbage change no bit of a row."""
  prefix = [random(s, 3, 40, KV_HEADS, DIM) for s in (0, 1)]
  new = [jnp.asarray(random(s, 3, 3, h, DIM)) for s, h in ((2, KV_HEADS), (3, KV_HEADS), (4, HEADS))]
  run = jax.jit(lambda layer, length, count: feed(layer, length, count, *new)[1])
  base = make_layer(3, 64, window)
  alone = kv_cache.prefill_layer(base, *map(jnp.asarray, prefix), int32(5, 0, 0))
  expected = np.asarray(run(alone, int32(5, 0, 0), int32(3, 0, 0)))[0]
  prefix[0][1:], prefix[1][1:] = np.nan, np.nan
  prefix[0][0, 5:], prefix[1][0, 5:] = np.nan, np.nan
  crowd = kv_cache.prefill_layer(base, *map(jnp.asarray, prefix), int32(5, 40, 17))
  np.testing.assert_array_equal(np.asarray(run(crowd, int32(5, 40, 17), int32(3, 3, 2)))[0], expected)


def test_donated_decode_loop_copies_no_cache():
  batch, capacity = 2, 256
  layers = tuple(make_layer(batch, capacity, window) for window in (None, 40))

  def loop(layers, length):
    def body(carry):
      layers, length, x = carry
      block = kv_cache.create_block(length, jnp.full_like(length, 2), 3)
      fed = []
      for layer in layers:
        layer = kv_cache.append(layer, block, x[:, :, :KV_HEADS], x[:, :, KV_HEADS:])
        x = kv_cache.attend(layer, block, x)
        fed.append(layer)
      path = jnp.stack([jnp.zeros_like(length), jnp.where(x[:, 0, 0, 0] > 0, 1, 2)], axis=1)
      cache = kv_cache.keep_path(kv_cache.KVCache(length=length, layers=tuple(fed)), length, path)
      return cache.layers, cache.length, x
    x = jnp.ones((batch, 3, HEADS, DIM))
    return lax.while_loop(lambda c: jnp.all(c[1] < 200), body, (layers, length, x))

  compiled = jax.jit(loop, donate_argnums=0).lower(layers, int32(0, 7)).compile()
  shapes = [f'f32[{",".join(map(str, layer.keys.shape))}]' for layer in layers]
  copies = [line for line in compiled.as_text().splitlines() if ' copy(' in line and any(s in line for s in shapes)]
  assert not copies, copies
  assert compiled.memory_analysis().temp_size_in_bytes < layers[0].keys.nbytes
