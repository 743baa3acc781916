"""Token sequences at which an answer is over, for the loop: what stands behind its end is not judged, so not written.

One end has many tokenisations and not all are found here. Where one is missed the row runs on to its EOS or limit, and
the judge cuts its text at the same place; where one is found the text holds the end, so the answer is the same. Except
for an answer that begins with white space that is its end: the judge would skip it, the loop has stopped there.
"""

from collections.abc import Sequence
import functools

from specjax.tasks import tokenizers

# What may stand in front of an end and melt into one token with it.
_CONTEXTS = ('x', '2', 'x.', 'x,', 'x"', "x'", 'x)', 'x!', 'x?', 'x:', 'x ', 'x\n', 'x.\n', 'x ```', 'x\n\n')
MOST = 32


@functools.lru_cache(maxsize=64)
def sequences(tokenizer: tokenizers.Tokenizer, ends: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
  """The shortest endings of tokenised texts that hold one of `ends`, at most `MOST`; none that cannot be written.

  Args:
    tokenizer: of the target.
    ends: texts.
  """
  found = {}
  for end in ends:
    for context in _CONTEXTS:
      tokens = list(tokenizer.encode(context + end))
      while len(tokens) > 1 and end in tokenizer.decode(tokens[1:]):
        tokens = tokens[1:]
      # A piece that also holds what stood before, such as 'x.\n', is an end of other answers too, but not the only one.
      if tokens and end in tokenizer.decode(tokens):
        found[tuple(tokens)] = None
  return tuple(found)[:MOST]


def longest(found: Sequence[Sequence[int]]) -> int:
  """Tokens of the longest sequence, 0 without one."""
  return max(map(len, found), default=0)
