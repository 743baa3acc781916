"""What a constructor takes: its parameters, which values fit them, and what a misspelt name was meant to be."""

from collections import abc
import dataclasses
import difflib
import functools
import inspect
import re
import types
import typing
from typing import Any, Callable, Iterable, Mapping

from specjax.config import statements
from specjax.core import errors

# A default that is made anew for every object.
FACTORY = object()

_SCALARS = (int, float, bool, str, type(None))


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One keyword parameter; `default` is `inspect.Parameter.empty` when it has to be given."""

  name: str
  annotation: Any
  default: Any

  @property
  def required(self) -> bool:
    return self.default is inspect.Parameter.empty

  @property
  def kind(self) -> Any:
    """The annotation, or without one what the default says about it."""
    if self.annotation is not inspect.Parameter.empty:
      return self.annotation
    if isinstance(self.default, (bool, str)):
      return type(self.default)
    return float if isinstance(self.default, (int, float)) else Any


@functools.cache
def parameters(function: Callable[..., Any]) -> Mapping[str, Parameter]:
  """The parameters that can be given by name, in order. `*args`, `**kwargs` and positional-only ones cannot be bound.

  Raises:
    ConfigError: for a callable without a Python signature.
  """
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(what=f'{function!r} has no signature that a configuration could bind') from error
  hints = _hints(function)
  fields = {field.name: field for field in dataclasses.fields(function)} if dataclasses.is_dataclass(function) else {}
  found = {}
  for name, parameter in signature.parameters.items():
    if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
      continue
    default = parameter.default
    if name in fields and fields[name].default_factory is not dataclasses.MISSING:
      default = FACTORY
    annotation = hints.get(name, parameter.annotation)
    if name in getattr(function, 'knobs', ()) and annotation is Any:
      annotation = float  # A rule's knobs are traced numbers, annotated Any because arrays are as good.
    found[name] = Parameter(name, annotation, default)
  return types.MappingProxyType(found)


def expectation(parameter: Parameter, value: Any) -> str | None:
  """None when `value` fits `parameter`, otherwise what would fit.

  Only what an annotation (or, without one, a default) says for certain is refused. An int fits a float; a bool fits
  neither; a list is not a tuple.
  """
  if value is None and parameter.default is None:
    return None
  return None if _fits(parameter.kind, value) else describe(parameter.kind)


def describe(annotation: Any) -> str:
  """The annotation as people write it, without the modules."""
  if isinstance(annotation, type) and not typing.get_args(annotation):
    return annotation.__name__
  return re.sub(r'\b([A-Za-z_]\w*\.)+', '', str(annotation))


def alternatives(annotation: Any) -> tuple[Any, ...]:
  """The members of a union, `Annotated` and `NewType` unwrapped; a one-element tuple for anything else."""
  if typing.get_origin(annotation) is typing.Annotated:
    return alternatives(typing.get_args(annotation)[0])
  if isinstance(annotation, typing.NewType):
    return alternatives(annotation.__supertype__)
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return tuple(kind for member in typing.get_args(annotation) for kind in alternatives(member))
  return (type(None),) if annotation is None else (annotation,)


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
  """'did you mean X?' for the candidate nearest to `name`, or None."""
  candidates = list(dict.fromkeys(candidates))
  found = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
  if not found:
    folded = {candidate.lower(): candidate for candidate in candidates}
    found = [folded[match] for match in difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.6)]
  return f'did you mean {found[0]}?' if found else None


def _hints(function):
  """Evaluated annotations; none when the module that wrote them cannot evaluate them itself."""
  try:
    if inspect.isclass(function) and not dataclasses.is_dataclass(function):
      return typing.get_type_hints(function.__init__)
    return typing.get_type_hints(function)
  except Exception:  # An annotation is somebody's expression; one that fails only costs its own type check.
    return {}


def _fits(annotation, value):
  return any(_fits_one(member, value) for member in alternatives(annotation))


def _fits_one(annotation, value):
  """Whether `value` may be meant for `annotation`, which is not a union."""
  origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
  if isinstance(value, statements.Reference):
    # What a function returns is not known before it is called; what a class returns is.
    unknown = value.evaluated and not inspect.isclass(value.selector.function)
    return unknown or not (annotation in _SCALARS or origin is typing.Literal)
  if origin is typing.Literal:
    return any(type(value) is type(choice) and value == choice for choice in arguments)
  if origin in (bool, str, type(None)):
    return isinstance(value, origin)
  if origin in (int, float):
    return isinstance(value, (int, origin)) and not isinstance(value, bool)
  if origin in (tuple, list):
    return isinstance(value, origin) and _items_fit(origin, arguments, value)
  if origin in (abc.Sequence, abc.Iterable, abc.Collection):
    return isinstance(value, (tuple, list)) and _items_fit(list, arguments, value)
  if origin in (dict, abc.Mapping):
    return isinstance(value, dict) and (not arguments or all(_fits(arguments[1], item) for item in value.values()))
  return not (origin is abc.Callable or getattr(origin, '_is_protocol', False))


def _items_fit(origin, arguments, value):
  if not arguments:
    return True
  if origin is list or (len(arguments) == 2 and arguments[1] is Ellipsis):
    return all(_fits(arguments[0], item) for item in value)
  arguments = () if arguments == ((),) else arguments
  return len(value) == len(arguments) and all(_fits(kind, item) for kind, item in zip(arguments, value))
