"""The joint law of decoding with token trees equals the rule's, by enumeration: total variation at most 1e-12.

Drawn trees with and without replacement, deterministic ones, token trees over toys, over a Gemma with a sliding window and
over a T5, both lossless verifiers, cascade rules, sampling parameters, EOS and limits inside a path.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import rules
from specjax.decode import speculative
from specjax.models import gemma
from specjax.models import t5
from specjax.ops import trees
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import toy
from specjax.testing import tree_mutants

W = oracles.Warp
TOLERANCE = 1e-12
VERIFIERS = {
    'recursive': speculative.RecursiveVerifier(), 'traversal': speculative.TraversalVerifier(),
    'k sequential': speculative.KSequentialVerifier()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One structure; `branching` or `paths` give the tree."""

  vocab_size: int
  children: str
  requests: list[exactness.Request]
  branching: tuple[int, ...] = ()
  paths: tuple[tuple[int, ...], ...] = ()
  rule: Any = rules.Lossless()
  goal: Any = oracles.lossless_goal
  bonus: str = 'rule'
  models: str = 'toy'
  rows: int = 512
  seed: int = 1

  @property
  def shape(self):
    return trees.TreeShape.from_paths(self.paths) if self.paths else trees.TreeShape.from_branching(self.branching)


def requests(*warps, vocab_size, limits, eos=((),), encoder=False):
  """One `Request` per warp, ragged; limits and EOS cycle."""
  return [
      exactness.Request(
          prompt=tuple((i + j) % vocab_size for j in range(1 if encoder else 1 + i % 2)), warp=warp,
          max_new_tokens=limits[i % len(limits)], eos_ids=eos[i % len(eos)],
          encoder=tuple((i + 2 * j) % vocab_size for j in range(1 + i % 2)) if encoder else None)
      for i, warp in enumerate(warps)]


FEW = (W(), W(temperature=0.0), W(temperature=0.5), W(temperature=1.7, top_p=0.8))
SHARP = (W(top_k=2), W(temperature=1.7, min_p=0.3), W(temperature=0.5, top_p=0.9))
CASES = {
    'two children, distinct': Case(
        vocab_size=3, children='distinct', branching=(2,),
        requests=requests(*FEW, *SHARP, vocab_size=3, limits=(3, 2), eos=((), (1,)))),
    'two children, replacement': Case(
        vocab_size=3, children='replacement', branching=(2,),
        requests=requests(*FEW, *SHARP, vocab_size=3, limits=(3, 2), eos=((), (1,)))),
    'three children, distinct': Case(
        vocab_size=3, children='distinct', branching=(3,), requests=requests(*FEW, vocab_size=3, limits=(3, 2))),
    'three children, replacement': Case(
        vocab_size=2, children='replacement', branching=(3,), requests=requests(*FEW, vocab_size=2, limits=(4, 3))),
    'two levels, distinct': Case(
        vocab_size=2, children='distinct', branching=(2, 2),
        requests=requests(*FEW, vocab_size=2, limits=(4, 3), eos=((), (1,)))),
    'two levels, replacement': Case(
        vocab_size=2, children='replacement', branching=(2, 1),
        requests=requests(*FEW, vocab_size=2, limits=(4, 3), eos=((), (1,)))),
    'three levels of most probable tokens': Case(
        vocab_size=3, children='top', branching=(2, 2, 1),
        requests=requests(*FEW, *SHARP, vocab_size=3, limits=(5, 4), eos=((), (2,)))),
    "Medusa's choices": Case(
        vocab_size=3, children='top', paths=((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0)),
        requests=requests(*FEW, vocab_size=3, limits=(5,), eos=((), (1,)))),
    'a chain': Case(
        vocab_size=2, children='replacement', branching=(1, 1, 1), requests=requests(*FEW, vocab_size=2, limits=(5, 4))),
    'Chow': Case(
        vocab_size=3, children='distinct', branching=(2,), rule=rules.Chow(threshold=0.5), goal=oracles.chow_goal(0.5),
        seed=2, requests=requests(*FEW, vocab_size=3, limits=(3, 2), eos=((), (1,)))),
    'TokenV3': Case(
        vocab_size=3, children='top', branching=(2, 1), rule=rules.TokenV3(threshold=0.4), goal=oracles.token_v3_goal(0.4),
        requests=requests(*FEW, *SHARP, vocab_size=3, limits=(4, 3), eos=((), (1,)))),
    'encoder-decoder toy': Case(
        vocab_size=3, children='distinct', branching=(2,), models='encoder-decoder toy',
        requests=requests(*FEW, vocab_size=3, limits=(3,), eos=((), (1,)), encoder=True)),
    'Gemma, sliding window 3': Case(
        vocab_size=3, children='top', branching=(2, 2), models='gemma', rows=128,
        requests=requests(*FEW, vocab_size=3, limits=(5, 4), eos=((), (1,)))),
    'T5': Case(
        vocab_size=3, children='top', branching=(2, 2), models='t5', rows=128,
        requests=requests(*FEW, vocab_size=3, limits=(4,), eos=((), (1,)), encoder=True)),
}


def build_models(case):
  """(target, drafter, params); float64."""
  width = case.shape.num_nodes + 1
  if case.models == 'gemma':
    model = lambda layers: gemma.DecoderLM(gemma.DecoderConfig(
        vocab_size=case.vocab_size, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4,
        layer_kinds=(gemma.LOCAL, gemma.GLOBAL)[:layers], activation='gelu', window=3, norm_plus_one=True, post_norms=True),
        dtype=jnp.float64, param_dtype=jnp.float64, max_extend=width, block_size=4)
  elif case.models == 't5':
    model = lambda layers: t5.T5LM(t5.T5Config(
        vocab_size=case.vocab_size, embed_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=1,
        num_decoder_layers=layers, num_buckets=8, max_distance=12, mlp='gated_gelu', tied_head=False, scale_logits=False),
        jnp.float64, jnp.float64)
  else:
    pair = toy.toy_pair(vocab_size=case.vocab_size, seed=case.seed, scale=0.6, has_encoder=case.models.startswith('enc'))
    return pair.target, pair.drafter, pair.params
  target, drafter = model(2), model(1)
  return target, drafter, {
      'target': exactness.random_params(target, case.seed), 'drafter': exactness.random_params(drafter, case.seed + 1)}


def distances(case, verifier):
  """(law, mass) discrepancies of every request, and the expected counters."""
  target, drafter, params = build_models(case)
  decoder = speculative.SpeculativeDecoder(
      target=target, rule=case.rule, bonus=case.bonus, verifier=VERIFIERS[verifier],
      drafter=drafters.ModelTreeDrafter(model=drafter, shape=case.shape, children=case.children))
  order = tree_mutants.depth_first(case.shape) if verifier == 'traversal' else range(case.shape.num_nodes)
  joint = enumeration.Enumerator(rows=case.rows, test_order=tuple(order)).joint(
      decoder, params, exactness.arrays(case.requests, vocab_size=case.vocab_size),
      capacity=exactness.capacity(decoder, case.requests))
  oracle = exactness.Oracle.of(case.requests, target=target, drafter=drafter, params=params)
  found = []
  for row, request in enumerate(case.requests):
    law = oracles.product_law(
        oracle.laws(row, goal=case.goal).goal, max_new_tokens=request.max_new_tokens, eos_ids=request.eos_ids)
    found.append((enumeration.total_variation(law, joint.laws[row]), abs(joint.mass()[row] - 1)))
  return np.array(found), joint.counters


def test_at_least_sixty_configurations():
  assert sum(len(CASES[name].requests) for name, _ in PROVED) >= 60


PROVED = [
    (name, verifier) for name, case in CASES.items() for verifier in VERIFIERS
    if verifier != 'k sequential' or case.children == 'replacement']


@pytest.mark.parametrize('name, verifier', PROVED)
def test_joint_law_is_the_rules(name, verifier, x64):
  found, counters = distances(CASES[name], verifier)
  print(f'{name}, {verifier}: {len(found)} configurations, largest TV {found[:, 0].max():.1e}')
  assert found.max() <= TOLERANCE, found
  assert np.sum(counters['accepted']) > 0.2
