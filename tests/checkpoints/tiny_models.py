"""Small configurations of every family and variant, and random leaves for them."""

import functools

import jax
import numpy as np

from specjax.checkpoints import descriptions
from specjax.checkpoints import leaves
from specjax.checkpoints import native
from specjax.models import gemma
from specjax.models import layers
from specjax.models import t5

_SIZES = dict(vocab_size=96, embed_dim=16, hidden_dim=24, num_heads=4, num_kv_heads=2, head_dim=8, max_length=64)
_GEMMA = dict(activation='gelu', norm_plus_one=True, scale_embeddings=True)
_T5 = dict(
    vocab_size=96, embed_dim=16, num_heads=4, head_dim=6, mlp_dim=40, num_encoder_layers=2, num_decoder_layers=3)
_LLAMA3 = layers.Rotary(
    base=500_000.0, factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=16)

CONFIGS = {
    'gemma': gemma.DecoderConfig(**_SIZES, **_GEMMA, layer_kinds=('global',) * 2),
    'gemma_multi_head': gemma.DecoderConfig(**(_SIZES | dict(num_kv_heads=4)), **_GEMMA, layer_kinds=('global',) * 2),
    'gemma2': gemma.DecoderConfig(
        **_SIZES, **_GEMMA, layer_kinds=('local', 'global', 'local'), window=5, query_scale=4.0 ** -0.5, post_norms=True,
        attention_softcap=50.0, final_softcap=30.0),
    'gemma3_text': gemma.DecoderConfig(
        **_SIZES, **_GEMMA, layer_kinds=('local', 'local', 'global'), window=5, post_norms=True, query_key_norm=True,
        global_rotary=layers.Rotary(base=1e6, factor=8.0)),
    'llama2': gemma.DecoderConfig(
        **_SIZES, activation='silu', layer_kinds=('global',) * 2, tied_head=False, norm_epsilon=1e-5),
    'llama3': gemma.DecoderConfig(
        **_SIZES, activation='silu', layer_kinds=('global',) * 2, tied_head=True, global_rotary=_LLAMA3),
    't5_1_0': t5.T5Config(**_T5, mlp='relu', tied_head=True, scale_logits=True),
    't5_1_1': t5.T5Config(**_T5, mlp='gated_gelu', tied_head=False, scale_logits=False),
    't5_1_1_tied': t5.T5Config(**_T5, mlp='gated_gelu', tied_head=True, scale_logits=False),
}


@functools.cache
def shapes_of(config):
  """{our name: shape and dtype} of the parameters."""
  return native.flatten(jax.eval_shape(descriptions.make_model(config, dtype='float32').init, jax.random.key(0)))


def random_leaves(config, dtype=np.float32, seed=0):
  """{our name: leaf} of random numbers, near one where a norm multiplies by them."""
  rng = np.random.default_rng(seed)

  def value(name, shape):
    centre = 1.0 if name.endswith('scale') and not getattr(config, 'norm_plus_one', False) else 0.0
    return (centre + 0.2 * rng.standard_normal(shape)).astype(dtype)

  return leaves.of({name: value(name, leaf.shape) for name, leaf in shapes_of(config).items()})


def same(left, right):
  """Whether two sets of leaves hold the same bits under the same names."""
  return left.keys() == right.keys() and all(
      left[name].dtype == right[name].dtype and left[name].read().tobytes() == right[name].read().tobytes()
      for name in left)
