"""JSONL files of the user: every bad one is refused by file and line."""

import json

import pytest

from specjax.core.errors import DataError
from specjax.tasks import synthetic
from specjax.tasks.local import read_jsonl

GOOD = b'{"id": "a", "inputs": "x"}\n'


def _write(tmp_path, content):
  path = tmp_path / 'data.jsonl'
  path.write_bytes(content)
  return path


def test_good_file_is_read_in_order(tmp_path):
  rows = [{'id': 'b', 'inputs': 'Wie spät?\tJetzt', 'targets': 'halb fünf'}, {'id': 'a', 'inputs': '日本\n'}]
  examples = read_jsonl(_write(tmp_path, '\r\n'.join(map(json.dumps, rows)).encode()))
  assert [(e.id, e.domain, e.inputs, e.targets, e.check) for e in examples] == [
      ('b', 'local', 'Wie spät?\tJetzt', 'halb fünf', {'labelled': True}),
      ('a', 'local', '日本\n', '', {'labelled': False})]
  assert synthetic.score(examples[0], ' halb  fünf') == 1.0
  assert synthetic.score(examples[0], 'halb vier') == 0.0


@pytest.mark.parametrize('content, line, what', [
    (b'', 1, 'empty file'),
    (b'\n', 1, 'JSON'),
    (GOOD + b'\n' + GOOD, 2, 'JSON'),
    (b'\xef\xbb\xbf' + GOOD, 1, 'byte-order mark'),
    (GOOD.decode().encode('utf-16'), 1, 'byte-order mark'),
    (GOOD + b'{"id": "b", "inputs": "\xff"}\n', 2, 'invalid UTF-8'),
    (GOOD + b'{"id": "b", "inputs": "\xed\xa0\x80"}\n', 2, 'invalid UTF-8'),
    (GOOD + b'{"id": "b", "inputs": "\\ud800"}\n', 2, 'invalid UTF-8'),
    (b'{"id": "a", "inputs": "\xe2\x82', 1, 'invalid UTF-8'),
    (GOOD + b'{"id": "b", "inputs": "\x00"}\n', 2, 'control character'),
    (GOOD + b'{"id": "b", "inputs": "\\u0000"}\n', 2, 'control character'),
    (GOOD + b'{"id": "b", "inputs": "\\u001b[31m"}\n', 2, 'control character'),
    (GOOD + b'{"id": "b", "inputs": "\x7f"}\n', 2, 'control character'),
    (GOOD + b'{"id": "b", "inputs": "\\u009f"}\n', 2, 'control character'),
    (GOOD + b'{"id": "\\u009b", "inputs": "x"}\n', 2, 'control character'),
    (GOOD + b'{"id": "b", "inputs": "x", "targets": "\\b"}\n', 2, 'control character'),
    (GOOD + GOOD, 2, 'duplicate id'),
    (GOOD + b'{"inputs": "x"}\n', 2, 'missing id'),
    (GOOD + b'{"id": "", "inputs": "x"}\n', 2, 'empty id'),
    (GOOD + b'{"id": 7, "inputs": "x"}\n', 2, 'id'),
    (GOOD + b'{"id": null, "inputs": "x"}\n', 2, 'id'),
    (GOOD + b'{"id": "b"}\n', 2, 'missing inputs'),
    (GOOD + b'{"id": "b", "inputs": " "}\n', 2, 'empty inputs'),
    (GOOD + b'{"id": "b", "inputs": ["x"]}\n', 2, 'inputs'),
    (GOOD + b'{"id": "b", "inputs": "x", "targets": 1}\n', 2, 'targets'),
    (GOOD + b'{"id": "b", "inputs": "x", "target": "y"}\n', 2, 'field'),
    (GOOD + b'{"id": "b", "id": "c", "inputs": "x"}\n', 2, 'JSON'),
    (GOOD + b'["b", "x"]\n', 2, 'JSON'),
    (GOOD + b'{"id": "b", "inputs": "x"\n', 2, 'JSON'),
    (GOOD + b'{"id": "b", "inputs": "x"} {}\n', 2, 'JSON'),
    (GOOD + b'{"id": "b", "inputs": ' + b'[' * 100_000 + b'\n', 2, 'JSON'),
    (GOOD + b'{"id": "b", "inputs": ' + b'9' * 10_000 + b'}\n', 2, 'JSON'),
    (GOOD + b'{"id": "b", "inputs": NaN}\n', 2, 'inputs'),
    (GOOD + b'{"id": "b", "inputs": "' + b'x' * (1 << 20) + b'"}\n', 2, 'line length'),
])
def test_bad_file_is_refused_by_line(tmp_path, content, line, what):
  path = _write(tmp_path, content)
  with pytest.raises(DataError) as error:
    read_jsonl(path)
  assert error.value.where == f'{path}:{line}'
  assert error.value.what == what
  assert error.value.expected and error.value.fix
  assert str(error.value).isprintable()


@pytest.mark.parametrize('name', ['missing.jsonl', '.'])
def test_unreadable_file_is_a_data_error(tmp_path, name):
  with pytest.raises(DataError):
    read_jsonl(tmp_path / name)


def test_longest_allowed_line_is_read(tmp_path):
  assert len(read_jsonl(_write(tmp_path, GOOD), max_line_bytes=len(GOOD) - 1)) == 1
  with pytest.raises(DataError):
    read_jsonl(_write(tmp_path, GOOD), max_line_bytes=len(GOOD) - 2)
