"""ARPA files: what is written is read again bit for bit, and a malformed line is named."""

import jax
import numpy as np
import pytest

from specjax.checkpoints import arpa
from specjax.core import errors
from specjax.ops import ngrams

TEXT = r"""
comments may stand here
\data\
ngram 1=4
ngram 2=3
ngram 3=1

\1-grams:
-99	<s>	-0.30103
-0.4771213	a	-0.25
-0.7	b	-1e-3
-1.5	</s>

\2-grams:
-0.5 <s> a -0.125
-0.25	a b
-2	b </s>	0.5

\3-grams:
-0.75	<s> a b

\end\
"""
PIECES = ['<s>', '</s>', 'a', 'b', '▁c']


def random_model(seed, vocab_size=5, order=3):
  random = np.random.RandomState(seed)
  tables, level = [], 1
  for size in range(1, order + 1):
    if size == 1:
      parents, tokens = np.zeros(vocab_size, int), np.arange(vocab_size)
    else:
      key = np.flatnonzero(random.rand(level * vocab_size) < 0.5)
      parents, tokens = key // vocab_size, key % vocab_size
    level = len(tokens)
    tables.append((parents, tokens, -random.exponential(5.0, level), random.randn(level)))
  tables[0][2][3] = -np.inf
  return ngrams.NgramModel.from_tables(tables)


def written(tmp_path, text):
  path = tmp_path / 'model.arpa'
  path.write_text(text, encoding='utf-8')
  return path


def same(first, second):
  assert first.order == second.order
  jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize('pieces', [None, PIECES], ids=['ids', 'pieces'])
@pytest.mark.parametrize('seed', range(4))
def test_a_model_is_read_as_it_was_written(tmp_path, seed, pieces):
  model = random_model(seed)
  arpa.write(tmp_path / 'a', model, pieces=pieces)
  again = arpa.read(tmp_path / 'a', vocab_size=5, pieces=pieces)
  same(model, again)
  arpa.write(tmp_path / 'b', again, pieces=pieces)
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_a_file_by_hand(tmp_path):
  model = arpa.read(written(tmp_path, TEXT), vocab_size=5, pieces=PIECES)
  assert model.num_entries == (5, 3, 1)
  ten = np.log(10)

  def log_prob(*tokens):
    *text, last = [PIECES.index(token) for token in tokens]
    recent = np.array(([-1, -1] + text)[-2:], np.int32)
    return float(ngrams.score(model, ngrams.history(model, recent), np.int32(last))[0]) / ten

  np.testing.assert_allclose(
      [log_prob('a'), log_prob('<s>', 'a'), log_prob('<s>', 'a', 'b'), log_prob('b', 'a', 'b'), log_prob('b', 'a'),
       log_prob('a', 'b', 'a'), log_prob('b', '</s>', 'a')],
      [-0.4771213, -0.5, -0.75, -0.25, -1e-3 - 0.4771213, -1e-3 - 0.4771213, 0.5 - 0.4771213], rtol=1e-6)
  assert log_prob('<s>') == log_prob('▁c') == -np.inf


def test_names_of_start_and_end_and_a_share_of_the_unknown(tmp_path):
  text = '\\data\\\nngram 1=5\n\n\\1-grams:\n0 <s>\n-1 <unk>\n-1.5 </s>\n-0.5 5\n-0.75 6\n\\end\\\n'
  model = arpa.read(written(tmp_path, text), vocab_size=10, start_token=1, end_token=2)
  log_probs = np.asarray(model.log_probs[0]) / np.log(10)
  assert log_probs[1] == -np.inf
  np.testing.assert_allclose(log_probs[[2, 5, 6]], [-1.5, -0.5, -0.75], rtol=1e-6)
  np.testing.assert_allclose(10**log_probs[[0, 3, 4, 7, 8, 9]], 0.1 / 6, rtol=1e-6)


@pytest.mark.parametrize('old, new, line, named', [
    ('-0.7\tb', '-0.7x\tb', 11, 'log10 value'), ('-0.7\tb', '0.7\tb', 11, 'log10 value'),
    ('-0.7\tb', 'nan\tb', 11, 'log10 value'),
    ('-0.25\ta b', '-0.25\ta z', 16, 'token'), ('-0.25\ta b', '-0.25\ta', 16, '2-gram'),
    ('-0.25\ta b', '-0.25\ta b 0 0', 16, '2-gram'), ('-0.75\t<s> a b', '-0.75\t<s> a b 0', 20, '3-gram'),
    ('-0.75\t<s> a b', '-0.75\tb a b', 20, 'context'), ('-2\tb </s>', '-2\ta b', 17, 'listed before'),
    ('-2\tb </s>', '-2\tb ▁c', 17, 'no 1-gram'),
    ('ngram 2=3', 'ngram 2=4', 19, '2-grams'), ('ngram 2=3', 'ngram 2=2', 17, 'section'),
    ('ngram 2=3', 'ngram 3=3', 5, 'order'),
    ('ngram 2=3', 'ngram 2=99999999', 5, 'number of n-grams'), ('\\2-grams:', '\\3-grams:', 14, 'section'),
    ('\\data\\', 'data', 22, 'end of the file'), ('\\end\\', '', 22, 'end of the file'), ('\\end\\', 'x', 22, 'end'),
    ('ngram 1=4\nngram 2=3\nngram 3=1\n', '', 5, 'header')])
def test_malformed_lines_are_named(tmp_path, old, new, line, named):
  assert TEXT.count(old) == 1
  path = written(tmp_path, TEXT.replace(old, new))
  with pytest.raises(errors.DataError, match=named) as caught:
    arpa.read(path, vocab_size=5, pieces=PIECES)
  assert caught.value.where == f'{path}:{line}'


def test_damaged_files_are_read_or_refused_by_name(tmp_path):
  random = np.random.RandomState(0)
  raw, refused = bytearray(TEXT.encode()), 0
  for _ in range(150):
    damaged = bytearray(raw)
    for _ in range(random.randint(1, 4)):
      at, kind = random.randint(len(damaged)), random.randint(3)
      if kind == 0:
        damaged[at] = random.randint(256)
      elif kind == 1:
        del damaged[at:at + random.randint(1, 20)]
      else:
        damaged[at:at] = damaged[random.randint(len(damaged)):][:random.randint(1, 20)]
    (tmp_path / 'model.arpa').write_bytes(damaged)
    try:
      model = arpa.read(tmp_path / 'model.arpa', vocab_size=5, pieces=PIECES)
      assert not any(np.any(np.isnan(values)) for values in (*model.log_probs, *model.backoffs))
    except errors.DataError as error:
      assert error.where
      refused += 1
  assert refused > 75


def test_bytes_that_are_no_text_are_refused(tmp_path):
  (tmp_path / 'model.arpa').write_bytes(b'\\data\\\nngram 1=1\n\xff\xfe')
  with pytest.raises(errors.DataError, match='UTF-8'):
    arpa.read(tmp_path / 'model.arpa', vocab_size=5)


@pytest.mark.parametrize('pieces', [
    ['a', 'b'], ['a', 'a', 'b', 'c', 'd'], ['a', 'b c', 'd', 'e', 'f'], ['', 'b', 'c', 'd', 'e']])
def test_names_that_would_not_come_back_are_refused(tmp_path, pieces):
  with pytest.raises(errors.VocabError, match='piece'):
    arpa.write(tmp_path / 'model.arpa', random_model(0), pieces=pieces)
  assert not list(tmp_path.iterdir())
