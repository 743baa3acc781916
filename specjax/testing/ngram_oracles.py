"""n-gram models by their definitions, in plain Python with dictionaries: slow, and sharing no code with what they check."""

import collections
import math


class KneserNey:
  """Interpolated modified Kneser-Ney smoothing, every probability computed from the counts when it is asked for.

  Arguments as of `specjax.training.ngram_counts.train`.
  """

  def __init__(self, sequences, *, order, vocab_size, start_token=None, prune=None, discount_fallback=None):
    self._order, self._vocab_size, self._start = order, vocab_size, start_token
    self._prune = prune or (0,) * order
    self._count = collections.Counter()
    self._before = collections.defaultdict(set)
    for sequence in sequences:
      for size in range(1, order + 1):
        for at in range(len(sequence) - size + 1):
          gram = tuple(sequence[at:at + size])
          self._count[gram] += 1
          self._before[gram].add(sequence[at - 1] if at else 'nothing')
    self._children = collections.defaultdict(set)
    for gram in self._count:
      self._children[gram[:-1]].add(gram[-1])
    self._discount = {size: self._discounts(size, discount_fallback) for size in range(1, order + 1)}

  def adjusted(self, gram):
    """The count that a probability is estimated from."""
    if gram == (self._start,):
      return 0
    if len(gram) == self._order or gram[0] == self._start:
      return self._count[gram]
    return len(self._before[gram])

  def _discounts(self, size, fallback):
    seen = collections.Counter(self.adjusted(gram) for gram in self._count if len(gram) == size)
    try:
      y = seen[1] / (seen[1] + 2 * seen[2])
      found = [k - (k + 1) * y * seen[k + 1] / seen[k] for k in (1, 2, 3)]
      if all(0 <= d <= k for k, d in zip((1, 2, 3), found)) and all(seen[k] for k in (1, 2, 3)):
        return found
    except ZeroDivisionError:
      pass
    assert fallback is not None
    return list(fallback)

  def _discounted(self, gram):
    a = self.adjusted(gram)
    return self._discount[len(gram)][min(a, 3) - 1] if a else 0.0

  def _is_kept(self, gram):
    return len(gram) == 1 or self._count[gram] > self._prune[len(gram) - 1]

  def prob(self, history, token):
    """P(token | history), the latest n - 1 tokens of which count."""
    if token == self._start:
      return 0.0
    history = tuple(history)[len(history) - min(len(history), self._order - 1):]
    if history and not self._children[history]:
      return self.prob(history[1:], token)
    grams = [history + (child,) for child in self._children[history]]
    total = sum(map(self.adjusted, grams))
    kept = [gram for gram in grams if self._is_kept(gram)]
    left = sum(map(self._discounted, kept)) + sum(self.adjusted(gram) for gram in grams if not self._is_kept(gram))
    shorter = self.prob(history[1:], token) if history else 1 / (self._vocab_size - (self._start is not None))
    gram = history + (token,)
    own = self.adjusted(gram) - self._discounted(gram) if gram in kept else 0.0
    return own / total + left / total * shorter


class Backoff:
  """A back-off model as dictionaries: {n-gram: log P} and {n-gram: back-off weight}, in nats."""

  def __init__(self, log_probs, backoffs, order):
    self._log_probs, self._backoffs, self._order = log_probs, backoffs, order

  def log_prob(self, history, token):
    """log P(token | history)."""
    history = tuple(history)[len(history) - min(len(history), self._order - 1):]
    if history + (token,) in self._log_probs:
      return self._log_probs[history + (token,)]
    return self._backoffs.get(history, 0.0) + self.log_prob(history[1:], token) if history else -math.inf
