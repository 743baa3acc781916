"""The laws of the rules in plain numpy float64, from their formulas or, where a paper gives a procedure, by acting it out.

A goal is a function (target tempered, drafter tempered, target plain, drafter plain) -> law before truncation, or an
`oracles.FromLogits`. Nothing here calls `specjax.ops` or `specjax.rules`.
"""

import jax.numpy as jnp
import numpy as np

from specjax.core import types
from specjax.testing import oracles

# The worked example of the hand tables: laws at temperature 1, D_TV = 0.44, no test of any rule is a tie.
EXAMPLE_DRAFTER = np.array([0.50, 0.25, 0.15, 0.10])
EXAMPLE_TARGET = np.array([0.13, 0.62, 0.08, 0.17])


def total_variation(first, second):
  """Half the L1 distance of two laws."""
  return float(0.5 * np.abs(first - second).sum())


def entropy(probs):
  """Shannon entropy, nats."""
  return -sum(x * np.log(x) for x in probs if x > 0)


# Position rules.


def diff_goal(threshold):
  """Narasimhan et al. 2025, Eq. 5."""
  return lambda target, drafter, target_plain, drafter_plain: (
      drafter if np.max(drafter_plain) >= np.max(target_plain) - threshold else target)


def learned_goal(threshold, *, probe):
  """The target where a linear probe (kernel that sums to 0, bias) of the drafter's logits is above the threshold."""
  kernel, bias = probe

  def goal(target, drafter, target_plain, drafter_plain):
    del target_plain
    return target if 1 / (1 + np.exp(-(np.dot(kernel, np.log(drafter_plain)) + bias))) > threshold else drafter

  return goal


def opt_goal(threshold, loss='zero_one'):
  """Narasimhan et al. 2025, Lemma 4: the target where expected loss + threshold * rejection rate is below the drafter's."""

  def law(warp, target_logits, drafter_logits):
    risk = {'zero_one': lambda probs: 1 - np.max(probs), 'entropy': entropy}[loss]
    rate = total_variation(warp.law(drafter_logits), warp.law(target_logits))
    keeps = risk(warp.plain(drafter_logits)) <= risk(warp.plain(target_logits)) + threshold * rate
    return warp.law(drafter_logits if keeps else target_logits)

  return oracles.FromLogits(law)


# Token-specific rules and the fixed mixture.


def token_v1_goal(threshold):
  """Narasimhan et al. 2025, Eq. 13."""
  return lambda target, drafter, target_plain, drafter_plain: _by_token(
      target, drafter, lambda v: drafter_plain[v] >= max(target_plain) - threshold)


def token_v2_goal(threshold):
  """Narasimhan et al. 2025, Eq. 14."""
  return lambda target, drafter, target_plain, drafter_plain: _by_token(
      target, drafter, lambda v: target_plain[v] >= max(target_plain) - threshold)


def _by_token(target, drafter, is_good):
  """Draw from the drafter; a token that is not good is replaced by a draw from the target: the mix of Eq. 11."""
  law = np.zeros(len(target))
  for token, mass in enumerate(drafter):
    if is_good(token):
      law[token] += mass
    else:
      law += mass * target
  return law


def mixture_goal(target_weight):
  """A coin with this chance of the target decides."""
  return lambda target, drafter, target_plain, drafter_plain: drafter + target_weight * (target - drafter)


def truncated_target_goal(threshold):
  """Draws of the target are repeated until one lies in the set of TokenV3; with an empty set the first one stands."""

  def law(warp, target_logits, drafter_logits):
    del drafter_logits
    plain, probs = warp.plain(target_logits), warp.law(target_logits)
    kept = np.array([x if good >= (1 - threshold) * plain.max() else 0.0 for x, good in zip(probs, plain)])
    return kept / kept.sum() if kept.any() else probs

  return oracles.FromLogits(law)


# Lossy verification, as published: an acceptance test and a residual law.


def relaxed_acceptance(target, drafter, lenience):
  """float64[V], the chance that each draft token passes min(1, p / ((1 - lenience) q)); 0 for tokens never drafted."""
  return np.array([min(1.0, p / ((1 - lenience) * q)) if q > 0 else 0.0 for p, q in zip(target, drafter)])


def lossy_rejection(target, drafter, lenience):
  """The chance that the published procedure rejects."""
  return float(np.sum(drafter * (1 - relaxed_acceptance(target, drafter, lenience))))


def lossy_goal(lenience, residual):
  """Draft, test, and on a rejection draw from the named residual: the law that comes out."""

  def law(warp, target_logits, drafter_logits):
    return lossy_law(warp.law(target_logits), warp.law(drafter_logits), lenience, residual)

  return oracles.FromLogits(law)


def lossy_law(target, drafter, lenience, residual):
  """float64[V], the output law of the procedure on two given laws."""
  accept = relaxed_acceptance(target, drafter, lenience)
  if residual == 'difference':
    weights = np.clip(target - drafter, 0, None)
  elif residual == 'mass_balance':
    weights = np.clip(target / balanced_beta(target, drafter, lenience) - drafter, 0, None)
  else:
    weights = target
  law = np.zeros(len(target))
  for token, mass in enumerate(drafter):
    law[token] += mass * accept[token]
    if accept[token] < 1 and weights.sum() > 0:
      law += mass * (1 - accept[token]) * weights / weights.sum()
  return law


def balanced_beta(target, drafter, lenience):
  """The beta at which (p / beta - q)_+ has the rejected mass, by trying the tokens in order of p / q; >= 1.

  With the n tokens of largest p / q inside, p(inside) / beta - q(inside) = rejected gives a beta; it is the right one if
  exactly these tokens have p / beta > q. Without a rejection every beta that leaves no residual will do.
  """
  rejected = lossy_rejection(target, drafter, lenience)
  with np.errstate(divide='ignore'):
    ratio = np.where(drafter > 0, target / np.where(drafter > 0, drafter, 1), np.where(target > 0, np.inf, 0))
  order = np.argsort(-ratio, kind='stable')
  for count in range(1, len(order) + 1):
    inside = order[:count]
    with np.errstate(divide='ignore'):
      beta = target[inside].sum() / (rejected + drafter[inside].sum())
    if count == len(order) or ratio[order[count]] <= beta:
      return beta


# Greedy rules: the draft is the drafter's best token.


def lossy_greedy_goal(lenience):
  """Leviathan et al. 2023, A.5 at temperature 0."""

  def goal(target, drafter, target_plain, drafter_plain):
    del drafter_plain
    draft = int(np.argmax(drafter))
    stays = target_plain[draft] >= (1 - lenience) * max(target_plain)
    return np.eye(len(target))[draft if stays else int(np.argmax(target))]

  return goal


def bild_goal(rollback_threshold):
  """Kim et al. 2023: roll back where the target's cross-entropy against the draft token exceeds the threshold (nats)."""

  def goal(target, drafter, target_plain, drafter_plain):
    del drafter_plain
    draft = int(np.argmax(drafter))
    with np.errstate(divide='ignore'):
      loss = -np.log(target_plain[draft])
    return np.eye(len(target))[int(np.argmax(target)) if loss > rollback_threshold else draft]

  return goal


def rule_inputs(target, drafter, *, warp=oracles.Warp(), truncates='output', dtype=np.float64):
  """`types.RuleInputs` of two laws at temperature 1, float[V], warped in numpy; `truncates` as of the rule they are for.

  The drafter's features are its law.
  """
  both = {}
  with np.errstate(divide='ignore'):
    for name, law in (('drafter', drafter), ('target', target)):
      logits = np.log(np.asarray(law, np.float64))
      tempered, truncated, plain = warp.tempered(logits), warp.law(logits), warp.plain(logits)
      both |= {f'{name}_log_probs': truncated if truncates == 'inputs' else tempered,
               f'{name}_truncated_log_probs': truncated, f'{name}_plain_log_probs': plain}
    both = {name: jnp.asarray(np.log(law), dtype) for name, law in both.items()}
  return types.RuleInputs(**both, drafter_features=jnp.asarray(drafter, dtype), position=jnp.int32(3))
