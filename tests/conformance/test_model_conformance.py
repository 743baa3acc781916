"""Every model family passes the conformance suite of language models."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import types
from specjax.models import gemma
from specjax.models import t5
from specjax.testing import conformance
from specjax.testing import exactness
from specjax.testing import toy

SMALL = dict(vocab_size=11, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4)
GEMMA = gemma.DecoderConfig(
    **SMALL, layer_kinds=(gemma.LOCAL, gemma.GLOBAL), activation='gelu', window=5, norm_plus_one=True, post_norms=True,
    query_key_norm=True, attention_softcap=10.0, final_softcap=5.0, scale_embeddings=True)
LLAMA = gemma.DecoderConfig(**SMALL, layer_kinds=(gemma.GLOBAL,) * 2, activation='silu', tied_head=False)
T5 = t5.T5Config(
    vocab_size=11, embed_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=1, num_decoder_layers=2,
    num_buckets=8, max_distance=12, mlp='gated_gelu', tied_head=False, scale_logits=False)
MODELS = {
    'toy': toy.ToyLM(vocab_size=11), 'toy with a window': toy.ToyLM(vocab_size=11, window=3),
    'toy encoder-decoder': toy.ToyLM(vocab_size=11, has_encoder=True),
    'Gemma, ring cache': gemma.DecoderLM(GEMMA, max_extend=4, block_size=4),
    'Llama': gemma.DecoderLM(LLAMA, max_extend=4, block_size=8),
    'T5': t5.T5LM(T5),
}


def has_encoder(name):
  return 'encoder' in name or name.startswith('T5')


@pytest.mark.parametrize('name', MODELS)
def test_language_model(name):
  model = MODELS[name]
  params = exactness.random_params(model, 3, dtype=np.float32)
  conformance.check_language_model(model, params, has_encoder=has_encoder(name))


@pytest.mark.parametrize('name', ['Gemma, ring cache', 'T5'])
def test_tree(name):
  model = MODELS[name]
  conformance.check_tree(model, exactness.random_params(model, 3, dtype=np.float32), has_encoder=has_encoder(name))


# The suite must fail on models that are wrong.


@dataclasses.dataclass(frozen=True)
class Forgetful(toy.ToyLM):
  """Goes one token further back than it is told."""

  def rewind(self, cache, length):
    return cache._replace(length=jnp.maximum(length - 1, 0) + (length == cache.length).astype(jnp.int32))


@dataclasses.dataclass(frozen=True)
class Nosy(toy.ToyLM):
  """Its logits depend on the first tokens of all rows."""

  def extend(self, params, cache, tokens, *, count, **options):
    output, cache = super().extend(params, cache, tokens, count=count, **options)
    return types.LMOutput(output.logits + 1e-5 * jnp.sum(cache.tokens[:, 0]).astype(output.logits.dtype)), cache


@dataclasses.dataclass(frozen=True)
class Greedy(toy.ToyLM):
  """Sees one token past the block's causal boundary."""

  def extend(self, params, cache, tokens, *, count, **options):
    output, cache = super().extend(params, cache, tokens, count=count, **options)
    return types.LMOutput(output.logits + 0.01 * jnp.roll(tokens, -1, axis=1)[:, :, None].astype(output.logits.dtype)), cache


@pytest.mark.parametrize('wrong', [Forgetful, Nosy, Greedy])
def test_the_suite_fails_on_a_wrong_model(wrong):
  model = wrong(vocab_size=11)
  with pytest.raises(AssertionError):
    conformance.check_language_model(model, exactness.random_params(model, 3, dtype=np.float32))
