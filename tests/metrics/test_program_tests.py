"""pass@k by counting, and what is cut out of an answer."""

import itertools

import pytest

from specjax.metrics import program_tests


@pytest.mark.parametrize('n, c, k', [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 4), (7, 3, 5), (4, 1, 4)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, c, k):
  subsets = list(itertools.combinations(range(n), k))
  share = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
  assert program_tests.pass_at_k(n, c, k) == pytest.approx(share)


def test_pass_at_k_of_large_numbers_does_not_overflow():
  assert 0 < program_tests.pass_at_k(100_000, 3, 100) < 0.01


@pytest.mark.parametrize('n, c, k', [(5, 2, 6), (5, 6, 1), (5, 2, 0), (0, 0, 1)])
def test_impossible_counts_are_refused(n, c, k):
  with pytest.raises(ValueError):
    program_tests.pass_at_k(n, c, k)


def test_a_completion_ends_at_the_next_statement_at_the_margin():
  assert program_tests.function_completion('  return 1\n\ndef g():\n  pass') == '  return 1\n'
  assert program_tests.function_completion('  return 1\n') == '  return 1\n'


def test_code_is_taken_out_of_a_fence_or_up_to_done():
  assert program_tests.written_program('Sure:\n```python\nx = 1\n```\nbye') == 'x = 1'
  assert program_tests.written_program('x = 1\n[DONE]\nmore') == 'x = 1\n'
  assert program_tests.written_program('```\nx = 1') == 'x = 1'


def test_a_whole_function_in_a_fence_stands_instead_of_the_completion():
  prompt, test = 'import math\ndef f(x):\n  """Doc."""\n', 'def check(candidate):\n  assert candidate(2) == 4\n'
  for answer in ('  return 2 * x', '```python\ndef f(x):\n  return 2 * x\n```', '```python\n  return 2 * x\n```'):
    program = program_tests.humaneval_program(prompt, answer, test, 'f')
    compile(program, 'program', 'exec')
    assert program.count('import math') == 1 and program.rstrip().endswith('check(f)')
