"""The text of a gin file as statements. Nothing is imported, looked up or run here.

The grammar is gin's own (`gin.config_parser`). What gin accepts silently and a configuration never means is refused:
control characters, files or values without bound, a text whose end swallows the last statement, lowercase macros.
"""

import dataclasses
import io
import math
import re
import tokenize
from typing import Any, Iterator

from gin import config_parser

from specjax.core import errors

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_TOKENS = 50_000
MAX_STATEMENTS = 5_000
MAX_ADJACENT_STRINGS = 1_000
REQUIRED = 'gin.REQUIRED'

_DYNAMIC_REGISTRATION = 'from __gin__ import dynamic_registration'
_MACRO = re.compile(r'[A-Z][A-Z0-9_]*')
# Control characters, and those that make a line read differently from what it says.
_HIDDEN = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]')


@dataclasses.dataclass(frozen=True)
class Reference:
  """`@scope/selector` (the constructor itself) or, `evaluated`, `@scope/selector()` (what it returns).

  `selector` is a name until `registry.Registry` has put the `Constructor` in its place.
  """

  scope: str
  selector: Any
  evaluated: bool


@dataclasses.dataclass(frozen=True)
class Macro:
  """`%NAME`, or `%gin.REQUIRED`: a value that somebody else must give."""

  name: str


@dataclasses.dataclass(frozen=True)
class Import:
  """`module` becomes known to the file; `name` stands for the dotted `path` in its selectors."""

  module: str
  name: str
  path: str
  where: str


@dataclasses.dataclass(frozen=True)
class Include:
  """Another file, whose statements come first."""

  path: str
  where: str


@dataclasses.dataclass(frozen=True)
class Binding:
  """`scope/selector.parameter = value`; a macro has an empty selector and is its `parameter`."""

  scope: str
  selector: str
  parameter: str
  value: Any
  where: str


def parse(text: str, name: str, *, registered: bool = False) -> tuple[Import | Include | Binding, ...]:
  """The statements of `text` in order.

  Args:
    text: a gin file.
    name: what errors call it: a path, or a flag.
    registered: whether dynamic registration is already on; if not, the file has to ask for it.

  Raises:
    ConfigError: for any text that is not a configuration file; `where` is name:line.
  """
  text = text.replace('\r\n', '\n')
  _check_text(text, name)
  parser, statements = None, []
  try:
    parser = config_parser.ConfigParser(text, _Delegate())
    # Not a for loop: gin's parser lets StopIteration out at an unexpected end, which would pass for the real one.
    while len(statements) <= MAX_STATEMENTS and (statement := parser.parse_statement()) is not None:
      statements.append(statement)
  except Exception as error:  # Whatever a hostile text makes of gin, ast or tokenize; the cause stays attached.
    raise _syntax_error(error, name, parser) from error
  if len(statements) > MAX_STATEMENTS:
    raise errors.ConfigError(what='length', where=name, expected=f'at most {MAX_STATEMENTS} statements')
  return tuple(_converted(statements, name, registered))


def parse_binding(text: str, name: str) -> Binding:
  """The one binding that `text` is, as given on the command line after `--gin.`."""
  try:
    found = parse(text, name, registered=True)
  except errors.ConfigError as error:
    raise errors.ConfigError(
        what=error.what, where=name, got=error.got or shown(text), expected=error.expected,
        fix=error.fix or "a string needs its own quotes: --gin.MODEL='\"name\"'") from error
  if len(found) != 1 or not isinstance(found[0], Binding):
    raise errors.ConfigError(what='binding', where=name, got=shown(text), expected='NAME=value')
  return dataclasses.replace(found[0], where=name)


def leaves(value: Any) -> Iterator[Any]:
  """Every literal, reference and macro inside `value`, keys of dicts included."""
  if isinstance(value, dict):
    for key, item in value.items():
      yield from leaves(key)
      yield from leaves(item)
  elif isinstance(value, (list, tuple)):
    for item in value:
      yield from leaves(item)
  else:
    yield value


def substitute(value: Any, replace: Any) -> Any:
  """A copy of `value` with `replace(leaf)` in the place of every reference and macro."""
  if isinstance(value, dict):
    return {key: substitute(item, replace) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(substitute(item, replace) for item in value)
  return replace(value) if isinstance(value, (Reference, Macro)) else value


def shown(value: Any) -> Any:
  """`value`, or the beginning of it when it is too long for a message of one line."""
  text = value if isinstance(value, str) else repr(value)
  return value if len(text) <= 80 else text[:77] + '...'


def check_value(value: Any, parameter: str, where: str) -> None:
  """Raises ConfigError for what no parameter can mean: bytes, complex, huge and infinite numbers, keys that refer."""
  expected = None
  if isinstance(value, (list, tuple, dict)):
    for item in value.values() if isinstance(value, dict) else value:
      check_value(item, parameter, where)
    if isinstance(value, dict) and not all(isinstance(key, (bool, int, float, str, type(None))) for key in value):
      expected = 'strings or numbers as keys of a dict'
  elif isinstance(value, Macro):
    if value.name != REQUIRED and not _MACRO.fullmatch(value.name):
      expected = f'a macro in capitals without a scope, not %{shown(value.name)}'
  elif not isinstance(value, (Reference, bool, int, float, str, type(None))):
    expected = 'a number, string, bool, None, or a container of them'
  elif isinstance(value, int) and abs(value) >= 1 << 64 or isinstance(value, float) and not math.isfinite(value):
    expected = 'a finite number, an integer of at most 64 bits'
  if expected:
    raise errors.ConfigError(what=parameter, where=where, expected=expected)


class _Delegate(config_parser.ParserDelegate):
  """Turns `@` and `%` into records instead of registering anything."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    scope, _, selector = scoped_configurable_name.rpartition('/')
    return Reference(scope, selector, evaluate)

  def macro(self, macro_name):
    return Macro(macro_name)


def _check_text(text, name):
  """Bounds that must hold before gin's recursive parser sees the text."""
  if len(text.encode('utf-8', 'surrogatepass')) > MAX_BYTES:
    raise errors.ConfigError(what='size', where=name, expected=f'at most {MAX_BYTES} bytes')
  if hidden := _HIDDEN.search(text):
    line = text.count('\n', 0, hidden.start()) + 1
    raise errors.ConfigError(what='control character', where=f'{name}:{line}', got=hidden.group())
  brackets, quotes = sum(map(text.count, '([{')), sum(map(text.count, '"\''))
  if brackets <= MAX_DEPTH and quotes <= MAX_ADJACENT_STRINGS and len(text) <= MAX_TOKENS:
    return  # Most texts cannot pass a bound; looking at every token would double the cost of reading them.
  depth = strings = number = 0
  try:
    for number, token in enumerate(tokenize.generate_tokens(io.StringIO(text).readline)):
      depth += (token.string in ('(', '[', '{')) - (token.string in (')', ']', '}'))
      if token.type not in (tokenize.NL, tokenize.COMMENT):
        strings = strings + 1 if token.type == tokenize.STRING else 0
      if depth > MAX_DEPTH or strings > MAX_ADJACENT_STRINGS or number > MAX_TOKENS:
        what = 'nesting' if depth > MAX_DEPTH else 'length'
        raise errors.ConfigError(
            what=what, where=f'{name}:{token.start[0]}',
            expected=f'at most {MAX_DEPTH} levels, {MAX_ADJACENT_STRINGS} adjacent strings, {MAX_TOKENS} tokens')
  except (tokenize.TokenError, SyntaxError, ValueError, RecursionError, StopIteration) as error:
    if isinstance(error, errors.ConfigError):
      raise
    raise _syntax_error(error, name, None) from error


def _syntax_error(error, name, parser):
  """The ConfigError for whatever the parser raised, with the best line number there is."""
  detail = error.args[1] if len(error.args) > 1 and isinstance(error.args[1], tuple) else ()
  line = parser.current_token.start[0] if parser is not None and parser.current_token else None
  if isinstance(error, SyntaxError) and len(detail) > 1:
    line = detail[1]
  elif isinstance(error, tokenize.TokenError) and detail:
    line = detail[0]
  message = ' '.join(str(error.args[0]).split()) if error.args else 'unexpected end'
  message = message[message.find('Failed to parse token'):] if 'Failed to parse token' in message else message
  return errors.ConfigError(
      what=f'cannot be read as gin: {shown(message)}', where=f'{name}:{line}' if line else name)


def _converted(statements, name, registered):
  """gin's statements as ours, each checked on its own."""
  imported = registered
  for statement in statements:
    where = f'{name}:{statement.location.line_num}'
    if isinstance(statement, config_parser.IncludeStatement):
      yield Include(statement.filename, where)
    elif isinstance(statement, config_parser.ImportStatement):
      if statement.format() == _DYNAMIC_REGISTRATION and not imported:
        registered = True
      else:
        yield _import(statement, where)
      imported = True
    elif isinstance(statement, config_parser.BindingStatement):
      binding = _binding(statement, where)
      if binding.selector and not registered:
        raise errors.ConfigError(
            what='binding before dynamic registration', where=where,
            fix=f'begin the file with "{_DYNAMIC_REGISTRATION}"')
      yield binding


def _import(statement, where):
  module, name = statement.module, statement.bound_name()
  if module.split('.')[0] in ('__gin__', 'gin') or name == 'gin':
    raise errors.ConfigError(
        what='import', where=where, got=module, expected='a module of constructors, under a name other than gin')
  return Import(module, name, module if statement.is_from or statement.alias else name, where)


def _binding(statement, where):
  scope, selector, parameter = statement.scope, statement.selector, statement.arg_name
  if not parameter:
    if scope or not _MACRO.fullmatch(selector):
      raise errors.ConfigError(
          what='macro', where=where, got=f'{scope}/{selector}' if scope else selector,
          expected='capitals without a scope (NUM_DRAFT_TOKENS = 4), or a parameter (evaluate.seed = 4)')
    selector, parameter = '', selector
  check_value(statement.value, parameter, where)
  return Binding(scope, selector, parameter, statement.value, where)
