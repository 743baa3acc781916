"""Kneser-Ney models equal the published formulas, computed one probability at a time."""

import itertools

import jax
import numpy as np
import pytest

from specjax.core import errors
from specjax.ops import ngrams
from specjax.testing import ngram_oracles
from specjax.training import batches
from specjax.training import ngram_counts

VOCAB = 12
START = 1


def corpus(seed, *, start_token=None, num_sequences=30):
  """Sequences with the uneven counts of text: each token is drawn by rank, from a list that depends on the last token."""
  random = np.random.RandomState(seed)
  allowed = [token for token in range(VOCAB - 1) if token != start_token]  # The last token is never seen.
  order = [random.permutation(allowed) for _ in range(VOCAB)]
  sequences = []
  for _ in range(num_sequences):
    sequence = [] if start_token is None else [start_token]
    for _ in range(random.randint(1, 25)):
      ranks = order[sequence[-1]] if sequence else order[0]
      sequence.append(int(ranks[min(random.zipf(1.6), len(ranks)) - 1]))
    sequences.append(sequence)
  return sequences


def laws(model, histories):
  """float64[N, V], exp of the model's laws."""
  width = model.order - 1
  rows = [list(history)[len(history) - min(len(history), width):] for history in histories]
  recent = np.array([[-1] * (width - len(row)) + row for row in rows], np.int32).reshape(len(rows), width)
  found = jax.jit(jax.vmap(lambda row: ngrams.law(model, ngrams.history(model, row))))(recent)
  return np.exp(np.asarray(found, np.float64))


OPTIONS = [
    dict(order=1), dict(order=2, prune=(0, 1000)), dict(order=3), dict(order=4, prune=(0, 0, 1, 1), start_token=START),
    *(pytest.param(options, marks=pytest.mark.nightly) for options in [
        dict(order=2), dict(order=4), dict(order=3, start_token=START), dict(order=3, prune=(0, 1, 2))])]


def some_histories(sequences, seed):
  """Seen, unseen and short histories."""
  random = np.random.RandomState(seed)
  seen = [tuple(sequence[at:at + size]) for sequence in sequences for at in range(len(sequence)) for size in (1, 2, 3)]
  seen = sorted(set(seen))
  chosen = [seen[i] for i in random.choice(len(seen), 25, replace=False)]
  return [(), *chosen, *(tuple(random.randint(VOCAB, size=3)) for _ in range(10)), (VOCAB - 1,)]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_probabilities_equal_the_formulas(options):
  sequences = corpus(3, start_token=options.get('start_token'))
  options = dict(vocab_size=VOCAB, discount_fallback=ngram_counts.FALLBACK) | options
  model, oracle = ngram_counts.train(sequences, **options), ngram_oracles.KneserNey(sequences, **options)
  histories = some_histories(sequences, 0)
  found = laws(model, histories)
  expected = np.array([[oracle.prob(history, token) for token in range(VOCAB)] for history in histories])
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_natural_counts_need_no_fallback():
  random = np.random.RandomState(5)
  sequences = [[int(token) for token in np.minimum(random.zipf(1.5, 60), 150) - 1] for _ in range(20)]
  model, oracle = (kind(sequences, order=2, vocab_size=150) for kind in (ngram_counts.train, ngram_oracles.KneserNey))
  histories = [(), (0,), (1,), (7,), (60,), (149,)]
  expected = np.array([[oracle.prob(history, token) for token in range(150)] for history in histories])
  np.testing.assert_allclose(laws(model, histories), expected, rtol=1e-6, atol=1e-7)


def test_a_table_by_hand():
  # a b a b c, order 2, discounts 1/2, 1, 3/2. Pairs: ab 2, ba 1, bc 1. Tokens before a: start, b; before b: a; before c: b.
  model = ngram_counts.train([[0, 1, 0, 1, 2]], order=2, vocab_size=3, discount_fallback=(0.5, 1.0, 1.5))
  # Unigrams: a = 2, 1, 1 of 4; discounts 1, 1/2, 1/2 leave 2 of 4 to the uniform law.
  unigrams = [1 / 4 + 1 / 6, 1 / 8 + 1 / 6, 1 / 8 + 1 / 6]
  behind_a = [1 / 2 * unigrams[0], 1 / 2 + 1 / 2 * unigrams[1], 1 / 2 * unigrams[2]]
  behind_b = [1 / 4 + 1 / 2 * unigrams[0], 1 / 2 * unigrams[1], 1 / 4 + 1 / 2 * unigrams[2]]
  np.testing.assert_allclose(
      laws(model, [(), (0,), (1,), (2,)]), [unigrams, behind_a, behind_b, unigrams], rtol=1e-6)


def test_pruning_drops_n_grams_and_keeps_their_parts():
  sequences = corpus(3)
  options = dict(order=3, vocab_size=VOCAB, discount_fallback=ngram_counts.FALLBACK)
  whole, pruned = ngram_counts.train(sequences, **options), ngram_counts.train(sequences, prune=(0, 1, 1), **options)
  assert whole.num_entries[0] == pruned.num_entries[0] == VOCAB
  counted = [{} for _ in range(4)]
  for sequence, size in itertools.product(sequences, (2, 3)):
    for at in range(len(sequence) - size + 1):
      gram = tuple(sequence[at:at + size])
      counted[size][gram] = counted[size].get(gram, 0) + 1
  assert whole.num_entries[1:] == tuple(len(counted[size]) for size in (2, 3))
  assert pruned.num_entries[1:] == tuple(sum(count > 1 for count in counted[size].values()) for size in (2, 3))


@pytest.mark.parametrize('sequences, options, error, named', [
    ([], {}, errors.DataError, 'sequences'), ([[]], {}, errors.DataError, 'sequences'),
    ([[0, VOCAB]], {}, errors.VocabError, 'token id'), ([[[0]]], {}, errors.DataError, 'sequence of tokens'),
    ([[0, 1]], dict(order=0), errors.ParamError, 'order'), ([[0, 1]], dict(order=9), errors.ParamError, 'order'),
    ([[0, 1]], dict(prune=(0, 0)), errors.ParamError, 'prune'), ([[0, 1]], dict(prune=(1, 1, 1)), errors.ParamError, 'prune'),
    ([[0, 1]], dict(prune=(0, 2, 1)), errors.ParamError, 'prune'),
    ([[0, 1]], {}, errors.DataError, 'discounts of 1-grams'),
    ([[0, 1]], dict(discount_fallback=(0.5, 1.0)), errors.ParamError, 'discount_fallback'),
    ([[0, 1]], dict(discount_fallback=(2.0, 1.0, 1.0)), errors.ParamError, 'discount_fallback'),
    ([[0, 1]], dict(start_token=1), errors.DataError, 'start token'),
    ([[1, 0], [0, 2]], dict(start_token=1), errors.DataError, 'start token')])
def test_bad_input_is_named(sequences, options, error, named):
  with pytest.raises(error, match=named):
    ngram_counts.train(sequences, **dict(order=3, vocab_size=VOCAB) | options)


def test_sequences_of_a_file(tmp_path):
  path = tmp_path / 'tokens.txt'
  path.write_text('1 2 3\n\n4\n')
  assert [sequence.tolist() for sequence in ngram_counts.read_sequences(path)] == [[1, 2, 3], [4]]
  path.write_text('1 2 3\n4 -5\n')
  with pytest.raises(errors.DataError, match="'-5'") as caught:
    ngram_counts.read_sequences(path)
  assert caught.value.where == f'{path}:2'


def test_sequences_of_packed_examples():
  data = batches.PackedData({
      'tokens': np.array([[1, 5, 6, 1, 7, 0], [1, 8, 1, 9, 4, 3]]),
      'targets': np.array([[5, 6, 2, 7, 2, 0], [8, 2, 9, 4, 3, 2]]),
      'segments': np.array([[1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 2]])})
  assert [sequence.tolist() for sequence in ngram_counts.sequences_of(data)] == [
      [1, 5, 6, 2], [1, 7, 2], [1, 8, 2], [1, 9, 4, 3, 2]]
