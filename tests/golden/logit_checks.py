"""What a checkpoint's logits are compared with: references of the format's own library, cached and not, ragged or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import types
from specjax.models import t5

MAX_DIFFERENCE, MAX_KL = 2e-4, 1e-6

# Tiny models: nearly all of the time is compilation, and this halves it.
compiled = functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True})


def forward_logits(model, params, *, tokens, encoder_tokens=None, encoder_length=None):
  """float[B, T, V] of whole rows, without a cache."""
  tokens = jnp.asarray(tokens, jnp.int32)
  index = lambda like: jnp.broadcast_to(jnp.arange(like.shape[1], dtype=jnp.int32)[None], like.shape)
  encoder = {}
  if isinstance(model, t5.T5LM):
    encoder_tokens = jnp.asarray(encoder_tokens, jnp.int32)
    seen = index(encoder_tokens) < jnp.asarray(encoder_length, jnp.int32)[:, None]
    encoder = dict(
        encoder_tokens=encoder_tokens, encoder_positions=index(encoder_tokens), encoder_segments=seen.astype(jnp.int32))
  batch = types.TrainingBatch(
      tokens=tokens, targets=tokens, weights=jnp.ones(tokens.shape), positions=index(tokens),
      segments=jnp.ones_like(tokens), **encoder)
  return np.asarray(compiled(model.forward)(params, batch).logits)


def cached_logits(model, params, *, tokens, start, widths, encoder_tokens=None, encoder_length=None):
  """float[B, T, V] by prefill and extends; NaN where a row was prefilled.

  Args:
    start: int32[B], tokens of the prompt of each row: rows are ragged, and go on to the same end.
    widths: of the extends, repeated in turn; rows that have less to feed feed less.
  """
  tokens, start = np.asarray(tokens), np.asarray(start)
  batch, length = tokens.shape
  prompt = np.where(np.arange(start.max())[None] < start[:, None], tokens[:, :start.max()], 0)
  encoder = {}
  if isinstance(model, t5.T5LM):
    encoder = dict(
        encoder_tokens=jnp.asarray(encoder_tokens, jnp.int32), encoder_length=jnp.asarray(encoder_length, jnp.int32))
  prompt = types.Prompt(jnp.asarray(prompt, jnp.int32), jnp.asarray(start, jnp.int32), **encoder)
  _, cache = compiled(model.prefill, static_argnums=2)(params, prompt, length + max(widths))
  extend = compiled(model.extend)
  logits, fed, turn = np.full((batch, length, model.vocab_size), np.nan, np.float32), start - 1, 0
  while (fed < length).any():
    width = widths[turn % len(widths)]
    count = np.minimum(width, length - fed)
    at = np.minimum(fed[:, None] + np.arange(width)[None], length - 1)
    block = jnp.asarray(np.take_along_axis(tokens, at, axis=1), jnp.int32)
    output, cache = extend(params, cache, block, count=jnp.asarray(count, jnp.int32))
    of_block = np.asarray(output.logits)
    for row in range(batch):
      logits[row, fed[row]:fed[row] + count[row]] = of_block[row, :count[row]]
    fed, turn = fed + count, turn + 1
  return logits


def differences(logits, reference, mask):
  """(largest absolute difference, largest KL(reference || ours) in nats) over the tokens of `mask` bool[B, T]."""
  ours, theirs = np.asarray(logits, np.float64)[mask], np.asarray(reference, np.float64)[mask]
  log_softmax = lambda x: x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
  p, q = log_softmax(theirs), log_softmax(ours)
  return np.abs(ours - theirs).max(), np.sum(np.exp(p) * (p - q), axis=-1).max()


def assert_agrees(logits, reference, mask, *, max_difference=MAX_DIFFERENCE, max_kl=MAX_KL):
  """Fails where a token's logits or law differ by more than the two bounds."""
  assert mask.any()
  difference, kl = differences(logits, reference, mask)
  assert difference <= max_difference and kl <= max_kl, f'difference {difference:.2e}, KL {kl:.2e}'


def assert_all_passes_agree(
    model, params, reference, mask, *, start, widths=(5, 1), max_difference=MAX_DIFFERENCE, max_kl=MAX_KL, **inputs
):
  """Forward, and prefill of ragged prompts with extends of several widths behind it, against one reference."""
  bounds = dict(max_difference=max_difference, max_kl=max_kl)
  assert_agrees(forward_logits(model, params, **inputs), reference, mask, **bounds)
  start = np.asarray(start)
  logits = cached_logits(model, params, start=start, widths=widths, **inputs)
  seen = mask & (np.arange(mask.shape[1])[None] >= start[:, None] - 1)
  assert_agrees(logits, reference, seen, **bounds)
