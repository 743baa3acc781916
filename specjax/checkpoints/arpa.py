"""n-gram models in the ARPA format: text, log10 of probabilities and back-off weights.

    \\data\\
    ngram 1=3
    ngram 2=1

    \\1-grams:
    -0.4771213 a -0.30103
    ...
    \\2-grams:
    -0.1 a b

    \\end\\

Tokens are written as their ids, or as the pieces of a tokenizer. A model that is written and read again is the same, bit for
bit.
"""

from collections.abc import Sequence
import io
import math
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from specjax.checkpoints import durable
from specjax.core import checks
from specjax.core import errors
from specjax.ops import ngrams

_NEVER = -99.0  # The format's log10 of 0.
_COUNT = re.compile(r'ngram (\d+)\s*=\s*(\d+)')
_SECTION = re.compile(r'\\(\d+)-grams:')
_SHORTEST_ENTRY = 4  # bytes: a digit, a space, a name, a line end


def write(path: str | os.PathLike, model: ngrams.NgramModel, *, pieces: Sequence[str] | None = None) -> None:
  """Writes a model; the file is whole or not there.

  Args:
    path: of the file.
    model: what is written.
    pieces: the name of each token id, or None where ids are names. No two equal, none with white space.
  """
  names = _names(pieces, model.vocab_size)
  with durable.replacing(path) as file:
    text = io.TextIOWrapper(file, encoding='utf-8', newline='\n')
    text.write('\n\\data\\\n' + ''.join(
        f'ngram {order}={count}\n' for order, count in enumerate(model.num_entries, start=1)))
    words = [[name] for name in names]
    for order in range(1, model.order + 1):
      if order > 1:
        starts = np.asarray(model.starts[order - 2])
        parents = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        last = np.asarray(model.tokens[order - 2])
        words = [[*words[parent], names[token]] for parent, token in zip(parents, last, strict=True)]
      columns = [_numbers(model.log_probs[order - 1], f'log-probability of a {order}-gram'), [' '.join(row) for row in words]]
      if order < model.order:
        columns.append(_numbers(model.backoffs[order - 1], f'back-off weight of a {order}-gram'))
      text.write(f'\n\\{order}-grams:\n')
      text.writelines('\t'.join(row) + '\n' for row in zip(*columns, strict=True))
    text.write('\n\\end\\\n')
    text.flush()
    text.detach()  # The file itself is closed, and moved to its name, by `replacing`.


def read(
    path: str | os.PathLike, *, vocab_size: int, pieces: Sequence[str] | None = None, start_token: int | None = None,
    end_token: int | None = None,
) -> ngrams.NgramModel:
  """The `NgramModel` of a file.

  Tokens that the file does not name share the probability of its <unk> where that is no piece, and are else never predicted.

  Args:
    path: of the file.
    vocab_size: V.
    pieces: the name of each token id, or None where ids are names.
    start_token, end_token: which ids the file calls <s> and </s>, or None where these are pieces or not in it. The former is
      never predicted.

  Raises:
    DataError: a malformed line; `where` is file:line.
  """
  checks.integer('vocab_size', vocab_size, low=1, high=2**31 - 1, where='arpa.read')
  ids = {name: token for token, name in enumerate(_names(pieces, vocab_size))}
  for name, token in (('<s>', start_token), ('</s>', end_token)):
    if token is not None:
      checks.token_ids([token], vocab_size, what=f'id of {name}', where='arpa.read')
      ids[name] = token
  try:
    with open(path, encoding='utf-8', newline='\n') as file:
      sections = _Reader(file, str(path), pathlib.Path(path).stat().st_size, ids).sections()
  except UnicodeDecodeError as error:
    raise errors.DataError(what='ARPA file', where=str(path), got='bytes that are not UTF-8', expected='text') from error
  return ngrams.NgramModel.from_tables(_tables(sections, str(path), vocab_size, start_token))


class _Section(NamedTuple):
  """The n-grams of one order as they stand in the file: tokens int64[N, m], log10 values float64[N], line numbers int64[N].

  `unknown` is the log10 probability of <unk> where that is no piece, or None.
  """

  tokens: np.ndarray
  log_probs: np.ndarray
  backoffs: np.ndarray
  lines: np.ndarray
  unknown: float | None


class _Reader:
  """Reads a file line by line; every refusal names its line."""

  def __init__(self, file, path, size, ids):
    self._file, self._path, self._size, self._ids, self._number = file, path, size, ids, 0

  def sections(self) -> list[_Section]:
    """All orders, from 1."""
    while self._next('\\data\\') != '\\data\\':
      pass
    counts, line = self._counts()
    result = []
    for order, count in enumerate(counts, start=1):
      match = _SECTION.fullmatch(line)
      if match is None or int(match.group(1)) != order:
        self._refuse('section', line, f'\\{order}-grams:')
      section, line = self._section(order, count, has_backoff=order < len(counts))
      result.append(section)
    if line != '\\end\\':
      self._refuse('end', line, '\\end\\')
    return result

  def _next(self, expected):
    """The next line that is not blank."""
    for line in self._file:
      self._number += 1
      line = line.strip(' \t\r\n')
      if line:
        return line
    self._refuse('end of the file', 'nothing', expected)

  def _counts(self):
    """(how many n-grams each order has, the line behind)."""
    counts = []
    while True:
      line = self._next('ngram 1=...')
      match = _COUNT.fullmatch(line)
      if match is None:
        break
      if int(match.group(1)) != len(counts) + 1 or len(counts) == ngrams.MAX_ORDER:
        self._refuse('order', line, f'ngram {len(counts) + 1}=..., up to {ngrams.MAX_ORDER}')
      counts.append(int(match.group(2)))
      if counts[-1] * _SHORTEST_ENTRY > self._size:
        self._refuse('number of n-grams', line, f'what a file of {self._size} bytes can hold')
    if not counts:
      self._refuse('header', line, 'ngram 1=...')
    return counts, line

  def _section(self, order, count, *, has_backoff):
    """(the `_Section`, the line behind)."""
    tokens, values, backoffs, lines, unknown = [], [], [], [], None
    for _ in range(count):
      line = self._next(f'one of {count} {order}-grams')
      if line.startswith('\\'):
        self._refuse(f'{order}-grams', f'{len(values) + (unknown is not None)} of them', f'{count}')
      fields = re.split('[ \t]+', line)
      if not order + 1 <= len(fields) <= order + 1 + has_backoff:
        self._refuse(f'{order}-gram', line, f'a number, {order} tokens' + has_backoff * ' and perhaps a back-off weight')
      value = self._value(fields[0], high=0.0)
      if order == 1 and fields[1] == '<unk>' and '<unk>' not in self._ids:
        unknown = value
        continue
      tokens.append([self._token(name) for name in fields[1:order + 1]])
      values.append(value)
      backoffs.append(self._value(fields[order + 1], high=math.inf) if len(fields) > order + 1 else 0.0)
      lines.append(self._number)
    section = _Section(
        np.array(tokens, np.int64).reshape(-1, order), np.array(values, np.float64), np.array(backoffs, np.float64),
        np.array(lines, np.int64), unknown)
    return section, self._next('\\end\\')

  def _value(self, field, *, high):
    """A log10 value; -99 and less are the logarithm of 0."""
    try:
      value = float(field)
    except ValueError:
      value = math.nan
    if not -math.inf <= value <= high or value == math.inf:
      self._refuse('log10 value', field, 'a number' if high else 'a number, at most 0')
    return value if value > _NEVER else -math.inf

  def _token(self, name):
    if name not in self._ids:
      self._refuse('token', name, 'one of the vocabulary', fix='pieces, start_token and end_token say what names mean')
    return self._ids[name]

  def _refuse(self, what, got, expected, fix=None):
    raise errors.DataError(what=what, where=f'{self._path}:{self._number}', got=got, expected=expected, fix=fix)


def _tables(sections, path, vocab_size, start_token):
  """The tables of `NgramModel.from_tables`."""
  unigrams = sections[0]
  listed = np.sort(unigrams.tokens[:, 0])
  tables, keys = [], []
  for order, section in enumerate(sections, start=1):
    refuse = lambda row, got, expected: _refuse_ngram(order, f'{path}:{section.lines[row]}', got, expected)
    unlisted = np.flatnonzero(~np.isin(section.tokens, listed).all(axis=1))
    if unlisted.size:
      refuse(unlisted[0], 'a token that is no 1-gram', 'tokens of the 1-grams')
    parents = section.tokens[:, 0] if order > 1 else np.zeros(len(section.lines), np.int64)
    for size in range(2, order):
      key = parents * vocab_size + section.tokens[:, size - 1]
      parents = np.searchsorted(keys[size - 2], key)
      missing = np.flatnonzero(np.append(keys[size - 2], -1)[parents] != key)
      if missing.size:
        refuse(missing[0], 'no entry of its first tokens', f'its context among the {size}-grams')
    key = parents * vocab_size + section.tokens[:, -1]
    rank = np.argsort(key, kind='stable')
    twice = rank[1:][np.diff(key[rank]) == 0]
    if twice.size:
      refuse(twice.min(), 'listed before', 'each n-gram once')
    values = [column[rank] * math.log(10) for column in (section.log_probs, section.backoffs)]
    if order == 1:
      tables.append(_whole_vocabulary(listed, *values, unigrams.unknown, vocab_size, start_token))
    else:
      tables.append([parents[rank], section.tokens[rank, -1], *values])
      keys.append(key[rank])
  return tables


def _refuse_ngram(order, where, got, expected):
  raise errors.DataError(what=f'{order}-gram', where=where, got=got, expected=expected)


def _whole_vocabulary(listed, log_probs, backoffs, unknown, vocab_size, start_token):
  """The unigrams of all V tokens, from those that a file lists."""
  unseen = np.setdiff1d(np.arange(vocab_size), listed)
  share = -math.inf if unknown is None or not unseen.size else unknown * math.log(10) - math.log(unseen.size)
  result = [np.zeros(vocab_size, np.int64), np.arange(vocab_size), np.full(vocab_size, share), np.zeros(vocab_size)]
  result[2][listed], result[3][listed] = log_probs, backoffs
  if start_token is not None:
    result[2][start_token] = -math.inf
  return result


def _names(pieces, vocab_size):
  """A list of V names."""
  if pieces is None:
    return [str(token) for token in range(vocab_size)]
  names = list(pieces)
  if len(names) != vocab_size:
    raise errors.VocabError(what='pieces', where='arpa', got=f'{len(names)} names', expected=f'{vocab_size}, one per token id')
  seen = set()
  for token, name in enumerate(names):
    if not isinstance(name, str) or not name or re.search('[ \t\r\n]', name) or name in seen:
      raise errors.VocabError(
          what=f'piece of token {token}', where='arpa', got=name, expected='a name of its own without white space',
          fix='leave pieces out: ids are names then')
    seen.add(name)
  return names


def _numbers(values, what):
  """log10 of values in nats, as short as gives the same float32 again."""
  values = np.asarray(values, np.float32)
  scaled = values.astype(np.float64) / math.log(10)
  is_zero = np.isneginf(scaled)
  bad = np.flatnonzero(~is_zero & ~((scaled > _NEVER) & np.isfinite(scaled)))
  if bad.size:
    raise errors.DataError(
        what=what, where='arpa.write', got=float(scaled[bad[0]]), expected=f'a log10 above {_NEVER:g}, or -inf')
  texts = [f'{value:.7g}' for value in scaled]
  again = (np.array([float(text) for text in texts]) * math.log(10)).astype(np.float32)
  for index in np.flatnonzero(is_zero | (again != values)):
    texts[index] = f'{_NEVER:g}' if is_zero[index] else repr(float(scaled[index]))
  return texts
