"""T5 against logits and generations of t5x and Hugging Face: prefill, extend and forward, on their own checkpoints."""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import types
from specjax.models import t5

_DEFAULT = pathlib.Path(__file__).resolve().parents[2] / '..' / 'shared' / 'golden'
GOLDEN = pathlib.Path(os.environ.get('SPECJAX_GOLDEN_DIR', _DEFAULT))
TOLERANCE = 2e-5


def _folder(*parts):
  folder = GOLDEN.joinpath(*parts)
  if not folder.is_dir():
    pytest.skip(f'no golden data at {folder}; set SPECJAX_GOLDEN_DIR')
  return folder


def _insert(tree, path, leaf):
  *parents, name = path.split('/')
  for parent in parents:
    tree = tree.setdefault(parent, {})
  tree[name] = jnp.asarray(leaf)


_T5X_NAMES = (
    ('layers_', 'layer_'), ('encoder_decoder_attention', 'cross_attention'), ('/out/', '/output/'),
    ('/wi_0/', '/gate/'), ('/wi_1/', '/up/'), ('/wi/', '/up/'), ('/wo/', '/down/'), ('_layer_norm', '_norm'),
    ('encoder/encoder_norm', 'encoder/final_norm'), ('decoder/decoder_norm', 'decoder/final_norm'),
    ('decoder/logits_dense', 'head'), ('relpos_bias/rel_embedding', 'relative_bias/embedding'))


def _from_t5x(flat):
  """Our parameters from t5x's; only the position bias is transposed."""
  params = {}
  for name, leaf in flat.items():
    for theirs, ours in _T5X_NAMES:
      name = name.replace(theirs, ours)
    _insert(params, name, leaf.T if 'relative_bias' in name else leaf)
  return params


def _hf_name(name):
  """Our name of a Hugging Face tensor, and whether it is stored transposed."""
  if name == 'shared.weight':
    return 'token_embedder/embedding', False
  if name == 'lm_head.weight':
    return 'head/kernel', True
  stack, *rest = name.split('.')
  if rest == ['final_layer_norm', 'weight']:
    return f'{stack}/final_norm/scale', False
  _, block, _, sublayer, module, *leaf = rest
  if leaf[0] == 'relative_attention_bias':
    return f'{stack}/relative_bias/embedding', False
  roles = {'encoder': ('attention', 'mlp'), 'decoder': ('self_attention', 'cross_attention', 'mlp')}
  role = roles[stack][int(sublayer)]
  if module == 'layer_norm':
    return f'{stack}/layer_{block}/pre_{role}_norm/scale', False
  gated = {'wi_0': 'gate', 'wi_1': 'up', 'wi': 'up', 'wo': 'down'}
  ours = gated | {'q': 'query', 'k': 'key', 'v': 'value', 'o': 'output'}
  return f'{stack}/layer_{block}/{role}/{ours[leaf[0]]}/kernel', True


def _from_hf(tensors):
  """Our parameters from Hugging Face's tensors, whose linear weights are (out, in)."""
  params = {}
  for name, tensor in tensors.items():
    ours, transposed = _hf_name(name)
    _insert(params, ours, tensor.T if transposed else tensor)
  return params


def _t5x_case():
  folder = _folder('t5x', 't5_1_1')
  config = json.loads((folder / 'config.json').read_text())
  model = t5.T5LM(t5.T5Config(
      vocab_size=config['vocab_size'], embed_dim=config['emb_dim'], num_heads=config['num_heads'],
      head_dim=config['head_dim'], mlp_dim=config['mlp_dim'], num_encoder_layers=config['num_encoder_layers'],
      num_decoder_layers=config['num_decoder_layers'], mlp='gated_gelu', tied_head=False, scale_logits=False))
  batch, golden = np.load(folder.parent / 'batch.npz'), np.load(folder / 'golden.npz')
  encoder_length = (batch['encoder_input_tokens'] > 0).sum(1)
  return dict(
      model=model, params=_from_t5x(np.load(folder / 'params_flat.npz')), encoder_tokens=batch['encoder_input_tokens'],
      encoder_length=encoder_length, encoded=golden['encoded'], tokens=batch['decoder_input_tokens'],
      logits=golden['logits'], mask=batch['decoder_target_tokens'] > 0, greedy=golden['greedy'])


def _hf_case(name):
  from safetensors import numpy as safetensors_numpy

  folder = _folder('hf', name)
  config = json.loads((folder / 'config.json').read_text())
  gated, tied = config['feed_forward_proj'] == 'gated-gelu', config['tie_word_embeddings']
  model = t5.T5LM(t5.T5Config(
      vocab_size=config['vocab_size'], embed_dim=config['d_model'], num_heads=config['num_heads'],
      head_dim=config['d_kv'], mlp_dim=config['d_ff'], num_encoder_layers=config['num_layers'],
      num_decoder_layers=config['num_decoder_layers'], mlp='gated_gelu' if gated else 'relu', tied_head=tied,
      scale_logits=config.get('scale_decoder_outputs', tied)))
  golden = np.load(folder / 'golden.npz')
  return dict(
      model=model, params=_from_hf(safetensors_numpy.load_file(folder / 'model.safetensors')),
      encoder_tokens=golden['input_ids'], encoder_length=golden['attention_mask'].sum(1),
      encoded=golden['encoder_last_hidden_state'], tokens=golden['decoder_input_ids'], logits=golden['logits'],
      mask=np.ones(golden['decoder_input_ids'].shape, bool), greedy=golden['generate'][:, 1:])


CASES = {
    't5x_1_1': _t5x_case,
    'hf_v1_0': lambda: _hf_case('t5_v1_0'),
    'hf_v1_1_hub': lambda: _hf_case('t5_v1_1_hub'),
}


@pytest.fixture(params=CASES, scope='module')
def case(request):
  found = CASES[request.param]()
  int32 = ('encoder_tokens', 'encoder_length', 'tokens')
  return found | {name: jnp.asarray(found[name], jnp.int32) for name in int32}


def _prompt(case, tokens):
  length = jnp.full((tokens.shape[0],), tokens.shape[1], jnp.int32)
  return types.Prompt(
      tokens=tokens, length=length, encoder_tokens=case['encoder_tokens'], encoder_length=case['encoder_length'])


def test_checkpoint_has_exactly_our_parameters(case):
  shapes = jax.eval_shape(case['model'].init, jax.random.key(0))
  assert jax.tree.map(np.shape, case['params']) == jax.tree.map(np.shape, shapes)


def test_forward_gives_the_golden_logits(case):
  tokens, encoder_tokens = case['tokens'], case['encoder_tokens']
  index = jnp.arange(encoder_tokens.shape[1], dtype=jnp.int32)[None, :]
  batch = types.TrainingBatch(
      tokens=tokens, targets=tokens, weights=jnp.ones(tokens.shape, jnp.float32), positions=jnp.zeros_like(tokens),
      segments=jnp.ones_like(tokens), encoder_tokens=encoder_tokens, encoder_positions=jnp.zeros_like(encoder_tokens),
      encoder_segments=(index < case['encoder_length'][:, None]).astype(jnp.int32))
  output = case['model'].forward(case['params'], batch)
  np.testing.assert_allclose(output.logits[case['mask']], case['logits'][case['mask']], rtol=0, atol=TOLERANCE)


def test_prefill_and_extend_give_the_golden_encoding_and_logits(case):
  model, params, tokens = case['model'], case['params'], case['tokens']
  prefill, cache = model.prefill(params, _prompt(case, tokens[:, :4]), 16)
  np.testing.assert_array_equal(model.length(cache), np.full(len(tokens), 3))
  seen = np.arange(case['encoded'].shape[1])[None, :] < np.asarray(case['encoder_length'])[:, None]
  np.testing.assert_allclose(prefill.encoder_hidden[seen], case['encoded'][seen], rtol=0, atol=TOLERANCE)
  rest = tokens[:, 3:]
  output, _ = model.extend(params, cache, rest, count=jnp.full((len(rest),), rest.shape[1], jnp.int32))
  mask = case['mask'][:, 3:]
  np.testing.assert_allclose(output.logits[mask], case['logits'][:, 3:][mask], rtol=0, atol=TOLERANCE)


def test_greedy_decoding_gives_the_golden_tokens(case):
  model, params, wanted = case['model'], case['params'], case['greedy']
  rows = len(wanted)
  start, one = jnp.zeros((rows, 1), jnp.int32), jnp.ones((rows,), jnp.int32)
  _, cache = jax.jit(model.prefill, static_argnums=2)(params, _prompt(case, start), wanted.shape[1])
  step = jax.jit(lambda cache, token: model.extend(params, cache, token, count=one))
  token, done, got = start, np.zeros(rows, bool), []
  for _ in range(wanted.shape[1]):
    output, cache = step(cache, token)
    token = jnp.argmax(output.logits, axis=-1).astype(jnp.int32)
    got.append(np.where(done, 0, token[:, 0]))
    done |= got[-1] == 1
  np.testing.assert_array_equal(np.stack(got, axis=1), wanted)
