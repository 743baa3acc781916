"""Programs that a model wrote, judged by tests: what is run, and pass@k."""

import math
import re

HUMANEVAL_NAME = 'pass@1|tests:humaneval'
MBPP_NAME = 'pass@1|tests:mbpp'

# A completed function ends where the next statement at the left margin begins (Chen et al. 2021).
COMPLETION_ENDS = ('\nclass ', '\ndef ', '\n#', '\nif ', '\nprint(', '\n@', '\nassert ')
_FENCE = re.compile(r'```(?:[Pp]ython\d?|py)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)', re.DOTALL)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
  """The unbiased estimate of the probability that one of k samples is right.

  1 - C(n - c, k) / C(n, k), as a product, since the binomials overflow.

  Args:
    num_samples: n, samples of one problem.
    num_correct: c, how many of them pass.
    k: at most n.

  Raises:
    ValueError: k is not within 1 .. n, or c not within 0 .. n.

  Source: Chen et al. 2021, equation (1).
  """
  if not (1 <= k <= num_samples and 0 <= num_correct <= num_samples):
    raise ValueError(f'pass@{k} of {num_correct} right among {num_samples}')
  if num_samples - num_correct < k:
    return 1.0
  return 1.0 - math.prod(1.0 - k / i for i in range(num_samples - num_correct + 1, num_samples + 1))


def written_program(text: str) -> str:
  """The code of an answer: the first fenced block where there is one, else the text up to '[DONE]'."""
  fenced = _FENCE.search(text)
  code = fenced.group(1) if fenced else text.split('[DONE]')[0]
  return code.replace('\r\n', '\n').replace('[BEGIN]\n', '', 1)


def function_completion(text: str) -> str:
  """A function's body: the text up to the next statement at the left margin."""
  ends = [position for mark in COMPLETION_ENDS if (position := text.find(mark)) >= 0]
  return text[:min(ends)] if ends else text


def humaneval_program(prompt: str, completion: str, test: str, entry_point: str) -> str:
  """The program that judges a completion: it ends without an error iff the tests pass.

  Args:
    prompt: imports, signature and docstring.
    completion: the body; a fenced block that defines the function again stands instead of both.
    test: the source of `check(candidate)`.
    entry_point: the function's name.
  """
  fenced = _FENCE.search(completion)
  if fenced and f'def {entry_point}' in fenced.group(1):
    body = f'{prompt.split("def " + entry_point)[0]}\n{fenced.group(1)}'
  else:
    body = prompt + function_completion(fenced.group(1) if fenced else completion)
  return f'{body}\n\n{test}\n\ncheck({entry_point})\n'


def mbpp_program(answer: str, setup: str, tests: list[str]) -> str:
  """The program that judges an answer: it ends without an error iff the assertions hold."""
  return '\n\n'.join([written_program(answer), setup.replace('\r\n', '\n'), '\n'.join(tests)]) + '\n'
