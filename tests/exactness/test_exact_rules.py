"""The joint law of every rule through the jitted loop, by enumeration: total variation at most 1e-12 in float64.

One case is one compiled structure: a rule with its static options, K, the bonus option, a family of toys. Its requests
are enumerated together and every knob value runs the same executable. A request with a knob value is a configuration.
"""

import dataclasses
import functools
from typing import Any, Callable

import numpy as np
import pytest

import specjax
from specjax import drafters
from specjax import rules
from specjax.decode import speculative
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import rule_oracles
from specjax.testing import toy

W = oracles.Warp
TOLERANCE = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One structure. `rule` and `goal` are functions of a knob value: the rule, and its oracle.

  `neighbour` is the oracle of something else, from which the last value must be told apart.
  """

  rule: Callable[[float], Any]
  goal: Callable[[float], Any]
  values: tuple[float, ...]
  warps: tuple[oracles.Warp, ...]
  vocab_size: int = 3
  num_draft_tokens: int = 2
  limits: tuple[int, ...] = (4, 3)
  bonus: str = 'rule'
  has_encoder: bool = False
  window: int = 0
  seed: int = 1
  neighbour: Any = None

  @property
  def requests(self):
    """One request per warp with ragged prompts, limits and EOS; the first is limited to one token."""
    cycle = lambda values, i: values[i % len(values)]
    length = 1 if self.has_encoder else 3
    return [
        exactness.Request(
            prompt=tuple((3 * i + j * j + i * j) % self.vocab_size for j in range(1 + i % length)),
            max_new_tokens=cycle(self.limits, i) if i else 1, warp=warp, eos_ids=cycle(((), (1,), (2, 0)), i),
            encoder=tuple((i + 2 * j) % self.vocab_size for j in range(1 + (i + 1) % 3)) if self.has_encoder else None)
        for i, warp in enumerate(self.warps)]


MIXED = (
    W(), W(), W(temperature=0.0), W(temperature=0.5), W(temperature=1.7), W(top_k=2), W(top_p=0.8), W(min_p=0.4),
    W(temperature=1.7, top_k=2, top_p=0.9), W(temperature=0.5, top_p=0.9, min_p=0.05))
FEW = (W(), W(temperature=0.0), W(temperature=0.5, top_k=2), W(temperature=1.7, top_p=0.75, min_p=0.1), W(top_p=0.6))
BIAS = (-1.5, 0.5, 0.8)
GREEDY = (
    W(temperature=0.0), W(temperature=0.0), W(temperature=0.0, logit_bias=BIAS), W(temperature=0.0),
    W(temperature=0.0, allowed_tokens=(True, False, True)), W(temperature=0.0, logit_bias=BIAS[::-1]), W(temperature=0.0),
    W(temperature=0.0, allowed_tokens=(False, True, True)))


def knob(rule, name='threshold', **options):
  return lambda value: rule(**{name: value}, **options)


def lossy(residual):
  """The two functions of `LossySpeculative` with one residual."""
  return dict(
      rule=knob(rules.LossySpeculative, 'lenience', residual=residual),
      goal=functools.partial(rule_oracles.lossy_goal, residual=residual))


DIFF = dict(rule=knob(rules.Diff), goal=rule_oracles.diff_goal)
OPT = dict(rule=knob(rules.Opt), goal=rule_oracles.opt_goal)
ENTROPY = dict(rule=knob(rules.Opt, loss='entropy'), goal=functools.partial(rule_oracles.opt_goal, loss='entropy'))
V1 = dict(rule=knob(rules.TokenV1), goal=rule_oracles.token_v1_goal)
V2 = dict(rule=knob(rules.TokenV2), goal=rule_oracles.token_v2_goal)
MIXTURE = dict(rule=knob(rules.Mixture, 'target_weight'), goal=rule_oracles.mixture_goal)
GREEDY_LOSSY = dict(rule=knob(rules.LossyGreedy, 'lenience'), goal=rule_oracles.lossy_greedy_goal)
BILD = dict(rule=knob(rules.Bild, 'rollback_threshold'), goal=rule_oracles.bild_goal)
PROBE = (0.7, -1.1, 0.4), -0.3  # kernel on the drafter's logits, bias
LEARNED = dict(rule=knob(rules.LearnedDeferral), goal=functools.partial(rule_oracles.learned_goal, probe=PROBE))
CONTROL = dict(rule=knob(rules.TruncatedTarget), goal=rule_oracles.truncated_target_goal)

CASES = {
    'Diff': Case(**DIFF, values=(-1.0, 0.05, 1.0, 0.3), warps=MIXED, neighbour=rule_oracles.diff_goal(-0.3)),
    'Diff, bonus from the target, K 3, window 2': Case(
        **DIFF, values=(0.1,), warps=FEW, vocab_size=2, num_draft_tokens=3, limits=(5, 4), bonus='target', window=2),
    'OPT': Case(
        **OPT, values=(-3.0, 0.0, 3.0, 0.4), warps=MIXED, seed=2, neighbour=rule_oracles.opt_goal(0.4, 'entropy')),
    'OPT, bonus from the target, encoder-decoder, K 1': Case(
        **OPT, values=(0.2,), warps=FEW, num_draft_tokens=1, bonus='target', has_encoder=True),
    'OPT with entropies, encoder-decoder': Case(**ENTROPY, values=(-3.0, 0.1, 0.8), warps=FEW, has_encoder=True, seed=3),
    'TokenV1': Case(
        **V1, values=(-1.0, 0.1, 1.0, 0.4), warps=MIXED, seed=4, neighbour=rule_oracles.token_v2_goal(0.4)),
    'TokenV2, encoder-decoder': Case(**V2, values=(-0.1, 0.0, 0.3), warps=MIXED, has_encoder=True, seed=5),
    'TokenV2, bonus from the target, K 1': Case(**V2, values=(0.2,), warps=FEW, num_draft_tokens=1, bonus='target'),
    'Mixture, K 1': Case(**MIXTURE, values=(0.0, 0.35, 1.0), warps=MIXED, vocab_size=4, num_draft_tokens=1, limits=(3, 4)),
    'lossy, difference': Case(
        **lossy('difference'), values=(0.0, 0.3, 0.99, 0.7), warps=MIXED, seed=6,
        neighbour=rule_oracles.lossy_goal(0.7, 'mass_balance')),
    'lossy, difference, bonus from the target, encoder-decoder': Case(
        **lossy('difference'), values=(0.4,), warps=FEW, num_draft_tokens=1, bonus='target', has_encoder=True),
    'lossy, mass balance': Case(
        **lossy('mass_balance'), values=(0.0, 0.3, 0.99, 0.7), warps=MIXED, seed=7,
        neighbour=rule_oracles.lossy_goal(0.6, 'mass_balance')),
    'lossy, mass balance, bonus from the target, K 3, window 3': Case(
        **lossy('mass_balance'), values=(0.4,), warps=FEW, vocab_size=2, num_draft_tokens=3, limits=(5, 4), bonus='target',
        window=3),
    'lossy, residual from the target, encoder-decoder': Case(
        **lossy('target'), values=(0.0, 0.3, 0.9), warps=MIXED, has_encoder=True, seed=8),
    'lossy, greedy, K 3': Case(
        **GREEDY_LOSSY, values=(0.0, 0.3, 0.8), warps=GREEDY, num_draft_tokens=3, limits=(8, 6, 7), seed=9,
        neighbour=rule_oracles.lossy_greedy_goal(0.0)),
    'lossy, greedy, bonus from the target, encoder-decoder': Case(
        **GREEDY_LOSSY, values=(0.5,), warps=GREEDY, limits=(6,), bonus='target', has_encoder=True),
    'BiLD, bonus from the target, K 3': Case(
        **BILD, values=(-1.0, 0.5, 1.5, 9.0), warps=GREEDY, num_draft_tokens=3, limits=(8, 6, 7), bonus='target', seed=10,
        neighbour=rule_oracles.bild_goal(1.5)),
    'BiLD, encoder-decoder': Case(
        **BILD, values=(0.5, 1.5), warps=GREEDY, limits=(6,), has_encoder=True, seed=11,
        neighbour=rule_oracles.bild_goal(-1.0)),
    'learned deferral': Case(
        **LEARNED, values=(0.0, 1.0, 0.5, 0.35), warps=MIXED, seed=13, neighbour=rule_oracles.learned_goal(0.7, probe=PROBE)),
    'learned deferral, bonus from the target, encoder-decoder': Case(
        **LEARNED, values=(0.4,), warps=FEW, num_draft_tokens=3, bonus='target', has_encoder=True),
    'truncated target': Case(
        **CONTROL, values=(-0.1, 0.0, 1.0, 0.6), warps=MIXED, seed=12, neighbour=oracles.token_v3_goal(0.6)),
    'truncated target, bonus from the target, encoder-decoder': Case(
        **CONTROL, values=(0.0, 0.1, 0.5), warps=FEW, num_draft_tokens=1, bonus='target', has_encoder=True),
}


def build_pair(case):
  pair = toy.toy_pair(
      vocab_size=case.vocab_size, seed=case.seed, window=case.window, has_encoder=case.has_encoder, scale=0.6)
  is_learned = isinstance(case.rule(0.5), rules.LearnedDeferral)
  return dataclasses.replace(pair, params=pair.params | {'rule': toy.linear_probe(*PROBE)}) if is_learned else pair


def build_decoder(case, pair, value):
  rule = case.rule(value)
  drafter = drafters.ModelDrafter(
      model=pair.drafter, num_draft_tokens=case.num_draft_tokens,
      with_features=getattr(rule, 'needs_drafter_features', False))
  return speculative.SpeculativeDecoder(target=pair.target, drafter=drafter, rule=rule, bonus=case.bonus)


def test_at_least_seventy_configurations():
  counted = sum(len(case.warps) * len(case.values) for case in CASES.values())
  print(f'{counted} configurations in {len(CASES)} structures')
  assert counted >= 70


def test_every_rule_is_here():
  """With `Lossless`, `Chow` and `TokenV3` in test_exact_law.py."""
  covered = {type(case.rule(0.5)).__name__ for case in CASES.values()}
  assert covered | {'Lossless', 'Chow', 'TokenV3'} == set(rules.__all__)


@pytest.mark.parametrize('name', CASES)
def test_joint_law_and_rejection_rate_are_the_rules(name, x64):
  """Laws to 1e-12; counters, which are sums over several tokens and include every rejection, to ten times that."""
  case, found = CASES[name], []
  pair = build_pair(case)
  arrays = exactness.arrays(case.requests, vocab_size=case.vocab_size)
  oracle = exactness.Oracle.of(case.requests, target=pair.target, drafter=pair.drafter, params=pair.params)
  enumerator = enumeration.Enumerator()
  for value in case.values:
    decoder = build_decoder(case, pair, value)
    joint = enumerator.joint(decoder, pair.params, arrays, capacity=exactness.capacity(decoder, case.requests))
    compared = functools.partial(
        exactness.compare, joint, oracle, num_draft_tokens=case.num_draft_tokens, bonus=case.bonus)
    found += compared(goal=case.goal(value))
    check_rejection(joint, oracle.laws(0, goal=case.goal(value), bonus=case.bonus), case.rule(value))
    if value == case.values[-1] and case.neighbour is not None:  # negative control: another law is told apart
      assert max(one.law for one in compared(goal=case.neighbour)) > 1e-3
  print(f'{name}: {len(found)} configurations, largest TV {max(one.law for one in found):.1e}')
  for i, one in enumerate(found):
    assert one.mass <= TOLERANCE and one.law <= TOLERANCE and one.counters <= 10 * TOLERANCE, (i, one)


def check_rejection(joint, laws, rule):
  """Request 0 emits one token: evaluated minus accepted is the chance that its draft is rejected, D_TV(goal, drafter)."""
  evaluated, accepted = (joint.counters[name][0] for name in ('evaluated', 'accepted'))
  assert evaluated == pytest.approx(1, abs=TOLERANCE)
  target, drafter, goal = laws.warp.law(laws._target(())), laws.drafter(()), laws.goal(())
  assert evaluated - accepted == pytest.approx(rule_oracles.total_variation(goal, drafter), abs=TOLERANCE)
  # The closed forms of the papers.
  distance = rule_oracles.total_variation(target, drafter)
  if isinstance(rule, rules.Diff | rules.Opt):
    assert evaluated - accepted == pytest.approx(distance * (not np.array_equal(goal, drafter)), abs=TOLERANCE)
  if isinstance(rule, rules.Mixture):
    assert evaluated - accepted == pytest.approx(distance * rule.target_weight, abs=TOLERANCE)
  if isinstance(rule, rules.LossySpeculative):
    published = rule_oracles.lossy_rejection(target, drafter, rule.lenience)
    if rule.residual == 'target' and published > 0:  # verified toward its law, the procedure rejects less
      assert evaluated - accepted < published - 1e-3
    else:
      assert evaluated - accepted == pytest.approx(published, abs=TOLERANCE)


@pytest.mark.parametrize('has_encoder, bonus', [(False, 'rule'), (True, 'target')])
def test_token_v3_at_temperature_0_is_lossy_greedy_token_for_token(has_encoder, bonus):
  pair = toy.toy_pair(vocab_size=7, seed=3, has_encoder=has_encoder, scale=0.7)
  random = np.random.RandomState(0)
  prompts = [random.randint(0, 7, 1 + i % 4).tolist() for i in range(24)]
  greedy = specjax.SamplingParams(temperature=0.0)
  results = {}
  for value in (0.0, 0.2, 0.5, 0.8, 0.99):
    for rule in (rules.TokenV3(threshold=value), rules.LossyGreedy(lenience=value)):
      method = specjax.speculative(num_draft_tokens=3, rule=rule, bonus=bonus)
      results[type(rule).__name__, value] = specjax.generate(
          pair, prompts, method=method, sampling=greedy, max_new_tokens=20, seed=0, batch_size=24, eos_ids=(6,))
    ours, theirs = results['TokenV3', value], results['LossyGreedy', value]
    assert [row.tolist() for row in ours.tokens] == [row.tolist() for row in theirs.tokens]
    assert np.array_equal(ours.stats.accepted, theirs.stats.accepted)
  different = {tuple(map(tuple, result.tokens)) for result in results.values()}
  assert len(different) >= 4  # the knob does something
