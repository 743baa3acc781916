"""Decoding a t5x batch with the models and the loop of specjax: pure functions, traced by t5x's partitioner.

t5x's parameters stay in t5x's tree and sharding. Inside the compiled step they are renamed (a transpose and some reshapes,
before the loop), and the rounds of a specjax decoder run until every row has stopped. Nothing here imports t5x.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from specjax.checkpoints import leaves
from specjax.checkpoints import native
from specjax.checkpoints import t5x as t5x_format
from specjax.core import checks
from specjax.core import types
from specjax.decode import generate
from specjax.decode import inputs
from specjax.decode import methods
from specjax.models import t5 as t5_lib
from specjax.ops import warping

ROLES = ('target', 'drafter')
_START_TOKEN = 0
_BROKEN = (types.Status.NONFINITE, types.Status.NONFINITE_DRAFTER)


@dataclasses.dataclass(frozen=True)
class Pair:
  """What a method is given: two models, which hold no arrays."""

  target: t5_lib.T5LM
  drafter: t5_lib.T5LM


class Decoded(NamedTuple):
  """Outputs as t5x has them, [B, N, ...] for N answers to each input, the most likely last.

  `tokens` int32[B, N, L]: the token of step j at index j, EOS kept, zeros behind it, a forced prefix included. `aux`: by name,
  an array [B, N] of each answer.
  """

  tokens: jax.Array
  aux: dict[str, jax.Array]


def model_of(params: Mapping[str, Any], *, dtype: Any, role: str) -> tuple[t5_lib.T5LM, Any]:
  """The model that a tree of t5x's parameters belongs to, and the parameters in our tree.

  Args:
    params: t5x's tree (layers scanned or not, kernels with two or three axes), of arrays or tracers.
    dtype: of activations; the parameters are cast to it once, or the loop would do it in every pass.
    role: whose they are, for errors.

  Raises:
    CheckpointError: not the parameters of a T5 encoder-decoder; everything that is wrong is named.
  """
  where = f'parameters of the {role}'
  config, found, extra = t5x_format.open_tree(params, where=where)
  model = t5_lib.T5LM(config, dtype=dtype, param_dtype=dtype)
  template = jax.eval_shape(model.init, jax.random.key(0))
  leaves.check(found, template, where=where, extra=extra)
  ours = [found[name].read().astype(model.param_dtype) for name in native.flatten(template)]
  return model, jax.tree.unflatten(jax.tree.structure(template), ours)


def decode(
    method: Callable[[Pair], Any], params: Mapping[str, Any], *, dtypes: Mapping[str, Any], sampling: checks.SamplingParams,
    encoder_tokens: jax.Array, prefix: jax.Array | None, longest: int, eos_id: int, num_decodes: int, seed: jax.Array,
) -> Decoded:
  """The answers to a batch of encoder inputs.

  Args:
    method: a method such as `specjax.speculative(num_draft_tokens=4)`.
    params: t5x's trees of 'target' and 'drafter'.
    dtypes: role -> dtype of activations.
    sampling: for every row.
    encoder_tokens: int32[B, S], right-padded with 0.
    prefix: int32[B, L], tokens that the answers begin with, right-padded with 0; or None.
    longest: L, tokens of the longest answer.
    eos_id: ends a row.
    num_decodes: N, answers to each input.
    seed: uint32[]; the rows' random numbers are addressed by it, the row and the number of the answer.

  Raises:
    VocabError, ParamError, CheckpointError: while tracing.
  """
  made = {role: model_of(params[role], dtype=dtypes[role], role=role) for role in ROLES}
  pair = Pair(**{role: model for role, (model, _) in made.items()})
  checks.matching_vocabularies(pair.drafter.vocab_size, pair.target.vocab_size)
  decoder = inputs.decoder(method, pair)
  if getattr(decoder, 'rule', None) is not None:  # a decoder that routes has none
    methods.check_sampling(decoder.rule, sampling)
  if prefix is None:
    prefix = jnp.zeros((encoder_tokens.shape[0], 0), jnp.int32)
  requests = _requests(
      jnp.repeat(encoder_tokens, num_decodes, axis=0), jnp.repeat(prefix, num_decodes, axis=0), longest=longest,
      num_decodes=num_decodes, eos_id=eos_id, seed=seed, sampling=sampling, vocab_size=pair.target.vocab_size,
      dtype=warping.probability_dtype(jnp.dtype(dtypes['target'])))
  ours = {role: tree for role, (_, tree) in made.items()}
  state = _run(decoder, ours, decoder.init(ours, requests, longest + 1 + decoder.slack))
  return _sorted(_outputs(state, longest), num_decodes)


def _requests(encoder_tokens, prefix, *, longest, num_decodes, eos_id, seed, sampling, vocab_size, dtype):
  rows = prefix.shape[0]
  requests = generate.build_requests(
      [[_START_TOKEN]] * rows, family='encoder-decoder', width=1, batch_size=rows, sampling=[sampling] * rows,
      max_new_tokens=[0] * rows, eos_ids=(eos_id,), seed=[0] * rows, example_id=[row // num_decodes for row in range(rows)],
      sample_index=[row % num_decodes for row in range(rows)], vocab_size=vocab_size, start_token=_START_TOKEN, dtype=dtype)
  length = 1 + _length(prefix)
  start = jnp.full((rows, 1), _START_TOKEN, jnp.int32)
  tokens = jnp.concatenate([start, prefix.astype(jnp.int32)], axis=1)
  return requests.replace(
      prompt=types.Prompt(tokens, length, encoder_tokens.astype(jnp.int32), _length(encoder_tokens)),
      max_new_tokens=longest + 1 - length, seed=jnp.broadcast_to(jnp.asarray(seed, jnp.uint32), (rows,)))


def _length(tokens):
  """int32[B], up to the last token that is no padding."""
  index = jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.int32)[None, :]
  return jnp.max(jnp.where(tokens != 0, index, 0), axis=1, initial=0)


def _run(decoder, params, state):
  """The state when every row has stopped. `decode.run` has the same loop behind a jit boundary of its own; here the boundary
  is the partitioner's."""
  return lax.while_loop(
      lambda state: jnp.any(state.status == types.Status.RUNNING), lambda state: decoder.step(params, state), state)


def _outputs(state, longest):
  """`Decoded` with N = 1 of a finished state."""
  index = jnp.arange(1, longest + 1, dtype=jnp.int32)[None, :]
  is_written = index < state.length[:, None]
  aux = {field.name: getattr(state.stats, field.name) for field in dataclasses.fields(state.stats)}
  aux = {name: counter for name, counter in aux.items() if counter.ndim == 1 and name != 'target_passes'}
  aux['status'] = state.status
  if state.log_probs is not None:
    is_new = is_written & (index >= state.prompt_length[:, None])
    scores = jnp.sum(jnp.where(is_new, state.log_probs[:, 1:longest + 1], 0), axis=1)
    is_broken = jnp.any(jnp.stack([state.status == status for status in _BROKEN]), axis=0)
    aux['scores'] = jnp.where(is_broken, jnp.nan, scores)
  tokens = jnp.where(is_written, state.tokens[:, 1:longest + 1], 0)
  return Decoded(tokens[:, None], {name: value[:, None] for name, value in aux.items()})


def _sorted(decoded, num_decodes):
  """The answers to one input side by side, by ascending score."""
  together = jax.tree.map(lambda x: x.reshape(-1, num_decodes, *x.shape[2:]), decoded)
  if num_decodes == 1 or 'scores' not in decoded.aux:
    return together
  # A broken row is never the best one.
  order = jnp.argsort(jnp.nan_to_num(together.aux['scores'], nan=-jnp.inf), axis=1)
  return jax.tree.map(lambda x: jax.vmap(lambda row, index: row[index])(x, order), together)
