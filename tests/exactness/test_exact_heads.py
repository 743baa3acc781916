"""The joint law of blockwise parallel decoding and of Medusa's trees equals the target's, by enumeration."""

import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import rules
from specjax.decode import speculative
from specjax.models import gemma
from specjax.models import heads as heads_lib
from specjax.models import t5
from specjax.ops import trees
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
TREE = trees.TreeShape.from_branching((2, 2))
WARPS = (W(), W(temperature=0.0), W(temperature=0.5), W(temperature=1.7, top_p=0.8))


@pytest.mark.parametrize('kind', ['blockwise', 'medusa'])
@pytest.mark.parametrize('shape, draws, verifier', [
    (None, 'sampled', speculative.TokenVerifier()), (None, 'greedy', speculative.BlockVerifier()),
    (TREE, 'greedy', speculative.RecursiveVerifier()), (TREE, 'greedy', speculative.TraversalVerifier())])
@pytest.mark.parametrize('model', [GEMMA, T5], ids=['gemma', 't5'])
def test_joint_law_is_the_targets(model, shape, draws, verifier, kind, x64):
  has_encoder = model is T5
  config = heads_lib.HeadsConfig(kind=kind, num_heads=2, embed_dim=8, hidden_dim=6 if kind == 'blockwise' else None)
  heads = heads_lib.DraftHeads(config, dtype=jnp.float64, param_dtype=jnp.float64)
  params = {'target': exactness.random_params(model, 1), 'heads': exactness.random_params(heads, 2)}
  asked = [
      exactness.Request(
          prompt=tuple((i + j) % 3 for j in range(1 if has_encoder else 1 + i % 3)), warp=warp, max_new_tokens=(4, 3)[i % 2],
          eos_ids=((), (1,))[i % 2], encoder=(i % 3, 2) if has_encoder else None)
      for i, warp in enumerate(WARPS)]
  decoder = speculative.SpeculativeDecoder(
      target=model, rule=rules.Lossless(), verifier=verifier, drafter=drafters.HeadDrafter(
          heads=heads, model=model, num_draft_tokens=2 if shape is None else shape.num_nodes, shape=shape, draws=draws))
  order = None
  if isinstance(verifier, speculative.RecursiveVerifier):
    order = tuple(range(6))
  elif isinstance(verifier, speculative.TraversalVerifier):
    order = (2, 3, 0, 4, 5, 1)
  joint = enumeration.Enumerator(rows=128, test_order=order).joint(
      decoder, params, exactness.arrays(asked, vocab_size=3), capacity=exactness.capacity(decoder, asked))
  oracle = exactness.Oracle.of(asked, target=model, drafter=None, params=params)
  for row, request in enumerate(asked):
    law = oracles.product_law(oracle.laws(row).goal, max_new_tokens=request.max_new_tokens, eos_ids=request.eos_ids)
    assert enumeration.total_variation(law, joint.laws[row]) <= 1e-12, row
  assert np.sum(joint.counters['accepted']) > 0.2 and np.all(joint.counters['drafter_calls'] == 0)
