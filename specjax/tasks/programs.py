"""Small programs from a description, judged by what they compute."""

import functools

from specjax.tasks import interpreter
from specjax.tasks.example import Draws, Example

LEVELS = (1, 2, 3, 4)

# What a prediction is run on. Conditions compare with at most 20, after a shift by at most 60: every branch is entered,
# and the lists of one element tell neighbouring thresholds apart, whatever the list is reduced to.
_INTEGERS = tuple(range(-64, 85)) + (99, 100, 101, 997, 1000, -1000)
_LISTS = tuple((number,) for number in range(-64, 85)) + (
    (), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10), (11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21), (9, 3, 6, 12, 3),
    (20, -4, 15, 8, 2, 33), (-1, -2, -9, -10, -12, -7), (40, 35, 28, 24, 63, 18, 16, 30), (5, 5, 10, 25, 1),
    (14, 21, 2, 19, 6))

# (description, statement) around one integer.
_WITH_NUMBER = (('add {n} to {x}', '{x}+{n}'), ('subtract {n} from {x}', '{x}-{n}'), ('multiply {x} by {n}', '{x}*{n}'))
_PLAIN = (('double {x}', '{x}*2'), ('triple {x}', '{x}*3'), ('negate {x}', '0-{x}'), ('halve {x}', '{x}//2'))
_SQUARE = ('square {x}', '{x}*{x}')
_REDUCERS = (('sum', 'sum'), ('largest', 'max'), ('smallest', 'min'), ('length', 'len'), ('first', 'first'),
             ('last', 'last'))


def generate(draws: Draws, level: int) -> tuple[str, str, dict]:
  """A description of a program.

  Level 1 is two statements about an integer `x`; level 2 three, with remainders, squares and bounds; level 3 a
  conditional; level 4 a pipeline over a list `v`.

  Returns:
    The inputs, the targets, and the check `{'variable': 'x' | 'v'}`, which the program receives.
  """
  phrases, statements, result = _PROGRAMS[level](draws)
  variable = 'v' if level == 4 else 'x'
  return (f'write a program: {", then ".join(phrases)}', '; '.join([*statements, f'return {result}']),
          {'variable': variable})


def score(example: Example, prediction: str) -> float:
  """1.0 when the program computes what the reference computes on every hidden input."""
  variable = example.check['variable']
  cases = _LISTS if variable == 'v' else _INTEGERS
  try:
    program = interpreter.parse(prediction)
    for case, expected in zip(cases, _outcomes(example.targets, variable), strict=True):
      value = interpreter.run(program, {variable: case})
      if type(value) is not type(expected) or value != expected:
        return 0.0
  except interpreter.ProgramError:
    return 0.0
  return 1.0


@functools.lru_cache(maxsize=4096)
def _outcomes(source: str, variable: str) -> tuple:
  program = interpreter.parse(source)
  return tuple(interpreter.run(program, {variable: case}) for case in (_LISTS if variable == 'v' else _INTEGERS))


def _operation(draws: Draws, name: str, largest: int, allow_square: bool = False) -> tuple[str, str]:
  """A description and an expression about the integer called `name`."""
  pick = draws.below(9)
  if pick < 5:
    phrase, expression = draws.choice(_WITH_NUMBER)
  elif pick < 8 or not allow_square:
    phrase, expression = draws.choice(_PLAIN)
  else:
    phrase, expression = _SQUARE
  number = draws.between(2, largest)
  return phrase.format(x=name, n=number), expression.format(x=name, n=number)


def _condition(draws: Draws, name: str) -> tuple[str, str]:
  number = draws.between(1, 20)
  pick = draws.below(5)
  if pick == 0:
    return f'{name} is greater than {number}', f'{name}>{number}'
  if pick == 1:
    return f'{name} is less than {number}', f'{name}<{number}'
  if pick == 2:
    return f'{name} is even', f'{name}%2==0'
  if pick == 3:
    return f'{name} is odd', f'{name}%2==1'
  divisor = draws.between(3, 9)
  return f'{name} is divisible by {divisor}', f'{name}%{divisor}==0'


def _two_steps(draws: Draws):
  steps = [_operation(draws, 'x', 99) for _ in range(2)]
  return [phrase for phrase, _ in steps], [f'x={expression}' for _, expression in steps], 'x'


def _three_steps(draws: Draws):
  steps = [_operation(draws, 'x', 60, allow_square=position == 1) for position in range(3)]
  number = draws.between(2, 30)
  ending = draws.below(4)
  if ending == 1:
    steps[2] = f'take the remainder of x by {number}', f'x%{number}'
  elif ending == 2:
    steps[2] = f'take the larger of x and {number}', f'max(x,{number})'
  elif ending == 3:
    steps[2] = f'take the smaller of x and {number}', f'min(x,{number})'
  return [phrase for phrase, _ in steps], [f'x={expression}' for _, expression in steps], 'x'


def _conditional(draws: Draws):
  claim, condition = _condition(draws, 'x')
  yes, no = _operation(draws, 'x', 30), _operation(draws, 'x', 30)
  phrases = [f'if {claim} {yes[0]}, otherwise {no[0]}']
  statements = [f'if {condition} then x={yes[1]} else x={no[1]}']
  if draws.below(2):
    phrase, expression = _operation(draws, 'x', 30)
    phrases[0] += f', finally {phrase}'
    statements.append(f'x={expression}')
  return phrases, statements, 'x'


def _pipeline(draws: Draws):
  claim, condition = _condition(draws, 'e')
  phrase, expression = _operation(draws, 'e', 60, allow_square=True)
  stages = [(f'keep each e in v if {claim}', f'v=keep(v,{condition})'),
            (f'for each e in v {phrase}', f'v=map(v,{expression})')]
  order = draws.below(4)
  if order == 1:
    stages.reverse()
  elif order > 1:
    stages = stages[order - 2:order - 1]
  word, function = draws.choice(_REDUCERS)
  phrases = [phrase for phrase, _ in stages] + [f'return the {word} of v']
  return phrases, [statement for _, statement in stages], f'{function}(v)'


_PROGRAMS = {1: _two_steps, 2: _three_steps, 3: _conditional, 4: _pipeline}
