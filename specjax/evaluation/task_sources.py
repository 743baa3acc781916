"""What a task's name stands for: its examples and who judges the answers."""

import dataclasses
import difflib
import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from specjax.core.errors import ConfigError
from specjax.evaluation import row_log
from specjax.metrics import quality
from specjax.metrics import scores as scores_lib
from specjax.tasks import catalogue
from specjax.tasks import datasets
from specjax.tasks import example as example_lib
from specjax.tasks import judges
from specjax.tasks import local
from specjax.tasks import synthetic

LOG = logging.getLogger('specjax.eval')

FILE_PREFIX = 'file:'
USER_KINDS = ('jsonl', 'tsv', 'text')


class DataSettings(NamedTuple):
  """Where examples come from and how they are asked.

  Attributes:
    data_dir: folder of local files and of what TFDS has prepared; None where only generated tasks and named files are run.
    num_fewshot: worked examples in every prompt, one number or by task name (0 for tasks that are not named).
    input_key, target_key: fields of `jsonl:` and `tsv:` files.
    allow_code_execution: whether programs that a model writes are run to judge them.
    stop_at_answer_end: whether decoding stops where the answer is over, see `TaskRecord.answer_ends`.
  """

  data_dir: str | None = None
  num_fewshot: int | Mapping[str, int] = 0
  input_key: str = 'inputs'
  target_key: str = 'targets'
  allow_code_execution: bool = False
  stop_at_answer_end: bool = True


class Task(NamedTuple):
  """A named set of examples.

  Attributes:
    name: as given in the configuration.
    examples: in order.
    judge: (example, text) -> `Scores`, or None where nothing can be judged.
    score_name: what the judged value measures, with what computed it.
    source: where the examples come from, for run.json.
    num_left_out: bad lines of the source.
    is_running_text: whether its references are the text that goes on behind the prompts, so that their likelihood says
      how good a model is.
  """

  name: str
  examples: list[Any]
  judge: Callable[[Any, str], scores_lib.Scores] | None
  score_name: str | None
  source: str | None = None
  num_left_out: int = 0
  is_running_text: bool = False

  @property
  def ends_answers(self):
    """Whether decoding stops where an answer is over."""
    return any(example_lib.ANSWER_ENDS in example.check for example in self.examples)

  @property
  def score(self):
    """(example, text) -> a fraction in [0, 1], or None without a judge."""
    return None if self.judge is None else lambda example, text: self.judge(example, text).value

  @property
  def sha256(self):
    """Hex SHA-256 over ids and inputs (all turns of them), in order."""
    listed = [[example.id, example.check.get('turns', example.inputs)] for example in self.examples]
    return hashlib.sha256(row_log.canonical_json(listed)).hexdigest()


def descriptions():
  """Name -> one line, of the tasks that can be named."""
  found = {'synthetic': f'all generated domains in turn ({", ".join(synthetic.DOMAINS)}); needs no download'}
  found |= {f'synthetic/{domain}': f'generated {domain} questions with a checkable answer'
            for domain in synthetic.DOMAINS}
  found |= {record.name: record.summary for record in catalogue.RECORDS.values()}
  found['jsonl:PATH'] = 'a JSONL file; --input_key and --target_key name its fields; exact match'
  found['tsv:PATH'] = 'a TSV file; the same, or its first two columns'
  found['text:PATH'] = 'a text file, to be continued'
  found[f'{FILE_PREFIX}PATH'] = 'a JSONL file with id, inputs and (optionally) targets per line, every line checked first'
  return found


def table():
  """Rows of (task, kind, what it is, metric, source, licence), header first; metrics without versions."""
  rows = [('task', 'kind', 'what it is', 'metric', 'TFDS', 'licence of the data')]
  for name, summary in descriptions().items():
    record = catalogue.RECORDS.get(name)
    if record is None:
      kind = 'generated' if name.startswith('synthetic') else 'your file'
      metric = 'accuracy' if kind == 'generated' else 'perplexity' if name.startswith('text') else 'exact_match'
      rows.append((name, kind, summary, metric, '-', '-'))
    else:
      metric = judges.summary_of(record.metric)
      if record.family == 'text':
        metric = 'perplexity' if record.metric is None else f'{metric}, perplexity'
      rows.append((name, record.family, summary, metric, record.tfds_name or '-', record.licence))
  return rows


def load(name: str, *, split: str, count: int, seed: int, data: DataSettings = DataSettings()) -> Task:
  """The first `count` examples of a task.

  Args:
    name: one of `descriptions`.
    split: 'train', 'validation' or 'test'; unused for the user's files.
    count: how many examples at most.
    seed: of the generated stream.
    data: where the other examples come from.

  Raises:
    ConfigError: no such task, or its data are not there. DataError: a bad file.
  """
  prefix, _, path = name.partition(':')
  if name.startswith(FILE_PREFIX):
    examples = local.read_jsonl(path)[:count]
    return _labelled(name, datasets.Loaded(examples, [], path))
  if path and prefix in USER_KINDS:
    found = datasets.user_file(path, kind=prefix, input_key=data.input_key, target_key=data.target_key, count=count)
    is_named = data.target_key != DataSettings._field_defaults['target_key'] and prefix != 'text'
    if is_named and not any(example.check.get('labelled') for example in found.examples):
      LOG.warning('%s is not scored: no line of it has the target_key %r', name, data.target_key)
    return _labelled(name, found)._replace(is_running_text=prefix == 'text')
  if name in catalogue.RECORDS:
    return _catalogued(name, split=split, count=count, data=data)
  if name not in descriptions() or ':' in name:
    near = difflib.get_close_matches(name, descriptions(), n=1)
    raise ConfigError(
        what=f'unknown task {name!r}', where='tasks', expected=f'one of {", ".join(descriptions())}',
        fix=f'Did you mean {near[0]!r}?' if near else None)
  domains = synthetic.DOMAINS if name == 'synthetic' else (name.split('/', 1)[1],)
  examples = synthetic.examples(split, count, seed=seed, domains=domains)
  return Task(name, examples, lambda example, text: scores_lib.Scores(synthetic.score(example, text)), 'accuracy')


def _labelled(name, loaded):
  """A task of the user's file, judged by exact match where every example has a reference."""
  num_labelled = sum(bool(example.check.get('labelled')) for example in loaded.examples)
  labelled = num_labelled == len(loaded.examples)
  if num_labelled and not labelled:
    LOG.warning('%s is not scored: only %d of its %d examples have a reference', name, num_labelled, len(loaded.examples))
  judge = lambda example, text: scores_lib.Scores(quality.exact_match(example.targets, text))
  return Task(name, loaded.examples, judge if labelled else None, 'exact_match' if labelled else None, loaded.source,
              len(loaded.errors))


def _catalogued(name, *, split, count, data):
  record = catalogue.lookup(name)
  shots = data.num_fewshot.get(name, 0) if isinstance(data.num_fewshot, Mapping) else data.num_fewshot
  loaded = datasets.load(record, split=split, count=count, data_dir=data.data_dir, num_fewshot=shots)
  examples = loaded.examples
  if record.answer_ends and data.stop_at_answer_end:
    ends = {example_lib.ANSWER_ENDS: list(record.answer_ends)}
    examples = [dataclasses.replace(example, check=dict(example.check) | ends) for example in examples]
  found = Task(name, examples, None, None, loaded.source, len(loaded.errors), record.family == 'text')
  metric = judges.METRICS.get(record.metric)
  if metric is not None and metric.runs_code and not data.allow_code_execution:
    LOG.warning('%s is not scored: that would run programs that a model wrote. --allow_code_execution allows it', name)
    metric = None
  if metric is None:
    return found
  judge = lambda example, text: metric.score(example, judges.cut(text, record.answer_ends))
  return found._replace(judge=judge, score_name=metric.name())
