"""The summary recorder: expected sums over evaluated positions are their closed forms, and predict the rejection rate."""

import dataclasses

import numpy as np
import pytest

from specjax import drafters
from specjax import rules
from specjax.decode import recorders
from specjax.decode import speculative
from specjax.testing import adversarial
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import toy

pytestmark = pytest.mark.nightly  # minutes; the planted bugs of the default suite see the same faults

W = oracles.Warp
Request = exactness.Request
TOLERANCE = 1e-10
VERIFIERS = {'token': speculative.TokenVerifier(), 'block': speculative.BlockVerifier()}

# Sampling laws with mass everywhere: KL(goal || target) stays finite for every rule.
ASKED = [
    Request(prompt=(0, 1), max_new_tokens=4), Request(prompt=(2,), max_new_tokens=3, eos_ids=(1,)),
    Request(prompt=(1,), max_new_tokens=4, warp=W(temperature=0.6), stop_sequences=((1, 2), (0,))),
    Request(prompt=(1, 1, 0), max_new_tokens=4, warp=W(temperature=1.7), eos_ids=(2,), stop_sequences=((0, 1),)),
    Request(prompt=(2, 0), max_new_tokens=1), Request(prompt=(0,), max_new_tokens=0),
    Request(prompt=(1,), max_new_tokens=4, warp=W(logit_bias=(1.0, -1.0, 0.0)))]
# Truncated laws: the target keeps the support of its own goal under lossless decoding only.
TRUNCATED = [
    Request(prompt=(0, 1), max_new_tokens=4, warp=W(top_k=2)),
    Request(prompt=(2,), max_new_tokens=4, warp=W(temperature=0.0)),
    Request(prompt=(1,), max_new_tokens=3, warp=W(temperature=1.7, top_p=0.75), eos_ids=(2,)),
    Request(prompt=(1, 2), max_new_tokens=4, warp=W(min_p=0.4))]
RULES = {
    'Lossless': (rules.Lossless(), oracles.lossless_goal), 'Chow': (rules.Chow(threshold=0.45), oracles.chow_goal(0.45)),
    'TokenV3': (rules.TokenV3(threshold=0.4), oracles.token_v3_goal(0.4))}


def deferral(name, laws, prefix):
  """The weight of the target in the goal, from the formulas."""
  target, drafter = laws._target(prefix), laws._drafter(prefix)
  if name == 'Chow':
    return float(np.max(laws.warp.plain(drafter)) < 1 - 0.45)
  if name == 'TokenV3':
    plain = laws.warp.plain(target)
    return float(laws.warp.tempered(drafter)[plain < (1 - 0.4) * plain.max()].sum())
  return 1.0


def closed_forms(name):
  """Function of `oracles.Laws` -> function prefix -> what one evaluated position adds to each sum."""

  def observer(laws):
    def observe(prefix):
      target, drafter, goal = laws.target(prefix), laws.drafter(prefix), laws.goal(prefix)
      has_mass = goal > 0
      with np.errstate(divide='ignore'):
        kl = float(np.sum(goal[has_mass] * (np.log(goal[has_mass]) - np.log(target[has_mass]))))
      distance = lambda first, second: 0.5 * float(np.abs(first - second).sum())
      return dict(
          deferral=deferral(name, laws, prefix), overlap=1 - distance(target, drafter),
          tv_to_target=distance(goal, target), kl_to_target=kl, tv_goal_drafter=distance(goal, drafter))
    return observe

  return observer


def recorded(asked, rule, *, verifier='token', bonus='rule', is_adversarial=False, num_draft_tokens=2):
  """(`JointLaw`, pair, `exactness.compare` arguments)."""
  pair = toy.toy_pair(vocab_size=3, seed=4, scale=0.6)
  policies = [(adversarial.Policy.UNIFORM, adversarial.Policy.DRAFTED, adversarial.Policy.TEXT)[i % 3]
              for i in range(len(asked))]
  kinds = [(adversarial.DraftLaw.OWN, adversarial.DraftLaw.UNIFORM)[i % 2] for i in range(len(asked))]
  drafter = drafters.ModelDrafter(model=pair.drafter, num_draft_tokens=num_draft_tokens)
  compared, breaks = dict(num_draft_tokens=num_draft_tokens, bonus=bonus, verifier=verifier), ()
  if is_adversarial:
    drafter = adversarial.AdversarialDrafter(
        model=pair.drafter, num_draft_tokens=num_draft_tokens, policy=np.array(policies, np.int32),
        law=np.array(kinds, np.int32))
    breaks = [adversarial.policy_breaks(policy) for policy in policies]
    compared |= dict(
        stops=[adversarial.stop_probability(p, num_draft_tokens, one.prompt) for p, one in zip(policies, asked)],
        drafts=[adversarial.draft_law(kind) for kind in kinds])
  decoder = speculative.SpeculativeDecoder(
      target=pair.target, drafter=drafter, rule=rule, bonus=bonus, verifier=VERIFIERS[verifier],
      recorder=recorders.SummaryRecorder())
  joint = enumeration.Enumerator(policy_breaks=breaks).joint(
      decoder, pair.params, exactness.arrays(asked, vocab_size=3), capacity=exactness.capacity(decoder, asked))
  oracle = exactness.Oracle.of(asked, target=pair.target, drafter=pair.drafter, params=pair.params)
  return joint, dict(oracle=oracle, **compared)


@pytest.mark.parametrize('is_adversarial', [False, True])
@pytest.mark.parametrize('verifier', VERIFIERS)
@pytest.mark.parametrize('name', RULES)
def test_expected_sums_are_their_closed_forms(name, verifier, is_adversarial, x64):
  """And with token verification the expected rejections are the expected sum of TV(goal, drafter): Lemma 3."""
  rule, goal = RULES[name]
  joint, compared = recorded(ASKED, rule, verifier=verifier, is_adversarial=is_adversarial)
  found = exactness.compare(joint, goal=goal, observers=[closed_forms(name)] * len(ASKED), **compared)
  for one in found:
    assert one.law <= 1e-12 and one.counters <= TOLERANCE
  counters = joint.counters
  assert np.all(counters['evaluated'][[4, 5]] == [counters['evaluated'][4], 0]) and counters['deferral'].max() > 0.2
  rejected = counters['evaluated'] - counters['accepted']
  if verifier == 'token':
    error = np.abs(rejected - counters['tv_goal_drafter']).max()
    print(f'{name}: rejection rates {np.round(rejected / np.maximum(counters["evaluated"], 1e-9), 4).tolist()}, '
          f'off by {error:.1e} from TV(goal, drafter)')
    assert error <= TOLERANCE
  if name == 'Lossless':
    np.testing.assert_allclose(counters['overlap'], counters['evaluated'] - counters['tv_goal_drafter'], atol=TOLERANCE)
    assert np.abs(counters['tv_to_target']).max() <= TOLERANCE and np.abs(counters['kl_to_target']).max() <= TOLERANCE
    np.testing.assert_allclose(counters['deferral'], counters['evaluated'], atol=TOLERANCE)


def test_a_longer_first_rejection_is_not_predicted_for_blocks(x64):
  """Negative control: block verification rejects less often than TV(goal, drafter) says."""
  joint, _ = recorded(ASKED[:1], rules.Lossless(), verifier='block')
  rejected = joint.counters['evaluated'] - joint.counters['accepted']
  assert rejected[0] < joint.counters['tv_goal_drafter'][0] - 1e-3


@pytest.mark.filterwarnings('ignore:invalid value encountered in subtract')  # inf - inf of a row's KL
@pytest.mark.parametrize('name', ['Lossless', 'Chow'])
def test_sums_over_truncated_laws(name, x64):
  """All laws are those after truncation; KL is +inf where the goal has mass and truncation left the target none."""
  rule, goal = RULES[name]
  joint, compared = recorded(TRUNCATED, rule)
  observers = [closed_forms(name)] * len(TRUNCATED)
  if name == 'Lossless':
    assert max(one.counters for one in exactness.compare(joint, goal=goal, observers=observers, **compared)) <= TOLERANCE
    return
  # The same without KL, and KL by itself.
  finite = lambda observer: lambda laws: lambda prefix: {
      key: value for key, value in observer(laws)(prefix).items() if key != 'kl_to_target'}
  found = exactness.compare(joint, goal=goal, observers=[finite(one) for one in observers], **compared)
  assert max(one.counters for one in found) <= TOLERANCE
  assert np.isinf(joint.counters['kl_to_target']).any() or np.isnan(joint.counters['kl_to_target']).any()


@pytest.mark.parametrize('name', ['Chow', 'TokenV3'])
def test_bonus_from_the_target_adds_nothing_to_the_sums(name, x64):
  """The bonus position drafts nothing and is not evaluated."""
  rule, goal = RULES[name]
  asked = [dataclasses.replace(one, max_new_tokens=min(one.max_new_tokens, 3)) for one in ASKED]
  joint, compared = recorded(asked, rule, bonus='target')
  found = exactness.compare(joint, goal=goal, observers=[closed_forms(name)] * len(asked), **compared)
  assert max(max(one.law / 1e-12, one.counters / TOLERANCE) for one in found) <= 1
  rejected = joint.counters['evaluated'] - joint.counters['accepted']
  assert np.abs(rejected - joint.counters['tv_goal_drafter']).max() <= TOLERANCE
