"""The one categorical draw of specjax: two uniforms, two levels.

The first uniform picks a chunk of 512 tokens by the CDF of chunk sums, the second a token inside it. A flat float32 CDF
over 262,144 tokens cannot reach 0.12 % of the mass; two levels reach all but 2e-5 of it. All functions are *unbatched*.
"""

import jax.numpy as jnp
from jax import lax

CHUNK = 512


def cdf(probs):
  """float[n], the running sum of `probs` float[n] that the draw compares with; it rises exactly where there is mass."""
  # A parallel sum rounds each prefix by itself: it may rise by an ulp at an entry without mass, which could then be drawn.
  return lax.cummax(jnp.where(probs > 0, jnp.cumsum(probs), 0))


def draw(uniforms, log_probs):
  """int32[], a token drawn from the law `log_probs`.

  Args:
    uniforms: float[2] in [0, 1): chunk, token inside the chunk. With V <= 512 there is one chunk and the first is unused.
    log_probs: float[V]; need not be normalised. -inf is no mass. With no finite mass at all the result is meaningless
      (and in range): callers give such rows a status.
  """
  return draw_from_probs(uniforms, jnp.exp(log_probs))


def draw_from_probs(uniforms, probs):
  """As `draw`, from unnormalised probabilities float[V]."""
  vocab_size = probs.shape[0]
  if vocab_size <= CHUNK:
    return _pick(uniforms[1], probs)
  num_chunks = -(-vocab_size // CHUNK)
  padded = jnp.pad(probs, (0, num_chunks * CHUNK - vocab_size))
  chunks = padded.reshape(num_chunks, CHUNK)
  chunk = _pick(uniforms[0], chunks.sum(axis=1))
  token = _pick(uniforms[1], lax.dynamic_index_in_dim(chunks, chunk, keepdims=False))
  return jnp.minimum(chunk * CHUNK + token, vocab_size - 1)


def _pick(uniform, probs):
  running = cdf(probs)
  # The first entry whose running sum exceeds u * total: an entry without mass is never the first. Rounding of the product
  # can reach the total itself; then the last entry with mass is meant.
  index = jnp.sum(running <= uniform * running[-1])
  last = probs.shape[0] - 1 - jnp.argmax(probs[::-1] > 0)
  return jnp.minimum(index, last).astype(jnp.int32)
