"""The metric log: durable lines, and a resumed file that reads like an uninterrupted one."""

import json

import pytest

from specjax.training import metric_log


def write(directory, steps, resume_step=0):
  with metric_log.MetricLog(directory, resume_step=resume_step, tensorboard=False) as log:
    for step in steps:
      log.write(step, 'train', {'loss': 1 / step})


def steps_in(directory):
  return [row['step'] for row in metric_log.read_metrics(directory / 'metrics.jsonl')]


def test_rows_read_back(tmp_path):
  write(tmp_path, [1, 2])
  assert metric_log.read_metrics(tmp_path / 'metrics.jsonl') == [
      {'step': 1, 'kind': 'train', 'loss': 1.0}, {'step': 2, 'kind': 'train', 'loss': 0.5}]


def test_rows_of_lost_work_are_dropped_on_resume(tmp_path):
  write(tmp_path, [1, 2, 3, 4])
  write(tmp_path, [3, 4, 5], resume_step=2)
  assert steps_in(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize('tail', [
    b'{"step": 3, "kind": "tr', b'{"step": 3', b'\x00\x00\x00', b'{"step": 3, "kind": "\xff', b'3', b'[3]', b'{}', b'null'])
def test_torn_tail_is_dropped_and_not_appended_to(tmp_path, tail):
  write(tmp_path, [1, 2])
  with open(tmp_path / 'metrics.jsonl', 'ab') as file:
    file.write(tail)
  assert steps_in(tmp_path) == [1, 2]
  write(tmp_path, [3], resume_step=2)
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [1, 2, 3]


def test_no_file_has_no_rows(tmp_path):
  assert metric_log.read_metrics(tmp_path / 'metrics.jsonl') == []


def test_event_files_are_closed_on_an_exception(tmp_path):
  closed = []

  class Writer:
    def close(self):
      closed.append(True)

  log = metric_log.MetricLog(tmp_path, resume_step=0, tensorboard=False)
  log._writer = Writer()
  with pytest.raises(ZeroDivisionError), log:
    1 / 0
  assert closed
