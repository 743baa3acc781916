"""Drafters made to break a verifier: length policies that look at everything they may, and laws far from the target's.

A verifier must be exact for every one of them; `Policy.PEEK` is the negative control that no verifier can repair.
"""

import enum
from typing import Any, ClassVar

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import protocols
from specjax.core import types
from specjax.ops import categorical
from specjax.ops import warping

UNIFORM_BREAKS = (0.25, 0.625)
CONFIDENCE = 0.5


class Policy(enum.IntEnum):
  """When drafting stops, decided before the next token is drawn (but for `PEEK`)."""

  FULL = 0  # never before K tokens
  NONE = 1  # at once
  DRAFTED = 2  # behind an odd draft token
  LAW = 3  # where the drafter's largest probability is below CONFIDENCE
  UNIFORM = 4  # by its own uniform; likelier behind an odd draft token
  TEXT = 5  # after as many tokens as the committed tokens' sum modulo K + 1
  PEEK = 6  # drops a drawn token whose own probability is below CONFIDENCE: not admissible


class DraftLaw(enum.IntEnum):
  """What the draft tokens are drawn from."""

  OWN = 0  # the model's sampling law
  GREEDY = 1  # one-hot at the likeliest token of OWN
  CONSTANT = 2  # one-hot at the last token, which the target may forbid
  UNIFORM = 3  # every token alike, forbidden ones too


@struct.dataclass(kw_only=True)
class AdversarialDrafter:
  """A drafter whose every row has its own policy and draft law; recomputes its model on the whole buffer, no cache.

  Attributes:
    model: `LanguageModel` with an uncached `forward`, static.
    num_draft_tokens: K, static.
    policy, law: int32[B], a `Policy` and a `DraftLaw` per request.
  """

  model: protocols.LanguageModel = struct.field(pytree_node=False)
  num_draft_tokens: int = struct.field(pytree_node=False)
  policy: Any
  law: Any
  params_from: ClassVar[str] = 'drafter'

  def init(self, params, prompt, prefill, capacity) -> Any:
    del params, prompt, prefill, capacity
    return jnp.asarray(self.policy, jnp.int32), jnp.asarray(self.law, jnp.int32)

  def propose(self, params, state, uniforms, *, tokens, length, sampling, live, with_bonus):
    policy, kind = state
    context = jnp.where(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :] < length[:, None], tokens, 0)
    cap = jnp.mod(jnp.sum(context, axis=1, dtype=jnp.int32), self.num_draft_tokens + 1)
    buffer, going, count = tokens, live, jnp.zeros_like(length)
    drafted, laws, logits = [], [], []
    for i in range(self.num_draft_tokens):
      logits.append(self._logits(params, buffer, length + i))
      laws.append(self._law(kind, logits[-1], sampling, live))
      odd = jnp.mod(drafted[-1], 2) == 1 if i else jnp.zeros_like(live)
      stops = _stops(policy, i, odd, laws[-1], uniforms.policy[:, i], cap)
      drafted.append(jax.vmap(categorical.draw)(uniforms.draft[:, i], laws[-1]))
      own = jnp.exp(jnp.take_along_axis(laws[-1], drafted[-1][:, None], axis=1)[:, 0])
      going = going & ~stops & ~((policy == Policy.PEEK) & (own < CONFIDENCE))
      count = count + going.astype(jnp.int32)
      rows = jnp.arange(length.shape[0], dtype=jnp.int32)
      buffer = buffer.at[rows, length + i].set(drafted[-1], mode='drop')
    logits.append(self._logits(params, buffer, length + self.num_draft_tokens))
    return types.Proposal(
        tokens=jnp.stack(drafted, axis=1), length=count, log_probs=jnp.stack(laws, axis=1),
        logits=jnp.stack(logits, axis=1), has_bonus=with_bonus), state

  def commit(self, params, state, *, tokens, length, verdict, target_output):
    del params, tokens, length, verdict, target_output
    return state

  def num_calls(self, proposal):
    """int32[B], draft tokens proposed."""
    return proposal.length

  def _logits(self, params, buffer, length):
    """Raw logits float[B, V] behind the first `length` int32[B] tokens of `buffer`."""
    index = jnp.broadcast_to(jnp.arange(buffer.shape[1], dtype=jnp.int32)[None, :], buffer.shape)
    real = (index < length[:, None]).astype(jnp.int32)
    batch = types.TrainingBatch(
        tokens=jnp.where(real > 0, buffer, 0), targets=buffer, weights=real, positions=index, segments=real)
    logits = self.model.forward(params, batch).logits
    return jnp.take_along_axis(logits, (length - 1)[:, None, None], axis=1)[:, 0]

  def _law(self, kind, logits, sampling, live):
    own = warping.sampling_log_probs(logits, sampling, live=live)
    tokens = jnp.arange(logits.shape[1], dtype=jnp.int32)[None, :]
    one_hot = lambda chosen: jnp.where(tokens == chosen, jnp.zeros_like(own), -jnp.inf)
    laws = [
        own, one_hot(jnp.argmax(own, axis=1).astype(jnp.int32)[:, None]),
        one_hot(jnp.full((1, 1), logits.shape[1] - 1, jnp.int32)),
        jnp.full_like(own, -np.log(logits.shape[1]))]
    return jnp.select([(kind == k)[:, None] for k in DraftLaw], laws)


def _stops(policy, i, odd, log_probs, uniform, cap):
  """bool[B], whether no token is drafted at position i."""
  threshold = jnp.where(odd, UNIFORM_BREAKS[1], UNIFORM_BREAKS[0])
  answers = {
      Policy.NONE: jnp.ones_like(odd), Policy.DRAFTED: odd, Policy.LAW: jnp.exp(jnp.max(log_probs, axis=1)) < CONFIDENCE,
      Policy.UNIFORM: uniform < threshold.astype(uniform.dtype), Policy.TEXT: i >= cap}
  return jnp.select([policy == p for p in answers], list(answers.values()), jnp.zeros_like(odd))


def stop_probability(policy, num_draft_tokens, prompt):
  """The oracle's counterpart of a policy: the `stop` argument of `oracles.round_structured`, in numpy.

  Args:
    policy: a `Policy`.
    num_draft_tokens: K.
    prompt: the request's prompt tokens.
  """

  def stop(prefix, drafted, law):
    odd = bool(drafted) and drafted[-1] % 2 == 1
    if policy == Policy.TEXT:
      return float(len(drafted) >= (sum(prompt) + sum(prefix)) % (num_draft_tokens + 1))
    return float({
        Policy.FULL: 0, Policy.NONE: 1, Policy.DRAFTED: odd, Policy.LAW: np.max(law) < CONFIDENCE,
        Policy.UNIFORM: UNIFORM_BREAKS[odd], Policy.PEEK: 0}[policy])

  return stop


def policy_breaks(policy):
  """Where a policy compares its uniforms: one request's entry of `Enumerator`'s `policy_breaks`."""
  return UNIFORM_BREAKS if policy == Policy.UNIFORM else (1.0, 1.0)


def draft_law(kind):
  """The oracle's counterpart of a `DraftLaw`: the `draft` argument of `oracles.Laws`, in numpy."""
  return {
      DraftLaw.OWN: lambda prefix, law: law,
      DraftLaw.GREEDY: lambda prefix, law: np.eye(len(law))[np.argmax(law)],
      DraftLaw.CONSTANT: lambda prefix, law: np.eye(len(law))[-1],
      DraftLaw.UNIFORM: lambda prefix, law: np.full(len(law), 1 / len(law)),
  }[kind]
