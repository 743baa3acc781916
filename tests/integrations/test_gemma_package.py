"""The adapter of the gemma package keeps the contract of a language model: on a stand-in, and on the package where it is."""

import importlib.util
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gemma_like
import specjax
from specjax.core import errors
from specjax.core import types
from specjax.decode import generate
from specjax.decode import methods
from specjax.integrations import gemma_package
from specjax.testing import conformance

STAND_IN = gemma_package.GemmaPackageLM(gemma_like.Transformer(), return_hidden=True)
HAS_PACKAGE = importlib.util.find_spec('gemma') is not None
needs_package = pytest.mark.skipif(not HAS_PACKAGE, reason='the gemma package is not installed: pip install -e .[gemma]')


@pytest.fixture(autouse=True)
def promotion_of_the_package():
  """The package's own modules promote ranks and types."""
  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'), jax.debug_key_reuse(False):
    yield


@pytest.fixture(scope='module')
def stand_in_params():
  return jax.jit(STAND_IN.init)(jax.random.key(0))


def official(**changes):
  """A small Transformer of the package, in float32."""
  import kauldron.checkpoints
  if not hasattr(kauldron.checkpoints, 'AbstractPartialLoader'):  # gemma 3.3.0 knows it by the name it had before 1.4
    kauldron.checkpoints.AbstractPartialLoader = kauldron.checkpoints.InitTransform
  from gemma import gm
  from gemma.gm.nn import _config
  from gemma.gm.nn import _modules
  local, everywhere = _modules.AttentionType.LOCAL_SLIDING, _modules.AttentionType.GLOBAL
  settings = dict(
      num_embed=31, embed_dim=16, hidden_dim=24, num_heads=4, head_dim=8, num_kv_heads=2, final_logit_softcap=30.0,
      use_post_attn_norm=True, use_post_ffw_norm=True, attention_types=(local, everywhere, local),
      attn_logits_soft_cap=50.0, sliding_window_size=5, use_qk_norm=True) | changes
  return gm.nn.Transformer(config=_config.TransformerConfig(**settings), dtype=jnp.float32)


CONFIGS = pytest.mark.parametrize('changes', [
    {}, {'num_kv_heads': 1, 'transpose_gating_einsum': True},
    {'num_kv_heads': 4, 'use_qk_norm': False, 'attn_logits_soft_cap': None, 'use_post_attn_norm': False}],
    ids=['grouped', 'multi_query', 'multi_head'])


def test_the_stand_in_conforms(stand_in_params):
  conformance.check_language_model(STAND_IN, stand_in_params)


def test_trees_of_the_stand_in_conform(stand_in_params):
  conformance.check_tree(STAND_IN, stand_in_params)


def test_rows_do_not_share_a_slot(stand_in_params):
  """What breaks without a row of its own: lengths that differ, each row fed and rewound by another number."""
  tokens = jnp.asarray([[1, 2, 3], [4, 5, 6]], jnp.int32)
  _, cache = STAND_IN.prefill(stand_in_params, types.Prompt(tokens, jnp.asarray([3, 1], jnp.int32)), 8)
  _, cache = STAND_IN.extend(stand_in_params, cache, tokens, count=jnp.asarray([1, 3], jnp.int32))
  assert STAND_IN.length(cache).tolist() == [3, 3]
  positions = np.asarray(cache.layers['layer_0']['positions'])
  np.testing.assert_array_equal(positions[:, :3], [[0, 1, 2]] * 2)


def pair_of(target, params, drafter=None, drafter_params=None):
  """A pair of decoder-only models without a tokenizer."""
  return python_types.SimpleNamespace(
      target=target, drafter=drafter or target, family='decoder-only', tokenizer=None,
      params={'target': params, 'drafter': params if drafter_params is None else drafter_params})


PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]


def decode(pair, method, **options):
  options = dict(sampling=specjax.SamplingParams(temperature=0.0), max_new_tokens=12, seed=0, eos_ids=(), batch_size=3) | options
  return generate.generate(pair, PROMPTS, method=method, **options)


def test_speculative_decoding_is_greedy_and_a_self_draft_is_accepted(stand_in_params):
  pair = pair_of(STAND_IN, stand_in_params)
  drafted, plain = decode(pair, methods.speculative(num_draft_tokens=3)), decode(pair, methods.autoregressive())
  assert [row.tolist() for row in drafted.tokens] == [row.tolist() for row in plain.tokens]
  assert drafted.stats.target_calls.tolist() == [3, 3, 3] and plain.stats.target_calls.tolist() == [12, 12, 12]


def test_what_is_no_transformer_is_refused():
  with pytest.raises(errors.ConfigError, match='transformer'):
    gemma_package.GemmaPackageLM('gemma3_1b')


def test_a_prompt_that_does_not_fit_is_refused(stand_in_params):
  with pytest.raises(errors.LimitError, match='at most 3'):
    STAND_IN.prefill(stand_in_params, types.Prompt(jnp.ones((1, 9), jnp.int32), jnp.ones((1,), jnp.int32)), 2)


@needs_package
@CONFIGS
def test_the_package_conforms(changes):
  model = gemma_package.GemmaPackageLM(official(**changes))
  params = jax.jit(model.init)(jax.random.key(0))
  conformance.check_language_model(model, params)
  conformance.check_tree(model, params)


@needs_package
def test_the_package_decodes_its_own_greedy_tokens():
  transformer = official()
  model = gemma_package.GemmaPackageLM(transformer)
  params = jax.jit(model.init)(jax.random.key(1))
  rng = np.random.default_rng(0)
  near = jax.tree.map(lambda x: x + 0.02 * rng.standard_normal(x.shape).astype(np.float32), params)
  # The package takes id 0 for padding where it makes its own masks, as it does for the reference.
  sampling = specjax.SamplingParams(temperature=0.0, allowed_tokens=tuple(range(1, model.vocab_size)))
  result = decode(pair_of(model, params, model, near), methods.speculative(num_draft_tokens=3), sampling=sampling)
  forward = jax.jit(lambda tokens: transformer.apply({'params': params}, tokens).logits)
  for prompt, tokens in zip(PROMPTS, result.tokens, strict=True):
    text = list(prompt)
    for token in tokens:
      padded = np.zeros((1, 20), np.int32)
      padded[0, :len(text)] = text
      assert 1 + int(np.argmax(forward(padded)[0, len(text) - 1, 1:])) == int(token)
      text.append(int(token))
  assert np.sum(result.stats.target_calls) < np.sum(result.length)
