"""The tokenizer that all synthetic-task models share, and how its file is made.

A SentencePiece unigram model over the text as it is (no normalisation), digits one by one, bytes for what it has
never seen. `python -m specjax.tasks.vocabulary --output synthetic.model` writes the same bytes as the file in `data/`.
"""

import argparse
import dataclasses
import functools
import hashlib
import importlib.resources
import io
import pathlib
import re
from collections.abc import Sequence

import sentencepiece

from specjax.core import errors

PAD_ID, EOS_ID, BOS_ID, UNK_ID = 0, 1, 2, 3
SEPARATOR = ' =>'  # between a question and its answer in one sequence; always one token

_VOCAB_SIZE = 896
_MAX_PIECE_LENGTH = 12  # characters: most words, but not a whole German number
_NUM_TRAINING_EXAMPLES = 60_000
_WORD = re.compile(r'[^\W\d_]+')


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A SentencePiece model; two are equal when their files are.

  Attributes:
    sha256: of the model file, in hexadecimal.
  """

  sha256: str
  _processor: sentencepiece.SentencePieceProcessor = dataclasses.field(repr=False, compare=False)

  @classmethod
  def from_bytes(cls, model: bytes) -> 'Tokenizer':
    """The tokenizer of a serialised SentencePiece model."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return cls(sha256=hashlib.sha256(model).hexdigest(), _processor=processor)

  @property
  def vocab_size(self) -> int:
    return self._processor.vocab_size()

  @property
  def pad_id(self) -> int:
    return self._processor.pad_id()

  @property
  def eos_id(self) -> int:
    return self._processor.eos_id()

  @property
  def bos_id(self) -> int:
    return self._processor.bos_id()

  @property
  def unk_id(self) -> int:
    return self._processor.unk_id()

  @functools.cached_property
  def separator_id(self) -> int | None:
    """The token of `SEPARATOR`; None in other vocabularies."""
    token = self._processor.piece_to_id(SEPARATOR.replace(' ', '▁'))
    return None if token == self.unk_id else token

  def encode(self, text: str) -> list[int]:
    """The tokens of a text, without bos or eos."""
    return self._processor.encode(text)

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text; one call costs a third of many."""
    return self._processor.encode(list(texts), num_threads=1)

  def decode(self, tokens: Sequence[int]) -> str:
    """The text of some tokens; pad, bos and eos have none."""
    return self._processor.decode([int(token) for token in tokens])

  def piece(self, token: int) -> str:
    """How the vocabulary writes a token, for printing."""
    return self._processor.id_to_piece(int(token))

  def token_of(self, piece: str) -> int | None:
    """The token that is written like this, or None."""
    token = self._processor.piece_to_id(piece)  # the unknown token where there is none
    return token if self.piece(token) == piece else None


@functools.cache
def load_builtin_tokenizer() -> Tokenizer:
  """The tokenizer in the package, trained on the train split of the synthetic tasks."""
  return Tokenizer.from_bytes(importlib.resources.files('specjax.tasks').joinpath('data/synthetic.model').read_bytes())


def train_model(texts: Sequence[str], *, vocab_size: int, symbols: Sequence[str] = ()) -> bytes:
  """A serialised SentencePiece model; the same texts in the same order give the same bytes.

  Args:
    texts: what the pieces are counted on.
    vocab_size: special tokens, the separator, `symbols` and 256 bytes included.
    symbols: further texts that are always a token of their own.

  Raises:
    VocabError: there are not so many pieces in the texts, or too few for their characters.
  """
  # Pieces are sought among substrings of two different space-separated words: a word always written alone would never
  # become one. The added lines write every word twice; their counts are negligible.
  words = sorted({word for text in texts for word in _WORD.findall(text)})
  texts = [*texts, *[f'{word} {word}.' for word in words]]
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type='unigram', vocab_size=vocab_size,
        byte_fallback=True, split_digits=True, add_dummy_prefix=True, remove_extra_whitespaces=False,
        normalization_rule_name='identity', character_coverage=1.0,
        user_defined_symbols=[SEPARATOR.replace(' ', '▁'), *symbols],
        pad_id=PAD_ID, eos_id=EOS_ID, bos_id=BOS_ID, unk_id=UNK_ID, num_threads=1, shuffle_input_sentence=False,
        input_sentence_size=0, hard_vocab_limit=True,
        max_sentencepiece_length=_MAX_PIECE_LENGTH, minloglevel=1)
  except RuntimeError as error:  # "Vocabulary size too high (4096). Please set it to a value <= 812."
    raise errors.VocabError(
        what='vocab_size', where='SentencePiece', got=vocab_size, expected=' '.join(str(error).split())[-200:].rstrip('.'),
        fix='choose another size, or train on more text') from error
  return model.getvalue()


def main() -> None:
  """Writes the file that --output names."""
  parser = argparse.ArgumentParser(description='Write the tokenizer of the synthetic tasks.')
  parser.add_argument('--output', type=pathlib.Path, required=True)
  arguments = parser.parse_args()
  # Imported here: the tokenizer does not depend on the tasks, only its training does.
  from specjax.tasks import synthetic
  texts = [text for example in synthetic.examples('train', _NUM_TRAINING_EXAMPLES)
           for text in (example.inputs, example.targets)]
  arguments.output.write_bytes(train_model(texts, vocab_size=_VOCAB_SIZE))


if __name__ == '__main__':
  main()
