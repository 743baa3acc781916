"""`specjax.generate`: what a newcomer calls, and everything it refuses before anything compiles."""

import dataclasses

import jax
import numpy as np
import pytest

import specjax
from specjax.core import errors
from specjax.core import types
from specjax.decode import autoregressive
from specjax.decode import generate
from specjax.decode import run
from specjax.testing import toy

PROMPTS = [[1, 2, 3], [4], [5, 6]]
SAMPLED = specjax.SamplingParams(temperature=1.0)
GREEDY = specjax.SamplingParams(temperature=0.0)


@pytest.fixture(scope='module', params=['decoder-only', 'encoder-decoder'])
def pair(request):
  return toy.toy_pair(vocab_size=7, seed=0, has_encoder=request.param == 'encoder-decoder')


def decode(pair, method=None, **changes):
  arguments = dict(sampling=SAMPLED, max_new_tokens=8, seed=0, batch_size=4) | changes
  prompts = arguments.pop('prompts', PROMPTS)
  return specjax.generate(pair, prompts, method=method or specjax.speculative(num_draft_tokens=2), **arguments)


def test_autoregressive_decoding_equals_the_plain_loop(pair):
  sampling = specjax.SamplingParams(temperature=0.7, top_k=5, top_p=0.8, min_p=0.05)
  work = generate.plan(
      pair, PROMPTS, method=specjax.autoregressive(), sampling=sampling, max_new_tokens=8, seed=5, num_samples=1,
      batch_size=3, example_ids=None, eos_ids=(0,))
  expected = autoregressive.reference(pair.target, pair.params['target'], work.requests[0])
  result = decode(pair, specjax.autoregressive(), sampling=sampling, seed=5, batch_size=3, eos_ids=(0,))
  for ours, plain in zip(result.tokens, expected):
    np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize('width', [1, 3])
def test_greedy_speculative_decoding_equals_greedy_autoregressive_decoding(pair, width):
  alone = decode(pair, specjax.autoregressive(width=width), sampling=GREEDY)
  drafted = decode(pair, specjax.speculative(num_draft_tokens=2), sampling=GREEDY)
  for ours, theirs in zip(alone.tokens, drafted.tokens):
    np.testing.assert_array_equal(ours, theirs)


def test_log_probs_are_the_targets_own(pair):
  result = decode(pair, sampling=specjax.SamplingParams(temperature=0.5, top_k=3))
  tokens = np.array([[*PROMPTS[0], *result.tokens[0]]], np.int32)
  if pair.family == 'encoder-decoder':
    tokens = np.array([[0, *result.tokens[0]]], np.int32)
  one = np.ones(tokens.shape, np.int32)
  encoder = np.array([PROMPTS[0]], np.int32)
  batch = types.TrainingBatch(tokens, tokens, one.astype(np.float32), one, one, encoder, encoder, np.ones_like(encoder))
  params = jax.tree.map(jax.numpy.asarray, pair.params['target'])
  law = jax.nn.log_softmax(pair.target.forward(params, batch).logits)[0]
  start = tokens.shape[1] - len(result.tokens[0])
  expected = [law[start + i - 1, token] for i, token in enumerate(result.tokens[0])]
  np.testing.assert_allclose(result.log_probs[0], expected, atol=1e-5)


def test_samples_of_one_prompt_differ_and_are_reproducible(pair):
  first, second = decode(pair, num_samples=4), decode(pair, num_samples=4)
  assert list(first.prompt_index) == [0] * 4 + [1] * 4 + [2] * 4
  assert list(first.sample_index) == [0, 1, 2, 3] * 3
  for ours, again in zip(first.tokens, second.tokens):
    np.testing.assert_array_equal(ours, again)
  assert len({tuple(tokens) for tokens in first.tokens[:4]}) > 1


def test_a_seed_changes_the_samples(pair):
  assert any((a != b).any() for a, b in zip(decode(pair, seed=0).tokens, decode(pair, seed=1).tokens))


def test_random_numbers_follow_the_example_and_not_the_slot(pair):
  forward = decode(pair, example_ids=['a', 'b', 'c'])
  backward = decode(pair, prompts=PROMPTS[::-1], example_ids=['c', 'b', 'a'])
  for ours, theirs in zip(forward.tokens, backward.tokens[::-1]):
    np.testing.assert_array_equal(ours, theirs)


def test_streamed_chunks_concatenate_to_the_whole(pair):
  method = specjax.speculative(num_draft_tokens=2)
  chunks = list(specjax.stream(pair, PROMPTS, method=method, sampling=SAMPLED, max_new_tokens=8, seed=0, steps_per_chunk=2))
  whole = decode(pair, method, batch_size=3)
  assert len(chunks) > 1
  for row, expected in enumerate(whole.tokens):
    np.testing.assert_array_equal(np.concatenate([chunk[row] for chunk in chunks]), expected)


def test_limits_may_differ_by_prompt_and_zero_is_an_empty_output(pair):
  result = decode(pair, max_new_tokens=[0, 3, 8])
  assert list(result.length) == [0, 3, 8]
  assert result.status == [types.Status.LIMIT] * 3
  assert result.stats.steps[0] == 0


def test_eos_ends_a_row_and_is_kept(pair):
  free = decode(pair, max_new_tokens=16)
  eos = int(free.tokens[0][4])
  result = decode(pair, max_new_tokens=16, eos_ids=(eos,))
  first = list(free.tokens[0]).index(eos)
  np.testing.assert_array_equal(result.tokens[0], free.tokens[0][:first + 1])
  assert result.status[0] == types.Status.EOS


def test_bias_and_allowed_tokens_apply_to_every_token(pair):
  allowed = specjax.SamplingParams(temperature=1.0, allowed_tokens=(2, 5))
  assert set(np.concatenate(decode(pair, sampling=allowed).tokens)) <= {2, 5}
  pushed = specjax.SamplingParams(temperature=1.0, logit_bias={4: 100.0})
  assert set(np.concatenate(decode(pair, sampling=pushed).tokens)) == {4}


def test_a_broken_target_raises_with_model_example_and_step(pair):
  params = dict(pair.params, target=dict(pair.params['target'], table=np.full_like(pair.params['target']['table'], np.nan)))
  with pytest.raises(errors.LogitsError, match='target.*example first, step 1'):
    decode(dataclasses.replace(pair, params=params), example_ids=['first', 'second', 'third'])


def test_a_broken_drafter_raises_and_blames_the_drafter(pair):
  params = dict(pair.params, drafter=dict(pair.params['drafter'], table=np.full_like(pair.params['drafter']['table'], np.inf)))
  with pytest.raises(errors.LogitsError, match='drafter'):
    decode(dataclasses.replace(pair, params=params))


def test_no_row_emits_a_token_after_its_logits_broke(pair):
  table = pair.params['target']['table'].copy()
  table[:, 3] = np.nan  # whatever follows token 3 is broken
  params = dict(pair.params, target=dict(pair.params['target'], table=table))
  work = generate.plan(
      pair, [[1], [2], [4], [5]], method=specjax.speculative(num_draft_tokens=3), sampling=SAMPLED, max_new_tokens=16,
      seed=0, num_samples=1, batch_size=4, example_ids=None, eos_ids=())
  state = run.prefill(work.decoder, params, work.requests[0], capacity=work.capacity)
  done = run.collect(run.decode(work.decoder, params, state, max_steps=100))
  for row in range(4):
    tokens = done.tokens[row, done.prompt_length[row]:done.length[row]]
    if 3 in tokens:
      assert done.status[row] == types.Status.NONFINITE
      assert list(tokens).index(3) == len(tokens) - 1
    else:
      assert done.status[row] == types.Status.LIMIT


@pytest.mark.parametrize('changes, error, text', [
    (dict(prompts=[]), errors.PromptError, 'at least one prompt'),
    (dict(prompts=[[1], []]), errors.PromptError, 'example 1'),
    (dict(prompts=[[1, 7]]), errors.VocabError, '0 <= id < 7'),
    (dict(prompts=[[-1]]), errors.VocabError, '-1'),
    (dict(prompts=['text']), errors.PromptError, 'no tokenizer'),
    (dict(seed=2**32), errors.ParamError, 'seed'),
    (dict(seed=-1), errors.ParamError, 'seed'),
    (dict(num_samples=0), errors.ParamError, 'num_samples'),
    (dict(num_samples=10**6), errors.LimitError, 'cap'),
    (dict(max_new_tokens=-1), errors.ParamError, 'max_new_tokens'),
    (dict(max_new_tokens=1 << 30), errors.LimitError, 'max_new_tokens'),
    (dict(max_new_tokens=[1, 2]), errors.ParamError, '2 values'),
    (dict(batch_size=0), errors.ParamError, 'batch_size'),
    (dict(eos_ids=(9,)), errors.VocabError, 'eos id'),
    (dict(sampling=specjax.SamplingParams(temperature=1.0, allowed_tokens=(9,))), errors.VocabError, 'allowed'),
    (dict(sampling=specjax.SamplingParams(temperature=1.0, logit_bias={9: 1.0})), errors.VocabError, 'logit_bias'),
])
def test_bad_requests_are_refused_before_compilation(pair, changes, error, text):
  before = len(run.compile_log())
  with pytest.raises(error, match=text):
    decode(pair, **changes)
  assert len(run.compile_log()) == before


@pytest.mark.parametrize('arguments, error', [
    (dict(num_draft_tokens=-1), errors.ParamError),
    (dict(num_draft_tokens='five'), errors.ParamError),
    (dict(num_draft_tokens=10**6), errors.LimitError),
    (dict(num_draft_tokens=2, max_draft_tokens=3), errors.ParamError),
    (dict(num_draft_tokens=2, bonus='both'), errors.ParamError),
    (dict(num_draft_tokens=2, verifier='tree'), errors.ParamError),
    (dict(num_draft_tokens=2, rule=specjax.Chow(threshold=float('nan'))), errors.ParamError),
    (dict(num_draft_tokens=2, rule=specjax.TokenV3(threshold='half')), errors.ParamError),
])
def test_bad_methods_are_refused(arguments, error):
  with pytest.raises(error):
    specjax.speculative(**arguments)


def test_vocabularies_that_differ_are_refused(pair):
  other = dataclasses.replace(pair, drafter=dataclasses.replace(pair.drafter, vocab_size=6))
  with pytest.raises(errors.VocabError, match='6 != target vocabulary 7'):
    decode(other)


def test_buckets_are_few_and_hold_their_size():
  sizes = {generate.bucket(n) for n in range(1, 2049)}
  assert all(generate.bucket(n) >= n for n in range(1, 2049))
  assert len(sizes) <= 13


def test_requests_that_truncate_are_refused_in_the_program_without_filters():
  build = lambda **sampling: generate.build_requests(
      [[1]], family='decoder-only', width=4, batch_size=2, sampling=[specjax.SamplingParams(temperature=1.0, **sampling)],
      max_new_tokens=[3], eos_ids=(), seed=[0], example_id=[0], sample_index=[0], vocab_size=5, may_truncate=False)
  assert build().sampling.top_k is None and build().sampling.temperature.shape == (2,)
  for sampling in (dict(top_k=2), dict(top_p=0.9), dict(min_p=0.1)):
    with pytest.raises(errors.ParamError, match='may_truncate'):
      build(**sampling)
