"""What is learned and what is held out: by document, each text once, and asked as the evaluation asks it."""

import json
import random

import pytest

import tiny_tokenizers
from specjax.core.errors import ConfigError, DataError
from specjax.tasks import catalogue, datasets, framing, packing, text_mixture, tokenizers, vocabulary

SPLITS = ('train', 'validation', 'test')
WORDS = [word for text in tiny_tokenizers.TEXTS for word in text.split()]


def _sentence(seed, count=12):
  """`count` words that no other seed has in that order."""
  return ' '.join(random.Random(f'{seed} {count}').choices(WORDS, k=count))


def _write(path, records):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return path


def _load(name, data_dir=None, percent=20, **options):
  return text_mixture.load(name, data_dir=data_dir, held_out_percent=percent, **options)


def _news(tmp_path, count=60, words=12):
  _write(tmp_path / 'xsum' / 'test.jsonl', [
      {'document': _sentence(n, words), 'summary': _sentence(-n - 1, 3), 'id': str(n)} for n in range(count)])
  return _load('xsum', tmp_path)


def _mine(tmp_path, count=60, name='mine.jsonl', first=0):
  path = _write(tmp_path / name, [
      {'inputs': _sentence(n, 20), 'targets': _sentence(n + 10_000, 2)} for n in range(first, first + count)])
  return _load(f'jsonl:{path}')


def _tokenizer(separator=True):
  if separator:
    texts = [f'{a} {b}' for a in tiny_tokenizers.TEXTS for b in tiny_tokenizers.TEXTS]
    return tokenizers.from_sentencepiece(vocabulary.train_model(texts, vocab_size=300, symbols=['\n']))
  return tokenizers.from_sentencepiece(tiny_tokenizers.sentencepiece_model())


def test_a_data_set_keeps_its_own_splits_and_only_what_is_missing_is_cut(tmp_path):
  for split, first in (('train', 0), ('test', 1000)):
    _write(tmp_path / 'gsm8k' / f'{split}.jsonl', [
        {'question': f'{_sentence(first + n)} {n}?', 'answer': f'#### {n}'} for n in range(100)])
  splits = _load('gsm8k', tmp_path).splits
  assert len(splits['test']) == 100 and {item.inputs for item in splits['test']}.isdisjoint(
      item.inputs for item in splits['train'] + splits['validation'])
  assert len(splits['train'] + splits['validation']) == 100 and 5 < len(splits['validation']) < 40


def test_a_held_out_split_alone_gives_train_its_rest(tmp_path):
  splits = _news(tmp_path, 300).splits
  assert all(30 < len(splits[split]) < 90 for split in ('validation', 'test')) and len(splits['train']) > 120
  documents = [{item.inputs for item in splits[split]} for split in SPLITS]
  assert sum(map(len, documents)) == len(set.union(*documents)) == 300
  again = _news(tmp_path, 300).splits  # A function of the text alone.
  assert again == splits


def test_a_validation_set_gives_train_its_rest_and_the_test_set_stays_whole(tmp_path):
  for split, first in (('validation', 0), ('test', 1000)):
    _write(tmp_path / 'natural_questions' / f'{split}.jsonl', [
        {'question': _sentence(first + n), 'answer': ['x']} for n in range(100)])
  splits = _load('natural_questions', tmp_path).splits
  assert len(splits['test']) == 100 and 5 < len(splits['validation']) < 40
  assert len(splits['train']) == 100 - len(splits['validation'])


def test_questions_about_one_text_are_in_one_split(tmp_path):
  _write(tmp_path / 'adversarial_qa' / 'test.jsonl', [
      {'id': f'{n} {m}', 'context': _sentence(n), 'question': f'{_sentence(m + 500, 4)}?',
       'answers': {'text': ['x'], 'answer_start': [0]}} for n in range(60) for m in range(4)])
  splits = _load('adversarial_qa', tmp_path).splits
  contexts = [{item.document for item in splits[split]} for split in SPLITS]
  assert sum(map(len, contexts)) == 60 and all(len(splits[split]) == 4 * len(c) for split, c in zip(SPLITS, contexts))


def test_neighbouring_passages_are_in_one_split(tmp_path):
  path = tmp_path / 'book.txt'
  path.write_text('\n\n'.join(_sentence(n, 100) for n in range(400)))
  splits = _load(f'text:{path}').splits
  assert sum(map(len, splits.values())) == 400
  for split in ('validation', 'test'):
    documents = [item.document for item in splits[split]]
    assert {documents.count(document) for document in documents} == {text_mixture.PASSAGES_PER_DOCUMENT}


def test_what_is_asked_anywhere_is_learned_nowhere(tmp_path):
  news, mine = _news(tmp_path, words=40), _mine(tmp_path)
  quoted = [{'inputs': f'{_sentence(7, 3)} {news.splits["test"][0].inputs} {_sentence(8, 3)}', 'targets': 'a'},
            {'inputs': f' {mine.splits["validation"][0].inputs.upper()}', 'targets': 'b'}]
  other = _load(f'jsonl:{_write(tmp_path / "other.jsonl", [{"inputs": _sentence(n + 777, 20)} for n in range(60)])}')
  learned = other.splits['train'] + [
      text_mixture.Item('quote', row['inputs'], row['targets'], row['inputs'], row) for row in quoted]
  other.splits['train'][:] = learned
  kept, dropped = text_mixture.disjoint([news, mine, other])
  assert dropped == {news.name: 0, mine.name: 0, other.name: 2}
  assert [item.name for item in kept[2].splits['train']] == [item.name for item in learned[:-2]]
  spared = news.splits['train'][3].inputs
  kept, dropped = text_mixture.disjoint([news], never=[f'Summarise: {spared}'])
  assert dropped == {news.name: 1} and spared not in {item.inputs for item in kept[0].splits['train']}


def test_a_copy_of_a_file_is_cut_as_the_file_and_two_files_of_one_name_are_refused(tmp_path):
  first, copy = _mine(tmp_path), _mine(tmp_path, name='copy.jsonl')
  _, dropped = text_mixture.disjoint([first, copy])
  assert not any(dropped.values())
  with pytest.raises(ConfigError, match='mine twice'):
    text_mixture.write([first, first], tmp_path / 'out')


@pytest.mark.parametrize('separator', [True, False])
def test_the_evaluation_asks_what_was_held_out_as_it_was_learned(tmp_path, separator):
  tokenizer = _tokenizer(separator)
  asked = framing.make('none', tokenizer=tokenizer, family='decoder-only')
  news, out = _news(tmp_path), tmp_path / 'out'
  text_mixture.write([news], out)
  for split in SPLITS:
    examples = datasets.load(catalogue.lookup('xsum'), split=split, count=999, data_dir=out).examples
    found = text_mixture.framed(news.splits[split], news, asked, length=200)
    assert len(found.pieces) == len(examples) and not found.num_cut and not found.num_left_out
    for piece, example in zip(found.pieces, examples, strict=True):
      assert list(piece.prompt) == asked.question(example.inputs)
      assert list(piece.answer) == [*asked.reference(example.inputs, example.targets)[0], tokenizer.eos_id]


def test_files_of_the_user_are_named_so_that_the_evaluation_finds_them(tmp_path):
  out, book, table = tmp_path / 'out', tmp_path / 'book.txt', tmp_path / 'table.tsv'
  book.write_text('\n\n'.join(_sentence(n, 120) for n in range(200)))
  table.write_text(''.join(f'{_sentence(n)}\t{n}\n' for n in range(80)))
  corpora = [_mine(tmp_path), _load(f'text:{book}'), _load(f'tsv:{table}')]
  text_mixture.write(corpora, out)
  for corpus in corpora:
    kind, _, path = corpus.named(out, 'validation').partition(':')
    found = datasets.user_file(path, kind=kind, input_key='inputs', target_key='targets', count=999)
    assert [(example.inputs, example.targets) for example in found.examples] == [
        (item.inputs, item.targets) for item in corpus.splits['validation']] and not found.errors


def test_what_is_too_long_is_shortened_by_its_kind_or_left_out_and_counted(tmp_path):
  asked = framing.make('none', tokenizer=_tokenizer(), family='decoder-only')
  book = tmp_path / 'book.txt'
  book.write_text('\n\n'.join(_sentence(n, 300) for n in range(200)))
  corpora = _news(tmp_path, words=200), _load(f'text:{book}'), _mine(tmp_path)
  for corpus, length in zip(corpora, (90, 200, 12)):
    items = corpus.splits['train']
    found = text_mixture.framed(items, corpus, asked, length=length)
    packing.pack_pieces(found.pieces, length=length, pad_id=0)
    if corpus is corpora[2]:
      assert found.num_left_out == len(items) and not found.pieces
      continue
    assert found.num_cut == len(items) and not found.num_left_out
    for piece, item in zip(found.pieces, items, strict=True):
      prompt, answer = asked.tokenizer.decode(piece.prompt[:-1]), asked.tokenizer.decode(piece.answer)
      if corpus is corpora[0]:
        assert f'summarize: {item.inputs}'.startswith(prompt) and answer == item.targets
        assert length - 16 < len(piece.prompt) + len(piece.answer) - 1 <= length
      else:
        assert prompt == item.inputs and item.targets.startswith(answer) and piece.is_text


def test_text_without_questions_is_cut_into_pieces_without_losing_a_token(tmp_path):
  asked = framing.make('none', tokenizer=_tokenizer(), family='decoder-only')
  corpus = _load(f'jsonl:{_write(tmp_path / "x.jsonl", [{"inputs": _sentence(n, 90)} for n in range(60)])}')
  item = corpus.splits['train'][0]
  found = text_mixture.framed([item], corpus, asked, length=32)
  tokens = [token for piece in found.pieces for token in piece.answer]
  assert tokens == [*asked.tokenizer.encode(item.inputs), asked.tokenizer.eos_id]
  assert all(list(piece.prompt) == [asked.tokenizer.bos_id] and piece.is_text for piece in found.pieces)

  book = tmp_path / 'book.txt'
  book.write_text('\n\n'.join(_sentence(n, 120) for n in range(200)))
  text = _load(f'text:{book}')
  passage = text.splits['train'][0]
  found = text_mixture.framed([passage], text, asked, length=20)  # Less than the words that a prompt has.
  tokens = [token for piece in found.pieces for token in piece.answer]
  assert asked.tokenizer.decode(tokens) == f'{passage.inputs} {passage.targets}' and found.num_cut == 1


def test_lines_for_a_tokenizer_are_of_the_train_split_and_evenly_fewer(tmp_path):
  corpus = _news(tmp_path, words=300)
  every = text_mixture.lines([corpus], characters=10**9)
  joined = '\n'.join(every)
  assert corpus.splits['test'][0].inputs[:60] not in joined and corpus.splits['train'][0].inputs[:60] in joined
  assert max(len(line.encode()) for line in every) < 4192
  some = text_mixture.lines([corpus], characters=sum(map(len, every)) // 4)
  assert set(some) <= set(every) and abs(len(some) - len(every) / 4) < 2


@pytest.mark.parametrize('content, named', [
    (b'', 'book.txt'), (b'\n\n \n', 'book.txt'), (b'four words and more', 'book.txt'), (b'\xff\xfe\x00', 'book.txt'),
    (b'word ' * 200, 'validation split|test split|train split')])
def test_a_file_without_text_or_with_one_document_is_refused_by_name(tmp_path, content, named):
  path = tmp_path / 'book.txt'
  path.write_bytes(content)
  with pytest.raises(DataError, match=named):
    _load(f'text:{path}')


@pytest.mark.parametrize('name, error, named', [
    ('grim', ConfigError, 'grim'), ('mt_bench', ConfigError, 'mt_bench'), ('gsm8k', ConfigError, 'gsm8k'),
    ('jsonl:absent.jsonl', DataError, 'absent.jsonl'), ('text:absent.txt', DataError, 'absent.txt')])
def test_names_without_data_are_refused(tmp_path, name, error, named):
  with pytest.raises(error, match=named):
    _load(name, tmp_path)


def test_no_data_folder_is_said(tmp_path):
  with pytest.raises(ConfigError, match='--data_dir'):
    _load('gsm8k')
