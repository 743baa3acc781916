"""A target and a drafter as one t5x model: `t5x.infer` and `t5x.eval` decode with it by gin alone.

t5x's own hook, a `decode_fn`, cannot do this: it sees neither the drafter nor the encoder's input, t5x's modules take one
token per call, and their caches cannot be rewound row by row. So the model replaces `predict_batch_with_aux`; what it
decodes with is `t5x_decoding`. Scores and losses are those of the target, by t5x's own code.

Needs the extra `t5x`. Only encoder-decoders: the layers of t5x's decoder-only models have a relative position bias, which the
decoder-only family of specjax does not have.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import core as flax_core
import jax
import jax.numpy as jnp
from t5x import models

from specjax.core import checks
from specjax.core import errors
from specjax.decode import inputs
from specjax.integrations import t5x_decoding

_ACTIVATIONS = (('gelu', 'linear'), ('relu',))


class EncoderDecoderPair(models.EncoderDecoderModel):
  """t5x's model of a target, with a drafter beside it. Its parameters are {'target': ..., 'drafter': ...}, both in t5x's
  layout: `t5x_checkpoints.PairCheckpointManager` restores them from two checkpoints."""

  def __init__(
      self, module: Any, drafter_module: Any, input_vocabulary: Any, output_vocabulary: Any, optimizer_def: Any,
      method: Callable[[Any], Any], sampling: checks.SamplingParams, **options: Any):
    """The model.

    Args:
      module: the target's network, of t5x's examples t5 or scalable_t5 (or one with their parameters).
      drafter_module: the drafter's network.
      input_vocabulary, output_vocabulary, optimizer_def: as in t5x.
      method: how to decode, such as `specjax.speculative(num_draft_tokens=4)`.
      sampling: `SamplingParams` of every row.
      **options: the others of `t5x.models.EncoderDecoderModel`, without `decode_fn`.

    Raises:
      ParamError: a `decode_fn`, or sampling parameters that are none.
      ConfigError: networks that the models of specjax cannot stand in for.
    """
    if 'decode_fn' in options:
      raise errors.ParamError(
          what='decode_fn', got=options['decode_fn'], expected='none: the method decodes',
          fix='leave it out, or use t5x.models.EncoderDecoderModel')
    shared = dict(input_vocabulary=input_vocabulary, output_vocabulary=output_vocabulary, optimizer_def=optimizer_def)
    super().__init__(module=module, **shared, **options)
    self._drafter = models.EncoderDecoderModel(module=drafter_module, **shared)
    self._dtypes = {'target': _dtype(module, 'module'), 'drafter': _dtype(drafter_module, 'drafter_module')}
    self._method = method
    self._sampling = inputs.sampling(sampling)

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    """Fresh variables: of each collection of t5x ('params', 'params_axes') the two models' under their roles."""
    target_rng, drafter_rng = jax.random.split(rng)
    of = {'target': super().get_initial_variables(target_rng, input_shapes, input_types),
          'drafter': self._drafter.get_initial_variables(drafter_rng, input_shapes, input_types)}
    collections = {name: {role: of[role].get(name, {}) for role in t5x_decoding.ROLES} for name in of['target'].keys()}
    return flax_core.freeze(collections)

  def _compute_logits(self, params, batch, dropout_rng=None, **options):
    """Teacher-forced logits of the target: what `score_batch` and `loss_fn` are made of."""
    return super()._compute_logits(params['target'], batch, dropout_rng, **options)

  def predict_batch_with_aux(
      self, params: Mapping[str, Any], batch: Mapping[str, jax.Array], rng: jax.Array | None = None,
      decoder_params: Mapping[str, Any] | None = None, return_all_decodes: bool | None = None,
      num_decodes: int | None = None, prompt_with_targets: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The answers to a batch, and what each of them took.

    Args:
      params: t5x's trees of 'target' and 'drafter'.
      batch: features of `seqio.EncDecFeatureConverter`, not packed.
      rng: needed where the temperature is above 0.
      decoder_params: may hold 'eos_id' and 'decode_rng', nothing else.
      return_all_decodes, num_decodes, prompt_with_targets: as in t5x.

    Returns:
      Tokens int32[B, L], or [B, N, L] with `return_all_decodes`; and by name an array [B] or [B, N]: `scores` (nats, the target's
      log-probability of the generated tokens at temperature 1; NaN where a model's logits were not finite), `status` (a
      `specjax.core.types.Status`), and the counters `steps`, `emitted`, `target_calls`, `drafter_calls`, `proposed`, `evaluated`
      and `accepted` of `DecodeStats`.
    """
    settings = dict(decoder_params or {})
    eos_id = settings.pop('eos_id', self.output_vocabulary.eos_id or 1)
    decode_rng = settings.pop('decode_rng', None)
    if settings:
      raise errors.ParamError(what='decoder_params', got=sorted(settings), expected="'eos_id' and 'decode_rng'")
    defaults = self._default_decoder_params
    num_decodes = defaults.num_decodes if num_decodes is None else num_decodes
    return_all = defaults.return_all_decodes if return_all_decodes is None else return_all_decodes
    decoded = t5x_decoding.decode(
        self._method, params, dtypes=self._dtypes, sampling=self._sampling,
        encoder_tokens=batch['encoder_input_tokens'],
        prefix=_prefix(batch['decoder_input_tokens'], eos_id) if prompt_with_targets else None,
        longest=batch['decoder_input_tokens'].shape[1], eos_id=eos_id, num_decodes=num_decodes,
        seed=self._seed(rng if decode_rng is None else decode_rng))
    return (decoded.tokens, decoded.aux) if return_all else jax.tree.map(lambda x: x[:, -1], tuple(decoded))

  def _seed(self, rng):
    """uint32[] drawn from t5x's key; 0 where nothing is drawn."""
    if rng is not None:
      return jax.random.bits(rng, (), jnp.uint32)
    if self._sampling.temperature > 0:
      raise errors.ParamError(what='rng', expected=f'a key at temperature {self._sampling.temperature:g}')
    return jnp.uint32(0)


def _dtype(module, name):
  """The dtype of a network's activations, or `ConfigError` for one that is not T5's."""
  config = getattr(module, 'config', None)
  activations = tuple(getattr(config, 'mlp_activations', ()))
  if activations not in _ACTIVATIONS:
    raise errors.ConfigError(
        what=f'{name}.config.mlp_activations', got=activations, expected=' or '.join(map(str, _ACTIVATIONS)),
        fix='networks of t5x.examples.t5 and t5x.examples.scalable_t5 can be decoded')
  return jnp.dtype(config.dtype)


def _prefix(decoder_input_tokens, eos_id):
  """int32[B, L], what the answers must begin with."""
  # t5x shifted them to the right; an EOS would end the answer before it begins.
  shifted = jnp.pad(decoder_input_tokens[:, 1:], ((0, 0), (0, 1)))
  return jnp.where(shifted == eos_id, 0, shifted)
