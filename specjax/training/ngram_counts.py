"""n-gram models from counts: interpolated modified Kneser-Ney smoothing, with pruning. Host side, numpy.

    P_m(w | h) = max(a - D(a), 0) / sum over v of a(h v)  +  g(h) P_{m-1}(w | h'),     a = a(h w)
    P_0(w)     = 1 / V

a is the count where m = n, below the number of different tokens seen before h w. D takes three values, for a = 1, 2 and more.
g(h) is the mass that discounts and pruned n-grams leave, so that every law sums to 1.

Source: Chen and Goodman 1998, modified Kneser-Ney (discounts of their equation 26); Heafield et al. 2013 (KenLM's lmplz) for
the start of a sequence, which is itself a token that may precede, and for pruning.
"""

from collections.abc import Iterable, Sequence
import os
import re
from typing import NamedTuple

import numpy as np

from specjax.core import checks
from specjax.core import errors
from specjax.ops import ngrams
from specjax.training import batches

FALLBACK = (0.5, 1.0, 1.5)

_TOKEN_ID = re.compile('[0-9]{1,10}')


class _Counts(NamedTuple):
  """The n-grams of one order, sorted: entry of the first m - 1 tokens, last token, entry of the last m - 1, and counts."""

  parents: np.ndarray
  tokens: np.ndarray
  suffixes: np.ndarray
  counts: np.ndarray
  adjusted: np.ndarray


def train(
    sequences: Iterable[Sequence[int]], *, order: int, vocab_size: int, start_token: int | None = None,
    prune: Sequence[int] | None = None, discount_fallback: Sequence[float] | None = None,
) -> ngrams.NgramModel:
  """The `NgramModel` of some token sequences; no n-gram reaches over the end of one.

  Args:
    sequences: of token ids, with the end token where it is to be predicted.
    order: n in 1..8.
    vocab_size: V.
    start_token: the token that all sequences begin with and that is nowhere else; it is never predicted, and what it begins
      is counted as seen. None where they begin with text.
    prune: of each order the largest count that is dropped, 0 for order 1 and nowhere less than one order below; None keeps
      all.
    discount_fallback: three discounts for orders whose counts give none, such as `FALLBACK`; None is an error there.

  Raises:
    ParamError, VocabError; DataError: no text, a misplaced start token, counts without discounts.
  """
  checks.integer('order', order, low=1, high=ngrams.MAX_ORDER, where='ngram_counts', over=errors.ParamError)
  checks.integer('vocab_size', vocab_size, low=1, high=2**31 - 1, where='ngram_counts')
  thresholds = _thresholds(prune, order)
  text, room = _flattened(sequences, vocab_size, start_token)
  tables = _adjusted(_count(text, room, order, vocab_size), text, room, start_token)
  discounts = [_discounts(table.adjusted, size, discount_fallback) for size, table in enumerate(tables, start=1)]
  return ngrams.NgramModel.from_tables(_probabilities(tables, discounts, thresholds, start_token))


def sequences_of(data: batches.PackedData) -> list[np.ndarray]:
  """The token sequences of packed examples: each segment's inputs, and the last of its targets."""
  tokens, targets, segments = (np.asarray(data.arrays[name]) for name in ('tokens', 'targets', 'segments'))
  result = []
  for row in range(len(tokens)):
    edges = np.flatnonzero(np.diff(segments[row], prepend=0, append=0))
    for start, stop in zip(edges, edges[1:], strict=False):
      if segments[row, start]:
        result.append(np.append(tokens[row, start:stop], targets[row, stop - 1]).astype(np.int64))
  return result


def read_sequences(path: str | os.PathLike) -> list[np.ndarray]:
  """The token sequences of a text file: one a line, ids with blanks between them; empty lines are none.

  Raises:
    DataError: a line that holds something else; `where` is file:line.
  """
  result = []
  with open(path, encoding='utf-8', errors='replace') as file:
    for number, line in enumerate(file, start=1):
      fields = line.split()
      wrong = next((field for field in fields if not _TOKEN_ID.fullmatch(field)), None)
      if wrong is not None:
        raise errors.DataError(what='token id', where=f'{path}:{number}', got=wrong, expected='an integer, not negative')
      if fields:
        result.append(np.array(fields, np.int64))
  return result


def _thresholds(prune, order):
  thresholds = (0,) * order if prune is None else tuple(prune)
  is_valid = len(thresholds) == order and all(isinstance(value, int) for value in thresholds)
  if not is_valid or thresholds[0] != 0 or list(thresholds) != sorted(thresholds):
    raise errors.ParamError(
        what='prune', got=prune, expected=f'{order} integers, the first of them 0, none less than the one before',
        fix='an n-gram stays only if all of its parts do')
  return thresholds


def _flattened(sequences, vocab_size, start_token):
  """(text int64[T], room int64[T]): all tokens, and how many are left of each one's sequence, itself counted."""
  arrays = [np.asarray(sequence) for sequence in sequences]
  arrays = [array.astype(np.int64) for array in arrays if checked_sequence(array, vocab_size).size]
  if not arrays:
    raise errors.DataError(what='sequences', got='no tokens', expected='at least one token')
  text = np.concatenate(arrays)
  room = np.concatenate([np.arange(len(array), 0, -1) for array in arrays])
  if start_token is not None:
    begins = np.concatenate([np.arange(len(array)) == 0 for array in arrays])
    if np.any((text == start_token) != begins):
      raise errors.DataError(
          what='start token', got=start_token, expected='at the start of every sequence and nowhere else',
          fix='start_token=None counts text as it is')
  return text, room


def checked_sequence(array, vocab_size):
  """`array`, a flat one of token ids; otherwise `VocabError`, or `DataError` where it is no list."""
  if array.ndim != 1:
    raise errors.DataError(what='sequence of tokens', got=f'{array.ndim} axes', expected='a flat list of token ids')
  checks.token_ids(array, vocab_size, where='ngram_counts')
  return array


def _count(text, room, order, vocab_size):
  """The `_Counts` of every order; nothing is adjusted yet."""
  entry = text  # of the m tokens from each place on; places too close to the end of their sequence are never looked at.
  counts = np.bincount(text, minlength=vocab_size)
  vocabulary = np.arange(vocab_size)
  tables = [_Counts(np.zeros_like(vocabulary), vocabulary, np.zeros_like(vocabulary), counts, counts)]
  for size in range(2, order + 1):
    places = np.flatnonzero(room >= size)
    key, inverse, counts = np.unique(
        entry[places] * vocab_size + text[places + size - 1], return_inverse=True, return_counts=True)
    suffixes = np.zeros_like(key)
    suffixes[inverse] = entry[places + 1]
    tables.append(_Counts(key // vocab_size, key % vocab_size, suffixes, counts, counts))
    entry = np.full_like(text, -1)
    entry[places] = inverse
  return tables


def _adjusted(tables, text, room, start_token):
  """`tables` with the counts that lower orders are estimated from."""
  begins = np.flatnonzero(np.r_[True, room[:-1] == 1])
  first, adjusted = np.arange(len(tables[0].counts)), []
  starting = text[begins]  # the entries that the sequences begin with, of the order at hand
  for size, table in enumerate(tables, start=1):
    if size > 1:
      first = first[table.parents]
      begins = begins[room[begins] >= size]
      starting = _entries_at(tables[:size], text, begins)
    if size == len(tables):
      counts = table.counts
    else:
      counts = np.bincount(tables[size].suffixes, minlength=len(table.counts))
      if start_token is None:
        counts[np.unique(starting)] += 1
      else:
        counts = np.where(first == start_token, table.counts, counts)
    if size == 1 and start_token is not None:
      counts = np.where(first == start_token, 0, counts)
    adjusted.append(table._replace(adjusted=counts))
  return adjusted


def _entries_at(tables, text, places):
  """The entries of the highest order of `tables` that begin at `places`, where they are known to exist."""
  entry, vocab_size = text[places], len(tables[0].counts)
  for offset, table in enumerate(tables[1:], start=1):
    key = table.parents * vocab_size + table.tokens
    entry = np.searchsorted(key, entry * vocab_size + text[places + offset])
  return entry


def _discounts(adjusted, size, fallback):
  """float64[4], the discounts of counts 0, 1, 2 and more."""
  seen = [int(np.sum(adjusted == count)) for count in range(1, 5)]
  if all(seen[:3]):
    ratio = seen[0] / (seen[0] + 2 * seen[1])
    found = [count - (count + 1) * ratio * seen[count] / seen[count - 1] for count in (1, 2, 3)]
    if all(0 <= discount <= count for count, discount in enumerate(found, start=1)):
      return np.array([0.0, *found])
  if fallback is None:
    raise errors.DataError(
        what=f'discounts of {size}-grams', got=f'{seen} n-grams of adjusted counts 1 to 4',
        expected='counts that fall off as those of natural text do',
        fix='give more text, or discount_fallback=(0.5, 1.0, 1.5)')
  values = [checks.real('discount_fallback', value, low=0, high=high) for high, value in enumerate(fallback, start=1)]
  if len(values) != 3:
    raise errors.ParamError(what='discount_fallback', got=fallback, expected='three discounts')
  return np.array([0.0, *values])


def _probabilities(tables, discounts, thresholds, start_token):
  """The tables of `NgramModel.from_tables`: float64 log-probabilities and backoffs of what is not pruned."""
  vocab_size = len(tables[0].counts)
  below = np.full(1, 1 / (vocab_size - (start_token is not None)))
  number = np.zeros(1, np.int64)  # of the kept entries of the order below
  result = []
  for table, discount, threshold in zip(tables, discounts, thresholds, strict=True):
    num_contexts = len(below)
    is_kept = (table.counts > threshold) | (len(result) == 0)
    given = discount[np.minimum(table.adjusted, 3)]
    total = np.bincount(table.parents, table.adjusted, num_contexts)
    left = np.bincount(table.parents, np.where(is_kept, given, table.adjusted), num_contexts)
    # A context that nothing was seen behind passes all of its mass on.
    weight = np.where(total > 0, left / np.where(total > 0, total, 1), 1.0)
    own_total = total[table.parents]
    own = np.where(own_total > 0, (table.adjusted - given) / np.where(own_total > 0, own_total, 1), 0)
    probs = own + weight[table.parents] * below[table.suffixes]
    if not result and start_token is not None:
      probs[start_token] = 0
    with np.errstate(divide='ignore'):
      if result:
        result[-1][3] = np.log(weight)[kept]
      result.append([number[table.parents][is_kept], table.tokens[is_kept], np.log(probs)[is_kept], None])
    number, kept, below = np.cumsum(is_kept) - 1, is_kept, probs
  return result
