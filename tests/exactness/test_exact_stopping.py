"""The joint law does not depend on when a policy stops drafting, and the counters follow the policy, by enumeration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import rules
from specjax.core import types
from specjax.decode import speculative
from specjax.drafters import stopping
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import rule_oracles
from specjax.testing import toy

W = oracles.Warp
K = 3

REQUESTS = [
    exactness.Request(prompt=(1,), max_new_tokens=5), exactness.Request(prompt=(0, 1, 1), max_new_tokens=4, eos_ids=(1,)),
    exactness.Request(prompt=(1, 0), max_new_tokens=5, warp=W(temperature=0.0)),
    exactness.Request(prompt=(0,), max_new_tokens=4, warp=W(temperature=0.5, top_p=0.85)),
    exactness.Request(prompt=(0, 0), max_new_tokens=5, warp=W(temperature=1.7, min_p=0.2), eos_ids=(0,))]

# Name -> (constructor, thresholds, does the policy stop: (plain law, probabilities of the drafted tokens) -> bool).
POLICIES = {
    'MaxProbability': (stopping.MaxProbability, (0.0, 0.62, 0.75, 1.1), lambda t, law, own: law.max() < t),
    'Entropy': (stopping.Entropy, (0.3, 0.6, 0.9), lambda t, law, own: -np.sum(law * np.log(law)) > t),
    'Survival': (stopping.Survival, (0.25, 0.5, 0.7), lambda t, law, own: np.prod(own) * law.max() < t),
    'Learned': (functools.partial(stopping.Learned, probe=toy.linear_probe((0.8, -0.8))), (0.3, 0.45, 0.6),
                lambda t, law, own: 1 / (1 + np.exp(-0.8 * (np.log(law[0]) - np.log(law[1])))) > t)}


def stop_of(stops, threshold, laws):
  """The oracle's `stop` of one request: 1 where the policy stops behind `drafted`."""
  plain = lambda prefix: laws.warp.plain(laws._drafter(prefix))

  def stop(prefix, drafted, law):
    del law
    own = [plain(prefix + drafted[:i])[drafted[i]] for i in range(len(drafted))]
    return float(stops(threshold, plain(prefix + drafted), own))

  return stop


@pytest.mark.parametrize('name', POLICIES)
@pytest.mark.parametrize('rule, bonus', [('Lossless', 'rule'), ('TokenV3', 'rule'), ('TokenV3', 'target')])
def test_joint_law_and_counters(name, rule, bonus, x64):
  constructor, thresholds, stops = POLICIES[name]
  pair = toy.toy_pair(vocab_size=2, seed=5, scale=0.6)
  oracle = exactness.Oracle.of(REQUESTS, target=pair.target, drafter=pair.drafter, params=pair.params)
  goal = oracles.lossless_goal if rule == 'Lossless' else oracles.token_v3_goal(0.5)
  part = rules.Lossless() if rule == 'Lossless' else rules.TokenV3(threshold=0.5)
  arrays = exactness.arrays(REQUESTS, vocab_size=2)
  enumerator = enumeration.Enumerator(rows=256)
  proposed = []
  for threshold in thresholds:
    decoder = speculative.SpeculativeDecoder(
        target=pair.target, rule=part, bonus=bonus, drafter=drafters.ModelDrafter(
            model=pair.drafter, num_draft_tokens=K, stopping=constructor(threshold=threshold)))
    joint = enumerator.joint(decoder, pair.params, arrays, capacity=exactness.capacity(decoder, REQUESTS))
    all_stops = [stop_of(stops, threshold, oracle.laws(row)) for row in range(len(REQUESTS))]
    found = exactness.compare(joint, oracle, num_draft_tokens=K, goal=goal, bonus=bonus, stops=all_stops)
    assert max(one.law for one in found) <= 1e-12 and max(one.mass for one in found) <= 1e-12, (threshold, found)
    assert max(one.counters for one in found) <= 1e-10, (threshold, found)
    proposed.append(joint.counters['proposed'].sum())
  assert len(set(np.round(proposed, 6))) == len(thresholds), 'the thresholds do not tell draft lengths apart'


def test_a_cap_and_a_policy_together(x64):
  pair = toy.toy_pair(vocab_size=2, seed=6, scale=0.6)
  oracle = exactness.Oracle.of(REQUESTS, target=pair.target, drafter=pair.drafter, params=pair.params)
  arrays = exactness.arrays(REQUESTS, vocab_size=2)
  enumerator = enumeration.Enumerator(rows=256)
  stops = POLICIES['MaxProbability'][2]
  for cap in (0, 1, 2):
    decoder = speculative.SpeculativeDecoder(
        target=pair.target, rule=rules.TokenV3(threshold=0.4), drafter=drafters.ModelDrafter(
            model=pair.drafter, num_draft_tokens=K, max_draft_tokens=np.int32(cap),
            stopping=stopping.MaxProbability(threshold=0.62)))
    joint = enumerator.joint(decoder, pair.params, arrays, capacity=exactness.capacity(decoder, REQUESTS))
    all_stops = [stop_of(stops, 0.62, oracle.laws(row)) for row in range(len(REQUESTS))]
    found = exactness.compare(
        joint, oracle, num_draft_tokens=cap, goal=oracles.token_v3_goal(0.4), stops=all_stops)
    assert max(max(one) for one in found) <= 1e-10 and max(one.law for one in found) <= 1e-12, (cap, found)


def test_bild_as_published_stops_below_one_threshold_and_rolls_back_above_the_other(x64):
  pair = toy.toy_pair(vocab_size=3, seed=8, scale=0.9)
  greedy = [exactness.Request(prompt=prompt, max_new_tokens=6, eos_ids=eos, warp=W(temperature=0.0))
            for prompt, eos in (((1,), ()), ((0, 2), (2,)), ((2, 1, 0), ()), ((2,), (0,)))]
  oracle = exactness.Oracle.of(greedy, target=pair.target, drafter=pair.drafter, params=pair.params)
  arrays = exactness.arrays(greedy, vocab_size=3)
  enumerator = enumeration.Enumerator(rows=64)
  stops = POLICIES['MaxProbability'][2]
  laws = []
  for fallback, rollback in ((0.0, 1.0), (0.5, 1.0), (0.5, 0.3), (0.7, 5.0), (1.1, 1.0)):
    decoder = speculative.SpeculativeDecoder(
        target=pair.target, rule=rules.Bild(rollback_threshold=rollback), bonus='target', drafter=drafters.ModelDrafter(
            model=pair.drafter, num_draft_tokens=K, stopping=stopping.MaxProbability(threshold=fallback)))
    joint = enumerator.joint(decoder, pair.params, arrays, capacity=exactness.capacity(decoder, greedy))
    all_stops = [stop_of(stops, fallback, oracle.laws(row)) for row in range(len(greedy))]
    found = exactness.compare(
        joint, oracle, num_draft_tokens=K, goal=rule_oracles.bild_goal(rollback), bonus='target', stops=all_stops)
    assert max(max(one) for one in found) <= 1e-10 and max(one.law for one in found) <= 1e-12, (fallback, rollback, found)
    laws.append(str(joint.laws))
  assert len(set(laws)) > 2, 'the thresholds change nothing'


def test_passes_end_when_every_row_has_stopped():
  pair = toy.toy_pair(vocab_size=4, seed=1)
  drafter = drafters.ModelDrafter(
      model=pair.drafter, num_draft_tokens=8, stopping=stopping.MaxProbability(threshold=np.float32(2)))
  requests = exactness.arrays(REQUESTS[:1], vocab_size=4, dtype=np.float32)
  params = jax.tree.map(jnp.asarray, pair.params['drafter'])
  state = drafter.init(params, jax.tree.map(jnp.asarray, requests.prompt), None, 32)
  uniforms = types.RoundUniforms(
      draft=np.zeros((1, 9, 2), np.float32), policy=np.zeros((1, 9), np.float32), accept=np.zeros((1, 8), np.float32),
      final=np.zeros((1, 2), np.float32))
  proposal, after = drafter.propose(
      params, state, uniforms, tokens=np.pad(requests.prompt.tokens, ((0, 0), (0, 31))),
      length=requests.prompt.length, sampling=requests.sampling, live=np.ones(1, bool), with_bonus=True)
  assert proposal.length[0] == 0 and drafter.num_calls(proposal)[0] == 1
  assert pair.drafter.length(after)[0] == requests.prompt.length[0]
