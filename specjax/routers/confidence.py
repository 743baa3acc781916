"""Routers that read how sure a law is. A comparison with NaN is false, so none of them defers on a broken law."""

from typing import Any, ClassVar

from flax import struct
import jax.numpy as jnp

from specjax.ops import divergences


@struct.dataclass(kw_only=True)
class ChowRouter:
  """Defers where the drafter's largest probability at temperature 1 is below 1 - threshold.

  The threshold runs from 0 (the drafter goes on only where it is certain) to 1 (always); below 0 every token is deferred.

  Source: Narasimhan et al. 2025, TokenCascade[Chow].
  """

  threshold: Any
  needs_target: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('threshold',)

  def __call__(self, params, inputs):
    del params
    confidence = jnp.max(jnp.exp(inputs.drafter_plain_log_probs))
    return confidence < 1 - jnp.asarray(self.threshold, confidence.dtype)


@struct.dataclass(kw_only=True)
class EntropyRouter:
  """Defers where the entropy of the drafter's law at temperature 1 is above the threshold (nats). Source: ours."""

  threshold: Any
  needs_target: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('threshold',)

  def __call__(self, params, inputs):
    del params
    entropy = divergences.entropy(inputs.drafter_plain_log_probs)
    return entropy > jnp.asarray(self.threshold, entropy.dtype)


@struct.dataclass(kw_only=True)
class RandomRouter:
  """Defers each token with probability `rate`, whatever the laws: the line that every other router must beat. Source: ours."""

  rate: Any
  needs_target: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('rate',)

  def __call__(self, params, inputs):
    del params
    return inputs.uniform < jnp.asarray(self.rate, inputs.uniform.dtype)


@struct.dataclass(kw_only=True)
class DiffOracle:
  """Defers where the drafter's largest probability is below the target's minus the threshold, both at temperature 1.

  An oracle: it reads the target's law of the very token, so the target runs for every token and no time is saved. The
  threshold runs from -1 (every token is deferred) to 1 (none is).

  Source: Narasimhan et al. 2025, Eq. 5 as a sequential rule, which no cascade can follow.
  """

  threshold: Any
  needs_target: ClassVar[bool] = True
  knobs: ClassVar[tuple[str, ...]] = ('threshold',)

  def __call__(self, params, inputs):
    del params
    drafter, target = (jnp.max(jnp.exp(law)) for law in (
        inputs.drafter_plain_log_probs, inputs.target_plain_log_probs))
    return drafter < target - jnp.asarray(self.threshold, drafter.dtype)
