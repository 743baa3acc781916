"""Examples from a JSONL file of the user: one object per line with `id`, `inputs` and, where known, `targets`.

`read_jsonl` refuses a file for one bad line. `line_text` and `json_object` are what it makes of a line, for readers that
leave bad lines out.
"""

import json
import pathlib
import re

from specjax.core.errors import DataError
from specjax.tasks.example import Example

MAX_LINE_BYTES = 1 << 20

# Control characters but tab and line breaks, and halves of surrogate pairs, which no UTF-8 text holds.
_FORBIDDEN = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]')
_BYTE_ORDER_MARKS = (b'\xef\xbb\xbf', b'\xff\xfe', b'\xfe\xff')
_FIELDS = ('id', 'inputs', 'targets')


def read_jsonl(path: str | pathlib.Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> list[Example]:
  """The examples of a JSONL file, in order; the whole file is checked before any is returned.

  Each line holds an object with a non-empty string `id`, unique in the file, a string `inputs` and perhaps a string
  `targets`. The text is data: it is not normalised, and control characters other than tab and line breaks are refused,
  escaped or not.

  Args:
    path: the file, UTF-8 without a byte-order mark.
    max_line_bytes: longest line, line break not counted.

  Returns:
    Examples of domain 'local' and level 1. `check['labelled']` says whether the line had `targets`.

  Raises:
    DataError: naming file and line.
  """
  examples, lines_of_ids = [], {}
  try:
    with open(path, 'rb') as file:
      for number, line in enumerate(_lines(file, path, max_line_bytes), start=1):
        where = f'{path}:{number}'
        example = _example(line, where)
        if example.id in lines_of_ids:
          raise _bad('duplicate id', where, example.id, f'an id not used before (line {lines_of_ids[example.id]})',
                     'make the ids unique')
        lines_of_ids[example.id] = number
        examples.append(example)
  except OSError as error:
    raise _bad('file', f'{path}:1', error.strerror, 'a readable file', 'check the path') from error
  if not examples:
    raise _bad('empty file', f'{path}:1', '0 lines', 'one JSON object per line', 'check the path')
  return examples


def _lines(file, path, max_line_bytes: int):
  """The texts of the lines; a huge one is noticed after `max_line_bytes`, not read into memory."""
  number = 0
  while line := file.readline(max_line_bytes + 2):
    number += 1
    yield line_text(line, f'{path}:{number}', number=number, max_line_bytes=max_line_bytes)


def _example(text: str, where: str) -> Example:
  fields = json_object(text, where)
  unknown = sorted(set(fields) - set(_FIELDS))
  if unknown:
    raise _bad('field', where, unknown[0], f'only {", ".join(_FIELDS)}', 'rename or drop the field')
  for name in _FIELDS:
    if name not in fields and name != 'targets':
      raise _bad(f'missing {name}', where, sorted(fields), f'a field {name!r}', f'add {name!r} to the line')
    value = fields.get(name, '')
    if not isinstance(value, str):
      raise _bad(name, where, type(value).__name__, 'a string', f'write {name!r} in quotes')
    check_characters(name, value, where)
  for name in ('id', 'inputs'):
    if not fields[name].strip():
      raise _bad(f'empty {name}', where, fields[name], 'some text', f'give the line {name!r}')
  return Example(id=fields['id'], domain='local', level=1, inputs=fields['inputs'], targets=fields.get('targets', ''),
                 check={'labelled': 'targets' in fields})


def line_text(line: bytes, where: str, *, number: int, max_line_bytes: int = MAX_LINE_BYTES) -> str:
  """The text of a line without its break.

  Args:
    line: with or without the break.
    where: file:line.
    number: of the line; the first must not begin with a byte-order mark.
    max_line_bytes: longest line, break not counted.

  Raises:
    DataError: too long, not UTF-8, or with control characters.
  """
  line = line.removesuffix(b'\n').removesuffix(b'\r')
  if len(line) > max_line_bytes:
    raise _bad('line length', where, f'more than {max_line_bytes} bytes', f'at most {max_line_bytes} bytes',
               'split the line, or raise max_line_bytes')
  if number == 1 and line.startswith(_BYTE_ORDER_MARKS):
    raise _bad('byte-order mark', where, line[:3], 'UTF-8 without one', 'save the file without a byte-order mark')
  try:
    text = line.decode('utf-8')
  except UnicodeDecodeError as error:
    raise _bad('invalid UTF-8', where, line[error.start:error.start + 4], 'UTF-8',
               'convert the file to UTF-8') from None
  check_characters('line', text, where)
  return text


def json_object(text: str, where: str) -> dict:
  """The JSON object that a line holds.

  Raises:
    DataError: the line is no JSON object, or a key is written twice.
  """
  try:
    fields = json.loads(text, object_pairs_hook=_without_repeats)
  except (ValueError, RecursionError) as error:
    raise _bad('JSON', where, str(error)[:80], 'one JSON object', 'write one object per line') from None
  if not isinstance(fields, dict):
    raise _bad('JSON', where, type(fields).__name__, 'an object', 'write one object per line')
  return fields


def _without_repeats(pairs: list) -> dict:
  """The object, unless a key is written twice: Python would keep the last one silently."""
  fields = dict(pairs)
  if len(fields) != len(pairs):
    raise ValueError('a key is written twice')
  return fields


def check_characters(name: str, text: str, where: str) -> None:
  """Raises `DataError` for control characters other than tab and line breaks, and for halves of characters."""
  found = _FORBIDDEN.search(text)
  if found and found.group() < '\ud800':
    raise _bad('control character', where, f'U+{ord(found.group()):04X} in {name}', 'text, tab or line break',
               'remove the character')
  if found:
    raise _bad('invalid UTF-8', where, f'lone surrogate U+{ord(found.group()):04X} in {name}', 'whole characters',
               'write the character itself')


def _bad(what: str, where: str, got, expected: str, fix: str) -> DataError:
  return DataError(f'{where}: {what}: got {got!r}, expected {expected}; {fix}', what=what, where=where, got=got,
                   expected=expected, fix=fix)
