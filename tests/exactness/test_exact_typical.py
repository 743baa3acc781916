"""The joint law of typical acceptance equals its closed form, by enumeration: total variation at most 1e-12.

Deterministic and drawn trees and chains, bars that accept everything, little and nothing, temperatures, truncation, EOS and
limits inside a path; at temperature 0 the text is the greedy one.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import rules
from specjax.decode import speculative
from specjax.models import gemma
from specjax.ops import trees
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import toy
from specjax.testing import typical_oracle

W = oracles.Warp
WARPS = (W(), W(temperature=0.5), W(temperature=1.7, top_p=0.8), W(temperature=0.0), W(top_k=2))
SHAPES = {
    'two children': (0, 0), 'a chain': (0, 1, 2), 'two levels': (0, 0, 1, 1, 2), "Medusa's choices": (0, 0, 0, 1, 1, 2, 4)}
CASES = [
    (shape, children, knobs, models)
    for shape, children, models in (
        ('two levels', 'top', 'toy'), ('a chain', 'top', 'toy'), ("Medusa's choices", 'top', 'toy'), ('two levels', 'top', 'gemma'),
        ('two children', 'distinct', 'toy'), ('two children', 'replacement', 'toy'), ('two levels', 'top', 'encoder-decoder toy'))
    for knobs in ((0.4, 0.6), (0.09, 0.3), (0.0, 1.0), (0.6, 2.5))]


def requests(*, max_new_tokens, encoder):
  return [
      exactness.Request(
          prompt=tuple((i + j) % 3 for j in range(1 if encoder else 1 + i % 2)), warp=warp,
          max_new_tokens=max_new_tokens - i % 2, eos_ids=((), (1,))[i % 2], encoder=(i % 3, 2) if encoder else None)
      for i, warp in enumerate(WARPS)]


def build(models):
  """(target, drafter, params), float64, of three tokens."""
  if models == 'gemma':
    make = lambda layers: gemma.DecoderLM(gemma.DecoderConfig(
        vocab_size=3, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4,
        layer_kinds=(gemma.LOCAL, gemma.GLOBAL)[:layers], activation='gelu', window=3, norm_plus_one=True, post_norms=True),
        dtype=jnp.float64, param_dtype=jnp.float64, max_extend=8, block_size=4)
    target, drafter = make(2), make(1)
    return target, drafter, {
        'target': exactness.random_params(target, 1), 'drafter': exactness.random_params(drafter, 2)}
  pair = toy.toy_pair(vocab_size=3, seed=4, scale=0.6, has_encoder=models.startswith('encoder'))
  return pair.target, pair.drafter, pair.params


@pytest.mark.parametrize('shape, children, knobs, models', CASES)
def test_joint_law_is_the_closed_form(shape, children, knobs, models, x64):
  target, drafter, params = build(models)
  tree = trees.TreeShape(SHAPES[shape])
  asked = requests(max_new_tokens=4 if children == 'top' else 3, encoder=models.startswith('encoder'))
  decoder = speculative.SpeculativeDecoder(
      target=target, rule=rules.Lossless(), verifier=speculative.TypicalVerifier(epsilon=knobs[0], delta=knobs[1]),
      drafter=drafters.ModelTreeDrafter(model=drafter, shape=tree, children=children))
  joint = enumeration.Enumerator(rows=128).joint(
      decoder, params, exactness.arrays(asked, vocab_size=3), capacity=exactness.capacity(decoder, asked))
  # A path is chosen before the limit cuts it, so laws behind the limit matter.
  longer = [dataclasses.replace(one, max_new_tokens=one.max_new_tokens + tree.max_depth) for one in asked]
  oracle = exactness.Oracle.of(longer, target=target, drafter=drafter, params=params)
  for row, request in enumerate(asked):
    expected = typical_oracle.joint_law(
        oracle.laws(row), tree.parents, children=children, epsilon=knobs[0], delta=knobs[1],
        max_new_tokens=request.max_new_tokens, eos_ids=request.eos_ids)
    assert abs(sum(expected.values()) - 1) <= 1e-12
    assert enumeration.total_variation(expected, joint.laws[row]) <= 1e-12, row
    own = oracles.product_law(
        oracle.laws(row).goal, max_new_tokens=request.max_new_tokens, eos_ids=request.eos_ids)
    away = enumeration.total_variation(own, joint.laws[row])
    if request.warp.temperature == 0:
      assert away == 0 and joint.counters['accepted'][row] >= 0
    elif knobs == (0.0, 1.0):  # Everything is accepted, so the law is the drafts'.
      assert away > 0.02, (row, away)
  assert np.sum(joint.counters['accepted']) > (0.2 if knobs[0] < 0.6 else 0)
