"""Names of tensors in Hugging Face files. Their matrices are [features out, features in], ours the other way round."""

import re
from typing import NamedTuple

from specjax.models import gemma
from specjax.models import t5


class Stored(NamedTuple):
  """The tensor of one parameter: the names that it may have, the first one is written; whether it is transposed."""

  names: tuple[str, ...]
  transposed: bool


# The text part of a multimodal file is not the whole of it: what belongs to images is known by name.
VISION = re.compile(
    r'(model\.)?(vision_tower|multi_modal_projector|vision_model)\..*|vision_embed_tokens\..*')
# Buffers that old releases stored: they are computed. And a bias of T5 1.0 that no model ever read.
UNREAD = re.compile(
    r'(.*\.)?rotary_emb\.inv_freq|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight')

_ATTENTION = {'query': 'q_proj', 'key': 'k_proj', 'value': 'v_proj', 'output': 'o_proj'}
_MLP = {'gate': 'gate_proj', 'up': 'up_proj', 'down': 'down_proj'}
_T5_ATTENTION = {'query': 'q', 'key': 'k', 'value': 'v', 'output': 'o'}


def of(config: gemma.DecoderConfig | t5.T5Config, prefix: str = 'model.', head: str = 'lm_head.weight'):
  """Our parameter names -> `Stored`, for a model of this configuration.

  Args:
    config: decides which parameters there are.
    prefix: of a decoder's tensors; T5 has none.
    head: name of the logits' matrix.
  """
  return _t5(config, head) if isinstance(config, t5.T5Config) else _decoder(config, prefix, head)


def _decoder(config, prefix, head):
  names = {
      'embedder/embedding': Stored((f'{prefix}embed_tokens.weight',), False),
      'final_norm/scale': Stored((f'{prefix}norm.weight',), False)}
  if not config.tied_head:
    names['head/kernel'] = Stored((head,), True)
  norms = {'pre_attention_norm': 'input_layernorm', 'pre_mlp_norm': 'post_attention_layernorm'}
  if config.post_norms:  # Gemma 2 gave the name post_attention_layernorm to another norm than Gemma 1.
    norms = {
        'pre_attention_norm': 'input_layernorm', 'post_attention_norm': 'post_attention_layernorm',
        'pre_mlp_norm': 'pre_feedforward_layernorm', 'post_mlp_norm': 'post_feedforward_layernorm'}
  for index in range(config.num_layers):
    ours, theirs = f'layer_{index}', f'{prefix}layers.{index}'
    for module, name in _ATTENTION.items():
      names[f'{ours}/attention/{module}/kernel'] = Stored((f'{theirs}.self_attn.{name}.weight',), True)
    if config.query_key_norm:
      for module in ('query', 'key'):
        names[f'{ours}/attention/{module}_norm/scale'] = Stored((f'{theirs}.self_attn.{module[0]}_norm.weight',), False)
    for module, name in _MLP.items():
      names[f'{ours}/mlp/{module}/kernel'] = Stored((f'{theirs}.mlp.{name}.weight',), True)
    for module, name in norms.items():
      names[f'{ours}/{module}/scale'] = Stored((f'{theirs}.{name}.weight',), False)
  return names


def _t5(config, head):
  embeddings = ('shared.weight', 'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')  # Copies, in old files.
  names = {'token_embedder/embedding': Stored(embeddings, False)}
  if not config.tied_head:
    names['head/kernel'] = Stored((head,), True)
  mlp = {'gate': 'wi_0', 'up': 'wi_1', 'down': 'wo'} if config.mlp == 'gated_gelu' else {'up': 'wi', 'down': 'wo'}
  sublayers = {
      'encoder': (('attention', 'SelfAttention'), ('mlp', 'DenseReluDense')),
      'decoder': (
          ('self_attention', 'SelfAttention'), ('cross_attention', 'EncDecAttention'), ('mlp', 'DenseReluDense')),
  }
  for stack, depth in (('encoder', config.num_encoder_layers), ('decoder', config.num_decoder_layers)):
    bias = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
    names[f'{stack}/relative_bias/embedding'] = Stored((bias,), False)
    names[f'{stack}/final_norm/scale'] = Stored((f'{stack}.final_layer_norm.weight',), False)
    for index in range(depth):
      for position, (ours, theirs) in enumerate(sublayers[stack]):
        layer, stored = f'{stack}/layer_{index}', f'{stack}.block.{index}.layer.{position}'
        names[f'{layer}/pre_{ours}_norm/scale'] = Stored((f'{stored}.layer_norm.weight',), False)
        for module, name in (mlp if ours == 'mlp' else _T5_ATTENTION).items():
          names[f'{layer}/{ours}/{module}/kernel'] = Stored((f'{stored}.{theirs}.{name}.weight',), True)
  return names
