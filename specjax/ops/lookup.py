"""Where the end of a text was seen before, and how it went on there. *Unbatched*, pure."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Match(NamedTuple):
  """The place in a text where its latest tokens were seen: they end at `index` int32[], `length` int32[] of them agree.

  `length` 0 is no match; `index` is then unspecified.
  """

  index: jax.Array
  length: jax.Array


def match_lengths(text, length, recent):
  """int32[L], at every place of a text: how many of the latest tokens end there, up to N.

      text     a b c a b      recent  x a b      N = 3
      result   0 2 0 0 2

  Args:
    text: int32[L].
    length: int32[], places at index >= length match nothing.
    recent: int32[N], the latest tokens, -1 in front where there are fewer; at least two agree only where both end alike.
  """
  index = jnp.arange(text.shape[0], dtype=jnp.int32)
  agrees = index < length
  matched = jnp.zeros_like(index)
  for back in range(recent.shape[0]):
    token = recent[recent.shape[0] - 1 - back]
    agrees &= (jnp.roll(text, back) == token) & (index >= back) & (token >= 0)
    matched += agrees.astype(jnp.int32)
  return matched


def longest_match(text, length, recent, *, prefers_last):
  """`Match` of most agreeing tokens; among equal ones the first, or the last where `prefers_last` (static).

  Args:
    text, length, recent: as in `match_lengths`.
    prefers_last: static.
  """
  matched = match_lengths(text, length, recent)
  if prefers_last:
    index = text.shape[0] - 1 - jnp.argmax(matched[::-1]).astype(jnp.int32)
  else:
    index = jnp.argmax(matched).astype(jnp.int32)
  return Match(index, matched[index])
