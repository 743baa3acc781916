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
    kept, found, stopped = trim(blocks, jnp.int32(emitted), jnp.int32(remaining), jnp.array(eos))
    assert not stopped.any()
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
    ('STOP', dict(hit_stop=True, new_length=9)), ('STOP', dict(hit_stop=True, has_room=False)),
    ('NONFINITE', dict(target_broke=True)), ('NONFINITE_DRAFTER', dict(drafter_broke=True)),
    ('NONFINITE', dict(target_broke=True, drafter_broke=True))])
def test_status_of_a_round(expected, flags):
  given = dict(is_running=True, hit_eos=False, hit_stop=False, new_length=5, max_length=9, has_room=True,
               target_broke=False, drafter_broke=False) | flags
  got = commit.row_status(**{name: jnp.asarray(value) for name, value in given.items()})
  assert int(got) == types.Status[expected]


def first_end(text, start, limit, eos, sequences):
  """(kept, status) by a plain loop: `text` is all that was generated, the block begins at `start`."""
  for end in range(start + 1, start + limit + 1):
    if text[end - 1] in eos:
      return end - start, 'EOS'
    if any(sequence and text[max(end - len(sequence), 0):end] == list(sequence) for sequence in sequences):
      return end - start, 'STOP'
  return limit, None


def test_stop_sequences_equal_a_plain_loop_over_generated_tokens():
  """Every text of two earlier and three new tokens over two ids; overlapping, nested, long and empty sequences."""
  texts = np.array(list(itertools.product(range(2), repeat=5)), np.int32)
  sets = [((0,), ()), ((0, 1), ()), ((0, 0), (1, 0)), ((0, 1, 0), (1, 0)), ((1, 1, 1), (1,)), ((), ()), ((0, 0, 0), ())]
  trim = jax.jit(jax.vmap(
      lambda text, generated, emitted, remaining, eos, stops: commit.trim(
          text[2:], num_emitted=emitted, remaining=remaining, eos_ids=eos, stop_sequences=stops,
          recent=jnp.where(jnp.arange(2) >= 2 - generated, text[:2], -1)), in_axes=(0, None, None, None, None, None)))
  for generated, emitted, remaining, eos, sequences in itertools.product((0, 1, 2), (1, 3), (2, 9), (-1, 1), sets):
    stops = np.full((2, 3), -1, np.int32)
    for row, sequence in zip(stops, sequences):
      row[:len(sequence)] = sequence
    found = trim(texts, jnp.int32(generated), jnp.int32(emitted), jnp.int32(remaining), jnp.array([eos]), jnp.array(stops))
    for text, kept, hit_eos, hit_stop in zip(texts.tolist(), *found):
      expected = first_end(text[2 - generated:], generated, min(emitted, remaining), [eos], sequences)
      assert (int(kept), 'EOS' if hit_eos else 'STOP' if hit_stop else None) == expected
      assert not (hit_eos and hit_stop)


def test_recent_tokens_end_at_the_prompt():
  tokens = jnp.array([7, 8, 9, 5, 6, 0, 0])
  for count, expected in ((0, []), (1, [6]), (2, [5, 6]), (3, [-1, 5, 6]), (6, [-1, -1, -1, -1, 5, 6])):
    assert commit.recent_tokens(tokens, length=jnp.int32(5), start=jnp.int32(3), count=count).tolist() == expected
