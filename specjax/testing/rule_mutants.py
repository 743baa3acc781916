"""Planted bugs of the rules' goals, G01 onwards: what `specjax.testing.mutants` plants beside the field's catalogue."""

from typing import Any, Callable, NamedTuple

import jax.numpy as jnp

from specjax import rules
from specjax.core import checks
from specjax.core import types
from specjax.decode import methods
from specjax.drafters import model as model_drafter
from specjax.rules import lossy
from specjax.rules import position
from specjax.rules import token_specific


class RuleMutant(NamedTuple):
  """One planted bug: identifier, the detector that must fail, what is wrong, function that returns the patches."""

  identifier: str
  killer: str
  description: str
  patches: Callable[[], list[tuple[Any, str, Any]]]


PLANTED: list[RuleMutant] = []


def _plant(identifier, killer, description):
  """Registers the decorated function, which returns the patches."""

  def register(patches):
    PLANTED.append(RuleMutant(identifier, killer, description, patches))
    return patches

  return register


def _called(*owners, **changes):
  """Patches that call the rules of the classes `owners` with other numbers or inputs.

  Args:
    rule: function of the rule -> rule.
    inputs: function of its `RuleInputs` -> `RuleInputs`.
    goal: function (goal, inputs) -> goal.
  """
  same = lambda value: value
  change_rule, change_inputs = changes.get('rule', same), changes.get('inputs', same)
  change_goal = changes.get('goal', lambda goal, inputs: goal)

  def planted(original):
    return lambda self, params, inputs: change_goal(original(change_rule(self), params, change_inputs(inputs)), inputs)

  return lambda: [(owner, '__call__', planted(owner.__call__)) for owner in owners]


def _tempered_criteria(inputs):
  return inputs.replace(
      drafter_plain_log_probs=inputs.drafter_log_probs, target_plain_log_probs=inputs.target_log_probs)


def _negated(rule):
  return rule.replace(threshold=-jnp.asarray(rule.threshold))


_plant('G01', 'position_tables', 'OPT reads its confidences from the tempered laws')(
    _called(rules.Opt, inputs=_tempered_criteria))
_plant('G02', 'position_tables', 'OPT takes its distance over the laws at temperature 1')(
    _called(rules.Opt, inputs=lambda inputs: inputs.replace(
        drafter_truncated_log_probs=inputs.drafter_plain_log_probs,
        target_truncated_log_probs=inputs.target_plain_log_probs)))
_plant('G03', 'opt_law', 'OPT takes its distance over the untruncated laws')(
    _called(rules.Opt, inputs=lambda inputs: inputs.replace(
        drafter_truncated_log_probs=inputs.drafter_log_probs, target_truncated_log_probs=inputs.target_log_probs)))
_plant('G04', 'position_tables', 'OPT defers more where verification would reject more')(_called(rules.Opt, rule=_negated))
_plant('G05', 'position_tables', 'Diff adds its threshold to the target\'s confidence')(_called(rules.Diff, rule=_negated))
_plant('G06', 'position_tables', 'Diff reads its confidences from the tempered laws')(
    _called(rules.Diff, inputs=_tempered_criteria))
_plant('G07', 'token_tables', 'the token-specific rules read their sets from the tempered laws')(
    _called(rules.TokenV1, rules.TokenV2, inputs=_tempered_criteria))
_plant('G08', 'token_tables', 'TokenV1 builds its set from the target')(
    _called(rules.TokenV1, inputs=lambda inputs: inputs.replace(drafter_plain_log_probs=inputs.target_plain_log_probs)))
_plant('G09', 'token_tables', 'TokenV2 compares with a share of the target\'s best, like TokenV3')(
    lambda: [(rules.TokenV2, '__call__', rules.TokenV3.__call__)])


@_plant('G10', 'token_tables', 'the mix is the drafter renormalised on the set, without eta p')
def _():
  def token_mix(inputs, good):
    kept = jnp.where(good, jnp.exp(inputs.drafter_log_probs), 0)
    total = jnp.sum(kept)
    probs = jnp.where(total > 0, kept / jnp.where(total > 0, total, 1), jnp.exp(inputs.target_log_probs))
    return types.Goal(jnp.log(probs), 1 - total)
  return [(token_specific, 'token_mix', token_mix)]


_plant('G11', 'token_tables', 'the mixture\'s weight is the drafter\'s')(
    _called(rules.Mixture, rule=lambda rule: rule.replace(target_weight=1 - jnp.asarray(rule.target_weight))))
_plant('G12', 'token_tables', 'the control has the drafter\'s shape inside its set')(
    lambda: [(rules.TruncatedTarget, '__call__', rules.TokenV3.__call__),
             (rules.TruncatedTarget, 'needs_drafter_law', True)])


def _residual(change):
  """Patches the residual: (rule, drafter, target, right residual, rejected) -> residual."""
  def patches():
    original = lossy.LossySpeculative._residual
    return [(lossy.LossySpeculative, '_residual', lambda self, drafter, target, rejected: change(
        self, drafter, target, original(self, drafter, target, rejected), rejected))]
  return patches


_plant('G13', 'lossy_tables', 'the lenience is applied to the residual, too')(_residual(
    lambda rule, drafter, target, right, rejected: right if rule.residual != 'difference' else jnp.maximum(
        target / (1 - jnp.asarray(rule.lenience, target.dtype)) - drafter, 0)))
_plant('G14', 'lossy_tables', 'mass balance with beta = 1')(
    lambda: [(lossy, 'inverse_beta', lambda drafter, target, rejected: jnp.ones_like(rejected))])
_plant('G15', 'lossy_tables', 'whatever residual is named, p itself is drawn')(
    _residual(lambda rule, drafter, target, right, rejected: target))
_plant('G16', 'lossy_tables', 'the lenience is taken for Leviathan\'s factor l')(_called(
    rules.LossySpeculative, rule=lambda rule: rule.replace(lenience=1 - jnp.asarray(rule.lenience))))
_plant('G17', 'lossy_law', 'the lossy goal is truncated instead of its inputs')(
    lambda: [(rules.LossySpeculative, 'truncates', 'output')])
_plant('G18', 'lossy_tables', 'the rejected mass is not redrawn but spread by renormalising')(_called(
    rules.LossySpeculative, goal=lambda goal, inputs: types.Goal(*_renormalised(goal, inputs))))


def _renormalised(goal, inputs):
  kept = jnp.minimum(jnp.exp(goal.log_probs), jnp.exp(inputs.drafter_log_probs))
  return jnp.log(kept / jnp.sum(kept)), goal.deferral


_plant('G19', 'greedy_tables', 'the greedy rules read the target\'s greedy law')(
    _called(rules.LossyGreedy, rules.Bild, inputs=lambda inputs: inputs.replace(
        target_plain_log_probs=inputs.target_log_probs)))
_plant('G20', 'greedy_tables', 'BiLD measures the drafter\'s own surprise')(
    _called(rules.Bild, inputs=lambda inputs: inputs.replace(target_plain_log_probs=inputs.drafter_plain_log_probs)))
_plant('G21', 'broken_drafter_is_no_token', 'the best token of a broken law is token 0')(
    lambda: [(position, 'at_drafter_best', lambda inputs, values: values[jnp.argmax(inputs.drafter_log_probs)])])
_plant('G22', 'bad_rules', 'greedy rules are let through at every temperature')(
    lambda: [(methods, 'check_sampling', lambda rule, sampling: None)])
_plant('G23', 'bad_rules', 'every finite lenience is let through')(
    lambda: [(checks, 'knob', lambda name, value, *, where=None: checks.real(name, value, where=where))])
_plant('G24', 'learned_law', 'the learned rule keeps what it should defer')(
    _called(rules.LearnedDeferral, inputs=lambda inputs: inputs.replace(
        drafter_log_probs=inputs.target_log_probs, target_log_probs=inputs.drafter_log_probs)))
_plant('G25', 'learned_law', 'the bonus row has no features')(
    lambda: [(model_drafter._Draft, 'with_bonus', lambda self, logits, features, index, original=(
        model_drafter._Draft.with_bonus): original(self, logits, jnp.zeros_like(features), index))])


@_plant('G26', 'learned_law', 'features lag by one position')
def _():
  original = model_drafter._Draft.extended

  def extended(self, i, logits, features, uniforms, sampling, live):
    lagging = jnp.where(jnp.equal(i, 0), features, self.features[:, jnp.maximum(i - 1, 0)])
    return original(self, i, logits, lagging, uniforms, sampling, live)

  return [(model_drafter._Draft, 'extended', extended)]
