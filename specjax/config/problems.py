"""Everything that is wrong with a configuration, where a run names the first thing: what `validate` prints.

What is wrong is put aside and the rest is read again, until nothing is wrong or nothing can be put aside.
"""

from typing import Any, Callable, Mapping, Sequence

from specjax.config import flags
from specjax.config import runtime
from specjax.core import errors

MAX_PROBLEMS = 100
_NO_VALUE = 'flag without a value'


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
    *, entry: Callable[..., Any], placeholders: Mapping[str, Any], **sources: Any,
) -> tuple[runtime.Run | None, list[errors.ConfigError]]:
  """The run without what is wrong, None where too much is, and the errors.

  Args:
    entry: as for `runtime.resolve`.
    placeholders: what stands for parameters of the entry that are required and missing; that is an error all the same.
    **sources: the other arguments of `runtime.resolve`.
  """
  problems, without = [], set()
  overrides = dict(sources.pop('overrides', None) or {})
  while len(problems) < MAX_PROBLEMS:
    try:
      return runtime.resolve(entry=entry, overrides=overrides, without=without, **sources), problems
    except errors.ConfigError as error:
      if error.where in without:  # Left out before, and wrong still.
        break
      problems.append(error)
      missing = next((name for name in placeholders if str(error.what).endswith(f'.{name} is required')), None)
      if missing is not None and missing not in overrides:
        overrides[missing] = placeholders[missing]
      elif error.where is None:
        break
      else:
        without.add(error.where)
  return None, problems
