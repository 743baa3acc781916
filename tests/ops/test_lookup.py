"""Matches of the end of a text against a search by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.ops import lookup


def matches_by_hand(text, length, recent):
  """What `match_lengths` must give, from slices."""
  found = []
  for index in range(len(text)):
    best = 0
    for size in range(1, len(recent) + 1):
      wanted = list(recent[len(recent) - size:])
      is_here = index < length and index + 1 >= size and list(text[index + 1 - size:index + 1]) == wanted
      best = size if is_here and -1 not in wanted else best
    found.append(best)
  return found


def test_the_example_of_the_docstring():
  text, recent = jnp.array([0, 1, 2, 0, 1]), jnp.array([9, 0, 1])
  np.testing.assert_array_equal(lookup.match_lengths(text, jnp.int32(5), recent), [0, 2, 0, 0, 2])


def test_random_texts_match_as_by_hand():
  random = np.random.RandomState(0)
  match = jax.jit(jax.vmap(lookup.match_lengths))
  text = random.randint(0, 3, (300, 12)).astype(np.int32)
  length = random.randint(0, 13, 300).astype(np.int32)
  recent = random.randint(0, 3, (300, 4)).astype(np.int32)
  missing = random.randint(0, 5, 300)
  recent[np.arange(4)[None, :] < missing[:, None]] = -1
  expected = [matches_by_hand(*row) for row in zip(text, length, recent, strict=True)]
  np.testing.assert_array_equal(match(text, length, recent), expected)


@pytest.mark.parametrize('prefers_last, index', [(False, 1), (True, 4)])
def test_among_equal_matches_the_preferred_one_wins(prefers_last, index):
  text = jnp.array([5, 7, 5, 5, 7, 7])
  found = lookup.longest_match(text, jnp.int32(6), jnp.array([5, 7]), prefers_last=prefers_last)
  assert (int(found.index), int(found.length)) == (index, 2)


def test_a_longer_match_beats_the_preferred_place():
  text = jnp.array([1, 2, 3, 9, 3, 9])
  found = lookup.longest_match(text, jnp.int32(6), jnp.array([2, 3]), prefers_last=True)
  assert (int(found.index), int(found.length)) == (2, 2)


def test_nothing_matches_nothing():
  found = lookup.longest_match(jnp.array([1, 2, 3]), jnp.int32(3), jnp.array([-1, 4]), prefers_last=False)
  assert int(found.length) == 0
