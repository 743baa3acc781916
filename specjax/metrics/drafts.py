"""What drafts are made of: repetition, the entropy of heads, the best that top-k drafts could do, wins, and work per token.

Everything is read off a text that is known: the target's own greedy answer of n tokens. A round that begins behind t of them
drafts for tokens t, t + 1, ...; what agrees with the text, from the first draft on, is accepted, and the target adds a token.
Pure numpy on the host.

Source: Kim et al. 2024 (Exploring and Improving Drafts in Blockwise Parallel Decoding).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


def repetitions(tokens, lengths):
  """(neighbours that are equal, neighbours) summed over drafts; their ratio is the consecutive repetition.

  Args:
    tokens: int[N, K] drafts.
    lengths: int[N], how many tokens each has.
  """
  tokens, lengths = np.asarray(tokens), np.asarray(lengths)
  is_pair = np.arange(1, tokens.shape[1])[None, :] < lengths[:, None]
  return int(np.sum((tokens[:, 1:] == tokens[:, :-1]) & is_pair)), int(np.sum(is_pair))


def longest_runs(tokens, lengths):
  """int[N], the longest run of one token in each draft; 1 where no neighbours are equal, 0 of an empty draft."""
  tokens, lengths = np.asarray(tokens), np.asarray(lengths)
  run = longest = (lengths > 0).astype(np.int64)
  for place in range(1, tokens.shape[1]):
    goes_on = (tokens[:, place] == tokens[:, place - 1]) & (place < lengths)
    run = np.where(goes_on, run + 1, 1)
    longest = np.where(place < lengths, np.maximum(longest, run), longest)
  return longest


def last_rising_head(mean_entropies: Sequence[float]) -> int:
  """h_max: the largest number of heads, from the first, over which the mean entropy does not fall from one to the next.

  Args:
    mean_entropies: by head; the first is the target's own.
  """
  rises = np.diff(np.asarray(mean_entropies, np.float64)) >= 0
  return int(np.argmin(np.append(rises, False))) + 1


def leading_hits(ranks, k):
  """int[T], how many heads from the first have the token of the text among their k most probable, at each place.

  Args:
    ranks: int[T, H], the rank, from 0, of the text's token in each head's law.
    k: how many tokens of each head count.
  """
  return np.cumprod(np.asarray(ranks) < k, axis=1).sum(axis=1)


def agreeing(tokens, lengths, text):
  """int[n], how many tokens of the draft at each place agree with the text, from the first on.

  Args:
    tokens, lengths: int[n, K], int[n], the draft behind t tokens of the text at index t.
    text: int[n].
  """
  tokens, text = np.asarray(tokens), np.asarray(text)
  place = np.arange(len(text))[:, None] + np.arange(tokens.shape[1])[None, :]
  is_inside = (place < len(text)) & (np.arange(tokens.shape[1])[None, :] < np.asarray(lengths)[:, None])
  agrees = is_inside & (tokens == text[np.minimum(place, len(text) - 1)])
  return np.cumprod(agrees, axis=1).sum(axis=1)


def round_starts(accepted) -> list[int]:
  """The places at which rounds begin when a round at t accepts `accepted[t]` tokens and the target adds one."""
  starts, place = [], 0
  while place < len(accepted):
    starts.append(place)
    place += int(accepted[place]) + 1
  return starts


def block_efficiency(texts: Iterable) -> float | None:
  """Tokens per call of the target over some texts, each given by its `accepted` int[n]; the prefill is no call."""
  texts = [np.asarray(accepted) for accepted in texts]
  rounds = sum(len(round_starts(accepted)) for accepted in texts)
  return sum(map(len, texts)) / rounds if rounds else None


def oracle_block_efficiency(texts: Iterable, largest: int) -> list[float | None]:
  """For k = 1 .. `largest`: the block efficiency if of each head's k most probable tokens the right one were always drafted.

  Args:
    texts: int[n, H] per text, the `ranks` of `leading_hits`; k = 1 is what the heads do.
    largest: the last k.
  """
  texts = list(texts)
  return [block_efficiency(leading_hits(ranks, k) for ranks in texts) for k in range(1, largest + 1)]


class Wins(NamedTuple):
  """At how many places the first method's accepted prefix is longer than, as long as, shorter than the second's.

  `by_length[i][j]`: places at which the first accepts i tokens and the second j.
  """

  wins: int
  ties: int
  losses: int
  by_length: list[list[int]]


def wins(first, second) -> Wins:
  """`Wins` of two methods at the same places of the same texts; `first` and `second` int[n], accepted tokens."""
  first, second = np.asarray(first, np.int64), np.asarray(second, np.int64)
  size = int(max(first.max(initial=0), second.max(initial=0))) + 1
  table = np.zeros((size, size), np.int64)
  np.add.at(table, (first, second), 1)
  return Wins(int(np.tril(table, -1).sum()), int(np.trace(table)), int(np.triu(table, 1).sum()), table.tolist())


def fails_by_repeating(tokens, lengths, accepted):
  """bool[n], whether the first token of each draft that does not agree repeats the draft token in front of it.

  Args:
    tokens, lengths: int[n, K], int[n] as of `agreeing`.
    accepted: int[n], what `agreeing` found.
  """
  tokens, lengths, accepted = np.asarray(tokens), np.asarray(lengths), np.asarray(accepted)
  row, last = np.arange(len(accepted)), tokens.shape[1] - 1
  repeats = tokens[row, np.minimum(accepted, last)] == tokens[row, np.maximum(accepted - 1, 0)]
  return repeats & (accepted >= 1) & (accepted < lengths)


class ModelWork(NamedTuple):
  """What a pass of a network reads and computes.

  Attributes:
    parameter_bytes: read once per pass.
    flops: per token fed, without attention over the cache.
    full_bytes, window_bytes: of the cache per token it holds, in layers that see everything and in those with a window.
    window: tokens that the latter see.
    attention_flops: per token fed and token in the cache: over the layers that see everything, and over those with a window.
  """

  parameter_bytes: float
  flops: float
  full_bytes: float = 0.0
  window_bytes: float = 0.0
  window: int = 0
  attention_flops: tuple[float, float] = (0.0, 0.0)

  def cache_bytes(self, length):
    """Bytes of the cache that a pass over `length` tokens reads."""
    return self.full_bytes * length + self.window_bytes * min(length, self.window)

  def pass_flops(self, length, width):
    """Operations of a pass that is fed `width` tokens behind `length`."""
    full, windowed = self.attention_flops
    return width * (self.flops + full * length + windowed * min(length, self.window))


class Pass(NamedTuple):
  """A pass of a round: of which network, how often per round, how many tokens it is fed."""

  work: ModelWork
  count: float
  width: float


class Work(NamedTuple):
  """Per generated token: bytes of parameters and of caches that are read, and operations."""

  parameter_bytes: float
  cache_bytes: float
  flops: float


def work_per_token(passes: Sequence[Pass], *, block_efficiency: float, length: int) -> Work:
  """The `Work` of a method at a context length.

  Args:
    passes: of one round.
    block_efficiency: tokens a round gives; one call of the target per round.
    length: tokens in the cache.
  """
  share = lambda amounts: float(sum(amounts)) / block_efficiency
  return Work(
      share(one.count * one.work.parameter_bytes for one in passes),
      share(one.count * one.work.cache_bytes(length) for one in passes),
      share(one.count * one.work.pass_flops(length, one.width) for one in passes))
