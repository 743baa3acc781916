"""Planted bugs of the loop's options, as in `mutants`: block verification, stop sequences and the recorder.

    with option_mutants.MUTANTS['N12'].applied():
      option_detectors.DETECTORS['block_law']()   # raises AssertionError
"""

import jax.numpy as jnp

from specjax.core import types
from specjax.decode import recorders
from specjax.decode import rounds
from specjax.ops import acceptance
from specjax.ops import categorical
from specjax.ops import commit
from specjax.ops import verification
from specjax.testing import mutants

MUTANTS: dict[str, mutants.Mutant] = {}


def _plant(identifier, killer, description):
  """Registers the decorated function, which returns the patches."""

  def register(patches):
    MUTANTS[identifier] = mutants.Mutant(identifier, description, killer, patches)
    return patches

  return register


def planted_block(*, first_failure=False, token_residual=False, leaf_at_width=False, capped=True, past_broken=False):
  """`verification.verify_block` written a second time, token by token, with places to plant a bug in; else it is exact.

  Args:
    first_failure: the first test that fails ends the block.
    token_residual: the residual is that of token verification.
    leaf_at_width: the leaf test stands at K, not at the proposal's length.
    capped: whether weights stay at most 1.
    past_broken: a test that reads a broken law is 0 and the block goes on.
  """

  def verify_block(accept_uniforms, final_uniforms, *, tokens, length, drafter_log_probs, goal_log_probs):
    num_draft_tokens = tokens.shape[0]
    goal, drafter = jnp.exp(goal_log_probs), jnp.exp(drafter_log_probs)
    weights, mass = [jnp.ones((), goal.dtype)], []
    for i, token in enumerate(tokens):
      mass.append(jnp.sum(jnp.maximum(weights[-1] * goal[i] - drafter[i], 0)))
      possible = (drafter[i, token] > 0) & (goal[i, token] >= 0)
      weight = weights[-1] * jnp.where(possible, goal[i, token] / jnp.where(possible, drafter[i, token], 1), 0)
      weights.append(jnp.minimum(weight, 1) if capped else weight)
    weights, mass = jnp.stack(weights), jnp.stack(mass)
    if not past_broken:
      broken = jnp.any(jnp.isnan(goal[:-1]) | jnp.isnan(drafter), axis=1)
      length = jnp.minimum(length, jnp.min(jnp.where(
          broken, jnp.arange(num_draft_tokens, dtype=jnp.int32), num_draft_tokens)))
    place = 1 + jnp.arange(num_draft_tokens, dtype=jnp.int32)
    below = jnp.append(mass[1:], jnp.zeros((), mass.dtype))
    total = below + (1 - weights[1:])
    inner = jnp.where(total == 0, 1, below / jnp.where(total == 0, 1, total))
    leaf = num_draft_tokens if leaf_at_width else length
    accept_probs = jnp.where(place == leaf, weights[1:], inner)
    accept_probs = jnp.where((place <= length) & ~jnp.isnan(accept_probs), accept_probs, 0)
    holds = accept_uniforms < accept_probs
    if first_failure:
      num_accepted = jnp.sum(jnp.cumprod(holds.astype(jnp.int32)), dtype=jnp.int32)
    else:
      num_accepted = jnp.max(jnp.where(holds, place, 0))
    row = jnp.minimum(num_accepted, num_draft_tokens - 1)
    weight = jnp.ones_like(weights[0]) if token_residual else weights[num_accepted]
    rest = acceptance.residual_probs(goal[num_accepted], drafter[row], weight=weight)
    final_probs = jnp.where(num_accepted < length, rest, goal[num_accepted])
    next_token = categorical.draw_from_probs(final_uniforms, final_probs)
    return types.Verdict(num_accepted, next_token), types.VerdictTrace(accept_probs, final_probs)

  return verify_block


def block(**planted):
  """The patches that put `planted_block` in the library."""
  return lambda: [(verification, 'verify_block', planted_block(**planted))]


_plant('N12', 'block_law', 'block verification stops at the first test that fails')(block(first_failure=True))
_plant('N11', 'block_law', 'block acceptance with the residual of token verification')(block(token_residual=True))
_plant('B1', 'ragged_block_law', 'the leaf test stands at K where fewer tokens are proposed')(block(leaf_at_width=True))
_plant('B2', 'block_law', 'the weight of a prefix is not capped at 1')(block(capped=False))
_plant('B3', 'block_law_in_front_of_a_broken_law', 'a test that reads a broken law fails and moves its mass')(
    block(past_broken=True))


def _wrapped(owner, name, wrapper):
  original = getattr(owner, name)
  return [(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))]


_plant('B4', 'stop_law', 'stop sequences are matched on prompt tokens')(
    lambda: _wrapped(commit, 'recent_tokens', lambda original, tokens, *, start, **rest: original(
        tokens, start=jnp.zeros_like(start), **rest)))
_plant('B5', 'stop_law', 'stop sequences are not matched across rounds')(
    lambda: _wrapped(commit, 'recent_tokens', lambda original, *args, **rest: jnp.full_like(original(*args, **rest), -1)))


@_plant('B6', 'stop_law', 'the last match of a block ends the row, not the first')
def _():
  def trim(original, block, *, num_emitted, remaining, stop_sequences, recent, **rest):
    trimmed = original(
        block, num_emitted=num_emitted, remaining=remaining, stop_sequences=stop_sequences, recent=recent, **rest)
    if stop_sequences is None:
      return trimmed
    place = 1 + jnp.arange(block.shape[0], dtype=jnp.int32)
    ends = commit.sequence_ends(block, recent, stop_sequences) & (place <= jnp.minimum(num_emitted, remaining))
    return trimmed._replace(num_kept=jnp.where(trimmed.hit_stop, jnp.max(jnp.where(ends, place, 0)), trimmed.num_kept))
  return _wrapped(commit, 'trim', trim)


@_plant('M38', 'stop_counters', 'tokens behind a stop sequence inside a block are counted')
def _():
  def commit_block(original, state, *args, **rest):
    free = original(state.replace(stop_sequences=None), *args, **rest)
    return original(state, *args, **rest)._replace(num_kept=free.num_kept)
  return _wrapped(rounds, 'commit_block', commit_block)


def _recording(change):
  return lambda: _wrapped(recorders.SummaryRecorder, 'update', lambda original, self, record, **given: original(
      self, record, **(given | change(given))))


_plant('B7', 'summary_sums', 'the recorder sums over every proposed position')(
    _recording(lambda given: dict(evaluated=given['proposal'].length)))
_plant('B8', 'summary_sums', 'the recorder takes the target\'s law for the goal')(
    _recording(lambda given: dict(goal=given['goal']._replace(log_probs=given['target_log_probs']))))


def without_bug():
  """The control: `planted_block` as it is."""
  return mutants.Mutant('none', 'nothing planted', 'block_law', block(), survives=True)
