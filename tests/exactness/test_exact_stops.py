"""Stop sequences: the joint law is the product of the rule's laws cut at the earliest end, for every decoder.

The oracle draws token by token and looks at what it has generated after each one; it knows no blocks and no rounds. Prompts
end with the beginnings of the sequences: a match that reaches into the prompt would end rows too early.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest

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
TOLERANCE = 1e-12

POLICIES = [
    (adversarial.Policy.UNIFORM, adversarial.DraftLaw.OWN), (adversarial.Policy.TEXT, adversarial.DraftLaw.OWN),
    (adversarial.Policy.DRAFTED, adversarial.DraftLaw.UNIFORM), (adversarial.Policy.FULL, adversarial.DraftLaw.CONSTANT),
    (adversarial.Policy.LAW, adversarial.DraftLaw.OWN), (adversarial.Policy.UNIFORM, adversarial.DraftLaw.GREEDY)]


WARPS = (W(), W(temperature=0.6), W(temperature=1.7, top_p=0.9))


def asked(*sequences, limits=(5, 6), eos=((),)):
  """One `Request` for every set of stop sequences; the rest cycles. Prompts end with the beginning of the first one."""
  cycle = lambda values, i: values[i % len(values)]
  prompt = lambda i, stops: (1, 0)[:i % 3] + ((stops[0][:-1] or stops[0]) if stops else (0,))
  return [
      Request(prompt=prompt(i, stops), max_new_tokens=cycle(limits, i), warp=cycle(WARPS, i), eos_ids=cycle(eos, i),
              stop_sequences=stops)
      for i, stops in enumerate(sequences)]


# One to three tokens; alone, several, overlapping themselves and each other, nested, longer than what is generated, none.
BINARY = asked(
    ((1,),), ((0, 1),), ((1, 1),), ((0, 1, 0),), ((0, 0), (1, 0)), ((1, 0, 1), (0, 1)), ((0, 1, 1), (1,)),
    ((1, 1, 1), (0, 0, 0)), ((0, 1, 0, 1), (1, 0, 1, 0)), (), ((0,) * 7,), ((1, 0, 0), (0, 0, 1), (0, 1, 1)))
WITH_EOS = asked(
    ((1, 1),), ((0, 1), (1, 0)), ((2,),), ((0, 0, 0), (0, 2)), ((1, 2), (2, 2)), ((0, 1, 0), (1, 1, 1)), limits=(4, 3),
    eos=((2,), (1,), (2, 0)))
RAGGED = asked(
    ((1, 0), (2,)), ((0, 1),), ((1, 1, 1), (0, 0)), ((2, 2), (0, 2)), ((1, 0, 1),), ((0,), (1, 1)), limits=(4,),
    eos=((), (1,), (2,)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One structure; `threshold` is the rule's."""

  requests: list[Request]
  num_draft_tokens: int
  vocab_size: int = 2
  drafter: str = 'model'  # 'model', 'none' or 'adversarial'
  rule: str = 'Lossless'
  threshold: Any = None
  bonus: str = 'rule'
  window: int = 0
  has_encoder: bool = False


CASES = {
    'autoregressive': Case(requests=BINARY, num_draft_tokens=0, drafter='none'),
    'autoregressive through a wide pass, EOS': Case(requests=WITH_EOS, num_draft_tokens=2, vocab_size=3, drafter='none'),
    'K 1': Case(requests=BINARY, num_draft_tokens=1),
    'K 3': Case(requests=BINARY, num_draft_tokens=3),
    'K 5, whole sequences inside a block': Case(requests=BINARY, num_draft_tokens=5),
    'K 2, EOS': Case(requests=WITH_EOS, num_draft_tokens=2, vocab_size=3),
    'ragged and adversarial': Case(requests=RAGGED, num_draft_tokens=2, vocab_size=3, drafter='adversarial'),
    'ragged, token rule': Case(
        requests=RAGGED, num_draft_tokens=2, vocab_size=3, drafter='adversarial', rule='TokenV3', threshold=0.4),
    'Chow': Case(requests=BINARY, num_draft_tokens=3, rule='Chow', threshold=0.4),
    'Chow, bonus from the target': Case(requests=WITH_EOS, num_draft_tokens=2, vocab_size=3, rule='Chow', threshold=0.5,
                                        bonus='target'),
    'sliding window 2': Case(requests=BINARY, num_draft_tokens=2, window=2),
    'encoder-decoder, TokenV3': Case(
        requests=[dataclasses.replace(one, encoder=one.prompt, prompt=(0,)) for one in WITH_EOS], num_draft_tokens=2,
        vocab_size=3, rule='TokenV3', threshold=0.3, has_encoder=True),
}


def discrepancies(case, verifier, *, at=0.5):
  """A `Discrepancy` for every request."""
  pair = toy.toy_pair(
      vocab_size=case.vocab_size, seed=9, scale=0.6, window=case.window, has_encoder=case.has_encoder)
  is_adversarial, has_drafter = case.drafter == 'adversarial', case.drafter != 'none'
  policies, kinds = zip(*POLICIES)
  if not has_drafter:
    drafter = drafters.NoDrafter(vocab_size=case.vocab_size, num_draft_tokens=case.num_draft_tokens)
  elif is_adversarial:
    drafter = adversarial.AdversarialDrafter(
        model=pair.drafter, num_draft_tokens=case.num_draft_tokens, policy=np.array(policies, np.int32),
        law=np.array(kinds, np.int32))
  else:
    drafter = drafters.ModelDrafter(model=pair.drafter, num_draft_tokens=case.num_draft_tokens)
  rule = getattr(rules, case.rule)(**({} if case.threshold is None else dict(threshold=case.threshold)))
  decoder = speculative.SpeculativeDecoder(
      target=pair.target, drafter=drafter, rule=rule, bonus=case.bonus, verifier=VERIFIERS[verifier])
  joint = enumeration.Enumerator(
      at=at, policy_breaks=[adversarial.policy_breaks(p) for p in policies] if is_adversarial else ()).joint(
          decoder, pair.params, exactness.arrays(case.requests, vocab_size=case.vocab_size),
          capacity=exactness.capacity(decoder, case.requests))
  compared = dict(
      num_draft_tokens=case.num_draft_tokens if has_drafter else 0, bonus=case.bonus, verifier=verifier,
      goal={'Chow': oracles.chow_goal, 'TokenV3': oracles.token_v3_goal}.get(
          case.rule, lambda _: oracles.lossless_goal)(case.threshold))
  if is_adversarial:
    compared['stops'] = [
        adversarial.stop_probability(p, case.num_draft_tokens, one.prompt) for p, one in zip(policies, case.requests)]
    compared['drafts'] = [adversarial.draft_law(kind) for kind in kinds]
  oracle = exactness.Oracle.of(
      case.requests, target=pair.target, drafter=pair.drafter if has_drafter else None, params=pair.params)
  return exactness.compare(joint, oracle, **compared), joint


@pytest.mark.parametrize('verifier', VERIFIERS)
@pytest.mark.parametrize('name', CASES)
def test_joint_law_ends_at_the_earliest_match(name, verifier, x64):
  case = CASES[name]
  if case.drafter == 'none' and verifier == 'block':
    pytest.skip('nothing is verified')
  found, joint = discrepancies(case, verifier)
  print(f'{name}, {verifier}: {len(found)} configurations, largest TV {max(one.law for one in found):.1e}, '
        f'counters {max(one.counters for one in found):.1e}')
  for i, one in enumerate(found):
    assert one.mass <= TOLERANCE and one.law <= TOLERANCE and one.counters <= 10 * TOLERANCE, (i, one)
  stopped = [any(status == types.Status.STOP for _, status in law) for law in joint.laws]
  assert sum(stopped) >= len(stopped) / 2


@pytest.mark.parametrize('verifier', VERIFIERS)
def test_cells_end_where_the_trace_says(verifier, x64):
  for at in (1e-6, 1 - 1e-6):
    found, _ = discrepancies(CASES['K 2, EOS'], verifier, at=at)
    assert max(one.law for one in found) <= TOLERANCE


def test_at_least_a_hundred_configurations():
  assert sum(len(case.requests) * (1 if case.drafter == 'none' else 2) for case in CASES.values()) >= 100


def test_the_oracle_tells_a_match_in_the_prompt_and_a_match_inside_one_round_apart(x64):
  """Negative control: for these prompts and sequences both ways of being wrong have another law."""
  pair = toy.toy_pair(vocab_size=2, seed=9, scale=0.6)
  oracle = exactness.Oracle.of(BINARY, target=pair.target, drafter=pair.drafter, params=pair.params)
  distances = []
  for row, request in enumerate(BINARY):
    law = oracle.laws(row).goal
    limits = dict(max_new_tokens=request.max_new_tokens, stop_sequences=request.stop_sequences)
    right = oracles.product_law(law, **limits)
    free = oracles.product_law(law, max_new_tokens=request.max_new_tokens)
    wrong = [
        cut(free, lambda tokens, request=request: ends((*request.prompt, *tokens), request.stop_sequences)),
        # Rounds of two tokens each, matched inside a round only.
        cut(free, lambda tokens, request=request: ends(tokens[(len(tokens) - 1) // 2 * 2:], request.stop_sequences))]
    distances.append([enumeration.total_variation(right, law) for law in wrong])
  largest = np.max(distances, axis=0)
  print(f'total variation: matched in the prompt {largest[0]:.2f}, inside rounds only {largest[1]:.2f}')
  assert np.all(largest > 0.05)


def ends(text, sequences):
  return any(len(text) >= len(s) and text[-len(s):] == tuple(s) for s in sequences)


def cut(law, is_end):
  """A law of whole answers, cut at the first prefix that ends."""
  result = {}
  for (tokens, status), mass in law.items():
    length = next((n for n in range(1, len(tokens) + 1) if is_end(tokens[:n])), None)
    outcome = (tokens, status) if length is None else (tokens[:length], types.Status.STOP)
    result[outcome] = result.get(outcome, 0.0) + mass
  return result
