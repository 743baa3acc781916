"""What a task on real data is: one frozen record, from which both the plain loader and the seqio task are built."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from specjax.core.errors import DataError


class Fields(NamedTuple):
  """What is taken out of one raw record.

  Attributes:
    inputs: what is asked, without instruction.
    targets: one reference answer, '' where there is none; shown as it stands in few-shot prompts.
    id: the record's own name, None where it has none.
    category: for tables by category, None for the task's name.
    check: what the scorer needs beside `targets`, JSON-serialisable.
  """

  inputs: str
  targets: str
  id: str | None = None
  category: str | None = None
  check: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Files:
  """Local files that together are a split.

  Attributes:
    paths: below the data folder, all needed.
    columns: keys of what the files hold where they do not say themselves: one per file of parallel lines, or the columns of
      a TSV file without a header.
    kind: 'jsonl', 'json', 'tsv' or 'txt', however the files are called; None goes by how their names end.
  """

  paths: tuple[str, ...]
  columns: tuple[str, ...] = ()
  kind: str | None = None


@dataclasses.dataclass(frozen=True)
class TaskRecord:
  """A task.

  Attributes:
    name: as written on the command line.
    family: what kind of task it is.
    summary: one line for people.
    parse: raw record (a dict of TFDS' schema, or of one of the schemas that `files` have) -> `Fields`. Raises KeyError,
      TypeError or ValueError for a record of another schema.
    template: the prompt, with {inputs}.
    shot: one worked example of a few-shot prompt, with {inputs} and {targets}. The question is put in the same form.
    metric: name in `judges.METRICS`, None where nothing is scored.
    licence: of the data, and where it comes from.
    tfds_name: data set and configuration in TFDS, None where it has none.
    tfds_splits: our split -> its name in TFDS.
    files: our split -> layouts that are looked for, beside `<name>/<split>.jsonl` of TFDS' schema; the first that is there
      wins.
    belongs: (raw record, split) -> whether the record is of the split, where a file holds several.
    answer_ends: an answer ends before the first of these; what a base model goes on to write is not judged.
    version: raised whenever an example changes.
  """

  name: str
  family: str
  summary: str
  parse: Callable[[Mapping[str, Any]], Fields]
  template: str
  shot: str
  metric: str | None
  licence: str
  tfds_name: str | None = None
  tfds_splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
  files: Mapping[str, tuple[Files, ...]] = dataclasses.field(default_factory=dict)
  belongs: Callable[[Mapping[str, Any], str], bool] | None = None
  answer_ends: tuple[str, ...] = ()
  version: int = 1

  def parsed(self, raw: Mapping[str, Any], where: str) -> Fields:
    """`parse`, with any departure from the schemas as a `DataError` that names `where`."""
    try:
      fields = self.parse(raw)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
      raise DataError(
          what=f'not a record of {self.name}', where=where, got=f'{type(error).__name__}: {str(error)[:80]}',
          expected='the schema of TFDS or of the data set as published', fix='See `python -m specjax.eval list tasks`.'
      ) from None
    if not fields.inputs.strip():
      raise DataError(what='empty inputs', where=where, expected='some text', fix='drop the record')
    return fields


def text_of(value: Any) -> str:
  """A string as it stands; bytes, as TFDS gives them, decoded. Anything else is a TypeError."""
  if isinstance(value, bytes):
    return value.decode('utf-8')
  if not isinstance(value, str):
    raise TypeError(f'{type(value).__name__} instead of text')
  return value


def texts_of(values: Any) -> list[str]:
  """A list of strings, whatever sequence they come in."""
  if isinstance(values, (str, bytes)):
    raise TypeError('one text instead of a list')
  return [text_of(value) for value in values]
