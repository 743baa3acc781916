"""Feeding committed text to a model that may be any number of tokens behind, in passes of one static width."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Fed(NamedTuple):
  """What a model knows after `feed`.

  Attributes:
    logits: float[B, V] behind the last token fed to each row; unspecified where none was.
    cache: the model's.
    passes: int32[], how often the model ran.
  """

  logits: jax.Array
  cache: Any
  passes: jax.Array


def feed(model, params, cache, tokens, *, until, needed, allowed, width):
  """`Fed` after as many passes as the `needed` rows take to cover their first `until` tokens; none where there are none.

      tokens   a b c d e f g . .     until = 7, width = 3
      cache    a b c                 the passes feed d e f, then g; the logits are read behind g

  Rows that are only `allowed` feed what they miss in the same passes and cause none.

  Args:
    model: a `LanguageModel`.
    params, cache: its parameters and cache.
    tokens: int32[B, L], the text.
    until: int32[B], how many tokens of it are to be covered; cache length + `width` fits the capacity.
    needed, allowed: bool[B]; every needed row is allowed.
    width: static, tokens per row and pass.
  """
  index = jnp.arange(width, dtype=jnp.int32)[None, :]

  def extend(cache):
    behind = model.length(cache)
    count = jnp.where(allowed, jnp.clip(until - behind, 0, width), 0)
    block = jnp.take_along_axis(tokens, jnp.minimum(behind[:, None] + index, tokens.shape[1] - 1), axis=1)
    output, cache = model.extend(params, cache, block, count=count, logits_at=jnp.maximum(count - 1, 0))
    return output.logits[:, 0], cache, count

  def one_pass(fed):
    logits, cache, count = extend(fed.cache)
    return Fed(jnp.where((count > 0)[:, None], logits, fed.logits), cache, fed.passes + 1)

  def is_behind(fed):
    return jnp.any(needed & (model.length(fed.cache) < until))

  shape = jax.eval_shape(extend, cache)[0]
  return lax.while_loop(is_behind, one_pass, Fed(jnp.zeros(shape.shape, shape.dtype), cache, jnp.int32(0)))
