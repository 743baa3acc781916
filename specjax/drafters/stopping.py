"""When a drafter stops before K tokens: policies that decide before a token is drawn, so that exactness holds.

A policy sees the law of the next token, and the tokens that are already in the proposal and stay there. It never sees the
token it decides about, nor anything of a rejected suffix: dropping a token because of what it was would move the output law.
All policies are *unbatched*, pure, and pytrees whose numbers are leaves.
"""

from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from specjax.ops import divergences
from specjax.ops import probes


class StoppingInputs(NamedTuple):
  """What a policy sees before a token is drawn. *Unbatched*.

  `plain_log_probs` float[V], the drafter's law of the next token at temperature 1; `previous_log_prob` float[], that of the
  token drawn before it (0 at index 0), also at temperature 1; `index` int32[], how many tokens are drafted; `uniform`
  float[], the policy's own; `features` float[D], the drafter's hidden state, or None.
  """

  plain_log_probs: jax.Array
  previous_log_prob: jax.Array
  index: jax.Array
  uniform: jax.Array
  features: jax.Array | None = None


@struct.dataclass(kw_only=True)
class MaxProbability:
  """Stops where the drafter's largest probability at temperature 1 is below `threshold`.

  Source: Kim et al. 2023 (BiLD), the fallback policy; tested on the law and not on the drawn token.
  """

  threshold: Any

  def init(self):
    """float[] state: nothing is carried."""
    return jnp.zeros(())

  def __call__(self, state, inputs):
    confidence = jnp.max(jnp.exp(inputs.plain_log_probs))
    return confidence < jnp.asarray(self.threshold, confidence.dtype), state


@struct.dataclass(kw_only=True)
class Entropy:
  """Stops where the entropy of the drafter's law at temperature 1 exceeds `threshold` (nats). Source: ours."""

  threshold: Any

  def init(self):
    """float[] state: nothing is carried."""
    return jnp.zeros(())

  def __call__(self, state, inputs):
    entropy = divergences.entropy(inputs.plain_log_probs)
    return entropy > jnp.asarray(self.threshold, entropy.dtype), state


@struct.dataclass(kw_only=True)
class Survival:
  """Stops where the chance that the whole proposal survives, by the drafter's own confidence, falls below `threshold`.

  The confidence of the drafted tokens times the largest probability of the next law, at temperature 1. Source: ours.
  """

  threshold: Any

  def init(self):
    """float[] state: log of the confidence of what is drafted (nats)."""
    return jnp.zeros(())

  def __call__(self, state, inputs):
    state = state.astype(inputs.previous_log_prob.dtype) + inputs.previous_log_prob
    survival = jnp.exp(state + jnp.max(inputs.plain_log_probs))
    return survival < jnp.asarray(self.threshold, survival.dtype), state


@struct.dataclass(kw_only=True)
class Learned:
  """Stops where a probe of the drafter's hidden state gives a divergence above its level a chance above `threshold`.

  Source: ours; the decision of backoff decoding as a draft length, which keeps the law.

  Attributes:
    probe: parameters as of `specjax.ops.probes`.
    threshold: a probability.
  """

  probe: Any
  threshold: Any

  def init(self):
    """float[] state: nothing is carried."""
    return jnp.zeros(())

  def __call__(self, state, inputs):
    chance = probes.probability(self.probe, inputs.features)
    return chance > jnp.asarray(self.threshold, chance.dtype), state
