"""The directory of one run: rows.jsonl, run.json and what is rebuilt from them. Resumed only by the same configuration."""

import contextlib
import hashlib
import json
import os
import pathlib

from specjax.checkpoints import durable
from specjax.core.errors import ConfigError
from specjax.evaluation import row_log
from specjax.evaluation import rows as rows_lib

ROWS = 'rows.jsonl'
QUESTIONS = 'questions.jsonl'
RUN = 'run.json'


def run_id(config, prompt_sets):
  """12 hex digits that name a run: equal for equal configuration and prompts, so that a resumed run keeps its own."""
  named = {'config': config, 'prompt_sets': prompt_sets, 'row_version': rows_lib.ROW_VERSION}
  return hashlib.sha256(row_log.canonical_json(named)).hexdigest()[:12]


def write_json(path, value):
  """Writes `value` so that a reader sees the old file or the new one, never half of either."""
  write_text(path, json.dumps(rows_lib.finite(value), indent=1, ensure_ascii=True, allow_nan=False) + '\n')


def write_text(path, text):
  """As `write_json`, for text."""
  write_bytes(path, text.encode('utf-8', 'surrogatepass'))


def write_bytes(path, data):
  """As `write_json`, for bytes."""
  durable.replace(path, data)


def read_run(directory):
  """The run's metadata, {} when there is none.

  Raises:
    ConfigError: the file does not parse.
  """
  path = pathlib.Path(directory) / RUN
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_bytes())
  except ValueError:
    raise ConfigError(what='run.json does not parse', where=str(path), fix='Run again with --overwrite.') from None


def read_questions(directory):
  """(task, question id) -> question, {} when the file is missing."""
  path = pathlib.Path(directory) / QUESTIONS
  if not path.exists():
    return {}
  lines = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  return {(line['task'], line['question_id']): line for line in lines}


def check_free(directory, *, resume, overwrite):
  """Raises `ConfigError` when results are there and neither flag says what to do with them; writes nothing."""
  if resume and overwrite:
    raise ConfigError(what='both --resume and --overwrite', fix='Choose one.')
  check_writable(directory)
  path = pathlib.Path(directory)
  found = [name for name in (ROWS, RUN) if (path / name).exists()]
  if found and not (resume or overwrite):
    raise ConfigError(
        what='results exist already', where=str(path / found[0]),
        fix='Pass --resume to go on, --overwrite to start again, or another --output_path.')


def check_writable(directory, *, where='evaluate.output_path'):
  """Raises `ConfigError` where the directory could not be made or written to; makes nothing."""
  path = pathlib.Path(directory).absolute()
  existing = next(parent for parent in (path, *path.parents) if parent.exists())
  if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
    raise ConfigError(what='output_path cannot be written', where=where, got=str(existing), expected='a directory of yours')


def check_same(directory, run, *, found, name, config):
  """Raises `ConfigError`, with what differs, when what is there is of another run.

  Args:
    directory: for the error.
    run: run.json of what is there.
    found: id of what is there.
    name, config: of the run that wants to go on.
  """
  if found != name:
    old = run.get('config', {})
    differing = sorted(key for key in old.keys() | config.keys() if old.get(key) != config.get(key))
    raise ConfigError(
        what='results of another run', where=str(directory), got=f'run {found}',
        expected=f'run {name}' + (f' (differing: {", ".join(differing)})' if differing else ' (other prompts)'),
        fix='Resume with the configuration it was started with, or choose another --output_path.')


class Output:
  """The open directory of a run.

  Args:
    directory: made if missing.
    name: the run's id.
    config: resolved configuration, JSON.
    overwrite: throw away what is there.

  Raises:
    ConfigError: what is there belongs to another configuration, or another process writes there.
  """

  def __init__(self, directory, *, name, config, overwrite):
    self.path = pathlib.Path(directory)
    self.path.mkdir(parents=True, exist_ok=True)
    self.run_id = name
    self.writer = row_log.RowWriter(self.path / ROWS)
    with contextlib.ExitStack() as undo:
      undo.callback(self.writer.close)
      if overwrite:
        self.writer.clear()
        self.run = {}
      else:
        self.run = read_run(self.path)
        self._check_same(config)
      undo.pop_all()  # From here on it is closed by `__exit__`.
    self.run |= {'run_id': name, 'config': config}
    self.run.setdefault('sessions', [])
    self.run.setdefault('pairs', {})

  def _check_same(self, config):
    for other in sorted({row['run_id'] for row in self.writer.rows} | ({self.run['run_id']} if self.run else set())):
      check_same(self.path, self.run, found=other, name=self.run_id, config=config)

  def write_questions(self, tasks):
    """Writes questions.jsonl, in Spec-Bench's format: what was asked, for people who read the rows."""
    lines = [
        {'task': task.name, 'question_id': example.id, 'category': example.domain,
         'turns': list(example.check.get('turns', [example.inputs])),
         'reference': [example.targets]} for task in tasks for example in task.examples]
    write_text(self.path / QUESTIONS, ''.join(json.dumps(line) + '\n' for line in lines))

  def begin_session(self, provenance):
    """Adds a session to run.json: what runs now, on what."""
    self.run['sessions'].append(provenance)
    self.save()

  def record_pair(self, pair, metadata):
    """Notes what a pair is; a resumed run must meet the same checkpoint.

    Raises:
      ConfigError: the checkpoint or tokenizer has changed since the run was begun.
    """
    old = self.run['pairs'].get(pair)
    for field in ('checkpoint_sha256', 'tokenizer_sha256', 'chat_template'):
      if old and old.get(field) != metadata.get(field):
        raise ConfigError(
            what=f'{field} of {pair!r} has changed since the run was begun', where=str(self.path),
            got=metadata.get(field), expected=old.get(field), fix='Restore the checkpoint, or run with --overwrite.')
    self.run['pairs'][pair] = metadata
    self.save()

  def save(self):
    """Writes run.json."""
    write_json(self.path / RUN, self.run)

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.writer.close()
