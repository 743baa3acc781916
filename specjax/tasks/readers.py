"""Raw records out of local files: JSONL, JSON, TSV, parallel lines, running text; plain or gzipped.

A bad line is named and left out, the rest is kept: a file of ten thousand examples is not lost for one of them. What is kept
of the text is not changed.
"""

import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from specjax.core.errors import DataError
from specjax.tasks import local

MAX_FILE_BYTES = 1 << 30  # of a file that must be parsed whole


class Raw(NamedTuple):
  """One raw record and where it stands: `where` is file:line, or file:number where a file has no lines of records."""

  record: Mapping[str, Any]
  where: str


def read(
    paths: Sequence[pathlib.Path], *, columns: Sequence[str], errors: list[DataError], kind: str | None = None
) -> Iterator[Raw]:
  """The raw records of the files of one layout, in order.

  Args:
    paths: of one split. As many as `columns` and not TSV: parallel lines. Else one after the other, by their endings.
    columns, kind: see `task_records.Files`.
    errors: bad lines are appended here.

  Raises:
    DataError: a file as a whole is bad: unreadable, not UTF-8 from the first byte, of unequal length with its parallel.
  """
  kinds = [kind or _kind(path) for path in paths]
  if columns and 'tsv' not in kinds:
    yield from _parallel(paths, columns, errors)
    return
  for path, kind in zip(paths, kinds, strict=True):
    if kind == 'tsv':
      yield from _tsv(path, columns, errors)
    else:
      yield from {'jsonl': _jsonl, 'json': _json, 'txt': _passages}[kind](path, errors)


def _kind(path):
  suffixes = [suffix.lstrip('.') for suffix in path.suffixes if suffix != '.gz']
  return suffixes[-1] if suffixes and suffixes[-1] in ('jsonl', 'json', 'tsv', 'txt') else 'jsonl'


def lines(path: pathlib.Path, errors: list[DataError], *, keep_bad: bool = False) -> Iterator[tuple[int, str | None]]:
  """(line number, text) of a file; a bad line is named in `errors` and left out, or None with `keep_bad`.

  Raises:
    DataError: the file cannot be read.
  """
  try:
    with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as file:
      number = 0
      while line := file.readline(local.MAX_LINE_BYTES + 2):
        number += 1
        where = f'{path}:{number}'
        try:
          # The rest of a line that is too long is not taken for lines of its own.
          if len(line) > local.MAX_LINE_BYTES and not line.endswith(b'\n'):
            while (rest := file.readline(local.MAX_LINE_BYTES)) and not rest.endswith(b'\n'):
              pass
          yield number, local.line_text(line, where, number=number)
        except DataError as error:
          errors.append(error)
          if keep_bad:
            yield number, None
  except (OSError, EOFError, zlib.error) as error:
    raise DataError(what='file', where=f'{path}:1', got=str(error)[:80], expected='a readable file',
                    fix='check the path') from error


def _jsonl(path, errors):
  for number, text in lines(path, errors):
    where = f'{path}:{number}'
    try:
      record = local.json_object(text, where)
    except DataError as error:
      errors.append(error)
      continue
    yield Raw(record, where)


def _json(path, errors):
  """A JSON array of records, or the nested form in which SQuAD is published."""
  where = f'{path}:1'
  try:
    if path.stat().st_size > MAX_FILE_BYTES:
      raise DataError(what='file size', where=where, got=path.stat().st_size, expected=f'at most {MAX_FILE_BYTES} bytes',
                      fix='write it as JSONL')
    found = json.loads(path.read_bytes())
  except OSError as error:
    raise DataError(what='file', where=where, got=error.strerror, expected='a readable file', fix='check the path') from error
  except (ValueError, RecursionError) as error:
    line = getattr(error, 'lineno', 1)
    raise DataError(what='JSON', where=f'{path}:{line}', got=str(error)[:80], expected='one JSON array',
                    fix='mend the file, or write one object a line as JSONL') from None
  records = _unnested(found) if isinstance(found, dict) else found
  if not isinstance(records, list):
    raise DataError(what='JSON', where=where, got=type(found).__name__, expected='an array of objects', fix='write it as JSONL')
  for number, record in enumerate(records, start=1):
    if isinstance(record, dict):
      yield Raw(record, f'{path}:{number}')
    else:
      errors.append(DataError(what='JSON', where=f'{path}:{number}', got=type(record).__name__, expected='an object',
                              fix='drop the element'))


def _unnested(found):
  """The questions of SQuAD's form with their contexts. What is not of that form comes as it stands, to be named by its reader."""
  records = []
  for article in _inside(found, 'data'):
    for paragraph in _inside(article, 'paragraphs'):
      for question in _inside(paragraph, 'qas'):
        is_question = isinstance(question, dict) and question is not paragraph and 'context' in paragraph
        more = {'context': paragraph['context'], 'title': article.get('title', '')} if is_question else {}
        records.append(question | more if more else question)
  return records


def _inside(found, name):
  """The list `name` of an object; the thing itself where it has none."""
  value = found.get(name) if isinstance(found, dict) else None
  return value if isinstance(value, list) else [found]


def tsv_cells(path: pathlib.Path, errors: list[DataError]) -> Iterator[tuple[str, list[str]]]:
  """(file:line, cells) of a file of lines split at tabs; quotes mean nothing."""
  for number, text in lines(path, errors):
    yield f'{path}:{number}', text.split('\t')


def _tsv(path, columns, errors):
  """Records of a TSV file: `columns` name the cells, otherwise its first line does."""
  names = list(columns)
  for where, cells in tsv_cells(path, errors):
    if not names:
      names = cells
    elif len(cells) < len(names):
      errors.append(DataError(what='columns', where=where, got=len(cells), expected=f'{len(names)} cells between tabs',
                              fix='mend the line'))
    else:
      yield Raw(dict(zip(names, cells)), where)


def _parallel(paths, columns, errors):
  """Records of files whose n-th lines belong together."""
  try:
    sides = zip(*(lines(path, errors, keep_bad=True) for path in paths), strict=True)
    for found in sides:
      number, texts = found[0][0], [text for _, text in found]
      if None not in texts:
        yield Raw(dict(zip(columns, texts, strict=True)), f'{paths[0]}:{number}')
  except DataError:
    raise  # It is a ValueError too: a file that cannot be read is not one that is too short.
  except ValueError:
    raise DataError(what='parallel files', where=f'{paths[-1]}:1', got='another number of lines', fix='restore the files',
                    expected=f'as many as {paths[0].name}') from None


def _passages(path, errors):
  """{'text': passage}: paragraphs between blank lines, short ones joined until a passage is long enough to go on from."""
  passage, start = [], 1
  for number, text in lines(path, errors):
    passage.append(text.strip())
    if not text.strip() and sum(len(part.split()) for part in passage) >= 96:
      yield Raw({'text': ' '.join(part for part in passage if part)}, f'{path}:{start}')
      passage, start = [], number + 1
  if any(passage):
    yield Raw({'text': ' '.join(part for part in passage if part)}, f'{path}:{start}')
