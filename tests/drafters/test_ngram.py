"""What an n-gram drafter proposes, and that greedy output stays the target's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax import drafters
from specjax.core import errors
from specjax.core import types
from specjax.decode import methods
from specjax.testing import ngram_oracles
from specjax.testing import toy
from specjax.training import ngram_counts

VOCAB = 6
SEQUENCES = [[int(token) for token in np.random.RandomState(seed).zipf(1.4, 40) % VOCAB] for seed in range(4)]
TRAINING = dict(vocab_size=VOCAB, discount_fallback=ngram_counts.FALLBACK)


@functools.cache
def ngram_model(order):
  return ngram_counts.train(SEQUENCES, order=order, **TRAINING)


def proposed(texts, *, order=3, with_bonus=False, temperature=1.0, **options):
  """The proposal behind some texts."""
  drafter = drafters.NgramDrafter(**dict(vocab_size=VOCAB, num_draft_tokens=3) | options)
  tokens = np.full((len(texts), 24), 1, np.int32)
  for row, text in enumerate(texts):
    tokens[row, :len(text)] = text
  random = np.random.RandomState(0)
  draws = lambda *shape: jnp.asarray(random.rand(len(texts), *shape), jnp.float32)
  uniforms = types.RoundUniforms(draft=draws(4, 2), policy=draws(4), accept=draws(3), final=draws(2))
  row = lambda value, dtype: jnp.full((len(texts),), value, dtype)
  sampling = types.Sampling(
      temperature=row(temperature, jnp.float32), top_k=row(0, jnp.int32), top_p=row(1, jnp.float32),
      min_p=row(0, jnp.float32), logit_bias=None, allowed_tokens=None)
  params = {'ngrams': ngram_model(order)}
  propose = jax.jit(lambda tokens, length: drafter.propose(
      params, (), uniforms, tokens=tokens, length=length, sampling=sampling, live=jnp.ones(len(texts), bool),
      with_bonus=with_bonus)[0])
  return propose(tokens, np.array([len(text) for text in texts], np.int32))


def text_law(text, history, *, order, concentration):
  """float64[V] by the definition: the law of the token behind `history`, of counts in `text`."""
  probs = np.full(VOCAB, 1 / VOCAB)
  for span in range(order):
    context = list(history[len(history) - span:]) if span else []
    if span > len(history):
      break
    counts = np.zeros(VOCAB)
    for at in range(span, len(text)):
      if list(text[at - span:at]) == context and at >= 1:
        counts[text[at]] += 1
    probs = (counts + concentration * probs) / (counts.sum() + concentration)
  return probs


TEXTS = [[0, 1, 2, 0, 1, 3, 0, 1], [4], [2, 2, 2], [5, 0, 5, 0, 5]]


@pytest.mark.parametrize('draws', ['sampled', 'greedy'])
@pytest.mark.parametrize('source', ['trained', 'text'])
def test_laws_of_drafts_equal_the_definition(source, draws):
  options = dict(text_order=3, concentration=0.5) if source == 'text' else {}
  proposal = proposed(TEXTS, draws=draws, with_bonus=draws == 'sampled', **options)
  trained = ngram_oracles.KneserNey(SEQUENCES, order=3, **TRAINING)
  drafted = np.asarray(proposal.tokens).tolist()
  for row, text in enumerate(TEXTS):
    for index in range(4 if draws == 'sampled' else 3):
      history = text + drafted[row][:index]
      if source == 'text':
        law = text_law(text, history, order=3, concentration=0.5)
      else:
        law = np.array([trained.prob(history, token) for token in range(VOCAB)])
      if draws == 'greedy':
        assert drafted[row][index] == np.argmax(law) and proposal.log_probs[row, index, drafted[row][index]] == 0
        assert np.sum(np.exp(proposal.log_probs[row, index])) == 1
      else:
        np.testing.assert_allclose(np.exp(proposal.logits[row, index]), law, rtol=1e-5)
        if index < 3:
          np.testing.assert_allclose(np.exp(proposal.log_probs[row, index]), law, rtol=1e-5)


def pair_of(has_encoder=False, order=3):
  pair = toy.toy_pair(vocab_size=VOCAB, seed=1, has_encoder=has_encoder)
  return specjax.Pair(
      target=pair.target, drafter=pair.drafter, params=pair.params | {'ngrams': ngram_model(order)}, family=pair.family)


def generate(pair, method, temperature=0.0):
  return specjax.generate(
      pair, [[1, 2, 3], [4], [5, 0]], method=method, sampling=specjax.SamplingParams(temperature=temperature),
      max_new_tokens=12, seed=0, eos_ids=())


@pytest.mark.parametrize('options', [
    dict(), pytest.param(dict(draws='greedy', verifier='block'), marks=pytest.mark.nightly), dict(source='text'),
    pytest.param(dict(source='text', draws='greedy', order=1), marks=pytest.mark.nightly)], ids=str)
@pytest.mark.parametrize('has_encoder', [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_greedy_output_is_the_targets(options, has_encoder):
  pair = pair_of(has_encoder)
  plain, drafted = generate(pair, specjax.autoregressive()), generate(pair, methods.ngram(num_draft_tokens=3, **options))
  assert [row.tolist() for row in plain.tokens] == [row.tolist() for row in drafted.tokens]
  assert np.sum(drafted.stats.proposed) > 0 and np.sum(drafted.stats.drafter_calls) == 0


@pytest.mark.nightly
def test_a_rule_may_read_the_n_grams_law():
  result = generate(pair_of(), methods.ngram(num_draft_tokens=3, rule=specjax.Chow(threshold=1.0)), 1.0)
  # The drafter's law everywhere: all that is drafted is accepted.
  assert np.all(result.stats.evaluated == result.stats.accepted)


@pytest.mark.nightly
def test_a_cap_shortens_the_draft():
  result = generate(pair_of(), methods.ngram(num_draft_tokens=3, max_draft_tokens=1), 1.0)
  np.testing.assert_array_equal(result.stats.proposed, result.stats.steps)


@pytest.mark.parametrize('options, named', [
    (dict(num_draft_tokens=0), 'num_draft_tokens'), (dict(order=0), 'order'), (dict(order=9), 'order'),
    (dict(order=2), "3, that of params"), (dict(source='web'), 'source'), (dict(draws='best'), 'draws'),
    (dict(concentration=0.0), 'concentration'), (dict(max_draft_tokens=4), 'max_draft_tokens'),
    (dict(draws='greedy', rule=specjax.Chow(threshold=0.1)), "rule of ngram")])
def test_bad_options_are_named(options, named):
  with pytest.raises(errors.ParamError, match=named):
    methods.ngram(**dict(num_draft_tokens=3) | options)(pair_of())


def test_a_pair_without_n_grams_is_refused():
  with pytest.raises(errors.ParamError, match="the key 'ngrams'"):
    methods.ngram(num_draft_tokens=3)(toy.toy_pair(vocab_size=VOCAB, seed=1))
