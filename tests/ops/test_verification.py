"""Token verification of a chain at given uniforms: which tokens stay, what follows, and what is never read."""

import jax
import jax.numpy as jnp
import numpy as np

from specjax.ops import verification

DRAFTER = np.array([[0.5, 0.3, 0.2], [0.7, 0.1, 0.2]])
GOAL = np.array([[0.3, 0.6, 0.1], [0.1, 0.4, 0.5], [0.2, 0.3, 0.5]])


def verify(accept, final, tokens=(0, 0), length=2, drafter=DRAFTER, goal=GOAL):
  with np.errstate(divide='ignore'):
    drafter, goal = (jnp.asarray(np.log(x), jnp.float32) for x in (drafter, goal))
  verdict, trace = verification.verify_tokens(
      jnp.asarray(accept, jnp.float32), jnp.asarray([0.5, final], jnp.float32), tokens=jnp.asarray(tokens, jnp.int32),
      length=jnp.int32(length), drafter_log_probs=drafter, goal_log_probs=goal)
  return int(verdict.num_accepted), int(verdict.next_token), jax.tree.map(np.asarray, trace)


def test_acceptance_probabilities_are_the_ratios():
  _, _, trace = verify([0.9, 0.9], 0.5)
  np.testing.assert_allclose(trace.accept_probs, [0.6, 1 / 7], rtol=1e-6)


def test_rejected_position_resamples_from_residual():
  accepted, token, trace = verify([0.7, 0.0], 0.5)
  assert accepted == 0 and token == 1
  np.testing.assert_allclose(trace.final_probs, [0, 0.3, 0], atol=1e-6)
  accepted, token, trace = verify([0.5, 0.2], 0.99)
  assert accepted == 1 and token == 2
  np.testing.assert_allclose(trace.final_probs, [0, 0.3, 0.3], atol=1e-6)


def test_full_acceptance_draws_the_bonus_from_the_last_row():
  accepted, token, trace = verify([0.1, 0.1], 0.45)
  assert accepted == 2 and token == 1
  np.testing.assert_allclose(trace.final_probs, GOAL[2], atol=1e-6)


def test_acceptance_stops_at_the_first_rejection():
  assert verify([0.7, 0.0], 0.5)[0] == 0


def test_the_test_is_strict():
  """u = a rejects; a float32 uniform of exactly 0 does not accept a token without goal mass."""
  goal = GOAL.copy()
  goal[0] = [0, 0.6, 0.4]
  assert verify([0.0, 0.0], 0.5, goal=goal)[0] == 0


def test_short_proposals_read_the_bonus_at_their_own_length():
  accepted, _, trace = verify([0.0, 0.0], 0.5, length=1)
  assert accepted == 1
  np.testing.assert_allclose(trace.final_probs, GOAL[1], atol=1e-6)
  accepted, _, trace = verify([0.0, 0.0], 0.5, length=0)
  assert accepted == 0
  np.testing.assert_allclose(trace.final_probs, GOAL[0], atol=1e-6)


def test_rows_past_the_proposal_are_never_read():
  drafter, goal = DRAFTER.copy(), GOAL.copy()
  drafter[1], goal[2] = np.nan, np.nan
  assert verify([0.0, 0.0], 0.45, tokens=(0, 2**31 - 1), length=1, drafter=drafter, goal=goal)[:2] == (1, 1)


def test_without_drafts_the_goal_is_drawn():
  accepted, token, _ = verify([], 0.95, tokens=(), length=0, drafter=np.zeros((0, 3)), goal=GOAL[:1])
  assert (accepted, token) == (0, 2)


def test_disjoint_supports_accept_nothing_and_equal_laws_everything():
  one_hot = np.array([[1.0, 0, 0]] * 2)
  away = np.array([[0, 0.5, 0.5]] * 3)
  assert verify([0.0, 0.0], 0.5, drafter=one_hot, goal=away)[0] == 0
  assert verify([0.999999, 0.999999], 0.5, drafter=GOAL[:2], goal=GOAL)[0] == 2


def test_a_broken_drafter_law_is_rejected_and_the_goal_drawn():
  drafter = DRAFTER.copy()
  drafter[0] = np.nan
  accepted, token, trace = verify([0.0, 0.0], 0.95, drafter=drafter)
  assert accepted == 0 and token == 2
  np.testing.assert_allclose(trace.final_probs, GOAL[0], atol=1e-6)
