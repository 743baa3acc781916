"""The command line: flat flags for the parameters of one function or settings class, and flags for gin.

`--temperature=1.0`, `--temperature 1.0`, `--num-draft-tokens=4` (hyphen and underscore are equal), `--resume`,
`--no_resume`, `--tasks=a,b`; `--gin_file=FILE` (any number), `--gin.NAME=value`, `--gin_search_paths=DIR,DIR`,
`--allow_module=my.package`. A flag that nobody knows is an error, and so is one given twice.
"""

from collections import abc
import dataclasses
import json
import math
import re
import sys
import typing
from typing import Any, Callable, Iterable, Mapping, Sequence

from specjax.config import signatures
from specjax.config import statements
from specjax.core import errors

# An alias is another name of a parameter, or maps the keys of a JSON object to parameters.
Aliases = Mapping[str, str | Mapping[str, str]]

_GIN_FLAGS = ('gin_file', 'gin_search_paths', 'allow_module')
_INTEGER = re.compile(r'[+-]?[0-9]{1,19}')
_FLOAT = re.compile(r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?')
_BOOLS = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}
_MAX_JSON = 1 << 16
_UNREADABLE = object()


@dataclasses.dataclass(frozen=True)
class Flags:
  """A parsed command line.

  Attributes:
    overrides: values of parameters, for those that were given.
    files, bindings, search_paths, allow_modules: what was given for gin.
    operands: what is not a flag, in order (a verb and its objects).
    help: whether help was asked for.
  """

  overrides: dict[str, Any]
  files: tuple[str, ...]
  bindings: tuple[str, ...]
  search_paths: tuple[str, ...]
  allow_modules: tuple[str, ...]
  operands: tuple[str, ...]
  help: bool

  def sources(self) -> dict[str, Any]:
    """The keyword arguments of `runtime.resolve` that come from the command line."""
    return {name: getattr(self, name) for name in ('overrides', 'files', 'bindings', 'search_paths', 'allow_modules')}


def parse(
    argv: Sequence[str], settings: Callable[..., Any], *, aliases: Aliases | None = None, max_operands: int = 0,
    provided: Iterable[str] = (),
) -> Flags:
  """The flags in `argv` (without the program's name).

  Args:
    settings: whose parameters are flags: a dataclass of settings, or the entry function itself.
    aliases: further names, `{'speculative_num_steps': 'num_draft_tokens'}` or, for a flag whose value is a JSON
      object, `{'speculative_config': {'num_speculative_tokens': 'num_draft_tokens'}}`.
    max_operands: how many words that are not flags are allowed.
    provided: parameters that are no flags, because the binary gives them itself.

  Raises:
    ConfigError: for an unknown flag, a value of another type, a flag given twice or without its value.
  """
  provided = frozenset(provided)
  known = {name: value for name, value in signatures.parameters(settings).items() if name not in provided}
  aliases = {_normal(name): target for name, target in (aliases or {}).items()}
  overrides, bindings, operands, wants_help = {}, [], [], False
  gin = {name: [] for name in _GIN_FLAGS}
  words = list(argv)
  while words:
    word = words.pop(0)
    if word in ('--help', '-h'):
      wants_help = True
    elif word.startswith('--gin.'):
      name, equals, value = word[2:].partition('=')
      bindings.append(f'{name[len("gin."):]} = {value if equals else _next(words, word)}')
    elif word.startswith('--') and len(word) > 2:
      name, equals, value = word[2:].partition('=')
      name, value = _normal(name), value if equals else None
      if name in gin:
        gin[name].append(value if equals else _next(words, word))
      else:
        for target, given, flag in _meanings(name, value, words, known, aliases):
          if target in overrides:
            raise errors.ConfigError(what=target, where=flag, got=statements.shown(str(given)), expected='given once')
          overrides[target] = given
    else:
      operands.append(word)
  if len(operands) > max_operands:
    raise errors.ConfigError(
        what='argument', where='command line', got=statements.shown(operands[max_operands]),
        expected='a flag: --name=value', fix=_suggestion(operands[max_operands], known, aliases))
  return Flags(
      overrides, tuple(gin['gin_file']), tuple(bindings),
      tuple(path for value in gin['gin_search_paths'] for path in value.split(',') if path),
      tuple(gin['allow_module']), tuple(operands), wants_help)


def usage(settings: Callable[..., Any], *, aliases: Aliases | None = None, provided: Iterable[str] = ()) -> str:
  """One line per flag: its name, type, default and other names. Arguments as for `parse`."""
  provided, others = frozenset(provided), {}
  for alias, target in (aliases or {}).items():
    if isinstance(target, str):
      others.setdefault(target, []).append(f'--{_normal(alias)}')
  lines = []
  for name, parameter in signatures.parameters(settings).items():
    if name in provided:
      continue
    default = 'required' if parameter.required else f'default {parameter.default!r}'
    default = 'has a default' if parameter.default is signatures.FACTORY else default
    also = f', also {" ".join(others[name])}' if name in others else ''
    lines.append(f'  --{name}: {signatures.describe(parameter.kind)} ({default}{also})')
  return '\n'.join([
      *lines, '  --gin_file=FILE --gin.NAME=value --gin_search_paths=DIR,DIR --allow_module=PACKAGE'])


def run_main(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
  """The exit status of `main(argv)`: 2, and one line on stderr, for what the user can mend."""
  try:
    return main(sys.argv[1:] if argv is None else argv) or 0
  except errors.SpecjaxError as error:
    line = ' '.join(str(error).split())
    printable = ''.join(character if character.isprintable() else '?' for character in line)
    print(f'{type(error).__name__}: {printable}', file=sys.stderr)
    return 2


def _meanings(name, value, words, known, aliases):
  """The parameters that one flag sets: (parameter, value, flag) each."""
  flag = f'--{name}'
  target = aliases.get(name, name)
  if not isinstance(target, str):
    return _from_json(flag, _next(words, flag) if value is None else value, target, known)
  if target in known:
    if value is None and bool in signatures.alternatives(known[target].kind):
      return [(target, True, flag)]
    text = _next(words, flag) if value is None else value
    return [(target, _converted(text, known[target], flag), flag)]
  positive = name[len('no_'):] if name.startswith('no_') else name[len('no'):] if name.startswith('no') else None
  positive = aliases.get(positive, positive)
  if isinstance(positive, str) and value is None and positive in known:
    if bool in signatures.alternatives(known[positive].kind):
      return [(positive, False, flag)]
  raise errors.ConfigError(
      what='unknown flag', where='command line', got=statements.shown(flag), fix=_suggestion(name, known, aliases))


def _from_json(flag, text, keys, known):
  def unique(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
      raise errors.ConfigError(what='JSON object', where=flag, got=statements.shown(text), expected='each key once')
    return found

  try:
    if len(text) > _MAX_JSON:
      raise ValueError('too long')
    given = json.loads(text, object_pairs_hook=unique)
  except (ValueError, RecursionError) as error:
    if isinstance(error, errors.ConfigError):
      raise
    raise errors.ConfigError(what='value', where=flag, got=statements.shown(text), expected='a JSON object') from error
  if not isinstance(given, dict):
    raise errors.ConfigError(what='value', where=flag, got=statements.shown(text), expected='a JSON object')
  found = []
  for key, value in given.items():
    if keys.get(key) not in known:
      raise errors.ConfigError(
          what='key', where=flag, got=statements.shown(key), expected=f'one of {", ".join(keys)}',
          fix=signatures.did_you_mean(key, keys))
    expected = signatures.expectation(known[keys[key]], value)
    if expected:
      raise errors.ConfigError(what=key, where=flag, got=statements.shown(value), expected=expected)
    found.append((keys[key], value, flag))
  return found


def _converted(text, parameter, flag):
  """The value that `text` means for `parameter`; a string only where it means nothing else."""
  kinds = sorted(signatures.alternatives(parameter.kind), key=lambda kind: kind is str)
  if text.lower() == 'none' and (type(None) in kinds or parameter.default is None):
    return None
  for kind in kinds:
    value = _reading(text, kind)
    if value is not _UNREADABLE:
      return value
  literals = [kind for kind in kinds if typing.get_origin(kind) is typing.Literal]
  choices = [str(choice) for kind in literals for choice in typing.get_args(kind)]
  raise errors.ConfigError(
      what=parameter.name, where=flag, got=statements.shown(text), expected=signatures.describe(parameter.kind),
      fix=signatures.did_you_mean(text, choices))


def _reading(text, kind):
  """`text` read as one kind of value, or `_UNREADABLE`."""
  origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
  if kind is bool:
    return _BOOLS.get(text.lower(), _UNREADABLE)
  if kind is int:
    return int(text) if _INTEGER.fullmatch(text) else _UNREADABLE
  if kind is float:
    return float(text) if _FLOAT.fullmatch(text) and math.isfinite(float(text)) else _UNREADABLE
  if kind is str:
    return text
  if kind is Any:
    readings = [_reading(text, guess) for guess in (int, float)]
    return next((value for value in readings if value is not _UNREADABLE), text)
  if origin is typing.Literal:
    return next((choice for choice in arguments if text == str(choice)), _UNREADABLE)
  if origin in (tuple, list, abc.Sequence):
    words = text.split(',') if text else []
    repeated = origin is not tuple or arguments[1:] == (Ellipsis,)
    item_kinds = [arguments[0] if arguments else str] * len(words) if repeated or not arguments else arguments
    items = [_reading(word, item_kind) for word, item_kind in zip(words, item_kinds)]
    if len(words) != len(item_kinds) or _UNREADABLE in items:
      return _UNREADABLE
    return items if origin is list else tuple(items)
  return _UNREADABLE


def _next(words, flag):
  """The word after a flag, as its value."""
  if not words or (words[0].startswith('-') and not _FLOAT.fullmatch(words[0])):
    raise errors.ConfigError(what='flag without a value', where='command line', got=flag, fix=f'write {flag}=value')
  return words.pop(0)


def _normal(name):
  return name.replace('-', '_')


def _suggestion(word, known, aliases):
  flags = [f'--{name}' for name in (*known, *aliases, *_GIN_FLAGS)]
  return signatures.did_you_mean(f'--{_normal(word.lstrip("-"))}', flags)
