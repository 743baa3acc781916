"""How instruction-tuned Gemmas were told who speaks: role markers as data, never a template program from a file.

Source: Gemma Team 2024, arXiv:2403.08295, section 5 and Table 3; arXiv:2408.00118, Table 4; Gemma 3, arXiv:2503.19786.
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

from specjax.core import errors
from specjax.tasks import tokenizers

SYSTEM, USER, MODEL = 'system', 'user', 'model'
_ALIASES = {'assistant': MODEL}


class Turn(NamedTuple):
  """One message: `role` is 'system' (the first only), 'user' or 'model' ('assistant' is the same)."""

  role: str
  content: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
  """The markers around turns.

  Attributes:
    name: for errors.
    bos: what a conversation begins with.
    start, end: what a turn begins and ends with; each is one token. A line break follows the role and the end.
    system_separator: between system text and the first user turn that it is put in front of; there is no system role.
  """

  name: str
  bos: str = '<bos>'
  start: str = '<start_of_turn>'
  end: str = '<end_of_turn>'
  system_separator: str = '\n\n'

  @property
  def markers(self) -> tuple[str, ...]:
    """What no content may hold: it would forge a turn."""
    return self.bos, '<eos>', self.start, self.end

  def parts(self, turns: Sequence[Turn]) -> list[str]:
    """The prompt of the model's next turn, cut at its markers: each is one part, and so is the text between two.

    Args:
      turns: [system,] user, model, user, ..., user. Contents are stripped of surrounding white space.

    Raises:
      PromptError: turns in another order, an empty one, or one that holds a marker.
    """
    parts = [self.bos]
    for role, content in self._checked(turns):
      parts += [self.start, f'{role}\n{content}', self.end, '\n']
    return [*parts, self.start, f'{MODEL}\n']

  def render(self, turns: Sequence[Turn]) -> str:
    """The prompt of the model's next turn as one text, markers written out; for people and logs."""
    return ''.join(self.parts(turns))

  def encode(self, turns: Sequence[Turn], tokenizer: tokenizers.Tokenizer) -> list[int]:
    """The tokens of the prompt of the model's next turn. Markers are placed as tokens and never read out of text."""
    markers = {marker: self._token(marker, tokenizer) for marker in (self.bos, self.start, self.end)}
    tokens = []
    for part in self.parts(turns):
      tokens += [markers[part]] if part in markers else tokenizer.encode(part)
    return tokens

  def eos_ids(self, tokenizer: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The tokens that end an answer: the end of a turn, and the tokenizer's EOS. Pass them to `generate`."""
    ends = (tokenizer.eos_id, self._token(self.end, tokenizer))
    return tuple(dict.fromkeys(token for token in ends if token >= 0))

  def _token(self, marker, tokenizer):
    token = tokenizer.bos_id if marker == self.bos and tokenizer.bos_id >= 0 else tokenizer.token_of(marker)
    if token is None:
      raise errors.VocabError(
          what=f'marker of {self.name}', got=marker, expected='a token of the vocabulary',
          fix='this tokenizer is not that of an instruction-tuned Gemma')
    return token

  def _checked(self, turns):
    """(role, content) of each turn, with the system's text in the first user turn."""
    found = []
    for index, (role, content) in enumerate(turns):
      role = _ALIASES.get(role, role)
      where = f'{self.name}, turn {index}'
      content = content.strip() if isinstance(content, str) else ''
      if not content:
        raise errors.PromptError(what='turn', where=where, got='no text', expected='some')
      forged = [marker for marker in self.markers if marker in content]
      if forged:
        raise errors.PromptError(
            what='turn', where=where, got=f'{forged[0]} in its text', expected='text without markers of the conversation')
      found.append((role, content))
    if len(found) > 1 and found[0][0] == SYSTEM and found[1][0] == USER:
      found[:2] = [(USER, found[0][1] + self.system_separator + found[1][1])]
    roles = [role for role, _ in found]
    if not found or roles != [(USER, MODEL)[index % 2] for index in range(len(found))] or roles[-1] != USER:
      raise errors.PromptError(
          what='turns', where=self.name, got=[role for role, *_ in turns],
          expected='[system,] user, model, user, ..., the last by the user')
    return found


TEMPLATES = {name: ChatTemplate(name=name) for name in ('gemma1', 'gemma2', 'gemma3')}
