"""A t5x tree of parameters decodes as the same weights do in `specjax.generate`, and as t5x decoded them. No t5x needed."""

import functools
import json
import types as python_types

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax.core import errors
from specjax.core import types
from specjax.decode import generate
from specjax.decode import methods
from specjax.integrations import t5x_decoding

VOCAB_SIZE, LONGEST = 29, 10
GREEDY = specjax.SamplingParams(temperature=0.0)
SAMPLED = specjax.SamplingParams(temperature=0.9, top_p=0.95)
LENGTHS = (7, 2, 5, 1)
SPECULATIVE = methods.speculative(num_draft_tokens=3)
OTHERS = {
    'cascade': methods.token_cascade(router=specjax.ChowRouter(threshold=0.5), chunk=2),
    'rule': methods.speculative(num_draft_tokens=2, rule=specjax.Chow(threshold=0.5)),
    'target': methods.autoregressive()}


def tree(seed, *, layers, num_heads=2, width=8, head_dim=6, mlp_dim=12, tied=False):
  """Random parameters in the layout of t5x.examples.t5."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: (rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32)
  joined = num_heads * head_dim
  flat = {'token_embedder/embedding': rng.standard_normal((VOCAB_SIZE, width)).astype(np.float32)}
  for stack, attentions in (('encoder', ('attention',)), ('decoder', ('self_attention', 'encoder_decoder_attention'))):
    flat[f'{stack}/relpos_bias/rel_embedding'] = draw(num_heads, 32)
    flat[f'{stack}/{stack}_norm/scale'] = 1 + 0.1 * draw(width)
    norms = {'attention': 'pre_attention', 'self_attention': 'pre_self_attention',
             'encoder_decoder_attention': 'pre_cross_attention'}
    for layer in range(layers):
      prefix = f'{stack}/layers_{layer}'
      flat[f'{prefix}/pre_mlp_layer_norm/scale'] = 1 + 0.1 * draw(width)
      for kernel, shape in (('wi_0', (width, mlp_dim)), ('wi_1', (width, mlp_dim)), ('wo', (mlp_dim, width))):
        flat[f'{prefix}/mlp/{kernel}/kernel'] = draw(*shape)
      for attention in attentions:
        flat[f'{prefix}/{norms[attention]}_layer_norm/scale'] = 1 + 0.1 * draw(width)
        flat[f'{prefix}/{attention}/out/kernel'] = draw(joined, width)
        for name in ('query', 'key', 'value'):
          flat[f'{prefix}/{attention}/{name}/kernel'] = draw(width, joined)
  if not tied:
    flat['decoder/logits_dense/kernel'] = 3 * draw(width, VOCAB_SIZE)
  return traverse_util.unflatten_dict(flat, sep='/')


def scanned(params):
  """The same parameters as t5x.examples.scalable_t5 has them: heads apart, layers along axis 1, a bias for each."""
  flat, stacked = {}, {}
  for name, value in traverse_util.flatten_dict(params, sep='/').items():
    stack, *rest = name.split('/')
    if len(rest) > 2 and rest[1].endswith('attention'):
      value = value.reshape((2, -1, value.shape[-1]) if rest[2] == 'out' else (value.shape[0], 2, -1))
    if rest[0].startswith('layers_'):
      stacked.setdefault((stack, stack, *rest[1:]), []).append(value)
    elif rest[0] == 'relpos_bias':
      stacked[stack, stack, *rest] = [value] * 2
    else:
      flat[name] = value
  flat |= {'/'.join(name): np.stack(values, axis=1) for name, values in stacked.items()}
  return traverse_util.unflatten_dict(flat, sep='/')


@pytest.fixture(scope='module')
def params():
  return {'target': tree(0, layers=2), 'drafter': tree(1, layers=1)}


def encoder_tokens():
  rng = np.random.default_rng(2)
  tokens = np.zeros((len(LENGTHS), max(LENGTHS)), np.int32)
  for row, length in enumerate(LENGTHS):
    tokens[row, :length] = rng.integers(2, VOCAB_SIZE, length)
  return tokens


@functools.cache  # The tests share executables.
def compiled(method, sampling, longest, num_decodes, dtype=jnp.float32):
  return jax.jit(functools.partial(
      t5x_decoding.decode, method, dtypes=dict.fromkeys(('target', 'drafter'), dtype), sampling=sampling, longest=longest, eos_id=1, num_decodes=num_decodes))


def decode(params, *, method=SPECULATIVE, sampling=GREEDY, num_decodes=1, seed=0, prefix=None, tokens=None, longest=LONGEST):
  tokens = encoder_tokens() if tokens is None else tokens
  function = compiled(method, sampling, longest, num_decodes)
  return jax.device_get(function(params, encoder_tokens=tokens, prefix=prefix, seed=np.uint32(seed)))


def ours(params, *, method=SPECULATIVE, sampling=GREEDY, num_samples=1, seed=0):
  """What `specjax.generate` makes of the same weights, tokens padded with 0."""
  made = {role: t5x_decoding.model_of(params[role], dtype=jnp.float32, role=role) for role in params}
  pair = python_types.SimpleNamespace(
      **{role: model for role, (model, _) in made.items()}, params={role: tree for role, (_, tree) in made.items()},
      family='encoder-decoder', tokenizer=None)
  prompts = [row[:length].tolist() for row, length in zip(encoder_tokens(), LENGTHS)]
  result = generate.generate(
      pair, prompts, method=method, sampling=sampling, max_new_tokens=LONGEST, seed=seed, num_samples=num_samples,
      eos_ids=(1,))
  return np.stack([np.pad(row, (0, LONGEST - len(row))) for row in result.tokens]), result


@pytest.mark.parametrize('sampling', [GREEDY, pytest.param(SAMPLED, marks=pytest.mark.nightly)], ids=['greedy', 'sampled'])
def test_tokens_counters_and_scores_are_those_of_generate(params, sampling):
  decoded = decode(params, sampling=sampling, seed=5)
  tokens, result = ours(params, sampling=sampling, seed=5)
  np.testing.assert_array_equal(decoded.tokens[:, 0], tokens)
  for name in ('steps', 'emitted', 'target_calls', 'drafter_calls', 'proposed', 'evaluated', 'accepted'):
    np.testing.assert_array_equal(decoded.aux[name][:, 0], getattr(result.stats, name), err_msg=name)
  np.testing.assert_allclose(decoded.aux['scores'][:, 0], [np.sum(row) for row in result.log_probs], atol=1e-4)
  np.testing.assert_array_equal(decoded.aux['status'][:, 0], [int(status) for status in result.status])


def test_a_drafter_that_is_the_target_has_everything_accepted(params):
  decoded = decode({'target': params['target'], 'drafter': params['target']})
  emitted = decoded.aux['emitted']
  assert np.all(decoded.aux['target_calls'] == -(-emitted // 4)) and np.all(decoded.aux['evaluated'] == decoded.aux['accepted'])


def test_scanned_layers_with_heads_apart_give_the_same_tokens(params):
  decoded, stacked = decode(params), decode({'target': scanned(params['target']), 'drafter': params['drafter']})
  np.testing.assert_array_equal(decoded.tokens, stacked.tokens)
  np.testing.assert_allclose(decoded.aux['scores'], stacked.aux['scores'], atol=1e-5)


@pytest.mark.nightly
def test_every_answer_to_an_input_is_its_own_sample_and_the_best_is_last(params):
  decoded = decode(params, sampling=SAMPLED, num_decodes=3, seed=7)
  tokens, result = ours(params, sampling=SAMPLED, num_samples=3, seed=7)
  scores = decoded.aux['scores']
  assert decoded.tokens.shape == (len(LENGTHS), 3, LONGEST) and np.all(np.diff(scores, axis=1) >= 0)
  expected = np.array([np.sum(row) for row in result.log_probs]).reshape(-1, 3)
  np.testing.assert_allclose(scores, np.sort(expected, axis=1), atol=1e-4)
  for row, order in enumerate(np.argsort(expected, axis=1)):
    np.testing.assert_array_equal(decoded.tokens[row], tokens.reshape(-1, 3, LONGEST)[row, order])
  assert len({tuple(row) for row in decoded.tokens[0]}) == 3


def test_a_forced_prefix_stands_in_the_tokens_and_continues_as_it_would_have(params):
  free = decode(params)
  prefix = np.zeros((len(LENGTHS), LONGEST), np.int32)
  for row, length in enumerate((3, 0, 5, 1)):
    prefix[row, :length] = free.tokens[row, 0, :length]
  forced = decode(params, prefix=np.where(prefix == 1, 0, prefix))
  np.testing.assert_array_equal(forced.tokens, free.tokens)
  assert forced.aux['emitted'][0, 0] == free.aux['emitted'][0, 0] - 3
  full = decode(params, prefix=np.full((len(LENGTHS), LONGEST), 5, np.int32))
  assert np.all(full.tokens == 5) and np.all(full.aux['emitted'] == 0) and np.all(full.aux['scores'] == 0)


@pytest.mark.parametrize('name', [pytest.param(name, marks=pytest.mark.nightly) for name in OTHERS])
def test_rules_and_cascades_are_methods_too(params, name):
  decoded = decode(params, method=OTHERS[name])
  np.testing.assert_array_equal(decoded.tokens[:, 0], ours(params, method=OTHERS[name])[0])


def test_parameters_of_another_model_are_named(params):
  broken = dict(params['target'])
  broken['decoder'] = {name: value for name, value in broken['decoder'].items() if name != 'decoder_norm'}
  with pytest.raises(errors.CheckpointError, match='missing decoder/final_norm/scale'):
    decode({'target': broken, 'drafter': params['drafter']})
  narrow = tree(1, layers=1)
  narrow['token_embedder']['embedding'] = narrow['token_embedder']['embedding'][:-1]
  narrow['decoder']['logits_dense']['kernel'] = narrow['decoder']['logits_dense']['kernel'][:, :-1]
  with pytest.raises(errors.VocabError, match='28 != target vocabulary 29'):
    decode({'target': params['target'], 'drafter': narrow})


def test_a_row_that_is_not_finite_says_so_and_has_no_score(params):
  broken = jax.tree.map(np.array, params['target'])
  token = encoder_tokens()[0, 0]
  broken['token_embedder']['embedding'][token] = np.nan
  decoded = decode({'target': broken, 'drafter': params['drafter']})
  is_broken = decoded.aux['status'] == types.Status.NONFINITE
  assert is_broken[0, 0] and not is_broken.all()
  np.testing.assert_array_equal(np.isnan(decoded.aux['scores']), is_broken)


@pytest.mark.nightly
def test_in_bfloat16_a_self_draft_is_accepted_and_laws_are_float32(params):
  both = {'target': params['target'], 'drafter': params['target']}
  function = compiled(SPECULATIVE, GREEDY, LONGEST, 1, jnp.bfloat16)
  decoded = jax.device_get(function(both, encoder_tokens=encoder_tokens(), prefix=None, seed=np.uint32(0)))
  assert decoded.aux['scores'].dtype == np.float32
  assert np.all(decoded.aux['target_calls'] == -(-decoded.aux['emitted'] // 4))


@pytest.mark.parametrize('drafts', [pytest.param(0, marks=pytest.mark.nightly), 3])
def test_greedy_tokens_are_those_that_t5x_wrote(golden_dir, drafts):
  folder = golden_dir / 't5x' / 't5_1_1'
  params = traverse_util.unflatten_dict(dict(np.load(folder / 'params_flat.npz')), sep='/')
  tokens = np.load(folder.parent / 'batch.npz')['encoder_input_tokens']
  golden = np.load(folder / 'golden.npz')['greedy']
  assert json.loads((folder / 'config.json').read_text())['mlp_activations'] == ['gelu', 'linear']
  method = methods.speculative(num_draft_tokens=drafts)
  decoded = decode({'target': params, 'drafter': params}, method=method, tokens=tokens, longest=golden.shape[1])
  np.testing.assert_array_equal(decoded.tokens[:, 0], golden)
  if drafts:
    assert np.all(decoded.aux['target_calls'] == -(-decoded.aux['emitted'] // (drafts + 1)))
