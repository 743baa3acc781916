"""T5 against logits and generations of t5x and Hugging Face: prefill, extend and forward, on their own checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax.core import types
from tests.golden import logit_checks

TOLERANCE = 2e-5


def t5x_case(folder):
  model, params = specjax.load(folder / 't5x' / 't5_1_1' / 'legacy')
  batch, golden = np.load(folder / 't5x' / 'batch.npz'), np.load(folder / 't5x' / 't5_1_1' / 'golden.npz')
  return dict(
      model=model, params=params, encoder_tokens=batch['encoder_input_tokens'],
      encoder_length=(batch['encoder_input_tokens'] > 0).sum(1), encoded=golden['encoded'],
      tokens=batch['decoder_input_tokens'], logits=golden['logits'], mask=batch['decoder_target_tokens'] > 0,
      greedy=golden['greedy'])


def hf_case(folder, name):
  model, params = specjax.load(folder / 'hf' / name)
  golden = np.load(folder / 'hf' / name / 'golden.npz')
  return dict(
      model=model, params=params, encoder_tokens=golden['input_ids'], encoder_length=golden['attention_mask'].sum(1),
      encoded=golden['encoder_last_hidden_state'], tokens=golden['decoder_input_ids'], logits=golden['logits'],
      mask=np.ones(golden['decoder_input_ids'].shape, bool), greedy=golden['generate'][:, 1:])


CASES = {
    't5x_1_1': t5x_case,
    'hf_v1_0': lambda folder: hf_case(folder, 't5_v1_0'),
    'hf_v1_1_hub': lambda folder: hf_case(folder, 't5_v1_1_hub'),
}


@pytest.fixture(params=CASES)
def case(request, golden_dir):
  found = CASES[request.param](golden_dir)
  int32 = ('encoder_tokens', 'encoder_length', 'tokens')
  return found | {name: jnp.asarray(found[name], jnp.int32) for name in int32}


def encoder_inputs(case):
  return dict(encoder_tokens=case['encoder_tokens'], encoder_length=case['encoder_length'])


def test_every_pass_gives_the_golden_logits(case):
  logit_checks.assert_all_passes_agree(
      case['model'], case['params'], case['logits'], case['mask'], start=[1, 3, 5], tokens=case['tokens'],
      max_difference=TOLERANCE, **encoder_inputs(case))


def test_prefill_and_greedy_decoding_give_the_golden_encoding_and_tokens(case):
  model, params, wanted = case['model'], case['params'], case['greedy']
  rows = len(wanted)
  start, one = jnp.zeros((rows, 1), jnp.int32), jnp.ones((rows,), jnp.int32)
  prompt = types.Prompt(tokens=start, length=one, **encoder_inputs(case))
  prefill, cache = logit_checks.compiled(model.prefill, static_argnums=2)(params, prompt, wanted.shape[1])
  seen = np.arange(case['encoded'].shape[1])[None, :] < np.asarray(case['encoder_length'])[:, None]
  np.testing.assert_allclose(prefill.encoder_hidden[seen], case['encoded'][seen], rtol=0, atol=TOLERANCE)
  step = logit_checks.compiled(lambda cache, token: model.extend(params, cache, token, count=one))
  token, done, got = start, np.zeros(rows, bool), []
  for _ in range(wanted.shape[1]):
    output, cache = step(cache, token)
    token = jnp.argmax(output.logits, axis=-1).astype(jnp.int32)
    got.append(np.where(done, 0, token[:, 0]))
    done |= got[-1] == 1
  np.testing.assert_array_equal(np.stack(got, axis=1), wanted)
