"""Translations: exact in both directions."""

from specjax.tasks import synthetic
from specjax.tasks.example import Draws
from specjax.tasks.translation import LEVELS, generate


class _Direction(Draws):
  """Draws with the direction chosen: the only coin thrown that is not a choice."""

  def __init__(self, address, to_german):
    super().__init__(address)
    self._to_german = to_german

  def below(self, bound):
    drawn = super().below(bound)
    return int(self._to_german) if bound == 2 else drawn

  def choice(self, sequence):
    return sequence[super().below(len(sequence))]


def test_directions_are_each_others_inverse():
  for level in LEVELS:
    for number in range(500):
      there = generate(_Direction(f'{level}/{number}', True), level)
      back = generate(_Direction(f'{level}/{number}', False), level)
      assert there[0] == f'translate to German: {back[1]}'
      assert back[0] == f'translate to English: {there[1]}'


def test_a_question_has_one_answer():
  answers = {}
  for example in synthetic.examples('train', 20_000, seed=5, domains=('translation',)):
    assert answers.setdefault(example.inputs, example.targets) == example.targets
