"""With the real random streams: two million answers of a sequence cascade and of a token cascade against their exact laws.

Enumeration integrates every round by itself and would not see a second answer that reuses the random numbers of the
first: it would be conditioned on the drafter having drawn an unlikely answer with them. Level and power are those of
`test_random_streams`.
"""

import itertools

import jax
import numpy as np
import pytest

from specjax import routers
from specjax.core import types
from specjax.decode import routed
from specjax.decode import run
from specjax.decode import sequence_cascade
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import routing_mutants
from specjax.testing import routing_oracles
from specjax.testing import statistics
from specjax.testing import toy

pytestmark = pytest.mark.nightly  # minutes; the planted bugs of the default suite see the same faults

V, LENGTH, ROWS, BATCHES = 3, 3, 32768, 62
TOTAL = ROWS * BATCHES
MISSED_VARIATION = 0.005
REQUEST = exactness.Request(prompt=(1, 2), max_new_tokens=LENGTH, warp=oracles.Warp(temperature=1.2))
CONFIDENCE, RATE = -1.0, 0.4


@pytest.fixture(scope='module')
def pair():
  return toy.toy_pair(vocab_size=V, seed=2, scale=0.8)


def sequence_decoder(pair):
  return sequence_cascade.SequenceCascade(
      target=pair.target, drafter=pair.drafter, confidence='mean_log_prob', threshold=CONFIDENCE)


def routed_decoder(pair):
  return routed.RoutedDecoder(
      target=pair.target, drafter=pair.drafter, router=routers.RandomRouter(rate=RATE), chunk=2)


def sampled(pair, decoder, *, batches=BATCHES):
  """(counts int64[V^LENGTH], answers of the target or deferred tokens) of `batches` * ROWS rows."""
  one = exactness.arrays([REQUEST], vocab_size=V, dtype=np.float32)
  requests = jax.tree.map(lambda x: np.repeat(x, ROWS, axis=0), one)
  counts, asked = np.zeros(V**LENGTH, np.int64), 0
  digits = V ** np.arange(LENGTH - 1, -1, -1)
  for batch in range(batches):
    ids = np.arange(batch * ROWS, (batch + 1) * ROWS, dtype=np.uint32)
    state = run.prefill(decoder, pair.params, requests.replace(example_id=ids), capacity=2 + LENGTH + decoder.slack)
    found = run.collect(run.decode(decoder, pair.params, state, max_steps=2 * LENGTH))
    assert np.all(found.status == types.Status.LIMIT)
    counts += np.bincount(found.tokens[:, 2:2 + LENGTH] @ digits, minlength=V**LENGTH)
    asked += int(found.stats.target_calls.sum())
  return counts, asked


def exact(pair, law):
  """float64[V^LENGTH] of `law(Models)`, an `oracles.RoundStructured`, and its counters."""
  oracle = exactness.Oracle.of([REQUEST], target=pair.target, drafter=pair.drafter, params=pair.params)
  found = law(routing_oracles.Models.of(oracle, 0))
  sequences = itertools.product(range(V), repeat=LENGTH)
  return np.array([found.law.get((tokens, types.Status.LIMIT), 0.0) for tokens in sequences]), found.counters


SEQUENCE = lambda models: routing_oracles.sequence_cascade(models, 'mean_log_prob', CONFIDENCE)
TOKEN = lambda models: routing_oracles.token_cascade(models, routing_oracles.random(RATE))


@pytest.mark.parametrize('decoder, law', [(sequence_decoder, SEQUENCE), (routed_decoder, TOKEN)])
def test_two_million_answers_follow_the_law(pair, decoder, law):
  counts, asked = sampled(pair, decoder(pair))
  probs, counters = exact(pair, law)
  for test in (statistics.pearson, statistics.g_test):
    statistic, freedom, p_value = test(counts, probs)
    print(f'{test.__name__}: n {TOTAL}, statistic {statistic:.1f}, {freedom} degrees of freedom, p {p_value:.3f}')
    assert p_value > statistics.ALPHA
  assert statistics.power(TOTAL, MISSED_VARIATION, freedom) >= 0.99
  # At most LENGTH per row: its deviation is at most LENGTH / 2.
  assert abs(asked / TOTAL - counters['target_calls']) < 5 * LENGTH / 2 / TOTAL**0.5


def test_a_second_answer_with_the_random_numbers_of_the_first_is_seen(pair):
  """Negative control: the same test on half a million answers of the planted bug."""
  with routing_mutants.MUTANTS['R11'].applied():
    counts, _ = sampled(pair, sequence_decoder(pair), batches=16)
  probs, counters = exact(pair, SEQUENCE)
  distance = 0.5 * np.abs(counts / counts.sum() - probs).sum()
  print(f'{counters["target_calls"] / LENGTH:.2f} of the answers are written again; law off by {distance:.3f}')
  assert statistics.pearson(counts, probs)[2] < statistics.ALPHA and distance > MISSED_VARIATION
