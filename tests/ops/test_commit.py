"""What a round keeps: EOS, limits, and writing past the end."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import types
from specjax.ops import commit


def test_block_is_the_accepted_drafts_and_the_verifiers_token():
  for accepted in range(4):
    block = commit.emitted_block(jnp.array([5, 6, 7]), types.Verdict(jnp.int32(accepted), jnp.int32(9)))
    assert block[:accepted + 1].tolist() == [5, 6, 7][:accepted] + [9]


def test_trim_equals_a_plain_loop():
  """Every block of three tokens over three ids, every count, limit and EOS set."""
  blocks = np.array(list(itertools.product(range(3), repeat=3)), np.int32)
  trim = jax.jit(jax.vmap(
      lambda block, emitted, remaining, eos: commit.trim(block, num_emitted=emitted, remaining=remaining, eos_ids=eos),
      in_axes=(0, None, None, None)))
  for emitted, remaining, eos in itertools.product((0, 1, 2, 3), (0, 1, 2, 5), ((-1, -1), (1, -1), (2, 0))):
    kept, found = trim(blocks, jnp.int32(emitted), jnp.int32(remaining), jnp.array(eos))
    for block, got_kept, got_found in zip(blocks, kept, found):
      text = block[:min(emitted, remaining)].tolist()
      cut = next((i + 1 for i, token in enumerate(text) if token in eos), None)
      assert (int(got_kept), bool(got_found)) == (len(text) if cut is None else cut, cut is not None)


def test_append_writes_the_count_and_drops_what_does_not_fit():
  buffer = jnp.arange(12).reshape(2, 6)
  got = commit.append(buffer, jnp.array([[20, 21, 22], [30, 31, 32]]), length=jnp.array([1, 4]), count=jnp.array([2, 3]))
  assert got.tolist() == [[0, 20, 21, 3, 4, 5], [6, 7, 8, 9, 30, 31]]


@pytest.mark.parametrize('expected, flags', [
    ('RUNNING', {}), ('CAPACITY', dict(has_room=False)), ('LIMIT', dict(new_length=9)),
    ('LIMIT', dict(new_length=9, has_room=False)), ('EOS', dict(hit_eos=True, new_length=9)),
    ('NONFINITE', dict(target_broke=True)), ('NONFINITE_DRAFTER', dict(drafter_broke=True)),
    ('NONFINITE', dict(target_broke=True, drafter_broke=True))])
def test_status_of_a_round(expected, flags):
  given = dict(is_running=True, hit_eos=False, new_length=5, max_length=9, has_room=True, target_broke=False,
               drafter_broke=False) | flags
  got = commit.row_status(**{name: jnp.asarray(value) for name, value in given.items()})
  assert int(got) == types.Status[expected]
