"""Everything that is wrong with a configuration, where a run names the first thing: what `validate` prints.

What is wrong is put aside and the rest is read again, until nothing is wrong or nothing can be put aside.
"""

import re
from typing import Any, Callable, Iterable, Mapping, Sequence

from specjax.config import flags
from specjax.config import runtime
from specjax.core import errors

MAX_PROBLEMS = 100
_NO_VALUE = 'flag without a value'
_REQUIRED = re.compile(r'.*\.(\w+) is required')


def parse_all(
    argv: Sequence[str], settings: Callable[..., Any], **options: Any,
) -> tuple[flags.Flags, list[errors.ConfigError]]:
  """The flags that can be read, and an error for each of the others. Arguments as for `flags.parse`."""
  good, problems, words = [], [], list(argv)
  read = lambda more: flags.parse([*good, *more], settings, **options)
  while words:
    taken = 1
    problem = _problem(read, words[:1])
    if problem is not None and problem.what == _NO_VALUE and words[1:]:
      taken, problem = 2, _problem(read, words[:2])
    elif problem is not None and problem.what == 'unknown flag' and '=' not in words[0] and words[1:]:
      taken = 1 if words[1].startswith('-') else 2  # What follows was meant as its value.
    if problem is None:
      good += words[:taken]
    else:
      problems.append(problem)
    del words[:taken]
  return read([]), problems


def _problem(read, words):
  try:
    read(words)
  except errors.ConfigError as error:
    return error
  return None


def resolve_all(
    *, entry: Callable[..., Any], placeholders: Mapping[str, Any], provided: Iterable[str] = (), **sources: Any,
) -> tuple[runtime.Run | None, list[errors.ConfigError]]:
  """The run without what is wrong, None where too much is, and the errors.

  Args:
    entry: as for `runtime.resolve`.
    placeholders: what stands for parameters of the entry that are required and missing; that is an error all the same.
    provided, **sources: the other arguments of `runtime.resolve`.
  """
  problems, without, missing = [], set(), set()
  overrides, provided = dict(sources.pop('overrides', None) or {}), frozenset(provided)
  while len(problems) < MAX_PROBLEMS:
    try:
      run = runtime.resolve(
          entry=entry, overrides=overrides, without=without, provided=provided | missing, **sources)
      return None if missing else run, problems
    except errors.ConfigError as error:
      required = _REQUIRED.fullmatch(str(error.what))
      if error.where in without or (required and required[1] in missing):  # Put aside before, and wrong still.
        break
      problems.append(error)
      if not required:
        without.add(error.where)
      elif required[1] in placeholders:
        overrides[required[1]] = placeholders[required[1]]
        without.discard(f'--{required[1]}')  # Given, but not in a form that can be read.
      else:
        missing.add(required[1])
  return None, problems
