"""What a task's name stands for: its examples and who judges the answers."""

import difflib
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

from specjax.core.errors import ConfigError
from specjax.evaluation import row_log
from specjax.metrics import quality
from specjax.tasks import local
from specjax.tasks import synthetic

FILE_PREFIX = 'file:'


class Task(NamedTuple):
  """A named set of examples.

  Attributes:
    name: as given in the configuration.
    examples: in order.
    score: (example, text) -> quality in [0, 1], or None without reference answers.
    score_name: what `score` measures.
  """

  name: str
  examples: list[Any]
  score: Callable[[Any, str], float] | None
  score_name: str | None

  @property
  def sha256(self):
    """Hex SHA-256 over ids and inputs, in order."""
    listed = [[example.id, example.inputs] for example in self.examples]
    return hashlib.sha256(row_log.canonical_json(listed)).hexdigest()


def descriptions():
  """Name -> one line, of the tasks that can be named."""
  found = {'synthetic': f'all generated domains in turn ({", ".join(synthetic.DOMAINS)}); needs no download'}
  found |= {f'synthetic/{domain}': f'generated {domain} questions with a checkable answer'
            for domain in synthetic.DOMAINS}
  found[f'{FILE_PREFIX}PATH'] = 'a JSONL file with id, inputs and (optionally) targets per line; exact match'
  return found


def load(name: str, *, split: str, count: int, seed: int) -> Task:
  """The first `count` examples of a task.

  Args:
    name: one of `descriptions`.
    split: 'train', 'validation' or 'test'; unused for files.
    count: how many examples at most.
    seed: of the generated stream.

  Raises:
    ConfigError: no such task. DataError: a bad line of a file.
  """
  if name.startswith(FILE_PREFIX):
    examples = local.read_jsonl(name[len(FILE_PREFIX):])[:count]
    labelled = all(example.check.get('labelled') for example in examples)
    judge = (lambda example, text: quality.exact_match(example.targets, text)) if labelled else None
    return Task(name, examples, judge, 'exact_match' if labelled else None)
  if name not in descriptions():
    near = difflib.get_close_matches(name, descriptions(), n=1)
    raise ConfigError(
        what=f'unknown task {name!r}', where='tasks', expected=f'one of {", ".join(descriptions())}',
        fix=f'Did you mean {near[0]!r}?' if near else None)
  domains = synthetic.DOMAINS if name == 'synthetic' else (name.split('/', 1)[1],)
  examples = synthetic.examples(split, count, seed=seed, domains=domains)
  return Task(name, examples, synthetic.score, 'accuracy')
