"""Pairs of models with tokenizers of their own: what is refused, padding, and the translated drafter in the loop."""

import numpy as np
import pytest

import specjax
from specjax.core import errors
from specjax.tasks import shared_vocabulary
from specjax.tasks import tokenizers
from specjax.testing import exactness
from specjax.testing import toy
import tiny_tokenizers

ENGLISH = tiny_tokenizers.TEXTS[:6]
GERMAN = ('der Hund und die Katze', 'die Antwort auf alle Fragen', 'wer ist da', 'the cat and the dog', 'morgen')


def sentencepiece(texts=tiny_tokenizers.TEXTS, **options):
  return tokenizers.from_sentencepiece(tiny_tokenizers.sentencepiece_model(texts=texts, **options))


class Pieces:
  """A tokenizer of whole words, for the loop: a vocabulary of any size."""

  def __init__(self, words, *, pad_id=0, eos_id=1, unk_id=2):
    self.words, self.vocab_size, self.sha256 = words, len(words), ' '.join(words)
    self.pad_id, self.eos_id, self.unk_id, self.bos_id = pad_id, eos_id, unk_id, -1

  def encode(self, text):
    return [self.words.index(word) if word in self.words else self.unk_id for word in text.split()]

  def decode(self, tokens):
    return ' '.join(self.words[token] for token in tokens)

  def piece(self, token):
    return self.words[token]


WORDS = Pieces(['<pad>', '</s>', '<unk>', 'the', 'cat', 'dog', 'sat', 'ran', 'home', 'a'])
FOREIGN = Pieces(['ran', '<unk>', 'the', '</s>', 'Hund', 'cat', '<pad>', 'home'], pad_id=6, eos_id=3, unk_id=1)


def make(target_tokenizer, drafter_tokenizer, *, target_rows=None, drafter_rows=None, **options):
  """A pair of toy models."""
  target = toy.ToyLM(vocab_size=target_rows or target_tokenizer.vocab_size)
  drafter = toy.ToyLM(vocab_size=drafter_rows or drafter_tokenizer.vocab_size, memory=2)
  params = {'target': exactness.random_params(target, 1, dtype=np.float32),
            'drafter': exactness.random_params(drafter, 2, dtype=np.float32)}
  return shared_vocabulary.make_pair(
      target=target, drafter=drafter, params=params, family='decoder-only', target_tokenizer=target_tokenizer,
      drafter_tokenizer=drafter_tokenizer, **options)


def generate(pair, method, *, temperature=1.0, max_new_tokens=16, **options):
  return specjax.generate(
      pair, ['the cat', 'dog sat'], method=method, sampling=specjax.SamplingParams(temperature=temperature),
      max_new_tokens=max_new_tokens, seed=3, eos_ids=(), batch_size=4, **options)


def test_the_same_tokenizer_needs_no_wrapper():
  tokenizer = sentencepiece()
  pair = make(tokenizer, tokenizer)
  assert isinstance(pair.target, toy.ToyLM) and isinstance(pair.drafter, toy.ToyLM) and pair.tokenizer is tokenizer


def test_the_same_pieces_in_another_format_are_the_same_vocabulary():
  json_file = tokenizers.JsonTokenizer.from_bytes(tiny_tokenizers.as_json(tiny_tokenizers.sentencepiece_model()))
  shared_vocabulary.check_same(sentencepiece(), json_file)


def test_other_pieces_are_refused_by_name():
  with pytest.raises(errors.VocabError) as caught:
    make(sentencepiece(ENGLISH), sentencepiece(GERMAN))
  text = str(caught.value)
  first = next(i for i in range(300) if sentencepiece(ENGLISH).piece(i) != sentencepiece(GERMAN).piece(i))
  assert f'{first}: {sentencepiece(GERMAN).piece(first)!r} and {sentencepiece(ENGLISH).piece(first)!r}' in text
  assert "vocabulary='intersection'" in text and len(text) < 600


def test_missing_tokens_at_the_end_are_a_difference():
  more = tokenizers.from_sentencepiece(tiny_tokenizers.sentencepiece_model(), extra_ids=100)
  with pytest.raises(errors.VocabError, match=r"None and '<extra_id_99>'"):
    make(more, sentencepiece())


def test_a_tokenizer_with_more_tokens_than_rows_is_refused():
  with pytest.raises(errors.VocabError, match='tokenizer of the drafter.*belongs to another model'):
    make(sentencepiece(), sentencepiece(), drafter_rows=sentencepiece().vocab_size - 1)


def test_vocabulary_has_two_values():
  with pytest.raises(errors.ParamError, match='intersection'):
    make(sentencepiece(), sentencepiece(), vocabulary='union')


def test_padding_is_never_drawn():
  """Half of the rows are padding here, so a law with mass on it would draw it at once."""
  size = WORDS.vocab_size
  pair = make(WORDS, WORDS, target_rows=2 * size, drafter_rows=size + 4)
  plain = specjax.Pair(
      target=pair.target.model, drafter=pair.target.model, params={**pair.params, 'drafter': pair.params['target']},
      family='decoder-only', tokenizer=None)
  prompts = [WORDS.encode('the cat')]
  options = dict(
      sampling=specjax.SamplingParams(temperature=2.0), max_new_tokens=16, seed=3, eos_ids=(), num_samples=4, batch_size=4)
  drawn = specjax.generate(plain, prompts, method=specjax.autoregressive(), **options)
  assert drawn.tokens[0].max() >= size  # so the test can fail
  result = specjax.generate(pair, prompts, method=specjax.speculative(num_draft_tokens=3), **options)
  assert max(row.max() for row in result.tokens) < size
  assert all(np.isfinite(row).all() for row in result.log_probs)


@pytest.mark.nightly
def test_a_foreign_drafter_gives_the_targets_greedy_text():
  pair = make(WORDS, FOREIGN, target_rows=16, drafter_rows=9, vocabulary='intersection')
  expected = generate(pair, specjax.autoregressive(), temperature=0.0)
  got = generate(pair, specjax.speculative(num_draft_tokens=3), temperature=0.0)
  assert got.text == expected.text
  assert got.stats.proposed.sum() > 0


def test_a_drafter_that_knows_the_target_is_accepted_through_the_translation():
  """The target behind a permuted vocabulary drafts for itself: everything is accepted."""
  size, order = WORDS.vocab_size, np.random.RandomState(0).permutation(WORDS.vocab_size)  # our id -> theirs
  permuted = Pieces(
      [WORDS.words[i] for i in np.argsort(order)], pad_id=int(order[0]), eos_id=int(order[1]), unk_id=int(order[2]))
  target = toy.ToyLM(vocab_size=size)
  params = exactness.random_params(target, 1, dtype=np.float32)
  table = np.zeros_like(params['table'])
  table[:, order[:, None], order[None, :]] = params['table']
  pair = shared_vocabulary.make_pair(
      target=target, drafter=target, params={'target': params, 'drafter': {**params, 'table': table}},
      family='decoder-only', target_tokenizer=WORDS, drafter_tokenizer=permuted, vocabulary='intersection')
  result = generate(pair, specjax.speculative(num_draft_tokens=3))
  assert result.stats.accepted.sum() == result.stats.evaluated.sum() > 0


def test_the_intersection_is_by_piece_and_by_role():
  target, drafter = sentencepiece(ENGLISH), sentencepiece(GERMAN, bos_id=3, unk_id=2)
  translation = shared_vocabulary.intersection(drafter, target, vocab_size=target.vocab_size + 5)
  assert translation.token_of.dtype == np.int32 and translation.token_of.shape == (target.vocab_size + 5,)
  assert list(translation.token_of[:4]) == [0, 1, 3, 2] and translation.is_shared[:4].all()
  assert not translation.is_shared[-5:].any()
  for token in range(4, target.vocab_size):
    piece, theirs = target.piece(token), translation.token_of[token]
    assert translation.is_shared[token] == (drafter.token_of(piece) is not None)
    assert drafter.piece(theirs) == (piece if translation.is_shared[token] else '<unk>')
  assert 256 < translation.is_shared.sum() < target.vocab_size


def test_nothing_in_common_is_an_error():
  foreign = Pieces(['x', 'y'], pad_id=-1, eos_id=-1, unk_id=-1)
  with pytest.raises(errors.VocabError, match='no common piece'):
    shared_vocabulary.intersection(foreign, WORDS, vocab_size=16)
