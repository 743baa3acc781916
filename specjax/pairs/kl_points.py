"""Points (the drafter's hidden state, how far the two laws behind it are apart) of a pair's answers, on disk.

    DIRECTORY/
      manifest.json              which pair (SHA-256 of both models), which questions and answers
      part_00000.array_record    one record per answer token: features float32[D], KL(target || drafter) and
      part_00001.array_record    KL(drafter || target) float32 (nats), question int32, position int32, domain int32

A part holds the points of so many questions. It is written under a temporary name, synced and renamed: what has its
name is whole, and a killed collection goes on with the first part that is missing. Nothing larger than a part is held
in memory.
"""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from typing import Any, Literal, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from specjax.checkpoints import durable
from specjax.core import checks
from specjax.core import errors
from specjax.core import types
from specjax.decode import generate
from specjax.decode import methods
from specjax.decode import pair as pair_lib
from specjax.ops import divergences
from specjax.routers import divergence as routers
from specjax.tasks import prompts
from specjax.tasks.example import Example
from specjax.training import kl_classifier
from specjax.training import stopping

QUESTIONS_PER_PART = 512
KINDS = ('reference', 'target', 'drafter', 'backoff')
_CHUNK = 8
_MAX_MANIFEST_BYTES = 1 << 20
_MOST_READ = 1 << 12  # records of one call of the reader


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
  """Which texts the points are taken from.

  Attributes:
    kind: 'reference', the answers of the examples; or what the pair itself writes at temperature 1: 'target' and
      'drafter' alone, 'backoff' with the oracle that defers where KL(target || drafter) is above `level`.
    level: nats, of 'backoff'.
    seed: of sampled answers, which are addressed by the examples' ids.
    max_new_tokens: of a sampled answer.
  """

  kind: Literal['reference', 'target', 'drafter', 'backoff'] = 'reference'
  level: float | None = None
  seed: int = 0
  max_new_tokens: int = 128

  def __post_init__(self):
    checks.choice('answers', self.kind, KINDS)
    checks.seed(self.seed)
    checks.integer('max_new_tokens', self.max_new_tokens, low=1, high=checks.MAX_NEW_TOKENS)
    if (self.kind == 'backoff') != (self.level is not None):
      raise errors.ParamError(
          what=f'level of {self.kind} answers', got=self.level,
          expected="a number of nats for 'backoff', None otherwise")
    if self.level is not None:
      checks.real('level', self.level, low=0)

  def tokens(self, pair: pair_lib.Pair, examples: Sequence[Example], batch_size: int) -> list[list[int]]:
    """The tokens of an answer to each example, EOS included where the answer ends."""
    if self.kind == 'reference':
      return [prompts.target_tokens(example, pair.tokenizer) for example in examples]
    drafter_alone = dataclasses.replace(
        pair, target=pair.drafter, params={**pair.params, 'target': pair.params['drafter']})
    decode = functools.partial(
        generate.generate, drafter_alone if self.kind == 'drafter' else pair, [example.inputs for example in examples],
        sampling=checks.SamplingParams(temperature=1.0), max_new_tokens=self.max_new_tokens, seed=self.seed,
        batch_size=batch_size, example_ids=[example.id for example in examples])
    method = methods.autoregressive()
    if self.kind == 'backoff':
      method = methods.token_cascade(router=routers.KLOracle(threshold=self.level), chunk=_CHUNK)
    return [tokens.tolist() for tokens in decode(method=method).tokens]


def write(
    directory: str | os.PathLike, *, pair: pair_lib.Pair, sha256: Mapping[str, str], examples: Sequence[Example],
    answers: Answers, batch_size: int, stop: stopping.StopRequest, show_progress: bool,
    questions_per_part: int = QUESTIONS_PER_PART,
) -> bool:
  """Writes what is missing of the points of `examples`; whether all are there (if not, `stop` asked).

  Args:
    directory: of these points and of nothing else.
    pair: both models read every answer; its tokenizer and framing are used.
    sha256: {'target': ..., 'drafter': ...} of the models' files, for the manifest.
    examples: questions, no two with one id.
    answers: which texts.
    batch_size: rows per pass.
    stop: asks to return between two passes.
    show_progress: show a progress bar.
    questions_per_part: of a file.

  Raises:
    ConfigError: `directory` holds the points of something else, or another process writes there.
    DataError: no questions. LogitsError: a model produced NaN, naming the question.
  """
  checks.integer('questions_per_part', questions_per_part, low=1, high=1 << 20)
  checks.integer('batch_size', batch_size, low=1, high=checks.MAX_SAMPLES)
  if not examples:
    raise errors.DataError(what='questions', got='none', expected='at least one')
  directory = pathlib.Path(directory)
  manifest = _manifest(pair, sha256, examples, answers, questions_per_part)
  with durable.locked(directory):
    durable.remove_leftovers(directory)
    path = directory / 'manifest.json'
    if path.exists():
      _check_same(manifest, _read_manifest(path), path)
    else:
      durable.replace(path, json.dumps(manifest, indent=2, sort_keys=True).encode())
    measure = jax.jit(functools.partial(_measure, pair.target, pair.drafter))
    bar = dict(unit='question', desc='KL points', disable=not show_progress, dynamic_ncols=True)
    with tqdm.tqdm(total=len(examples), **bar) as bar:
      for number, start in enumerate(range(0, len(examples), questions_per_part)):
        part, path = examples[start:start + questions_per_part], _part(directory, number)
        if not path.exists():
          records = _records(pair, part, start, answers, measure, batch_size, stop, manifest)
          if records is None:
            return False
          _write_part(path, records)
        bar.update(len(part))
  return True


def _records(pair, part, start, answers, measure, batch_size, stop, manifest):
  """The records of some examples, a structured array; None where `stop` asked."""
  layout, domains = _layout(manifest), manifest['domains']
  questions, written = [pair.encode_prompt(example.inputs) for example in part], []
  for first in range(0, len(part), batch_size):  # Decoding is the longest part of it, and stops between batches.
    if stop.requested:
      return None
    written += answers.tokens(pair, part[first:first + batch_size], batch_size)
  found = [np.zeros(len(tokens), layout) for tokens in written]
  # Of like lengths together: padding would cost as much as tokens.
  size = lambda row: len(questions[row]) + len(written[row])
  order = sorted((row for row in range(len(part)) if written[row]), key=size)
  for first in range(0, len(order), batch_size):
    if stop.requested:
      return None
    rows = order[first:first + batch_size]
    batch, begins = teacher_forced(
        pair, [questions[row] for row in rows], [written[row] for row in rows], batch_size=batch_size)
    features, forward, backward = map(np.asarray, measure(pair.params, batch))
    for index, row in enumerate(rows):
      place = slice(begins[index], begins[index] + len(written[row]))
      points = found[row]
      points['features'], points['target_drafter'] = features[index, place], forward[index, place]
      points['drafter_target'] = backward[index, place]
      points['question'], points['position'] = start + row, np.arange(len(points))
      points['domain'] = domains.index(part[row].domain)
      if not all(np.isfinite(points[name]).all() for name in ('features', 'target_drafter', 'drafter_target')):
        raise errors.LogitsError(
            what='laws of the pair', where=part[row].id, got='NaN or infinity',
            expected='finite hidden states and divergences')
  return np.concatenate(found)


def teacher_forced(
    pair: pair_lib.Pair, questions: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, batch_size: int
) -> tuple[types.TrainingBatch, list[int]]:
  """(a batch of padded rows, the position in each row that predicts its answer's first token).

  Rows are filled up to `batch_size` with the first one, and widths to few sizes: few executables.
  """
  fill = batch_size - len(questions)
  questions, answers = ([*rows, *rows[:1] * fill] for rows in (list(questions), list(answers)))
  encoder, given = {}, questions
  if pair.family == 'encoder-decoder':
    given = [[pair.start_token]] * batch_size
    tokens, positions, segments = _padded(questions)
    encoder = dict(encoder_tokens=tokens, encoder_positions=positions, encoder_segments=segments)
  whole = [[*prompt, *answer] for prompt, answer in zip(given, answers, strict=True)]
  tokens, positions, segments = _padded([row[:-1] for row in whole])
  begins = [len(prompt) - 1 for prompt in given]
  targets, weights = np.zeros_like(tokens), np.zeros(tokens.shape, np.float32)
  for row, (text, begin) in enumerate(zip(whole, begins, strict=True)):
    targets[row, :len(text) - 1] = text[1:]
    weights[row, begin:len(text) - 1] = 1
  return types.TrainingBatch(
      tokens=tokens, targets=targets, weights=weights, positions=positions, segments=segments, **encoder), begins


def _padded(rows):
  """(tokens, positions, segments) int32[B, width]."""
  width = generate.bucket(max(map(len, rows)))
  tokens, segments = np.zeros((2, len(rows), width), np.int32)
  for index, row in enumerate(rows):
    tokens[index, :len(row)], segments[index, :len(row)] = row, 1
  return tokens, np.tile(np.arange(width, dtype=np.int32), (len(rows), 1)), segments


def _measure(target, drafter, params, batch):
  """(hidden states of the drafter [B, T, D], KL(target || drafter) [B, T], the reverse), float32, at temperature 1."""
  ours, theirs = drafter.forward(params['drafter'], batch), target.forward(params['target'], batch)
  drafter_law, target_law = (
      jax.nn.log_softmax(output.logits.astype(jnp.float32), axis=-1) for output in (ours, theirs))
  # Equal laws differ by rounding, which may be on either side of 0.
  between = lambda first, second: jnp.maximum(divergences.kl_divergence(first, second), 0)
  return ours.hidden.astype(jnp.float32), between(target_law, drafter_law), between(drafter_law, target_law)


def _write_part(path, records):
  temporary = durable.temporary_path(path)
  writer = _array_record().ArrayRecordWriter(str(temporary), 'group_size:1,uncompressed')
  try:
    for record in records:
      writer.write(record.tobytes())
  finally:
    writer.close()
  durable.sync(temporary)
  os.replace(temporary, path)
  durable.sync(path.parent)


class KLPoints:
  """Points read from disk: data for `training.kl_classifier`.

  Args:
    directory: what `write` has completed.
    sha256: {'target': ..., 'drafter': ...} of the models' files.
    direction: which divergence `rows` give, 'target_drafter' or 'drafter_target'.

  Raises:
    CheckpointError: the points are of another pair, or a file is missing or damaged.
  """

  def __init__(
      self, directory: str | os.PathLike, *, sha256: Mapping[str, str],
      direction: Literal['target_drafter', 'drafter_target'] = 'target_drafter',
  ):
    self._directory, self._direction = pathlib.Path(directory), direction
    self._manifest = _read_manifest(self._directory / 'manifest.json')
    checks.choice('direction', direction, ('target_drafter', 'drafter_target'))
    for role in ('target', 'drafter'):
      if self._manifest[f'{role}_sha256'] != sha256[role]:
        raise errors.CheckpointError(
            what=f'{role}_sha256 of KL points', where=str(directory), got=self._manifest[f'{role}_sha256'],
            expected=sha256[role], fix='they are of another pair: remove the folder, they are collected again')
    self._layout = _layout(self._manifest)
    count = -(-self._manifest['num_questions'] // self._manifest['questions_per_part'])
    self._readers = [self._open(number) for number in range(count)]
    self._ends = np.cumsum([reader.num_records() for reader in self._readers])

  def __len__(self) -> int:
    return int(self._ends[-1])

  @property
  def domains(self) -> list[str]:
    """Names of the domains, as records number them."""
    return list(self._manifest['domains'])

  def rows(self, index: np.ndarray, *, input_weight: float = 0.0) -> kl_classifier.PointBatch:
    """The points `index` int[B]; `input_weight` has no meaning here."""
    del input_weight
    records = self.records(index)
    return kl_classifier.PointBatch(
        np.ascontiguousarray(records['features']), np.ascontiguousarray(records[self._direction]))

  def records(self, index: np.ndarray) -> np.ndarray:
    """The records `index` int[B] as a structured array; see the top of this file."""
    index = np.asarray(index)
    found = np.zeros(len(index), self._layout)
    parts = np.searchsorted(self._ends, index, side='right')
    for part in np.unique(parts):
      places = np.flatnonzero(parts == part)
      begin = 0 if part == 0 else self._ends[part - 1]
      for chunk in np.split(places, range(_MOST_READ, len(places), _MOST_READ)):
        found[chunk] = self._read(int(part), (index[chunk] - begin).tolist())
    return found

  def columns(self) -> dict[str, np.ndarray]:
    """All of the points but their features, by name."""
    names = [name for name in self._layout.names if name != 'features']
    found = {name: [] for name in names}
    for start in range(0, len(self), _MOST_READ):
      records = self.records(np.arange(start, min(start + _MOST_READ, len(self))))
      for name in names:
        found[name].append(records[name].copy())
    return {name: np.concatenate(values) for name, values in found.items()}

  def fingerprint(self) -> str:
    """SHA-256 of the manifest, which names pair, questions and answers, and of which divergence is read."""
    return hashlib.sha256(json.dumps([self._manifest, self._direction], sort_keys=True).encode()).hexdigest()

  def _open(self, number):
    path, size = _part(self._directory, number), self._manifest['questions_per_part']
    try:
      reader = _array_record().ArrayRecordReader(str(path), 'readahead_buffer_size:0,max_parallelism:0')
      ends = np.frombuffer(b''.join(reader.read([0, reader.num_records() - 1])), self._layout)['question']
    except errors.ConfigError:
      raise
    except Exception as error:  # The library raises many types; every one means the same here.
      raise self._damaged(path, str(error)) from error
    if not number * size <= ends[0] <= ends[1] < min((number + 1) * size, self._manifest['num_questions']):
      raise self._damaged(path, f'points of the questions {ends.tolist()}')
    return reader

  def _read(self, part, rows):
    path = _part(self._directory, part)
    try:
      content = b''.join(self._readers[part].read(rows))
    except Exception as error:  # A flipped byte fails the file's own checksum.
      raise self._damaged(path, str(error)) from error
    if len(content) != len(rows) * self._layout.itemsize:
      raise self._damaged(path, f'{len(content)} bytes in {len(rows)} records')
    return np.frombuffer(content, self._layout)

  def _damaged(self, path, got):
    return errors.CheckpointError(
        what='KL points', where=str(path), got=got, expected='a readable file of points',
        fix='remove this file and run again')


class Joined:
  """Several `KLPoints` one behind the other, as one."""

  def __init__(self, parts: Sequence[KLPoints]):
    self._parts = list(parts)
    self._ends = np.cumsum([len(part) for part in self._parts])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def rows(self, index: np.ndarray, *, input_weight: float = 0.0) -> kl_classifier.PointBatch:
    """As of `KLPoints`."""
    index = np.asarray(index)
    owner = np.searchsorted(self._ends, index, side='right')
    order, found = [], []
    for number in np.unique(owner):
      places = np.flatnonzero(owner == number)
      order.append(places)
      begin = 0 if number == 0 else self._ends[number - 1]
      found.append(self._parts[number].rows(index[places] - begin, input_weight=input_weight))
    back = np.argsort(np.concatenate(order))
    return kl_classifier.PointBatch(*(np.concatenate(arrays)[back] for arrays in zip(*found, strict=True)))

  def columns(self) -> dict[str, np.ndarray]:
    """As of `KLPoints`; domains are names, questions are numbered from 0 in each part."""
    found = [part.columns() for part in self._parts]
    for part, columns in zip(self._parts, found, strict=True):
      columns['domain'] = np.array(part.domains)[columns['domain']]
    return {name: np.concatenate([columns[name] for columns in found]) for name in found[0]}

  def fingerprint(self) -> str:
    """Of all of them."""
    return hashlib.sha256(' '.join(part.fingerprint() for part in self._parts).encode()).hexdigest()


def _manifest(pair, sha256, examples, answers, questions_per_part):
  digest = hashlib.sha256()
  for example in examples:
    digest.update(json.dumps([example.id, example.domain, example.inputs, example.targets]).encode())
  return {
      'target_sha256': sha256['target'], 'drafter_sha256': sha256['drafter'], 'questions': digest.hexdigest(),
      'num_questions': len(examples), 'domains': sorted({example.domain for example in examples}),
      'answers': dataclasses.asdict(answers), 'questions_per_part': questions_per_part,
      'embed_dim': pair.drafter.embed_dim}


def _layout(manifest):
  return np.dtype([
      ('features', '<f4', (manifest['embed_dim'],)), ('target_drafter', '<f4'), ('drafter_target', '<f4'),
      ('question', '<i4'), ('position', '<i4'), ('domain', '<i4')])


def _read_manifest(path) -> dict[str, Any]:
  try:
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
      raise ValueError(f'more than {_MAX_MANIFEST_BYTES} bytes')
    manifest = json.loads(path.read_text())
    names = {'target_sha256', 'drafter_sha256', 'questions', 'num_questions', 'domains', 'answers',
             'questions_per_part', 'embed_dim'}
    if manifest.keys() != names:
      raise ValueError(f'missing or unknown: {sorted(names ^ manifest.keys())}')
    for name in ('num_questions', 'questions_per_part', 'embed_dim'):
      checks.integer(name, manifest[name], low=1, high=1 << 30)
    if not isinstance(manifest['domains'], list):
      raise ValueError('domains are no list')
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise errors.CheckpointError(
        what='manifest of KL points', where=str(path), got=repr(error),
        fix='remove the folder and run again') from error
  return manifest


def _check_same(wanted, stored, path):
  for name in wanted:
    if stored[name] != wanted[name]:
      raise errors.ConfigError(
          what=f'{name} of the KL points', where=str(path), got=stored[name], expected=wanted[name],
          fix='they are of another pair or of other texts: remove the folder or choose another')


def _part(directory, number):
  return directory / f'part_{number:05d}.array_record'


def _array_record() -> Any:
  """The module of ArrayRecord, which comes with tensorflow-datasets but not on every platform."""
  try:
    from array_record.python import array_record_module
  except ImportError as error:
    raise errors.ConfigError(
        what='KL points on disk', got='no package array_record', expected='pip install array_record') from error
  return array_record_module
