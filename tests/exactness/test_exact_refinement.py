"""The joint law of decoding with refined drafts and with n-gram drafts equals the target's, by enumeration."""

import functools

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
from specjax.testing import toy
from specjax.testing import tree_mutants
from specjax.training import ngram_counts

W = oracles.Warp
GEMMA = gemma.DecoderLM(gemma.DecoderConfig(
    vocab_size=3, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4,
    layer_kinds=(gemma.LOCAL, gemma.GLOBAL), activation='gelu', window=3, norm_plus_one=True, post_norms=True),
    dtype=jnp.float64, param_dtype=jnp.float64, max_extend=10, block_size=4, return_hidden=True)
SMALL = gemma.DecoderLM(gemma.DecoderConfig(
    vocab_size=3, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4, layer_kinds=(gemma.LOCAL,),
    activation='gelu', window=2, norm_plus_one=True, post_norms=True),
    dtype=jnp.float64, param_dtype=jnp.float64, max_extend=7, block_size=4)
T5 = t5.T5LM(t5.T5Config(
    vocab_size=3, embed_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=1, num_decoder_layers=1,
    num_buckets=8, max_distance=12, mlp='gated_gelu', tied_head=False, scale_logits=False), jnp.float64, jnp.float64)
TOY = toy.ToyLM(vocab_size=3, scale=0.6)
HEADS = heads_lib.DraftHeads(
    heads_lib.HeadsConfig(kind='blockwise', num_heads=3, embed_dim=8, hidden_dim=6), jnp.float64, jnp.float64)
TREE = trees.TreeShape.from_branching((2, 2))
SEQUENCES = [np.random.RandomState(seed).zipf(1.5, 20) % 3 for seed in range(3)]
WARPS = (W(), W(temperature=0.0), W(temperature=0.5), W(temperature=1.7, top_p=0.8))

LOCAL = functools.partial(drafters.LocalRescoring, top_k=2, weight=1.3)
LATTICE = functools.partial(drafters.LatticeRescoring, weight=1.3)
TOKEN, BLOCK = speculative.TokenVerifier(), speculative.BlockVerifier()
RECURSIVE, TRAVERSAL = speculative.RecursiveVerifier(), speculative.TraversalVerifier()


def heads_with(refinement, *, num_draft_tokens=2, shape=None):
  """A function of the target that returns the drafter."""
  num_nodes = refinement.num_nodes(num_draft_tokens) if shape is None else shape.num_nodes
  return lambda target: drafters.HeadDrafter(
      heads=HEADS, model=target, num_draft_tokens=num_nodes, shape=shape, draws='greedy', refinement=refinement,
      num_levels=num_draft_tokens if shape is None and num_nodes > num_draft_tokens else None)


def ngram_with(**options):
  return lambda target: drafters.NgramDrafter(vocab_size=3, num_draft_tokens=2, **options)


# name: (target, drafter of the target, verifier, order of the n-gram model)
CASES = {
    'local, toy': (GEMMA, heads_with(LOCAL(model=TOY)), TOKEN, 2),
    'local, sliding window, three in a row': (GEMMA, heads_with(LOCAL(model=SMALL), num_draft_tokens=3), BLOCK, 2),
    'local, encoder-decoder': (T5, heads_with(LOCAL(model=TOY)), TOKEN, 2),
    'local, an encoder-decoder that reads the input': (
        T5, heads_with(LOCAL(model=T5, reads_encoder=True)), BLOCK, 2),
    'local, tree': (GEMMA, heads_with(LOCAL(model=TOY), shape=TREE), RECURSIVE, 2),
    'local, tree, traversal': (T5, heads_with(LOCAL(model=TOY), shape=TREE), TRAVERSAL, 2),
    '2-gram': (GEMMA, heads_with(LATTICE(top_k=3, order=2)), BLOCK, 2),
    '4-gram, three in a row': (T5, heads_with(LATTICE(top_k=2, order=4), num_draft_tokens=3), TOKEN, 4),
    '3-best 2-gram': (GEMMA, heads_with(LATTICE(top_k=2, order=2, num_best=3)), RECURSIVE, 2),
    '4-best 0-gram': (T5, heads_with(LATTICE(top_k=3, order=0, num_best=4, weight=None)), RECURSIVE, 2),
    '2-best 4-gram, three in a row': (
        GEMMA, heads_with(LATTICE(top_k=2, order=4, num_best=2), num_draft_tokens=3), RECURSIVE, 4),
    'n-grams': (TOY, ngram_with(), TOKEN, 3),
    'n-grams, greedy': (GEMMA, ngram_with(draws='greedy'), BLOCK, 2),
    'n-grams of the text': (TOY, ngram_with(text_order=3, concentration=0.7), BLOCK, 2),
    'n-grams of the text, encoder-decoder': (T5, ngram_with(text_order=2, draws='greedy'), TOKEN, 2),
}


@pytest.mark.parametrize('name', CASES)
def test_joint_law_is_the_targets(name, x64):
  target, drafter_of, verifier, order = CASES[name]
  has_encoder = target is T5
  drafter = drafter_of(target)
  rescorer = getattr(getattr(drafter, 'refinement', None), 'model', TOY)
  params = {
      'target': exactness.random_params(target, 1), 'heads': exactness.random_params(HEADS, 2),
      'rescorer': exactness.random_params(rescorer, 3),
      'ngrams': ngram_counts.train(SEQUENCES, order=order, vocab_size=3, discount_fallback=ngram_counts.FALLBACK)}
  asked = [
      exactness.Request(
          prompt=tuple((i + j) % 3 for j in range(1 if has_encoder else 1 + i % 3)), warp=warp, max_new_tokens=(4, 3)[i % 2],
          eos_ids=((), (1,))[i % 2], encoder=(i % 3, 2) if has_encoder else None)
      for i, warp in enumerate(WARPS)]
  decoder = speculative.SpeculativeDecoder(target=target, rule=rules.Lossless(), verifier=verifier, drafter=drafter)
  test_order = None
  if verifier is RECURSIVE:
    test_order = tuple(range(decoder.num_draft_tokens))
  elif verifier is TRAVERSAL:
    test_order = tree_mutants.depth_first(TREE)
  joint = enumeration.Enumerator(rows=128, test_order=test_order).joint(
      decoder, params, exactness.arrays(asked, vocab_size=3), capacity=exactness.capacity(decoder, asked))
  oracle = exactness.Oracle.of(asked, target=target, drafter=None, params=params)
  for row, request in enumerate(asked):
    law = oracles.product_law(oracle.laws(row).goal, max_new_tokens=request.max_new_tokens, eos_ids=request.eos_ids)
    assert enumeration.total_variation(law, joint.laws[row]) <= 1e-12, row
    assert abs(joint.mass()[row] - 1) <= 1e-12
  assert np.sum(joint.counters['accepted']) > 0.2
