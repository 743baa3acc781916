"""Small checks of the loop's options, block verification, stop sequences and the recorder; see `specjax.testing.detectors`.

They kill the mutants of `specjax.testing.option_mutants`, take no arguments and find everything through the library's
modules.
"""

import functools

import jax
import numpy as np

from specjax import drafters
from specjax import rules
from specjax.core import types
from specjax.decode import recorders
from specjax.decode import speculative
from specjax.testing import adversarial
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import toy

W = oracles.Warp
Request = exactness.Request
_LAW_TOLERANCE, _COUNTER_TOLERANCE = 1e-12, 1e-10

_REQUESTS = [
    Request(prompt=(0, 1), max_new_tokens=4), Request(prompt=(2,), max_new_tokens=4, eos_ids=(1,)),
    Request(prompt=(1,), max_new_tokens=4, warp=W(temperature=0.5)),
    Request(prompt=(1, 1, 0), max_new_tokens=3, warp=W(temperature=1.7, top_p=0.75)),
    Request(prompt=(0,), max_new_tokens=4, warp=W(temperature=0.0))]

# Prompts end with the beginnings of the sequences; limits leave room for a match across two rounds and three.
_STOPPED = [
    Request(prompt=(0, 1), max_new_tokens=5, stop_sequences=((1, 0), (0, 0, 1))),
    Request(prompt=(1, 0), max_new_tokens=5, stop_sequences=((1, 0, 1),)),
    Request(prompt=(1,), max_new_tokens=5, stop_sequences=((1, 1, 1), (1, 0)), warp=W(temperature=1.6)),
    Request(prompt=(0, 0), max_new_tokens=6, stop_sequences=((1,),)),
    Request(prompt=(1, 1), max_new_tokens=5, stop_sequences=((0, 1), (1, 1, 0)), eos_ids=(0,), warp=W(temperature=0.7))]


def _with_x64(function):
  @functools.wraps(function)
  def run(*args, **kwargs):
    with jax.enable_x64(True):
      return function(*args, **kwargs)
  return run


def _check(condition, message):
  if not condition:
    raise AssertionError(message)


def _decoder(pair, *, num_draft_tokens=2, drafter=None, verifier=None, rule=None, recorder=None):
  drafter = drafter or drafters.ModelDrafter(model=pair.drafter, num_draft_tokens=num_draft_tokens)
  return speculative.SpeculativeDecoder(
      target=pair.target, drafter=drafter, rule=rule or rules.Lossless(), recorder=recorder,
      verifier=verifier or speculative.TokenVerifier())


def _joint(decoder, pair, asked, params=None, **kwargs):
  return enumeration.Enumerator(**kwargs).joint(
      decoder, params or pair.params, exactness.arrays(asked, vocab_size=pair.target.vocab_size),
      capacity=exactness.capacity(decoder, asked))


def _compared(decoder, pair, asked, joint, **kwargs):
  oracle = exactness.Oracle.of(asked, target=pair.target, drafter=pair.drafter, params=pair.params)
  return exactness.compare(joint, oracle, num_draft_tokens=decoder.num_draft_tokens, **kwargs)


def _check_found(found):
  worst = max(max(one.law, one.mass) for one in found)
  _check(worst <= _LAW_TOLERANCE, f'the joint law is off by {worst:.2e} in total variation')
  worst = max(one.counters for one in found)
  _check(worst <= _COUNTER_TOLERANCE, f'an expected counter is off by {worst:.2e}')


@_with_x64
def block_law():
  """The joint law under block verification is the target's, and counters are those of the weights w."""
  pair = toy.toy_pair(vocab_size=3, seed=1, scale=0.6)
  decoder = _decoder(pair, verifier=speculative.BlockVerifier())
  _check_found(_compared(decoder, pair, _REQUESTS, _joint(decoder, pair, _REQUESTS), verifier='block'))


@_with_x64
def ragged_block_law():
  """The same with proposals whose length depends on drafted tokens, on the text and on its own uniform."""
  pair = toy.toy_pair(vocab_size=3, seed=1, scale=0.6)
  policies = (adversarial.Policy.UNIFORM, adversarial.Policy.TEXT, adversarial.Policy.DRAFTED)
  asked = [Request(prompt=(1, 2)[:1 + i % 2], max_new_tokens=4) for i in range(3)]
  decoder = _decoder(pair, verifier=speculative.BlockVerifier(), drafter=adversarial.AdversarialDrafter(
      model=pair.drafter, num_draft_tokens=2, policy=np.array(policies, np.int32), law=np.array([0, 0, 3], np.int32)))
  joint = _joint(decoder, pair, asked, policy_breaks=[adversarial.policy_breaks(p) for p in policies])
  _check_found(_compared(
      decoder, pair, asked, joint, verifier='block',
      stops=[adversarial.stop_probability(p, 2, one.prompt) for p, one in zip(policies, asked)],
      drafts=[adversarial.draft_law(adversarial.DraftLaw(kind)) for kind in (0, 0, 3)]))


@_with_x64
def block_law_in_front_of_a_broken_law():
  """A target that is NaN behind token 2 ends the rows that emit it, and the law up to there is the target's."""
  pair = toy.toy_pair(vocab_size=3, seed=1, scale=0.6)
  table = np.array(pair.params['target']['table'])
  table[:, 2] = np.nan
  asked = [Request(prompt=(0, 1), max_new_tokens=4), Request(prompt=(1,), max_new_tokens=4, warp=W(temperature=1.5))]
  decoder = _decoder(pair, verifier=speculative.BlockVerifier(), num_draft_tokens=3)
  joint = _joint(decoder, pair, asked, params=pair.params | {'target': pair.params['target'] | {'table': table}})
  oracle = exactness.Oracle.of(asked, target=pair.target, drafter=pair.drafter, params=pair.params)
  for row, law in enumerate(joint.laws):
    ended = oracles.product_law(oracle.laws(row).goal, max_new_tokens=4, eos_ids=(2,))
    expected = {}
    for (tokens, _), mass in ended.items():
      expected[tokens, types.Status.LIMIT if len(tokens) == 4 else types.Status.NONFINITE] = mass
    distance = enumeration.total_variation(expected, law)
    _check(distance <= _LAW_TOLERANCE, f'the law in front of a broken one is off by {distance:.2e}')


@_with_x64
def stop_law():
  """The joint law is the product law cut at the first stop sequence among generated tokens, for both verifiers."""
  _check(max(one.law for one in _stopped()) <= _LAW_TOLERANCE, 'the joint law does not end at the earliest match')


@_with_x64
def stop_counters():
  """Counters advance by what a stop sequence left."""
  worst = max(one.counters for one in _stopped())
  _check(worst <= _COUNTER_TOLERANCE, f'an expected counter is off by {worst:.2e}')


def _stopped():
  pair = toy.toy_pair(vocab_size=2, seed=9, scale=0.6)
  found = []
  for name, verifier in (('token', speculative.TokenVerifier()), ('block', speculative.BlockVerifier())):
    decoder = _decoder(pair, verifier=verifier, num_draft_tokens=3)
    found += _compared(decoder, pair, _STOPPED, _joint(decoder, pair, _STOPPED), verifier=name)
  return found


@_with_x64
def summary_sums():
  """Expected sums of the recorder are their closed forms over evaluated positions, and give the rejections."""
  pair = toy.toy_pair(vocab_size=3, seed=4, scale=0.6)
  decoder = _decoder(
      pair, rule=rules.TokenV3(threshold=0.4), recorder=recorders.SummaryRecorder())
  asked = [request for request in _REQUESTS if request.warp.top_p == 1 and request.warp.temperature > 0]
  joint = _joint(decoder, pair, asked)
  _check_found(_compared(
      decoder, pair, asked, joint, goal=oracles.token_v3_goal(0.4), observers=[_distances] * len(asked)))
  rejected = joint.counters['evaluated'] - joint.counters['accepted']
  worst = np.abs(rejected - joint.counters['tv_goal_drafter']).max()
  _check(worst <= _COUNTER_TOLERANCE, f'rejections differ from the sum of TV(goal, drafter) by {worst:.2e}')


def _distances(laws):
  distance = lambda first, second: 0.5 * float(np.abs(first - second).sum())

  def observe(prefix):
    target, drafter, goal = laws.target(prefix), laws.drafter(prefix), laws.goal(prefix)
    return dict(
        overlap=float(np.minimum(target, drafter).sum()), tv_to_target=distance(goal, target),
        kl_to_target=float(np.sum(goal * np.log(goal / target))), tv_goal_drafter=distance(goal, drafter))

  return observe


DETECTORS = {function.__name__: function for function in (
    block_law, ragged_block_law, block_law_in_front_of_a_broken_law, stop_law, stop_counters, summary_sums)}
