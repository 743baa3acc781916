"""How a question is put to a model: as text that models are pre-trained on, or in the turns that a chat was tuned with.

Both say the same things: the tokens of a question, of what is asked next, of a prompt that goes on behind an answer, of
a reference that continues a question, and which tokens end an answer.
"""

from collections.abc import Sequence
import dataclasses
from typing import Literal

from specjax.tasks import chat_templates
from specjax.tasks import prompts
from specjax.tasks import tokenizers

Family = Literal['decoder-only', 'encoder-decoder']


@dataclasses.dataclass(frozen=True)
class Plain:
  """Prompts as in pre-training, see `prompts`."""

  tokenizer: tokenizers.Tokenizer
  family: Family

  name = 'none'
  num_marks = prompts.FOLLOW_UP_MARKS

  @property
  def eos_ids(self) -> tuple[int, ...]:
    """The tokens that end an answer."""
    return (self.tokenizer.eos_id,)

  def question(self, text: str) -> list[int]:
    """The prompt that asks for `text`; of an encoder-decoder the encoder's input."""
    return prompts.prompt_tokens(text, self.tokenizer, self.family)

  def turn(self, text: str) -> list[int]:
    """What is asked later, without the marks that `follow_up` puts around it."""
    return list(self.tokenizer.encode(text))

  def follow_up(self, prompt: Sequence[int], answer: Sequence[int], turn: Sequence[int]) -> list[int]:
    """The prompt of the next turn, at most `num_marks` tokens longer than the three together."""
    return prompts.follow_up(prompt, answer, turn, self.tokenizer, self.family)

  def reference(self, inputs: str, targets: str) -> tuple[list[int], str]:
    """(tokens of a reference behind the prompt of `inputs`, the text they stand for).

    A decoder without a separator reads prompt and reference as one text: the reference begins with a space, and its
    tokens are those that the whole text has behind the prompt's, where its tokenisation has that border.
    """
    is_one_text = self.family == 'decoder-only' and getattr(self.tokenizer, 'separator_id', None) is None
    if not is_one_text:
      return list(self.tokenizer.encode(targets)), targets
    head, whole = (list(self.tokenizer.encode(text)) for text in (inputs, f'{inputs} {targets}'))
    if whole[:len(head)] == head:
      return whole[len(head):], f' {targets}'
    return list(self.tokenizer.encode(f' {targets}')), f' {targets}'


@dataclasses.dataclass(frozen=True)
class Chat:
  """Prompts in the turns of a chat template, for decoders.

  Raises:
    VocabError: the vocabulary lacks a marker of the template.
  """

  tokenizer: tokenizers.Tokenizer
  template: chat_templates.ChatTemplate

  def __post_init__(self):
    self.template.eos_ids(self.tokenizer)

  @property
  def name(self) -> str:
    """The template's."""
    return self.template.name

  @property
  def eos_ids(self) -> tuple[int, ...]:
    """The tokens that end an answer."""
    return self.template.eos_ids(self.tokenizer)

  @property
  def num_marks(self) -> int:
    """Tokens between an answer and the turn behind it."""
    return len(self._end)

  @property
  def _end(self):
    return [self.eos_ids[-1], *self.tokenizer.encode('\n')]

  def question(self, text: str) -> list[int]:
    """The prompt that asks for `text` as a user.

    Raises:
      PromptError: the text holds a marker of the template.
    """
    return self.template.encode([chat_templates.Turn(chat_templates.USER, text)], self.tokenizer)

  def turn(self, text: str) -> list[int]:
    """A further turn of the user and the beginning of the model's."""
    return self.question(text)[1:]  # without bos

  def follow_up(self, prompt: Sequence[int], answer: Sequence[int], turn: Sequence[int]) -> list[int]:
    """The prompt of the next turn, at most `num_marks` tokens longer than the three together."""
    return [*prompt, *(token for token in answer if token not in self.eos_ids), *self._end, *turn]

  def reference(self, inputs: str, targets: str) -> tuple[list[int], str]:
    """(tokens of a reference as the model's turn, the text they stand for)."""
    del inputs
    return list(self.tokenizer.encode(targets)), targets


# What --chat_template can be, besides 'auto' and 'none'.
TEMPLATES = {'gemma': dataclasses.replace(chat_templates.TEMPLATES['gemma2'], name='gemma')}
CHOICES = ('auto', 'none', *TEMPLATES)


def make(name: str, *, tokenizer: tokenizers.Tokenizer, family: Family) -> Plain | Chat:
  """The framing called `name`: 'none', or a key of `TEMPLATES`."""
  return Plain(tokenizer, family) if name == 'none' else Chat(tokenizer, TEMPLATES[name])
