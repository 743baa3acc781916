"""Lookups of n-gram models on the device equal dictionaries."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import errors
from specjax.ops import ngrams
from specjax.testing import ngram_oracles

VOCAB = 6


def random_model(order, seed, *, density=0.5):
  """(`NgramModel`, `ngram_oracles.Backoff`) of random numbers; contexts have entries, other n-grams come by chance."""
  random = np.random.RandomState(seed)
  log_probs, backoffs, level = {}, {}, [()]
  tables = []
  for size in range(1, order + 1):
    grams = sorted(
        (*context, token) for context in level for token in range(VOCAB) if size == 1 or random.rand() < density)
    values = np.float32(-random.exponential(size=len(grams)) - 0.1)
    weights = np.float32(random.randn(len(grams)))
    log_probs |= dict(zip(grams, map(float, values)))
    if size < order:
      backoffs |= dict(zip(grams, map(float, weights)))
    index = {gram: i for i, gram in enumerate(level)}
    tables.append(([index[gram[:-1]] for gram in grams], [gram[-1] for gram in grams], values, weights))
    level = grams
  return ngrams.NgramModel.from_tables(tables), ngram_oracles.Backoff(log_probs, backoffs, order)


def histories(order):
  """Every history of up to n - 1 tokens, padded with -1 in front."""
  return [(-1,) * (order - 1 - size) + tokens for size in range(order)
          for tokens in itertools.product(range(VOCAB), repeat=size)]


@pytest.mark.parametrize('order, density', [(1, 1.0), pytest.param(2, 0.5, marks=pytest.mark.nightly), (3, 0.5), (4, 0.02)])
def test_scores_and_laws_equal_the_oracle(order, density):
  model, oracle = random_model(order, order, density=density)
  recent = np.array(histories(order), np.int32).reshape(len(histories(order)), order - 1)
  expected = np.array([
      [oracle.log_prob([token for token in row if token >= 0], token) for token in range(VOCAB)] for row in recent.tolist()])

  @jax.jit
  def scores(recent):
    entries = ngrams.history(model, recent)
    return ngrams.score(model, tuple(x[:, None] for x in entries), jnp.arange(VOCAB, dtype=jnp.int32)[None, :])[0]

  np.testing.assert_allclose(scores(recent), expected, rtol=1e-5, atol=1e-6)
  laws = jax.jit(jax.vmap(lambda row: ngrams.law(model, ngrams.history(model, row))))(recent)
  np.testing.assert_allclose(laws, expected, rtol=1e-5, atol=1e-6)


def test_a_scored_token_becomes_part_of_the_history():
  model, _ = random_model(4, 7)
  recent = np.array([2, 3, 1], np.int32)
  entries = ngrams.history(model, recent)
  for token in (4, 0, 5):
    _, entries = ngrams.score(model, entries, jnp.int32(token))
    recent = np.append(recent[1:], token)
  np.testing.assert_array_equal(entries, ngrams.history(model, recent))


@pytest.mark.parametrize('order, num_positions, recent', [
    (1, 3, ()), (2, 1, (3,)), (3, 4, (-1, 2)), *(pytest.param(*case, marks=pytest.mark.nightly) for case in [
        (2, 4, (3,)), (4, 6, (5, 0, 1)), (4, 2, (-1, -1, 4))])])
def test_arcs_of_a_lattice_equal_the_oracle(order, num_positions, recent):
  model, oracle = random_model(order, 10 + order)
  num_candidates = 3
  candidates = np.random.default_rng(order).permuted(
      np.tile(np.arange(VOCAB), (2, num_positions, 1)), axis=2)[..., :num_candidates].astype(np.int32)
  texts = [list(recent), [(token + 1) % VOCAB for token in recent]]
  arcs = jax.jit(ngrams.lattice_log_probs)(model, candidates, np.array(texts, np.int32).reshape(2, order - 1))
  assert arcs.shape == (2, num_positions, num_candidates**(order - 1), num_candidates)
  for row, position in itertools.product(range(2), range(num_positions)):
    for state in itertools.product(range(num_candidates), repeat=order - 1):
      text = [token for token in texts[row] if token >= 0]
      for back, digit in zip(range(order - 1, 0, -1), state):
        if position >= back:
          text.append(int(candidates[row, position - back, digit]))
      number = int(np.polyval(state, num_candidates)) if state else 0
      expected = [oracle.log_prob(text, int(token)) for token in candidates[row, position]]
      np.testing.assert_allclose(arcs[row, position, number], expected, rtol=1e-5, atol=1e-6)


def test_entries_that_are_not_sorted_are_refused():
  unigrams = ([0] * 3, range(3), np.zeros(3), np.zeros(3))
  with pytest.raises(errors.DataError, match='order 2'):
    ngrams.NgramModel.from_tables([unigrams, ([1, 0], [0, 0], np.zeros(2), np.zeros(2))])


@pytest.mark.parametrize('params, named', [
    ({}, "the key 'ngrams'"), ({'ngrams': 3}, 'an NgramModel'), ({'ngrams': random_model(2, 0)[0]}, 'that of params')])
def test_models_that_do_not_fit_are_named(params, named):
  with pytest.raises(errors.ParamError, match=named):
    ngrams.check(params, order=3, vocab_size=VOCAB, where='here')


def test_a_model_of_another_vocabulary_is_refused():
  with pytest.raises(errors.VocabError, match="the target's 7"):
    ngrams.check({'ngrams': random_model(2, 0)[0]}, order=2, vocab_size=VOCAB + 1, where='here')
