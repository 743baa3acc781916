"""Decoders against logits and greedy continuations that the official gemma package and transformers wrote.

See README.md in the folder of references.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax.checkpoints import native
from specjax.core import types
from specjax.models import gemma
from tests.golden import logit_checks

# The official files hold no configuration, and this is no published shape.
OFFICIAL = gemma.DecoderConfig(
    vocab_size=160, embed_dim=24, hidden_dim=64, num_heads=4, num_kv_heads=2, head_dim=16, activation='gelu',
    layer_kinds=('local', 'global') * 2, window=8, attention_softcap=50.0, final_softcap=30.0, norm_plus_one=True,
    post_norms=True, scale_embeddings=True)
HUGGING_FACE = ('gemma2', 'gemma3_text_v4cfg')


def load_official(golden_dir, layout='flat_f32', **options):
  return specjax.load(golden_dir / 'gemma' / 'gemma2_2b_like' / layout, config=OFFICIAL, **options)


def greedy(config, params, tokens, length, num_tokens):
  """int32[B, num_tokens] by one-wide extends behind a ragged prompt; small ring layers, so that they wrap."""
  model = gemma.DecoderLM(config, max_extend=2, block_size=4)
  tokens, length = jnp.asarray(tokens, jnp.int32), jnp.asarray(length, jnp.int32)
  prefill = logit_checks.compiled(model.prefill, static_argnums=2)
  _, cache = prefill(params, types.Prompt(tokens, length), tokens.shape[1] + num_tokens)
  extend = logit_checks.compiled(model.extend)
  pending, out = jnp.take_along_axis(tokens, length[:, None] - 1, axis=1), []
  for _ in range(num_tokens):
    output, cache = extend(params, cache, pending, count=jnp.ones_like(length))
    pending = jnp.argmax(output.logits, axis=-1).astype(jnp.int32)
    out.append(np.asarray(pending))
  return np.concatenate(out, axis=1)


def test_official_checkpoint_gives_the_logits_of_the_official_package(golden_dir):
  batch = np.load(golden_dir / 'gemma' / 'batch.npz')
  golden = np.load(golden_dir / 'gemma' / 'gemma2_2b_like' / 'golden.npz')
  mask = np.arange(batch['tokens'].shape[1])[None] < batch['lengths'][:, None]
  model, params = load_official(golden_dir)
  logit_checks.assert_all_passes_agree(
      model, params, golden['logits'], mask, start=[9, 1, 4], tokens=batch['tokens'])


def test_official_layouts_hold_the_same_parameters(golden_dir):
  flat = native.flatten(load_official(golden_dir)[1])
  nested = native.flatten(load_official(golden_dir, 'nested_f32')[1])
  model, rounded = load_official(golden_dir, 'nested_bf16')
  rounded = native.flatten(rounded)
  assert model.dtype == jnp.bfloat16  # Every leaf is stored so.
  assert flat.keys() == nested.keys() == rounded.keys()
  for name, leaf in flat.items():
    np.testing.assert_array_equal(nested[name], leaf, err_msg=name)
    np.testing.assert_array_equal(rounded[name], leaf.astype(jnp.bfloat16), err_msg=name)


def test_bfloat16_checkpoint_stays_as_close_as_the_official_package_in_bfloat16(golden_dir):
  # The package itself, in bfloat16, is 0.155 and 1.4e-3 nats away from its float32 logits: twice that is the tolerance.
  batch = np.load(golden_dir / 'gemma' / 'batch.npz')
  golden = np.load(golden_dir / 'gemma' / 'gemma2_2b_like' / 'golden.npz')
  mask = np.arange(batch['tokens'].shape[1])[None] < batch['lengths'][:, None]
  logits = logit_checks.forward_logits(*load_official(golden_dir, 'nested_bf16'), tokens=batch['tokens'])
  for reference in ('logits', 'logits_bf16'):
    logit_checks.assert_agrees(logits, golden[reference], mask, max_difference=0.31, max_kl=2.8e-3)


def test_gemma2_greedy_continuation_of_the_official_sampler(golden_dir):
  golden = np.load(golden_dir / 'gemma' / 'gemma2_2b_like' / 'sampler_greedy.npz')
  tokens = np.zeros((2, 5), np.int32)
  for row in range(2):
    prompt = golden[f'prompt{row}']
    tokens[row, :len(prompt)] = prompt
  length = [len(golden['prompt0']), len(golden['prompt1'])]
  out = greedy(OFFICIAL, load_official(golden_dir, 'nested_f32')[1], tokens, length, 10)
  np.testing.assert_array_equal(out, [golden['out0'], golden['out1']])


@pytest.mark.parametrize('name', HUGGING_FACE)
def test_logits_of_transformers(name, golden_dir):
  golden = np.load(golden_dir / 'hf' / name / 'golden.npz')
  model, params = specjax.load(golden_dir / 'hf' / name)
  mask = np.ones(golden['input_ids'].shape, bool)
  logit_checks.assert_all_passes_agree(
      model, params, golden['logits'], mask, start=[1, 7, 12], tokens=golden['input_ids'])


@pytest.mark.nightly
@pytest.mark.parametrize('name', HUGGING_FACE)
def test_logits_of_transformers_in_bfloat16(name, golden_dir):
  # transformers itself, in bfloat16, is 0.175 and 1.6e-3 nats away from its float32 logits.
  golden = np.load(golden_dir / 'hf' / name / 'golden.npz')
  if 'logits_bf16' not in golden:
    pytest.skip('no reference in bfloat16')
  model, params = specjax.load(golden_dir / 'hf' / name, dtype=jnp.bfloat16)
  logits = logit_checks.forward_logits(model, params, tokens=golden['input_ids'])
  mask = np.ones(golden['input_ids'].shape, bool)
  for reference in ('logits', 'logits_bf16'):
    logit_checks.assert_agrees(logits, golden[reference], mask, max_difference=0.31, max_kl=2.8e-3)


@pytest.mark.parametrize('name', HUGGING_FACE)
def test_greedy_continuation_of_transformers(name, golden_dir):
  golden = np.load(golden_dir / 'hf' / name / 'golden.npz')
  model, params = specjax.load(golden_dir / 'hf' / name)
  out = greedy(model.config, params, golden['generate'][:, :8], [8, 8, 8], golden['generate'].shape[1] - 8)
  for row in range(3):
    expected = golden['generate'][row, 8:]
    kept = int(np.argmax(expected == 1)) + 1 if np.any(expected == 1) else len(expected)
    np.testing.assert_array_equal(out[row, :kept], expected[:kept])
