"""The decoder against logits and greedy continuations that the official gemma package and transformers wrote.

See README.md in the folder of references.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import types
from specjax.models import gemma
from specjax.models import layers

TOLERANCE = 5e-5
GEMMA = dict(
    vocab_size=160, embed_dim=24, hidden_dim=64, num_heads=4, head_dim=16, activation='gelu', norm_plus_one=True,
    post_norms=True, scale_embeddings=True)
GEMMA2 = gemma.DecoderConfig(
    **GEMMA, num_kv_heads=2, layer_kinds=('local', 'global') * 2, window=8, attention_softcap=50.0, final_softcap=30.0)
GEMMA3 = gemma.DecoderConfig(
    **GEMMA, num_kv_heads=1, layer_kinds=('local',) * 5 + ('global',) + ('local',) * 2, window=6, query_key_norm=True,
    global_rotary=layers.Rotary(base=1e6))


def nested(flat):
  tree = {}
  for path, leaf in flat.items():
    *parents, name = path.split('/')
    functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, tree)[name] = jnp.asarray(leaf)
  return tree


def from_official(flat, num_layers):
  """Our parameters from the leaves of the gemma package."""
  params = {'embedder/embedding': flat['embedder/input_embedding'], 'final_norm/scale': flat['final_norm/scale']}
  matrix = lambda x: np.swapaxes(x, 0, 1).reshape(x.shape[1], -1)  # [heads, D, H] -> [D, heads * H]
  for i in range(num_layers):
    ours, theirs = f'layer_{i}', f'layer_{i}'
    output = flat[f'{theirs}/attn/attn_vec_einsum/w']
    keys, values = flat[f'{theirs}/attn/kv_einsum/w']
    gate, up = flat[f'{theirs}/mlp/gating_einsum']
    params |= {
        f'{ours}/attention/query/kernel': matrix(flat[f'{theirs}/attn/q_einsum/w']),
        f'{ours}/attention/key/kernel': matrix(keys), f'{ours}/attention/value/kernel': matrix(values),
        f'{ours}/attention/output/kernel': output.reshape(-1, output.shape[-1]),
        f'{ours}/mlp/gate/kernel': gate, f'{ours}/mlp/up/kernel': up,
        f'{ours}/mlp/down/kernel': flat[f'{theirs}/mlp/linear'],
    }
    for norm in ('pre_attention_norm', 'post_attention_norm'):
      params[f'{ours}/{norm}/scale'] = flat[f'{theirs}/{norm}/scale']
    for norm in ('pre', 'post'):
      params[f'{ours}/{norm}_mlp_norm/scale'] = flat[f'{theirs}/{norm}_ffw_norm/scale']
  return nested(params)


def from_hugging_face(tensors, num_layers):
  """Our parameters from the tensors of a Gemma 2 or 3 file, whose matrices are [out, in]."""
  params = {
      'embedder/embedding': tensors['model.embed_tokens.weight'], 'final_norm/scale': tensors['model.norm.weight']}
  names = {
      'attention/query/kernel': 'self_attn.q_proj', 'attention/key/kernel': 'self_attn.k_proj',
      'attention/value/kernel': 'self_attn.v_proj', 'attention/output/kernel': 'self_attn.o_proj',
      'attention/query_norm/scale': 'self_attn.q_norm', 'attention/key_norm/scale': 'self_attn.k_norm',
      'mlp/gate/kernel': 'mlp.gate_proj', 'mlp/up/kernel': 'mlp.up_proj', 'mlp/down/kernel': 'mlp.down_proj',
      'pre_attention_norm/scale': 'input_layernorm', 'post_attention_norm/scale': 'post_attention_layernorm',
      'pre_mlp_norm/scale': 'pre_feedforward_layernorm', 'post_mlp_norm/scale': 'post_feedforward_layernorm'}
  for i in range(num_layers):
    for ours, theirs in names.items():
      leaf = tensors.get(f'model.layers.{i}.{theirs}.weight')
      if leaf is not None:
        params[f'layer_{i}/{ours}'] = leaf.T
  return nested(params)


def load_hugging_face(folder, config):
  numpy_format = pytest.importorskip('safetensors.numpy')
  tensors = numpy_format.load_file(folder / 'model.safetensors')
  return from_hugging_face(tensors, config.num_layers), np.load(folder / 'golden.npz')


def load_official(golden_dir):
  flat = np.load(golden_dir / 'gemma' / 'gemma2_2b_like' / 'params_flat.npz')
  return from_official(flat, GEMMA2.num_layers)


def forward(config, params, tokens):
  tokens = jnp.asarray(tokens, jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
  batch = types.TrainingBatch(
      tokens=tokens, targets=tokens, weights=jnp.ones(tokens.shape), positions=positions,
      segments=jnp.ones_like(tokens))
  return np.asarray(jax.jit(gemma.DecoderLM(config).forward)(params, batch).logits)


def greedy(config, params, tokens, length, num_tokens):
  """int32[B, num_tokens] by one-wide extends behind a ragged prompt; small ring layers, so that they wrap."""
  model = gemma.DecoderLM(config, max_extend=2, block_size=4)
  tokens, length = jnp.asarray(tokens, jnp.int32), jnp.asarray(length, jnp.int32)
  _, cache = model.prefill(params, types.Prompt(tokens, length), tokens.shape[1] + num_tokens)
  extend = jax.jit(model.extend)
  pending, out = jnp.take_along_axis(tokens, length[:, None] - 1, axis=1), []
  for _ in range(num_tokens):
    output, cache = extend(params, cache, pending, count=jnp.ones_like(length))
    pending = jnp.argmax(output.logits, axis=-1).astype(jnp.int32)
    out.append(pending)
  return np.asarray(jnp.concatenate(out, axis=1))


def test_gemma2_logits_of_the_official_package(golden_dir):
  batch = np.load(golden_dir / 'gemma' / 'batch.npz')
  golden = np.load(golden_dir / 'gemma' / 'gemma2_2b_like' / 'golden.npz')
  logits = forward(GEMMA2, load_official(golden_dir), batch['tokens'])
  for row, length in enumerate(batch['lengths']):
    np.testing.assert_allclose(logits[row, :length], golden['logits'][row, :length], atol=TOLERANCE, rtol=0)


def test_gemma2_greedy_continuation_of_the_official_sampler(golden_dir):
  golden = np.load(golden_dir / 'gemma' / 'gemma2_2b_like' / 'sampler_greedy.npz')
  tokens = np.zeros((2, 5), np.int32)
  for row in range(2):
    prompt = golden[f'prompt{row}']
    tokens[row, :len(prompt)] = prompt
  out = greedy(GEMMA2, load_official(golden_dir), tokens, [len(golden['prompt0']), len(golden['prompt1'])], 10)
  np.testing.assert_array_equal(out, [golden['out0'], golden['out1']])


@pytest.mark.parametrize('name, config', [('gemma2', GEMMA2), ('gemma3_text_v4cfg', GEMMA3)])
def test_logits_of_transformers(name, config, golden_dir):
  params, golden = load_hugging_face(golden_dir / 'hf' / name, config)
  np.testing.assert_allclose(
      forward(config, params, golden['input_ids']), golden['logits'], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize('name, config', [('gemma2', GEMMA2), ('gemma3_text_v4cfg', GEMMA3)])
def test_greedy_continuation_of_transformers(name, config, golden_dir):
  params, golden = load_hugging_face(golden_dir / 'hf' / name, config)
  out = greedy(config, params, golden['generate'][:, :8], [8, 8, 8], golden['generate'].shape[1] - 8)
  for row in range(3):
    expected = golden['generate'][row, 8:]
    kept = int(np.argmax(expected == 1)) + 1 if np.any(expected == 1) else len(expected)
    np.testing.assert_array_equal(out[row, :kept], expected[:kept])
