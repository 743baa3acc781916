"""The routed loop: the drafter writes, a router says which tokens the target writes instead. Nothing is taken back.

    extend the drafter -> router -> catch the target up where it is asked -> draw -> commit -> count

The target's cache lags by every token it was not asked for; it catches up in chunks when it is asked again.

    tokens   a  b  c  d  e  f  .  .        length = 6, f is pending for the drafter
    drafter  a  b  c  d  e
    target   a  b                          the next deferral feeds c d e f in chunks, its law is read behind f
"""

from typing import Any, ClassVar

from flax import struct
import jax
import jax.numpy as jnp

from specjax.core import protocols
from specjax.core import types
from specjax.decode import feeding
from specjax.decode import rounds
from specjax.ops import keys
from specjax.ops import warping


@struct.dataclass(kw_only=True)
class RoutedDecoder:
  """Every token is drawn from the drafter's sampling law or, where the router defers, from the target's.

  Parameters are one dict: `params['target']`, `params['drafter']` and, for learned routers, `params['router']`. There are
  no log-probabilities: the target does not see every token.

  Attributes:
    target, drafter: the `LanguageModel`s, static.
    router: a `Router`, a pytree.
    chunk: static, tokens per row that one target pass feeds; the law does not depend on it.
  """

  target: protocols.LanguageModel = struct.field(pytree_node=False)
  drafter: protocols.LanguageModel = struct.field(pytree_node=False)
  router: Any
  chunk: int = struct.field(pytree_node=False)
  num_draft_tokens: ClassVar[int] = 0
  num_phases: ClassVar[int] = 1

  @property
  def slack(self):
    """Slots a row needs beyond its last token to run one more round."""
    return self.chunk

  def init(self, params, requests, capacity):
    """The state before the first round, both prompts prefilled; arguments as in `SpeculativeDecoder.init`."""
    return rounds.first_state(
        requests, capacity, slack=self.slack, num_draft_tokens=0,
        target_cache=self.target.prefill(params['target'], requests.prompt, capacity)[1],
        drafter_state=self.drafter.prefill(params['drafter'], requests.prompt, capacity)[1])

  def step(self, params, state):
    """The state after one token of every live row."""
    uniforms = keys.round_uniforms(
        state.key, state.length, num_draft_tokens=0,
        dtype=warping.probability_dtype(state.sampling.temperature.dtype))
    return self.step_with(params, state, uniforms)[0]

  def step_with(self, params, state, uniforms):
    """As `step` with the round's `RoundUniforms` given; returns (state, `StepTrace`)."""
    live = state.status == types.Status.RUNNING
    pending = jnp.take_along_axis(state.tokens, state.length[:, None] - 1, axis=1)
    output, drafter_cache = self.drafter.extend(
        params['drafter'], state.drafter_state, pending, count=live.astype(jnp.int32))
    if self.router.needs_target:
      fed = self._feed_target(params, state, needed=live, live=live)
      defer = self._defer(params, state, output, fed.logits, uniforms, live)
    else:
      defer = self._defer(params, state, output, None, uniforms, live)
      fed = self._feed_target(params, state, needed=defer, live=live)
    logits = rounds.choose_logits(defer, fed.logits, output.logits[:, 0])
    drawn = rounds.draw(logits, state.sampling, uniforms, live=live)
    is_broken = drawn.is_broken
    if self.router.needs_target:
      is_broken |= rounds.is_broken(fed.logits, state.sampling)
    # One past the block where nothing is broken.
    broken = rounds.Broken(jnp.where(is_broken, 0, 2), drawn.is_broken & ~defer)
    committed = rounds.commit_block(
        state, live, drawn.tokens[:, None], broken, num_emitted=live.astype(jnp.int32), slack=self.slack)
    stats = rounds.count_token(
        state.stats, live, committed.num_kept, target_calls=defer, target_passes=fed.passes, drafter_calls=live)
    state = state.replace(
        tokens=committed.tokens, length=committed.length, status=committed.status, target_cache=fed.cache,
        drafter_state=drafter_cache, stats=stats)
    return state, drawn.trace

  def _feed_target(self, params, state, *, needed, live):
    return feeding.feed(
        self.target, params['target'], state.target_cache, state.tokens, until=state.length, needed=needed, allowed=live,
        width=self.chunk)

  def _defer(self, params, state, output, target_logits, uniforms, live):
    """bool[B], the live rows whose next token the target draws."""
    sampled, plain = _laws(output.logits[:, 0], state.sampling, live)
    has_target = target_logits is not None
    target_sampled, target_plain = _laws(target_logits, state.sampling, live) if has_target else (None, None)
    inputs = types.RouterInputs(
        drafter_log_probs=sampled,
        drafter_plain_log_probs=plain,
        drafter_features=None if output.hidden is None else output.hidden[:, 0],
        target_log_probs=target_sampled,
        target_plain_log_probs=target_plain,
        uniform=uniforms.policy[:, 0],
        position=state.length,
    )
    return jax.vmap(lambda one: self.router(params.get('router'), one))(inputs) & live


def _laws(logits, sampling, live):
  """(sampling law, law at temperature 1) float[B, V] of raw logits. What the router does not read is never computed."""
  adjusted = warping.adjust(logits, sampling)
  sampled = warping.truncate(warping.tempered_log_probs(adjusted, sampling.temperature), sampling, live=live)
  return sampled, warping.plain_log_probs(adjusted)
