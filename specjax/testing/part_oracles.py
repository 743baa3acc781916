"""Which oracle belongs to which shipped part: the numpy law of a decoder, found by the types of its parts.

A part of the user's own has no oracle here; `goal_of` then acts out the part itself, position by position, which proves the
loop around it and not the part.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from specjax import routers
from specjax import rules
from specjax.decode import routed
from specjax.decode import sequence_cascade
from specjax.decode import speculative
from specjax.drafters import stopping
from specjax.testing import oracles
from specjax.testing import routing_oracles
from specjax.testing import rule_oracles

_RULES = {
    rules.Lossless: lambda rule: oracles.lossless_goal,
    rules.Chow: lambda rule: oracles.chow_goal(rule.threshold),
    rules.Diff: lambda rule: rule_oracles.diff_goal(rule.threshold),
    rules.Opt: lambda rule: rule_oracles.opt_goal(rule.threshold, rule.loss),
    rules.TokenV1: lambda rule: rule_oracles.token_v1_goal(rule.threshold),
    rules.TokenV2: lambda rule: rule_oracles.token_v2_goal(rule.threshold),
    rules.TokenV3: lambda rule: oracles.token_v3_goal(rule.threshold),
    rules.Mixture: lambda rule: rule_oracles.mixture_goal(rule.target_weight),
    rules.TruncatedTarget: lambda rule: rule_oracles.truncated_target_goal(rule.threshold),
    rules.LossySpeculative: lambda rule: rule_oracles.lossy_goal(rule.lenience, residual=rule.residual),
    rules.LossyGreedy: lambda rule: rule_oracles.lossy_greedy_goal(rule.lenience),
    rules.Bild: lambda rule: rule_oracles.bild_goal(rule.rollback_threshold),
}
_ROUTERS = {
    routers.ChowRouter: lambda router: routing_oracles.chow(router.threshold),
    routers.EntropyRouter: lambda router: routing_oracles.entropy(router.threshold),
    routers.RandomRouter: lambda router: routing_oracles.random(router.rate),
    routers.DiffOracle: lambda router: routing_oracles.difference(router.threshold),
    routers.KLOracle: lambda router: routing_oracles.divergence(router.threshold, router.direction, router.is_flipped),
}
_EXACT_ON_TREES = (speculative.RecursiveVerifier, speculative.TraversalVerifier, speculative.KSequentialVerifier)
_STOPPING = {
    stopping.MaxProbability: lambda threshold, law, own: law.max() < threshold,
    stopping.Entropy: lambda threshold, law, own: -np.sum(law[law > 0] * np.log(law[law > 0])) > threshold,
    stopping.Survival: lambda threshold, law, own: np.prod(own) * law.max() < threshold,
}


def goal_of(rule: Any) -> tuple[Any, bool]:
  """(the oracle's goal of a target rule, whether it is independent of the rule's own code)."""
  if type(rule) in _RULES:
    return _RULES[type(rule)](rule), True
  return oracles.FromLogits(lambda warp, target, drafter: _acted_out(rule, warp, target, drafter)), False


def deferral_of(router: Any) -> Callable[..., float] | None:
  """The oracle's deferral of a router, or None."""
  return _ROUTERS[type(router)](router) if type(router) in _ROUTERS else None


def stop_of(drafter: Any, laws: oracles.Laws) -> Callable[..., float]:
  """The `stop` of `oracles.round_structured` for a `ModelDrafter` with one of the shipped stopping policies, or none."""
  policy = getattr(drafter, 'stopping', None)
  if policy is None:
    return lambda *args: 0.0
  stops, threshold = _STOPPING[type(policy)], float(policy.threshold)

  def stop(prefix, drafted, law):
    del law
    plain = lambda i: laws.drafter_plain((*prefix, *drafted[:i]))
    return float(stops(threshold, plain(len(drafted)), [plain(i)[token] for i, token in enumerate(drafted)]))

  return stop


def law_of(decoder: Any, oracle: Any, row: int) -> tuple[oracles.RoundStructured, bool]:
  """(what `decoder` must do with one request of an `exactness.Oracle`, whether that is independent of its parts).

  Raises:
    NotImplementedError: a decoder, router, verifier or policy that no oracle knows.
  """
  request = oracle.requests[row]
  limits = dict(
      max_new_tokens=request.max_new_tokens, eos_ids=request.eos_ids, stop_sequences=request.stop_sequences)
  if isinstance(decoder, speculative.SpeculativeDecoder):
    goal, independent = goal_of(decoder.rule)
    laws = oracle.laws(row, goal=goal, bonus=decoder.bonus)
    if isinstance(decoder.verifier, _EXACT_ON_TREES) and (decoder.bonus == 'rule' or decoder.rule.is_lossless):
      return oracles.RoundStructured(oracles.product_law(laws.goal, **limits), {}), independent
    verifiers = {speculative.TokenVerifier: 'token', speculative.BlockVerifier: 'block'}
    if type(decoder.verifier) not in verifiers:
      raise NotImplementedError(f'no oracle of the verifier {type(decoder.verifier).__name__}')
    if getattr(decoder.drafter, 'stopping', None) is not None and type(decoder.drafter.stopping) not in _STOPPING:
      raise NotImplementedError(f'no oracle of the policy {type(decoder.drafter.stopping).__name__}')
    expected = oracles.round_structured(
        laws, num_draft_tokens=decoder.num_draft_tokens, verifier=verifiers[type(decoder.verifier)],
        stop=stop_of(decoder.drafter, laws), **limits)
    if decoder.bonus == 'rule':
      expected.law = oracles.product_law(laws.goal, **limits)
    return expected, independent
  models = routing_oracles.Models.of(oracle, row)
  if isinstance(decoder, routed.RoutedDecoder) and deferral_of(decoder.router) is not None:
    return routing_oracles.token_cascade(
        models, deferral_of(decoder.router), needs_target=decoder.router.needs_target), True
  if isinstance(decoder, sequence_cascade.SequenceCascade):
    return routing_oracles.sequence_cascade(models, decoder.confidence, float(decoder.threshold), decoder.quantile), True
  raise NotImplementedError(f'no oracle of {type(decoder).__name__}')


def _acted_out(rule, warp, target_logits, drafter_logits):
  """The law of one position by calling the rule itself."""
  sampling = dataclasses.replace(warp, logit_bias=None, allowed_tokens=None)  # Already in the plain laws.
  inputs = rule_oracles.rule_inputs(
      warp.plain(target_logits), warp.plain(drafter_logits), warp=sampling, truncates=rule.truncates)
  probs = np.exp(np.asarray(rule(None, inputs).log_probs, np.float64))
  return probs if rule.truncates == 'inputs' else warp.truncated(probs)
