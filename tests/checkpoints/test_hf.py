"""Hugging Face folders against the logits that transformers wrote, and every way in which a folder can be wrong."""

import numpy as np
import pytest

import specjax
from tests.golden import logit_checks

DECODERS, ENCODER_DECODERS = ('gemma2', 'gemma3_text_v4cfg'), ('t5_v1_0', 't5_v1_1_hub')


@pytest.mark.parametrize('name', DECODERS)
def test_decoders_give_the_logits_of_transformers(name, golden_dir):
  golden = np.load(golden_dir / 'hf' / name / 'golden.npz')
  model, params = specjax.load(golden_dir / 'hf' / name)
  mask = np.ones(golden['input_ids'].shape, bool)
  logit_checks.assert_all_passes_agree(
      model, params, golden['logits'], mask, start=[1, 7, 12], tokens=golden['input_ids'])


@pytest.mark.parametrize('name', ENCODER_DECODERS)
def test_encoder_decoders_give_the_logits_of_transformers(name, golden_dir):
  golden = np.load(golden_dir / 'hf' / name / 'golden.npz')
  model, params = specjax.load(golden_dir / 'hf' / name)
  tokens = golden['decoder_input_ids']
  logit_checks.assert_all_passes_agree(
      model, params, golden['logits'], np.ones(tokens.shape, bool), start=[1, 3, 5], tokens=tokens,
      encoder_tokens=golden['input_ids'], encoder_length=golden['attention_mask'].sum(1))
