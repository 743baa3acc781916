"""The built-in pairs: two families, a target and a drafter each, one shared SentencePiece vocabulary.

`scripts/train_pairs.sh` retrains them from nothing.
"""

import contextlib
import dataclasses
import importlib.resources
import os
import pathlib
from typing import Any, Iterator, Literal, Mapping

import jax
import jax.numpy as jnp

from specjax.checkpoints import descriptions
from specjax.checkpoints import heads_file
from specjax.checkpoints import native
from specjax.core import errors
from specjax.core import protocols
from specjax.decode import pair as pair_lib
from specjax.models import autoregressive_head as autoregressive_lib
from specjax.models import gemma
from specjax.models import heads as heads_lib
from specjax.models import t5
from specjax.tasks import prompts
from specjax.tasks import vocabulary

VOCAB_SIZE = 896


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """A network family by name and its configuration; `kind` follows from the family."""

  family: Literal['gemma', 't5']
  config: gemma.DecoderConfig | t5.T5Config

  @property
  def kind(self) -> pair_lib.Family:
    """How examples are laid out for it."""
    return 'decoder-only' if self.family == 'gemma' else 'encoder-decoder'


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
GEMMA_DRAFTER = _gemma(24, 2, 12, 80, ('local', 'global'))
T5_TARGET = _t5(256, 4, 64, 640, 3, 3)
T5_DRAFTER = _t5(30, 2, 15, 72, 1, 1)

MODELS = {
    'gemma_target': GEMMA_TARGET, 'gemma_drafter': GEMMA_DRAFTER, 't5_target': T5_TARGET, 't5_drafter': T5_DRAFTER
}
PAIRS = ('gemma', 't5')


@dataclasses.dataclass(frozen=True)
class HeadsSpec:
  """Draft heads on the target of a built-in pair.

  Attributes:
    pair: name of the pair.
    config: the heads.
    decay: loss weight of head j is `decay` ** j.
  """

  pair: str
  config: heads_lib.HeadsConfig
  decay: float = 0.8


@dataclasses.dataclass(frozen=True)
class AutoregressiveHeadSpec:
  """An autoregressive head on the target of a built-in pair.

  Attributes:
    pair: name of the pair.
    config: the head.
    feature_weight, token_weight: of the two losses, see `training.autoregressive_head.make_loss`.
  """

  pair: str
  config: autoregressive_lib.AutoregressiveHeadConfig
  feature_weight: float = 1.0
  token_weight: float = 0.1


def _heads(pair, target, num_heads=7, hidden_dim=256):
  return HeadsSpec(pair, heads_lib.HeadsConfig(
      kind='blockwise', num_heads=num_heads, embed_dim=target.config.embed_dim, hidden_dim=hidden_dim))


def _autoregressive_head(pair, target, hidden_dim=672, num_heads=4, num_kv_heads=1):
  return AutoregressiveHeadSpec(pair, autoregressive_lib.AutoregressiveHeadConfig(
      embed_dim=target.config.embed_dim, hidden_dim=hidden_dim, num_heads=num_heads, num_kv_heads=num_kv_heads,
      head_dim=target.config.head_dim))


HEADS = {'gemma_heads': _heads('gemma', GEMMA_TARGET), 't5_heads': _heads('t5', T5_TARGET)}
AUTOREGRESSIVE_HEADS = {
    'gemma_autoregressive_head': _autoregressive_head('gemma', GEMMA_TARGET),
    't5_autoregressive_head': _autoregressive_head('t5', T5_TARGET)}


def make_model(spec: ModelSpec, *, dtype: Any = jnp.float32) -> protocols.LanguageModel:
  """The model of a specification, with activations and parameters in `dtype`."""
  return descriptions.make_model(spec.config, dtype=dtype)


def describe(spec: ModelSpec) -> dict[str, Any]:
  """A JSON-able description: what is written beside a model file and in every training checkpoint."""
  model = make_model(spec)
  shapes = native.flatten(jax.eval_shape(model.init, jax.random.key(0)))
  return {
      **descriptions.describe(spec.config), 'tokenizer_sha256': vocabulary.load_builtin_tokenizer().sha256,
      'num_parameters': sum(leaf.size for leaf in shapes.values()),
  }


def spec_from_description(description: Mapping[str, Any], *, where: str) -> ModelSpec:
  """The inverse of `describe`.

  Raises:
    CheckpointError: unknown family or field; `where` says in which file.
  """
  config = descriptions.parse(description, where=where)
  return ModelSpec(description['family'], config)


def load_pair(name: str, *, dtype: Any = jnp.float32, data_dir: str | os.PathLike | None = None) -> pair_lib.Pair:
  """The built-in pair `name` ('gemma' or 't5'), its parameters in `dtype`.

  Args:
    name: of the pair.
    dtype: of parameters and activations.
    data_dir: where `<name>/target.safetensors` and `<name>/drafter.safetensors` lie; None is the package's own.

  Raises:
    ParamError: no such pair.
    CheckpointError: a file is missing or damaged. VocabError: it was trained with another vocabulary.
  """
  if name not in PAIRS:
    raise errors.ParamError(what='pair', got=name, expected=f'one of {PAIRS}')
  with contextlib.ExitStack() as stack:
    if data_dir is None:
      data = importlib.resources.files('specjax.pairs') / 'data'
      data_dir = stack.enter_context(importlib.resources.as_file(data))
    loaded = {
        role: load_model(pathlib.Path(data_dir) / name / f'{role}.safetensors', dtype=dtype)
        for role in ('target', 'drafter')
    }
  return make_pair(name, target=loaded['target'], drafter=loaded['drafter'])


def load_heads(
    name: str, *, dtype: Any = jnp.float32, data_dir: str | os.PathLike | None = None
) -> tuple[heads_lib.DraftHeads, Any]:
  """The draft heads of the built-in pair `name` and their parameters: `params['heads']` of a pair for `draft_heads`.

  Arguments and errors as of `load_pair`; heads that were trained on another target are a CheckpointError.
  """
  return _load_beside_target(name, 'heads', heads_lib.DraftHeads, dtype, data_dir)


def load_autoregressive_head(
    name: str, *, dtype: Any = jnp.float32, data_dir: str | os.PathLike | None = None
) -> tuple[autoregressive_lib.AutoregressiveHead, Any]:
  """As `load_heads`, the autoregressive head: `params['autoregressive_head']` of a pair for `autoregressive_head`."""
  return _load_beside_target(
      name, 'autoregressive_head', autoregressive_lib.AutoregressiveHead, dtype, data_dir)


def _load_beside_target(name, role, kind, dtype, data_dir):
  if name not in PAIRS:
    raise errors.ParamError(what='pair', got=name, expected=f'one of {PAIRS}')
  with target_file(name, data_dir=data_dir) as target:
    path = target.with_name(f'{role}.safetensors')
    heads, params = heads_file.load(path, target=target, dtype=dtype)
  if not isinstance(heads, kind):
    raise errors.CheckpointError(what='heads', where=str(path), got=type(heads).__name__, expected=kind.__name__)
  return heads, params


@contextlib.contextmanager
def target_file(name: str, *, data_dir: str | os.PathLike | None = None) -> Iterator[pathlib.Path]:
  """The file of the target of the pair `name`, in `data_dir` or in the package's own data."""
  with contextlib.ExitStack() as stack:
    if data_dir is None:
      data = importlib.resources.files('specjax.pairs') / 'data'
      data_dir = stack.enter_context(importlib.resources.as_file(data))
    yield pathlib.Path(data_dir) / name / 'target.safetensors'


def make_pair(
    name: str, *, target: tuple[protocols.LanguageModel, Any], drafter: tuple[protocols.LanguageModel, Any],
) -> pair_lib.Pair:
  """The pair of two (model, parameters) that were trained like the built-in pair `name`."""
  family, tokenizer = MODELS[f'{name}_target'].kind, vocabulary.load_builtin_tokenizer()
  return pair_lib.Pair(
      name=name, family=family, target=target[0], drafter=drafter[0], params={'target': target[1], 'drafter': drafter[1]},
      tokenizer=tokenizer, start_token=tokenizer.pad_id, frame=lambda text: prompts.prompt_tokens(text, tokenizer, family))


def load_model(path: str | os.PathLike, *, dtype: Any = jnp.float32) -> tuple[protocols.LanguageModel, Any]:
  """The model in a .safetensors file with its description beside it, and its parameters, both in `dtype`.

  Raises:
    CheckpointError: a file is missing or damaged. VocabError: it was trained with another vocabulary.
  """
  description = native.load_description(path)
  tokenizer = vocabulary.load_builtin_tokenizer()
  if description.get('tokenizer_sha256') != tokenizer.sha256:
    raise errors.VocabError(
        what='tokenizer_sha256', where=str(path), got=description.get('tokenizer_sha256'), expected=tokenizer.sha256,
        fix='retrain the pair (scripts/train_pairs.sh) or restore the tokenizer it was trained with',
    )
  model = make_model(spec_from_description(description, where=str(path)), dtype=dtype)
  template = descriptions.template(model, where=str(path))
  return model, native.load_safetensors(path, template, dtype=dtype)
