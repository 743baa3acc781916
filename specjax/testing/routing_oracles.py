"""What token and sequence cascades must do, in plain numpy float64: their joint laws and expected counters by recursion.

Nothing here calls `specjax.routers` or a decoder. A model is a function of the emitted prefix that returns raw logits.
"""

import dataclasses
from typing import Any, Callable

import numpy as np

from specjax.core import types
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles


@dataclasses.dataclass(frozen=True)
class Models:
  """The two models of one request: `target` and `drafter` are functions prefix -> logits float64[V]."""

  request: exactness.Request
  target: Callable[..., Any]
  drafter: Callable[..., Any]

  @classmethod
  def of(cls, oracle: exactness.Oracle, row: int) -> 'Models':
    """Those of one request of an `exactness.Oracle`."""
    return cls(oracle.requests[row], oracle.target.row(row), oracle.drafter.row(row))

  @property
  def limits(self):
    """Keyword arguments of `oracles.product_law`."""
    names = ('max_new_tokens', 'eos_ids', 'stop_sequences')
    return {name: getattr(self.request, name) for name in names}


# Deferral: (target law, drafter law), both at temperature 1 -> the probability that the target draws the token.


def chow(threshold):
  """TokenCascade[Chow]: the drafter goes on while max q >= 1 - threshold."""
  return lambda target, drafter: float(np.max(drafter) < 1 - threshold)


def entropy(threshold):
  """The target where the drafter's entropy in nats is above the threshold."""
  return lambda target, drafter: float(-np.sum(drafter[drafter > 0] * np.log(drafter[drafter > 0])) > threshold)


def random(rate):
  """The target with probability `rate`."""
  return lambda target, drafter: rate


def difference(threshold):
  """The oracle of Narasimhan et al. 2025: the drafter where max q >= max p - threshold."""
  return lambda target, drafter: float(np.max(drafter) < np.max(target) - threshold)


def divergence(threshold, direction='target_drafter', is_flipped=False):
  """Backoff decoding's oracle: the target where the divergence in nats is above the threshold, or flipped, where it is not."""

  def share(target, drafter):
    first, second = (target, drafter) if direction == 'target_drafter' else (drafter, target)
    terms = [a * (np.log(a) - np.log(b)) if b > 0 else np.inf for a, b in zip(first, second) if a > 0]
    return float((sum(terms) > threshold) != is_flipped)

  return share


def probe(threshold, kernel, bias):
  """A linear probe of the drafter's log-probabilities; `kernel` sums to 0, so that it reads logits too."""

  def share(target, drafter):
    del target
    return float(1 / (1 + np.exp(-(np.dot(kernel, np.log(drafter)) + bias))) > threshold)

  return share


def token_cascade(
    models: Models, deferral: Callable[..., float], *, chunk: int | None = None, needs_target: bool = False,
) -> oracles.RoundStructured:
  """The law of drawing every token from the target with probability `deferral`, else from the drafter, and counters.

  With a `chunk` also the expected `target_passes` of a row that decodes alone: a deferral feeds what the target has not seen.
  """
  warp, limits = models.request.warp, models.limits
  if limits['max_new_tokens'] == 0:
    return oracles.RoundStructured({((), types.Status.LIMIT): 1.0}, {})
  counters = dict.fromkeys(('steps', 'emitted', 'target_calls', 'drafter_calls', 'target_passes'), 0.0)
  finished, running = {}, {((), 1): 1.0}  # by text and the number of tokens that the target is behind
  while running:
    longer = {}
    for (prefix, behind), weight in running.items():
      target, drafter = models.target(prefix), models.drafter(prefix)
      share = deferral(warp.plain(target), warp.plain(drafter))
      for name in ('steps', 'emitted', 'drafter_calls'):
        counters[name] += weight
      counters['target_calls'] += weight * share
      counters['target_passes'] += weight * (1 if needs_target else share * -(-behind // (chunk or 1)))
      for law, mass, next_behind in ((target, share, 1), (drafter, 1 - share, 1 if needs_target else behind + 1)):
        for token in np.flatnonzero(warp.law(law)) if mass > 0 else ():
          tokens = (*prefix, int(token))
          status = oracles.status_after(tokens, **limits)
          is_running = status == types.Status.RUNNING
          outcome, store = ((tokens, next_behind), longer) if is_running else ((tokens, status), finished)
          store[outcome] = store.get(outcome, 0.0) + weight * mass * warp.law(law)[token]
    running = longer
  if chunk is None:
    del counters['target_passes']
  return oracles.RoundStructured(finished, counters)


def confidence(kind, probs, level=None):
  """float, the confidence in an answer whose tokens had `probs` at temperature 1."""
  probs = np.asarray(probs, np.float64)
  return {
      'mean_log_prob': lambda: np.mean(np.log(probs)), 'sum_log_prob': lambda: np.sum(np.log(probs)),
      'minimum': lambda: np.min(probs), 'quantile': lambda: np.quantile(probs, level)}[kind]()


def first_answers(models: Models, kind: str, level: float | None = None):
  """List of (outcome, probability, confidence) of everything the drafter may answer."""
  warp = models.request.warp
  law = oracles.product_law(lambda prefix: warp.law(models.drafter(prefix)), **models.limits)
  own = lambda tokens: [warp.plain(models.drafter(tokens[:i]))[token] for i, token in enumerate(tokens)]
  return [(outcome, mass, confidence(kind, own(outcome[0]), level) if outcome[0] else 0.0) for outcome, mass in law.items()]


def sequence_cascade(models: Models, kind: str, threshold: float, level: float | None = None) -> oracles.RoundStructured:
  """The law q(y) [confidence(y) >= threshold] + P(not kept) p(y), and what both phases cost in expectation."""
  warp, limits = models.request.warp, models.limits
  if limits['max_new_tokens'] == 0:
    return oracles.RoundStructured({((), types.Status.LIMIT): 1.0}, {})
  law, lost, counters = {}, 0.0, dict.fromkeys(('emitted', 'target_calls', 'drafter_calls'), 0.0)
  for outcome, mass, sure in first_answers(models, kind, level):
    counters['drafter_calls'] += mass * len(outcome[0])
    if sure >= threshold:
      law[outcome] = mass
      counters['emitted'] += mass * len(outcome[0])
    else:
      lost += mass
  second = oracles.product_law(lambda prefix: warp.law(models.target(prefix)), **limits) if lost else {}
  for outcome, mass in second.items():
    law[outcome] = law.get(outcome, 0.0) + lost * mass
    counters['target_calls'] += lost * mass * len(outcome[0])
  counters['emitted'] += counters['target_calls']
  counters['steps'] = counters['drafter_calls'] + counters['target_calls']
  return oracles.RoundStructured(law, counters)


def discrepancy(joint: enumeration.JointLaw, row: int, expected: oracles.RoundStructured) -> exactness.Discrepancy:
  """How far one request of an enumeration is from its oracle."""
  counters = [abs(float(joint.counters[name][row]) - value) for name, value in expected.counters.items()]
  return exactness.Discrepancy(
      law=enumeration.total_variation(expected.law, joint.laws[row]), mass=abs(joint.mass()[row] - 1),
      counters=max(counters, default=0.0))
