"""The decoder with a cache against the decoder without one."""

import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import errors
from specjax.core import types
from specjax.models import gemma
from specjax.models import gemma_configs
from specjax.models import layers

WINDOW = 6
SHAPE = dict(vocab_size=50, embed_dim=24, hidden_dim=40, head_dim=8)
GEMMA = gemma.DecoderConfig(
    **SHAPE, num_heads=4, num_kv_heads=2, layer_kinds=('local', 'global', 'local'), window=WINDOW, activation='gelu',
    norm_plus_one=True, post_norms=True, query_key_norm=True, attention_softcap=5.0, final_softcap=10.0,
    scale_embeddings=True, query_scale=0.5, global_rotary=layers.Rotary(base=1000.0, factor=2.0))
LLAMA = gemma.DecoderConfig(
    **SHAPE, num_heads=3, num_kv_heads=1, layer_kinds=('global',) * 2, activation='silu', tied_head=False,
    norm_epsilon=1e-5, global_rotary=layers.Rotary(
        base=100.0, factor=4.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=64))
CONFIGS = pytest.mark.parametrize('config', [GEMMA, LLAMA], ids=['gemma', 'llama'])
CAPACITY = 48


@functools.lru_cache
def build(config, dtype=jnp.float32):
  """A model whose local layers are rings of 12 slots, and parameters far from any symmetry."""
  model = gemma.DecoderLM(config, dtype=dtype, param_dtype=dtype, max_extend=6, block_size=4, return_hidden=True)
  params = jax.jit(model.init)(jax.random.key(7))
  leaves, structure = jax.tree.flatten(params)
  rng = np.random.default_rng(7)
  leaves = [x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves]
  return model, jax.tree.unflatten(structure, leaves)


def text(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).integers(0, SHAPE['vocab_size'], size=shape), jnp.int32)


def int32(*numbers):
  return jnp.asarray(numbers, jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def full_output(model, params, tokens):
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
  weights = jnp.ones(tokens.shape, jnp.float32)
  return model.forward(params, types.TrainingBatch(tokens, tokens, weights, positions, jnp.ones_like(tokens)))


prefill = jax.jit(lambda model, params, prompt: model.prefill(params, prompt, CAPACITY), static_argnums=0)
extend = jax.jit(
    lambda model, params, cache, tokens, count, layout=types.CHAIN: model.extend(
        params, cache, tokens, count=count, layout=layout), static_argnums=0)


def poisoned(cache):
  """The cache with NaN in every slot that no row covers."""
  def poison(layer):
    slots = jnp.arange(layer.keys.shape[2], dtype=jnp.int32)[None, None, :, None]
    free = slots >= cache.length[:, None, None, None]
    put = lambda x: jnp.where(free, jnp.nan, x)
    return layer.replace(keys=put(layer.keys), values=put(layer.values))
  return cache.replace(layers=tuple(poison(layer) for layer in cache.layers))


def check_against_forward(config, dtype, atol):
  """Rows of 5, 1 and 9 tokens, then uneven extends and rewinds, each logit compared with one full forward."""
  model, params = build(config, dtype)
  tokens = text(0, 3, 40)
  expected = full_output(model, params, tokens)
  scale = float(jnp.std(expected.logits))
  length = np.array([5, 1, 9])
  before, cache = prefill(model, params, types.Prompt(tokens[:, :12], jnp.asarray(length, jnp.int32)))
  for row in range(3):
    np.testing.assert_allclose(
        before.hidden[row, :length[row] - 1], expected.hidden[row, :length[row] - 1], atol=atol)
  cache = poisoned(cache)
  length = length - 1
  steps = [(6, (3, 1, 2), (3, 1, 1)), (6, (6, 6, 6), (1, 6, 2)), (1, (1, 1, 1), (1, 1, 0)), (6, (2, 0, 6), (2, 0, 6)),
           (6, (3, 3, 3), (3, 0, 3)), (6, (6, 6, 6), (6, 6, 6)), (6, (6, 6, 6), (0, 5, 6)), (1, (1, 1, 1), (1, 1, 1))]
  for width, count, kept in steps:
    block = jnp.stack([tokens[row, length[row]:length[row] + width] for row in range(3)])
    output, cache = extend(model, params, cache, block, int32(*count))
    assert output.logits.dtype == dtype and bool(jnp.all(jnp.isfinite(output.logits)))
    for row in range(3):
      span = slice(length[row], length[row] + count[row])
      np.testing.assert_allclose(output.logits[row, :count[row]], expected.logits[row, span], atol=atol * scale)
      np.testing.assert_allclose(output.hidden[row, :count[row]], expected.hidden[row, span], atol=atol)
    np.testing.assert_array_equal(model.length(cache), length + np.array(count))
    length = length + np.array(kept)
    cache = model.rewind(cache, jnp.asarray(length, jnp.int32))


@CONFIGS
def test_ragged_extends_and_rewinds_equal_one_forward(config):
  check_against_forward(config, jnp.float32, 2e-5)


@CONFIGS
def test_ragged_extends_and_rewinds_equal_one_forward_in_float64(config, x64):
  check_against_forward(config, jnp.float64, 1e-10)


@pytest.mark.parametrize('length', [WINDOW - 1, WINDOW, WINDOW + 1, 11, 12, 13, 24, 25])
def test_rings_around_the_window_and_the_wrap(length):
  """Six wide, rolled back, six wide again: logits of the second pass equal the full forward."""
  model, params = build(GEMMA)
  tokens, wrong = text(1, 1, 40), text(2, 1, 6)
  _, cache = prefill(model, params, types.Prompt(tokens[:, :28], int32(length + 1)))
  assert cache.layers[0].keys.shape[2] == 12 and cache.layers[0].ring and not cache.layers[1].ring
  _, cache = extend(model, params, cache, wrong, int32(6))
  cache = model.rewind(cache, int32(length))
  output, _ = extend(model, params, cache, tokens[:, length:length + 6], int32(6))
  expected = full_output(model, params, tokens).logits[:, length:length + 6]
  np.testing.assert_allclose(output.logits, expected, atol=1e-4)


@CONFIGS
@pytest.mark.parametrize('length', [1, 5, 20])
def test_tree_logits_equal_branch_logits_and_keep_path_keeps_the_branch(config, length):
  model, params = build(config)
  prefix, nodes, after = text(3, 1, 28), text(4, 1, 6), text(5, 1, 3)
  layout = types.Tree(int32(-1, 0, 0, 2, 1, 3)[None], int32(0, 1, 1, 2, 2, 3)[None])
  _, base = prefill(model, params, types.Prompt(prefix, int32(length + 1)))
  output, tree = extend(model, params, base, nodes, int32(6), layout)
  for path in ([0, 2, 3, 5], [0, 1, 4], [0]):
    branch = jnp.concatenate([prefix[:, :length], nodes[:, jnp.asarray(path)], after], axis=1)
    expected = full_output(model, params, branch).logits[:, length:]
    np.testing.assert_allclose(output.logits[:, jnp.asarray(path)], expected[:, :len(path)], atol=1e-4)
    kept = model.keep_path(tree, int32(length), int32(*path, *[-1] * (6 - len(path)))[None])
    assert int(model.length(kept)[0]) == length + len(path)
    continued, _ = extend(model, params, kept, after, int32(3))
    np.testing.assert_allclose(continued.logits, expected[:, len(path):], atol=1e-4)


@CONFIGS
def test_packed_segments_equal_separate_rows(config):
  model, params = build(config)
  first, second = text(6, 1, 9), text(7, 1, 7)
  padding = jnp.zeros((1, 3), jnp.int32)
  tokens = jnp.concatenate([first, second, padding], axis=1)
  positions = jnp.concatenate([jnp.arange(9), jnp.arange(7), jnp.zeros(3, jnp.int32)]).astype(jnp.int32)[None]
  segments = int32(*[1] * 9, *[2] * 7, *[0] * 3)[None]
  batch = types.TrainingBatch(tokens, tokens, jnp.ones(tokens.shape), positions, segments)

  def loss(params):
    logits = model.forward(params, batch).logits
    return jnp.sum(jnp.square(logits)), logits

  (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  np.testing.assert_allclose(logits[:, :9], full_output(model, params, first).logits, atol=1e-4)
  np.testing.assert_allclose(logits[:, 9:16], full_output(model, params, second).logits, atol=1e-4)
  assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradients))


def test_row_bits_do_not_depend_on_slot_neighbours_or_their_garbage():
  model, params = build(GEMMA)
  tokens, block = text(8, 4, 28), text(9, 4, 3)
  def row_of(order, lengths, counts, *, poison):
    prompt = types.Prompt(tokens[jnp.asarray(order)], jnp.asarray(lengths, jnp.int32))
    _, cache = prefill(model, params, prompt)
    cache = poisoned(cache) if poison else cache
    output, cache = extend(model, params, cache, block[jnp.asarray(order)], jnp.asarray(counts, jnp.int32))
    slot = order.index(0)
    return np.asarray(output.logits[slot]), np.asarray(cache.layers[1].keys[slot, :, :11])
  expected = row_of([0, 1, 2, 3], [9, 9, 9, 9], [3, 3, 3, 3], poison=False)
  for case in (([0, 3, 2, 1], [9, 26, 1, 4], [3, 1, 0, 3]), ([2, 1, 3, 0], [20, 5, 28, 9], [3, 3, 2, 3])):
    for poison in (False, True):
      for ours, theirs in zip(row_of(*case, poison=poison), expected):
        np.testing.assert_array_equal(ours, theirs)


def test_token_bits_do_not_depend_on_their_index_in_the_block():
  model, params = build(GEMMA)
  tokens = text(10, 2, 28)
  _, cache = prefill(model, params, types.Prompt(tokens, int32(10, 7)))
  at_end = []
  for first in range(4):
    if first:
      _, start = extend(model, params, cache, tokens[:, :4], int32(first, first))
    else:
      start = cache
    rolled = jnp.concatenate([tokens[:, first:4], tokens[:, :first]], axis=1)
    output, _ = extend(model, params, start, rolled, int32(4 - first, 4 - first))
    at_end.append(np.asarray(output.logits[:, 3 - first]))
  for other in at_end[1:]:
    np.testing.assert_array_equal(other, at_end[0])


def test_rows_with_count_zero_keep_every_bit():
  model, params = build(GEMMA)
  _, cache = prefill(model, params, types.Prompt(text(11, 2, 28), int32(20, 9)))
  _, after = extend(model, params, cache, text(12, 2, 6), int32(0, 6))
  for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(after)):
    np.testing.assert_array_equal(old[0], new[0])
  assert int(after.length[1]) == 14


def test_bfloat16_stays_near_float32():
  model, params = build(LLAMA)
  half = dataclasses.replace(model, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
  half_params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  tokens = text(13, 2, 28)
  _, cache = prefill(half, half_params, types.Prompt(tokens, int32(10, 20)))
  assert cache.layers[0].keys.dtype == jnp.bfloat16
  output, _ = extend(half, half_params, cache, jnp.stack([tokens[0, 9:12], tokens[1, 19:22]]), int32(3, 3))
  assert output.logits.dtype == jnp.float32
  expected = full_output(model, params, tokens).logits
  for row, start in enumerate((9, 19)):
    error = np.abs(output.logits[row] - expected[row, start:start + 3])
    assert np.mean(error) < 0.05 * np.std(expected)


def test_extend_wider_than_the_ring_slack_is_refused():
  model, params = build(GEMMA)
  _, cache = prefill(model, params, types.Prompt(text(14, 1, 28), int32(4)))
  with pytest.raises(errors.ParamError, match='max_extend 6'):
    model.extend(params, cache, text(15, 1, 7), count=int32(7))


@pytest.mark.parametrize('changes', [
    dict(layer_kinds=('local', 'sideways')), dict(window=None), dict(num_kv_heads=3)])
def test_impossible_configs_are_refused(changes):
  with pytest.raises(errors.ParamError):
    dataclasses.replace(GEMMA, **changes)


@pytest.mark.parametrize('name, billions', [
    ('gemma_2b', 2.506), ('gemma_7b', 8.538), ('gemma2_2b', 2.615), ('gemma2_9b', 9.242), ('gemma2_27b', 27.228),
    ('gemma3_270m', 0.268), ('gemma3_1b', 1.000), ('gemma3_4b', 3.880), ('gemma3_12b', 11.766), ('gemma3_27b', 27.009),
    ('llama2_7b', 6.738), ('llama2_13b', 13.016), ('llama3_8b', 8.030), ('llama3_1_70b', 70.554),
    ('llama3_2_1b', 1.236), ('llama3_2_3b', 3.213)])
def test_published_sizes(name, billions):
  config = getattr(gemma_configs, name)()
  def size(num_layers):
    model = gemma.DecoderLM(dataclasses.replace(config, layer_kinds=config.layer_kinds[:num_layers]))
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))
  total = size(0) + config.num_layers * size(1) - config.num_layers * size(0)
  assert total / 1e9 == pytest.approx(billions, abs=6e-4)


def test_llama3_frequencies_are_scaled_only_where_long():
  rotary = gemma_configs.llama3_2_1b().global_rotary
  plain, scaled = layers.Rotary(base=500_000.0).frequencies(64), rotary.frequencies(64)
  wavelength = 2 * np.pi / plain
  np.testing.assert_array_equal(scaled[wavelength < 8192 / 4], plain[wavelength < 8192 / 4])
  np.testing.assert_allclose(scaled[wavelength > 8192], plain[wavelength > 8192] / 32)
  between = (wavelength > 8192 / 4) & (wavelength < 8192)
  assert between.any() and np.all((scaled < plain)[between] & (scaled > plain / 32)[between])


@pytest.mark.parametrize('width', [1, 5])
def test_decode_loop_copies_neither_weights_nor_caches(width):
  model, params = build(GEMMA)
  _, cache = prefill(model, params, types.Prompt(text(16, 2, 28), int32(4, 9)))

  def loop(params, cache, tokens):
    def body(carry):
      cache, tokens = carry
      output, cache = model.extend(params, cache, tokens, count=jnp.full(2, width, jnp.int32))
      return model.rewind(cache, cache.length - width + 1), jnp.argmax(output.logits, axis=-1).astype(jnp.int32)
    return lax.while_loop(lambda carry: jnp.all(carry[0].length < 30), body, (cache, tokens))

  compiled = jax.jit(loop, donate_argnums=1).lower(params, cache, text(17, 2, width)).compile()
  arrays = [leaf for leaf in jax.tree.leaves((params, cache.layers)) if leaf.ndim > 1]
  shapes = {f'f32[{",".join(map(str, shape))}]' for leaf in arrays for shape in (leaf.shape, leaf.shape[::-1])}
  found = [
      line for line in compiled.as_text().splitlines()
      if (' copy(' in line or ' transpose(' in line) and any(s in line.split('(')[0] for s in shapes)]
  assert not found, found
