"""Hugging Face's config.json, read and written. A field that changes the arithmetic is understood or refused.

Both spellings are read: `rope_theta`, `rope_scaling`, `rope_local_base_freq` of transformers 4 and `rope_parameters` of
transformers 5; `layer_types` or the pattern it replaced; fields that a file leaves out have the default of the model
type's class. The spelling of transformers 4 is written: both read it, while 4 misreads that of 5 without a word.
"""

import math
import re
from typing import Any, Mapping

from absl import logging

from specjax.core import errors
from specjax.models import gemma
from specjax.models import layers
from specjax.models import t5

_LARGEST, _LARGEST_COUNT = 1 << 24, 1024  # Beyond this a number is an attack on memory or patience, not a network.
_ABSENT = object()

# Fields without influence on the logits of inference; anything else that is not read is named in a warning.
_HARMLESS = re.compile(
    r'_?(name_or_path|attn_implementation(_autoset)?|commit_hash)|architectures|transformers_version|(torch_)?dtype|'
    r'use_cache|(\w+_)?token_(id|index)|\w*dropout\w*|initializer_(range|factor)|output_\w+|return_dict|is_decoder|'
    r'is_encoder_decoder|task_specific_params|cache_implementation|chunk_size_feed_forward|n_positions|dense_act_fn|'
    r'is_gated_act|id2label|label2id|problem_type|torchscript|prefix|finetuning_task|mm_tokens_per_image|vision_config|'
    r'add_cross_attention|tie_encoder_decoder|cross_attention_hidden_size|tokenizer_class|use_bfloat16|tf_\w+|remove_\w+|'
    r'max_length|min_length|do_sample|early_stopping|num_beams|num_beam_groups|diversity_penalty|temperature|top_[kp]|'
    r'typical_p|repetition_penalty|length_penalty|no_repeat_ngram_size|encoder_no_repeat_ngram_size|bad_words_ids|'
    r'num_return_sequences|forced_\w+|exponential_decay_length_penalty|suppress_tokens|begin_suppress_tokens|pruned_heads')


class _Fields:
  """The fields of one JSON object; what is read is checked, and what never was can be listed."""

  def __init__(self, values: Mapping[str, Any], where: str):
    self.values, self.where, self.read = values, where, set()

  def get(self, name, default=_ABSENT):
    """The value, or `default` where it is absent; null is a value."""
    self.read.add(name)
    value = self.values.get(name, default)
    if value is _ABSENT:
      self.refuse(name, 'nothing', 'a value')
    return value

  def refuse(self, name, got, expected, fix=None):
    raise errors.CheckpointError(what=f'field {name}', where=self.where, got=got, expected=expected, fix=fix)

  def integer(self, name, default=_ABSENT, *, largest=_LARGEST):
    value = self.get(name, default)
    if type(value) is not int or not 0 < value <= largest:
      self.refuse(name, value, f'an integer in 1..{largest}')
    return value

  def count(self, name, default=_ABSENT):
    return self.integer(name, default, largest=_LARGEST_COUNT)

  def number(self, name, default=_ABSENT, *, optional=False):
    """A positive float, or None where that is allowed."""
    value = self.get(name, default)
    if value is None and optional:
      return None
    if type(value) not in (int, float) or not 0 < value < math.inf:
      self.refuse(name, value, 'a positive number')
    return float(value)

  def flag(self, name, default=_ABSENT):
    value = self.get(name, default)
    if not isinstance(value, bool):
      self.refuse(name, value, 'true or false')
    return value

  def only(self, name, *allowed, default=_ABSENT):
    """Refuses every value that is not in `allowed`; the first of them is what an absent field stands for."""
    value = self.get(name, allowed[0] if default is _ABSENT else default)
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in allowed):
      self.refuse(name, value, ' or '.join(map(repr, allowed)), fix='this variant of the model is not implemented')
    return value

  def warn_of_unread(self):
    unread = [name for name in self.values if name not in self.read and not _HARMLESS.fullmatch(str(name))]
    if unread:
      logging.warning('%s: fields that nothing reads: %s', self.where, ', '.join(map(repr, unread[:20])))


def parse(values: Mapping[str, Any], *, where: str, has_head: bool) -> gemma.DecoderConfig | t5.T5Config:
  """The configuration that a config.json describes.

  Args:
    values: the JSON object.
    where: the file, for errors.
    has_head: whether the checkpoint holds a matrix `lm_head.weight`.

  Raises:
    CheckpointError: an unknown model type; a field of the wrong type or size, or of a variant that is not implemented.
  """
  fields = _Fields(values, where)
  model_type = fields.get('model_type', None)
  if not isinstance(model_type, str) or model_type not in _PARSERS:
    fields.refuse('model_type', model_type, f'one of {", ".join(_PARSERS)}')
  fields.only('quantization_config', None)
  if model_type == 'gemma3':
    text = fields.get('text_config', None)
    if not isinstance(text, dict):
      fields.refuse('text_config', text, 'an object')
    tied = fields.flag('tie_word_embeddings', True)
    fields.warn_of_unread()
    fields = _Fields({'tie_word_embeddings': tied} | text, f'{where}, text_config')
    fields.only('model_type', 'gemma3_text')
  try:
    config = _PARSERS[model_type](fields, has_head)
  except (errors.ParamError, errors.ConfigError) as error:  # Numbers that fit no network together.
    raise errors.CheckpointError(what='configuration', where=where, got=str(error)) from error
  fields.warn_of_unread()
  return config


def _t5(fields, has_head):
  fields.only('is_encoder_decoder', True)
  mlps = {'relu': 'relu', 'gated-gelu': 'gated_gelu'}
  mlp = mlps[fields.only('feed_forward_proj', *mlps)]
  num_layers = fields.count('num_layers', 6)
  # transformers 5 says tied of every T5 and keeps what version 4 meant by it under another name.
  tied = fields.get('tie_word_embeddings', True)
  scaled = fields.get('scale_decoder_outputs', tied is not False)
  if not isinstance(scaled, bool):
    fields.refuse('scale_decoder_outputs', scaled, 'true or false')
  decoder_layers = fields.get('num_decoder_layers', None)
  return t5.T5Config(
      vocab_size=fields.integer('vocab_size', 32128), embed_dim=fields.integer('d_model', 512),
      num_heads=fields.count('num_heads', 8), head_dim=fields.integer('d_kv', 64), mlp_dim=fields.integer('d_ff', 2048),
      num_encoder_layers=num_layers,
      num_decoder_layers=num_layers if decoder_layers is None else fields.count('num_decoder_layers'), mlp=mlp,
      tied_head=not has_head, scale_logits=scaled, num_buckets=fields.count('relative_attention_num_buckets', 32),
      max_distance=fields.integer('relative_attention_max_distance', 128, largest=1 << 16),
      norm_epsilon=fields.number('layer_norm_epsilon', 1e-6))


def _llama(fields, has_head):
  del has_head
  fields.only('hidden_act', 'silu')
  fields.only('mlp_bias', False, None)
  fields.only('pretraining_tp', 1, None)
  num_heads, embed_dim = fields.count('num_attention_heads', 32), fields.integer('hidden_size', 4096)
  return _decoder(
      fields, embed_dim=embed_dim, num_heads=num_heads, hidden_dim=11008, num_layers=32, vocab_size=32000,
      num_kv_heads=num_heads, head_dim=embed_dim // num_heads, max_length=2048, tied=False,
      activation='silu', global_rotary=_rotary(fields, 10_000.0))


def _gemma1(fields, has_head):
  del has_head
  # The first releases said 'gelu' and meant its tanh form, which hidden_activation then spelled out.
  if fields.get('hidden_activation', None) is None:
    fields.only('hidden_act', 'gelu_pytorch_tanh', 'gelu')
  else:
    fields.only('hidden_activation', 'gelu_pytorch_tanh')
    fields.read.add('hidden_act')
  return _decoder(
      fields, embed_dim=3072, num_heads=16, hidden_dim=24576, num_layers=28, vocab_size=256_000, num_kv_heads=16,
      head_dim=256, max_length=8192, tied=True, activation='gelu', global_rotary=_rotary(fields, 10_000.0), **_GEMMA)


def _gemma2(fields, has_head):
  del has_head
  rotary = _rotary(fields, 10_000.0)
  return _decoder(
      fields, embed_dim=2304, num_heads=8, hidden_dim=9216, num_layers=26, vocab_size=256_000, num_kv_heads=4,
      head_dim=256, max_length=8192, tied=True, activation=_gelu(fields), global_rotary=rotary, local_rotary=rotary,
      attention_softcap=fields.number('attn_logit_softcapping', 50.0, optional=True),
      final_softcap=fields.number('final_logit_softcapping', 30.0, optional=True), post_norms=True,
      **_windows(fields, 26, lambda index: index % 2 == 0), **_GEMMA)


def _gemma3(fields, has_head):
  del has_head
  pattern = fields.count('_sliding_window_pattern', 6)
  pattern = fields.count('sliding_window_pattern', pattern)
  global_rotary, local_rotary = _rotary_by_layer(fields)
  return _decoder(
      fields, embed_dim=2304, num_heads=8, hidden_dim=9216, num_layers=26, vocab_size=262_208, num_kv_heads=4,
      head_dim=256, max_length=131_072, tied=True, activation=_gelu(fields), global_rotary=global_rotary,
      local_rotary=local_rotary, attention_softcap=fields.number('attn_logit_softcapping', None, optional=True),
      final_softcap=fields.number('final_logit_softcapping', None, optional=True), post_norms=True, query_key_norm=True,
      **_windows(fields, 26, lambda index: (index + 1) % pattern != 0), **_GEMMA)


_GEMMA = dict(norm_plus_one=True, scale_embeddings=True)
_PARSERS = {
    't5': _t5, 'gemma': _gemma1, 'gemma2': _gemma2, 'gemma3_text': _gemma3, 'gemma3': _gemma3, 'llama': _llama}


def _gelu(fields):
  fields.only('hidden_activation', 'gelu_pytorch_tanh')
  fields.only('hidden_act', 'gelu_pytorch_tanh', None)
  return 'gelu'


def _decoder(
    fields, *, embed_dim, num_heads, hidden_dim, num_layers, vocab_size, num_kv_heads, head_dim, max_length, tied,
    layer_kinds=None, query_scale=None, **rest,
):
  """A `DecoderConfig`; the numbers are the defaults of fields that the file leaves out."""
  fields.only('attention_bias', False, None)
  fields.only('use_bidirectional_attention', None, False)
  integer_or_null = lambda name, default: default if fields.get(name, None) is None else fields.integer(name)
  return gemma.DecoderConfig(
      vocab_size=fields.integer('vocab_size', vocab_size), embed_dim=fields.integer('hidden_size', embed_dim),
      hidden_dim=fields.integer('intermediate_size', hidden_dim),
      num_heads=fields.count('num_attention_heads', num_heads),
      num_kv_heads=integer_or_null('num_key_value_heads', num_kv_heads), head_dim=integer_or_null('head_dim', head_dim),
      layer_kinds=layer_kinds or (gemma.GLOBAL,) * fields.count('num_hidden_layers', num_layers),
      max_length=fields.integer('max_position_embeddings', max_length), norm_epsilon=fields.number('rms_norm_eps', 1e-6),
      tied_head=fields.flag('tie_word_embeddings', tied), query_scale=query_scale, **rest)


def _windows(fields, num_layers, is_local):
  """Kinds of layers, window and query scale of Gemma 2 and 3."""
  num_layers = fields.count('num_hidden_layers', num_layers)
  kinds = {'sliding_attention': gemma.LOCAL, 'full_attention': gemma.GLOBAL}
  named = fields.get('layer_types', None)
  if named is None:
    layer_kinds = tuple(gemma.LOCAL if is_local(index) else gemma.GLOBAL for index in range(num_layers))
  elif isinstance(named, list) and len(named) == num_layers and all(
      isinstance(kind, str) and kind in kinds for kind in named):
    layer_kinds = tuple(kinds[kind] for kind in named)
  else:
    fields.refuse('layer_types', named, f'{num_layers} of {", ".join(kinds)}')
  window = fields.get('sliding_window', 4096)
  if window is not None:
    window = fields.integer('sliding_window', 4096)
  scalar = fields.number('query_pre_attn_scalar', 256)
  head_dim = fields.integer('head_dim', 256)
  return dict(
      layer_kinds=layer_kinds, window=window, query_scale=None if scalar == head_dim else scalar ** -0.5)


def _rotary(fields, base):
  """The one rotary embedding of a model, from either spelling."""
  fields.only('partial_rotary_factor', 1.0, 1, None)
  base = fields.number('rope_theta', base)
  scaling, parameters = fields.get('rope_scaling', None), fields.get('rope_parameters', None)
  if scaling is not None and parameters is not None and scaling != parameters:
    fields.refuse('rope_scaling', scaling, 'no rope_parameters beside it')
  name = 'rope_scaling' if parameters is None else 'rope_parameters'
  return _rotary_of(fields, name, scaling if parameters is None else parameters, base)


def _rotary_by_layer(fields):
  """Global and local rotary embeddings of Gemma 3; only the global one is scaled by `rope_scaling`."""
  base = fields.number('rope_theta', 1_000_000.0)
  local_base = fields.number('rope_local_base_freq', 10_000.0)
  scaling, parameters = fields.get('rope_scaling', None), fields.get('rope_parameters', None)
  if parameters is None:
    return _rotary_of(fields, 'rope_scaling', scaling, base), layers.Rotary(base=local_base)
  if not isinstance(parameters, dict) or not parameters.keys() <= {'full_attention', 'sliding_attention'}:
    fields.refuse('rope_parameters', parameters, 'an object of full_attention and sliding_attention')
  if scaling is not None:
    fields.refuse('rope_scaling', scaling, 'no rope_parameters beside it')
  kinds = (('full_attention', base), ('sliding_attention', local_base))
  return tuple(
      _rotary_of(fields, f'rope_parameters.{kind}', parameters.get(kind), default) for kind, default in kinds)


def _rotary_of(fields, name, values, base):
  if values is None:
    return layers.Rotary(base=base)
  if not isinstance(values, dict):
    fields.refuse(name, values, 'an object or null')
  part = _Fields(values, f'{fields.where}, {name}')
  kind = part.get('rope_type', values.get('type', 'default'))
  part.read.add('type')
  if kind not in ('default', 'linear', 'llama3'):
    part.refuse('rope_type', kind, 'default, linear or llama3')
  part.only('partial_rotary_factor', 1.0, 1, None)
  base = part.number('rope_theta', base)
  if kind == 'default':
    rotary = layers.Rotary(base=base)
  elif kind == 'linear':
    rotary = layers.Rotary(base=base, factor=part.number('factor'))
  else:
    low, high = part.number('low_freq_factor'), part.number('high_freq_factor')
    if low >= high:
      part.refuse('low_freq_factor', low, f'less than high_freq_factor {high}')
    length = part.integer('original_max_position_embeddings', fields.values.get('max_position_embeddings', _ABSENT))
    rotary = layers.Rotary(
        base=base, factor=part.number('factor'), low_frequency_factor=low, high_frequency_factor=high,
        original_length=length)
  part.warn_of_unread()
  return rotary


def to_json(config: gemma.DecoderConfig | t5.T5Config, special_tokens: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a config.json from which `parse` makes `config` again, and transformers the same model.

  Args:
    special_tokens: `bos_token_id` and the like; the family's own are the default.

  Raises:
    CheckpointError: no Hugging Face family has this combination; all that is in the way is listed.
  """
  fields = _t5_json(config) if isinstance(config, t5.T5Config) else _decoder_json(config)
  fields |= special_tokens
  read_back = parse(fields, where='config.json', has_head=not config.tied_head)
  differing = [
      f'{name} {getattr(config, name)!r}' for name in vars(config)
      if name not in _without_effect(config) and getattr(config, name) != getattr(read_back, name)]
  if differing:
    raise errors.CheckpointError(
        what='configuration that no Hugging Face family has', got=', '.join(differing),
        expected=f'as in {fields["model_type"]}, the nearest')
  return fields


def _without_effect(config):
  """Names of fields that may differ without another logit."""
  names = {'max_length'}
  if isinstance(config, gemma.DecoderConfig):
    if gemma.LOCAL not in config.layer_kinds:
      names |= {'window', 'local_rotary'}
    if config.query_scale == config.head_dim ** -0.5:
      names.add('query_scale')
  return names


def _t5_json(config):
  return dict(
      model_type='t5', architectures=['T5ForConditionalGeneration'], is_encoder_decoder=True, vocab_size=config.vocab_size,
      d_model=config.embed_dim, num_heads=config.num_heads, d_kv=config.head_dim, d_ff=config.mlp_dim,
      num_layers=config.num_encoder_layers, num_decoder_layers=config.num_decoder_layers,
      feed_forward_proj='relu' if config.mlp == 'relu' else 'gated-gelu', tie_word_embeddings=config.tied_head,
      scale_decoder_outputs=config.scale_logits, relative_attention_num_buckets=config.num_buckets,
      relative_attention_max_distance=config.max_distance, layer_norm_epsilon=config.norm_epsilon,
      pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)


def _decoder_json(config):
  fields = dict(
      vocab_size=config.vocab_size, hidden_size=config.embed_dim, intermediate_size=config.hidden_dim,
      num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads,
      head_dim=config.head_dim, rms_norm_eps=config.norm_epsilon, tie_word_embeddings=config.tied_head,
      attention_bias=False, rope_theta=config.global_rotary.base, rope_scaling=_scaling_json(config.global_rotary))
  # transformers has no 'unknown': as long as a model of its kind is expected to reach.
  fields['max_position_embeddings'] = 131_072 if config.max_length is None else config.max_length
  if not config.norm_plus_one:
    return fields | dict(
        model_type='llama', architectures=['LlamaForCausalLM'], hidden_act='silu', mlp_bias=False, pretraining_tp=1)
  fields |= dict(pad_token_id=0, eos_token_id=1, bos_token_id=2, hidden_activation='gelu_pytorch_tanh')
  if not config.post_norms:
    return fields | dict(
        model_type='gemma', architectures=['GemmaForCausalLM'], hidden_act='gelu_pytorch_tanh')
  names = {gemma.LOCAL: 'sliding_attention', gemma.GLOBAL: 'full_attention'}
  scale = config.head_dim ** -0.5 if config.query_scale is None else config.query_scale
  fields |= dict(
      layer_types=[names[kind] for kind in config.layer_kinds], query_pre_attn_scalar=round(scale ** -2),
      attn_logit_softcapping=config.attention_softcap, final_logit_softcapping=config.final_softcap,
      sliding_window=config.window)
  if not config.query_key_norm:
    return fields | dict(model_type='gemma2', architectures=['Gemma2ForCausalLM'])
  return fields | dict(
      model_type='gemma3_text', architectures=['Gemma3ForCausalLM'], rope_local_base_freq=config.local_rotary.base)


def _scaling_json(rotary):
  if rotary.original_length is not None:
    return dict(
        rope_type='llama3', factor=rotary.factor, low_freq_factor=rotary.low_frequency_factor,
        high_freq_factor=rotary.high_frequency_factor, original_max_position_embeddings=rotary.original_length)
  return None if rotary.factor == 1 else dict(rope_type='linear', factor=rotary.factor)
