"""Heads draft from the hidden state of the round before, without a pass of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax.core import errors
from specjax.models import gemma
from specjax.models import heads as heads_lib
from specjax.models import t5
from specjax.testing import exactness
from specjax.testing import toy

GEMMA = gemma.DecoderLM(gemma.DecoderConfig(
    vocab_size=13, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4,
    layer_kinds=(gemma.LOCAL, gemma.GLOBAL), activation='gelu', window=6, norm_plus_one=True, post_norms=True))
T5 = t5.T5LM(t5.T5Config(
    vocab_size=13, embed_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=1, num_decoder_layers=1,
    num_buckets=8, max_distance=12, mlp='gated_gelu', tied_head=False, scale_logits=False))
HEADS = heads_lib.DraftHeads(heads_lib.HeadsConfig(kind='blockwise', num_heads=3, embed_dim=8, hidden_dim=6))


def pair_of(target):
  params = {'target': exactness.random_params(target, 0, dtype=np.float32),
            'heads': exactness.random_params(HEADS, 1, dtype=np.float32), 'drafter': {}}
  family = 'encoder-decoder' if isinstance(target, t5.T5LM) else 'decoder-only'
  return specjax.Pair(target=target, drafter=target, params=params, family=family)


def generate(pair, method, temperature):
  return specjax.generate(
      pair, [[1, 2, 3], [4], [5, 6]], method=method, sampling=specjax.SamplingParams(temperature=temperature),
      max_new_tokens=10, seed=0, eos_ids=())


@pytest.mark.parametrize('target', [GEMMA, T5], ids=['gemma', 't5'])
@pytest.mark.parametrize('options', [dict(num_draft_tokens=3), dict(num_draft_tokens=2, draws='greedy'), dict(shape=(3, 2))])
def test_greedy_output_is_the_targets(target, options):
  pair = pair_of(target)
  plain, drafted = (generate(pair, method, 0.0) for method in (
      specjax.autoregressive(), specjax.draft_heads(heads=HEADS, **options)))
  assert [list(row) for row in plain.tokens] == [list(row) for row in drafted.tokens]
  assert np.sum(drafted.stats.drafter_calls) == 0 and np.sum(drafted.stats.proposed) > 0


def test_heads_that_add_nothing_repeat_the_targets_own_law():
  heads = heads_lib.DraftHeads(heads_lib.HeadsConfig(kind='medusa', num_heads=2, embed_dim=8))
  params = heads.init(jax.random.key(0))
  hidden = jnp.arange(16, dtype=jnp.float32).reshape(2, 8)
  np.testing.assert_array_equal(heads(params, hidden), np.repeat(np.asarray(hidden)[:, None], 2, axis=1))


def test_the_first_round_of_a_prompt_of_one_token_drafts_nothing():
  result = generate(pair_of(GEMMA), specjax.draft_heads(heads=HEADS, num_draft_tokens=3), 1.0)
  assert np.all(result.stats.proposed == 3 * (np.asarray(result.stats.steps) - np.array([0, 1, 0])))


@pytest.mark.parametrize('options, named', [
    (dict(num_draft_tokens=4), 'tokens in a row'), (dict(), 'num_draft_tokens and shape'),
    (dict(num_draft_tokens=2, shape=(2,)), 'num_draft_tokens and shape'), (dict(shape=(1, 1, 1, 1)), 'tokens in a row'),
    (dict(shape=(2,), verifier='token'), 'verifier'), (dict(num_draft_tokens=2, draws='best'), 'draws'),
    (dict(num_draft_tokens=2, rule=specjax.Chow(threshold=0.1)), 'rule of draft_heads')])
def test_bad_options_are_named(options, named):
  with pytest.raises(errors.ParamError, match=named):
    specjax.draft_heads(heads=HEADS, **options)


def test_heads_of_another_target_are_refused():
  wide = heads_lib.DraftHeads(heads_lib.HeadsConfig(kind='medusa', num_heads=2, embed_dim=16))
  with pytest.raises(errors.ParamError, match='width of the heads'):
    specjax.draft_heads(heads=wide, num_draft_tokens=2)(pair_of(GEMMA))
  pair = toy.toy_pair(vocab_size=5, seed=0)
  with pytest.raises(errors.ParamError, match='params of the pair'):
    specjax.draft_heads(heads=HEADS, num_draft_tokens=2)(pair)
