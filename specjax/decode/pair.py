"""What is decoded: a target, a drafter, their parameters, and the tokenizer they share."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, Literal, Protocol

from specjax.core import checks
from specjax.core import errors
from specjax.core import protocols

Family = Literal['decoder-only', 'encoder-decoder']


class Tokenizer(Protocol):
  """What `generate` asks of a tokenizer."""

  eos_id: int

  def encode(self, text: str) -> Sequence[int]:
    """The tokens of a text."""

  def decode(self, tokens: Sequence[int]) -> str:
    """The text of some tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """A target, a drafter and their parameters: what `generate` decodes. Any two models of one vocabulary make a pair.

  Attributes:
    target, drafter: the models.
    params: {'target': ..., 'drafter': ...} and, for learned rules and routers, 'rule' or 'router'; of each of `parts` too.
    parts: networks beside the two models by role, such as {'heads': DraftHeads(...)}; without arrays, as the models are.
    family: 'decoder-only', or 'encoder-decoder' where prompts are the encoder's input.
    tokenizer: of texts; None where prompts are token ids.
    name: for people.
    start_token: what the decoder of an encoder-decoder is given first.
    frame: the tokens of a question as the models were trained to read it; None is `tokenizer.encode`.
  """

  target: protocols.LanguageModel
  drafter: protocols.LanguageModel
  params: Mapping[str, Any]
  family: Family
  tokenizer: Tokenizer | None = None
  name: str = 'pair'
  start_token: int = 0
  frame: Callable[[str], Sequence[int]] | None = None
  parts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    checks.choice('family', self.family, ('decoder-only', 'encoder-decoder'), where='Pair')
    missing = [role for role in ('target', 'drafter') if role not in self.params]
    if missing:
      raise errors.ParamError(
          what='params', where='Pair', got=sorted(self.params), expected="the keys 'target' and 'drafter'")
    for role in self.parts:
      if role not in self.params:
        raise errors.ParamError(what='params', where='Pair', got=sorted(self.params), expected=f'the key {role!r} of its parts')
    checks.matching_vocabularies(self.drafter.vocab_size, self.target.vocab_size)
    checks.token_ids([self.start_token], self.target.vocab_size, what='start_token', where='Pair')

  def with_part(self, role: str, network: Any, params: Any) -> 'Pair':
    """This pair with one more part, or another one in its place."""
    return dataclasses.replace(
        self, parts={**self.parts, role: network}, params={**self.params, role: params})

  def encode_prompt(self, text: str) -> list[int]:
    """The tokens of a question, framed as in training."""
    if self.tokenizer is None:
      raise errors.PromptError(what='text prompt', got='str', expected='token ids', fix='this pair has no tokenizer')
    return list((self.frame or self.tokenizer.encode)(text))
