"""The autoregressive drafter computes with its cache what one pass over true hidden states and its own drafts gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax import rules
from specjax.core import errors
from specjax.core import types
from specjax.decode import methods
from specjax.decode import speculative
from specjax.drafters import autoregressive_head as drafter_lib
from specjax.models import autoregressive_head
from specjax.models import gemma
from specjax.models import t5
from specjax.ops import keys
from specjax.testing import exactness
from specjax.testing import toy

VOCAB, DRAFTS, ROUNDS, WIDTH = 13, 3, 6, 40
GEMMA = gemma.DecoderConfig(
    vocab_size=VOCAB, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4,
    layer_kinds=(gemma.LOCAL, gemma.GLOBAL), activation='gelu', window=6, norm_plus_one=True, post_norms=True)
T5 = t5.T5Config(
    vocab_size=VOCAB, embed_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=1, num_decoder_layers=1,
    num_buckets=8, max_distance=12, mlp='gated_gelu', tied_head=False, scale_logits=False)
CONFIG = autoregressive_head.AutoregressiveHeadConfig(
    embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4)
PROMPTS = {'gemma': ((1,), (2, 3), (4, 5, 6, 7, 8)), 't5': ((0,), (0,), (0,))}


def target_of(family, dtype):
  if family == 't5':
    return t5.T5LM(T5, dtype, dtype)
  return gemma.DecoderLM(GEMMA, dtype, dtype, max_extend=DRAFTS + 1, block_size=8, return_hidden=True)


def params_of(target, head, dtype=np.float64):
  random = {'target': exactness.random_params(target, 1, scale=0.7, dtype=dtype),
            'autoregressive_head': exactness.random_params(head, 2, scale=0.7, dtype=dtype)}
  return jax.tree.map(jnp.asarray, random)


def rounds(decoder, params, asked):
  """(state before, proposal, state after) of each round."""
  capacity = exactness.capacity(decoder, asked)
  init = jax.jit(lambda params, requests: decoder.init(params, requests, capacity))
  state = init(params, exactness.arrays(asked, vocab_size=VOCAB))
  step = jax.jit(lambda state, uniforms: decoder.step_with(params, state, uniforms))
  for _ in range(ROUNDS):
    before = state
    uniforms = keys.round_uniforms(state.key, state.length, num_draft_tokens=DRAFTS, dtype=jnp.float64)
    state, trace = step(state, uniforms)
    yield before, trace.proposal, state


class Reference:
  """Laws of the drafts by passes over everything, without a cache."""

  def __init__(self, target, head, params):
    ones = np.ones((1, WIDTH), np.int32)
    positions = np.arange(WIDTH, dtype=np.int32)[None]

    def hidden(tokens, encoder):
      extra = {} if encoder is None else dict(
          encoder_tokens=encoder, encoder_positions=jnp.zeros_like(encoder), encoder_segments=jnp.ones_like(encoder))
      batch = types.TrainingBatch(
          tokens=tokens, targets=tokens, weights=ones, positions=positions, segments=ones, **extra)
      return target.forward(params['target'], batch).hidden

    def predicted(features, tokens):
      features = head.forward(
          params['autoregressive_head'], features, target.embed(params['target'], tokens), positions=positions, segments=ones)
      return features, jax.nn.log_softmax(target.unembed(params['target'], features))

    self._hidden, self._predicted = jax.jit(hidden), jax.jit(predicted)

  def laws(self, text, drafted, encoder):
    """[K, V] of the drafts behind `text`."""
    tokens = np.zeros((1, WIDTH), np.int32)
    tokens[0, :len(text)] = text
    features = np.array(self._hidden(tokens, None if encoder is None else np.array([encoder], np.int32)))
    behind, laws = np.roll(tokens, -1, axis=1), []
    for index, draft in enumerate(drafted):
      pair = len(text) - 2 + index
      predicted, law = self._predicted(features, behind)
      laws.append(law[0, pair])
      features[0, pair + 1], behind[0, pair + 1] = predicted[0, pair], draft
    return np.array(laws)


def check_laws(family):
  """Every law that is proposed against the reference; how many draft tokens were accepted."""
  target = target_of(family, jnp.float64)
  head = autoregressive_head.AutoregressiveHead(CONFIG, jnp.float64, jnp.float64, block_size=4)
  params = params_of(target, head)
  decoder = speculative.SpeculativeDecoder(
      target=target, rule=rules.Lossless(), drafter=drafter_lib.AutoregressiveHeadDrafter(
          head=head, model=target, num_draft_tokens=DRAFTS))
  encoder = (3, 1, 4) if family == 't5' else None
  asked = [exactness.Request(prompt=prompt, max_new_tokens=25, encoder=encoder) for prompt in PROMPTS[family]]
  reference = Reference(target, head, params)
  for before, proposal, state in rounds(decoder, params, asked):
    for row, length in enumerate(np.asarray(before.length)):
      assert proposal.length[row] == (DRAFTS if length > 1 else 0)
      if length > 1:
        wanted = reference.laws(before.tokens[row, :length], np.asarray(proposal.tokens[row]), encoder)
        np.testing.assert_allclose(proposal.log_probs[row], wanted, rtol=0, atol=1e-10)
  return np.asarray(state.stats.accepted)


@pytest.mark.parametrize('family', ['gemma', 't5'])
def test_laws_with_the_cache_are_those_of_passes_over_everything(family, x64):
  accepted = check_laws(family)
  assert np.sum(accepted) > 3  # Rounds of different lengths were caught up with.


def plant_states_of_the_round_before(monkeypatch):
  monkeypatch.setattr(
      drafter_lib.AutoregressiveHeadDrafter, 'commit', lambda self, params, state, **unused: state)


def plant_a_cache_that_keeps_what_was_drafted(monkeypatch):
  real = drafter_lib.AutoregressiveHeadDrafter.propose

  def propose(self, params, state, *args, **kwargs):
    proposal, after = real(self, params, state, *args, **kwargs)
    longer = after.cache.replace(length=after.cache.length + jnp.minimum(proposal.length, 1))
    return proposal, after._replace(cache=longer)

  monkeypatch.setattr(drafter_lib.AutoregressiveHeadDrafter, 'propose', propose)


def plant_pairs_with_the_token_in_front(monkeypatch):
  real = drafter_lib.AutoregressiveHeadDrafter._extend

  def extend(self, params, cache, features, tokens, count):
    return real(self, params, cache, features, jnp.roll(tokens, 1, axis=1), count)

  monkeypatch.setattr(drafter_lib.AutoregressiveHeadDrafter, '_extend', extend)


@pytest.mark.nightly
@pytest.mark.parametrize('plant', [
    plant_states_of_the_round_before, plant_a_cache_that_keeps_what_was_drafted, plant_pairs_with_the_token_in_front])
def test_the_comparison_sees_planted_bugs(plant, monkeypatch, x64):
  plant(monkeypatch)
  with pytest.raises(AssertionError):
    check_laws('gemma')


def pair_of(family, **more):
  target = target_of(family, jnp.float32)
  if family == 'gemma':
    target = gemma.DecoderLM(GEMMA)  # As a user makes it: the method asks for hidden states itself.
  head = autoregressive_head.AutoregressiveHead(CONFIG)
  params = params_of(target, head, np.float32) | {'drafter': {}} | more
  return specjax.Pair(
      target=target, drafter=target, params=params, family='encoder-decoder' if family == 't5' else 'decoder-only'), head


def generate(pair, method, temperature):
  return specjax.generate(
      pair, [[1, 2, 3], [4], [5, 6]], method=method, sampling=specjax.SamplingParams(temperature=temperature),
      max_new_tokens=10, seed=0, eos_ids=())


@pytest.mark.parametrize('family, options', [
    ('gemma', dict(num_draft_tokens=3)),
    pytest.param('gemma', dict(num_draft_tokens=2, draws='greedy', verifier='block'), marks=pytest.mark.nightly),
    pytest.param('t5', dict(num_draft_tokens=3), marks=pytest.mark.nightly),
    pytest.param('t5', dict(num_draft_tokens=2, draws='greedy', verifier='block'), marks=pytest.mark.nightly)])
def test_greedy_output_is_the_targets(family, options):
  pair, head = pair_of(family)
  plain, drafted = (generate(pair, method, 0.0) for method in (
      specjax.autoregressive(), methods.autoregressive_head(head=head, **options)))
  assert [list(row) for row in plain.tokens] == [list(row) for row in drafted.tokens]
  stats = drafted.stats
  np.testing.assert_array_equal(stats.drafter_calls, np.asarray(stats.proposed) + (np.asarray(stats.steps) * options[
      'num_draft_tokens'] - np.asarray(stats.proposed)) // options['num_draft_tokens'])


@pytest.mark.nightly
def test_a_cap_shortens_drafts_without_changing_greedy_output():
  pair, head = pair_of('gemma')
  method = lambda cap: methods.autoregressive_head(head=head, num_draft_tokens=3, max_draft_tokens=cap)
  results = {cap: generate(pair, method(cap), 0.0) for cap in (0, 1, 3)}
  for cap, result in results.items():
    assert [list(row) for row in result.tokens] == [list(row) for row in results[3].tokens]
    assert np.max(np.asarray(result.stats.proposed) / np.asarray(result.stats.steps)) <= cap


@pytest.mark.parametrize('options, named', [
    (dict(num_draft_tokens=0), 'num_draft_tokens'), (dict(num_draft_tokens=2, draws='best'), 'draws'),
    (dict(num_draft_tokens=2, max_draft_tokens=3), 'max_draft_tokens'),
    (dict(num_draft_tokens=2, rule=specjax.Chow(threshold=0.1)), 'rule of autoregressive_head')])
def test_bad_options_are_named(options, named):
  with pytest.raises(errors.SpecjaxError, match=named):
    methods.autoregressive_head(head=autoregressive_head.AutoregressiveHead(CONFIG), **options)


def test_heads_of_another_target_are_refused():
  pair, head = pair_of('gemma')
  wide = autoregressive_head.AutoregressiveHead(
      autoregressive_head.AutoregressiveHeadConfig(embed_dim=16, hidden_dim=8, num_heads=1, num_kv_heads=1, head_dim=4))
  with pytest.raises(errors.ParamError, match='width of the head'):
    methods.autoregressive_head(head=wide, num_draft_tokens=2)(pair)
  bare = specjax.Pair(
      target=pair.target, drafter=pair.drafter, family='decoder-only',
      params={'target': pair.params['target'], 'drafter': {}})
  with pytest.raises(errors.ParamError, match='params of the pair'):
    methods.autoregressive_head(head=head, num_draft_tokens=2)(bare)
  with pytest.raises(errors.ParamError, match='ToyLM'):
    methods.autoregressive_head(head=head, num_draft_tokens=2)(toy.toy_pair(vocab_size=5, seed=0))


def test_a_target_without_hidden_states_is_refused():
  pair, head = pair_of('gemma')
  decoder = speculative.SpeculativeDecoder(
      target=pair.target, rule=rules.Lossless(), drafter=drafter_lib.AutoregressiveHeadDrafter(
          head=head, model=pair.target, num_draft_tokens=2))
  asked = [exactness.Request(prompt=(1, 2), max_new_tokens=2)]
  assert not pair.target.return_hidden
  with pytest.raises(errors.ParamError, match='hidden states'):
    decoder.init(pair.params, exactness.arrays(asked, vocab_size=VOCAB, dtype=np.float32), 16)
