"""Examples packed into rows of equal length for training, several to a row.

    segments    1    1    1    1    1    1    2    2    2    2    0
    positions   0    1    2    3    4    5    0    1    2    3    0
    tokens      bos  i    i    sep  t    t    bos  i    sep  t    pad    what the decoder reads
    targets     i    i    sep  t    t    eos  i    sep  t    eos  pad    what it predicts
    weights     0    0    0    1    1    1    0    0    1    1    0      1 on the answer and its eos

Attention stays inside a segment and positions restart with it, so a packed row trains like its examples one by one.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from specjax.core.errors import LimitError
from specjax.tasks.example import Example
from specjax.tasks.vocabulary import Tokenizer

_OPEN_ROWS = 16  # first-fit over these; the fullest is closed when none fits


class Piece(NamedTuple):
  """What a decoder reads in one go.

  Attributes:
    name: for errors.
    prompt: tokens that are given, at least one.
    answer: tokens that are to be predicted, at least one.
    is_text: whether the prompt is text to be learned like the answer; its first token is never predicted.
  """

  name: str
  prompt: Sequence[int]
  answer: Sequence[int]
  is_text: bool = False


def pack_decoder_only(examples: Sequence[Example], tokenizer: Tokenizer, length: int) -> dict[str, np.ndarray]:
  """Rows of `bos inputs separator targets`, predicted one token ahead; see the drawing above.

  Args:
    examples: in order; which row an example lands in depends on those before it only.
    tokenizer: of the model to be trained.
    length: tokens of a row.

  Returns:
    `tokens targets positions segments i32[N, length]` and `weights f32[N, length]`.

  Raises:
    LimitError: an example longer than a row.
  """
  inputs, targets = _encoded(examples, tokenizer)
  return pack_pieces(
      [Piece(example.id, [tokenizer.bos_id, *question, tokenizer.separator_id], [*answer, tokenizer.eos_id])
       for example, question, answer in zip(examples, inputs, targets, strict=True)],
      length=length, pad_id=tokenizer.pad_id)


def pack_pieces(pieces: Sequence[Piece], *, length: int, pad_id: int) -> dict[str, np.ndarray]:
  """As `pack_decoder_only`, of tokens.

  Raises:
    LimitError: a piece longer than a row.
  """
  for piece in pieces:
    _check_fits(piece.name, _length(piece), length)
  rows = _first_fit([(_length(piece),) for piece in pieces], (length,))
  packed = _empty(len(rows), length, ('tokens', 'targets', 'positions', 'segments'), pad_id)
  for row, members in enumerate(rows):
    offset = 0
    for segment, index in enumerate(members, start=1):
      piece = pieces[index]
      whole = [*piece.prompt, *piece.answer]
      num_unweighted = 0 if piece.is_text else len(piece.prompt) - 1
      offset = _place(packed, row, offset, segment, whole[:-1], whole[1:], num_unweighted)
  return packed


def _length(piece):
  """Tokens that the decoder reads: it never reads the last one."""
  return len(piece.prompt) + len(piece.answer) - 1


def pack_encoder_decoder(examples: Sequence[Example], tokenizer: Tokenizer, encoder_length: int,
                         decoder_length: int) -> dict[str, np.ndarray]:
  """Rows of `inputs eos` for the encoder and `pad targets` for the decoder, which predicts `targets eos`.

  Segment numbers agree on both sides: decoder segment 2 attends to encoder segment 2.

  Args:
    examples: in order; which row an example lands in depends on those before it only.
    tokenizer: of the model to be trained.
    encoder_length: tokens of an encoder row.
    decoder_length: tokens of a decoder row.

  Returns:
    As `pack_decoder_only` with `[N, decoder_length]`, and `encoder_tokens encoder_positions encoder_segments
    i32[N, encoder_length]`.

  Raises:
    LimitError: an example longer than a row.
  """
  inputs, targets = _encoded(examples, tokenizer)
  inputs = [[*question, tokenizer.eos_id] for question in inputs]
  targets = [[*answer, tokenizer.eos_id] for answer in targets]
  for example, question, answer in zip(examples, inputs, targets, strict=True):
    _check_fits(example.id, len(question), encoder_length)
    _check_fits(example.id, len(answer), decoder_length)
  rows = _first_fit([(len(q), len(a)) for q, a in zip(inputs, targets, strict=True)], (encoder_length, decoder_length))
  packed = _empty(len(rows), decoder_length, ('tokens', 'targets', 'positions', 'segments'), tokenizer.pad_id)
  encoder = _empty(len(rows), encoder_length, ('tokens', 'positions', 'segments'), tokenizer.pad_id)
  for row, members in enumerate(rows):
    offset = encoder_offset = 0
    for segment, index in enumerate(members, start=1):
      answer, question = targets[index], inputs[index]
      offset = _place(packed, row, offset, segment, [tokenizer.pad_id, *answer[:-1]], answer, 0)
      encoder_offset = _place(encoder, row, encoder_offset, segment, question)
  return packed | {f'encoder_{name}': encoder[name] for name in ('tokens', 'positions', 'segments')}


def _encoded(examples: Iterable[Example], tokenizer: Tokenizer) -> tuple[list, list]:
  return (tokenizer.encode_many([example.inputs for example in examples]),
          tokenizer.encode_many([example.targets for example in examples]))


def _check_fits(name: str, needed: int, length: int) -> None:
  if needed > length:
    raise LimitError(f'example {name}: {needed} tokens do not fit a row of {length}', what='example length',
                     where=name, got=needed, expected=f'<= {length}', fix='pack into longer rows')


def _first_fit(sizes: Sequence[tuple[int, ...]], capacities: tuple[int, ...]) -> list[list[int]]:
  """Which items share a row: the first open row with room for all the item's sizes."""
  rows, open_rows = [], []  # an open row: (its members, what is left of each capacity)
  for index, size in enumerate(sizes):
    for members, left in open_rows:
      if all(need <= room for need, room in zip(size, left, strict=True)):
        break
    else:
      if len(open_rows) == _OPEN_ROWS:
        open_rows.remove(min(open_rows, key=lambda open_row: min(open_row[1])))
      members, left = [], list(capacities)
      rows.append(members)
      open_rows.append((members, left))
    members.append(index)
    for axis, need in enumerate(size):
      left[axis] -= need
  return rows


def _empty(num_rows: int, length: int, names: Sequence[str], pad_id: int) -> dict[str, np.ndarray]:
  packed = {name: np.full((num_rows, length), pad_id if name in ('tokens', 'targets') else 0, np.int32)
            for name in names}
  if 'targets' in names:
    packed['weights'] = np.zeros((num_rows, length), np.float32)
  return packed


def _place(packed: dict, row: int, offset: int, segment: int, tokens, targets=None, num_unweighted: int = 0) -> int:
  """Writes one segment and returns the offset after it."""
  end = offset + len(tokens)
  packed['tokens'][row, offset:end] = tokens
  packed['positions'][row, offset:end] = np.arange(end - offset)
  packed['segments'][row, offset:end] = segment
  if targets is not None:
    packed['targets'][row, offset:end] = targets
    packed['weights'][row, offset + num_unweighted:end] = 1.0
  return end
