"""Small checks of the decoding loop, each of which raises AssertionError when something is wrong.

Every one runs in seconds on toy models; together they kill every mutant of `specjax.testing.mutants`. They take no
arguments, find everything through the library's modules (so that a patched module is what they test) and compile afresh.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from specjax import drafters
from specjax import rules
from specjax.core import checks
from specjax.core import errors
from specjax.core import types
from specjax.decode import speculative
from specjax.ops import acceptance
from specjax.ops import categorical
from specjax.ops import keys
from specjax.ops import verification
from specjax.testing import adversarial
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import rule_detectors
from specjax.testing import toy

W = oracles.Warp
Request = exactness.Request
_CHEAP = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
_LAW_TOLERANCE = 1e-12

_LOSSLESS = [
    Request(prompt=(0, 1), max_new_tokens=4), Request(prompt=(2,), max_new_tokens=4, eos_ids=(1,)),
    Request(prompt=(1,), max_new_tokens=3, warp=W(temperature=0.5), eos_ids=(2,)),
    Request(prompt=(1, 1, 0), max_new_tokens=3, warp=W(temperature=1.7, top_p=0.75)),
    Request(prompt=(2, 0), max_new_tokens=4, warp=W(min_p=0.45)),
    Request(prompt=(0,), max_new_tokens=4, warp=W(temperature=0.0)),
    Request(prompt=(2, 1), max_new_tokens=3, warp=W(top_k=2, temperature=1.7), eos_ids=(0,))]


def _with_x64(function):
  @functools.wraps(function)
  def run(*args, **kwargs):
    with jax.enable_x64(True):
      return function(*args, **kwargs)
  return run


def _check(condition, message):
  if not condition:
    raise AssertionError(message)


def _pair():
  return toy.toy_pair(vocab_size=3, seed=1, scale=0.6)


def _decoder(pair, num_draft_tokens=2, *, rule=None, **kwargs):
  cap = kwargs.pop('cap', None)
  drafter = drafters.ModelDrafter(model=pair.drafter, num_draft_tokens=num_draft_tokens, max_draft_tokens=cap)
  return speculative.SpeculativeDecoder(
      target=pair.target, drafter=drafter, rule=rule or rules.Lossless(), **kwargs)


def _found(decoder, pair, requests, *, at=0.5, **compared):
  """The discrepancies of one enumeration."""
  joint = enumeration.Enumerator(at=at).joint(
      decoder, pair.params, exactness.arrays(requests, vocab_size=pair.target.vocab_size),
      capacity=exactness.capacity(decoder, requests))
  oracle = exactness.Oracle.of(requests, target=pair.target, drafter=pair.drafter, params=pair.params)
  return exactness.compare(joint, oracle, num_draft_tokens=decoder.drafter.num_draft_tokens, **compared)


def _check_laws(found):
  worst = max(max(one.law, one.mass) for one in found)
  _check(worst <= _LAW_TOLERANCE, f'the joint law is off by {worst:.2e} in total variation')


@_with_x64
def lossless_law():
  """The joint law of speculative decoding is the target's: temperatures, filters, EOS, limits, ragged prompts."""
  pair = _pair()
  _check_laws(_found(_decoder(pair), pair, _LOSSLESS))


@_with_x64
def lossless_law_at_cell_edges():
  """As `lossless_law`, next to the upper edge of every cell: draws compare with exactly the law they return."""
  pair = _pair()
  _check_laws(_found(_decoder(pair), pair, _LOSSLESS, at=1 - 1e-6))


@_with_x64
def acceptance_oracle():
  """Expected rounds, emitted, evaluated and accepted tokens, in all and by position, are those of sum min(p, q)."""
  pair = _pair()
  worst = max(one.counters for one in _found(_decoder(pair), pair, _LOSSLESS))
  _check(worst <= 1e-11, f'an expected counter is off by {worst:.2e}')


@_with_x64
def token_rule_law():
  """The joint law of TokenV3 with its own bonus law."""
  pair = _pair()
  decoder = _decoder(pair, 1, rule=rules.TokenV3(threshold=0.4))
  _check_laws(_found(decoder, pair, _LOSSLESS, goal=oracles.token_v3_goal(0.4)))


@_with_x64
def target_bonus_law():
  """The joint law of TokenV3 with the bonus token from the target."""
  pair = _pair()
  decoder = _decoder(pair, 1, rule=rules.TokenV3(threshold=0.4), bonus='target')
  _check_laws(_found(decoder, pair, _LOSSLESS, goal=oracles.token_v3_goal(0.4), bonus='target'))


def hand_tables():
  """The acceptance test and residual against a hand table, and what must never be accepted."""
  drafter, goal = np.array([0.50, 0.25, 0.15, 0.10]), np.array([0.13, 0.62, 0.08, 0.17])
  log = lambda probs: jnp.log(jnp.asarray(probs, jnp.float32))
  close = lambda got, expected: np.allclose(np.asarray(got), expected, atol=1e-6)
  _check(close(acceptance.accept_probability(log(goal), log(drafter)), [0.26, 1, 0.08 / 0.15, 1]), 'acceptance')
  residual = acceptance.residual_probs(jnp.asarray(goal, jnp.float32), jnp.asarray(drafter, jnp.float32))
  _check(close(residual / residual.sum(), [0, 0.840909, 0, 0.159091]), 'residual')
  same = jnp.asarray(goal, jnp.float32)
  _check(close(acceptance.residual_probs(same, same), goal), 'a residual without mass is the goal')
  zero, nan = jnp.float32(-jnp.inf), jnp.float32(jnp.nan)
  for goal_log_prob, drafter_log_prob in ((zero, log(0.5)), (log(0.5), zero), (zero, zero), (nan, log(0.5)), (log(0.5), nan)):
    got = float(acceptance.accept_probability(goal_log_prob, drafter_log_prob))
    _check(got == 0, f'accepts with goal {goal_log_prob} and drafter {drafter_log_prob}: {got}')
  verdict, trace = verification.verify_tokens(
      jnp.zeros(1), jnp.array([0.0, 0.5]), tokens=jnp.array([0]), length=jnp.int32(1),
      drafter_log_probs=log([[1, 0, 0]]), goal_log_probs=log([[0, 0.5, 0.5], [1, 0, 0]]))
  _check(int(verdict.num_accepted) == 0 and float(trace.accept_probs[0]) == 0, 'a uniform of exactly 0 accepts')


def rule_tables():
  """Goals against hand tables: at temperature 0.5 the criteria still read the laws at temperature 1."""
  drafter, target = np.array([0.50, 0.25, 0.15, 0.10]), np.array([0.13, 0.62, 0.08, 0.17])
  expected = {
      (1.0, 0.48): [0.0975, 0.715, 0.06, 0.1275], (1.0, -0.1): target, (1.0, 0.0): [0.0975, 0.715, 0.06, 0.1275],
      (0.5, 0.75): [0.030574, 0.876579, 0.011578, 0.081269]}
  for (temperature, threshold), goal in expected.items():
    got = rules.TokenV3(threshold=threshold)(None, rule_inputs(drafter, target, temperature))
    _check(np.allclose(np.exp(got.log_probs), goal, atol=1e-6), f'TokenV3 {threshold} at {temperature}')
  for temperature, threshold, keeps in ((1.0, 0.48, False), (1.0, 0.55, True), (0.5, 0.40, False), (0.5, 0.55, True)):
    inputs = rule_inputs(drafter, target, temperature)
    got = rules.Chow(threshold=threshold)(None, inputs)
    law = inputs.drafter_log_probs if keeps else inputs.target_log_probs
    _check(np.array_equal(got.log_probs, law) and float(got.deferral) == (not keeps), f'Chow {threshold} at {temperature}')


def rule_inputs(drafter, target, temperature):
  """`RuleInputs` of two laws at temperature 1, tempered, without truncation."""
  plain = {'drafter': jnp.log(jnp.asarray(drafter, jnp.float32)), 'target': jnp.log(jnp.asarray(target, jnp.float32))}
  tempered = {name: jax.nn.log_softmax(law / temperature) for name, law in plain.items()}
  return types.RuleInputs(
      drafter_log_probs=tempered['drafter'], target_log_probs=tempered['target'],
      drafter_truncated_log_probs=tempered['drafter'], target_truncated_log_probs=tempered['target'],
      drafter_plain_log_probs=plain['drafter'], target_plain_log_probs=plain['target'], drafter_features=None,
      position=jnp.int32(3))


def draw_takes_no_massless_token():
  """A uniform of exactly 0, or just below 1, never draws a token without mass; every id is below V."""
  for vocab_size in (3, 100, 1000, 8193):
    probs = np.zeros(vocab_size, np.float32)
    probs[vocab_size // 2] = 0.25
    probs[vocab_size // 2 + 1] = 0.75
    for uniform in (0.0, 1 - 2.0**-24):
      for last in (uniform, 0.0):
        token = int(categorical.draw_from_probs(jnp.array([uniform, last], jnp.float32), jnp.asarray(probs)))
        _check(0 <= token < vocab_size and probs[token] > 0, f'V {vocab_size}, uniforms {uniform}, {last}: token {token}')


def decode(decoder, params, requests, *, capacity, max_rounds=64):
  """The final state of real rounds with real random numbers, stepped from the host; cheaply compiled, afresh each time."""
  init = jax.jit(lambda decoder, params, requests: decoder.init(params, requests, capacity), compiler_options=_CHEAP)
  step = jax.jit(lambda decoder, params, state: decoder.step(params, state), compiler_options=_CHEAP)
  decoder = jax.tree.map(np.asarray, decoder)
  state = init(decoder, params, requests)
  for _ in range(max_rounds):
    if not np.any(np.asarray(state.status) == types.Status.RUNNING):
      return state
    state = step(decoder, params, state)
  raise AssertionError(f'rows still run after {max_rounds} rounds')


def row(state, index):
  """Everything one row of a state produced, as a comparable tuple of bytes."""
  start, stop = int(state.prompt_length[index]), int(state.length[index])
  stats = [np.asarray(leaf)[index] for leaf in jax.tree.leaves(state.stats)]
  parts = [np.asarray(state.tokens)[index, start:stop], np.asarray(state.log_probs)[index, start:stop],
           np.asarray(state.status)[index], *stats]
  return tuple(np.asarray(part).tobytes() for part in parts)


def self_draft():
  """The target drafting for itself has everything accepted: target calls = ceil(n / (K + 1))."""
  for has_encoder in (False, True):
    pair = toy.toy_pair(vocab_size=5, seed=7, has_encoder=has_encoder)
    limits = (7, 6, 9, 1)
    requests = [
        Request(prompt=(1,) if has_encoder else (1, 2, 3)[:1 + i % 3], max_new_tokens=n,
                warp=W(temperature=(0.0, 1.0)[i % 2]), encoder=(1, 4, 2)[:1 + i % 3] if has_encoder else None)
        for i, n in enumerate(limits)]
    drafter = drafters.ModelDrafter(model=pair.target, num_draft_tokens=2)
    decoder = speculative.SpeculativeDecoder(target=pair.target, drafter=drafter, rule=rules.Lossless())
    params = {'target': pair.params['target'], 'drafter': pair.params['target']}
    state = decode(
        decoder, params, exactness.arrays(requests, vocab_size=5, dtype=np.float32),
        capacity=exactness.capacity(decoder, requests))
    calls = [math.ceil(n / 3) for n in limits]
    _check(np.asarray(state.stats.target_calls).tolist() == calls, f'target calls {state.stats.target_calls} not {calls}')
    _check(np.array_equal(state.stats.evaluated, state.stats.accepted), 'a draft of the target itself was rejected')


def row_independence():
  """A row's tokens, log-probabilities and counters are bitwise the same with other neighbours, slot and padding."""
  pair = toy.toy_pair(vocab_size=5, seed=3, scale=0.4)
  decoder = _decoder(pair, 2)
  subject = (Request(prompt=(3, 1), max_new_tokens=12, warp=W(temperature=1.2, top_p=0.95)), 77)
  crowds = [
      [(Request(prompt=(0, 1, 2, 4), max_new_tokens=6), 5), (Request(prompt=(2,), max_new_tokens=12), 6),
       (Request(prompt=(1, 1), max_new_tokens=9, warp=W(min_p=0.1)), 8)],
      [(Request(prompt=(2, 0), max_new_tokens=11, warp=W(temperature=0.0)), 9),
       (Request(prompt=(4, 4, 4, 4), max_new_tokens=1, warp=W(temperature=1.9, top_k=2)), 10),
       (Request(prompt=(0,), max_new_tokens=0), 11)]]
  init = jax.jit(lambda params, requests: decoder.init(params, requests, 19), compiler_options=_CHEAP)
  step = jax.jit(lambda params, state: decoder.step(params, state), compiler_options=_CHEAP)
  seen = set()
  for slot, crowd, poison in ((0, crowds[0], 0), (2, crowds[1], -1), (3, crowds[0][::-1], 2**31 - 1), (1, [subject] * 3, 1)):
    rows = [*crowd[:slot], subject, *crowd[slot:]]
    requests = exactness.arrays([request for request, _ in rows], vocab_size=5, dtype=np.float32)
    # One executable: every batch has the same prompt buffer.
    tokens = np.pad(requests.prompt.tokens, ((0, 0), (0, 4 - requests.prompt.tokens.shape[1])))
    tokens = np.where(np.arange(4)[None, :] < requests.prompt.length[:, None], tokens, poison).astype(np.int32)
    requests = requests.replace(
        prompt=requests.prompt._replace(tokens=tokens), example_id=np.array([address for _, address in rows], np.uint32))
    state = init(pair.params, requests)
    while np.any(np.asarray(state.status) == types.Status.RUNNING):
      state = step(pair.params, state)
    seen |= {row(state, i) for i, one in enumerate(rows) if one is subject}
  _check(len(seen) == 1, f'one request gave {len(seen)} different results')


@_with_x64
def caches_follow_text():
  """After every round, with draft lengths that vary, both caches give the logits of a fresh uncached pass."""
  pair = _pair()
  prompts = ((0,), (2, 1, 0), (0, 2, 2, 1))
  requests = [Request(prompt=prompts[i % 3], max_new_tokens=12, warp=W(temperature=1.3)) for i in range(6)]
  arrays = exactness.arrays(requests, vocab_size=3)
  decoder = _decoder(pair, 3, cap=np.int32(3))
  laws = {name: oracles.toy_forward(getattr(pair, name), pair.params[name]) for name in ('target', 'drafter')}
  init = jax.jit(lambda params, requests: decoder.init(params, requests, 24), compiler_options=_CHEAP)

  @functools.partial(jax.jit, compiler_options=_CHEAP)
  def probe(params, state, cap):
    uniforms = keys.round_uniforms(state.key, state.length, num_draft_tokens=3, dtype=jnp.float64)
    pending = jnp.take_along_axis(state.tokens, state.length[:, None] - 1, axis=1)
    output, _ = decoder.target.extend(
        params['target'], state.target_cache, pending, count=jnp.ones_like(state.length))
    capped = decoder.replace(drafter=decoder.drafter.replace(max_draft_tokens=cap))
    after, trace = capped.step_with(params, state, uniforms)
    return after, output.logits[:, 0], trace.proposal.logits[:, 0]

  state = init(pair.params, arrays)
  for step in range(8):
    running = np.asarray(state.status) == types.Status.RUNNING
    tokens, length = np.asarray(state.tokens), np.asarray(state.length)
    state, *logits = probe(pair.params, state, np.int32((3, 0, 2, 1)[step % 4]))
    batch = types.TrainingBatch(tokens, None, None, None, None)
    for name, cached in zip(('target', 'drafter'), logits):
      fresh = laws[name](batch)[np.arange(6), length - 1]
      wrong = np.abs(fresh - np.asarray(cached)).max(axis=1)[running]
      _check(np.all(wrong < 1e-9), f'round {step}: the {name} cache is off by {wrong.max():.3g}')


@_with_x64
def address_ledger():
  """No two addresses share a random number: over streams, rounds, roles and indices all are distinct."""
  seed, example, sample, start = (
      x.reshape(-1) for x in np.meshgrid(*map(np.arange, (2, 3, 2)), np.arange(1, 11), indexing='ij'))
  stream = keys.row_keys(*(jnp.asarray(x, jnp.uint32) for x in (seed, example, sample)))
  uniforms = keys.round_uniforms(stream, jnp.asarray(start, jnp.int32), num_draft_tokens=3, dtype=jnp.float64)
  values = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(uniforms)])
  _check(len(np.unique(values)) == values.size, f'{values.size - len(np.unique(values))} random numbers appear twice')
  _check(values.min() >= 0 and values.max() < 1, 'a uniform lies outside [0, 1)')
  # Alone, in another order and with another K the same address gives the same number.
  few = np.array([17, 3, 80])
  alone = keys.round_uniforms(
      stream[few], jnp.asarray(start[few], jnp.int32), num_draft_tokens=1, dtype=jnp.float64)
  for name, width in (('draft', 2), ('policy', 2), ('accept', 1), ('final', 2)):
    _check(np.array_equal(getattr(alone, name), np.asarray(getattr(uniforms, name))[few, :width]), f'{name} moved')


def uniform_resolution():
  """Uniforms have the resolution of float32 and are uniform: Kolmogorov-Smirnov per role, false alarm 1e-6."""
  stream = keys.row_keys(*(jnp.arange(4096, dtype=jnp.uint32) % m for m in (1, 4096, 1)))
  uniforms = keys.round_uniforms(stream, jnp.ones(4096, jnp.int32), num_draft_tokens=3, dtype=jnp.float32)
  for name in ('draft', 'policy', 'accept', 'final'):
    values = np.sort(np.asarray(getattr(uniforms, name), np.float64).reshape(-1))
    distance = np.max(np.abs(values - (np.arange(values.size) + 0.5) / values.size)) + 0.5 / values.size
    _check(distance < math.sqrt(math.log(2 / 1e-6) / (2 * values.size)), f'{name} is not uniform: {distance:.4f}')
    _check(len(np.unique(values)) > 0.99 * values.size, f'{name} has only {len(np.unique(values))} values')


def bad_inputs():
  """Seeds past 32 bits and unequal vocabularies are refused by name."""
  for call, expected in (
      (lambda: checks.seed(2**32), errors.ParamError), (lambda: checks.seed(-1), errors.ParamError),
      (lambda: checks.matching_vocabularies(100, 128), errors.VocabError),
      (lambda: checks.SamplingParams(temperature=-1.0), errors.ParamError)):
    try:
      call()
    except expected:
      continue
    raise AssertionError(f'accepted what must raise {expected.__name__}')


def nonfinite_row_stops():
  """A row whose target logits turn NaN stops with NONFINITE before the first bad token; its neighbours do not notice."""
  pair = toy.toy_pair(vocab_size=4, seed=5)
  decoder = _decoder(pair, 2)
  requests = [Request(prompt=(0, 1), max_new_tokens=6, warp=W(temperature=0.0)),
              Request(prompt=(1,), max_new_tokens=6, warp=W(temperature=0.8))]
  arrays = exactness.arrays(requests, vocab_size=4, dtype=np.float32)
  forbidden = arrays.replace(sampling=arrays.sampling.replace(
      allowed_tokens=np.tile(np.array([True, True, True, False]), (2, 1))))
  healthy = decode(decoder, pair.params, forbidden, capacity=16)
  # Token 3 is poison: no row may draw it, and one prompt holds it.
  table = np.array(pair.params['target']['table'])
  table[:, 3] = np.nan
  params = pair.params | {'target': pair.params['target'] | {'table': table}}
  poisoned = np.array(forbidden.prompt.tokens)
  poisoned[0, 0] = 3
  state = decode(
      decoder, params, forbidden.replace(prompt=forbidden.prompt._replace(tokens=poisoned)), capacity=16)
  _check(int(state.status[0]) == types.Status.NONFINITE, f'status {int(state.status[0])} of the broken row')
  _check(int(state.length[0]) == int(state.prompt_length[0]), 'the broken row emitted a token')
  _check(row(state, 1) == row(healthy, 1), 'a neighbour of a broken row changed')


def capacity_stops():
  """A row without room for another round stops with CAPACITY; what it emitted is what it emits with more room."""
  pair = toy.toy_pair(vocab_size=4, seed=6)
  decoder = _decoder(pair, 2)
  requests = [Request(prompt=(1, 2), max_new_tokens=20), Request(prompt=(3,), max_new_tokens=3)]
  arrays = exactness.arrays(requests, vocab_size=4, dtype=np.float32)
  full, tight = (decode(decoder, pair.params, arrays, capacity=capacity) for capacity in (25, 12))
  length = int(tight.length[0])
  _check(int(tight.status[0]) == types.Status.CAPACITY, f'status {int(tight.status[0])}')
  _check(12 - 3 < length <= 12, f'stopped at length {length} of 12')
  _check(np.array_equal(tight.tokens[0, :length], full.tokens[0, :length]), 'old tokens were overwritten')
  _check(row(tight, 1) == row(full, 1), 'a row with room changed')


@_with_x64
def admissible_policies():
  """Draft lengths that depend on drafted tokens, on the law and on their own uniform leave the joint law alone."""
  policies = (adversarial.Policy.DRAFTED, adversarial.Policy.LAW, adversarial.Policy.UNIFORM)
  pair = _pair()
  decoder = _decoder(pair).replace(drafter=adversarial.AdversarialDrafter(
      model=pair.drafter, num_draft_tokens=2, policy=np.array(policies, np.int32), law=np.zeros(3, np.int32)))
  requests = [Request(prompt=(1, 2)[:1 + i % 2], max_new_tokens=3) for i in range(3)]
  joint = enumeration.Enumerator(policy_breaks=[adversarial.policy_breaks(p) for p in policies]).joint(
      decoder, pair.params, exactness.arrays(requests, vocab_size=3), capacity=exactness.capacity(decoder, requests))
  oracle = exactness.Oracle.of(requests, target=pair.target, drafter=pair.drafter, params=pair.params)
  stops = [adversarial.stop_probability(p, 2, request.prompt) for p, request in zip(policies, requests)]
  _check_laws(exactness.compare(joint, oracle, num_draft_tokens=2, stops=stops))


DETECTORS = {function.__name__: function for function in (
    lossless_law, lossless_law_at_cell_edges, acceptance_oracle, token_rule_law, target_bonus_law, hand_tables, rule_tables,
    draw_takes_no_massless_token, self_draft, row_independence, caches_follow_text, address_ledger, uniform_resolution,
    bad_inputs, nonfinite_row_stops, capacity_stops, admissible_policies, *rule_detectors.ALL)}
