"""An example as the tokens that a model reads and is asked for.

    decoder only      bos inputs separator | targets eos      the prompt ends before the bar
    encoder-decoder   encoder: inputs eos    decoder: pad | targets eos

A conversation goes on behind the model's own answer, token for token as it was generated:

    decoder only      bos turn separator answer eos turn separator |
    encoder-decoder   encoder: turn answer turn eos    decoder: pad |
"""

from collections.abc import Sequence
import itertools
from typing import Literal

from specjax.tasks.example import Example
from specjax.tasks.vocabulary import Tokenizer

FOLLOW_UP_MARKS = 2


def prompt_tokens(text: str, tokenizer: Tokenizer, family: Literal['decoder-only', 'encoder-decoder']) -> list[int]:
  """A question as a model of the family reads it; other vocabularies than the built-in one may lack bos and separator."""
  tokens = tokenizer.encode(text)
  if family == 'decoder-only':
    return [*([tokenizer.bos_id] if tokenizer.bos_id >= 0 else []), *tokens, *_separator(tokenizer)]
  return [*tokens, tokenizer.eos_id]


def _separator(tokenizer):
  token = getattr(tokenizer, 'separator_id', None)
  return [] if token is None else [token]


def follow_up(prompt: Sequence[int], answer: Sequence[int], turn: Sequence[int], tokenizer: Tokenizer,
              family: Literal['decoder-only', 'encoder-decoder']) -> list[int]:
  """The prompt of the next turn.

  Args:
    prompt: of the turn before.
    answer: what was generated, perhaps with its eos.
    turn: what is asked next, as `tokenizer.encode` gives it.
    tokenizer, family: of the model.

  Returns:
    At most `FOLLOW_UP_MARKS` tokens more than the three together.
  """
  answer = [token for token in answer if token != tokenizer.eos_id]
  if family == 'decoder-only':
    return [*prompt, *answer, tokenizer.eos_id, *turn, *_separator(tokenizer)]
  return [*(token for token in prompt if token != tokenizer.eos_id), *answer, *turn, tokenizer.eos_id]


def decoder_only_prompt(example: Example, tokenizer: Tokenizer) -> list[int]:
  """What a decoder-only model is given before it answers: `bos inputs separator`."""
  return prompt_tokens(example.inputs, tokenizer, 'decoder-only')


def encoder_tokens(example: Example, tokenizer: Tokenizer) -> list[int]:
  """What the encoder of an encoder-decoder is given: `inputs eos`."""
  return prompt_tokens(example.inputs, tokenizer, 'encoder-decoder')


def decoder_start(tokenizer: Tokenizer) -> list[int]:
  """What the decoder of an encoder-decoder is given before it answers: the pad token, as in T5."""
  return [tokenizer.pad_id]


def target_tokens(example: Example, tokenizer: Tokenizer) -> list[int]:
  """The reference answer: `targets eos`."""
  return [*tokenizer.encode(example.targets), tokenizer.eos_id]


def answer_text(tokens, tokenizer: Tokenizer, *, eos_ids: Sequence[int] | None = None) -> str:
  """The text of generated tokens up to the first of `eos_ids` (None: the tokenizer's eos), for a scorer."""
  ends = (tokenizer.eos_id,) if eos_ids is None else eos_ids
  tokens = [int(token) for token in tokens]
  return tokenizer.decode(list(itertools.takewhile(lambda token: token not in ends, tokens)))
