"""Autoregressive decoding: the loop with a drafter that proposes nothing, and an independent plain loop as oracle."""

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import types
from specjax.decode import speculative
from specjax.drafters import none
from specjax.ops import categorical
from specjax.ops import keys
from specjax.ops import warping
from specjax.rules import lossless


def decoder(model, *, width=1):
  """A `SpeculativeDecoder` that decodes `model` alone; with `width` > 1 each target pass is that wide, one token counts."""
  return speculative.SpeculativeDecoder(
      target=model, drafter=none.NoDrafter(vocab_size=model.vocab_size, num_draft_tokens=width - 1),
      rule=lossless.Lossless())


def reference(model, params, requests):
  """Token lists by the plainest loop there is: no cache, one full forward pass per token, the same random numbers.

  The oracle of the tests: it shares `warping`, `categorical` and `keys` with the loop, and nothing else. Slow on purpose.

  Args:
    model: a `LanguageModel`.
    params: its parameters.
    requests: `Requests`.
  """
  forward = jax.jit(lambda params, batch: model.forward(params, batch).logits)
  prompt = requests.prompt
  batch = prompt.tokens.shape[0]
  longest = int(np.max(np.asarray(prompt.length) + np.asarray(requests.max_new_tokens)))
  tokens = np.zeros((batch, max(longest, prompt.tokens.shape[1])), np.int32)
  tokens[:, :prompt.tokens.shape[1]] = prompt.tokens
  length = np.array(prompt.length)
  row_keys = keys.row_keys(requests.seed, requests.example_id, requests.sample_index)
  stop = length + np.asarray(requests.max_new_tokens)
  running = length < stop
  while running.any():
    logits = forward(params, _as_batch(tokens, length, prompt))
    last = np.take_along_axis(np.asarray(logits), (length - 1)[:, None, None], axis=1)[:, 0]
    law = warping.sampling_log_probs(jnp.asarray(last), requests.sampling, live=jnp.asarray(running))
    uniforms = keys.round_uniforms(row_keys, jnp.asarray(length), num_draft_tokens=0, dtype=law.dtype)
    drawn = np.asarray(jax.vmap(categorical.draw)(uniforms.final, law))
    for row in np.flatnonzero(running):
      tokens[row, length[row]] = drawn[row]
      length[row] += 1
      running[row] = length[row] < stop[row] and drawn[row] not in np.asarray(requests.eos_ids)[row]
      if requests.stop_sequences is not None:
        text = tokens[row, prompt.length[row]:length[row]]
        running[row] &= not _ends_with_one(text, np.asarray(requests.stop_sequences)[row])
  return [tokens[row, prompt.length[row]:length[row]] for row in range(batch)]


def _ends_with_one(text, sequences):
  real = [sequence[sequence >= 0] for sequence in sequences]
  return any(s.size and s.size <= text.size and np.array_equal(text[-s.size:], s) for s in real)


def _as_batch(tokens, length, prompt):
  width = tokens.shape[1]
  index = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
  real = (index < length[:, None]).astype(np.int32)
  encoder = {}
  if prompt.encoder_tokens is not None:
    where = np.broadcast_to(np.arange(prompt.encoder_tokens.shape[1], dtype=np.int32), prompt.encoder_tokens.shape)
    encoder = dict(
        encoder_tokens=prompt.encoder_tokens, encoder_positions=where,
        encoder_segments=(where < np.asarray(prompt.encoder_length)[:, None]).astype(np.int32))
  return types.TrainingBatch(
      tokens=tokens, targets=np.zeros_like(tokens), weights=np.zeros(tokens.shape, np.float32), positions=index,
      segments=real, **encoder)
