"""Constructors such as a user's own package would export, and names a configuration must not reach through it."""

import dataclasses
import os
import subprocess  # A module that a selector must not walk through. pylint: disable=unused-import
from typing import Any, ClassVar, Literal, Optional

from specjax.core import errors

system = os.system  # Public here, but not from here.


@dataclasses.dataclass(frozen=True)
class Rule:
  """A rule with one knob in [0, 1]."""

  threshold: Any
  kind: Literal['soft', 'hard'] = 'soft'
  knobs: ClassVar[tuple[str, ...]] = ('threshold',)

  def __post_init__(self):
    if not 0 <= self.threshold <= 1:
      raise errors.ParamError(what='threshold', got=self.threshold, expected='a number in [0, 1]')


@dataclasses.dataclass(frozen=True)
class Lossless:
  """A rule without numbers."""


DEFAULT = Lossless()


@dataclasses.dataclass(frozen=True)
class Drafter:
  """A drafter around a model."""

  model: Any
  num_draft_tokens: int
  stops: list = dataclasses.field(default_factory=list)


def model(name: str, *, layers: int = 2, scale: Optional[float] = None) -> tuple:
  """A model is a tuple here."""
  return ('model', name, layers, scale)


def fails(*, number=1):
  """A constructor that refuses with a plain ValueError."""
  raise ValueError(f'{number} will not do')


def mismatched():
  """A constructor that refuses with an error of its own kind."""
  raise errors.VocabError(what='vocabulary', got=3, expected='4')


def loose(**options):
  """Takes anything, so nothing can be bound by name."""
  return options


def _private():
  return 'private'
