"""Tokenizers of checkpoints: the two formats agree, sentinels are T5's, and damaged or hostile files are named."""

import importlib.resources
import json

import pytest

from specjax.core import errors
from specjax.tasks import tokenizers
from specjax.tasks import vocabulary
import tiny_tokenizers

TEXTS = ('', 'a', 'the cat sat', 'what  is', 'naïve 日本 \n', 'der Hund <s', '<extra_id_0> and')
MODEL = tiny_tokenizers.sentencepiece_model


def written(folder, name, content):
  path = folder / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def test_a_sentencepiece_file_is_the_tokenizer_that_it_is(tmp_path):
  content = (importlib.resources.files('specjax.tasks') / 'data/synthetic.model').read_bytes()
  path = written(tmp_path, 'tokenizer.model', content)
  assert tokenizers.load(path) == tokenizers.load(tmp_path) == vocabulary.load_builtin_tokenizer()


def test_both_formats_give_the_same_tokens_and_texts():
  ours, json_file = tokenizers.from_sentencepiece(MODEL()), tokenizers.JsonTokenizer.from_bytes(tiny_tokenizers.as_json(MODEL()))
  for name in ('vocab_size', 'pad_id', 'eos_id', 'bos_id', 'unk_id'):
    assert getattr(ours, name) == getattr(json_file, name), name
  assert [ours.piece(i) for i in range(ours.vocab_size)] == [json_file.piece(i) for i in range(ours.vocab_size)]
  for text in TEXTS:
    assert json_file.encode(text) == ours.encode(text), text
    assert json_file.decode(ours.encode(text)) == ours.decode(ours.encode(text)) == text
  assert json_file.encode_many(TEXTS) == ours.encode_many(TEXTS)
  ended = [ours.bos_id, *ours.encode('a cat'), ours.eos_id, ours.pad_id]
  assert ours.decode(ended) == json_file.decode(ended) == 'a cat'
  assert ours.token_of('▁the') == json_file.token_of('▁the') is not None
  assert ours.token_of('▁nowhere') is json_file.token_of('▁nowhere') is None


def test_no_text_becomes_a_special_token():
  for tokenizer in (tokenizers.from_sentencepiece(MODEL()),
                    tokenizers.JsonTokenizer.from_bytes(tiny_tokenizers.as_json(MODEL()))):
    special = {tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id}
    assert not special & set(tokenizer.encode('<pad> </s> <s> <unk> </s>'))


def test_sentinels_are_numbered_from_the_end(tmp_path):
  written(tmp_path, 'spiece.model', MODEL())
  plain, tokenizer = tokenizers.from_sentencepiece(MODEL()), tokenizers.load(tmp_path)
  assert tokenizer.vocab_size == plain.vocab_size + 100
  assert tokenizer.token_of('▁<extra_id_0>') == tokenizer.vocab_size - 1
  assert tokenizer.piece(plain.vocab_size) == '▁<extra_id_99>'
  assert tokenizer.encode('a <extra_id_1> dog').count(tokenizer.vocab_size - 2) == 1
  assert tokenizer.encode('a dog') == plain.encode('a dog')
  assert tokenizer != plain and tokenizer == tokenizers.load(tmp_path, extra_ids=100)
  assert tokenizers.load(tmp_path, extra_ids=0) == plain


def test_sentinels_of_a_json_file_are_read_out_of_texts():
  names = ('<pad>', '</s>', '<s>', '<unk>')
  content = json.loads(tiny_tokenizers.as_json(MODEL(), special=names))
  last = dict(content['added_tokens'][-1], content='<extra_id_0>', id=tokenizers.from_sentencepiece(MODEL()).vocab_size)
  content['added_tokens'].append(last)
  tokenizer = tokenizers.JsonTokenizer.from_bytes(json.dumps(content).encode())
  assert tokenizer.vocab_size == last['id'] + 1
  assert tokenizer.encode('a cat')[-1] != last['id']
  tokens = tokenizer.encode('a cat <extra_id_0> a </s>')
  assert tokens.count(last['id']) == 1 and tokenizer.eos_id not in tokens


@pytest.mark.nightly
def test_sentinels_are_seqios(tmp_path):
  import seqio

  path = written(tmp_path, 'spiece.model', MODEL())
  theirs, ours = seqio.SentencePieceVocabulary(str(path), extra_ids=100), tokenizers.load(path)
  assert ours.vocab_size == theirs.vocab_size
  for text in ('the cat <extra_id_0> on <extra_id_7>', 'a <extra_id_99>'):
    assert ours.encode(text) == theirs.encode(text)


def test_roles_come_from_the_configuration_beside_the_file(tmp_path):
  written(tmp_path, 'tokenizer.json', tiny_tokenizers.as_json(MODEL()))
  config = {'eos_token': {'content': '▁the', 'lstrip': False}, 'bos_token': '▁a', 'pad_token': None,
            'chat_template': "{{ cycler.__init__.__globals__ }}", 'tokenizer_class': 'os.system'}
  written(tmp_path, 'tokenizer_config.json', json.dumps(config))
  tokenizer = tokenizers.load(tmp_path)
  assert tokenizer.eos_id == tokenizer.token_of('▁the') and tokenizer.bos_id == tokenizer.token_of('▁a')
  assert tokenizer.pad_id == 0
  written(tmp_path, 'tokenizer_config.json', json.dumps({'eos_token': '<nothing like it>'}))
  with pytest.raises(errors.VocabError, match='eos token.*nothing like it'):
    tokenizers.load(tmp_path)


@pytest.mark.parametrize('config', [
    '[1]', '{"eos_token": 3}', '{"eos_token": {"content": ["x"]}}', '{', '[' * 100_000, '\xff'])
def test_a_broken_configuration_is_named(tmp_path, config):
  written(tmp_path, 'tokenizer.json', tiny_tokenizers.as_json(MODEL()))
  written(tmp_path, 'tokenizer_config.json', config.encode('latin-1'))
  with pytest.raises(errors.VocabError):
    tokenizers.load(tmp_path)


@pytest.mark.parametrize('extra_ids', [-1, 10**9, 'many', True, 1.5])
def test_a_number_of_sentinels_that_is_none_is_refused(tmp_path, extra_ids):
  written(tmp_path, 'spiece.model', MODEL())
  written(tmp_path, 'tokenizer_config.json', json.dumps({'extra_ids': extra_ids}))
  with pytest.raises(errors.VocabError, match='extra_ids'):
    tokenizers.load(tmp_path)


def test_missing_files_are_named(tmp_path):
  for path in (tmp_path, tmp_path / 'missing.model', written(tmp_path, 'vocab.txt', 'a')):
    with pytest.raises(errors.VocabError, match='tokenizer'):
      tokenizers.load(path)


@pytest.mark.parametrize('name', ['tokenizer.model', 'tokenizer.json'])
def test_files_that_are_cut_or_foreign_are_named(tmp_path, name):
  content = MODEL() if name.endswith('model') else tiny_tokenizers.as_json(MODEL())
  whole = tokenizers.load(written(tmp_path, name, content)).vocab_size
  for end in range(0, len(content), len(content) // 20):
    path = written(tmp_path, name, content[:end])
    try:
      got = tokenizers.load(path).vocab_size
    except errors.VocabError as error:
      assert str(path) in str(error)
    else:  # A serialised message that is cut between two fields is a whole one: SentencePiece cannot tell.
      assert name.endswith('model') and got < whole
  for foreign in (b'{}', b'[]', b'\0' * 100, b'{"model": {"type": "BPE", "vocab": 3}}', b'\xff\xfe'):
    with pytest.raises(errors.VocabError):
      tokenizers.load(written(tmp_path, name, foreign))
