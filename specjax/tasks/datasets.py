"""The examples of a task on real data, from local files or from a data set that TFDS has prepared.

One path for both: raw records -> `TaskRecord.parsed` -> prompt. They differ only in who reads the raw records, and local
files need neither seqio nor TensorFlow. Nothing is downloaded.
"""

import collections
import dataclasses
import hashlib
import itertools
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from specjax.core.errors import ConfigError, DataError
from specjax.tasks import example as example_lib
from specjax.tasks import readers
from specjax.tasks.example import Example
from specjax.tasks.task_records import Fields, Files, TaskRecord

LOG = logging.getLogger('specjax.tasks')

MAX_SHOTS = 64
# Worked examples are chosen among so many records from the beginning of train, which a data set of millions can afford.
SHOT_POOL = 1000
SHOT_SEPARATOR = '\n\n'
_NAMED_ERRORS = 5
_ENDINGS = ('.jsonl', '.jsonl.gz', '.json', '.tsv', '.tsv.gz', '.txt')


@dataclasses.dataclass(frozen=True)
class Loaded:
  """The examples of one split.

  Attributes:
    examples: in the order of the source.
    errors: what was left out, one `DataError` each.
    source: the files, or TFDS' name.
  """

  examples: list[Example]
  errors: list[DataError]
  source: str


def load(record: TaskRecord, *, split: str, count: int, data_dir: str | os.PathLike | None, num_fewshot: int = 0) -> Loaded:
  """The first `count` examples of a split.

  Args:
    record: of the task.
    split: 'train', 'validation' or 'test', see `find`.
    count: at most so many.
    data_dir: the folder with local files, or with what TFDS has prepared.
    num_fewshot: worked examples in front of every question, see `shots`.

  Raises:
    ConfigError: nothing is there to read.
    DataError: no line of the source is good, or the source as a whole is bad.
  """
  if num_fewshot < 0 or num_fewshot > MAX_SHOTS:
    raise ConfigError(what='num_fewshot', where=record.name, got=num_fewshot, expected=f'0 to {MAX_SHOTS}')
  errors = []
  source = find(record, split, data_dir=data_dir)
  worked = shots(record, split=split, count=num_fewshot, data_dir=data_dir) if num_fewshot else []
  # A question that is worked in the prompt is not asked.
  shown = {fields.inputs for fields in worked}
  found = (one for one in _fields(record, split, data_dir, errors) if one[1].inputs not in shown)
  examples = [_example(record, fields, number, worked) for number, fields in itertools.islice(_unique(found, errors), count)]
  _report(errors, record.name)
  if not examples:
    raise errors[0] if errors else DataError(
        what=f'{record.name} has no {split} example', where=source.name, fix='check the files')
  return Loaded(examples, errors, source.name)


def shots(record: TaskRecord, *, split: str, count: int, data_dir) -> list[Fields]:
  """The worked examples of a task's prompts: always the same, and 5 of them are the first 5 of 8.

  They are the records with the smallest hashes of their questions among the first `SHOT_POOL` of the split that is meant
  for them ('shots', else train, else validation), never of the split that is asked.

  Raises:
    ConfigError: no such split is there, or it is too small.
  """
  for name in [name for name in ('shots', 'train', 'validation') if name != split]:
    try:
      found = _fields(record, name, data_dir, [])
      pool = [fields for _, fields, _ in itertools.islice(found, SHOT_POOL) if fields.targets]
    except ConfigError:
      continue
    if len(pool) < count:
      raise ConfigError(what='num_fewshot', where=record.name, got=count, expected=f'at most {len(pool)} ({name})')
    return sorted(pool, key=_rank)[:count]
  raise ConfigError(what=f'no worked examples for {record.name}', where='num_fewshot', got=count, expected=0,
                    fix=f'Add {record.name}/train.jsonl to the data folder, or ask without them.')


def _rank(fields):
  return hashlib.blake2b(fields.inputs.encode('utf-8', 'surrogatepass'), digest_size=8, person=b'specjax-shots').digest()


def prompt(record: TaskRecord, inputs: str, worked: Sequence[Fields] = ()) -> str:
  """The prompt of one question: the template, or worked examples and the question in their form."""
  if not worked:
    return record.template.replace('{inputs}', inputs)
  filled = [_shot(record, fields.inputs, fields.targets) for fields in worked]
  question = _shot(record, inputs, '').rstrip(' ')
  return SHOT_SEPARATOR.join([*filled, question])


def _shot(record, inputs, targets):
  before, _, behind = record.shot.partition('{inputs}')
  between, _, end = behind.partition('{targets}')
  return f'{before}{inputs}{between}{targets}{end if targets else ""}'


class Source(NamedTuple):
  """Where a split is read.

  Attributes:
    paths, columns, kind: of local files, empty for TFDS.
    tfds_split: its name in TFDS, None for local files.
    part: 'validation' or 'train' where one file is cut into both, None where the source is the split.
    name: for people.
  """

  paths: tuple[pathlib.Path, ...]
  columns: tuple[str, ...]
  tfds_split: str | None
  part: str | None
  name: str
  kind: str | None = None


def find(record: TaskRecord, split: str, *, data_dir: str | os.PathLike | None) -> Source:
  """Where a split is read: local files first, then TFDS.

  Without a validation set of its own it is cut from train by `example.split_of`, and train is the rest.

  Raises:
    ConfigError: nothing is there to read.
  """
  if split not in (*example_lib.SPLITS, 'shots'):
    raise ConfigError(what='split', where=record.name, got=split, expected=f'one of {", ".join(example_lib.SPLITS)}')
  if data_dir is None:
    raise ConfigError(what=f'no data for {record.name}', where='tasks', fix='Pass --data_dir=DIR with the files of the task.')
  folder = pathlib.Path(data_dir)
  found = _find(record, split, folder)
  if found is None and split == 'validation' and (train := _find(record, 'train', folder)) is not None:
    return train._replace(part='validation')
  if found is not None and split == 'train' and _find(record, 'validation', folder) is None:
    return found._replace(part='train')
  if found is not None:
    return found
  wanted = [' and '.join(files.paths) for files in _layouts(record, split) if files.paths[0].endswith('.jsonl') or files.columns]
  raise ConfigError(
      what=f'no {split} data for {record.name}', where=str(folder), expected='; or '.join(wanted),
      fix=f'Put a file there ({record.licence}).' + (f' Or prepare {record.tfds_name} with TFDS.' if record.tfds_name else ''))


def _find(record, split, folder):
  for files in _layouts(record, split):
    paths = tuple(folder / path for path in files.paths)
    if all(path.is_file() for path in paths):
      return Source(paths, files.columns, None, None, ', '.join(files.paths), files.kind)
  if record.tfds_name and split in record.tfds_splits and _is_prepared(folder / record.tfds_name):
    return Source((), (), record.tfds_splits[split], None, f'tfds:{record.tfds_name}/{record.tfds_splits[split]}')
  return None


def _is_prepared(folder):
  """Whether TFDS has written a version of a data set there; our own layout has a folder of the same name."""
  return any(folder.glob('*/dataset_info.json'))


def raw_records(record: TaskRecord, source: Source, *, data_dir, errors: list[DataError]) -> Iterator[readers.Raw]:
  """The raw records of a source, before they are parsed; bad lines are appended to `errors`."""
  if source.tfds_split is None:
    return readers.read(source.paths, columns=source.columns, errors=errors, kind=source.kind)
  from specjax.tasks import seqio_tasks  # TensorFlow: ten seconds, and only where there is no local file
  return seqio_tasks.tfds_records(record.tfds_name, source.tfds_split, data_dir=data_dir)


def _layouts(record, split):
  own = [Files((f'{record.name}/{split}{ending}',)) for ending in _ENDINGS]
  return [*own, *record.files.get(split, ())]


def own_splits(record: TaskRecord, *, data_dir: str | os.PathLike) -> dict[str, Source]:
  """The splits of `example.SPLITS` that have a source to themselves, in that order: none is cut from another."""
  found = {split: _find(record, split, pathlib.Path(data_dir)) for split in example_lib.SPLITS}
  return {split: source for split, source in found.items() if source is not None}


def parsed(
    record: TaskRecord, source: Source, *, split: str, data_dir: str | os.PathLike, errors: list[DataError]
) -> Iterator[tuple[int, readers.Raw, Fields]]:
  """(number in the source, raw record, fields) of the good records of a split; bad ones are appended to `errors`."""
  for number, raw in enumerate(raw_records(record, source, data_dir=data_dir, errors=errors)):
    try:
      if record.belongs is not None and not record.belongs(raw.record, split):
        continue
      fields = record.parsed(raw.record, raw.where)
    except (KeyError, TypeError, ValueError) as error:
      errors.append(error if isinstance(error, DataError) else DataError(
          what=f'not a record of {record.name}', where=raw.where, got=f'{type(error).__name__}: {str(error)[:80]}',
          expected='a record of its schema', fix='drop the record'))
      continue
    yield number, raw, fields


def _fields(record, split, data_dir, errors) -> Iterator[tuple[int, Fields, str]]:
  """(number in the source, fields, where) of the good records of a split."""
  source = find(record, split, data_dir=data_dir)
  for number, raw, fields in parsed(record, source, split=split, data_dir=data_dir, errors=errors):
    if source.part is None or (example_lib.split_of(fields.inputs) == 'validation') == (source.part == 'validation'):
      yield number, fields, raw.where


def _unique(found, errors):
  seen = set()
  for number, fields, where in found:
    name = fields.id if fields.id is not None else str(number)
    if name in seen:
      errors.append(DataError(what='duplicate id', where=where, got=name, expected='an id not used before', fix='drop one'))
      continue
    seen.add(name)
    yield number, fields


def _example(record, fields, number, worked):
  turns = fields.check.get('turns')
  inputs = prompt(record, fields.inputs, worked)
  check = dict(fields.check) | ({'turns': [inputs, *turns[1:]]} if turns else {})
  return Example(id=fields.id if fields.id is not None else str(number), domain=fields.category or record.name, level=1,
                 inputs=inputs, targets=fields.targets, check=check)


def _report(errors, name):
  for error in errors[:_NAMED_ERRORS]:
    LOG.warning('%s: left out: %s', name, error)
  if len(errors) > _NAMED_ERRORS:
    kinds = collections.Counter(str(error.what) for error in errors)
    LOG.warning('%s: %d lines left out in all (%s)', name, len(errors), ', '.join(f'{k}: {n}' for k, n in kinds.items()))


def user_file(path: str, *, kind: str, input_key: str, target_key: str, count: int) -> Loaded:
  """The first `count` examples of a user's file; bad lines are named and left out.

  Args:
    path: JSONL or TSV, perhaps gzipped.
    kind: 'jsonl', 'tsv' or 'text'.
    input_key, target_key: fields of the objects; of a TSV file names in its first line, or numbers of columns from 0. With
      'inputs' and 'targets' a TSV file needs no first line of names: its first two columns are taken.

  Raises:
    DataError: the file cannot be read, or no line is good.
    ConfigError: a TSV file has no such column.
  """
  errors, source = [], pathlib.Path(path)
  if kind == 'text':
    from specjax.tasks import text_tasks
    return load(text_tasks.record('text', str(source.absolute()), summary='', licence=''), split='test', count=count,
                data_dir=os.sep)
  rows = (_jsonl_rows if kind == 'jsonl' else _tsv_rows)(source, input_key, target_key, errors)
  examples, seen = [], set()
  for number, inputs, targets, name, where in rows:
    if name in seen:
      errors.append(DataError(what='duplicate id', where=where, got=name, expected='an id not used before', fix='rename it'))
      continue
    seen.add(name)
    if len(examples) < count:  # The rest is read on, so that its bad lines are named.
      examples.append(Example(id=name, domain='local', level=1, inputs=inputs, targets=targets or '',
                              check={'labelled': targets is not None}))
  _report(errors, str(source))
  if not examples:
    raise errors[0] if errors else DataError(what='empty file', where=f'{source}:1', got='0 lines', expected='one example a line',
                                             fix='check the path')
  return Loaded(examples, errors, str(source))


def _jsonl_rows(path, input_key, target_key, errors):
  kind = 'json' if path.suffix == '.json' else 'jsonl'
  for number, (record, where) in enumerate(readers.read([path], columns=(), errors=errors, kind=kind), start=1):
    try:
      inputs, targets = _text(record, input_key, where), None
      if target_key in record:
        targets = _text(record, target_key, where, may_be_empty=True)
    except DataError as error:
      errors.append(error)
      continue
    name = record.get('id')
    yield number, inputs, targets, str(name) if isinstance(name, (str, int)) else where.rpartition(':')[2], where


def _text(record, key, where, *, may_be_empty=False):
  value = record.get(key)
  if not isinstance(value, str):
    raise DataError(what=f'field {key!r}', where=where, got=type(value).__name__ if key in record else f'fields {sorted(record)}',
                    expected='a string', fix='name the field with --input_key and --target_key')
  if not value.strip() and not may_be_empty:
    raise DataError(what=f'empty {key}', where=where, expected='some text', fix='drop the line')
  return value


def _tsv_rows(path, input_key, target_key, errors):
  rows = iter(readers.tsv_cells(path, errors))
  first = next(rows, None)
  if first is None:
    return
  columns, has_names = _columns(first, input_key, target_key)
  for number, (where, cells) in enumerate(itertools.chain([] if has_names else [first], rows), start=1):
    if len(cells) <= max(column for column in columns if column is not None):
      errors.append(DataError(what='columns', where=where, got=len(cells), expected='as many cells as the first line has',
                              fix='mend the line'))
    elif not cells[columns[0]].strip():
      errors.append(DataError(what='empty inputs', where=where, expected='some text', fix='drop the line'))
    else:
      yield number, cells[columns[0]], None if columns[1] is None else cells[columns[1]], where.rpartition(':')[2], where


def _columns(first, input_key, target_key):
  """((column of the inputs, column of the targets or None), whether the first line holds names)."""
  where, cells = first
  if input_key.isdecimal() and int(input_key) < len(cells):
    return (int(input_key), int(target_key) if target_key.isdecimal() and int(target_key) < len(cells) else None), False
  if input_key in cells:
    return (cells.index(input_key), cells.index(target_key) if target_key in cells else None), True
  if input_key == 'inputs':
    return (0, 1 if len(cells) > 1 else None), False
  raise ConfigError(what='input_key', where=where, got=input_key, expected=f'one of {", ".join(cells)[:200]}, or a column number',
                    fix='Pass --input_key=NAME')
