"""The results file: whole lines or none, whatever is cut, flipped or written twice."""

import errno
import json
import os

import pytest

from specjax.core.errors import ConfigError, DataError
from specjax.evaluation import row_log


def _row(number, **more):
  return {'run_id': 'r', 'point_id': 'p', 'question_id': f'q{number}', 'repeat': 0, 'text': 'ü\u2028"\\', 'x': 0.1} | more


def _write(path, rows):
  with row_log.RowWriter(path) as writer:
    writer.append(rows)


def test_rows_come_back_as_written(tmp_path):
  path = tmp_path / 'rows.jsonl'
  _write(path, [_row(0), _row(1)])
  rows, damage = row_log.read(path)
  assert [row | {'crc32': None} for row in rows] == [_row(n) | {'crc32': None} for n in (0, 1)]
  assert damage == (0, ())
  for line in path.read_bytes().splitlines():
    assert json.loads(line)['crc32'] == row_log.checksum(json.loads(line)) and line.isascii()


def test_crc_is_over_the_canonical_json_of_the_rest():
  # CRC-32 of the bytes {"a":1,"b":[0.5,null]}
  assert row_log.checksum({'b': [0.5, None], 'a': 1, 'crc32': 'anything'}) == '09b18912'


def test_tail_cut_anywhere_is_truncated_to_the_last_good_line(tmp_path):
  path = tmp_path / 'rows.jsonl'
  _write(path, [_row(0), _row(1)])
  whole = path.read_bytes()
  first = whole.index(b'\n') + 1
  for cut in sorted({*range(0, len(whole), 5), first - 1, first, first + 1, len(whole) - 1}):
    path.write_bytes(whole[:cut])
    with row_log.RowWriter(path) as writer:
      assert len(writer.rows) == (cut >= first)
      assert path.stat().st_size == (first if cut >= first else 0)
      writer.append([_row(0), _row(1)])
    assert path.read_bytes() == whole


def test_torn_tail_is_warned_about(tmp_path, caplog):
  path = tmp_path / 'rows.jsonl'
  _write(path, [_row(0)])
  with open(path, 'ab') as file:
    file.write(b'{"run_id":"r","poi')
  row_log.RowWriter(path).close()
  assert 'torn tail of 18 bytes' in caplog.text


def test_every_flipped_bit_is_seen(tmp_path):
  line = row_log.encode_line(_row(0, text='plain'))
  for byte in range(len(line) - 1):
    for bit in range(8):
      damaged = bytearray(line)
      damaged[byte] ^= 1 << bit
      row = row_log.decode_line(bytes(damaged))
      # A flip may leave the meaning as it is (the case of a hex digit of an escape); it may never change it.
      assert row is None or row == row_log.decode_line(line)


def test_damaged_line_inside_is_skipped_and_its_row_can_be_written_again(tmp_path):
  path = tmp_path / 'rows.jsonl'
  _write(path, [_row(0), _row(1), _row(2)])
  lines = path.read_bytes().splitlines(keepends=True)
  lines[1] = lines[1].replace(b'0.1', b'0.2')
  path.write_bytes(b''.join(lines))
  with row_log.RowWriter(path) as writer:
    assert writer.damage == (0, (2,))
    assert [row['question_id'] for row in writer.append([_row(0), _row(1), _row(2)])] == ['q1']
  assert sorted(row['question_id'] for row in row_log.read(path)[0]) == ['q0', 'q1', 'q2']


def test_rows_are_deduplicated_by_id(tmp_path):
  path = tmp_path / 'rows.jsonl'
  with row_log.RowWriter(path) as writer:
    assert len(writer.append([_row(0), _row(0), _row(1)])) == 2
    assert writer.append([_row(0)]) == []
    assert len(writer.append([_row(0, repeat=1), _row(0, point_id='other')])) == 2
  path.write_bytes(path.read_bytes() * 2)
  assert len(row_log.read(path)[0]) == 4


@pytest.mark.parametrize('fails_at', ['write', 'fsync'])
def test_failed_write_is_taken_back(tmp_path, monkeypatch, fails_at):
  path = tmp_path / 'rows.jsonl'
  with row_log.RowWriter(path) as writer:
    writer.append([_row(0)])
    before = path.read_bytes()
    real_write, real_fsync = os.pwrite, os.fsync

    def half(descriptor, data, offset):
      real_write(descriptor, data[:len(data) // 2], offset)
      raise OSError(errno.ENOSPC, 'No space left on device')

    def refuse(descriptor):
      raise OSError(errno.EIO, 'Input/output error')

    with monkeypatch.context() as patch:
      patch.setattr(os, 'pwrite', half if fails_at == 'write' else real_write)
      patch.setattr(os, 'fsync', refuse if fails_at == 'fsync' else real_fsync)
      with pytest.raises(DataError, match='--resume'):
        writer.append([_row(1), _row(2)])
    assert path.read_bytes() == before
    assert len(writer.append([_row(1), _row(2)])) == 2
  assert len(row_log.read(path)[0]) == 3


def test_short_writes_are_completed(tmp_path, monkeypatch):
  path, real = tmp_path / 'rows.jsonl', os.pwrite
  monkeypatch.setattr(os, 'pwrite', lambda descriptor, data, offset: real(descriptor, data[:7], offset))
  _write(path, [_row(0), _row(1)])
  assert len(row_log.read(path)[0]) == 2


def test_a_second_writer_is_refused(tmp_path):
  with row_log.RowWriter(tmp_path / 'rows.jsonl'):
    with pytest.raises(ConfigError, match='in use'):
      row_log.RowWriter(tmp_path / 'rows.jsonl')


def test_nan_is_refused():
  with pytest.raises(ValueError):
    row_log.encode_line(_row(0, x=float('nan')))


def test_volatile_fields_are_dropped_at_any_depth():
  row = {'tstamp': 1, 'keep': 2, 'choices': [{'wall_time': [3], 'turns': ['a']}]}
  assert row_log.without_volatile(row) == {'keep': 2, 'choices': [{'turns': ['a']}]}
