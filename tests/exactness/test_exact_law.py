"""The joint law of the jitted step over all sequences equals the rule's, by enumeration: total variation at most 1e-12.

Every case is one compiled structure; its requests are enumerated together, as neighbours of one batch. One request of one
case is one configuration: sampling parameters, bias and mask, EOS, limit, prompt. Knobs are traced: `vary` runs the same
executable again with another threshold or draft cap.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import rules
from specjax.decode import speculative
from specjax.models import gemma
from specjax.models import t5
from specjax.testing import adversarial
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import toy

W = oracles.Warp
TOLERANCE = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One structure. `vary` holds what is traced: rule thresholds, or draft caps where `has_cap`."""

  vocab_size: int
  num_draft_tokens: int
  requests: list[exactness.Request]
  rule: str = 'Lossless'
  bonus: str = 'rule'
  drafter: str = 'model'  # 'model', 'self', 'none', 'adversarial' or 'early exit'
  models: str = 'toy'  # 'toy', 'encoder-decoder toy', 'gemma' or 't5'
  window: int = 0
  vary: tuple[Any, ...] = (None,)
  has_cap: bool = False
  rows: int = 512
  seed: int = 1


def requests(*warps, vocab_size, limits, eos=(), encoder=False):
  """One `Request` per warp, with ragged prompts; limits and EOS cycle."""
  cycle = lambda values, i: values[i % len(values)]
  prompt = lambda i: tuple((3 * i + j * j + i * j) % vocab_size for j in range(1 if encoder else 1 + i % 3))
  source = lambda i: tuple((i + 2 * j) % vocab_size for j in range(1 + (i + 1) % 3)) if encoder else None
  return [
      exactness.Request(
          prompt=prompt(i), max_new_tokens=cycle(limits, i), warp=warp, eos_ids=cycle(eos or ((),), i), encoder=source(i))
      for i, warp in enumerate(warps)]


PLAIN = (
    W(), W(temperature=0.0), W(temperature=0.5), W(temperature=1.7), W(top_k=2), W(top_p=0.8), W(min_p=0.4),
    W(temperature=1.7, top_k=2, top_p=0.9), W(temperature=0.5, top_p=0.95, min_p=0.05),
    W(temperature=1.7, top_k=2, top_p=0.7, min_p=0.3))
FEW = (W(), W(temperature=0.0), W(temperature=0.5, top_k=2), W(temperature=1.7, top_p=0.85, min_p=0.1))
MASKED = (
    W(logit_bias=(1.0, -0.5, 0.0)), W(allowed_tokens=(True, True, False)), W(allowed_tokens=(False, True, True), top_p=0.9),
    W(logit_bias=(-2.0, 0.0, 2.0), temperature=0.5, min_p=0.1), W(allowed_tokens=(False, False, True)), W(),
    W(logit_bias=(0.3, 0.0, -1.0), temperature=0.0))
POLICIES = [
    (adversarial.Policy.FULL, adversarial.DraftLaw.CONSTANT), (adversarial.Policy.NONE, adversarial.DraftLaw.OWN),
    (adversarial.Policy.DRAFTED, adversarial.DraftLaw.OWN), (adversarial.Policy.LAW, adversarial.DraftLaw.OWN),
    (adversarial.Policy.UNIFORM, adversarial.DraftLaw.OWN), (adversarial.Policy.TEXT, adversarial.DraftLaw.UNIFORM),
    (adversarial.Policy.UNIFORM, adversarial.DraftLaw.GREEDY), (adversarial.Policy.DRAFTED, adversarial.DraftLaw.UNIFORM)]
ADVERSARIAL = (
    W(allowed_tokens=(True, True, False)), W(temperature=0.5), W(), W(temperature=1.7), W(top_p=0.8), W(),
    W(temperature=0.5, top_k=2), W(temperature=1.7, min_p=0.3))

CASES = {
    'lossless': Case(
        vocab_size=3, num_draft_tokens=2,
        requests=requests(*PLAIN, vocab_size=3, limits=(4, 3, 4, 2), eos=((), (1,), (2, 0)))),
    'lossless, bias and masks': Case(
        vocab_size=3, num_draft_tokens=2, seed=4,
        requests=requests(*MASKED, vocab_size=3, limits=(4, 1, 3), eos=((), (2,)))),
    'lossless, window 3, K 4': Case(
        vocab_size=2, num_draft_tokens=4, window=3, requests=requests(*FEW, vocab_size=2, limits=(6, 5), eos=((), (1,)))),
    'lossless, encoder-decoder, K 1': Case(
        vocab_size=4, num_draft_tokens=1, models='encoder-decoder toy',
        requests=requests(*PLAIN[:7], vocab_size=4, limits=(4, 3, 5), eos=((), (3,)), encoder=True)),
    'lossless, drafter equals target': Case(
        vocab_size=3, num_draft_tokens=2, drafter='self', requests=requests(*FEW, vocab_size=3, limits=(4,), eos=((), (0,)))),
    'lossless, bonus option without effect': Case(
        vocab_size=2, num_draft_tokens=1, bonus='target', requests=requests(*FEW[:3], vocab_size=2, limits=(4,))),
    'lossless, draft caps 0 to 3': Case(
        vocab_size=2, num_draft_tokens=3, has_cap=True, vary=(0, 1, 2, 3),
        requests=requests(*FEW[1:], vocab_size=2, limits=(5, 4), eos=((), (1,)))),
    'autoregressive': Case(
        vocab_size=4, num_draft_tokens=0, drafter='none',
        requests=requests(*PLAIN, vocab_size=4, limits=(4, 0, 3), eos=((), (1,)))),
    'autoregressive through a wide pass': Case(
        vocab_size=3, num_draft_tokens=2, drafter='none', requests=requests(*FEW, vocab_size=3, limits=(4,), eos=((), (1,)))),
    'adversarial drafters': Case(
        vocab_size=3, num_draft_tokens=2, drafter='adversarial',
        requests=requests(*ADVERSARIAL, vocab_size=3, limits=(4, 3), eos=((), (1,)))),
    'adversarial drafters, token rule': Case(
        vocab_size=3, num_draft_tokens=2, drafter='adversarial', rule='TokenV3', vary=(0.4,),
        requests=requests(*ADVERSARIAL, vocab_size=3, limits=(3, 4), eos=((1,), ()))),
    'Chow': Case(
        vocab_size=3, num_draft_tokens=2, rule='Chow', vary=(0.3, 0.5, 1.0), seed=2,
        requests=requests(*FEW, W(top_p=0.8), vocab_size=3, limits=(4, 3), eos=((), (1,)))),
    'Chow, bonus from the target, window 2': Case(
        vocab_size=2, num_draft_tokens=3, rule='Chow', bonus='target', vary=(0.3,), window=2,
        requests=requests(*FEW, W(min_p=0.4), vocab_size=2, limits=(5, 4), eos=((), (1,)))),
    'TokenV3, encoder-decoder': Case(
        vocab_size=3, num_draft_tokens=2, rule='TokenV3', models='encoder-decoder toy', vary=(-0.1, 0.0, 0.6),
        requests=requests(*FEW, W(top_k=2), vocab_size=3, limits=(4, 3), eos=((), (1,)), encoder=True)),
    'TokenV3, bonus from the target': Case(
        vocab_size=3, num_draft_tokens=1, rule='TokenV3', bonus='target', vary=(0.5,), seed=3,
        requests=requests(*PLAIN[:6], vocab_size=3, limits=(4,), eos=((), (1,)))),
    'Gemma, sliding window 3': Case(
        vocab_size=3, num_draft_tokens=2, models='gemma', rows=128,
        requests=requests(*FEW, vocab_size=3, limits=(4, 3), eos=((), (1,)))),
    'Gemma, early exit, Chow': Case(
        vocab_size=3, num_draft_tokens=2, models='gemma', drafter='early exit', rule='Chow', vary=(0.4,), rows=128,
        requests=requests(*FEW, vocab_size=3, limits=(3,), eos=((), (1,)))),
    'T5, early exit': Case(
        vocab_size=3, num_draft_tokens=2, models='t5', drafter='early exit', rows=128,
        requests=requests(*FEW, vocab_size=3, limits=(3,), eos=((), (1,)), encoder=True)),
    'T5, TokenV3': Case(
        vocab_size=3, num_draft_tokens=2, models='t5', rule='TokenV3', vary=(0.5,), rows=128,
        requests=requests(*FEW, vocab_size=3, limits=(3,), eos=((), (1,)), encoder=True)),
}


def build_models(case):
  """(target, drafter, params) of a case; float64."""
  if case.models in ('gemma', 't5'):
    build = _gemma if case.models == 'gemma' else _t5
    target, drafter = build(case.vocab_size, 2), build(case.vocab_size, 1)
    params = exactness.random_params(target, case.seed)
    if case.drafter == 'early exit':
      return target, target.first_layers(1), {'target': params, 'drafter': params}
    return target, drafter, {'target': params, 'drafter': exactness.random_params(drafter, case.seed + 1)}
  pair = toy.toy_pair(
      vocab_size=case.vocab_size, seed=case.seed, window=case.window, has_encoder=case.models.startswith('enc'), scale=0.6)
  if case.drafter == 'self':
    return pair.target, pair.target, pair.params | {'drafter': pair.params['target']}
  return pair.target, pair.drafter, pair.params


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


def build_decoder(case, target, drafter, value):
  """The decoder of a case with one value of what it varies."""
  num_draft_tokens = case.num_draft_tokens
  if case.drafter == 'none':
    part = drafters.NoDrafter(vocab_size=case.vocab_size, num_draft_tokens=num_draft_tokens)
  elif case.drafter == 'adversarial':
    part = adversarial.AdversarialDrafter(
        model=drafter, num_draft_tokens=num_draft_tokens, policy=np.array([p for p, _ in POLICIES], np.int32),
        law=np.array([law for _, law in POLICIES], np.int32))
  else:
    part = drafters.ModelDrafter(
        model=drafter, num_draft_tokens=num_draft_tokens, max_draft_tokens=np.int32(value) if case.has_cap else None,
        params_from='target' if case.drafter == 'early exit' else 'drafter')
  knobs = {} if case.rule == 'Lossless' else dict(threshold=value)
  return speculative.SpeculativeDecoder(
      target=target, drafter=part, rule=getattr(rules, case.rule)(**knobs), bonus=case.bonus)


def discrepancies(case, *, at=0.5, enumerator=None):
  """A `Discrepancy` for every request and every value that the case varies."""
  target, drafter, params = build_models(case)
  is_adversarial = case.drafter == 'adversarial'
  breaks = [adversarial.policy_breaks(policy) for policy, _ in POLICIES] if is_adversarial else ()
  enumerator = enumerator or enumeration.Enumerator(rows=case.rows, policy_breaks=breaks)
  has_drafter = case.drafter != 'none'
  oracle = exactness.Oracle.of(case.requests, target=target, drafter=drafter if has_drafter else None, params=params)
  arrays = exactness.arrays(case.requests, vocab_size=case.vocab_size)
  result = []
  for value in case.vary:
    decoder = build_decoder(case, target, drafter, value)
    joint = enumerator.evaluated_at(at).joint(
        decoder, params, arrays, capacity=exactness.capacity(decoder, case.requests))
    stops = drafts = None
    if is_adversarial:
      stops = [adversarial.stop_probability(policy, case.num_draft_tokens, request.prompt)
               for (policy, _), request in zip(POLICIES, case.requests)]
      drafts = [adversarial.draft_law(law) for _, law in POLICIES]
    goal = {'Chow': oracles.chow_goal, 'TokenV3': oracles.token_v3_goal}.get(case.rule, lambda _: oracles.lossless_goal)
    proposed = value if case.has_cap else case.num_draft_tokens if has_drafter else 0
    result += exactness.compare(
        joint, oracle, num_draft_tokens=proposed, goal=goal(value), bonus=case.bonus, stops=stops, drafts=drafts)
  return result


def assert_exact(found, tolerance=TOLERANCE):
  """Every discrepancy within the tolerance; counters are expectations over several tokens, so ten times that."""
  for i, one in enumerate(found):
    assert one.mass <= tolerance and one.law <= tolerance and one.counters <= 10 * tolerance, (i, one)


def test_at_least_sixty_configurations():
  assert sum(len(case.requests) * len(case.vary) for case in CASES.values()) >= 60


@pytest.mark.parametrize('name', CASES)
def test_joint_law_is_the_rules(name, x64):
  found = discrepancies(CASES[name])
  print(f'{name}: {len(found)} configurations, largest TV {max(one.law for one in found):.1e}')
  assert_exact(found)


@pytest.mark.parametrize('has_encoder', [False, True])
def test_copied_drafts_leave_the_law_as_it_is(has_encoder, x64):
  """What prompt lookup drafts depends on the whole text, so only the law is compared; that it accepts shows in the steps."""
  pair = toy.toy_pair(vocab_size=3, seed=5, scale=0.6, has_encoder=has_encoder)
  asked = requests(*FEW, W(top_p=0.8), W(), vocab_size=3, limits=(5, 4), eos=((), (1,)), encoder=has_encoder)
  decoder = speculative.SpeculativeDecoder(
      target=pair.target, drafter=drafters.PromptLookup(vocab_size=3, num_draft_tokens=2, max_match=2),
      rule=rules.Lossless())
  joint = enumeration.Enumerator().joint(
      decoder, pair.params, exactness.arrays(asked, vocab_size=3), capacity=exactness.capacity(decoder, asked))
  oracle = exactness.Oracle.of(asked, target=pair.target, drafter=None, params=pair.params)
  for row, request in enumerate(asked):
    law = oracles.product_law(
        oracle.laws(row).goal, max_new_tokens=request.max_new_tokens, eos_ids=request.eos_ids)
    assert enumeration.total_variation(law, joint.laws[row]) <= TOLERANCE, row
  assert np.sum(joint.counters['accepted']) > 1 and np.all(joint.counters['drafter_calls'] == 0)


def test_cells_end_where_the_trace_says(x64):
  """Evaluated next to the edges of every cell the law is the same: no comparison happens anywhere else."""
  case = CASES['lossless']
  enumerator = enumeration.Enumerator(rows=case.rows, optimise=True)
  for at in (1e-6, 0.25, 1 - 1e-6):
    assert_exact(discrepancies(case, at=at, enumerator=enumerator))


def test_float32_law_is_right_to_rounding():
  case = CASES['lossless']
  target, drafter, params = build_models(case)
  params = jax.tree.map(lambda x: x.astype(np.float32), params)
  decoder = build_decoder(case, target, drafter, None)
  joint = enumeration.Enumerator(rows=case.rows).joint(
      decoder, params, exactness.arrays(case.requests, vocab_size=case.vocab_size, dtype=np.float32),
      capacity=exactness.capacity(decoder, case.requests))
  oracle = exactness.Oracle.of(case.requests, target=target, drafter=drafter, params=params)
  assert_exact(exactness.compare(joint, oracle, num_draft_tokens=case.num_draft_tokens), tolerance=2e-6)


def test_a_policy_that_drops_a_drawn_token_is_caught(x64):
  """Negative control: no verifier repairs a drafter that looks at the token before it decides to propose it."""
  case = CASES['adversarial drafters']
  target, drafter, params = build_models(case)
  peeking = adversarial.AdversarialDrafter(
      model=drafter, num_draft_tokens=2, policy=np.array([adversarial.Policy.PEEK], np.int32),
      law=np.array([adversarial.DraftLaw.OWN], np.int32))
  decoder = build_decoder(case, target, drafter, None).replace(drafter=peeking)
  asked = [exactness.Request(prompt=(1,), max_new_tokens=4)]
  joint = enumeration.Enumerator().joint(
      decoder, params, exactness.arrays(asked, vocab_size=3), capacity=exactness.capacity(decoder, asked))
  oracle = exactness.Oracle.of(asked, target=target, drafter=drafter, params=params)
  law = oracles.product_law(oracle.laws(0).goal, max_new_tokens=4)
  distance = enumeration.total_variation(law, joint.laws[0])
  print(f'TV {distance:.3f}')
  assert abs(joint.mass()[0] - 1) < TOLERANCE and distance > 0.01


def test_oracle_of_another_knob_is_told_apart(x64):
  """Negative control: the comparison is not satisfied by a neighbouring rule."""
  case = dataclasses.replace(CASES['TokenV3, encoder-decoder'], vary=(0.6,))
  target, drafter, params = build_models(case)
  decoder = build_decoder(case, target, drafter, 0.6)
  joint = enumeration.Enumerator().joint(
      decoder, params, exactness.arrays(case.requests, vocab_size=3), capacity=exactness.capacity(decoder, case.requests))
  oracle = exactness.Oracle.of(case.requests, target=target, drafter=drafter, params=params)
  for goal in (oracles.lossless_goal, oracles.token_v3_goal(0.3)):
    found = exactness.compare(joint, oracle, num_draft_tokens=2, goal=goal)
    assert max(one.law for one in found) > 1e-3


def random_case(case, seed):
  """The case with other prompts, parameters, limits and EOS of the same shapes, so that nothing compiles anew."""
  random = np.random.RandomState(seed)

  def warp(old):
    bias = None if old.logit_bias is None else tuple(random.uniform(-2, 2, case.vocab_size).tolist())
    allowed = None
    if old.allowed_tokens is not None:
      kept = random.rand(case.vocab_size) < 0.6
      kept[random.randint(case.vocab_size)] = True
      allowed = tuple(kept.tolist())
    return W(
        temperature=float(random.choice([0.0, 0.3, 0.8, 1.0, 1.4, 2.0])), top_k=int(random.randint(case.vocab_size + 1)),
        top_p=float(random.choice([1.0, random.uniform(0.2, 1)])), min_p=float(random.choice([0.0, random.uniform(0, 0.7)])),
        logit_bias=bias, allowed_tokens=allowed)

  def tokens(old):
    return None if old is None else tuple(random.randint(0, case.vocab_size, len(old)).tolist())

  changed = [dataclasses.replace(
      one, prompt=tokens(one.prompt), encoder=tokens(one.encoder), eos_ids=tokens(one.eos_ids), warp=warp(one.warp),
      max_new_tokens=int(random.randint(1, one.max_new_tokens + 1)) if one.max_new_tokens else 0) for one in case.requests]
  # The longest stays as it is: capacity is a shape.
  longest = max(range(len(changed)), key=lambda i: case.requests[i].max_new_tokens)
  changed[longest] = dataclasses.replace(changed[longest], max_new_tokens=case.requests[longest].max_new_tokens)
  vary = case.vary if case.has_cap or case.vary == (None,) else tuple(random.uniform(-0.1, 1.1, 2).tolist())
  return dataclasses.replace(case, requests=changed, vary=vary, seed=seed)


@pytest.mark.nightly
@pytest.mark.parametrize('name', CASES)
def test_joint_law_of_random_configurations(name, x64):
  """Five times as many configurations, at a random point of the cells."""
  case, counted = CASES[name], 0
  breaks = [adversarial.policy_breaks(policy) for policy, _ in POLICIES] if case.drafter == 'adversarial' else ()
  enumerator = enumeration.Enumerator(rows=case.rows, policy_breaks=breaks)
  for seed in range(100, 105):
    other = random_case(case, seed)
    found = discrepancies(other, at=float(np.random.RandomState(seed).uniform(0.01, 0.99)), enumerator=enumerator)
    assert_exact(found)
    counted += len(found)
  print(f'{name}: {counted} configurations')
