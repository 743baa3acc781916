"""The joint law of decoding with an autoregressive head equals the target's, by enumeration."""

import jax.numpy as jnp
import numpy as np
import pytest

from specjax import rules
from specjax.decode import speculative
from specjax.drafters import autoregressive_head as drafter_lib
from specjax.models import autoregressive_head
from specjax.models import gemma
from specjax.models import t5
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles

W = oracles.Warp
GEMMA = gemma.DecoderLM(gemma.DecoderConfig(
    vocab_size=3, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4,
    layer_kinds=(gemma.LOCAL, gemma.GLOBAL), activation='gelu', window=3, norm_plus_one=True, post_norms=True),
    dtype=jnp.float64, param_dtype=jnp.float64, max_extend=7, block_size=4, return_hidden=True)
T5 = t5.T5LM(t5.T5Config(
    vocab_size=3, embed_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=1, num_decoder_layers=1,
    num_buckets=8, max_distance=12, mlp='gated_gelu', tied_head=False, scale_logits=False), jnp.float64, jnp.float64)
HEAD = autoregressive_head.AutoregressiveHead(autoregressive_head.AutoregressiveHeadConfig(
    embed_dim=8, hidden_dim=6, num_heads=2, num_kv_heads=1, head_dim=4), jnp.float64, jnp.float64, block_size=4)
WARPS = (W(), W(temperature=0.0), W(temperature=0.5), W(temperature=1.7, top_p=0.8))


@pytest.mark.parametrize('cap', [None, 1])
@pytest.mark.parametrize('draws', ['sampled', 'greedy'])
@pytest.mark.parametrize('verifier', [speculative.TokenVerifier(), speculative.BlockVerifier()], ids=['token', 'block'])
@pytest.mark.parametrize('model', [GEMMA, T5], ids=['gemma', 't5'])
def test_joint_law_is_the_targets(model, verifier, draws, cap, x64):
  has_encoder = model is T5
  params = {'target': exactness.random_params(model, 1), 'autoregressive_head': exactness.random_params(HEAD, 2)}
  asked = [
      exactness.Request(
          prompt=tuple((i + j) % 3 for j in range(1 if has_encoder else 1 + i % 3)), warp=warp, max_new_tokens=(4, 3)[i % 2],
          eos_ids=((), (1,))[i % 2], encoder=(i % 3, 2) if has_encoder else None)
      for i, warp in enumerate(WARPS)]
  decoder = speculative.SpeculativeDecoder(
      target=model, rule=rules.Lossless(), verifier=verifier, drafter=drafter_lib.AutoregressiveHeadDrafter(
          head=HEAD, model=model, num_draft_tokens=2, draws=draws, max_draft_tokens=cap))
  joint = enumeration.Enumerator(rows=128).joint(
      decoder, params, exactness.arrays(asked, vocab_size=3), capacity=exactness.capacity(decoder, asked))
  oracle = exactness.Oracle.of(asked, target=model, drafter=None, params=params)
  for row, request in enumerate(asked):
    law = oracles.product_law(oracle.laws(row).goal, max_new_tokens=request.max_new_tokens, eos_ids=request.eos_ids)
    assert enumeration.total_variation(law, joint.laws[row]) <= 1e-12, row
  assert np.sum(joint.counters['accepted']) > 0.2
