"""The built-in pairs: two families, a target and a drafter each, one shared SentencePiece vocabulary.

`scripts/train_pairs.sh` retrains them from nothing.
"""

import dataclasses
import importlib.resources
from typing import Any, Literal, Mapping

import jax
import jax.numpy as jnp

from specjax.checkpoints import native
from specjax.core import errors
from specjax.core import protocols
from specjax.models import gemma
from specjax.models import layers
from specjax.models import t5
from specjax.tasks import vocabulary

Kind = Literal['decoder-only', 'encoder-decoder']

VOCAB_SIZE = 896


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """A network family by name and its configuration; `kind` follows from the family."""

  family: Literal['gemma', 't5']
  config: gemma.DecoderConfig | t5.T5Config

  @property
  def kind(self) -> Kind:
    """How examples are laid out for it."""
    return 'decoder-only' if self.family == 'gemma' else 'encoder-decoder'


@dataclasses.dataclass(frozen=True)
class Pair:
  """A target, a drafter, their parameters and the tokenizer they share.

  Attributes:
    params: {'target': ..., 'drafter': ...}.
  """

  name: str
  family: Kind
  target: protocols.LanguageModel
  drafter: protocols.LanguageModel
  params: Mapping[str, Any]
  tokenizer: vocabulary.Tokenizer


def _t5(embed_dim, num_heads, head_dim, mlp_dim, num_encoder_layers, num_decoder_layers):
  return ModelSpec('t5', t5.T5Config(
      vocab_size=VOCAB_SIZE, embed_dim=embed_dim, num_heads=num_heads, head_dim=head_dim, mlp_dim=mlp_dim,
      num_encoder_layers=num_encoder_layers, num_decoder_layers=num_decoder_layers, mlp='gated_gelu', tied_head=False,
      scale_logits=False,
  ))


def _gemma(embed_dim, num_heads, head_dim, hidden_dim, layer_kinds):
  return ModelSpec('gemma', gemma.DecoderConfig(
      vocab_size=VOCAB_SIZE, embed_dim=embed_dim, hidden_dim=hidden_dim, num_heads=num_heads, num_kv_heads=1,
      head_dim=head_dim, layer_kinds=layer_kinds, activation='gelu', window=32, norm_plus_one=True, post_norms=True,
      query_key_norm=True, scale_embeddings=True, tied_head=True,
  ))


GEMMA_TARGET = _gemma(256, 4, 64, 672, ('local', 'local', 'global') * 2)
GEMMA_DRAFTER = _gemma(96, 3, 32, 448, ('local', 'global'))
T5_TARGET = _t5(256, 4, 64, 640, 3, 3)
T5_DRAFTER = _t5(96, 3, 32, 320, 2, 1)

MODELS = {
    'gemma_target': GEMMA_TARGET, 'gemma_drafter': GEMMA_DRAFTER, 't5_target': T5_TARGET, 't5_drafter': T5_DRAFTER
}
PAIRS = ('gemma', 't5')

# What a file may name. A configuration never selects code: it selects a row of this table.
_FAMILIES = {'gemma': (gemma.DecoderConfig, gemma.DecoderLM), 't5': (t5.T5Config, t5.T5LM)}


def make_model(spec: ModelSpec, *, dtype: Any = jnp.float32) -> protocols.LanguageModel:
  """The model of a specification, with activations and parameters in `dtype`."""
  _, model_type = _FAMILIES[spec.family]
  return model_type(spec.config, dtype=dtype, param_dtype=dtype)


def describe(spec: ModelSpec) -> dict[str, Any]:
  """A JSON-able description: what is written beside a model file and in every training checkpoint."""
  model = make_model(spec)
  shapes = native.flatten(jax.eval_shape(model.init, jax.random.key(0)))
  return {
      'family': spec.family, 'config': _jsonable(dataclasses.asdict(spec.config)),
      'tokenizer_sha256': vocabulary.load_builtin_tokenizer().sha256,
      'num_parameters': sum(leaf.size for leaf in shapes.values()),
  }


def spec_from_description(description: Mapping[str, Any], *, where: str) -> ModelSpec:
  """The inverse of `describe`.

  Raises:
    CheckpointError: unknown family or field; `where` says in which file.
  """
  family = description.get('family')
  if family not in _FAMILIES:
    raise errors.CheckpointError(what='family', where=where, got=family, expected=f'one of {sorted(_FAMILIES)}')
  config_type, _ = _FAMILIES[family]
  values = {name: _from_json(name, value, where) for name, value in dict(description.get('config', {})).items()}
  known = {field.name for field in dataclasses.fields(config_type)}
  if values.keys() - known:
    raise errors.CheckpointError(what=f'config field {min(values.keys() - known)!r}', where=where, expected=sorted(known))
  try:
    return ModelSpec(family, config_type(**values))
  except (TypeError, errors.SpecjaxError) as error:
    raise errors.CheckpointError(what='config', where=where, got=str(error)) from error


def load_pair(name: str, *, dtype: Any = jnp.float32) -> Pair:
  """The built-in pair `name` ('gemma' or 't5'), its parameters in `dtype`.

  Raises:
    ParamError: no such pair.
    CheckpointError: a file is missing, damaged, or was trained with another vocabulary.
  """
  if name not in PAIRS:
    raise errors.ParamError(what='pair', got=name, expected=f'one of {PAIRS}')
  tokenizer = vocabulary.load_builtin_tokenizer()
  models, params = {}, {}
  for role in ('target', 'drafter'):
    with importlib.resources.as_file(importlib.resources.files('specjax.pairs') / 'data' / name) as directory:
      path = directory / f'{role}.safetensors'
      description = native.load_description(path)
      if description.get('tokenizer_sha256') != tokenizer.sha256:
        raise errors.CheckpointError(
            what='tokenizer_sha256', where=str(path), got=description.get('tokenizer_sha256'), expected=tokenizer.sha256,
            fix='retrain the pair (scripts/train_pairs.sh) or restore the tokenizer it was trained with',
        )
      models[role] = make_model(spec_from_description(description, where=str(path)), dtype=dtype)
      template = jax.eval_shape(models[role].init, jax.random.key(0))
      params[role] = native.load_safetensors(path, template, dtype=dtype)
  return Pair(
      name=name, family=MODELS[f'{name}_target'].kind, target=models['target'], drafter=models['drafter'], params=params,
      tokenizer=tokenizer,
  )


def _from_json(name, value, where):
  if isinstance(value, list):
    return tuple(value)
  if name in ('global_rotary', 'local_rotary'):
    try:
      return layers.Rotary(**value)
    except TypeError as error:
      raise errors.CheckpointError(what=f'config field {name}', where=where, got=str(error)) from error
  return value


def _jsonable(value):
  if isinstance(value, dict):
    return {name: _jsonable(item) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_jsonable(item) for item in value]
  return value
