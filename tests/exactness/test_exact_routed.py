"""The joint law of token and sequence cascades over all sequences equals the oracle's: total variation at most 1e-12.

As in `test_exact_law`, a case is one compiled structure, its requests are enumerated together, and thresholds are traced.
One request at one threshold is one configuration. Expected deferrals, drafter calls and emitted tokens are compared too.

Many cases run one row at a time, where expected target passes are compared too, or three: in a large batch of cells
somebody defers in every round, all the others catch up with it, and nobody's target would ever be far behind.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from specjax import routers
from specjax.decode import routed
from specjax.decode import sequence_cascade
from specjax.models import gemma
from specjax.models import t5
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import routing_oracles
from specjax.testing import toy

W = oracles.Warp
TOLERANCE = 1e-12
PROBE = (0.7, -1.1, 0.4), -0.3  # kernel on the drafter's logits, bias
ALWAYS, NEVER = -1.0, 1.0  # Chow's thresholds at which every token is deferred, or none


def requests(*warps, vocab_size, limits, eos=((),), stops=((),), encoder=False):
  """One `Request` per warp, with ragged prompts; limits, EOS and stop sequences cycle."""
  cycle = lambda values, i: values[i % len(values)]
  prompt = lambda i: tuple((3 * i + j * j + i * j) % vocab_size for j in range(1 if encoder else 1 + i % 3))
  source = lambda i: tuple((i + 2 * j) % vocab_size for j in range(1 + (i + 1) % 3)) if encoder else None
  return [
      exactness.Request(
          prompt=prompt(i), max_new_tokens=cycle(limits, i), warp=warp, eos_ids=cycle(eos, i),
          stop_sequences=cycle(stops, i), encoder=source(i)) for i, warp in enumerate(warps)]


PLAIN = (
    W(), W(temperature=0.0), W(temperature=0.5), W(temperature=1.7), W(top_k=2), W(top_p=0.8), W(min_p=0.4),
    W(temperature=1.7, top_k=2, top_p=0.9), W(temperature=0.5, top_p=0.95, min_p=0.05))
FEW = (W(), W(temperature=0.0), W(temperature=0.5, top_k=2), W(temperature=1.7, top_p=0.85, min_p=0.1))
MASKED = (
    W(logit_bias=(1.0, -0.5, 0.0)), W(allowed_tokens=(True, True, False)), W(allowed_tokens=(False, True, True), top_p=0.9),
    W(logit_bias=(-2.0, 0.0, 2.0), temperature=0.5))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One structure; `vary` holds the thresholds, of the router or of the confidence."""

  vocab_size: int
  requests: list[exactness.Request]
  vary: tuple[float, ...]
  router: str = 'ChowRouter'
  chunk: int = 2
  confidence: str = 'mean_log_prob'
  quantile: float | None = None
  models: str = 'toy'  # 'toy', 'encoder-decoder toy', 'gemma' or 't5'
  window: int = 0
  drafter_window: int = 0
  rows: int = 256
  seed: int = 1


ROUTED = {
    'Chow, chunk 2': Case(
        vocab_size=3, vary=(ALWAYS, 0.45, 0.5, 0.6, NEVER),
        requests=requests(*PLAIN, vocab_size=3, limits=(4, 3, 4, 2), eos=((), (1,), (2, 0)))),
    'Chow, chunk 1': Case(
        vocab_size=3, chunk=1, rows=1, vary=(0.5, 0.6), seed=2,
        requests=requests(*FEW, vocab_size=3, limits=(5, 3), eos=((), (1,)))),
    'Chow, chunk 4, limits 0 and 1': Case(
        vocab_size=4, chunk=4, rows=1, vary=(0.55, 0.65), seed=3,
        requests=requests(*FEW, W(top_p=0.8), vocab_size=4, limits=(5, 1, 4, 0, 3), eos=((), (3,)))),
    'Chow, windows 3 and 2, chunk 4': Case(
        vocab_size=2, chunk=4, rows=1, window=3, drafter_window=2, vary=(0.4, 0.45),
        requests=requests(*FEW, vocab_size=2, limits=(6, 5), eos=((), (1,)))),
    'Chow, encoder-decoder': Case(
        vocab_size=3, models='encoder-decoder toy', vary=(ALWAYS, 0.4, 0.5, NEVER),
        requests=requests(*FEW, W(top_k=2), vocab_size=3, limits=(4, 3), eos=((), (1,)), encoder=True)),
    'Chow, bias and masks': Case(
        vocab_size=3, rows=3, vary=(0.35, 0.5), requests=requests(*MASKED, vocab_size=3, limits=(4, 3), eos=((), (2,)))),
    'Chow, stop sequences': Case(
        vocab_size=3, rows=3, vary=(0.5,), requests=requests(
            *FEW, vocab_size=3, limits=(4, 5), eos=((), (1,)), stops=(((0, 1), (2, 2)), ((0,),), ()))),
    'entropy': Case(
        vocab_size=3, router='EntropyRouter', rows=1, vary=(-1.0, 0.85, 0.95, 2.0),
        requests=requests(*FEW, vocab_size=3, limits=(4, 3), eos=((), (1,)))),
    'random': Case(
        vocab_size=3, router='RandomRouter', chunk=4, rows=3, vary=(0.0, 0.35, 1.0),
        requests=requests(*FEW, W(top_p=0.8), vocab_size=3, limits=(4, 3), eos=((), (1,)))),
    'difference oracle': Case(
        vocab_size=3, router='DiffOracle', chunk=1, rows=1, vary=(-1.0, -0.1, 0.0, 0.1, 1.0),
        requests=requests(*FEW, vocab_size=3, limits=(4, 3), eos=((), (1,)))),
    'divergence oracle': Case(
        vocab_size=3, router='KL', chunk=1, rows=1, vary=(-1.0, 0.3, 0.6, 50.0),
        requests=requests(*FEW, vocab_size=3, limits=(4, 3), eos=((), (1,)))),
    'divergence oracle, reverse': Case(
        vocab_size=3, router='reverse KL', rows=3, vary=(0.3, 0.6),
        requests=requests(*FEW, vocab_size=3, limits=(4, 3), eos=((), (1,)))),
    'divergence oracle, flipped': Case(
        vocab_size=3, router='flipped KL', rows=1, vary=(-1.0, 0.3, 0.6, 50.0), seed=2,
        requests=requests(*FEW, vocab_size=3, limits=(4, 3), eos=((), (1,)))),
    'probe, chunk 4': Case(
        vocab_size=3, router='probe', chunk=4, rows=1, vary=(0.0, 0.35, 0.5, 1.0),
        requests=requests(*FEW, W(top_p=0.8), vocab_size=3, limits=(5, 3), eos=((), (1,)))),
    'probe, encoder-decoder': Case(
        vocab_size=3, router='probe', models='encoder-decoder toy', rows=3, vary=(0.35, 0.5),
        requests=requests(*FEW, vocab_size=3, limits=(4, 3), eos=((), (1,)), encoder=True)),
    'Gemma, sliding window 3, chunk 4': Case(
        vocab_size=3, models='gemma', chunk=4, rows=1, vary=(0.3, 0.5),
        requests=requests(*FEW, vocab_size=3, limits=(5, 3), eos=((), (1,)))),
    'T5, chunk 2': Case(
        vocab_size=3, models='t5', rows=1, vary=(0.2, 0.4),
        requests=requests(*FEW, vocab_size=3, limits=(4,), eos=((), (1,)), encoder=True)),
}

SEQUENCES = {
    'mean': Case(
        vocab_size=3, vary=(-1e9, -1.0, -0.9, 1.0),
        requests=requests(*PLAIN, vocab_size=3, limits=(4, 3, 4, 2), eos=((), (1,), (2, 0)))),
    'sum, limits 0 and 1': Case(
        vocab_size=3, confidence='sum_log_prob', vary=(-3.0, -1.2), seed=2,
        requests=requests(*FEW, W(top_p=0.8), vocab_size=3, limits=(4, 0, 3, 1), eos=((), (1,)))),
    'minimum, windows': Case(
        vocab_size=2, confidence='minimum', window=3, drafter_window=2, vary=(0.0, 0.4, 2.0),
        requests=requests(*FEW, vocab_size=2, limits=(5, 4), eos=((), (1,)))),
    'quantile 0.3': Case(
        vocab_size=3, confidence='quantile', quantile=0.3, vary=(0.33, 0.45),
        requests=requests(*FEW, vocab_size=3, limits=(4, 5), eos=((), (1,)))),
    'median, encoder-decoder': Case(
        vocab_size=3, confidence='quantile', quantile=0.5, models='encoder-decoder toy', vary=(0.35, 0.5),
        requests=requests(*FEW, vocab_size=3, limits=(4, 3), eos=((), (1,)), encoder=True)),
    'mean, bias and masks': Case(
        vocab_size=3, vary=(-0.8,), requests=requests(*MASKED, vocab_size=3, limits=(4, 3), eos=((), (2,)))),
    'mean, stop sequences': Case(
        vocab_size=3, vary=(-1.0,), requests=requests(
            *FEW, vocab_size=3, limits=(4, 5), eos=((), (1,)), stops=(((0, 1), (2, 2)), ((0,),), ()))),
    'Gemma, sliding window 3': Case(
        vocab_size=3, models='gemma', rows=64, vary=(-0.8,),
        requests=requests(*FEW, vocab_size=3, limits=(4, 3), eos=((), (1,)))),
    'T5': Case(
        vocab_size=3, models='t5', rows=64, vary=(0.2, 0.35), confidence='minimum',
        requests=requests(*FEW, vocab_size=3, limits=(3,), eos=((), (1,)), encoder=True)),
}


def build_models(case):
  """(target, drafter, params) of a case; float64."""
  if case.models in ('gemma', 't5'):
    build = _gemma if case.models == 'gemma' else _t5
    target, drafter = build(case.vocab_size, 2), build(case.vocab_size, 1)
    return target, drafter, {
        'target': exactness.random_params(target, case.seed), 'drafter': exactness.random_params(drafter, case.seed + 1)}
  pair = toy.toy_pair(
      vocab_size=case.vocab_size, seed=case.seed, window=case.window, drafter_window=case.drafter_window,
      has_encoder=case.models.startswith('enc'), scale=0.6)
  return pair.target, pair.drafter, pair.params | ({'router': toy.linear_probe(*PROBE)} if case.router == 'probe' else {})


def _gemma(vocab_size, num_layers):
  config = gemma.DecoderConfig(
      vocab_size=vocab_size, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4,
      layer_kinds=(gemma.LOCAL, gemma.GLOBAL)[:num_layers], activation='gelu', window=3, norm_plus_one=True,
      post_norms=True, attention_softcap=20.0, final_softcap=10.0)
  return gemma.DecoderLM(config, dtype=jnp.float64, param_dtype=jnp.float64, max_extend=4, block_size=4)


def _t5(vocab_size, num_layers):
  config = t5.T5Config(
      vocab_size=vocab_size, embed_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=1,
      num_decoder_layers=num_layers, num_buckets=8, max_distance=12, mlp='gated_gelu', tied_head=False, scale_logits=False)
  return t5.T5LM(config, jnp.float64, jnp.float64)


def enumerated(case, decoders, *, at=0.5, optimise=False, policy_breaks=(), phase_of=None):
  """One `JointLaw` per decoder, all of one structure, and the `Models` of every request."""
  target, drafter, params = build_models(case)
  phases = {} if phase_of is None else dict(phase_of=phase_of)
  enumerator = enumeration.Enumerator(rows=case.rows, at=at, policy_breaks=policy_breaks, optimise=optimise, **phases)
  asked = exactness.arrays(case.requests, vocab_size=case.vocab_size)
  oracle = exactness.Oracle.of(case.requests, target=target, drafter=drafter, params=params)
  models = [routing_oracles.Models.of(oracle, row) for row in range(len(case.requests))]
  joints = [enumerator.joint(decoder, params, asked, capacity=exactness.capacity(decoder, case.requests))
            for decoder in decoders(target, drafter)]
  return joints, models


# Threshold -> router, and threshold -> what it must do.
ROUTERS = {
    'ChowRouter': (lambda value: routers.ChowRouter(threshold=value), routing_oracles.chow),
    'EntropyRouter': (lambda value: routers.EntropyRouter(threshold=value), routing_oracles.entropy),
    'RandomRouter': (lambda value: routers.RandomRouter(rate=value), routing_oracles.random),
    'DiffOracle': (lambda value: routers.DiffOracle(threshold=value), routing_oracles.difference),
    'KL': (lambda value: routers.KLOracle(threshold=value), routing_oracles.divergence),
    'reverse KL': (lambda value: routers.KLOracle(threshold=value, direction='drafter_target'),
                   lambda value: routing_oracles.divergence(value, 'drafter_target')),
    'flipped KL': (lambda value: routers.KLOracle(threshold=value, is_flipped=True),
                   lambda value: routing_oracles.divergence(value, is_flipped=True)),
    'probe': (lambda value: routers.LearnedRouter(threshold=value), lambda value: routing_oracles.probe(value, *PROBE)),
}


def check_routed(case, **kwargs):
  """Every configuration of a token cascade against its oracle; returns [(Discrepancy, expected counters, value)]."""
  make, deferral = ROUTERS[case.router]
  decoders = lambda target, drafter: [
      routed.RoutedDecoder(target=target, drafter=drafter, router=make(value), chunk=case.chunk) for value in case.vary]
  breaks = [(0.35,)] * len(case.requests) if case.router == 'RandomRouter' else ()
  joints, models = enumerated(case, decoders, policy_breaks=breaks, **kwargs)
  found = []
  for value, joint in zip(case.vary, joints):
    for row, one in enumerate(models):
      expected = routing_oracles.token_cascade(
          one, deferral(value), chunk=case.chunk if case.rows == 1 else None, needs_target=make(value).needs_target)
      found.append((routing_oracles.discrepancy(joint, row, expected), expected.counters, value))
  return found


def check_sequences(case, **kwargs):
  """Every configuration of a sequence cascade against its oracle."""
  decoders = lambda target, drafter: [
      sequence_cascade.SequenceCascade(
          target=target, drafter=drafter, confidence=case.confidence, threshold=value, quantile=case.quantile)
      for value in case.vary]
  joints, models = enumerated(case, decoders, phase_of=lambda state: state.drafter_state.phase, **kwargs)
  found = []
  for value, joint in zip(case.vary, joints):
    for row, one in enumerate(models):
      expected = routing_oracles.sequence_cascade(one, case.confidence, value, case.quantile)
      found.append((routing_oracles.discrepancy(joint, row, expected), expected.counters, value))
  return found


def assert_exact(name, found, tolerance=TOLERANCE):
  """Laws within the tolerance, expected counters within ten times that; some configuration is a real mixture."""
  print(f'{name}: {len(found)} configurations, largest TV {max(one.law for one, _, _ in found):.1e}, largest counter '
        f'difference {max(one.counters for one, _, _ in found):.1e}')
  for i, (one, _, value) in enumerate(found):
    assert one.mass <= tolerance and one.law <= tolerance and one.counters <= 10 * tolerance, (i, value, one)
  share = [counters['target_calls'] / counters['emitted'] for _, counters, _ in found if counters]
  assert any(0.05 < x < 0.95 for x in share), share


def test_at_least_a_hundred_configurations():
  counted = [sum(len(case.requests) * len(case.vary) for case in cases.values()) for cases in (ROUTED, SEQUENCES)]
  assert counted[0] >= 100 and counted[1] >= 60


@pytest.mark.parametrize('name', ROUTED)
def test_token_cascade_draws_from_the_target_where_the_router_defers(name, x64):
  assert_exact(name, check_routed(ROUTED[name]))


@pytest.mark.parametrize('name', SEQUENCES)
def test_sequence_cascade_keeps_confident_answers_and_draws_the_others_afresh(name, x64):
  assert_exact(name, check_sequences(SEQUENCES[name]))


@pytest.mark.parametrize('at', [1e-6, 1 - 1e-6])
def test_cells_end_where_the_trace_says(at, x64):
  """Evaluated next to the edges of every cell the laws are the same: no comparison happens anywhere else."""
  case = dataclasses.replace(ROUTED['random'], vary=(0.35,))
  assert_exact('token cascade', check_routed(case, at=at, optimise=True))
  case = dataclasses.replace(SEQUENCES['quantile 0.3'], vary=(0.45,))
  assert_exact('sequence cascade', check_sequences(case, at=at, optimise=True))


def test_float32_laws_are_right_to_rounding():
  """The token cascade in the dtype of production; thresholds are away from every confidence."""
  case = ROUTED['Chow, chunk 2']
  target, drafter, params = build_models(case)
  decoder = routed.RoutedDecoder(target=target, drafter=drafter, router=routers.ChowRouter(threshold=0.5), chunk=2)
  joint = enumeration.Enumerator(rows=case.rows).joint(
      decoder, {name: {k: v.astype(np.float32) for k, v in leaves.items()} for name, leaves in params.items()},
      exactness.arrays(case.requests, vocab_size=3, dtype=np.float32), capacity=exactness.capacity(decoder, case.requests))
  oracle = exactness.Oracle.of(case.requests, target=target, drafter=drafter, params=params)
  for row in range(len(case.requests)):
    expected = routing_oracles.token_cascade(routing_oracles.Models.of(oracle, row), routing_oracles.chow(0.5))
    assert routing_oracles.discrepancy(joint, row, expected).law < 2e-6


@pytest.mark.parametrize('deferral', [
    routing_oracles.chow(0.6), lambda target, drafter: 1 - routing_oracles.chow(0.5)(target, drafter)])
def test_oracle_of_another_router_is_told_apart(deferral: Any, x64):
  """Negative control: the comparison is not satisfied by another threshold or by the opposite decision."""
  case = dataclasses.replace(ROUTED['Chow, chunk 2'], vary=(0.5,))
  joints, models = enumerated(case, lambda target, drafter: [routed.RoutedDecoder(
      target=target, drafter=drafter, router=routers.ChowRouter(threshold=0.5), chunk=2)])
  found = [routing_oracles.discrepancy(joints[0], row, routing_oracles.token_cascade(one, deferral))
           for row, one in enumerate(models)]
  assert max(one.law for one in found) > 1e-3


def test_oracle_of_another_confidence_is_told_apart(x64):
  """Negative control: a mean is not a minimum, and a kept answer is not one of the target."""
  case = dataclasses.replace(SEQUENCES['mean'], vary=(-1.0,))
  joints, models = enumerated(
      case, lambda target, drafter: [sequence_cascade.SequenceCascade(
          target=target, drafter=drafter, confidence='mean_log_prob', threshold=-1.0)],
      phase_of=lambda state: state.drafter_state.phase)
  for kind, threshold in (('minimum', float(np.exp(-1.0))), ('mean_log_prob', 1.0), ('mean_log_prob', -0.9)):
    found = [routing_oracles.discrepancy(joints[0], row, routing_oracles.sequence_cascade(one, kind, threshold))
             for row, one in enumerate(models)]
    assert max(one.law for one in found) > 1e-3
