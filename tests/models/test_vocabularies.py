"""Models through another vocabulary: what they are fed, and where their mass is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax.core import errors
from specjax.core import types
from specjax.models import gemma
from specjax.models import heads as heads_lib
from specjax.models import vocabularies
from specjax.testing import conformance
from specjax.testing import toy

INNER = toy.ToyLM(vocab_size=6, memory=3)
TOKEN_OF = np.array([2, 0, 5, 1], np.int32)  # token 1 is foreign; the model's unknown token is 0
IS_SHARED = np.array([True, False, True, True])


@pytest.fixture(scope='module')
def params():
  return INNER.init(jax.random.key(0))


def translated(params):
  return vocabularies.TranslatedLM(INNER, 4), {'model': params, 'token_of': TOKEN_OF, 'is_shared': IS_SHARED}


def prompt_of(tokens):
  return types.Prompt(jnp.asarray(tokens, jnp.int32), jnp.asarray([len(row) for row in tokens], jnp.int32))


def test_logits_are_those_of_the_translated_text(params):
  model, own = translated(params)
  tokens = np.array([[0, 1, 3, 2, 1]], np.int32)
  _, cache = model.prefill(own, prompt_of(tokens[:, :2]), 8)
  got, cache = model.extend(own, cache, jnp.asarray(tokens[:, 1:]), count=jnp.asarray([4], jnp.int32))
  _, inner = INNER.prefill(params, prompt_of(TOKEN_OF[tokens[:, :2]]), 8)
  expected, _ = INNER.extend(params, inner, jnp.asarray(TOKEN_OF[tokens[:, 1:]]), count=jnp.asarray([4], jnp.int32))
  np.testing.assert_array_equal(got.logits[..., IS_SHARED], expected.logits[..., TOKEN_OF[IS_SHARED]])
  assert np.all(got.logits[..., ~IS_SHARED] == -np.inf)
  assert model.length(cache) == 5 and model.length(model.rewind(cache, jnp.asarray([3], jnp.int32))) == 3


def test_the_law_is_the_drafters_given_a_shared_token(params):
  model, own = translated(params)
  _, cache = model.prefill(own, prompt_of([[0]]), 8)
  got, _ = model.extend(own, cache, jnp.asarray([[3]], jnp.int32), count=jnp.asarray([1], jnp.int32))
  _, inner = INNER.prefill(params, prompt_of([[2]]), 8)
  expected, _ = INNER.extend(params, inner, jnp.asarray([[1]], jnp.int32), count=jnp.asarray([1], jnp.int32))
  law = np.exp(np.asarray(expected.logits, np.float64))[0, 0, TOKEN_OF] * IS_SHARED
  np.testing.assert_allclose(jax.nn.softmax(got.logits)[0, 0], law / law.sum(), rtol=1e-5)


def test_padding_has_no_mass_and_more_rows_may_be_asked_for(params):
  model = vocabularies.PaddedLM(INNER, 5, 9)
  _, cache = model.prefill(params, prompt_of([[1, 2]]), 8)
  got, _ = model.extend(params, cache, jnp.asarray([[2]], jnp.int32), count=jnp.asarray([1], jnp.int32))
  _, inner = INNER.prefill(params, prompt_of([[1, 2]]), 8)
  expected, _ = INNER.extend(params, inner, jnp.asarray([[2]], jnp.int32), count=jnp.asarray([1], jnp.int32))
  assert got.logits.shape == (1, 1, 9)
  np.testing.assert_array_equal(got.logits[..., :5], expected.logits[..., :5])
  assert np.all(got.logits[..., 5:] == -np.inf)


@pytest.mark.parametrize('num_tokens, vocab_size', [(7, 9), (6, 5), (0, 6)])
def test_more_tokens_than_rows_are_refused(num_tokens, vocab_size):
  with pytest.raises(errors.VocabError, match='rows of the model'):
    vocabularies.PaddedLM(INNER, num_tokens, vocab_size)


def test_a_translated_model_is_a_language_model():
  inner = toy.ToyLM(vocab_size=11)
  random = np.random.RandomState(1)
  params = {
      'model': {name: random.randn(*leaf.shape).astype(np.float32)
                for name, leaf in jax.eval_shape(inner.init, jax.random.key(0)).items()},
      'token_of': random.permutation(11).astype(np.int32), 'is_shared': np.ones(11, bool)}
  conformance.check_language_model(vocabularies.TranslatedLM(inner, 11), params)


def test_both_share_the_limits_of_their_model(params):
  inner = toy.ToyLM(vocab_size=6, max_length=7)
  for model in (vocabularies.PaddedLM(inner, 5, 6), vocabularies.TranslatedLM(inner, 6)):
    assert model.max_length == 7 and model.max_extend is None and hash(model) == hash(model)
    fresh = model.init(jax.random.key(0))
    assert jax.tree.structure(fresh.get('model', fresh)) == jax.tree.structure(params)


def test_heads_draft_for_a_target_with_padding():
  inner = gemma.DecoderLM(gemma.DecoderConfig(
      vocab_size=9, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4, layer_kinds=(gemma.GLOBAL,),
      activation='gelu'))
  target, params = vocabularies.PaddedLM(inner, 7, 12), inner.init(jax.random.key(0))
  heads = heads_lib.DraftHeads(heads_lib.HeadsConfig(kind='medusa', num_heads=2, embed_dim=8))
  pair = specjax.Pair(
      target=target, drafter=target, family='decoder-only',
      params={'target': params, 'drafter': params, 'heads': heads.init(jax.random.key(1))})
  decode = lambda method: specjax.generate(
      pair, [[1, 2], [3]], method=method, sampling=specjax.SamplingParams(temperature=0.0), max_new_tokens=6, seed=0)
  drafted, alone = decode(specjax.draft_heads(heads=heads, num_draft_tokens=2)), decode(specjax.autoregressive())
  assert [row.tolist() for row in drafted.tokens] == [row.tolist() for row in alone.tokens]
  assert drafted.stats.accepted.sum() > 0
  tokens = np.array([[0, 6]], np.int32)
  np.testing.assert_array_equal(target.embed(params, tokens), inner.embed(params, tokens))
