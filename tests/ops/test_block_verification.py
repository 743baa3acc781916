"""Block verification of a chain: the hand table of two drafts over three tokens, its totals, and what is never read."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.ops import acceptance
from specjax.ops import verification

DRAFTER = np.array([[0.5, 0.3, 0.2], [0.7, 0.1, 0.2]])
GOAL = np.array([[0.3, 0.6, 0.1], [0.1, 0.4, 0.5], [0.2, 0.3, 0.5]])
DRAFTS = list(itertools.product(range(3), repeat=2))


def log(probs):
  with np.errstate(divide='ignore'):
    return jnp.asarray(np.log(probs))


BLOCK, TOKEN = jax.jit(verification.verify_block), jax.jit(verification.verify_tokens)


def verify(accept, final=0.5, tokens=(0, 0), length=2, drafter=DRAFTER, goal=GOAL, verifier=BLOCK):
  verdict, trace = verifier(
      jnp.asarray(accept, jnp.result_type(float)), jnp.asarray([0.5, final]), tokens=jnp.asarray(tokens, jnp.int32),
      length=jnp.int32(length), drafter_log_probs=log(drafter), goal_log_probs=log(goal))
  return int(verdict.num_accepted), int(verdict.next_token), jax.tree.map(np.asarray, trace)


def last(tests):
  """P(num_accepted) when the last test that holds counts: tests h_1 .. h_n."""
  return [np.prod([1 - h for h in tests[i:]]) * (tests[i - 1] if i else 1) for i in range(len(tests) + 1)]


def first(tests):
  """P(num_accepted) when the first test that fails ends the block."""
  return [np.prod(tests[:i]) * (1 - tests[i] if i < len(tests) else 1) for i in range(len(tests) + 1)]


def residual(tokens, accepted):
  """The normalised law of the next token behind `accepted` of `tokens`, read off a verdict with that many."""
  uniforms = [0.0 if i < accepted else 1 - 1e-9 for i in range(2)]
  found, _, trace = verify(uniforms, tokens=tokens)
  assert found == accepted
  return trace.final_probs / trace.final_probs.sum()


def joint(count=last, law=residual):
  """float64[3, 3, 3], the law of three tokens: the kept drafts, the verifier's token, and fresh draws from the goal."""
  total = np.zeros((3, 3, 3))
  for tokens in DRAFTS:
    weight = np.prod([DRAFTER[i, token] for i, token in enumerate(tokens)])
    tests = verify([0.5, 0.5], tokens=tokens)[2].accept_probs
    for accepted, chance in enumerate(count(list(tests))):
      if chance < 1e-15:
        continue
      block = [np.eye(3)[token] for token in tokens[:accepted]] + [law(tokens, accepted)]
      block += [GOAL[i] for i in range(accepted + 1, 3)]
      total += weight * chance * np.einsum('i,j,k->ijk', *block)
  return total


TARGET = np.einsum('i,j,k->ijk', *GOAL)


@pytest.mark.parametrize('first_token, weight, mass, test, law', [
    (0, 0.6, 0.24, 0.375, (0, 0.583333, 0.416667)), (1, 1.0, 0.6, 1.0, (0, 0.5, 0.5)),
    (2, 0.5, 0.15, 0.230769, (0, 0.666667, 0.333333))])
def test_first_row_of_the_table(first_token, weight, mass, test, law, x64):
  weights = acceptance.block_weights(log(GOAL[[0], [first_token]]), log(DRAFTER[[0], [first_token]]))
  np.testing.assert_allclose(weights, [1, weight], atol=1e-12)
  assert np.isclose(np.maximum(weight * GOAL[1] - DRAFTER[1], 0).sum(), mass)
  np.testing.assert_allclose(verify([0.5, 0.5], tokens=(first_token, 0))[2].accept_probs[0], test, atol=1e-6)
  np.testing.assert_allclose(residual((first_token, 0), 1), law, atol=1e-6)


@pytest.mark.parametrize('first_token, tests', [
    (0, (0.085714, 1, 1)), (1, (0.142857, 1, 1)), (2, (0.071429, 1, 1))])
def test_last_test_is_the_weight_of_the_whole_block(first_token, tests, x64):
  found = [verify([0.5, 0.5], tokens=(first_token, token))[2].accept_probs[1] for token in range(3)]
  np.testing.assert_allclose(found, tests, atol=1e-6)


@pytest.mark.parametrize('tokens, mass, chances', [
    ((0, 0), 0.35, (0.571429, 0.342857, 0.085714)), ((1, 0), 0.21, (0, 0.857143, 0.142857)),
    ((2, 0), 0.14, (0.714286, 0.214286, 0.071429)), ((0, 1), 0.05, (0, 0, 1)), ((2, 2), 0.04, (0, 0, 1))])
def test_how_many_tokens_of_a_draft_stay(tokens, mass, chances, x64):
  assert np.isclose(DRAFTER[0, tokens[0]] * DRAFTER[1, tokens[1]], mass)
  np.testing.assert_allclose(last(verify([0.5, 0.5], tokens=tokens)[2].accept_probs), chances, atol=1e-6)


def test_totals_and_more_accepted_than_by_token_verification(x64):
  totals = {}
  for verifier, count in ((BLOCK, last), (TOKEN, first)):
    tests = {tokens: verify([0.5, 0.5], tokens=tokens, verifier=verifier)[2].accept_probs for tokens in DRAFTS}
    totals[verifier] = sum(DRAFTER[0, a] * DRAFTER[1, b] * np.array(count(tests[a, b])) for a, b in DRAFTS)
  np.testing.assert_allclose(totals[BLOCK], [0.30, 0.33, 0.37], atol=1e-12)
  np.testing.assert_allclose(totals[TOKEN], [0.30, 0.42, 0.28], atol=1e-12)
  expected = [total @ np.arange(3) for total in totals.values()]
  np.testing.assert_allclose(expected, [1.07, 0.98], atol=1e-12)


def test_law_of_the_block_is_the_goals(x64):
  assert 0.5 * np.abs(joint() - TARGET).sum() < 1e-15
  np.testing.assert_allclose(residual((0, 0), 0), [0, 1, 0], atol=1e-12)


def test_stopping_at_the_first_failed_test_is_wrong(x64):

  def by_weight(tokens, accepted):
    weight = acceptance.block_weights(*(log(laws[np.arange(2), tokens]) for laws in (GOAL[:2], DRAFTER)))[accepted]
    rest = np.maximum(weight * GOAL[accepted] - DRAFTER[accepted], 0) if accepted < 2 else GOAL[2]
    return rest / rest.sum()

  wrong = joint(count=first, law=by_weight)
  np.testing.assert_allclose(wrong.sum(axis=(1, 2)), [0.187500, 0.766346, 0.046154], atol=1e-6)
  assert np.isclose(0.5 * np.abs(wrong - TARGET).sum(), 0.166346, atol=1e-6)


def test_the_residual_of_token_verification_is_wrong(x64):

  def by_token(tokens, accepted):
    rest = np.maximum(GOAL[accepted] - DRAFTER[accepted], 0) if accepted < 2 else GOAL[2]
    return rest / rest.sum()

  wrong = joint(law=by_token)
  np.testing.assert_allclose(wrong.sum(axis=(0, 2)), [0.100000, 0.385000, 0.515000], atol=1e-6)
  assert np.isclose(0.5 * np.abs(wrong - TARGET).sum(), 0.015, atol=1e-9)


@pytest.mark.parametrize('uniforms, accepted', [((0.30, 0.50), 1), ((0.90, 0.05), 2), ((0.90, 0.50), 0)])
def test_fixed_draws(uniforms, accepted):
  assert verify(uniforms)[0] == accepted


def test_every_test_is_strict():
  """u = h fails; a uniform of exactly 0 does not accept a token without goal mass."""
  tests = verify([0.5, 0.5])[2].accept_probs
  assert verify(tests)[0] == 0
  goal = GOAL.copy()
  goal[0] = [0, 0.6, 0.4]
  assert verify([0.0, 0.0], goal=goal)[0] == 0


def test_equal_laws_accept_everything_and_disjoint_supports_nothing():
  """Where both laws agree the test is 0/0, which holds."""
  accepted, _, trace = verify([0.999999, 0.999999], drafter=GOAL[:2])
  assert accepted == 2 and np.all(trace.accept_probs == 1)
  one_hot, away = np.array([[1.0, 0, 0]] * 2), np.array([[0, 0.5, 0.5]] * 3)
  assert verify([0.0, 0.0], drafter=one_hot, goal=away)[0] == 0


def test_a_token_behind_an_impossible_one_never_stays():
  """Weights are products: what follows a token without goal mass has weight 0, whatever its own ratio."""
  goal, drafter = GOAL.copy(), DRAFTER.copy()
  goal[0], drafter[1] = [0, 0.6, 0.4], [1e-30, 0.5, 0.5]
  accepted, token, trace = verify([0.0, 0.0], goal=goal, drafter=drafter)
  assert accepted == 0 and token == 1 and np.all(trace.accept_probs == 0)


def test_short_proposals_use_the_weight_at_their_own_length():
  """n < K: the leaf test stands at n, the bonus row is row n, and nothing behind is read."""
  drafter, goal = DRAFTER.copy(), GOAL.copy()
  drafter[1], goal[2] = np.nan, np.nan
  accepted, _, trace = verify([0.59, 0.0], length=1, drafter=drafter, goal=goal, tokens=(0, 2**31 - 1))
  assert accepted == 1
  np.testing.assert_allclose(trace.accept_probs, [0.6, 0], atol=1e-6)
  np.testing.assert_allclose(trace.final_probs, GOAL[1], atol=1e-6)
  assert verify([0.61, 0.0], length=1, drafter=drafter, goal=goal)[0] == 0
  accepted, _, trace = verify([0.0, 0.0], length=0, drafter=np.full((2, 3), np.nan))
  assert accepted == 0 and np.all(trace.accept_probs == 0)
  np.testing.assert_allclose(trace.final_probs, GOAL[0], atol=1e-6)


def test_without_drafts_the_goal_is_drawn():
  assert verify([], 0.95, tokens=(), length=0, drafter=np.zeros((0, 3)), goal=GOAL[:1])[:2] == (0, 2)


def test_a_block_ends_in_front_of_the_first_broken_law():
  """As if it had been proposed shorter: no mass of the prefix moves elsewhere, and the broken law is what is drawn from."""
  for broken in ('goal', 'drafter'):
    laws = dict(goal=GOAL.copy(), drafter=DRAFTER.copy())
    laws[broken][1] = np.nan
    for uniform in (0.59, 0.61):
      shorter = verify([uniform, 0.0], length=1)
      found = verify([uniform, 0.0], **laws)
      assert found[0] == shorter[0]
      np.testing.assert_allclose(found[2].accept_probs, shorter[2].accept_probs)
    final = verify([0.0, 0.0], **laws)[2].final_probs
    assert np.all(np.isnan(final)) if broken == 'goal' else np.allclose(final, GOAL[1])
  nothing = np.full((3, 3), np.nan)
  accepted, _, trace = verify([0.0, 0.0], goal=nothing)
  assert accepted == 0 and np.all(trace.accept_probs == 0) and np.all(np.isnan(trace.final_probs))


@pytest.mark.parametrize('num_draft_tokens', [1, 2, 3])
def test_greedy_laws_and_single_drafts_give_the_verdict_of_token_verification(num_draft_tokens):
  """One-hot laws at every length, and any laws with K = 1: the same verdict at the same uniforms."""
  random = np.random.RandomState(num_draft_tokens)
  for trial in range(40):
    if num_draft_tokens == 1 and trial % 2:
      drafter, goal = random.dirichlet(np.ones(3), 1), random.dirichlet(np.ones(3), 2)
    else:
      drafter, goal = (np.eye(3)[random.randint(3, size=num_draft_tokens + extra)] for extra in (0, 1))
    tokens = [random.choice(3, p=law) for law in drafter]
    arguments = dict(
        accept=random.uniform(size=num_draft_tokens), final=random.uniform(), tokens=tokens,
        length=random.randint(num_draft_tokens + 1), drafter=drafter, goal=goal)
    assert verify(**arguments)[:2] == verify(**arguments, verifier=TOKEN)[:2]


def test_vmap_and_jit_agree_with_the_plain_call():
  random = np.random.RandomState(0)
  drafter, goal = random.dirichlet(np.ones(5), (6, 4)), random.dirichlet(np.ones(5), (6, 5))
  accept, final = random.uniform(size=(6, 4)), random.uniform(size=(6, 2))
  tokens, length = random.randint(5, size=(6, 4)).astype(np.int32), np.array([4, 0, 1, 2, 3, 4], np.int32)
  as_floats = lambda x: jnp.asarray(x, jnp.float32)
  call = lambda accept, final, tokens, length, drafter, goal: verification.verify_block(
      accept, final, tokens=tokens, length=length, drafter_log_probs=drafter, goal_log_probs=goal)
  arguments = as_floats(accept), as_floats(final), tokens, length, as_floats(np.log(drafter)), as_floats(np.log(goal))
  batched = jax.jit(jax.vmap(call))(*arguments)
  for row in range(6):
    alone = call(*(jnp.asarray(x[row]) for x in arguments))
    assert int(alone[0].num_accepted) == int(batched[0].num_accepted[row]) <= length[row]
    assert int(alone[0].next_token) == int(batched[0].next_token[row])
    np.testing.assert_allclose(alone[1].accept_probs, batched[1].accept_probs[row], atol=1e-6)


@pytest.mark.parametrize('broken', ['goal', 'drafter'])
def test_broken_laws_are_seen_in_large_batches_too(broken):
  """Where XLA vectorises, a NaN can vanish in a maximum: at every size the block ends in front of it."""
  random = np.random.RandomState(0)
  for batch, vocab_size in ((3, 4), (512, 3), (64, 900)):
    sample = lambda rows: random.dirichlet(np.ones(vocab_size), (batch, rows))
    laws = dict(goal=sample(4), drafter=sample(3))
    laws[broken][:, 2] = np.nan
    tokens = random.randint(vocab_size, size=(batch, 3)).astype(np.int32)
    shorter, found = (jax.jit(jax.vmap(lambda u, x, n, q, p: verification.verify_block(
        u, u[:2], tokens=x, length=n, drafter_log_probs=q, goal_log_probs=p)))(
            random.uniform(size=(batch, 3)).astype(np.float32), tokens, np.full(batch, length, np.int32),
            *(np.log(laws[name]).astype(np.float32) for name in ('drafter', 'goal'))) for length in (2, 3))
    np.testing.assert_allclose(found[1].accept_probs, shorter[1].accept_probs, atol=1e-6)
    assert found[0].num_accepted.max() <= 2


@pytest.mark.parametrize('width', [1, 5, 8, 9, 40])
def test_weights_equal_a_plain_loop_at_every_width(width, x64):
  random = np.random.RandomState(width)
  goal, drafter = random.normal(size=width) * 3, random.normal(size=width) * 3
  weight, expected = 1.0, [1.0]
  for ratio in np.exp(goal - drafter):
    weight = min(1.0, weight * ratio)
    expected.append(weight)
  np.testing.assert_allclose(acceptance.block_weights(jnp.asarray(goal), jnp.asarray(drafter)), expected, rtol=1e-12)
