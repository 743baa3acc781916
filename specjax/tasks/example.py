"""What a task example is, which split its text belongs to, and the number stream it is drawn from."""

import dataclasses
import hashlib

SPLITS = ('train', 'validation', 'test')
# In `Example.check`: the texts before which an answer ends, where a run cuts answers there.
ANSWER_ENDS = 'answer_ends'

_MASK = (1 << 64) - 1
_HELD_OUT_PERCENT = 4  # of all inputs, for validation and again for test


@dataclasses.dataclass(frozen=True)
class Example:
  """One question with a checkable answer.

  Attributes:
    id: unique within its data set, and stable.
    domain: which scorer judges it; 'local' for examples read from a file.
    level: graded difficulty, 1 is the easiest.
    inputs: the question.
    targets: a reference answer; other answers can be right too.
    check: what the domain's scorer needs beside the text, JSON-serialisable.
  """

  id: str
  domain: str
  level: int
  inputs: str
  targets: str
  check: dict


def split_of(inputs: str) -> str:
  """The split a question belongs to: a function of its text alone.

  No seed, index or domain enters, so no question can be in two splits, whatever sizes and seeds are asked for.

  Args:
    inputs: the question.

  Returns:
    'train' (92 % of questions), 'validation' or 'test' (4 % each).
  """
  digest = hashlib.blake2b(inputs.encode('utf-8', 'surrogatepass'), digest_size=4, person=b'specjax-split').digest()
  percent = int.from_bytes(digest, 'big') * 100 >> 32
  if percent < _HELD_OUT_PERCENT:
    return 'test'
  return 'validation' if percent < 2 * _HELD_OUT_PERCENT else 'train'


class Draws:
  """A stream of integers fixed by its address: SplitMix64 seeded by a hash.

  `random.Random` promises only `random()` across Python versions and costs 8 microseconds to seed; a task file must
  read the same for ever, and most streams are read a dozen times.
  """

  __slots__ = ('_state',)

  def __init__(self, address: str):
    self._state = int.from_bytes(hashlib.blake2b(address.encode(), digest_size=8).digest(), 'big')

  def below(self, bound: int) -> int:
    """An integer in [0, bound), bound below 2**32 (bias under 2**-32)."""
    self._state = state = (self._state + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return (state ^ (state >> 31)) * bound >> 64

  def between(self, low: int, high: int) -> int:
    """An integer in [low, high], both ends included."""
    return low + self.below(high - low + 1)

  def choice(self, sequence):
    """One element of a non-empty sequence."""
    return sequence[self.below(len(sequence))]

  def sample(self, sequence, count: int) -> list:
    """`count` distinct elements in random order."""
    pool = list(sequence)
    for position in range(count):
      other = position + self.below(len(pool) - position)
      pool[position], pool[other] = pool[other], pool[position]
    return pool[:count]
