"""Two models and their tokenizers as one pair: the same pieces, or the pieces that both have."""

from collections.abc import Mapping
import re
from typing import Any, Literal, NamedTuple

from absl import logging
import numpy as np

from specjax.core import checks
from specjax.core import errors
from specjax.core import protocols
from specjax.decode import pair as pairs
from specjax.models import vocabularies
from specjax.tasks import tokenizers

_LISTED = 5
_ROLES = ('pad', 'bos', 'eos', 'unk')
_SENTINEL = re.compile(r'▁?(<extra_id_\d+>)')  # SentencePiece files write a word's beginning before it, tokenizer.json not


class Translation(NamedTuple):
  """From the target's ids to the drafter's.

  Attributes:
    token_of: int32[V], the drafter's token, its unknown token where it has none.
    is_shared: bool[V], where it has one.
  """

  token_of: np.ndarray
  is_shared: np.ndarray


def make_pair(
    *, target: protocols.LanguageModel, drafter: protocols.LanguageModel, params: Mapping[str, Any],
    family: pairs.Family, target_tokenizer: tokenizers.Tokenizer, drafter_tokenizer: tokenizers.Tokenizer,
    vocabulary: Literal['same', 'intersection'] = 'same', **options: Any,
) -> pairs.Pair:
  """A `Pair` over the target's vocabulary, in which rows of an embedding that no token has are never drawn.

  Args:
    target, drafter: the models, as loaded.
    params: {'target': ..., 'drafter': ...} and others, as loaded.
    family: as in `Pair`.
    target_tokenizer, drafter_tokenizer: of the two models.
    vocabulary: 'same' refuses tokenizers that differ in a piece. 'intersection' lets the drafter draft the tokens that both
      have; the target's law is reached exactly all the same.
    **options: further fields of `Pair`.

  Raises:
    VocabError: the vocabularies differ (naming the first pieces that do), share nothing, or a tokenizer has more tokens than
      its model has rows.
  """
  checks.choice('vocabulary', vocabulary, ('same', 'intersection'), where='make_pair')
  rows = target.vocab_size
  for role, model, tokenizer in (('target', target, target_tokenizer), ('drafter', drafter, drafter_tokenizer)):
    if tokenizer.vocab_size > model.vocab_size:
      raise errors.VocabError(
          what=f'tokenizer of the {role}', got=f'{tokenizer.vocab_size} tokens',
          expected=f'at most {model.vocab_size}, the rows of its model', fix='it belongs to another model')
  if vocabulary == 'same':
    check_same(drafter_tokenizer, target_tokenizer)
    drafter = _without_padding(drafter, drafter_tokenizer.vocab_size, rows)
  else:
    translation = intersection(drafter_tokenizer, target_tokenizer, vocab_size=rows)
    drafter = vocabularies.TranslatedLM(drafter, rows)
    params = {**params, 'drafter': {'model': params['drafter'], **translation._asdict()}}
  target = _without_padding(target, target_tokenizer.vocab_size, rows)
  return pairs.Pair(
      target=target, drafter=drafter, params=params, family=family, tokenizer=target_tokenizer, **options)


def check_same(drafter: tokenizers.Tokenizer, target: tokenizers.Tokenizer) -> None:
  """`VocabError` with the first differing pieces, unless each id means the same in both vocabularies."""
  if drafter.sha256 == target.sha256:
    return
  differing = []
  for token in range(max(drafter.vocab_size, target.vocab_size)):
    of_drafter, of_target = _spelling(drafter, token), _spelling(target, token)
    if of_drafter != of_target:
      differing.append(f'{token}: {of_drafter!r} and {of_target!r}')
    if len(differing) > _LISTED:
      break
  if differing:
    more = ', ...' if len(differing) > _LISTED else ''
    raise errors.VocabError(
        what='vocabularies of drafter and target',
        got=f'{drafter.vocab_size} and {target.vocab_size} tokens; {", ".join(differing[:_LISTED])}{more}',
        expected='the same pieces', fix="choose a matching pair, or vocabulary='intersection'")


def intersection(drafter: tokenizers.Tokenizer, target: tokenizers.Tokenizer, *, vocab_size: int) -> Translation:
  """The `Translation` of `vocab_size` ids of the target; ids behind its last token are shared with nobody.

  Raises:
    VocabError: no token is written alike.
  """
  known = {}
  for token in range(drafter.vocab_size):
    known.setdefault(_spelling(drafter, token), token)
  # Something must be fed for a token that the drafter does not have; any will do, and its unknown token says so.
  fallback = next((token for token in (drafter.unk_id, drafter.pad_id, drafter.bos_id) if token >= 0), 0)
  spellings = [_spelling(target, token) for token in range(target.vocab_size)]
  is_shared = np.zeros(vocab_size, bool)
  is_shared[:len(spellings)] = [spelling is not None and spelling in known for spelling in spellings]
  token_of = np.full(vocab_size, fallback, np.int32)
  token_of[:len(spellings)] = [known.get(spelling, fallback) for spelling in spellings]
  if not is_shared.any():
    raise errors.VocabError(what='vocabularies of drafter and target', got='no common piece', expected='some')
  logging.info('vocabularies: %d of %d target tokens are the drafter\'s too', is_shared.sum(), target.vocab_size)
  return Translation(token_of, is_shared)


def _without_padding(model, num_tokens, vocab_size):
  if num_tokens == model.vocab_size == vocab_size:
    return model
  return vocabularies.PaddedLM(model, num_tokens, vocab_size)


def _spelling(tokenizer, token):
  """What a token means: its role, or its piece; None where there is no token."""
  if token >= tokenizer.vocab_size:
    return None
  for role in _ROLES:
    if token == getattr(tokenizer, f'{role}_id'):
      return role, None  # '<s>' and '<bos>' are the same; no piece is a tuple
  piece = tokenizer.piece(token)
  sentinel = _SENTINEL.fullmatch(piece)
  return (sentinel.group(1) if sentinel else piece) or None
