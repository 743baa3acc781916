"""Kernels stored output first: the same model, and back."""

import jax
import numpy as np
import pytest

from specjax.models import gemma
from specjax.models import layouts
from specjax.models import t5
from specjax.testing import conformance
from specjax.testing import exactness

GEMMA = gemma.DecoderLM(gemma.DecoderConfig(
    vocab_size=11, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4,
    layer_kinds=(gemma.LOCAL, gemma.GLOBAL), window=5, activation='gelu', tied_head=False), max_extend=4, block_size=4)
T5 = t5.T5LM(t5.T5Config(
    vocab_size=11, embed_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=1, num_decoder_layers=2,
    num_buckets=8, max_distance=12, mlp='gated_gelu', tied_head=False, scale_logits=False))


@pytest.mark.parametrize('model, has_encoder', [(GEMMA, False), (T5, True)])
def test_a_model_of_transposed_kernels_is_the_same_model(model, has_encoder):
  params = exactness.random_params(model, 0, dtype=np.float32)
  turned = layouts.output_first(params, min_bytes=0)
  names = [str(path[-1].key) for path, _ in jax.tree_util.tree_leaves_with_path(turned)]
  assert 'kernel_t' in names and 'kernel' not in names
  # Chunks, ragged rows, rewinds, and bitwise independence of neighbours and slots.
  conformance.check_language_model(model, turned, has_encoder=has_encoder)
  text, prompt = conformance.example_prompt(model.vocab_size, has_encoder=has_encoder)
  first, second = (conformance._forward(model, p, text, prompt) for p in (params, turned))
  np.testing.assert_allclose(first, second, atol=1e-5)


def test_there_and_back_is_bitwise():
  params = exactness.random_params(GEMMA, 0, dtype=np.float32)
  back = layouts.input_first(layouts.output_first(params, min_bytes=0))
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_small_matrices_and_other_leaves_stay():
  params = {'layer': {'kernel': np.ones((4, 2), np.float32)}, 'large': {'kernel': np.ones((1024, 256), np.float32)},
            'bias': np.ones(3), 'stack': {'kernel': np.ones((2, 1024, 256), np.float32)}}
  turned = layouts.output_first(params)
  assert turned['large']['kernel_t'].shape == (256, 1024)
  assert turned['layer'] is not None and 'kernel' in turned['layer'] and 'kernel' in turned['stack']
