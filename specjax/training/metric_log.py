"""Training metrics: one JSON line per report, TensorBoard beside it."""

import json
import os
import pathlib
from typing import Mapping

from specjax.checkpoints import durable


class MetricLog:
  """Appends to `metrics.jsonl` and, if asked, to TensorBoard event files in the same directory. A context manager.

  Args:
    directory: the run's output directory.
    resume_step: rows past this step belong to work that was lost and is about to be done again: they are dropped, and
      so is a torn last line, so that the file of a resumed run reads like that of an uninterrupted one.
    tensorboard: also write event files through clu (which imports TensorFlow: about eight seconds and 300 MB).
  """

  def __init__(self, directory: str | os.PathLike, *, resume_step: int, tensorboard: bool):
    self._path = pathlib.Path(directory) / 'metrics.jsonl'
    self._path.parent.mkdir(parents=True, exist_ok=True)
    kept = [row for row in read_metrics(self._path) if row['step'] <= resume_step]
    durable.replace(self._path, ''.join(json.dumps(row) + '\n' for row in kept).encode())
    self._writer = None
    if tensorboard:
      os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
      from clu import metric_writers  # TensorFlow: only when asked for.

      self._writer = metric_writers.SummaryWriter(str(directory))

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
    """One report of `kind` ('train' or 'validation') after `step` steps; durable on return."""
    values = {name: float(value) for name, value in values.items()}
    with open(self._path, 'a', encoding='utf-8') as file:
      file.write(json.dumps({'step': step, 'kind': kind, **values}) + '\n')
      file.flush()
      os.fsync(file.fileno())
    if self._writer is not None:
      self._writer.write_scalars(step, {f'{kind}/{name}': value for name, value in values.items()})

  def close(self) -> None:
    """Flushes the event files."""
    if self._writer is not None:
      self._writer.close()


def read_metrics(path: str | os.PathLike) -> list[dict]:
  """The rows of a metrics file up to the first line that is not one (a torn tail); [] when there is no file."""
  rows = []
  if pathlib.Path(path).is_file():
    for line in pathlib.Path(path).read_bytes().split(b'\n'):
      try:
        row = json.loads(line)
        int(row['step'])
      except (ValueError, TypeError, KeyError):
        break
      rows.append(row)
  return rows
