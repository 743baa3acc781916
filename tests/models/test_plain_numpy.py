"""Both families against the same networks written down plainly: float64, one row, one head and one token at a time.

The references are written from the papers (Raffel et al. 2020; Gemma Team 2024, 2025; Su et al. 2021) and share no code with
the models. Each guard is shown to fail: `test_the_reference_tells_*` changes one detail and asks for a difference.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import types
from specjax.models import gemma
from specjax.models import layers
from specjax.models import t5
from specjax.testing import exactness

TOKENS = np.array([3, 7, 1, 1, 9, 4, 0, 8, 2, 5])
SOURCE = np.array([6, 2, 8, 8, 1])


def rms_norm(x, scale, epsilon=1e-6):
  return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def attention(queries, keys, values, score):
  """[T, N, D]; `score(head, t, s, dot product)` is the score, or None where t does not see s."""
  out = np.zeros((queries.shape[0], queries.shape[1], values.shape[2]))
  for head in range(queries.shape[1]):
    source = head // (queries.shape[1] // keys.shape[1])
    for t in range(queries.shape[0]):
      scores = {s: score(head, t, s, queries[t, head] @ keys[s, source]) for s in range(keys.shape[0])}
      seen = [s for s in scores if scores[s] is not None]
      weights = softmax(np.array([scores[s] for s in seen]))
      out[t, head] = sum(w * values[s, source] for w, s in zip(weights, seen))
  return out


def heads(x, kernel, num_heads):
  return (x @ kernel).reshape(len(x), num_heads, -1)


# T5.


def t5_bucket(distance, *, bidirectional, num_buckets, max_distance):
  """The bucket of `distance` = key - query, by the published recursion over logarithms."""
  bucket = 0
  if bidirectional:
    num_buckets //= 2
    bucket = num_buckets if distance > 0 else 0
    distance = abs(distance)
  else:
    distance = max(-distance, 0)
  exact = num_buckets // 2
  if distance < exact:
    return bucket + distance
  grown = np.log(distance / exact) / np.log(max_distance / exact) * (num_buckets - exact)
  return bucket + min(exact + int(grown + 1e-9), num_buckets - 1)


def plain_t5(params, config, source, tokens, *, bias_sign=1, bias_shift=0, head_scale=None):
  """Logits [T, V]; the keyword arguments plant errors."""

  def mlp(p, x):
    if config.mlp == 'relu':
      return np.maximum(x @ p['up']['kernel'], 0) @ p['down']['kernel']
    return (gelu(x @ p['gate']['kernel']) * (x @ p['up']['kernel'])) @ p['down']['kernel']

  def attend(p, x, memory, bias, causal):
    q, k, v = (heads(y, p[name]['kernel'], config.num_heads) for y, name in ((x, 'query'), (memory, 'key'), (memory, 'value')))
    score = lambda head, t, s, dot: None if causal and s > t else dot + bias(head, s - t)
    return attention(q, k, v, score).reshape(len(x), -1) @ p['output']['kernel']

  def bias_of(stack, bidirectional):
    table = params[stack]['relative_bias']['embedding']
    return lambda head, distance: table[t5_bucket(
        bias_sign * distance + bias_shift, bidirectional=bidirectional, num_buckets=config.num_buckets,
        max_distance=config.max_distance), head]

  nothing = lambda head, distance: 0.0
  embedding = params['token_embedder']['embedding']
  x = embedding[source]
  for i in range(config.num_encoder_layers):
    p = params['encoder'][f'layer_{i}']
    y = rms_norm(x, p['pre_attention_norm']['scale'])
    x = x + attend(p['attention'], y, y, bias_of('encoder', True), False)
    x = x + mlp(p['mlp'], rms_norm(x, p['pre_mlp_norm']['scale']))
  memory = rms_norm(x, params['encoder']['final_norm']['scale'])
  x = embedding[tokens]
  for i in range(config.num_decoder_layers):
    p = params['decoder'][f'layer_{i}']
    y = rms_norm(x, p['pre_self_attention_norm']['scale'])
    x = x + attend(p['self_attention'], y, y, bias_of('decoder', False), True)
    y = rms_norm(x, p['pre_cross_attention_norm']['scale'])
    x = x + attend(p['cross_attention'], y, memory, nothing, False)
    x = x + mlp(p['mlp'], rms_norm(x, p['pre_mlp_norm']['scale']))
  hidden = rms_norm(x, params['decoder']['final_norm']['scale'])
  scale = head_scale or (config.embed_dim**-0.5 if config.scale_logits else 1.0)
  return hidden * scale @ (embedding.T if config.tied_head else params['head']['kernel'])


T5 = {
    'T5 1.0': dict(mlp='relu', tied_head=True, scale_logits=True),
    'T5 1.1': dict(mlp='gated_gelu', tied_head=False, scale_logits=False)}


def t5_of(name):
  config = t5.T5Config(
      vocab_size=11, embed_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=2, num_decoder_layers=2,
      num_buckets=8, max_distance=6, **T5[name])
  model = t5.T5LM(config, jnp.float64, jnp.float64)
  return config, model, exactness.random_params(model, 4, scale=0.7)


def t5_logits(model, params):
  one = lambda tokens: tokens[None].astype(np.int32)
  index = lambda tokens: one(np.arange(len(tokens)))
  batch = types.TrainingBatch(
      tokens=one(TOKENS), targets=one(TOKENS), weights=np.ones((1, len(TOKENS)), np.float32), positions=index(TOKENS),
      segments=np.ones((1, len(TOKENS)), np.int32), encoder_tokens=one(SOURCE), encoder_positions=index(SOURCE),
      encoder_segments=np.ones((1, len(SOURCE)), np.int32))
  return np.asarray(jax.jit(lambda p: model.forward(p, batch).logits)(params))[0]


@pytest.mark.parametrize('name', T5)
def test_t5_equals_the_plain_network(name, x64):
  config, model, params = t5_of(name)
  assert np.abs(t5_logits(model, params) - plain_t5(params, config, SOURCE, TOKENS)).max() < 1e-10


@pytest.mark.parametrize('planted', [dict(bias_sign=-1), dict(bias_shift=1), dict(bias_shift=-1), dict(head_scale=0.5)])
def test_the_reference_tells_another_t5(planted, x64):
  config, model, params = t5_of('T5 1.0')
  assert np.abs(t5_logits(model, params) - plain_t5(params, config, SOURCE, TOKENS, **planted)).max() > 1e-3


# Gemma and Llama.


def rotate(x, position, rotary):
  """One head's vector float[D] at a position: pairs (i, i + D / 2) turn by position / base^(2 i / D)."""
  half, out = len(x) // 2, np.empty_like(x)
  for i in range(half):
    angle = position * rotary.base ** (-2 * i / len(x)) / rotary.factor
    out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
    out[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
  return out


def plain_decoder(params, config, tokens, *, window_shift=0, swap_rotary=False):
  """Logits [T, V]; the keyword arguments plant errors."""
  scale_of = lambda p: p['scale'] + (1 if config.norm_plus_one else 0)
  norm = lambda p, x: rms_norm(x, scale_of(p), config.norm_epsilon)
  cap = lambda x, limit: x if limit is None else limit * np.tanh(x / limit)
  activation = gelu if config.activation == 'gelu' else lambda x: x / (1 + np.exp(-x))
  embedding = params['embedder']['embedding']
  x = embedding[tokens] * (np.sqrt(config.embed_dim) if config.scale_embeddings else 1)
  for i, kind in enumerate(config.layer_kinds):
    p = params[f'layer_{i}']
    is_local = kind == gemma.LOCAL
    rotary = config.local_rotary if is_local != swap_rotary else config.global_rotary
    y = norm(p['pre_attention_norm'], x)
    q = heads(y, p['attention']['query']['kernel'], config.num_heads)
    k = heads(y, p['attention']['key']['kernel'], config.num_kv_heads)
    v = heads(y, p['attention']['value']['kernel'], config.num_kv_heads)
    if config.query_key_norm:
      q, k = norm(p['attention']['query_norm'], q), norm(p['attention']['key_norm'], k)
    turned = lambda z: np.stack([[rotate(head, t, rotary) for head in z[t]] for t in range(len(z))])
    scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale

    def score(head, t, s, dot, is_local=is_local):
      if s > t or (is_local and s <= t - config.window - window_shift):
        return None
      return cap(dot * scale, config.attention_softcap)

    y = attention(turned(q), turned(k), v, score).reshape(len(x), -1) @ p['attention']['output']['kernel']
    x = x + (norm(p['post_attention_norm'], y) if config.post_norms else y)
    y = norm(p['pre_mlp_norm'], x)
    y = activation(y @ p['mlp']['gate']['kernel']) * (y @ p['mlp']['up']['kernel']) @ p['mlp']['down']['kernel']
    x = x + (norm(p['post_mlp_norm'], y) if config.post_norms else y)
  hidden = norm(params['final_norm'], x)
  return cap(hidden @ (embedding.T if config.tied_head else params['head']['kernel']), config.final_softcap)


SHAPE = dict(vocab_size=11, embed_dim=8, hidden_dim=12, head_dim=4)
DECODERS = {
    'Gemma 1': dict(num_heads=2, num_kv_heads=1, layer_kinds=(gemma.GLOBAL,) * 2, activation='gelu', norm_plus_one=True,
                    scale_embeddings=True),
    'Gemma 2': dict(num_heads=4, num_kv_heads=2, layer_kinds=(gemma.LOCAL, gemma.GLOBAL), activation='gelu', window=3,
                    norm_plus_one=True, post_norms=True, scale_embeddings=True, query_scale=0.3, attention_softcap=2.0,
                    final_softcap=3.0),
    'Gemma 3': dict(num_heads=2, num_kv_heads=1, layer_kinds=(gemma.LOCAL, gemma.LOCAL, gemma.GLOBAL), activation='gelu',
                    window=4, norm_plus_one=True, post_norms=True, scale_embeddings=True, query_key_norm=True,
                    global_rotary=layers.Rotary(base=1e6, factor=8.0), local_rotary=layers.Rotary(base=1e4)),
    'Llama 2': dict(num_heads=2, num_kv_heads=2, layer_kinds=(gemma.GLOBAL,) * 2, activation='silu', tied_head=False,
                    norm_epsilon=1e-5)}


def decoder_of(name):
  config = gemma.DecoderConfig(**SHAPE, **DECODERS[name])
  model = gemma.DecoderLM(config, dtype=jnp.float64, param_dtype=jnp.float64)
  return config, model, exactness.random_params(model, 5, scale=0.8)


def decoder_logits(model, params):
  one = TOKENS[None].astype(np.int32)
  batch = types.TrainingBatch(
      tokens=one, targets=one, weights=np.ones(one.shape, np.float32),
      positions=np.arange(len(TOKENS), dtype=np.int32)[None], segments=np.ones_like(one))
  return np.asarray(jax.jit(lambda p: model.forward(p, batch).logits)(params))[0]


@pytest.mark.parametrize('name', DECODERS)
def test_decoder_equals_the_plain_network(name, x64):
  config, model, params = decoder_of(name)
  assert np.abs(decoder_logits(model, params) - plain_decoder(params, config, TOKENS)).max() < 1e-10


@pytest.mark.parametrize('planted', [dict(window_shift=1), dict(window_shift=-1), dict(swap_rotary=True)])
def test_the_reference_tells_another_decoder(planted, x64):
  config, model, params = decoder_of('Gemma 3')
  assert np.abs(decoder_logits(model, params) - plain_decoder(params, config, TOKENS, **planted)).max() > 1e-4
