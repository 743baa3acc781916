"""Metamorphic relations of decoding through the jit boundary: what must not change, and what must not compile."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import rules
from specjax.core import types
from specjax.decode import autoregressive
from specjax.decode import run
from specjax.decode import speculative
from specjax.models import gemma
from specjax.models import t5
from specjax.testing import exactness
from specjax.testing import executables
from specjax.testing import oracles
from specjax.testing import toy

W = oracles.Warp
V, K, PROMPT, CAPACITY = 7, 3, 4, 40
FIELDS = ('seed', 'example_id', 'sample_index')


def request(prompt, max_new_tokens, eos_ids=(), encoder=None, **warp):
  return exactness.Request(
      prompt=prompt, max_new_tokens=max_new_tokens, eos_ids=eos_ids, encoder=encoder, warp=W(**warp))


def arrays(requests, *, vocab_size=V, addresses=None, poison=0, prompt_width=PROMPT, encoder_width=5):
  """`Requests` of fixed shapes whatever the requests: prompts padded with `poison`, one EOS slot, given example ids."""
  built = exactness.arrays(requests, vocab_size=vocab_size, dtype=np.float32)
  prompt = built.prompt

  def padded(tokens, length, width):
    tokens = np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))
    return np.where(np.arange(width)[None, :] < length[:, None], tokens, poison).astype(np.int32)

  tokens = padded(prompt.tokens, prompt.length, prompt_width)
  encoder = None if prompt.encoder_tokens is None else padded(prompt.encoder_tokens, prompt.encoder_length, encoder_width)
  if addresses is not None:
    built = built.replace(example_id=np.array(addresses, np.uint32))
  return built.replace(prompt=types.Prompt(tokens, prompt.length, encoder, prompt.encoder_length))


def decoded(decoder, params, requests, *, chunks=(1000,), capacity=CAPACITY):
  """`Collected` of prefill and decode through `run`, in chunks of rounds."""
  state = run.prefill(decoder, params, requests, capacity=capacity)
  for steps in chunks:
    state = run.decode(decoder, params, state, max_steps=steps)
  return run.collect(state)


def row(collected, index, *, with_stats=True):
  """What one row produced, as comparable bytes."""
  cut = slice(int(collected.prompt_length[index]), int(collected.length[index]))
  parts = [collected.tokens[index, cut], collected.log_probs[index, cut], collected.status[index]]
  parts += [leaf[index] for leaf in jax.tree.leaves(collected.stats)] if with_stats else []
  return tuple(np.asarray(part).tobytes() for part in parts)


def rows(collected, **kwargs):
  return [row(collected, i, **kwargs) for i in range(len(collected.length))]


def toy_decoder(pair, cap=K, rule=None, **kwargs):
  drafter = drafters.ModelDrafter(model=pair.drafter, num_draft_tokens=K, max_draft_tokens=np.int32(cap))
  return speculative.SpeculativeDecoder(target=pair.target, drafter=drafter, rule=rule or rules.Lossless(), **kwargs)


@pytest.fixture(scope='module')
def pair():
  return toy.toy_pair(vocab_size=V, seed=11, scale=0.8)


MIXED = [
    request((1, 2), 9), request((3,), 12, temperature=0.0), request((5, 0, 6, 1), 7, temperature=0.6, top_k=3),
    request((2, 2, 4), 15, temperature=1.5, top_p=0.8, min_p=0.05)]


# The two real families, tiny: the drafter is the same adapter, with the target's parameters or with others.


def _gemma():
  config = gemma.DecoderConfig(
      vocab_size=16, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4,
      layer_kinds=(gemma.LOCAL, gemma.GLOBAL), activation='gelu', window=5, norm_plus_one=True, post_norms=True)
  return gemma.DecoderLM(config, max_extend=4, block_size=8)


def _t5():
  config = t5.T5Config(
      vocab_size=16, embed_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=1, num_decoder_layers=2,
      num_buckets=8, max_distance=12, mlp='gated_gelu', tied_head=False, scale_logits=False)
  return t5.T5LM(config)


FAMILIES = {'gemma': _gemma, 't5': _t5}


@pytest.fixture(scope='module', params=FAMILIES)
def family(request):
  """(name, decoder, parameters of the target, parameters of another drafter) of one tiny real family."""
  model = FAMILIES[request.param]()
  drafter = drafters.ModelDrafter(model=model, num_draft_tokens=K, max_draft_tokens=np.int32(K))
  decoder = speculative.SpeculativeDecoder(target=model, drafter=drafter, rule=rules.Lossless())
  params = [exactness.random_params(model, seed, dtype=np.float32) for seed in (1, 2)]
  return request.param, decoder, *params


def family_requests(name, *requests):
  """The prompts as they are for decoders, as encoder inputs for encoder-decoders."""
  if name == 'gemma':
    return list(requests)
  return [request((0,), r.max_new_tokens, r.eos_ids, encoder=r.prompt, temperature=r.warp.temperature) for r in requests]


def test_row_of_a_real_model_does_not_see_neighbours_slot_or_padding(family):
  name, decoder, target, drafter = family
  params = {'target': target, 'drafter': drafter}
  subject = request((3, 1, 9), 12, temperature=0.7)
  others = [request((5,), 9), request((2, 4, 4, 8), 4, temperature=0.0), request((1, 1), 14, temperature=1.3)]
  results = set()
  for slot, crowd, poison in ((0, others, 0), (2, others[::-1], -1), (3, [others[1]] * 3, 2**31 - 1)):
    batch = family_requests(name, *crowd[:slot], subject, *crowd[slot:])
    ids = [7 + i for i in range(slot)] + [99] + [20 + i for i in range(3 - slot)]
    results.add(row(decoded(decoder, params, arrays(batch, vocab_size=16, addresses=ids, poison=poison)), slot))
  assert len(results) == 1


def test_self_draft_of_a_real_model_is_accepted_whole(family):
  name, decoder, target, _ = family
  limits = (12, 7, 4, 1)
  batch = family_requests(name, *(
      request((3, 1, 9, 2)[:1 + i], n, temperature=(0.0, 0.0, 1.0, 0.7)[i]) for i, n in enumerate(limits)))
  found = decoded(decoder, {'target': target, 'drafter': target}, arrays(batch, vocab_size=16))
  assert found.stats.target_calls.tolist() == [math.ceil(n / (K + 1)) for n in limits]
  assert np.array_equal(found.stats.accepted, found.stats.evaluated)


def test_greedy_equals_the_baseline_of_the_same_executable(family):
  """Bitwise, log-probabilities too: speculation off is a traced cap of 0 draft tokens."""
  name, decoder, target, drafter = family
  params = {'target': target, 'drafter': drafter}
  batch = arrays(family_requests(name, *(
      request(prompt, 14, (5,), temperature=0.0) for prompt in ((1, 2), (9,), (4, 4, 4, 1), (3, 14)))), vocab_size=16)
  found = decoded(decoder, params, batch)
  compiled = len(run.compile_log())
  baseline = decoded(decoder.replace(drafter=decoder.drafter.replace(max_draft_tokens=np.int32(0))), params, batch)
  assert len(run.compile_log()) == compiled
  assert rows(found, with_stats=False) == rows(baseline, with_stats=False)
  assert np.all(baseline.stats.target_calls == baseline.stats.emitted)


def test_compiled_loop_has_no_callback_and_copies_no_cache(family):
  name, decoder, target, drafter = family
  params = {'target': target, 'drafter': drafter}
  batch = arrays(family_requests(name, *MIXED), vocab_size=16)
  state = run.prefill(decoder, params, batch, capacity=CAPACITY)
  text = run.compiled('decode', decoder, params, state, np.int32(1)).as_text()
  buffers = {leaf.shape for leaf in jax.tree.leaves((state.target_cache, state.drafter_state)) if leaf.ndim == 4}
  assert buffers and not executables.host_callbacks(text)
  assert not executables.copies_inside_loops(text, buffers)


def test_copy_and_callback_are_seen_when_they_are_there():
  """Negative control of the test above."""

  def body(carry):
    buffer, other, i = carry
    jax.debug.callback(lambda x: None, i)
    # Both the old and the new buffer live on: the update cannot be in place.
    return buffer.at[:, i].set(1.0), buffer, i + 1

  loop = jax.jit(lambda x: jax.lax.while_loop(lambda carry: carry[2] < 5, body, (x, x, 0)))
  text = loop.lower(jnp.zeros((4, 8, 16, 3))).compile().as_text()
  assert executables.host_callbacks(text)
  assert executables.copies_inside_loops(text, {(4, 8, 16, 3)})


def test_the_same_request_in_every_row_gives_the_same_result(pair):
  for one in MIXED:
    found = decoded(toy_decoder(pair), pair.params, arrays([one] * 4, addresses=[5] * 4))
    assert len(set(rows(found))) == 1


def test_samples_and_examples_and_seeds_differ(pair):
  base = arrays([request((1, 2), 20)] * 4, addresses=[5] * 4)
  for field in FIELDS:
    found = decoded(toy_decoder(pair), pair.params, base.replace(**{field: np.arange(4, dtype=np.uint32)}))
    assert len({one[0] for one in rows(found)}) == 4


def test_greedy_speculation_is_the_baseline_bitwise(pair):
  batch = arrays([request(prompt, 16, (6,), temperature=0.0) for prompt in ((1,), (2, 3), (0, 5, 5), (6, 1, 2, 2))])
  found = decoded(toy_decoder(pair), pair.params, batch)
  for cap in (0, 1, 2):
    capped = decoded(toy_decoder(pair, cap), pair.params, batch)
    assert rows(found, with_stats=False) == rows(capped, with_stats=False)
    assert np.all(capped.stats.proposed == cap * capped.stats.steps)


def test_top_k_one_is_greedy(pair):
  prompts = ((1,), (2, 3), (0, 5, 5), (6, 1, 2, 2))
  greedy = decoded(toy_decoder(pair), pair.params, arrays([request(p, 12, temperature=0.0) for p in prompts]))
  top = decoded(toy_decoder(pair), pair.params, arrays([request(p, 12, top_k=1, temperature=1.4) for p in prompts]))
  assert rows(greedy, with_stats=False) == rows(top, with_stats=False)


def test_filters_at_their_limits_change_nothing(pair):
  prompts = ((1,), (2, 3), (0, 5, 5), (6, 1, 2, 2))
  limits = ({}, dict(top_k=V), dict(top_k=V + 5), dict(top_p=1.0), dict(min_p=0.0))
  found = [decoded(toy_decoder(pair), pair.params, arrays([request(p, 12, **kwargs) for p in prompts])) for kwargs in limits]
  assert all(rows(one) == rows(found[0]) for one in found)


def test_stopping_and_going_on_is_running_through(pair):
  through = decoded(toy_decoder(pair), pair.params, arrays(MIXED))
  for chunks in ((1, 1000), (2, 3, 1000), (1,) * 20):
    assert rows(decoded(toy_decoder(pair), pair.params, arrays(MIXED), chunks=chunks)) == rows(through)


def test_one_step_is_a_round_of_the_loop(pair):
  decoder = toy_decoder(pair)
  state = run.prefill(decoder, pair.params, arrays(MIXED), capacity=CAPACITY)
  for _ in range(20):
    state = run.step(decoder, pair.params, state)
  assert rows(run.collect(state)) == rows(decoded(decoder, pair.params, arrays(MIXED)))


def test_finished_rows_are_inert_and_can_be_replaced_without_compiling(pair):
  decoder = toy_decoder(pair)
  alone = decoded(decoder, pair.params, arrays(MIXED))
  state = run.decode(
      decoder, pair.params, run.prefill(decoder, pair.params, arrays(MIXED), capacity=CAPACITY), max_steps=1)
  state = run.finish(state, np.array([True, False, False, False]))
  kept = row(run.collect(state), 0)
  fresh = run.prefill(decoder, pair.params, arrays(MIXED[::-1], addresses=[3, 2, 1, 0]), capacity=CAPACITY)
  state = run.decode(decoder, pair.params, state, max_steps=1000)
  stopped = run.collect(state)
  assert stopped.status[0] == types.Status.STOP and row(stopped, 0) == kept
  assert rows(stopped)[1:] == rows(alone)[1:]
  state = run.insert(state, np.array([0, 2], np.int32), jax.tree.map(lambda x: x[:2], fresh))
  compiled = len(run.compile_log())
  state = run.decode(decoder, pair.params, state, max_steps=1000)
  replaced = run.collect(state)
  # Rows 0 and 2 now hold the requests 3 and 2 at their own addresses; rows 1 and 3 are as they were.
  assert row(replaced, 0) == row(alone, 3) and row(replaced, 2) == row(alone, 2)
  assert row(replaced, 1) == row(stopped, 1) and row(replaced, 3) == row(stopped, 3)
  state = run.insert(state, np.array([1, 3], np.int32), jax.tree.map(lambda x: x[2:], fresh))
  state = run.finish(state, np.array([False, True, False, False]))
  assert len(run.compile_log()) == compiled
  final = run.collect(run.decode(decoder, pair.params, state, max_steps=1000))
  assert row(final, 3) == row(alone, 0) and final.status[1] == types.Status.STOP and final.length[1] == 1


@pytest.mark.parametrize('has_encoder', [False, True])
def test_without_drafts_the_loop_is_the_plain_loop(has_encoder):
  """Token for token against `autoregressive.reference`, which has no cache and shares only the draw."""
  pair = toy.toy_pair(vocab_size=V, seed=5, has_encoder=has_encoder)
  warps = [dict(), dict(temperature=0.0), dict(temperature=0.6, top_k=3), dict(temperature=1.5, top_p=0.8)]
  batch = arrays([
      request((0,) if has_encoder else (1, 2, 3, 4)[:1 + i], 6 + i, (3,) if i % 2 else (), **warp,
              encoder=(1, 5, 2, 0)[:1 + i] if has_encoder else None) for i, warp in enumerate(warps)])
  expected = autoregressive.reference(pair.target, pair.params['target'], batch)
  for width in (1, 4):
    found = decoded(autoregressive.decoder(pair.target, width=width), pair.params, batch)
    for i, tokens in enumerate(expected):
      assert np.array_equal(found.tokens[i, found.prompt_length[i]:found.length[i]], tokens)


def test_nothing_follows_an_eos_accepted_inside_a_block(pair):
  """Greedy self-draft: all tokens of a block are accepted, and the block is cut at every place an EOS can stand."""
  drafter = drafters.ModelDrafter(model=pair.target, num_draft_tokens=K)
  decoder = speculative.SpeculativeDecoder(target=pair.target, drafter=drafter, rule=rules.Lossless())
  params = {'target': pair.params['target'], 'drafter': pair.params['target']}
  prompts = ((1,), (2, 3), (0, 5, 5), (6, 1, 2, 2))
  free = decoded(decoder, params, arrays([request(p, 10, temperature=0.0) for p in prompts]))
  texts = [free.tokens[i, free.prompt_length[i]:free.length[i]].tolist() for i in range(4)]
  for eos in range(V):
    found = decoded(decoder, params, arrays([request(p, 10, (eos,), temperature=0.0) for p in prompts]))
    for i, text in enumerate(texts):
      expected = text[:text.index(eos) + 1] if eos in text else text
      assert found.tokens[i, found.prompt_length[i]:found.length[i]].tolist() == expected
      assert found.status[i] == (types.Status.EOS if eos in text else types.Status.LIMIT)
      assert found.stats.emitted[i] == len(expected)
      assert found.stats.target_calls[i] == math.ceil(len(expected) / (K + 1))


def test_log_probs_are_the_targets_own(pair):
  """At temperature 1 and without bias or filters, whatever the sampling parameters: against the uncached pass."""
  found = decoded(toy_decoder(pair), pair.params, arrays(MIXED))
  logits = oracles.toy_forward(pair.target, pair.params['target'])(
      types.TrainingBatch(found.tokens, None, None, None, None))
  for i, (start, stop) in enumerate(zip(found.prompt_length, found.length)):
    before = logits[i, start - 1:stop - 1]
    expected = before[np.arange(stop - start), found.tokens[i, start:stop]] - np.log(np.exp(before).sum(axis=1))
    np.testing.assert_allclose(found.log_probs[i, start:stop], expected, atol=1e-4)


@pytest.mark.parametrize('broken, status', [
    ('target', types.Status.NONFINITE), ('drafter', types.Status.NONFINITE_DRAFTER)])
def test_a_broken_row_stops_and_says_whose_logits_they_were(pair, broken, status):
  """Token 6 is poison in one model's table and stands in one prompt; nobody may draw it."""
  table = np.array(pair.params[broken]['table'])
  table[:, 6] = np.nan
  params = pair.params | {broken: pair.params[broken] | {'table': table}}
  batch = arrays([
      request((1, 6), 9), request((3,), 12, temperature=0.0), request((5, 0, 1), 7, top_k=3), request((2, 2, 4), 15)])
  allowed = np.ones((4, V), bool)
  allowed[:, 6] = False
  batch = batch.replace(sampling=batch.sampling.replace(allowed_tokens=allowed))
  healthy = decoded(toy_decoder(pair), pair.params, batch)
  found = decoded(toy_decoder(pair), params, batch)
  assert found.status[0] == status and found.length[0] == found.prompt_length[0]
  assert rows(found)[1:] == rows(healthy)[1:]


@pytest.mark.parametrize('rule', ['Lossless', 'Chow', 'TokenV3'])
def test_a_sweep_over_thresholds_and_temperatures_is_one_executable(pair, rule):
  run.clear()
  thresholds = np.linspace(-0.2, 1.1, 50) if rule != 'Lossless' else [None]
  temperatures = np.linspace(0.0, 2.0, 10)
  texts = set()
  for i, threshold in enumerate(thresholds):
    for temperature in temperatures if rule == 'Lossless' else temperatures[i % 10:][:1]:
      knobs = {} if threshold is None else dict(threshold=float(threshold))
      batch = arrays([request((1, 2), 4, temperature=float(temperature), top_k=i % 5, top_p=1 - 0.01 * i)] * 4)
      found = decoded(toy_decoder(pair, i % (K + 1), rule=getattr(rules, rule)(**knobs)), pair.params, batch)
      texts.add(rows(found)[0][0])
  assert [one.name for one in run.compile_log()] == ['prefill', 'decode']
  assert len(texts) > 3
