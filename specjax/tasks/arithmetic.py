"""Arithmetic word problems with their solution step by step: `3+4=7; 7*2=14; answer 14`."""

import re

from specjax.tasks.example import Draws, Example
from specjax.tasks.word_lists import ITEMS, NAMES

LEVELS = (1, 2, 3, 4)

_GAINS = ('buys', 'finds', 'gets')
_LOSSES = ('loses', 'sells', 'gives away')
_MAX_VALUE = 99
# The last answer counts; nine digits bound what int() is asked to read.
_ANSWER = re.compile(r'answer (-?[0-9]{1,9})(?![0-9])')


def generate(draws: Draws, level: int) -> tuple[str, str, dict]:
  """A word problem.

  Level 1 is one sum or difference below 40; level 2 two of them, or one product or quotient; level 3 two different
  operations in one of four stories; level 4 three or four operations, with a number that does not matter half the time.

  Returns:
    The inputs, the targets, and the check `{'answer': int}`.
  """
  text, steps = draws.choice(_STORIES[level])(draws, level)
  worked = []
  for left, operator, right in steps:
    result = _apply(left, operator, right)
    worked.append(f'{left}{operator}{right}={result}')
  return text, '; '.join(worked) + f'; answer {result}', {'answer': result}


def score(example: Example, prediction: str) -> float:
  """1.0 when the last `answer` in the prediction is the right number; the steps are not judged."""
  answers = _ANSWER.findall(prediction)
  return float(bool(answers) and int(answers[-1]) == example.check['answer'])


def _apply(left: int, operator: str, right: int) -> int:
  if operator == '+':
    return left + right
  if operator == '-':
    return left - right
  return left * right if operator == '*' else left // right


def _change(draws: Draws, value: int, limit: int, allow_times: bool):
  """A clause and its step, keeping the running value between 0 and 99."""
  if allow_times and 2 <= value <= _MAX_VALUE // 3 and draws.below(3) == 0:
    factor = draws.between(2, min(5, _MAX_VALUE // value))
    return f'then has {factor} times as many', (value, '*', factor)
  can_gain = value <= _MAX_VALUE - 2
  if value >= 3 and (not can_gain or draws.below(2)):
    amount = draws.between(2, min(limit, value))
    return f'{draws.choice(_LOSSES)} {amount}', (value, '-', amount)
  amount = draws.between(2, min(limit, _MAX_VALUE - value))
  return f'{draws.choice(_GAINS)} {amount} more', (value, '+', amount)


def _running_count(draws: Draws, level: int):
  (name, other), item = draws.sample(NAMES, 2), draws.choice(ITEMS)
  limit = (19, 40, 40, 60)[level - 1]
  value = draws.between(2, limit)
  clauses, steps = [f'{name} has {value} {item[1]}'], []
  for _ in range((1, 2, 2, 3)[level - 1]):
    clause, step = _change(draws, value, limit, allow_times=level > 2)
    value = _apply(*step)
    clauses.append(clause)
    steps.append(step)
  aside = ''
  if level == 4 and draws.below(2):
    aside = f' {other} has {draws.between(2, 60)} {draws.choice(ITEMS)[1]}.'
  return f'{", ".join(clauses)}.{aside} How many {item[1]} has {name} now?', steps


def _boxes(draws: Draws, level: int):
  name, item = draws.choice(NAMES), draws.choice(ITEMS)
  boxes, each = draws.between(2, 9), draws.between(2, 9)
  steps, rest = [(boxes, '*', each)], ''
  if level > 2:
    left = draws.between(2, 18)
    rest = f' and has {left} left over'
    steps.append((boxes * each, '+', left))
  return f'{name} fills {boxes} boxes with {each} {item[1]} each{rest}. How many {item[1]} in all?', steps


def _sharing(draws: Draws, level: int):
  name, item = draws.choice(NAMES), draws.choice(ITEMS)
  friends, each = draws.between(2, 9), draws.between(2, 9)
  total = friends * each
  if level < 3:
    start, more, steps = total, '', []
  else:
    bought = draws.between(2, total - 2)
    start, more, steps = total - bought, f', buys {bought} more', [(total - bought, '+', bought)]
  steps.append((total, '/', friends))
  return (f'{name} has {start} {item[1]}{more} and shares all among {friends} friends. '
          f'How many {item[1]} for each?'), steps


def _change_money(draws: Draws, level: int):
  del level
  name, item = draws.choice(NAMES), draws.choice(ITEMS)
  price, count = draws.between(2, 9), draws.between(2, 9)
  cost = price * count
  paid = draws.between(cost + 1, _MAX_VALUE)
  return (f'One {item[0]} costs {price} euros. {name} buys {count} {item[1]} and pays {paid} euros. '
          f'How many euros back?'), [(price, '*', count), (paid, '-', cost)]


def _comparison(draws: Draws, level: int):
  names, item = draws.sample(NAMES, 3), draws.choice(ITEMS)
  first = draws.between(4, 20)
  difference = draws.between(2, 15)
  fewer = difference < first and draws.below(2)
  steps = [(first, '-' if fewer else '+', difference)]
  second = _apply(*steps[0])
  text = (f'{names[0]} has {first} {item[1]}. {names[1]} has {difference} {"fewer" if fewer else "more"} '
          f'than {names[0]}.')
  total = first + second
  if level > 3:
    text += f' {names[2]} has twice as many as {names[1]}.'
    steps += [(second, '*', 2), (first, '+', second), (total, '+', 2 * second)]
  else:
    steps.append((first, '+', second))
  return f'{text} How many {item[1]} together?', steps


def _shopping(draws: Draws, level: int):
  del level
  name, items = draws.choice(NAMES), draws.sample(ITEMS, 2)
  prices = draws.between(2, 9), draws.between(2, 9)
  counts = draws.between(2, 6), draws.between(2, 6)
  costs = prices[0] * counts[0], prices[1] * counts[1]
  return (f'One {items[0][0]} costs {prices[0]} euros, one {items[1][0]} costs {prices[1]} euros. '
          f'{name} buys {counts[0]} {items[0][1]} and {counts[1]} {items[1][1]}. How many euros in all?'), [
              (prices[0], '*', counts[0]), (prices[1], '*', counts[1]), (costs[0], '+', costs[1])]


_STORIES = {
    1: (_running_count,),
    2: (_running_count, _running_count, _boxes, _sharing),
    3: (_boxes, _sharing, _change_money, _comparison),
    4: (_running_count, _running_count, _comparison, _shopping),
}
