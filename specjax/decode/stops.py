"""What ends a row besides EOS and the limit: token-id sequences, matched on the device, and strings, found in the text.

A *stop sequence* is a list of token ids. The loop cuts the row behind it, inside a block and across round borders, and
everything that is counted follows. A *stop string* is text: one string has many tokenisations, so it is looked for on the
host, between chunks of rounds; the tokens decoded meanwhile count as emitted, only the text is cut.
"""

import numpy as np

from specjax.core import checks
from specjax.core import errors

MAX_STOPS = 64
MAX_STOP_TOKENS = 64


def check_sequences(sequences, vocab_size):
  """Tuple of tuples of token ids, from any lists of integers.

  Raises:
    ParamError: an empty sequence, or text. LimitError: more than 64, or longer than 64 tokens. VocabError: no such id.
  """
  if not isinstance(sequences, (list, tuple)):
    raise errors.ParamError(
        what='stop_sequences', got=sequences, expected='a list of lists of token ids', fix='pass text as stop_strings')
  if any(isinstance(sequence, str) for sequence in sequences):
    raise errors.ParamError(
        what='stop_sequences', got='text', expected='lists of token ids', fix='pass text as stop_strings')
  checks.integer('number of stop_sequences', len(sequences), low=0, high=MAX_STOPS)
  checked = []
  for i, sequence in enumerate(sequences):
    where = f'stop sequence {i}'
    if np.ndim(sequence) != 1 or not len(sequence):
      raise errors.ParamError(what='stop_sequences', where=where, got=sequence, expected='at least one token id in a list')
    checks.integer('tokens of a stop sequence', len(sequence), low=1, high=MAX_STOP_TOKENS, where=where)
    checks.token_ids(list(sequence), vocab_size, what='stop token id', where=where)
    checked.append(tuple(int(token) for token in sequence))
  return tuple(checked)


def as_array(sequences, batch_size):
  """int32[B, S, W] of `Requests.stop_sequences`, the same for every row; None without sequences.

  S and W are rounded up to powers of two: they are shapes, and few shapes are few executables.
  """
  if not sequences:
    return None
  up = lambda size: 1 << (size - 1).bit_length()
  stops = np.full((up(len(sequences)), up(max(map(len, sequences)))), -1, np.int32)
  for row, sequence in zip(stops, sequences):
    row[:len(sequence)] = sequence
  return np.tile(stops, (batch_size, 1, 1))


def without_sequence(tokens, sequences):
  """`tokens` without the longest of the sequences that they end with."""
  tokens = list(tokens)
  tails = [len(sequence) for sequence in sequences if tuple(tokens[-len(sequence):]) == sequence]
  return tokens[:len(tokens) - max(tails, default=0)]


def check_strings(strings, tokenizer):
  """Tuple of stop strings.

  Raises:
    ParamError: not a list of non-empty strings, or there is no tokenizer to make text with. LimitError: more than 64.
  """
  if not isinstance(strings, (list, tuple)) or not all(isinstance(string, str) and string for string in strings):
    raise errors.ParamError(
        what='stop_strings', got=strings, expected='a list of non-empty strings', fix='pass token ids as stop_sequences')
  checks.integer('number of stop_strings', len(strings), low=0, high=MAX_STOPS)
  if strings and tokenizer is None:
    raise errors.ParamError(
        what='stop_strings', got=tuple(strings), expected='a pair with a tokenizer', fix='pass token ids as stop_sequences')
  return tuple(strings)


def find_string(text, strings):
  """Where `text` is to be cut: the start of the string that ends first, the longest of those; None without one."""
  ends = [(text.index(string) + len(string), text.index(string)) for string in strings if string in text]
  return min(ends)[1] if ends else None
