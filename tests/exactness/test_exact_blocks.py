"""Block verification: the joint law over all sequences is the rule's, the counters are those of the weights, nothing leaks.

The cases are those of token verification, every one but autoregressive decoding: K 1 to 4, ragged and adversarial
proposals, EOS and limits inside the block, three rules, both bonus laws, real families.
"""

import dataclasses

import numpy as np
import pytest

import test_exact_law as token_tests

from specjax import drafters
from specjax import rules
from specjax.core import types
from specjax.decode import speculative
from specjax.testing import adversarial
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import toy

W = oracles.Warp
Request = exactness.Request
VERIFIERS = {'token': speculative.TokenVerifier(), 'block': speculative.BlockVerifier()}
CASES = {name: case for name, case in token_tests.CASES.items() if case.drafter != 'none'}


def enumerator_of(case, **kwargs):
  breaks = [adversarial.policy_breaks(policy) for policy, _ in token_tests.POLICIES]
  return enumeration.Enumerator(
      rows=case.rows, policy_breaks=breaks if case.drafter == 'adversarial' else (), **kwargs)


def enumerated(case, value, verifier, *, enumerator=None, at=0.5):
  """(`JointLaw`, arguments of `exactness.compare`) of one case and one value of what it varies."""
  target, drafter, params = token_tests.build_models(case)
  enumerator = enumerator or enumerator_of(case)
  decoder = token_tests.build_decoder(case, target, drafter, value).replace(verifier=VERIFIERS[verifier])
  joint = enumerator.evaluated_at(at).joint(
      decoder, params, exactness.arrays(case.requests, vocab_size=case.vocab_size),
      capacity=exactness.capacity(decoder, case.requests))
  goal = {'Chow': oracles.chow_goal, 'TokenV3': oracles.token_v3_goal}.get(case.rule, lambda _: oracles.lossless_goal)
  compared = dict(
      oracle=exactness.Oracle.of(case.requests, target=target, drafter=drafter, params=params), goal=goal(value),
      num_draft_tokens=value if case.has_cap else case.num_draft_tokens, bonus=case.bonus, verifier=verifier)
  if case.drafter == 'adversarial':
    compared['stops'] = [
        adversarial.stop_probability(policy, case.num_draft_tokens, request.prompt)
        for (policy, _), request in zip(token_tests.POLICIES, case.requests)]
    compared['drafts'] = [adversarial.draft_law(law) for _, law in token_tests.POLICIES]
  return joint, compared


@pytest.mark.parametrize('name', CASES)
def test_joint_law_and_counters_are_the_rules(name, x64):
  case, found = CASES[name], []
  enumerator = enumerator_of(case)
  for value in case.vary:
    joint, compared = enumerated(case, value, 'block', enumerator=enumerator)
    found += exactness.compare(joint, **compared)
  print(f'{name}: {len(found)} configurations, largest TV {max(one.law for one in found):.1e}, '
        f'counters {max(one.counters for one in found):.1e}')
  token_tests.assert_exact(found)


def test_at_least_a_hundred_configurations():
  assert sum(len(case.requests) * len(case.vary) for case in CASES.values()) >= 100
  assert {case.num_draft_tokens for case in CASES.values()} == {1, 2, 3, 4}


def test_cells_end_where_the_trace_says(x64):
  """Next to the edges of every cell the law is the same: no comparison happens anywhere else."""
  case = CASES['lossless']
  enumerator = enumerator_of(case, optimise=True)
  for at in (1e-6, 1 - 1e-6):
    joint, compared = enumerated(case, None, 'block', enumerator=enumerator, at=at)
    token_tests.assert_exact(exactness.compare(joint, **compared))


def test_float32_law_is_right_to_rounding():
  case = CASES['lossless']
  target, drafter, params = token_tests.build_models(case)
  params = {name: {key: value.astype(np.float32) for key, value in part.items()} for name, part in params.items()}
  decoder = token_tests.build_decoder(case, target, drafter, None).replace(verifier=VERIFIERS['block'])
  joint = enumeration.Enumerator(rows=case.rows).joint(
      decoder, params, exactness.arrays(case.requests, vocab_size=case.vocab_size, dtype=np.float32),
      capacity=exactness.capacity(decoder, case.requests))
  oracle = exactness.Oracle.of(case.requests, target=target, drafter=drafter, params=params)
  token_tests.assert_exact(
      exactness.compare(joint, oracle, num_draft_tokens=case.num_draft_tokens, verifier='block'), tolerance=2e-6)


@pytest.mark.parametrize('name', ['lossless', 'adversarial drafters', 'Chow', 'TokenV3, encoder-decoder'])
def test_at_least_as_many_tokens_are_accepted_in_no_more_rounds(name, x64):
  """Than by token verification, for every request; at temperature 0 exactly as many."""
  case = CASES[name]
  block, token = (enumerated(case, case.vary[0], verifier)[0] for verifier in ('block', 'token'))
  more = block.counters['accepted'] - token.counters['accepted']
  fewer = token.counters['steps'] - block.counters['steps']
  print(f'{name}: accepted tokens per answer {np.round(more, 4).tolist()} more')
  assert np.all(more >= -1e-12) and np.all(fewer >= -1e-12) and more.max() > 1e-3
  greedy = [request.warp.temperature == 0 for request in case.requests]
  assert np.abs(more[greedy]).max(initial=0) < 1e-12
  for laws in zip(block.laws, token.laws):
    assert enumeration.total_variation(*laws) <= 1e-12


def test_a_round_keeps_every_prefix_at_least_as_often(x64):
  """Position by position in one round: P(accepted >= i) is not smaller, for each i."""
  case = dataclasses.replace(CASES['lossless, window 3, K 4'], requests=[
      dataclasses.replace(request, max_new_tokens=5) for request in CASES['lossless, window 3, K 4'].requests])
  target, drafter, params = token_tests.build_models(case)
  oracle = exactness.Oracle.of(case.requests, target=target, drafter=drafter, params=params)
  for row, request in enumerate(case.requests):
    rounds = {verifier: oracles.round_structured(
        oracle.laws(row), num_draft_tokens=4, max_new_tokens=5, eos_ids=request.eos_ids, verifier=verifier)
              for verifier in VERIFIERS}
    # The first round alone: what later rounds of a five-token answer accept comes on top.
    first = {verifier: first_round(oracle.laws(row), request, verifier) for verifier in VERIFIERS}
    assert np.all(first['block'] >= first['token'] - 1e-15)
    assert rounds['block'].counters['steps'] <= rounds['token'].counters['steps'] + 1e-12


def first_round(laws, request, verifier):
  """float64[4], P(the first i tokens of a free draft of four are all kept), from the definition of the verifiers."""
  kept = np.zeros(4)

  def walk(prefix, drafted, stays):
    for token, chance in enumerate(laws.drafter(prefix)):
      if chance > 0:
        ratio = laws.goal(prefix)[token] / chance
        stay = min(1.0, stays * ratio) if verifier == 'block' else stays * min(1.0, ratio)
        kept[len(prefix)] += drafted * chance * stay
        if len(prefix) < 3:
          walk((*prefix, token), drafted * chance, stay)

  walk((), 1.0, 1.0)
  return kept


def test_greedy_decoding_is_that_of_token_verification(x64):
  """One-hot laws: the same law and the same counters, with ragged proposals and drafts the target forbids."""
  policies = (adversarial.Policy.FULL, adversarial.Policy.DRAFTED, adversarial.Policy.UNIFORM, adversarial.Policy.TEXT)
  law = adversarial.DraftLaw
  pair = toy.toy_pair(vocab_size=3, seed=6, scale=0.6)
  asked = [Request(prompt=(i % 3, 1)[:1 + i % 2], max_new_tokens=5, warp=W(temperature=0.0), eos_ids=((), (2,))[i % 2])
           for i in range(4)]
  found = []
  for verifier in VERIFIERS.values():
    decoder = speculative.SpeculativeDecoder(
        target=pair.target, rule=rules.Lossless(), verifier=verifier, drafter=adversarial.AdversarialDrafter(
            model=pair.drafter, num_draft_tokens=3, policy=np.array(policies, np.int32),
            law=np.array((law.OWN, law.UNIFORM, law.CONSTANT, law.GREEDY), np.int32)))
    found.append(enumeration.Enumerator(policy_breaks=[adversarial.policy_breaks(p) for p in policies]).joint(
        decoder, pair.params, exactness.arrays(asked, vocab_size=3), capacity=exactness.capacity(decoder, asked)))
  for laws in zip(*(joint.laws for joint in found)):
    assert enumeration.total_variation(*laws) <= 1e-12
  for name, expected in found[0].counters.items():
    np.testing.assert_allclose(found[1].counters[name], expected, atol=1e-12)


POISON = 2
PROMPTS = ((0, 1), (1,), (0,), (1, 0, 1))
BROKEN_WARPS = (W(), W(temperature=0.6), W(temperature=1.6, top_p=0.9), W(temperature=0.0))


def poisoned_joint(broken, verifier, rule, num_draft_tokens=3):
  """(`JointLaw`, `Oracle`) of a pair in which one model's logits are NaN behind token 2, from which no law recovers."""
  pair = toy.toy_pair(vocab_size=3, seed=8, scale=0.6)
  table = np.array(pair.params[broken]['table'])
  table[:, POISON] = np.nan
  params = pair.params | {broken: pair.params[broken] | {'table': table}}
  asked = [Request(prompt=prompt, max_new_tokens=4, warp=warp) for prompt, warp in zip(PROMPTS, BROKEN_WARPS)]
  decoder = speculative.SpeculativeDecoder(
      target=pair.target, rule=rule, verifier=VERIFIERS[verifier],
      drafter=drafters.ModelDrafter(model=pair.drafter, num_draft_tokens=num_draft_tokens))
  joint = enumeration.Enumerator().joint(
      decoder, params, exactness.arrays(asked, vocab_size=3), capacity=exactness.capacity(decoder, asked))
  return joint, exactness.Oracle.of(asked, target=pair.target, drafter=pair.drafter, params=pair.params)


@pytest.mark.parametrize('rule, goal', [
    (rules.Lossless(), oracles.lossless_goal), (rules.TokenV3(threshold=0.4), oracles.token_v3_goal(0.4))])
@pytest.mark.parametrize('verifier', VERIFIERS)
def test_a_law_that_breaks_behind_a_token_breaks_only_the_rows_that_emit_it(verifier, rule, goal, x64):
  """Rows stop with NONFINITE behind the token; up to there the law is the rule's: no mass moves to rows without it.

  The tests of a block read the laws behind their own token. A test that took a broken law for 0 would send the mass of
  every prefix in front of the poisoned token to shorter ones.
  """
  joint, oracle = poisoned_joint('target', verifier, rule)
  for row, law in enumerate(joint.laws):
    expected = oracles.product_law(oracle.laws(row, goal=goal).goal, max_new_tokens=4, eos_ids=(POISON,))
    relabelled = {}
    for (tokens, status), mass in expected.items():
      broke = status == types.Status.EOS and len(tokens) < 4
      relabelled[tokens, types.Status.NONFINITE if broke else types.Status.LIMIT] = mass
    assert abs(joint.mass()[row] - 1) < 1e-12
    assert enumeration.total_variation(relabelled, law) <= 1e-12


@pytest.mark.parametrize('verifier', VERIFIERS)
def test_a_drafter_that_breaks_behind_a_token_leaves_the_law_up_to_it(verifier, x64):
  """How many tokens follow before the drafter is asked again depends on the round; the text up to the token does not."""
  joint, oracle = poisoned_joint('drafter', verifier, rules.Lossless())
  upto = lambda tokens: tokens[:tokens.index(POISON) + 1] if POISON in tokens else tokens
  for row, law in enumerate(joint.laws):
    expected = oracles.product_law(oracle.laws(row).goal, max_new_tokens=4, eos_ids=(POISON,))
    merged, wanted = {}, {}
    for source, result in ((law, merged), (expected, wanted)):
      for (tokens, _), mass in source.items():
        result[upto(tokens)] = result.get(upto(tokens), 0.0) + mass
    assert enumeration.total_variation(merged, wanted) <= 1e-12
    for tokens, status in law:
      if status == types.Status.NONFINITE_DRAFTER:
        assert POISON in tokens
