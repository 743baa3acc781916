"""Planted bugs: the catalogue of what goes wrong in speculative decoding, each a patch that a named detector must kill.

The library holds no switch; a mutant replaces one or two module attributes while it is applied. `M` and `N` numbers follow
the project's catalogue of published bugs, `S` are our own, `G` those of the rules (`rule_mutants`). The control M16 is no bug
and must survive.

    with mutants.MUTANTS['M01'].applied():
      detectors.DETECTORS['lossless_law']()   # raises AssertionError
"""

import contextlib
import dataclasses
import types as python_types
from typing import Any, Callable
from unittest import mock

import jax
import jax.numpy as jnp
from jax import lax

from specjax.core import checks
from specjax.core import types
from specjax.decode import rounds
from specjax.decode import run
from specjax.decode import speculative
from specjax.drafters import model as model_drafter
from specjax.ops import acceptance
from specjax.ops import categorical
from specjax.ops import commit
from specjax.ops import keys
from specjax.ops import verification
from specjax.ops import warping
from specjax.rules import token_specific
from specjax.testing import adversarial
from specjax.testing import rule_mutants
from specjax.testing import toy

Patch = tuple[Any, str, Any]


@dataclasses.dataclass(frozen=True)
class Mutant:
  """One planted bug.

  Attributes:
    identifier: 'M01', 'N13', 'S2'.
    description: what is wrong.
    killer: name of the detector that must fail (for the control: must pass).
    patches: function without arguments -> list of (object, attribute, replacement).
    survives: whether it is the control.
  """

  identifier: str
  description: str
  killer: str
  patches: Callable[[], list[Patch]]
  survives: bool = False

  @contextlib.contextmanager
  def applied(self):
    """The library with the bug in it; executables compiled before are forgotten, and so are those compiled inside."""
    run.clear()
    try:
      with contextlib.ExitStack() as stack:
        for owner, name, replacement in self.patches():
          stack.enter_context(mock.patch.object(owner, name, replacement))
        yield
    finally:
      run.clear()


MUTANTS: dict[str, Mutant] = {}


def _plant(identifier, killer, description, *, survives=False):
  """Registers the decorated function, which returns the patches."""

  def register(patches):
    MUTANTS[identifier] = Mutant(identifier, description, killer, patches, survives)
    return patches

  return register


def planted_verifier(*, accept=None, count=None, residual=None, final=None, laws=None, bonus_shift=0):
  """`verification.verify_tokens` written a second time, with places to plant a bug in; without any it is exact.

  Args:
    accept: (goal at token, drafter at token) float[K] -> acceptance probabilities.
    count: accepted bool[K] -> int32[].
    residual: (goal [V], drafter [V], token, all drafter laws [K, V]) -> unnormalised float[V].
    final: (accept uniforms, final uniforms, num_accepted) -> float[2].
    laws: drafter laws [K, V] -> drafter laws.
    bonus_shift: rows between the bonus law and the one that is read.
  """

  def verify_tokens(accept_uniforms, final_uniforms, *, tokens, length, drafter_log_probs, goal_log_probs):
    index = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    goal, drafter = jnp.exp(goal_log_probs), jnp.exp(drafter_log_probs)
    drafter = drafter if laws is None else laws(drafter)
    at_token = goal[index, tokens], drafter[index, tokens]
    accept_probs = jnp.where(index < length, _ratio(*at_token) if accept is None else accept(*at_token), 0)
    accepted = accept_uniforms < accept_probs
    counted = jnp.cumprod(accepted.astype(jnp.int32)) if count is None else count(accepted.astype(jnp.int32))
    num_accepted = jnp.sum(counted, dtype=jnp.int32)
    row = jnp.minimum(num_accepted, tokens.shape[0] - 1)
    here = goal[num_accepted], drafter[row]
    rest = jnp.maximum(here[0] - here[1], 0) if residual is None else residual(*here, tokens[row], drafter)
    rest = jnp.where(jnp.sum(rest) > 0, rest, here[0])
    final_probs = jnp.where(num_accepted < length, rest, goal[jnp.maximum(num_accepted - bonus_shift, 0)])
    uniforms = final_uniforms if final is None else final(accept_uniforms, final_uniforms, num_accepted)
    next_token = categorical.draw_from_probs(uniforms, final_probs)
    return types.Verdict(num_accepted, next_token), types.VerdictTrace(accept_probs, final_probs)

  return verify_tokens


def _ratio(goal, drafter):
  return jnp.where(drafter > 0, jnp.minimum(goal / jnp.where(drafter > 0, drafter, 1), 1), 0)


def _verifier(**planted):
  return lambda: [(verification, 'verify_tokens', planted_verifier(**planted))]


def _with(module, **changes):
  """A stand-in for `module` seen by one importer, with some functions replaced."""
  return python_types.SimpleNamespace(**(vars(module) | changes))


def _one_hot(probs):
  return jax.nn.one_hot(jnp.argmax(probs), probs.shape[0], dtype=probs.dtype)


def _drafting(*, drawn, stored):
  """`_Draft.extended` that draws from one law and stores another."""

  def extended(self, i, logits, uniforms, sampling, live):
    kept = stored(logits, sampling, live)
    pair = lax.dynamic_index_in_dim(uniforms.draft, i, axis=1, keepdims=False)
    tokens = jax.vmap(categorical.draw)(pair.astype(kept.dtype), drawn(logits, sampling, live))
    put = lambda array, value: lax.dynamic_update_index_in_dim(array, value, i, axis=1)
    return type(self)(tokens=put(self.tokens, tokens), log_probs=put(self.log_probs, kept), logits=put(self.logits, logits))

  return lambda: [(model_drafter._Draft, 'extended', extended)]


def _right(logits, sampling, live):
  return warping.sampling_log_probs(logits, sampling, live=live)


def _at_one(logits, sampling, live):
  return _right(logits, sampling.replace(temperature=jnp.ones_like(sampling.temperature)), live)


def _untruncated(logits, sampling, live):
  del live
  return warping.tempered_log_probs(warping.adjust(logits, sampling), sampling.temperature)


def _greedy(logits, sampling, live):
  return jnp.log(jax.vmap(_one_hot)(_right(logits, sampling, live)))


def _rounded(logits, sampling, live):
  law = _right(logits, sampling, live)
  return jnp.log(jnp.exp(law).astype(jnp.bfloat16).astype(law.dtype))


def _wrapped(owner, name, wrapper):
  """Patches `owner.name` with `wrapper(original, *args, **kwargs)`."""
  original = getattr(owner, name)
  return [(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))]


# A. The stored law is not the law the draft was drawn from.
_plant('M01', 'lossless_law', 'the drafter law is gathered at index i + 1')(
    _verifier(laws=lambda drafter: jnp.roll(drafter, -1, axis=0)))
_plant('M02', 'lossless_law', 'every draft token is accepted')(
    _verifier(accept=lambda goal, drafter: jnp.ones_like(goal)))
_plant('M03', 'lossless_law', 'the draft is the argmax, its law stays soft')(_drafting(drawn=_greedy, stored=_right))
_plant('M04', 'lossless_law_at_cell_edges', 'the draft is drawn at temperature 1, the ratio uses the law at T')(
    _drafting(drawn=_at_one, stored=_right))
_plant('M05', 'lossless_law_at_cell_edges', 'the draft is truncated, its stored law is not')(
    _drafting(drawn=_right, stored=_untruncated))
_plant('M06', 'acceptance_oracle', 'the drafter ignores the temperature: the law is intact, acceptance is lost')(
    _drafting(drawn=_at_one, stored=_at_one))
_plant('M07', 'lossless_law_at_cell_edges', 'the draft is drawn from probabilities rounded to bfloat16')(
    _drafting(drawn=_rounded, stored=_right))


@_plant('M18', 'lossless_law', 'the drafter law of another row of the batch')
def _():
  def propose(original, *args, **kwargs):
    proposal, state = original(*args, **kwargs)
    return proposal.replace(log_probs=jnp.roll(proposal.log_probs, 1, axis=0)), state
  return _wrapped(model_drafter.ModelDrafter, 'propose', propose)


# B. Warpers on one side, in another order, or of another row.
def _laws_with(change):
  def patches():
    original = speculative._Laws.of
    return [(speculative._Laws, 'of', staticmethod(lambda logits, sampling, live: original(
        logits, change(sampling), live)))]
  return patches


_plant('M10', 'lossless_law', 'the target is verified at temperature 1')(
    _laws_with(lambda sampling: sampling.replace(temperature=jnp.ones_like(sampling.temperature))))
_plant('M11', 'lossless_law', 'top-k, top-p and min-p are not applied to the target')(
    lambda: [(speculative, 'warping', _with(warping, truncate=lambda law, sampling, *, live: law))])


@_plant('M12', 'lossless_law', 'min-p is applied to the bonus token and dropped on verified tokens')
def _():
  def goal(original, self, params, state, proposal, target, live):
    right = original(self, params, state, proposal, target, live)
    loose = state.replace(sampling=state.sampling.replace(min_p=jnp.zeros_like(state.sampling.min_p)))
    wrong = original(self, params, loose, proposal, target, live)
    index = jnp.arange(target.plain.shape[1], dtype=jnp.int32)[None, :, None]
    return types.Goal(
        jnp.where(index == proposal.length[:, None, None], right.log_probs, wrong.log_probs), right.deferral)
  return _wrapped(speculative.SpeculativeDecoder, '_goal', goal)


def _temperatures(change):
  def patches():
    return _wrapped(warping, 'tempered_log_probs', lambda original, logits, temperature: original(
        logits, jnp.where(jnp.any(temperature == 0) & (temperature > 0), change(temperature), temperature)))
  return patches


_plant('M13', 'row_independence', 'a sentinel temperature of one row turns its neighbours\' logits upside down')(
    _temperatures(lambda temperature: -temperature))
_plant('N15', 'row_independence', 'the greedy row\'s sentinel temperature divides the logits of a mixed batch')(
    _temperatures(lambda temperature: jnp.full_like(temperature, 0.01)))


@_plant('N14', 'lossless_law', 'verification truncates before it applies the temperature')
def _():
  def goal(original, self, params, state, proposal, target, live):
    right = original(self, params, state, proposal, target, live)
    logits = target.plain  # the adjusted logits up to a constant of each row
    kept = warping.truncate(warping.plain_log_probs(logits), state.sampling, live=live) > -jnp.inf
    wrong = warping.tempered_log_probs(jnp.where(kept, logits, -jnp.inf), state.sampling.temperature)
    return types.Goal(wrong, right.deferral)
  return _wrapped(speculative.SpeculativeDecoder, '_goal', goal)


# C. Acceptance and residual.
_plant('M15', 'lossless_law', 'the first draft token is never verified')(
    _verifier(accept=lambda goal, drafter: _ratio(goal, drafter).at[0].set(1)))
_plant(
    'M16', 'lossless_law', 'control: accept iff equal to a sample of the target, else emit that sample', survives=True)(
        _verifier(accept=lambda goal, drafter: goal, residual=lambda goal, drafter, token, laws: goal.at[token].set(0)))


@_plant('M19', 'hand_tables', 'a drafter law of 0 or NaN accepts unconditionally')
def _():
  def accept(goal_log_prob, drafter_log_prob):
    ratio = jnp.minimum(jnp.exp(goal_log_prob - drafter_log_prob), 1)
    return jnp.where(ratio >= 0, ratio, 1)
  return [(acceptance, 'accept_probability', accept)]


_plant('M20', 'lossless_law', 'a rejected token is dropped and its continuation kept')(
    _verifier(count=lambda accepted: accepted))
_plant('N01', 'lossless_law', 'the residual is the target\'s law')(
    _verifier(residual=lambda goal, drafter, token, laws: goal))
_plant('N02', 'lossless_law', 'the residual is the target\'s law without the rejected token')(
    _verifier(residual=lambda goal, drafter, token, laws: goal.at[token].set(0)))
_plant('N03', 'lossless_law', 'the residual is |p - q|')(
    _verifier(residual=lambda goal, drafter, token, laws: jnp.abs(goal - drafter)))
_plant('N04', 'lossless_law', 'the residual is its own argmax')(
    _verifier(residual=lambda goal, drafter, token, laws: _one_hot(jnp.maximum(goal - drafter, 0))))
_plant('N05', 'lossless_law', 'the residual uses the drafter law of position 0')(
    _verifier(residual=lambda goal, drafter, token, laws: jnp.maximum(goal - laws[0], 0)))
_plant('N06', 'lossless_law', 'the bonus token is drawn one position too early')(_verifier(bonus_shift=1))
_plant('N07', 'lossless_law', 'the drafter law is off by 0.1 % in the ratio')(
    _verifier(accept=lambda goal, drafter: _ratio(goal, drafter * 1.001)))
_plant('N08', 'lossless_law', 'the residual has 1e-10 more on every token')(
    _verifier(residual=lambda goal, drafter, token, laws: jnp.maximum(goal - drafter, 0) + 1e-10))
_plant('N09', 'lossless_law', 'the square root of p / q is accepted')(
    _verifier(accept=lambda goal, drafter: jnp.sqrt(_ratio(goal, drafter))))
_plant('N09b', 'lossless_law', 'q / p is accepted')(
    _verifier(accept=lambda goal, drafter: _ratio(drafter, goal)))
_plant('N10', 'lossless_law', 'the resampled token reuses the uniform of the acceptance test')(
    _verifier(final=lambda accept, final, accepted: jnp.where(
        accepted < accept.shape[0], accept[jnp.minimum(accepted, accept.shape[0] - 1)], final)))


@_plant('N13', 'admissible_policies', 'a drafted token is dropped because of its own low probability')
def _():
  def propose(original, *args, **kwargs):
    proposal, state = original(*args, **kwargs)
    own = jnp.exp(jnp.take_along_axis(proposal.log_probs, proposal.tokens[:, :, None], axis=2)[:, :, 0])
    sure = jnp.sum(jnp.cumprod((own >= 0.3).astype(jnp.int32), axis=1), axis=1, dtype=jnp.int32)
    return proposal.replace(length=jnp.minimum(proposal.length, sure)), state

  return _wrapped(adversarial.AdversarialDrafter, 'propose', propose)


@_plant('S1', 'hand_tables', 'the acceptance test is u <= a: a uniform of exactly 0 accepts anything')
def _():
  def verify(original, accept_uniforms, final_uniforms, **arrays):
    return original(accept_uniforms - jnp.finfo(accept_uniforms.dtype).tiny, final_uniforms, **arrays)
  return _wrapped(verification, 'verify_tokens', verify)


@_plant('M43', 'draw_takes_no_massless_token', 'a uniform of exactly 0 draws the first token, mass or not')
def _():
  return [(categorical, '_pick', lambda uniform, probs: jnp.minimum(
      jnp.sum(jnp.cumsum(probs) < uniform * jnp.sum(probs)), probs.shape[0] - 1).astype(jnp.int32))]


# D. Caches.
_DRAFTER = model_drafter.ModelDrafter


@_plant('M21', 'caches_follow_text', 'after full acceptance the drafter\'s cache claims a token that was never fed')
def _():
  return [(_DRAFTER, 'commit', lambda self, params, state, *, length, **rest: self.model.rewind(state, length - 1))]


@_plant('M22', 'caches_follow_text', 'ragged prompts sit in the wrong slots of the drafter\'s cache')
def _():
  def init(original, self, params, prompt, prefill, capacity):
    shift = prompt.tokens.shape[1] - prompt.length
    index = jnp.arange(prompt.tokens.shape[1], dtype=jnp.int32)[None, :] - shift[:, None]
    right_aligned = jnp.take_along_axis(prompt.tokens, jnp.maximum(index, 0), axis=1)
    return original(self, params, prompt._replace(tokens=right_aligned), prefill, capacity)
  return _wrapped(_DRAFTER, 'init', init)


@_plant('M23', 'caches_follow_text', 'the drafter\'s cache is not rewound after a round that accepted nothing')
def _():
  def commit_state(original, self, params, state, *, verdict, **rest):
    rewound = original(self, params, state, verdict=verdict, **rest)
    stale = jnp.where(verdict.num_accepted == 0, self.model.length(state), self.model.length(rewound))
    return self.model.rewind(rewound, stale)
  return _wrapped(_DRAFTER, 'commit', commit_state)


@_plant('M26', 'lossless_law', 'rejected tokens stay in the cache')
def _():
  return [(toy.ToyLM, 'rewind', lambda self, cache, length: cache)]


@_plant('N16', 'acceptance_oracle', 'the batch commits the smallest accepted count of its rows')
def _():
  def commit_round(original, self, params, state, live, proposal, output, goal, verdict, *rest):
    fewest = jnp.min(jnp.where(live, verdict.num_accepted, proposal.tokens.shape[1]))
    fewer = jnp.minimum(fewest, verdict.num_accepted)
    drafted = jnp.take_along_axis(
        proposal.tokens, jnp.minimum(fewer, proposal.tokens.shape[1] - 1)[:, None], axis=1)[:, 0]
    token = jnp.where(fewer < verdict.num_accepted, drafted, verdict.next_token)
    return original(self, params, state, live, proposal, output, goal, types.Verdict(fewer, token), *rest)
  return _wrapped(speculative.SpeculativeDecoder, '_commit', commit_round)


@_plant('N19', 'self_draft', 'after full acceptance the last draft token is never fed to the drafter')
def _():
  def propose(original, self, params, state, uniforms, *, tokens, length, **rest):
    behind = self.model.length(state)
    pending = jnp.take_along_axis(tokens, length[:, None] - 1, axis=1)
    one = jnp.ones_like(behind)
    tokens = commit.append(tokens, pending, length=behind, count=one)
    return original(self, params, state, uniforms, tokens=tokens, length=behind + 1, **rest)
  return _wrapped(_DRAFTER, 'propose', propose)


# F. EOS and limits.
def _trimming(change):
  return lambda: _wrapped(commit, 'trim', change)


@_plant('M35', 'lossless_law', 'an EOS inside the block is ignored')
@_trimming
def _(original, block, *, num_emitted, remaining, eos_ids, **rest):
  kept = jnp.minimum(num_emitted, remaining)
  return commit.Trimmed(kept, jnp.any(block[jnp.maximum(kept - 1, 0)] == eos_ids), jnp.zeros((), bool))


@_plant('M36', 'lossless_law', 'one more token behind an accepted EOS')
@_trimming
def _(original, block, *, num_emitted, remaining, **rest):
  kept, found, stopped = original(block, num_emitted=num_emitted, remaining=remaining, **rest)
  more = jnp.minimum(kept + 1, jnp.minimum(num_emitted, remaining))
  return commit.Trimmed(jnp.where(found, more, kept), found, stopped)


@_plant('M37', 'lossless_law', 'a drafted EOS that was rejected finishes the row')
def _():
  def emitted_block(draft_tokens, verdict):
    index = jnp.arange(draft_tokens.shape[0] + 1, dtype=jnp.int32)
    return jnp.where(index == verdict.num_accepted, verdict.next_token, jnp.pad(draft_tokens, (0, 1), constant_values=-2))

  def trim(original, block, *, eos_ids, **rest):
    kept, _, stopped = original(block, eos_ids=eos_ids, **rest)
    return commit.Trimmed(kept, jnp.any((block[:, None] == eos_ids[None, :]) & (eos_ids >= 0)[None, :]), stopped)

  return [(commit, 'emitted_block', emitted_block), *_wrapped(commit, 'trim', trim)]


@_plant('S2', 'lossless_law', 'the limit is off by one')
@_trimming
def _(original, block, *, remaining, **rest):
  return original(block, remaining=remaining + 1, **rest)


@_plant('N23', 'acceptance_oracle', 'tokens behind EOS and limit are counted')
def _():
  def count(original, stats, live, proposal, verdict, num_kept, **rest):
    counted = original(stats, live, proposal, verdict, num_kept, **rest)
    return counted.replace(emitted=stats.emitted + jnp.where(live, verdict.num_accepted + 1, 0))
  return _wrapped(speculative, 'count_round', count)


# G. Random numbers.
_plant('M39', 'address_ledger', 'all examples share one stream')(
    lambda: _wrapped(keys, 'row_keys', lambda original, seed, example, sample: original(
        seed, jnp.zeros_like(example), sample)))
_plant('M40', 'address_ledger', 'the seed is ignored')(
    lambda: _wrapped(keys, 'row_keys', lambda original, seed, example, sample: original(
        jnp.zeros_like(seed), example, sample)))
_plant('M41', 'row_independence', 'random numbers depend on how far the batch mates are')(
    lambda: _wrapped(keys, 'round_uniforms', lambda original, key, start, **rest: original(
        key, jnp.full_like(start, jnp.max(start)), **rest)))
_plant('N22', 'uniform_resolution', 'uniforms are drawn in bfloat16')(
    lambda: _wrapped(keys, 'round_uniforms', lambda original, *args, dtype, **rest: jax.tree.map(
        lambda x: x.astype(jnp.bfloat16).astype(dtype), original(*args, dtype=dtype, **rest))))


@_plant('N25', 'address_ledger', 'uniforms are addressed by token position')
def _():
  def by_position(original, key, start, *, num_draft_tokens, dtype):
    at = [original(key, start + i, num_draft_tokens=1, dtype=dtype) for i in range(num_draft_tokens + 1)]
    first = lambda name: jnp.stack([getattr(one, name)[:, 0] for one in at], axis=1)
    return types.RoundUniforms(
        draft=first('draft'), policy=first('policy'), accept=first('accept')[:, :num_draft_tokens], final=at[0].final)
  return _wrapped(keys, 'round_uniforms', by_position)


@_plant('S3', 'address_ledger', 'two roles share their random numbers')
def _():
  def shared(original, *args, num_draft_tokens, **rest):
    uniforms = original(*args, num_draft_tokens=num_draft_tokens, **rest)
    return uniforms.replace(accept=uniforms.policy[:, :num_draft_tokens])
  return _wrapped(keys, 'round_uniforms', shared)


# H. Bad input, status, rules.
_plant('N24', 'bad_inputs', 'a seed of 2^32 is taken for 0')(lambda: [(checks, 'seed', lambda value: value % 2**32)])
_plant('M44', 'bad_inputs', 'unequal vocabularies are let through')(
    lambda: [(checks, 'matching_vocabularies', lambda drafter, target: None)])


@_plant('S4', 'nonfinite_row_stops', 'logits are not tested for NaN')
def _():
  none = lambda target, block, verdict, trace: rounds.Broken(
      jnp.full_like(verdict.num_accepted, target.tempered.shape[1] + 1), jnp.zeros_like(verdict.num_accepted, bool))
  return [(speculative, '_first_broken', none)]


_plant('S5', 'capacity_stops', 'rounds need no room')(
    lambda: [(speculative.SpeculativeDecoder, 'slack', property(lambda self: 0))])


@_plant('S6', 'token_rule_law', 'the drafter\'s law behind its last draft token is that of the token before')
def _():
  def with_bonus(self, logits, index):
    del logits, index
    return self.replace(logits=self.logits.at[:, -1].set(self.logits[:, -2]))
  return [(model_drafter._Draft, 'with_bonus', with_bonus)]


@_plant('S7', 'target_bonus_law', 'bonus="target" is ignored')
def _():
  return _wrapped(speculative.SpeculativeDecoder, '_goal', lambda original, self, *args: original(
      self.replace(bonus='rule'), *args))


@_plant('S8', 'token_rule_law', 'criteria read the tempered laws')
def _():
  original = speculative._Laws.of

  def of(logits, sampling, live):
    laws = original(logits, sampling, live)
    return laws.replace(plain=laws.tempered)

  return [(speculative._Laws, 'of', staticmethod(of))]


@_plant('S9', 'rule_tables', 'the token rule adds the target only outside its set')
def _():
  def token_mix(inputs, good):
    drafter, target = jnp.exp(inputs.drafter_log_probs), jnp.where(good, 0, jnp.exp(inputs.target_log_probs))
    deferral = jnp.sum(jnp.where(good, 0, drafter))
    return types.Goal(jnp.log(jnp.where(good, drafter, 0) + deferral * target / jnp.sum(target)), deferral)
  return [(token_specific, 'token_mix', token_mix)]


for _mutant in rule_mutants.PLANTED:
  _plant(_mutant.identifier, _mutant.killer, _mutant.description)(_mutant.patches)
