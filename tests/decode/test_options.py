"""Block verification, stop sequences and the recorder together, compiled: relations, executables and what loops copy."""

import math

import jax
import numpy as np
import pytest

from specjax import drafters
from specjax import rules
from specjax.core import types
from specjax.decode import recorders
from specjax.decode import run
from specjax.decode import speculative
from specjax.models import gemma
from specjax.models import t5
from specjax.testing import exactness
from specjax.testing import executables
from specjax.testing import oracles
from specjax.testing import toy

W = oracles.Warp
V, K, CAPACITY = 16, 3, 40
STOPS = ((3, 1), (2, 2, 2))


def _gemma():
  config = gemma.DecoderConfig(
      vocab_size=V, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4,
      layer_kinds=(gemma.LOCAL, gemma.GLOBAL), activation='gelu', window=5, norm_plus_one=True, post_norms=True)
  return gemma.DecoderLM(config, max_extend=4, block_size=8)


def _t5():
  config = t5.T5Config(
      vocab_size=V, embed_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=1, num_decoder_layers=2,
      num_buckets=8, max_distance=12, mlp='gated_gelu', tied_head=False, scale_logits=False)
  return t5.T5LM(config)


FAMILIES = {'gemma': _gemma, 't5': _t5}


@pytest.fixture(scope='module', params=FAMILIES)
def family(request):
  """(name, model, parameters of the target, parameters of another drafter)."""
  model = FAMILIES[request.param]()
  return request.param, model, *(exactness.random_params(model, seed, dtype=np.float32) for seed in (1, 2))


def arrays(name, *, stops=STOPS, temperatures=(0.0, 1.0, 0.7, 1.3), limit=12):
  prompts = ((3, 1), (5,), (2, 4, 4), (1, 7, 9, 2, 6))  # five encoder slots: no shape of a cache is that of a block
  asked = [
      exactness.Request(
          prompt=(0,) if name == 't5' else prompt, encoder=prompt if name == 't5' else None, max_new_tokens=limit - i,
          warp=W(temperature=temperature), stop_sequences=stops)
      for i, (prompt, temperature) in enumerate(zip(prompts, temperatures))]
  return exactness.arrays(asked, vocab_size=V, dtype=np.float32)


def decoder_of(model, *, verifier=speculative.BlockVerifier(), rule=None, recorder=None):
  return speculative.SpeculativeDecoder(
      target=model, drafter=drafters.ModelDrafter(model=model, num_draft_tokens=K), rule=rule or rules.Lossless(),
      verifier=verifier, recorder=recorder)


def decoded(decoder, params, requests):
  state = run.prefill(decoder, params, requests, capacity=CAPACITY)
  return run.collect(run.decode(decoder, params, state, max_steps=100))


def test_the_loop_calls_nobody_and_copies_no_cache(family):
  name, model, target, drafter = family
  params = {'target': target, 'drafter': drafter}
  decoder = decoder_of(model, rule=rules.TokenV3(threshold=0.5), recorder=recorders.SummaryRecorder())
  state = run.prefill(decoder, params, arrays(name), capacity=CAPACITY)
  text = run.compiled('decode', decoder, params, state, np.int32(1)).as_text()
  buffers = {leaf.shape for leaf in jax.tree.leaves((state.target_cache, state.drafter_state)) if leaf.ndim == 4}
  assert buffers and not executables.host_callbacks(text)
  assert not executables.copies_inside_loops(text, buffers)


def test_self_draft_is_accepted_whole_by_blocks_too(family):
  name, model, target, _ = family
  found = decoded(decoder_of(model), {'target': target, 'drafter': target}, arrays(name, stops=()))
  assert found.stats.target_calls.tolist() == [math.ceil((12 - i) / (K + 1)) for i in range(4)]
  assert np.array_equal(found.stats.accepted, found.stats.evaluated)


def test_greedy_blocks_are_greedy_tokens_bitwise(family):
  name, model, target, drafter = family
  params, requests = {'target': target, 'drafter': drafter}, arrays(name, temperatures=(0.0,) * 4)
  block, token = (decoded(decoder_of(model, verifier=verifier), params, requests) for verifier in (
      speculative.BlockVerifier(), speculative.TokenVerifier()))
  for ours, theirs in zip(jax.tree.leaves(block), jax.tree.leaves(token)):
    if ours.shape == block.tokens.shape:
      behind = np.arange(CAPACITY)[None, :] >= block.length[:, None]
      ours, theirs = (np.where(behind, 0, x) for x in (ours, theirs))
    np.testing.assert_array_equal(ours, theirs)


def test_a_row_does_not_see_its_neighbours_stops(family):
  """One row's stop sequences are its own; padding sequences of a row without any match nothing."""
  name, model, target, drafter = family
  params, requests = {'target': target, 'drafter': drafter}, arrays(name)
  both = decoded(decoder_of(model), params, requests)
  alone = requests.stop_sequences.copy()
  alone[1:] = -1
  found = decoded(decoder_of(model), params, requests.replace(stop_sequences=alone))
  rows = lambda batch, row: batch.tokens[row, :batch.length[row]]
  np.testing.assert_array_equal(rows(found, 0), rows(both, 0))
  assert found.status[0] == both.status[0] and all(status == types.Status.LIMIT for status in found.status[1:])


def test_thresholds_temperatures_and_stop_sequences_share_one_executable():
  run.clear()
  pair = toy.toy_pair(vocab_size=V, seed=1, scale=0.5)
  texts = set()
  for i, threshold in enumerate(np.linspace(0, 1, 8)):
    decoder = speculative.SpeculativeDecoder(
        target=pair.target, drafter=drafters.ModelDrafter(model=pair.drafter, num_draft_tokens=K),
        rule=rules.Chow(threshold=float(threshold)), verifier=speculative.BlockVerifier(),
        recorder=recorders.SummaryRecorder())
    requests = arrays('gemma', stops=((i, i + 1), (i, i, 0)), temperatures=(0.1 * i, 1.0, 0.5, 2.0))
    texts.add(decoded(decoder, pair.params, requests).tokens.tobytes())
  assert [one.name for one in run.compile_log()] == ['prefill', 'decode'] and len(texts) > 4


def test_rows_with_stop_sequences_are_replaced_without_compiling():
  pair = toy.toy_pair(vocab_size=V, seed=1, scale=0.5)
  decoder = speculative.SpeculativeDecoder(
      target=pair.target, drafter=drafters.ModelDrafter(model=pair.drafter, num_draft_tokens=K), rule=rules.Lossless())
  free = decoded(decoder, pair.params, arrays('gemma', stops=((15, 15, 15, 15),)))
  text = free.tokens[1, free.prompt_length[1]:free.length[1]]
  stopping = arrays('gemma', stops=(tuple(text[3:7].tolist()),))
  state = run.prefill(decoder, pair.params, arrays('gemma', stops=((15, 15, 15, 15),)), capacity=CAPACITY)
  state = run.decode(decoder, pair.params, state, max_steps=1)
  fresh = run.prefill(decoder, pair.params, stopping, capacity=CAPACITY)
  state = run.insert(state, np.array([1], np.int32), jax.tree.map(lambda x: x[1:2], fresh))
  compiled = len(run.compile_log())
  found = run.collect(run.decode(decoder, pair.params, state, max_steps=100))
  assert len(run.compile_log()) == compiled
  assert found.status[1] == types.Status.STOP and found.length[1] <= free.prompt_length[1] + 7
  np.testing.assert_array_equal(found.tokens[0, :found.length[0]], free.tokens[0, :free.length[0]])
