"""Planted bugs of the token and the sequence cascade, as in `mutants`; each must be killed by its detector.

    with routing_mutants.MUTANTS['R01'].applied():
      routing_detectors.DETECTORS['token_cascade_law']()   # raises AssertionError
"""

import jax
import jax.numpy as jnp
from jax import lax

from specjax import routers
from specjax.decode import feeding
from specjax.decode import rounds
from specjax.decode import routed
from specjax.decode import sequence_cascade
from specjax.ops import commit
from specjax.ops import divergences
from specjax.ops import keys
from specjax.ops import probes
from specjax.ops import warping
from specjax.testing import mutants

MUTANTS: dict[str, mutants.Mutant] = {}


def _plant(identifier, killer, description, *, survives=False):
  """Registers the decorated function, which returns the patches."""

  def register(patches):
    MUTANTS[identifier] = mutants.Mutant(identifier, description, killer, patches, survives)
    return patches

  return register


def planted_feed(*, first=0, end=0, read=-1):
  """`feeding.feed` written a second time, with places to plant a bug in; without any it is exact.

  Args:
    first: tokens between the first one that is missing and the first one that is fed.
    end: tokens between the end of the text and where the feeding ends.
    read: index of the logits that are read, from the number of tokens fed.
  """

  def feed(model, params, cache, tokens, *, until, needed, allowed, width):
    until = until + end

    def one_pass(fed):
      behind = model.length(fed.cache)
      count = jnp.where(allowed, jnp.clip(until - behind, 0, width), 0)
      index = jnp.clip(behind[:, None] + first + jnp.arange(width, dtype=jnp.int32)[None, :], 0, tokens.shape[1] - 1)
      output, cache = model.extend(params, fed.cache, jnp.take_along_axis(tokens, index, axis=1), count=count)
      at = jnp.clip(count + read, 0, width - 1)[:, None, None]
      logits = jnp.where((count > 0)[:, None], jnp.take_along_axis(output.logits, at, axis=1)[:, 0], fed.logits)
      return feeding.Fed(logits, cache, fed.passes + 1)

    logits = jnp.zeros((tokens.shape[0], model.vocab_size), jax.tree.leaves(params)[0].dtype)
    return lax.while_loop(
        lambda fed: jnp.any(needed & (model.length(fed.cache) < until)), one_pass,
        feeding.Fed(logits, cache, jnp.int32(0)))

  return feed


def _feed(**planted):
  return lambda: [(feeding, 'feed', planted_feed(**planted))]


def _wrapped(owner, name, wrapper):
  """Patches `owner.name` with `wrapper(original, *args, **kwargs)`."""
  original = getattr(owner, name)
  return lambda: [(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))]


_ROUTED, _SEQUENCE = routed.RoutedDecoder, sequence_cascade.SequenceCascade

# A. The target's cache.
_plant('R00', 'token_cascade_law', 'control: the feeding written a second time', survives=True)(_feed())
_plant('R01', 'token_cascade_law', 'the target is fed the tokens behind the pending ones')(_feed(first=1))
_plant('R02', 'token_cascade_law', 'the target catches up to the token before the last')(_feed(end=-1))
_plant('R03', 'token_cascade_law', 'the law is read at the first token of the chunk')(_feed(read=-2))
_plant('R04', 'finished_rows_are_inert', 'finished rows are fed in the passes of the others')(
    _wrapped(_ROUTED, '_feed_target', lambda original, self, params, state, *, needed, live: original(
        self, params, state, needed=needed, live=jnp.ones_like(live))))

# B. Who is asked.
_plant('R05', 'token_cascade_law', 'the decision is turned round')(
    _wrapped(_ROUTED, '_defer', lambda original, self, params, state, output, target, uniforms, live: live & ~original(
        self, params, state, output, target, uniforms, live)))
_plant('R06', 'token_cascade_law', 'one row that defers makes its neighbours defer')(
    _wrapped(_ROUTED, '_defer', lambda original, self, params, state, output, target, uniforms, live: live & jnp.any(
        original(self, params, state, output, target, uniforms, live))))
_plant('R07', 'routers_see_no_target', 'a router that is no oracle is given stale logits of the target')(
    _wrapped(_ROUTED, '_defer', lambda original, self, params, state, output, target, uniforms, live: original(
        self, params, state, output, jnp.zeros_like(output.logits[:, 0]) if target is None else target, uniforms, live)))


@_plant('R08', 'token_cascade_law', 'the router reads the tempered law')
def _():
  def laws(logits, sampling, live):
    del live
    tempered = warping.tempered_log_probs(warping.adjust(logits, sampling), sampling.temperature)
    return tempered, tempered
  return [(routed, '_laws', laws)]


_plant('R09', 'token_cascade_counters', 'every pass of the target counts as a call of every row')(
    _wrapped(rounds, 'count_token', lambda original, stats, live, kept, *, target_calls, target_passes, **rest: original(
        stats, live, kept, target_calls=live & (target_passes > 0), target_passes=target_passes, **rest)))
_plant('R10', 'broken_law_stops_its_reader', 'logits are not tested for NaN')(
    _wrapped(rounds, 'draw', lambda original, *args, **rest: original(*args, **rest)._replace(
        is_broken=jnp.zeros_like(args[0][:, 0], bool))))

# C. The second answer.
_plant('R11', 'second_answer_has_its_own_random_numbers', 'the second answer reuses the random numbers of the first')(
    lambda: [(keys, 'phase_start', lambda round_start, phase: round_start.astype(jnp.uint32))])
_plant('R12', 'sequence_cascade_law', 'the last token does not count for the confidence')(
    _wrapped(sequence_cascade, 'answer_confidence', lambda original, kind, log_probs, start, stop, *, level: original(
        kind, log_probs, start, jnp.maximum(stop - 1, start), level=level)))


@_plant('R13', 'sequence_cascade_law', 'the confidence is read from the sampling law')
def _():
  def with_log_prob(log_probs, logits, drawn, state, drafting):
    law = warping.sampling_log_probs(logits, state.sampling, live=drafting)
    at_token = jnp.take_along_axis(law, drawn[:, None], axis=1).astype(log_probs.dtype)
    return commit.append(log_probs, at_token, length=state.length, count=drafting.astype(jnp.int32))
  return [(sequence_cascade, '_with_log_prob', with_log_prob)]


_plant('R14', 'finished_rows_are_inert', 'a row that was stopped from outside is judged')(
    _wrapped(_SEQUENCE, '_judge', lambda original, self, state, drafting: original(
        self, state, state.drafter_state.phase == sequence_cascade.DRAFTING)))


@_plant('R15', 'sequence_cascade_law', 'the second answer begins behind the first token of the first')
def _():
  original = _SEQUENCE._judge

  def judge(self, state, drafting):
    after = original(self, state, drafting)
    again = after.drafter_state.phase > state.drafter_state.phase
    return after.replace(length=jnp.where(again, after.length + 1, after.length))

  return [(_SEQUENCE, '_judge', judge)]


# D. Backoff decoding.
_KL = routers.KLOracle
_plant('R16', 'backoff_law', 'the divergence is taken the other way round')(
    _wrapped(divergences, 'kl_divergence', lambda original, first, second: original(second, first)))
_plant('R17', 'backoff_law', 'the divergence is that of the sampling laws')(
    _wrapped(_KL, '__call__', lambda original, self, params, inputs: original(self, params, inputs.replace(
        drafter_plain_log_probs=inputs.drafter_log_probs, target_plain_log_probs=inputs.target_log_probs))))
_plant('R18', 'backoff_law', 'the flipped oracle is not flipped')(
    _wrapped(_KL, '__call__', lambda original, self, params, inputs: original(
        self.replace(is_flipped=False), params, inputs)))
_plant('R19', 'backoff_law', 'the learned router keeps what it should defer')(
    _wrapped(routers.LearnedRouter, '__call__', lambda original, self, params, inputs: ~original(self, params, inputs)))
_plant('R20', 'probe_by_hand', 'features are not standardised')(
    _wrapped(probes, 'logit', lambda original, params, features: original(params | {
        'mean': jnp.zeros_like(params['mean']), 'scale': jnp.ones_like(params['scale'])}, features)))
_plant('R21', 'probe_by_hand', 'knots are looked up at the uncalibrated logit')(
    _wrapped(probes, 'probability', lambda original, params, features: original(
        params | {'temperature': jnp.ones_like(params['temperature'])} if params['knots']['x'].size else params, features)))
