"""Tokenizers of checkpoints: SentencePiece models and tokenizer.json, behind one protocol.

A tokenizer file is data. From the files beside it only names and numbers are taken, never templates or class names.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Protocol

from specjax.core import errors
from specjax.tasks import vocabulary

_MAX_FILE_BYTES = 1 << 28
_MAX_CONFIG_BYTES = 1 << 24
_T5_EXTRA_IDS = 100
_NAMES = ('tokenizer.json', 'tokenizer.model', 'spiece.model')
_SENTINEL = re.compile(r'(<extra_id_\d{1,3}>)')
# Names in use, most specific first; a tokenizer_config.json overrides them.
_ROLE_NAMES = {
    'bos': ('<bos>', '<s>', '<|begin_of_text|>'), 'eos': ('<eos>', '</s>', '<|end_of_text|>', '<|endoftext|>'),
    'pad': ('<pad>',), 'unk': ('<unk>',)}


class Tokenizer(Protocol):
  """Texts to token ids and back. An id of a role that the vocabulary does not have is -1."""

  vocab_size: int
  bos_id: int
  eos_id: int
  pad_id: int
  unk_id: int
  sha256: str

  def encode(self, text: str) -> list[int]:
    """The tokens of a text, without bos or eos; no text becomes one of them."""

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text."""

  def decode(self, tokens: Sequence[int]) -> str:
    """The text of some tokens; pad, bos and eos have none."""

  def piece(self, token: int) -> str:
    """How the vocabulary writes a token."""

  def token_of(self, piece: str) -> int | None:
    """The token that is written like this, or None."""


@dataclasses.dataclass(frozen=True)
class JsonTokenizer:
  """A tokenizer.json of the package `tokenizers`; two are equal when their files and roles are.

  Attributes:
    sha256: of the file, in hexadecimal.
    bos_id, eos_id, pad_id, unk_id: -1 where there is none.
  """

  sha256: str
  bos_id: int
  eos_id: int
  pad_id: int
  unk_id: int
  _tokenizer: Any = dataclasses.field(repr=False, compare=False)

  @classmethod
  def from_bytes(cls, content: bytes, *, names: dict[str, str] | None = None, where: str = 'tokenizer.json') -> 'JsonTokenizer':
    """The tokenizer of the content of a tokenizer.json; `names` are pieces by role ('bos', 'eos', 'pad', 'unk')."""
    import tokenizers  # Only checkpoints with such a file need it.

    try:
      tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # The package raises a bare Exception.
      raise errors.VocabError(what='tokenizer.json', where=where, got=str(error)[:500]) from error
    tokenizer.encode_special_tokens = True  # '</s>' in a prompt is text.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    roles = {}
    for role, usual in _ROLE_NAMES.items():
      given = (names or {}).get(role)
      found = [tokenizer.token_to_id(name) for name in ((given,) if given else usual)]
      roles[f'{role}_id'] = next((token for token in found if token is not None), -1)
      if given and roles[f'{role}_id'] < 0:
        raise errors.VocabError(what=f'{role} token', where=where, got=given, expected='a token of the vocabulary')
    return cls(sha256=hashlib.sha256(content).hexdigest(), _tokenizer=tokenizer, **roles)

  @functools.cached_property
  def vocab_size(self) -> int:
    """One more than the largest id."""
    return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

  @functools.cached_property
  def _special(self):
    """What matches the special tokens written out, T5's sentinels apart; None if there are none."""
    added = self._tokenizer.get_added_tokens_decoder()
    pieces = {token.content for token in added.values() if token.special}
    pieces |= {self.piece(token) for token in (self.bos_id, self.eos_id, self.pad_id, self.unk_id) if token >= 0}
    pieces = sorted(piece for piece in pieces if piece and not _SENTINEL.fullmatch(piece))
    return re.compile(f'({"|".join(map(re.escape, pieces))})') if pieces else None

  def encode(self, text: str) -> list[int]:
    """The tokens of a text. T5's sentinels are recognised, no other special token is."""
    tokens = []
    for part in _SENTINEL.split(text):
      sentinel = self._tokenizer.token_to_id(part) if _SENTINEL.fullmatch(part) else None
      if sentinel is not None:
        tokens.append(sentinel)
      elif self._special is None or not self._special.search(part):
        tokens.extend(self._plain(part))
      else:
        # A unigram vocabulary holds '</s>' as a piece like any other, and would find it: it is cut in two.
        for piece in self._special.split(part):
          for cut in (piece[:1], piece[1:]) if self._special.fullmatch(piece) else (piece,):
            tokens.extend(self._plain(cut))
    return tokens

  def _plain(self, text):
    return self._tokenizer.encode(text, add_special_tokens=False).ids if text else []

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text."""
    return [self.encode(text) for text in texts]

  def decode(self, tokens: Sequence[int]) -> str:
    """The text of some tokens; pad, bos and eos have none."""
    silent = {self.pad_id, self.bos_id, self.eos_id}
    kept = [int(token) for token in tokens if int(token) not in silent]
    return self._tokenizer.decode(kept, skip_special_tokens=False)

  def piece(self, token: int) -> str:
    """How the vocabulary writes a token; '' of an id without one."""
    return self._tokenizer.id_to_token(int(token)) or ''

  def token_of(self, piece: str) -> int | None:
    """The token that is written like this, or None."""
    return self._tokenizer.token_to_id(piece)


def load(path: str | os.PathLike, *, extra_ids: int | None = None) -> Tokenizer:
  """The tokenizer in a file or in the folder of a checkpoint.

  Args:
    path: a SentencePiece model (*.model), a tokenizer.json, or a folder with tokenizer.json, tokenizer.model or
      spiece.model, the first of them. tokenizer_config.json beside the file may name bos, eos, pad and unk.
    extra_ids: sentinels <extra_id_0>, ... to append to a SentencePiece model, the first one with the largest id, as T5 does
      it. None takes the number from tokenizer_config.json, and T5's 100 for a file called spiece.model.

  Raises:
    VocabError: no such file, or one that is no tokenizer.
  """
  path = _tokenizer_file(pathlib.Path(path))
  config = _config_beside(path)
  content = _content(path, _MAX_FILE_BYTES)
  if path.suffix == '.json':
    return JsonTokenizer.from_bytes(content, names=_role_names(config, path.parent), where=str(path))
  if extra_ids is None:
    extra_ids = config.get('extra_ids', _T5_EXTRA_IDS if path.name == 'spiece.model' else 0)
  return from_sentencepiece(content, extra_ids=extra_ids, where=str(path))


def files(path: str | os.PathLike) -> dict[str, pathlib.Path]:
  """What `load` reads at `path`, by the names under which it finds them beside a checkpoint.

  Raises:
    VocabError: no such file.
  """
  path = _tokenizer_file(pathlib.Path(path))
  name = path.name if path.name in _NAMES else f'tokenizer{path.suffix}'
  config = path.parent / 'tokenizer_config.json'
  return {name: path} | ({config.name: config} if config.is_file() else {})


def chat_template(folder: str | os.PathLike) -> str | None:
  """The source of the template program that comes with a tokenizer, to be looked at and never run; None without one."""
  folder = pathlib.Path(folder)
  program = folder / 'chat_template.jinja'
  if program.is_file():
    return _content(program, _MAX_CONFIG_BYTES).decode('utf-8', 'replace')
  found = _json_file(folder / 'chat_template.json').get('chat_template')
  found = found or _json_file(folder / 'tokenizer_config.json').get('chat_template')
  if isinstance(found, list):  # Several, with names.
    found = '\n'.join(str(one.get('template')) for one in found if isinstance(one, dict))
  return found if isinstance(found, str) and found else None


def from_sentencepiece(content: bytes, *, extra_ids: int = 0, where: str = 'SentencePiece model') -> vocabulary.Tokenizer:
  """The tokenizer of a serialised SentencePiece model with `extra_ids` sentinels behind its pieces."""
  if isinstance(extra_ids, bool) or not isinstance(extra_ids, int) or not 0 <= extra_ids <= 1000:
    raise errors.VocabError(what='extra_ids', where=where, got=extra_ids, expected='a number from 0 to 1000')
  try:
    tokenizer = vocabulary.Tokenizer.from_bytes(content)
    if extra_ids and tokenizer.token_of('▁<extra_id_0>') is None:
      # A serialised message may be continued: fields that repeat are appended.
      tokenizer = vocabulary.Tokenizer.from_bytes(
          content + b''.join(_symbol(f'▁<extra_id_{i}>') for i in reversed(range(extra_ids))))
    if tokenizer.vocab_size < 1:
      raise ValueError('no pieces')
  except Exception as error:  # The package raises RuntimeError, OSError and others for bytes that are no model.
    raise errors.VocabError(what='SentencePiece model', where=where, got=str(error)[:500]) from error
  return tokenizer


def _symbol(piece):
  """A user-defined piece with score 0, as field 1 of a serialised model."""
  text, user_defined = piece.encode(), 4
  body = bytes([0x0A, len(text)]) + text + bytes([0x15, 0, 0, 0, 0]) + bytes([0x18, user_defined])
  return bytes([0x0A, len(body)]) + body


def _tokenizer_file(path):
  if path.is_dir():
    for name in _NAMES:
      if (path / name).is_file():
        return path / name
  if path.is_file() and path.suffix in ('.json', '.model'):
    return path
  raise errors.VocabError(
      what='tokenizer', where=str(path), got='no such file' if not path.exists() else 'nothing that is one',
      expected='a .model or tokenizer.json, or a folder with one')


def _content(path, limit):
  if path.stat().st_size > limit:
    raise errors.VocabError(what='size', where=str(path), got=path.stat().st_size, expected=f'at most {limit} bytes')
  return path.read_bytes()


def _config_beside(path):
  """The tokenizer_config.json in the folder of a tokenizer, {} without one."""
  return _json_file(path.parent / 'tokenizer_config.json')


def _json_file(path):
  """The object in a JSON file, {} without one."""
  if not path.is_file():
    return {}
  try:
    found = json.loads(_content(path, _MAX_CONFIG_BYTES))
  except (ValueError, RecursionError) as error:
    raise errors.VocabError(what=path.name, where=str(path), got=str(error)[:500]) from error
  if not isinstance(found, dict):
    raise errors.VocabError(what=path.name, where=str(path), got=type(found).__name__, expected='a dict')
  return found


def _role_names(config, folder):
  """Pieces by role, of the roles that a tokenizer_config.json names; a name is a string or {'content': string}."""
  names = {}
  for role in _ROLE_NAMES:
    value = config.get(f'{role}_token')
    value = value.get('content') if isinstance(value, dict) else value
    if value is not None and not isinstance(value, str):
      raise errors.VocabError(
          what=f'{role}_token', where=str(folder / 'tokenizer_config.json'), got=repr(value)[:200], expected='a string')
    if value:
      names[role] = value
  return names
