"""The interpreter: what programs mean, and that nothing else gets through."""

import time

import pytest

from specjax.tasks import interpreter
from specjax.tasks.interpreter import ProgramError, parse, run


@pytest.mark.parametrize('source, value', [
    ('return x', 7), ('return -x', -7), ('x=x*2; x=x+3; return x', 17), ('return x-2-3', 2), ('return 20//x//2', 1),
    ('return (0-x)//2', -4), ('return (0-x)%3', 2), ('return 2+3*x', 23), ('return (2+3)*x;', 35),
    ('if x>5 then x=1 else x=2; return x', 1), ('if x<=5 then x=1 else x=2; return x', 2),
    ('if x==7 then return 1 else return 2', 1), ('if x!=7 then return 1 else if x>=7 then return 3 else return 4', 3),
    ('return max(x,9)', 9), ('return min(x,9)', 7), ('return sum(v)', 10), ('return len(v)', 4),
    ('return max(v)', 5), ('return first(v)-last(v)', -2), ('return sort(v)', (1, 1, 3, 5)),
    ('return reverse(v)', (3, 5, 1, 1)), ('return map(v,e*x)', (7, 7, 35, 21)), ('v=keep(v,e>1); return v', (5, 3)),
    ('return max(keep(v,e>9))', 0), ('return sum(map(v,sum(map(v,e))+e))', 50), ('y=x; x=1; return y', 7)])
def test_programs_mean_what_they_say(source, value):
  assert run(parse(source), {'x': 7, 'v': (1, 1, 5, 3)}) == value


@pytest.mark.parametrize('source', [
    '', ';', 'x', 'x=', 'return', 'return x x', 'return y', 'return e', 'e=1; return e', 'sum=1; return 1', 'if=1',
    'x=x+1', 'return 1//0', 'return 1%0', 'return v+1', 'return sum(x)', 'return map(v,v)', 'return map(v)',
    'return sum(v,v)', 'return max(1,2,3)', 'return keep(v,e)', 'return map(x,e)', 'if x then x=1 else x=2; return x',
    'if x>1 then x=1; return x', 'return 1.5', 'return "a"', 'return x**2', 'return x.y', 'return [1]', 'return x()',
    'return __import__', 'return Ä', 'return ²', 'return 1e9', 'return 999999999999999999*2',
    'return 0-999999999999999999*2', 'return sum(map(v,999999999999999999))',
    'return 1234567890123456789', 'import os', 'return lambda', 'x==1; return x'])
def test_other_text_is_a_program_error(source):
  with pytest.raises(ProgramError):
    run(parse(source), {'x': 7, 'v': (1, 1, 5, 3)})


@pytest.mark.parametrize('source', [
    'return ' + '(' * 17 + 'x' + ')' * 17, 'return ' + '-' * 30 + 'x', 'return ' + 'x+' * 300 + 'x',
    'if x>0 then ' * 17 + 'x=1' + ' else x=1' * 17, 'return ' + 'map(' * 40,
    'return ' + 'sum(map(v,' * 15 + 'e' + '))' * 15])
def test_limits_hold(source):
  with pytest.raises(ProgramError):
    run(parse(source), {'x': 7, 'v': tuple(range(64))})


def test_longest_sum_does_not_recurse():
  source = 'return x' + '+x' * ((interpreter.MAX_SOURCE - 8) // 2)
  assert run(parse(source), {'x': 1}) == 1 + (interpreter.MAX_SOURCE - 8) // 2


def test_worst_case_is_quick():
  """Steps are counted, not guessed: 2,000 of them take milliseconds, and a second leaves room for a busy machine."""
  start = time.perf_counter()
  with pytest.raises(ProgramError, match='steps'):
    run(parse('return sum(map(v,sum(map(v,sum(map(v,e*e))))))'), {'v': tuple(range(64))})
  assert time.perf_counter() - start < 1.0


def test_variables_of_the_caller_do_not_change():
  variables = {'x': 1, 'v': (1, 2)}
  run(parse('x=2; v=map(v,e+1); return x'), variables)
  assert variables == {'x': 1, 'v': (1, 2)}
