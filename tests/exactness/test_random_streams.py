"""With the real random streams: the joint law of two blocks and more, in two million sequences, and what addresses do.

Enumeration integrates every round by itself and cannot see uniforms that return; here nothing is replaced. The test's level
is 1e-6; its chance to miss a joint law at total variation 0.005 is at most 1 %, in the worst case, computed and simulated.
Block verification scans on past a failed test, so that the uniforms of a rejected suffix are no longer uniform given what
was accepted: with it, random numbers that return in the next round change the law, and are seen.
"""

import itertools

import jax
import numpy as np
import pytest

from specjax import drafters
from specjax import rules
from specjax.core import types
from specjax.decode import run
from specjax.decode import speculative
from specjax.testing import exactness
from specjax.testing import mutants
from specjax.testing import oracles
from specjax.testing import statistics
from specjax.testing import toy

V, K, LENGTH, ROWS, BATCHES = 3, 2, 4, 32768, 62
TOTAL = ROWS * BATCHES
MISSED_VARIATION = 0.005
VERIFIERS = {'token': speculative.TokenVerifier(), 'block': speculative.BlockVerifier()}


@pytest.fixture(scope='module', params=VERIFIERS)
def verifier(request):
  """'token' or 'block'."""
  return request.param


@pytest.fixture(scope='module')
def setting(verifier):
  """(pair, decoder, request) of the sampled law."""
  return setting_of(verifier)


def setting_of(verifier):
  pair = toy.toy_pair(vocab_size=V, seed=2, scale=0.5)
  decoder = speculative.SpeculativeDecoder(
      target=pair.target, drafter=drafters.ModelDrafter(model=pair.drafter, num_draft_tokens=K), rule=rules.Lossless(),
      verifier=VERIFIERS[verifier], with_log_probs=False)
  return pair, decoder, exactness.Request(prompt=(1, 2), max_new_tokens=LENGTH, warp=oracles.Warp(temperature=1.2))


@pytest.fixture(scope='module')
def sampled(setting):
  """(counts int64[V^LENGTH], sums and sums of squares of the counters over rows) of TOTAL sequences."""
  return sample(setting, BATCHES)


def sample(setting, num_batches):
  pair, decoder, request = setting
  one = exactness.arrays([request], vocab_size=V, dtype=np.float32)
  tile = lambda x: np.repeat(x, ROWS, axis=0)
  requests = one.replace(**{name: _tiled(getattr(one, name), tile) for name in (
      'prompt', 'sampling', 'max_new_tokens', 'eos_ids', 'seed', 'sample_index')})
  counts, moments = np.zeros(V**LENGTH, np.int64), {}
  digits = V ** np.arange(LENGTH - 1, -1, -1)
  for batch in range(num_batches):
    ids = np.arange(batch * ROWS, (batch + 1) * ROWS, dtype=np.uint32)
    state = run.prefill(decoder, pair.params, requests.replace(example_id=ids), capacity=2 + LENGTH + K + 1)
    found = run.collect(run.decode(decoder, pair.params, state, max_steps=LENGTH))
    assert np.all(found.status == types.Status.LIMIT)
    counts += np.bincount(found.tokens[:, 2:2 + LENGTH] @ digits, minlength=V**LENGTH)
    for name in ('steps', 'accepted', 'evaluated', 'accepted_by_position', 'evaluated_by_position'):
      values = getattr(found.stats, name).astype(np.float64)
      sums = moments.setdefault(name, [0.0, 0.0])
      sums[0], sums[1] = sums[0] + values.sum(axis=0), sums[1] + (values**2).sum(axis=0)
  return counts, moments


def _tiled(value, tile):
  if isinstance(value, np.ndarray):
    return tile(value)
  if isinstance(value, types.Prompt):
    return types.Prompt(*(None if x is None else tile(x) for x in value))
  return value.replace(**{name: tile(getattr(value, name)) for name in ('temperature', 'top_k', 'top_p', 'min_p')})


def exact(setting, verifier='token'):
  """(probabilities of every sequence, `oracles.RoundStructured`) of the request."""
  pair, _, request = setting
  laws = exactness.Oracle.of([request], target=pair.target, drafter=pair.drafter, params=pair.params).laws(0)
  law = oracles.product_law(laws.goal, max_new_tokens=LENGTH)
  sequences = itertools.product(range(V), repeat=LENGTH)
  probs = np.array([law.get((tokens, types.Status.LIMIT), 0.0) for tokens in sequences])
  return probs, oracles.round_structured(laws, num_draft_tokens=K, max_new_tokens=LENGTH, verifier=verifier)


def test_two_million_sequences_follow_the_law(setting, sampled):
  probs, _ = exact(setting)
  for test in (statistics.pearson, statistics.g_test):
    statistic, freedom, p_value = test(sampled[0], probs)
    print(f'{test.__name__}: n {TOTAL}, statistic {statistic:.1f}, {freedom} degrees of freedom, p {p_value:.3f}')
    assert p_value > statistics.ALPHA
  strength = statistics.power(TOTAL, MISSED_VARIATION, freedom)
  print(f'power at total variation {MISSED_VARIATION}: {strength:.5f}')
  assert strength >= 0.99


def test_the_counts_are_told_apart_from_a_law_at_total_variation_of_half_a_percent(setting, sampled):
  """Negative control with the sampled counts, and the power simulated."""
  probs, _ = exact(setting)
  other = statistics.worst_direction(probs, MISSED_VARIATION)
  assert abs(0.5 * np.abs(other - probs).sum() - MISSED_VARIATION) < 1e-12
  assert statistics.pearson(sampled[0], other)[2] < statistics.ALPHA
  random = np.random.RandomState(0)
  caught = [statistics.pearson(random.multinomial(TOTAL, other), probs)[2] < statistics.ALPHA for _ in range(300)]
  assert np.mean(caught) >= 0.98
  calm = [statistics.pearson(random.multinomial(TOTAL, probs), probs)[2] for _ in range(300)]
  assert min(calm) > statistics.ALPHA and 0.4 < np.mean(calm) < 0.6


def test_measured_acceptance_is_the_closed_form_within_four_sigma(setting, sampled, verifier):
  """Accepted and evaluated tokens, by position too, and rounds: means of two million rows against sum min(p, q)."""
  _, rounds = exact(setting, verifier)
  for name, (total, squares) in sampled[1].items():
    mean = np.asarray(total) / TOTAL
    sigma = np.sqrt(np.maximum(np.asarray(squares) / TOTAL - mean**2, 1e-12) / TOTAL)
    distance = np.max(np.abs(mean - rounds.counters[name]) / sigma)
    print(f'{name}: {mean} against {rounds.counters[name]}, {distance:.2f} sigma')
    assert distance < 4


def test_uniforms_that_return_in_the_next_round_are_seen_with_block_verification():
  """Negative control: random numbers addressed by token position, which enumeration cannot see."""
  setting = setting_of('block')
  probs, _ = exact(setting)
  num_batches = 8
  with mutants.MUTANTS['N25'].applied():
    reused = sample(setting, num_batches)[0]
  fresh = sample(setting, num_batches)[0]
  distance, noise = (0.5 * np.abs(counts / counts.sum() - probs).sum() for counts in (reused, fresh))
  print(f'{num_batches * ROWS} sequences: total variation {distance:.4f} with returning uniforms, {noise:.4f} with fresh')
  assert statistics.pearson(reused, probs)[2] < statistics.ALPHA < statistics.pearson(fresh, probs)[2]


def test_no_row_meets_a_round_start_twice(setting):
  """The addresses a decode consumes: (row, round start) pairs are distinct, and the row keys never change."""
  pair, decoder, request = setting
  decoder = decoder.replace(with_log_probs=True)
  requests = exactness.arrays([exactness.Request(
      prompt=(1, 2, 0)[:1 + i % 3], max_new_tokens=20, warp=request.warp) for i in range(8)], vocab_size=V, dtype=np.float32)
  state = run.prefill(decoder, pair.params, requests, capacity=32)
  seen, keys = set(), None
  while True:
    found, key = run.collect(state), np.asarray(jax.random.key_data(state.key))
    live = np.flatnonzero(found.status == types.Status.RUNNING)
    if not live.size:
      break
    addresses = {(int(row), int(found.length[row])) for row in live}
    assert not addresses & seen and (keys is None or np.array_equal(keys, key))
    seen, keys = seen | addresses, key
    state = run.step(decoder, pair.params, state)
  assert len(seen) == found.stats.steps.sum() == found.stats.target_calls.sum()

