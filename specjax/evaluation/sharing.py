"""One executable for rules that differ in their goal alone: the loop around them is most of what a sweep compiles."""

from collections.abc import Mapping
from typing import Any

from flax import struct
import jax
from jax import lax

from specjax.decode import speculative


@struct.dataclass(kw_only=True)
class Switch:
  """One of several rules of a kind, chosen by a traced number; the others are not computed.

  Attributes:
    index: int32[], which rule.
    rules: tuple of `TargetRule`s that read and truncate alike, none of them lossless.
  """

  index: Any
  rules: tuple[Any, ...]

  truncates = property(lambda self: self.rules[0].truncates)
  needs_drafter_law = property(lambda self: self.rules[0].needs_drafter_law)
  needs_drafter_features = property(lambda self: getattr(self.rules[0], 'needs_drafter_features', False))
  greedy_only = property(lambda self: all(rule.greedy_only for rule in self.rules))
  is_lossless = property(lambda self: False)
  knobs = ('index',)

  def __call__(self, params, inputs):
    branches = [lambda params, inputs, rule=rule: rule(params, inputs) for rule in self.rules]
    return lax.switch(self.index, branches, params, inputs)


def switched(decoder: Any, name: str, others: Mapping[str, Any]) -> Any:
  """`decoder` with a `Switch` over its own rule and those of `others` that differ from it in their rule alone.

  Args:
    decoder: the decoder called `name`.
    name: a key of `others`, where the decoder may have other numbers.
    others: name -> decoder; the same for all that shall share an executable.
  """
  kind = _kind(decoder)
  alike = [other for other in others if kind is not None and _kind(others[other]) == kind]
  if len(alike) < 2:
    return decoder
  rules = tuple(decoder.rule if other == name else others[other].rule for other in alike)
  return decoder.replace(rule=Switch(index=alike.index(name), rules=rules))


def _kind(decoder):
  """What decoders must agree in, None for one that shares with nobody."""
  if not isinstance(decoder, speculative.SpeculativeDecoder) or decoder.rule.is_lossless:
    return None
  rule = decoder.rule
  return (jax.tree.structure(decoder.replace(rule=None)), rule.truncates, rule.needs_drafter_law,
          getattr(rule, 'needs_drafter_features', False))
