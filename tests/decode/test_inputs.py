"""What people mistype: each slip is a named error before anything compiles, and no slip is a silent accept."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import specjax
from specjax.core import errors
from specjax.decode import generate
from specjax.decode import inputs
from specjax.decode import memory
from specjax.decode import run
from specjax.models import gemma
from specjax.models import t5
from specjax.models import t5_configs
from specjax.testing import toy

PROMPTS = [[1, 2, 3], [4], [5, 6]]
SAMPLED = specjax.SamplingParams(temperature=1.0)
METHOD = specjax.speculative(num_draft_tokens=2)


@functools.cache
def toy_pair():
  return toy.toy_pair(vocab_size=7, seed=0)


def arguments_with(changes):
  return dict(
      prompts=PROMPTS, method=METHOD, sampling=SAMPLED, max_new_tokens=4, seed=0) | changes


SLIPS = [
    (dict(prompts='write'), errors.PromptError, 'put the text in brackets'),
    (dict(prompts=b'write'), errors.PromptError, 'put the text in brackets'),
    (dict(prompts=None), errors.PromptError, 'a list of texts'),
    (dict(prompts={'a': [1]}), errors.PromptError, 'a list of texts'),
    (dict(prompts=iter([[1]])), errors.PromptError, 'a list of texts'),
    (dict(prompts=[None]), errors.PromptError, r'prompts\[0\].*a text or a list'),
    (dict(prompts=[5]), errors.PromptError, 'brackets are missing'),
    (dict(prompts=[1, 2, 3]), errors.PromptError, 'brackets are missing'),
    (dict(prompts=np.array([1, 2, 3])), errors.PromptError, 'brackets are missing'),
    (dict(prompts=[1.5]), errors.PromptError, 'a text or a list'),
    (dict(prompts=[[1], [[1, 2], [3]]]), errors.PromptError, r'prompts\[1\].*a flat list'),
    (dict(prompts=[[1], ['a']]), errors.PromptError, r'prompts\[1\].*a flat list'),
    (dict(prompts=[[1], [None]]), errors.PromptError, 'a flat list'),
    (dict(prompts=[[1.5]]), errors.VocabError, 'integers'),
    (dict(eos_ids=5), errors.ParamError, r'write \(5,\)'),
    (dict(eos_ids='5'), errors.ParamError, 'eos_ids'),
    (dict(eos_ids=[0.5]), errors.VocabError, 'eos id'),
    (dict(example_ids=['a']), errors.ParamError, '3, one per prompt'),
    (dict(example_ids=list('abcd')), errors.ParamError, '3, one per prompt'),
    (dict(example_ids='abc'), errors.ParamError, 'example_ids'),
    (dict(example_ids=7), errors.ParamError, 'example_ids'),
    (dict(example_ids=['a', 'b', 'a']), errors.ParamError, r"example_ids\[2\].*'a'.*num_samples"),
    (dict(example_ids=[0, 1, np.int64(1)]), errors.ParamError, r'example_ids\[2\]'),
    (dict(example_ids=[0, 1, None]), errors.ParamError, 'example_id'),
    (dict(sampling={'temperature': 1.0}), errors.ParamError, r'SamplingParams\(\*\*values\)'),
    (dict(sampling=None), errors.ParamError, 'sampling'),
    (dict(sampling=1.0), errors.ParamError, 'sampling'),
    (dict(sampling=[SAMPLED] * 2), errors.ParamError, '2 values'),
    (dict(sampling=[SAMPLED, SAMPLED, None]), errors.ParamError, 'sampling'),
    (dict(seed=[1, 2]), errors.ParamError, '2 values'),
    (dict(seed=[1, 2, -3]), errors.ParamError, 'seed'),
    (dict(max_new_tokens='4'), errors.ParamError, 'max_new_tokens'),
    (dict(method='speculative'), errors.ParamError, r'specjax.speculative\(num_draft_tokens=4\)'),
    (dict(method=specjax.speculative), errors.ParamError, r'call it with its parameters: speculative\(...\)'),
    (dict(method=specjax.autoregressive), errors.ParamError, r'autoregressive\(...\)'),
    (dict(method=specjax.SpeculativeDecoder), errors.ParamError, 'SpeculativeDecoder'),
    (dict(method=lambda pair: None), errors.ParamError, 'method'),
    (dict(method=None), errors.ParamError, 'method'),
]


@pytest.mark.parametrize('changes, error, text', SLIPS)
@pytest.mark.parametrize('call', [specjax.generate, specjax.stream], ids=['generate', 'stream'])
def test_a_slip_is_a_named_error_before_compilation(call, changes, error, text):
  before = len(run.compile_log())
  with pytest.raises(error, match=text):
    call(toy_pair(), **arguments_with(changes))
  assert len(run.compile_log()) == before


@pytest.mark.parametrize('rule', ['lossless', specjax.Chow, specjax.Lossless, 0.5, lambda *unused: None])
def test_what_is_no_rule_is_refused(rule):
  with pytest.raises(errors.ParamError, match=r'rule.*specjax.Chow\(threshold=0.3\)'):
    specjax.speculative(num_draft_tokens=2, rule=rule)


def test_no_draft_tokens_and_another_law_than_the_targets_is_refused():
  with pytest.raises(errors.ParamError, match='Chow.*num_draft_tokens'):
    specjax.speculative(num_draft_tokens=0, rule=specjax.Chow(threshold=0.3))


def test_no_draft_tokens_keep_the_options_of_the_loop():
  result = specjax.generate(
      toy_pair(), PROMPTS, method=specjax.speculative(num_draft_tokens=0, with_log_probs=False), sampling=SAMPLED,
      max_new_tokens=3, seed=0)
  assert result.log_probs is None


def test_arrays_and_tuples_are_prompts_too():
  lists = specjax.generate(toy_pair(), **arguments_with(dict(prompts=[[1, 2], [3, 4]])))
  for prompts in (np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4)), [np.array([1, 2], np.int16), [np.int64(3), 4]]):
    other = specjax.generate(toy_pair(), **arguments_with(dict(prompts=prompts)))
    assert [row.tolist() for row in other.tokens] == [row.tolist() for row in lists.tokens]


def test_seed_and_sampling_may_differ_by_prompt():
  samplings = [SAMPLED, specjax.SamplingParams(temperature=0.0), specjax.SamplingParams(temperature=0.3, top_k=2)]
  together = specjax.generate(
      toy_pair(), **arguments_with(dict(seed=[4, 5, 6], sampling=samplings, max_new_tokens=12, num_samples=2)))
  for i, (seed, sampling) in enumerate(zip([4, 5, 6], samplings)):
    alone = specjax.generate(
        toy_pair(), **arguments_with(dict(seed=seed, sampling=sampling, max_new_tokens=12, num_samples=2)))
    for row in (2 * i, 2 * i + 1):
      np.testing.assert_array_equal(together.tokens[row], alone.tokens[row])


def test_a_prompt_and_its_answer_longer_than_the_model_are_refused():
  pair = toy_pair()
  short = dataclasses.replace(pair, drafter=dataclasses.replace(pair.drafter, max_length=6))
  specjax.generate(short, **arguments_with(dict(max_new_tokens=[3, 5, 4])))
  with pytest.raises(errors.LimitError, match=r'example 1: .*drafter: got .1 \+ 6 tokens.*max_length 6'):
    specjax.generate(short, **arguments_with(dict(max_new_tokens=[3, 6, 4])))


def test_both_sides_of_an_encoder_decoder_have_the_length():
  pair = toy.toy_pair(vocab_size=7, seed=0, has_encoder=True)
  pair = dataclasses.replace(pair, target=dataclasses.replace(pair.target, max_length=4))
  specjax.generate(pair, **arguments_with(dict(prompts=[[1, 2, 3, 4]], max_new_tokens=3)))
  for changes in (dict(prompts=[[1] * 5], max_new_tokens=3), dict(prompts=[[1]], max_new_tokens=4)):
    with pytest.raises(errors.LimitError, match='max_length 4'):
      specjax.generate(pair, **arguments_with(changes))


def test_a_batch_that_cannot_fit_is_refused_with_the_numbers_and_allocates_nothing():
  before = len(run.compile_log())
  with pytest.raises(errors.LimitError, match=r'batch_size 4096: .*GiB \(state and caches .*GiB, prefill of 32 tokens'):
    specjax.generate(toy_pair(), **arguments_with(dict(max_new_tokens=1 << 20, batch_size=4096)))
  assert len(run.compile_log()) == before


def tiny(family, dtype):
  if family == 't5':
    model = lambda width: t5.T5LM(t5_configs.T5Config(
        vocab_size=13, embed_dim=width, num_heads=2, head_dim=4, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1,
        mlp='gated_gelu', tied_head=False, scale_logits=False), dtype=dtype, param_dtype=dtype)
  else:
    model = lambda width: gemma.DecoderLM(gemma.DecoderConfig(
        vocab_size=13, embed_dim=width, hidden_dim=8, num_heads=2, num_kv_heads=1, head_dim=4,
        layer_kinds=('local', 'global'), activation='gelu', window=4), dtype=dtype, param_dtype=dtype)
  target, drafter = model(8), model(4)
  params = {'target': target.init(jax.random.key(0)), 'drafter': drafter.init(jax.random.key(1))}
  return specjax.Pair(
      target=target, drafter=drafter, params=params, family='encoder-decoder' if family == 't5' else 'decoder-only')


def cast(pair, dtype):
  return dataclasses.replace(pair, params=jax.tree.map(lambda x: np.asarray(x, dtype), pair.params))


METHODS = {
    'autoregressive': specjax.autoregressive(), 'speculative': METHOD,
    'chow': specjax.speculative(num_draft_tokens=2, rule=specjax.Chow(threshold=0.3)),
    'token_v3': specjax.speculative(num_draft_tokens=2, rule=specjax.TokenV3(threshold=0.3))}
TRUNCATED = specjax.SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01, logit_bias={1: 0.5})


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('family', ['toy', 'gemma', 't5'])
def test_float64_models_decode_under_strict_promotion(x64, family, method):
  pair = cast(toy_pair(), np.float64) if family == 'toy' else tiny(family, np.float64)
  assert inputs.law_dtype(pair) == np.float64
  result = specjax.generate(pair, **arguments_with(dict(method=METHODS[method], sampling=[SAMPLED, TRUNCATED, SAMPLED])))
  assert result.length.tolist() == [4, 4, 4]
  assert result.log_probs is None or all(row.dtype == np.float64 for row in result.log_probs)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('family', ['toy', 'gemma', 't5'])
def test_bfloat16_models_decode_under_strict_promotion(family, method):
  dtype = jax.numpy.bfloat16
  pair = cast(toy_pair(), dtype) if family == 'toy' else tiny(family, dtype)
  assert inputs.law_dtype(pair) == np.float32
  result = specjax.generate(pair, **arguments_with(dict(method=METHODS[method], sampling=[SAMPLED, TRUNCATED, SAMPLED])))
  assert result.length.tolist() == [4, 4, 4]


def test_the_largest_array_of_prefill_is_found_inside_loops_and_branches():
  def program(x):
    big = lambda y: (y[:, None] * y[None, :]).sum(axis=1)
    return jax.lax.while_loop(lambda c: c[0].sum() < 0, lambda c: (jax.lax.cond(True, big, lambda y: y, c[0]),), (x,))[0]

  jaxpr = jax.make_jaxpr(program)(jax.ShapeDtypeStruct((100,), np.float32))
  assert memory._largest_array(jaxpr.jaxpr) == 4 * 100 * 100


@pytest.mark.parametrize('family', ['gemma', 't5'])
def test_scores_of_prefill_are_counted(family):
  pair, width = tiny(family, np.float32), 512
  work = generate.plan(
      pair, [[1] * width], method=METHOD, sampling=SAMPLED, max_new_tokens=4, seed=0, num_samples=1, batch_size=2,
      example_ids=None, eos_ids=None)
  parts = memory.batch_bytes(work.decoder, pair.params, work.requests[0], capacity=work.capacity)
  [prefill] = [size for name, size in parts.items() if name.startswith('prefill')]
  assert prefill >= 2 * 4 * 2 * 2 * width * width  # [B, N, T, T] float32, scores and their softmax


def test_a_broken_row_costs_only_itself():
  pair = toy_pair()
  table = pair.params['target']['table'].copy()
  table[:, 3] = np.nan  # whatever follows token 3 is broken
  broken = dataclasses.replace(pair, params=dict(pair.params, target=dict(pair.params['target'], table=table)))
  only = specjax.SamplingParams(temperature=1.0, allowed_tokens=(1, 2))
  arguments = arguments_with(dict(prompts=[[1], [2], [3], [4], [5], [6]], sampling=only, batch_size=2))
  with pytest.raises(errors.LogitsError, match='example 2') as caught:
    specjax.generate(broken, **arguments)
  partial, whole = caught.value.partial, specjax.generate(pair, **arguments)
  assert partial.prompt_index.tolist() == [0, 1, 2, 3]  # the batch is finished, the next one is not begun
  assert partial.status[2] == specjax.Status.NONFINITE and partial.length.tolist() == [4, 4, 0, 4]
  for row in (0, 1, 3):
    np.testing.assert_array_equal(partial.tokens[row], whole.tokens[row])
    np.testing.assert_array_equal(partial.log_probs[row], whole.log_probs[row])


def test_a_pair_of_ones_own_models_needs_no_tokenizer():
  own = toy_pair()
  pair = specjax.Pair(target=own.target, drafter=own.drafter, params=own.params, family='decoder-only')
  result = specjax.generate(pair, **arguments_with({}))
  assert result.text is None and result.length.tolist() == [4, 4, 4]
  with pytest.raises(errors.PromptError, match='no tokenizer'):
    specjax.generate(pair, **arguments_with(dict(prompts=['text'])))


class Letters:
  """A tokenizer of seven letters."""

  eos_id = 6

  def encode(self, text):
    return ['abcdef'.index(letter) for letter in text]

  def decode(self, tokens):
    return ''.join('abcdef'[token] for token in tokens)


def test_a_pair_of_ones_own_models_may_have_a_tokenizer():
  own = toy_pair()
  pair = specjax.Pair(
      target=own.target, drafter=own.drafter, params=own.params, family='decoder-only', tokenizer=Letters())
  texts = specjax.generate(pair, **arguments_with(dict(prompts=['bcd', 'e'])))
  ids = specjax.generate(own, **arguments_with(dict(prompts=[[1, 2, 3], [4]], eos_ids=[6])))
  assert [row.tolist() for row in texts.tokens] == [row.tolist() for row in ids.tokens]
  framed = dataclasses.replace(pair, frame=lambda text: [5, *pair.tokenizer.encode(text)])
  assert framed.encode_prompt('ab') == [5, 0, 1]


@pytest.mark.parametrize('changes, error, text', [
    (dict(family='decoder'), errors.ParamError, 'family'), (dict(params={'target': {}}), errors.ParamError, 'params'),
    (dict(drafter=toy.ToyLM(vocab_size=6)), errors.VocabError, '6 != target vocabulary 7'),
    (dict(start_token=7), errors.VocabError, 'start_token')])
def test_a_pair_that_fits_nowhere_is_refused(changes, error, text):
  own = toy_pair()
  with pytest.raises(error, match=text):
    specjax.Pair(**(dict(target=own.target, drafter=own.drafter, params=own.params, family='decoder-only') | changes))
