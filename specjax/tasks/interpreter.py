"""A tiny language and its interpreter, for running programs that a model wrote.

    program   = statement {';' statement} [';']
    statement = name '=' value | 'return' value | 'if' condition 'then' statement 'else' statement
    condition = value ('==' | '!=' | '<' | '<=' | '>' | '>=') value
    value     = term {('+' | '-') term}
    term      = factor {('*' | '//' | '%') factor}
    factor    = integer | name | '-' factor | '(' value ')' | function '(' argument {',' argument} ')'

Values are integers and flat lists of integers. `map(v, value)` and `keep(v, condition)` evaluate their second argument
once per element, which is named `e` there. `sum len max min first last` of a list are integers (0 for an empty list),
`sort reverse` are lists, `max min` also take two integers. `//` and `%` round down, as in Python.

The text is data: nothing is handed to Python's own parser, and source length, nesting, steps, integers and lists are
bounded, so any text ends within a millisecond or two with a value or a `ProgramError`.
"""

import re

MAX_SOURCE = 512  # characters
MAX_NESTING = 16
MAX_STEPS = 2000
MAX_INTEGER = 10**18
MAX_LIST = 64

_TOKEN = re.compile(r'[ \t\r\n]*([0-9]{1,18}(?![0-9])|[a-z]{1,12}(?![a-z])|//|==|!=|<=|>=|[-+*%<>=(),;])')
_COMPARISONS = ('==', '!=', '<', '<=', '>', '>=')
_FUNCTIONS = ('sum', 'len', 'max', 'min', 'first', 'last', 'sort', 'reverse', 'map', 'keep')
_RESERVED = frozenset(_FUNCTIONS) | {'if', 'then', 'else', 'return', 'e'}


class ProgramError(ValueError):
  """A program that cannot be read or does not finish with a value."""


def parse(source: str) -> list[tuple]:
  """The statements of a program, as nested tuples for `run`.

  Args:
    source: any text.

  Raises:
    ProgramError: the text is not a program.
  """
  if len(source) > MAX_SOURCE:
    raise ProgramError(f'{len(source)} characters, at most {MAX_SOURCE}')
  tokens, position, end = [], 0, len(source.rstrip(' \t\r\n'))
  while position < end:
    match = _TOKEN.match(source, position)
    if match is None:
      raise ProgramError(f'unreadable at character {position}')
    tokens.append(match.group(1))
    position = match.end()
  return _Parser(tokens).program()


def run(program: list[tuple], variables: dict) -> int | tuple:
  """The value that a program returns.

  Args:
    program: from `parse`.
    variables: name to integer or tuple of integers; not changed.

  Raises:
    ProgramError: an unknown name, a wrong type, a division by zero, a limit exceeded, or no `return`.
  """
  machine = _Machine(dict(variables))
  for statement in program:
    value = machine.execute(statement)
    if value is not None:
      return value
  raise ProgramError('no return')


class _Parser:
  """Recursive descent with one token of look-ahead."""

  def __init__(self, tokens: list[str]):
    self._tokens = tokens
    self._position = 0
    self._nesting = 0

  def program(self) -> list[tuple]:
    statements = [self._statement()]
    while self._peek() == ';':
      self._next()
      if self._peek() is None:
        break
      statements.append(self._statement())
    if self._peek() is not None:
      raise ProgramError(f'unexpected {self._peek()!r}')
    return statements

  def _peek(self) -> str | None:
    return self._tokens[self._position] if self._position < len(self._tokens) else None

  def _next(self, expected: str | None = None) -> str:
    token = self._peek()
    if token is None or expected not in (None, token):
      raise ProgramError(f'{expected or "more"} expected, not {token!r}')
    self._position += 1
    return token

  def _deeper(self, rule):
    self._nesting += 1
    if self._nesting > MAX_NESTING:
      raise ProgramError(f'nested deeper than {MAX_NESTING}')
    node = rule()
    self._nesting -= 1
    return node

  def _statement(self) -> tuple:
    token = self._next()
    if token == 'return':
      return 'return', self._value()
    if token == 'if':
      condition = self._condition()
      self._next('then')
      then = self._deeper(self._statement)
      self._next('else')
      return 'if', condition, then, self._deeper(self._statement)
    if not token.isalpha() or token in _RESERVED:
      raise ProgramError(f'a statement cannot begin with {token!r}')
    self._next('=')
    return 'assign', token, self._value()

  def _condition(self) -> tuple:
    left = self._value()
    comparison = self._next()
    if comparison not in _COMPARISONS:
      raise ProgramError(f'comparison expected, not {comparison!r}')
    return comparison, left, self._value()

  def _value(self) -> tuple:
    return self._chain(('+', '-'), self._term)

  def _term(self) -> tuple:
    return self._chain(('*', '//', '%'), lambda: self._deeper(self._factor))

  def _chain(self, operators: tuple, operand) -> tuple:
    """Flat, not nested to the left: a long sum must not become a deep recursion."""
    first, rest = operand(), []
    while self._peek() in operators:
      rest.append((self._next(), operand()))
    return ('chain', first, rest) if rest else first

  def _factor(self) -> tuple:
    token = self._next()
    if token.isdigit():
      return 'integer', int(token)
    if token == '-':
      return 'chain', ('integer', 0), [('-', self._deeper(self._factor))]
    if token == '(':
      node = self._value()
      self._next(')')
      return node
    if token in _FUNCTIONS:
      return self._call(token)
    if token.isalpha() and (token == 'e' or token not in _RESERVED):
      return 'name', token
    raise ProgramError(f'value expected, not {token!r}')

  def _call(self, function: str) -> tuple:
    self._next('(')
    arguments = [self._value()]
    while self._peek() == ',':
      self._next()
      arguments.append(self._condition() if function == 'keep' else self._value())
    self._next(')')
    if len(arguments) not in {'map': (2,), 'keep': (2,), 'max': (1, 2), 'min': (1, 2)}.get(function, (1,)):
      raise ProgramError(f'{function} does not take {len(arguments)} arguments')
    return 'call', function, arguments


class _Machine:
  """Evaluates parsed programs and counts the steps."""

  def __init__(self, variables: dict):
    self._variables = variables
    self._steps = 0

  def execute(self, statement: tuple) -> int | tuple | None:
    """The returned value, or None when the program goes on."""
    kind = statement[0]
    if kind == 'return':
      return self._value(statement[1])
    if kind == 'if':
      return self.execute(statement[2] if self._holds(statement[1]) else statement[3])
    self._variables[statement[1]] = self._value(statement[2])
    return None

  def _value(self, node: tuple) -> int | tuple:
    self._steps += 1
    if self._steps > MAX_STEPS:
      raise ProgramError(f'more than {MAX_STEPS} steps')
    kind = node[0]
    if kind == 'integer':
      return node[1]
    if kind == 'name':
      if node[1] not in self._variables:
        raise ProgramError(f'unknown name {node[1]!r}')
      return self._variables[node[1]]
    if kind == 'call':
      return self._call(node[1], node[2])
    result = self._integer(node[1])
    for operator, operand in node[2]:
      result = self._arithmetic(operator, result, self._integer(operand))
    return result

  def _arithmetic(self, operator: str, left: int, right: int) -> int:
    if operator == '+':
      result = left + right
    elif operator == '-':
      result = left - right
    elif operator == '*':
      result = left * right
    elif right == 0:
      raise ProgramError('division by zero')
    else:
      result = left // right if operator == '//' else left % right
    return _bounded(result)

  def _integer(self, node: tuple) -> int:
    value = self._value(node)
    if not isinstance(value, int):
      raise ProgramError('integer expected, not a list')
    return value

  def _list(self, node: tuple) -> tuple:
    value = self._value(node)
    if not isinstance(value, tuple):
      raise ProgramError('list expected, not an integer')
    return value

  def _holds(self, condition: tuple) -> bool:
    comparison, left, right = condition[0], self._integer(condition[1]), self._integer(condition[2])
    if comparison == '==':
      return left == right
    if comparison == '!=':
      return left != right
    if comparison in ('<', '<='):
      return left < right or (comparison == '<=' and left == right)
    return left > right or (comparison == '>=' and left == right)

  def _call(self, function: str, arguments: list) -> int | tuple:
    if len(arguments) == 2 and function in ('max', 'min'):
      left, right = self._integer(arguments[0]), self._integer(arguments[1])
      return max(left, right) if function == 'max' else min(left, right)
    values = self._list(arguments[0])
    if len(values) > MAX_LIST:
      raise ProgramError(f'list longer than {MAX_LIST}')
    if function in ('map', 'keep'):
      return self._each(function, values, arguments[1])
    if function == 'sum':
      return _bounded(sum(values))
    if function in ('sort', 'reverse'):
      return tuple(sorted(values)) if function == 'sort' else values[::-1]
    if function == 'len' or not values:
      return len(values)
    return {'max': max, 'min': min, 'first': lambda v: v[0], 'last': lambda v: v[-1]}[function](values)

  def _each(self, function: str, values: tuple, body: tuple) -> tuple:
    outer = self._variables.get('e')
    kept = []
    for element in values:
      self._variables['e'] = element
      if function == 'map':
        kept.append(self._integer(body))
      elif self._holds(body):
        kept.append(element)
    if outer is None:
      self._variables.pop('e', None)
    else:
      self._variables['e'] = outer
    return tuple(kept)


def _bounded(value: int) -> int:
  if not -MAX_INTEGER <= value <= MAX_INTEGER:
    raise ProgramError('integer out of range')
  return value
