"""The shipped tokenizer."""

import hashlib
import importlib.resources

import hypothesis
import hypothesis.strategies as st
import pytest
import sentencepiece

from specjax.tasks import vocabulary
from specjax.tasks.vocabulary import Tokenizer, load_builtin_tokenizer


@pytest.fixture(scope='module')
def tokenizer():
  return load_builtin_tokenizer()


def _shipped():
  return (importlib.resources.files('specjax.tasks') / 'data/synthetic.model').read_bytes()


def test_special_tokens_are_where_models_expect_them(tokenizer):
  assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id) == (0, 1, 2, 3)
  assert tokenizer.separator_id == 4
  assert tokenizer.vocab_size == 896
  assert tokenizer.sha256 == hashlib.sha256(_shipped()).hexdigest()


@hypothesis.settings(derandomize=True, deadline=None, max_examples=300)
@hypothesis.given(st.text(alphabet=st.characters(exclude_categories=('Cs',), exclude_characters='▁\x00')))
def test_any_text_comes_back(text):
  tokenizer = load_builtin_tokenizer()
  tokens = tokenizer.encode(text)
  assert tokenizer.decode(tokens) == text
  assert tokenizer.unk_id not in tokens


def test_no_text_becomes_a_special_token(tokenizer):
  assert not {0, 1, 2, 3} & set(tokenizer.encode('<pad> </s> <s> <unk>'))


def test_digits_are_single_tokens(tokenizer):
  pieces = [tokenizer.piece(token) for token in tokenizer.encode('1984+27=2011')]
  assert pieces == ['▁', *'1984+27=2011']


def test_separator_is_one_token(tokenizer):
  assert tokenizer.encode('a =>b').count(tokenizer.separator_id) == 1
  assert tokenizer.decode([tokenizer.separator_id]) in ('=>', ' =>')


def test_many_texts_encode_as_one_by_one(tokenizer):
  texts = ['', 'a', 'der 3. Mai 1984', '日本']
  assert tokenizer.encode_many(texts) == [tokenizer.encode(text) for text in texts]


def test_tokenizers_are_equal_when_their_files_are(tokenizer):
  assert Tokenizer.from_bytes(_shipped()) == tokenizer
  assert len({Tokenizer.from_bytes(_shipped()), tokenizer}) == 1


@pytest.mark.skipif(sentencepiece.__version__ != '0.2.3', reason='another trainer may choose other pieces')
def test_shipped_file_can_be_made_again(tmp_path, monkeypatch):
  monkeypatch.setattr('sys.argv', ['vocabulary', '--output', str(tmp_path / 'again.model')])
  vocabulary.main()
  assert (tmp_path / 'again.model').read_bytes() == _shipped()
