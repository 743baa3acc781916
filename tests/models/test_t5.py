"""T5: the cached decoder equals the teacher-forced one however its tokens are fed, and rows do not see each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import errors
from specjax.core import types
from specjax.models import t5
from specjax.models import t5_configs
from specjax.models import t5_layers

VOCAB, ROWS, ENCODER_SLOTS, CAPACITY = 40, 3, 9, 32
ENCODER_LENGTH = np.array([9, 1, 5], np.int32)
CONFIGS = {
    'gated_untied': dict(mlp='gated_gelu', tied_head=False, scale_logits=False),
    'relu_tied': dict(mlp='relu', tied_head=True, scale_logits=True),
}


def _model(name='gated_untied', dtype='float32', param_dtype=None):
  # num_heads * head_dim differs from embed_dim, and the depths differ, so that a swap of two sizes cannot pass.
  config = t5.T5Config(
      vocab_size=VOCAB, embed_dim=16, num_heads=3, head_dim=6, mlp_dim=20, num_encoder_layers=1, num_decoder_layers=2,
      num_buckets=8, max_distance=12, **CONFIGS[name])
  return t5.T5LM(config, dtype, param_dtype or dtype)


def _params(model, seed=0):
  """Initial parameters with every leaf perturbed: a norm scale of 1 or a small bias would hide mistakes."""
  leaves, treedef = jax.tree.flatten(model.init(jax.random.key(seed)))
  rng = np.random.default_rng(seed + 1)
  noise = lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.2, x.dtype)
  return jax.tree.unflatten(treedef, [x + noise(x) for x in leaves])


def _tokens(width, seed=0, rows=ROWS):
  tokens = np.random.default_rng(seed).integers(1, VOCAB, (rows, width)).astype(np.int32)
  tokens[:, 0] = 0
  return tokens


def _prompt(tokens, length=None, encoder_seed=7, encoder_length=ENCODER_LENGTH):
  rows = len(tokens)
  return types.Prompt(
      tokens=jnp.asarray(tokens), length=jnp.asarray(np.ones(rows, np.int32) if length is None else length),
      encoder_tokens=jnp.asarray(_tokens(ENCODER_SLOTS, encoder_seed, rows)),
      encoder_length=jnp.asarray(encoder_length))


def _batch(tokens, segments, encoder_tokens, encoder_segments):
  array = functools.partial(jnp.asarray, dtype=jnp.int32)
  tokens, encoder_tokens = array(tokens), array(encoder_tokens)
  return types.TrainingBatch(
      tokens=tokens, targets=tokens, weights=jnp.ones(tokens.shape, jnp.float32), positions=jnp.zeros_like(tokens),
      segments=array(segments), encoder_tokens=encoder_tokens, encoder_positions=jnp.zeros_like(encoder_tokens),
      encoder_segments=array(encoder_segments))


def _forward(model, params, tokens, prompt):
  """Teacher-forced output of every row's own tokens: the reference."""
  mask = np.arange(ENCODER_SLOTS)[None, :] < np.asarray(prompt.encoder_length)[:, None]
  return jax.jit(model.forward)(params, _batch(tokens, np.ones_like(tokens), prompt.encoder_tokens, mask))


def _prefill(model, params, prompt, capacity=CAPACITY):
  return jax.jit(model.prefill, static_argnums=2)(params, prompt, capacity)


def _extend(model, params, cache, tokens, count=None, layout=types.CHAIN):
  count = np.full(len(tokens), tokens.shape[1], np.int32) if count is None else np.asarray(count, np.int32)
  return _EXTEND(model, params, cache, jnp.asarray(tokens), jnp.asarray(count), layout)


_EXTEND = jax.jit(
    lambda model, params, cache, tokens, count, layout: model.extend(
        params, cache, tokens, count=count, layout=layout), static_argnums=0)


def _assert_close(got, wanted, tolerance):
  np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=0, atol=tolerance)


def _check_every_way_of_feeding(name, dtype, tolerance):
  model = _model(name, dtype)
  params, tokens = _params(model), _tokens(11)
  prompt = _prompt(tokens[:, :1])
  wanted = _forward(model, params, tokens, prompt)
  _, empty = _prefill(model, params, prompt)
  whole, cache = _extend(model, params, empty, tokens)
  _assert_close(whole.logits, wanted.logits, tolerance)
  _assert_close(whole.hidden, wanted.hidden, tolerance)
  # Rewound by a different amount in each row, then fed other tokens, rewound again and fed the right ones.
  kept = np.array([4, 10, 7], np.int32)
  cache = model.rewind(cache, jnp.asarray(kept))
  _, cache = _extend(model, params, cache, _tokens(5, seed=3), count=[5, 1, 0])
  cache = model.rewind(cache, jnp.asarray(kept))
  for start, stop in ((0, 1), (1, 4), (4, 7)):
    count = np.clip(11 - kept - start, 0, stop - start)
    block = np.stack([np.resize(row[min(k + start, 10):], stop - start) for row, k in zip(tokens, kept)])
    output, cache = _extend(model, params, cache, block, count)
    for row in range(ROWS):
      at = kept[row] + start
      _assert_close(output.logits[row, :count[row]], wanted.logits[row, at:at + count[row]], tolerance)
  np.testing.assert_array_equal(model.length(cache), [11, 11, 11])


@pytest.mark.parametrize('name', CONFIGS)
def test_chunked_extend_equals_one_extend_equals_forward_after_rewinds(name):
  _check_every_way_of_feeding(name, 'float32', 2e-5)


def test_every_way_of_feeding_agrees_to_1e_10_in_float64():
  with jax.enable_x64(True):
    _check_every_way_of_feeding('gated_untied', 'float64', 1e-10)


def test_forced_decoder_prefix_equals_feeding_it():
  model = _model()
  params, tokens = _params(model), _tokens(8)
  length = np.array([8, 1, 4], np.int32)
  prefill, cache = _prefill(model, params, _prompt(tokens, length))
  wanted = _forward(model, params, tokens, _prompt(tokens))
  np.testing.assert_array_equal(model.length(cache), length - 1)
  assert prefill.hidden.shape == (ROWS, 8, 16)
  for row in range(ROWS):
    _assert_close(prefill.hidden[row, :length[row] - 1], wanted.hidden[row, :length[row] - 1], 2e-5)
  output, cache = _extend(model, params, cache, tokens[np.arange(ROWS), length - 1][:, None])
  _assert_close(output.logits[:, 0], wanted.logits[np.arange(ROWS), length - 1], 2e-5)


def test_decoding_past_a_block_and_past_the_last_bucket_equals_forward():
  with jax.enable_x64(True):
    model = _model(dtype='float64')
    params, tokens = _params(model), _tokens(150)
    prompt = _prompt(tokens[:, :1])
    wanted = _forward(model, params, tokens, prompt)
    _, cache = _prefill(model, params, prompt, 150)
    _, cache = _extend(model, params, cache, tokens[:, :120])
    output, _ = _extend(model, params, cache, tokens[:, 120:])
    _assert_close(output.logits, wanted.logits[:, 120:], 1e-10)


def test_encoder_padding_changes_no_bit():
  model = _model()
  params, tokens = _params(model), _tokens(6)
  prompt = _prompt(tokens, np.full(ROWS, 6, np.int32))
  poison = np.array(prompt.encoder_tokens)
  for row, length in enumerate(ENCODER_LENGTH):
    poison[row, length:] = np.random.default_rng(row).integers(0, VOCAB, ENCODER_SLOTS - length)
  poisoned = prompt._replace(encoder_tokens=jnp.asarray(poison))
  assert (poison != np.asarray(prompt.encoder_tokens)).any()
  outputs = []
  for case in (prompt, poisoned):
    prefill, cache = _prefill(model, params, case)
    output, _ = _extend(model, params, cache, tokens[:, -1:])
    outputs.append((prefill, output, _forward(model, params, tokens, case)))
  jax.tree.map(np.testing.assert_array_equal, *outputs)


def test_encoder_without_padding_slots_gives_the_same_logits():
  model = _model()
  params, tokens = _params(model), _tokens(4, rows=1)
  padded = _prompt(tokens, encoder_length=np.array([5], np.int32))
  cut = padded._replace(encoder_tokens=padded.encoder_tokens[:, :5])
  logits = []
  for prompt in (padded, cut):
    _, cache = _prefill(model, params, prompt)
    logits.append(_extend(model, params, cache, tokens)[0].logits)
  _assert_close(*logits, 1e-5)


def test_empty_encoder_input_is_a_defined_case():
  model = _model()
  params, tokens = _params(model), _tokens(4)
  logits = []
  for seed in (7, 8):
    prompt = _prompt(tokens, encoder_seed=seed, encoder_length=np.array([9, 0, 5], np.int32))
    _, cache = _prefill(model, params, prompt)
    logits.append(np.asarray(_extend(model, params, cache, tokens)[0].logits))
  assert np.isfinite(logits[0]).all()
  np.testing.assert_array_equal(logits[0][1], logits[1][1])
  assert (logits[0][0] != logits[1][0]).any()


def test_tree_logits_equal_the_logits_of_each_branch_and_keep_path_keeps_one():
  model = _model()
  params, tokens = _params(model), _tokens(5)
  _, cache = _prefill(model, params, _prompt(tokens, np.array([5, 2, 4], np.int32)))
  parents = np.array([[-1, 0, 0, 1, 2, 2], [-1, 0, 1, 2, 0, 4], [-1, 0, 0, 0, 3, 4]], np.int32)
  depth = np.zeros_like(parents)
  for node in range(1, 6):
    depth[:, node] = depth[np.arange(ROWS), parents[:, node]] + 1
  nodes = _tokens(6, seed=9)
  tree = types.Tree(parents=jnp.asarray(parents), depth=jnp.asarray(depth))
  output, grown = _extend(model, params, cache, nodes, layout=tree)
  for node in range(6):
    path = [[node] for _ in range(ROWS)]
    for row in range(ROWS):
      while path[row][0]:
        path[row].insert(0, parents[row, path[row][0]])
    count = np.array([len(p) for p in path], np.int32)
    padded = np.array([p + [-1] * (6 - len(p)) for p in path], np.int32)
    branch = np.take_along_axis(nodes, np.maximum(padded, 0), axis=1)
    alone, chained = _extend(model, params, cache, branch, count)
    _assert_close(output.logits[:, node], alone.logits[np.arange(ROWS), count - 1], 2e-5)
    kept = model.keep_path(grown, model.length(cache), jnp.asarray(padded))
    np.testing.assert_array_equal(model.length(kept), model.length(chained))
    after = _tokens(2, seed=node)
    _assert_close(
        _extend(model, params, kept, after)[0].logits, _extend(model, params, chained, after)[0].logits, 2e-5)


def _poisoned_neighbours(prompt, row):
  """The same row among other rows: other tokens, other lengths, other encoder inputs."""
  rng = np.random.default_rng(5)
  change = lambda x, low, high: jnp.asarray(
      np.where((np.arange(ROWS) == row).reshape((-1,) + (1,) * (x.ndim - 1)), x, rng.integers(low, high, x.shape)),
      jnp.int32)
  return types.Prompt(
      tokens=change(prompt.tokens, 0, VOCAB), length=change(prompt.length, 1, 6),
      encoder_tokens=change(prompt.encoder_tokens, 0, VOCAB), encoder_length=change(prompt.encoder_length, 0, 9))


def _garbage_behind(cache):
  """NaN in every self-attention slot at or past the row's end."""
  def poison(x):
    dead = jnp.arange(x.shape[2])[None, :] >= cache.length[:, None]
    return jnp.where(dead[:, None, :, None], jnp.nan, x)
  layers = tuple(
      layer.replace(keys=poison(layer.keys), values=poison(layer.values)) for layer in cache.self_attention.layers)
  return cache.replace(self_attention=cache.self_attention.replace(layers=layers))


@pytest.mark.parametrize('row', range(ROWS))
def test_row_is_bitwise_independent_of_neighbours_and_garbage(row):
  model = _model()
  params, tokens = _params(model), _tokens(6)
  prompt, block = _prompt(tokens, np.array([6, 3, 4], np.int32)), _tokens(4, seed=2)
  count = np.array([2, 3, 4])
  prefill, cache = _prefill(model, params, prompt)
  output, cache = _extend(model, params, cache, block, count)
  other_block = np.random.default_rng(8).integers(0, VOCAB, block.shape).astype(np.int32)
  other_block[row, :count[row]] = block[row, :count[row]]
  other_count = np.where(np.arange(ROWS) == row, count, 4 - count)
  other_prefill, other_cache = _prefill(model, params, _poisoned_neighbours(prompt, row))
  other, other_cache = _extend(model, params, _garbage_behind(other_cache), other_block, other_count)
  live, known = slice(0, count[row]), slice(0, int(prompt.length[row]) - 1)
  np.testing.assert_array_equal(output.logits[row, live], other.logits[row, live])
  np.testing.assert_array_equal(output.hidden[row, live], other.hidden[row, live])
  np.testing.assert_array_equal(prefill.hidden[row, known], other_prefill.hidden[row, known])
  np.testing.assert_array_equal(prefill.encoder_hidden[row], other_prefill.encoder_hidden[row])
  np.testing.assert_array_equal(model.length(cache)[row], model.length(other_cache)[row])


def test_row_gives_the_same_bits_in_every_slot():
  model = _model()
  params, tokens = _params(model), _tokens(6)
  prompt, block = _prompt(tokens, np.array([6, 3, 4], np.int32)), _tokens(4, seed=2)
  _, cache = _prefill(model, params, prompt)
  output, _ = _extend(model, params, cache, block)
  order = np.array([2, 0, 1])
  _, cache = _prefill(model, params, jax.tree.map(lambda x: x[order], prompt))
  moved, _ = _extend(model, params, cache, block[order])
  np.testing.assert_array_equal(output.logits[order], moved.logits)


def test_count_zero_leaves_the_row_as_it_is():
  model = _model()
  params, tokens = _params(model), _tokens(5)
  _, cache = _prefill(model, params, _prompt(tokens, np.array([5, 1, 3], np.int32)))
  _, after = _extend(model, params, cache, _tokens(3, seed=4), count=[0, 0, 3])
  np.testing.assert_array_equal(model.length(after), [4, 0, 5])
  for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(after), strict=True):
    np.testing.assert_array_equal(old[:2], new[:2])


def test_packed_segments_do_not_see_each_other():
  model = _model()
  params, forward = _params(model), jax.jit(model.forward)
  tokens, encoder_tokens = _tokens(10, rows=1), _tokens(ENCODER_SLOTS, seed=7, rows=1)
  # The second segment's encoder input comes first, the third has none, and both end in padding.
  segments = np.array([[1] * 4 + [2] * 3 + [3] * 2 + [0]])
  encoder_segments = np.array([[2] * 2 + [1] * 5 + [0] * 2])
  packed = forward(params, _batch(tokens, segments, encoder_tokens, encoder_segments)).logits
  for number in (1, 2):
    inside, encoder_inside = segments == number, encoder_segments == number
    alone = forward(params, _batch(
        tokens[inside][None], segments[inside][None], encoder_tokens[encoder_inside][None],
        encoder_segments[encoder_inside][None]))
    _assert_close(packed[inside], alone.logits[0], 2e-5)
  other = forward(params, _batch(tokens, segments, encoder_tokens[:, ::-1], encoder_segments)).logits
  assert (np.asarray(other) != np.asarray(packed))[segments == 1].any()
  _assert_close(other[segments == 3], packed[segments == 3], 1e-6)
  assert np.isfinite(np.asarray(packed)).all()


def test_cross_cache_and_lengths_have_the_batch_in_front_and_survive_rewind():
  model = _model()
  params, tokens = _params(model), _tokens(5)
  _, cache = _prefill(model, params, _prompt(tokens, np.array([5, 1, 3], np.int32)))
  assert all(leaf.shape[0] == ROWS for leaf in jax.tree.leaves(cache))
  rewound = model.rewind(cache, jnp.zeros(ROWS, jnp.int32))
  jax.tree.map(np.testing.assert_array_equal, rewound.cross, cache.cross)
  assert cache.cross[0][0].shape == (ROWS, 3, ENCODER_SLOTS, 6)


def test_cache_from_outside_jit_shares_no_buffer():
  model = _model()
  prompt = _prompt(_tokens(1))
  _, cache = model.prefill(_params(model), prompt, CAPACITY)
  buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((cache, prompt))]
  assert len(set(buffers)) == len(buffers)


def test_prompt_without_encoder_input_is_refused():
  model = _model()
  prompt = _prompt(_tokens(1))
  for field in ('encoder_tokens', 'encoder_length'):
    with pytest.raises(errors.PromptError, match='encoder'):
      model.prefill(None, prompt._replace(**{field: None}), CAPACITY)
  with pytest.raises(errors.LimitError, match='decoder prompt'):
    model.prefill(None, _prompt(_tokens(CAPACITY + 2)), CAPACITY)


def test_bfloat16_keeps_logits_in_float32_and_near_the_float32_ones():
  model = _model()
  params, tokens = _params(model), _tokens(6)
  half = _model(dtype='bfloat16')
  half_params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  prompt = _prompt(tokens[:, :1])
  wanted = _forward(model, params, tokens, prompt).logits
  _, cache = _prefill(half, half_params, prompt)
  output, cache = _extend(half, half_params, cache, tokens)
  assert output.logits.dtype == jnp.float32 and cache.cross[0][0].dtype == jnp.bfloat16
  assert np.abs(np.asarray(output.logits) - np.asarray(wanted)).max() < 0.1 * np.std(wanted) + 0.1


def test_fresh_parameters_give_logits_of_order_one_and_gradients_everywhere():
  for name in CONFIGS:
    model = _model(name)
    params, tokens = model.init(jax.random.key(3)), _tokens(12)
    batch = _batch(tokens, np.ones_like(tokens), _tokens(ENCODER_SLOTS, 7), np.ones((ROWS, ENCODER_SLOTS)))
    spread = np.std(model.forward(params, batch).logits)
    assert 0.3 < spread < 3, (name, spread)
    query = params['decoder']['layer_0']['self_attention']['query']['kernel']
    assert 0.8 < np.std(query) * (16 * 6) ** 0.5 < 1.2
    loss = lambda p: -jnp.mean(jnp.log(jax.nn.softmax(model.forward(p, batch).logits)[..., 1]))
    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
      assert np.isfinite(np.asarray(leaf)).all() and np.asarray(leaf).any()


@pytest.mark.parametrize('bidirectional', [True, False])
def test_buckets_equal_the_published_formula(bidirectional):
  """Against the logarithm of Raffel et al.'s code, in float64, with its edges nudged upwards as t5x does."""
  relative = np.arange(-128, 129)
  buckets = 16 if bidirectional else 32
  distance = np.abs(relative) if bidirectional else np.maximum(-relative, 0)
  exact = buckets // 2
  large = exact + np.log(np.maximum(distance, 1) / exact + 1e-9) / np.log(128 / exact) * (buckets - exact)
  wanted = np.where(distance < exact, distance, np.minimum(large.astype(int), buckets - 1))
  if bidirectional:
    wanted = wanted + np.where(relative > 0, 16, 0)
  got = t5_layers.bucket_of_distance(32, 128, bidirectional)
  np.testing.assert_array_equal(got, wanted)
  assert got[128 - 16] == (10 if bidirectional else 16)


@pytest.mark.parametrize('name, millions', [
    ('t5_small', 60.5), ('t5_base', 222.9), ('t5_large', 737.7), ('t5_3b', 2851.6), ('t5_11b', 11307.3),
    ('t5_1_1_small', 77.0), ('t5_1_1_base', 247.6), ('t5_1_1_large', 783.2), ('t5_1_1_xl', 2849.8),
    ('t5_1_1_xxl', 11135.3)])
def test_named_config_has_the_published_number_of_parameters(name, millions):
  model = t5.T5LM(getattr(t5_configs, name)())
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  assert round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6, 1) == millions
  if name.startswith('t5_1_1'):
    assert getattr(t5_configs, name.replace('t5_1_1', 'flan_t5'))() == model.config


def test_equal_adapters_share_one_executable():
  assert _model(dtype='bfloat16') == _model(dtype=jnp.bfloat16)
  assert hash(_model(dtype='bfloat16')) == hash(_model(dtype=jnp.bfloat16))
  with pytest.raises(errors.ConfigError, match='mlp'):
    t5.T5Config(
        vocab_size=8, embed_dim=4, num_heads=1, head_dim=4, mlp_dim=4, num_encoder_layers=1, num_decoder_layers=1,
        mlp='swish', tied_head=True, scale_logits=True)
