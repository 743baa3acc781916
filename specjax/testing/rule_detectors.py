"""Small checks of the rules, each of which raises AssertionError when something is wrong; see `specjax.testing.detectors`.

They take no arguments and find the rules through the package, so that a patched rule is what they test.
"""

import jax
import jax.numpy as jnp
import numpy as np

from specjax import drafters
from specjax import rules
from specjax.core import checks
from specjax.core import errors
from specjax.decode import methods
from specjax.decode import speculative
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import rule_oracles
from specjax.testing import toy

P, Q = rule_oracles.EXAMPLE_TARGET, rule_oracles.EXAMPLE_DRAFTER
T1, HALF, GREEDY = oracles.Warp(), oracles.Warp(temperature=0.5), oracles.Warp(temperature=0.0)


def _check(condition, message):
  if not condition:
    raise AssertionError(message)


def _check_goal(rule, warp, expected, *, target=P, drafter=Q):
  goal = rule(None, rule_oracles.rule_inputs(target, drafter, warp=warp, truncates=rule.truncates, dtype=np.float32))
  found = np.exp(np.asarray(goal.log_probs))
  _check(np.allclose(found, expected, atol=2e-6), f'{rule} at temperature {warp.temperature}: {found} not {expected}')


def position_tables():
  """Decisions of Diff and OPT on the worked example, at temperature 1 and one half."""
  q, p = ([Q, P], [HALF.tempered(np.log(Q)), HALF.tempered(np.log(P))])
  for rule, warp, expected in (
      (rules.Diff(threshold=0.10), T1, q[1]), (rules.Diff(threshold=0.20), T1, q[0]),
      (rules.Diff(threshold=0.13), HALF, p[0]), (rules.Diff(threshold=-0.13), T1, q[1]),
      (rules.Opt(threshold=0.20), T1, q[1]), (rules.Opt(threshold=0.30), T1, q[0]), (rules.Opt(threshold=0.20), HALF, p[0]),
      (rules.Opt(threshold=0.32, loss='entropy'), T1, q[1]), (rules.Opt(threshold=0.33, loss='entropy'), T1, q[0])):
    _check_goal(rule, warp, expected)


def token_tables():
  """Goals of the token-specific rules, the mixture and the control on the worked example."""
  mild = [0.030574, 0.876579, 0.011578, 0.081269]
  for rule, warp, expected in (
      (rules.TokenV1(threshold=0.48), T1, [0.513, 0.312, 0.158, 0.017]),
      (rules.TokenV2(threshold=0.48), T1, [0.0845, 0.653, 0.052, 0.2105]), (rules.TokenV2(threshold=-0.1), T1, P),
      (rules.TokenV3(threshold=0.48), T1, [0.0975, 0.715, 0.06, 0.1275]),
      (rules.TokenV1(threshold=0.48), HALF, [0.725760, 0.206679, 0.065642, 0.001919]),
      (rules.TokenV2(threshold=0.48), HALF, mild), (rules.TokenV3(threshold=0.75), HALF, mild),
      (rules.Mixture(target_weight=0.25), T1, 0.75 * Q + 0.25 * P),
      (rules.TruncatedTarget(threshold=0.75), T1, np.array([0, 0.62, 0, 0.17]) / 0.79)):
    _check_goal(rule, warp, expected)


def lossy_tables():
  """Goals of lossy verification at lenience 0.5 on the worked example, for all residuals, with and without top-p."""
  nucleus = oracles.Warp(top_p=0.8)
  for residual, expected in (
      ('difference', [0.26, 0.451818, 0.15, 0.138182]), ('mass_balance', [0.26, 0.463038, 0.15, 0.126962]),
      ('target', [0.2912, 0.3988, 0.1692, 0.1408])):
    rule = rules.LossySpeculative(lenience=0.5, residual=residual)
    _check_goal(rule, T1, expected)
    _check_goal(rule, GREEDY, np.eye(4)[1])
    _check_goal(rule.replace(lenience=0.3), T1, rule_oracles.lossy_law(P, Q, 0.3, residual))
  _check_goal(rules.LossySpeculative(lenience=0.5, residual='difference'), nucleus, [0.282609, 0.577556, 0, 0.139835])


def greedy_tables():
  """Which greedy draft tokens LossyGreedy and BiLD keep: the target's law is read at temperature 1."""
  for draft in range(4):
    drafter = np.where(np.arange(4) == draft, 0.7, 0.1)
    for rule, stays in (
        (rules.LossyGreedy(lenience=0.5), draft == 1), (rules.LossyGreedy(lenience=0.75), draft in (1, 3)),
        (rules.Bild(rollback_threshold=2.1), draft != 2), (rules.Bild(rollback_threshold=1.9), draft in (1, 3)),
        (rules.Bild(rollback_threshold=-1.0), False)):
      _check_goal(rule, GREEDY, np.eye(4)[draft if stays else 1], drafter=drafter)


def _check_law(rule, goal, rule_params=None, num_draft_tokens=1):
  """The joint law of one rule, with truncated and tempered requests, through the jitted loop."""
  with jax.enable_x64(True):
    pair = toy.toy_pair(vocab_size=3, seed=2, scale=0.6)
    params = pair.params | {'rule': rule_params}
    requests = [
        exactness.Request(prompt=(1,), max_new_tokens=3, warp=oracles.Warp(top_p=0.8)),
        exactness.Request(prompt=(0, 2), max_new_tokens=3, warp=oracles.Warp(temperature=0.6, top_k=2), eos_ids=(1,)),
        exactness.Request(prompt=(2, 2), max_new_tokens=2, warp=oracles.Warp(temperature=1.7, top_p=0.7)),
        exactness.Request(prompt=(2,), max_new_tokens=3, warp=oracles.Warp(top_p=0.55)),
        exactness.Request(prompt=(0,), max_new_tokens=3, warp=oracles.Warp(temperature=0.5))]
    drafter = drafters.ModelDrafter(
        model=pair.drafter, num_draft_tokens=num_draft_tokens, with_features=getattr(rule, 'needs_drafter_features', False))
    decoder = speculative.SpeculativeDecoder(target=pair.target, drafter=drafter, rule=rule)
    joint = enumeration.Enumerator().joint(
        decoder, params, exactness.arrays(requests, vocab_size=3), capacity=exactness.capacity(decoder, requests))
    oracle = exactness.Oracle.of(requests, target=pair.target, drafter=pair.drafter, params=pair.params)
    found = exactness.compare(joint, oracle, num_draft_tokens=num_draft_tokens, goal=goal)
  worst = max(max(one.law, one.mass) for one in found)
  _check(worst <= 1e-12, f'the joint law of {rule} is off by {worst:.2e} in total variation')


def lossy_law():
  """The joint law of lossy decoding: its goal is made of truncated laws and is final."""
  _check_law(rules.LossySpeculative(lenience=0.4, residual='difference'), rule_oracles.lossy_goal(0.4, 'difference'))


def opt_law():
  """The joint law of OPT: its distance is over tempered and truncated laws."""
  _check_law(rules.Opt(threshold=0.3), rule_oracles.opt_goal(0.3))


def learned_law():
  """The joint law of a learned deferral: every row of the block has the features of its own position, the bonus row too."""
  probe = (0.7, -1.1, 0.4), -0.3
  _check_law(
      rules.LearnedDeferral(threshold=0.4), rule_oracles.learned_goal(0.4, probe=probe), toy.linear_probe(*probe),
      num_draft_tokens=2)


def broken_drafter_is_no_token():
  """A drafter law of NaN makes the goal of every rule that reads it NaN; no token comes out of it."""
  broken = {f'drafter{kind}_log_probs': jnp.full(4, jnp.nan, jnp.float32) for kind in ('', '_truncated', '_plain')}
  for rule in (
      rules.Bild(rollback_threshold=2.0), rules.LossyGreedy(lenience=0.5), rules.Diff(threshold=0.1),
      rules.Opt(threshold=0.2, loss='entropy'), rules.TokenV1(threshold=0.4), rules.Mixture(target_weight=1.0),
      *(rules.LossySpeculative(lenience=0.5, residual=name) for name in ('difference', 'mass_balance', 'target'))):
    inputs = rule_oracles.rule_inputs(P, Q, warp=GREEDY, dtype=np.float32).replace(**broken)
    _check(np.isnan(rule(None, inputs).log_probs).all(), f'{rule} makes a law of a broken one')


def bad_rules():
  """Leniences of 1 and weights past 1, NaN knobs, and greedy rules above temperature 0 are refused by name."""
  sampled = checks.SamplingParams(temperature=1.0)
  greedy = [rules.Bild(rollback_threshold=2.0), rules.LossyGreedy(lenience=0.5)]
  for rule in greedy:
    methods.check_sampling(methods.check_rule(rule), checks.SamplingParams(temperature=0.0))
  for call in (
      lambda: methods.check_rule(rules.LossySpeculative(lenience=1.0, residual='target')),
      lambda: methods.check_rule(rules.LossyGreedy(lenience=-0.1)),
      lambda: methods.check_rule(rules.Mixture(target_weight=1.1)),
      lambda: methods.check_rule(rules.Diff(threshold=np.nan)),
      *(lambda rule=rule: methods.check_sampling(rule, sampled) for rule in greedy)):
    try:
      call()
    except errors.ParamError:
      continue
    raise AssertionError('accepted what must raise ParamError')


ALL = (
    position_tables, token_tables, lossy_tables, greedy_tables, lossy_law, opt_law, learned_law, broken_drafter_is_no_token, bad_rules)
