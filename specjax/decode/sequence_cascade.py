"""The sequence cascade: the drafter writes the whole answer, and where it was not confident the target writes another.

    choose the model by the row's phase -> extend it -> draw -> commit -> judge the answers that ended -> count

    row 0   drafter: a b c EOS   confidence below the threshold   target: d e EOS        emitted  d e EOS
    row 1   drafter: f g EOS     confident                                               emitted  f g EOS

Rows in either phase run side by side; a model that no row needs does not run.
"""

from typing import Any, ClassVar, Literal

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

from specjax.core import protocols
from specjax.core import types
from specjax.decode import feeding
from specjax.decode import rounds
from specjax.ops import commit
from specjax.ops import keys
from specjax.ops import warping

Confidence = Literal['mean_log_prob', 'sum_log_prob', 'quantile', 'minimum']
DRAFTING, REDOING = 0, 1
_ANSWERED = (types.Status.EOS, types.Status.STOP, types.Status.LIMIT, types.Status.CAPACITY)


@struct.dataclass(kw_only=True)
class FirstAnswer:
  """The drafter's side of a sequence cascade.

  Attributes:
    cache: the drafter's.
    phase: int32[B], DRAFTING or REDOING.
    log_probs: float[B, L], the drafter's log-probability (temperature 1) of each token it wrote, at the token's index.
  """

  cache: Any
  phase: jax.Array
  log_probs: jax.Array


@struct.dataclass(kw_only=True)
class SequenceCascade:
  """The drafter's answer where its confidence is >= `threshold`, else a fresh answer of the target.

  The second answer has its own random numbers. `DecodeStats` counts both: `drafter_calls` and `target_calls` are the tokens
  that each model wrote, `emitted` those of the answer that stands.

  Attributes:
    target, drafter: the `LanguageModel`s, static.
    confidence: static; of the probabilities at temperature 1 of the tokens the drafter drew (an EOS is one of them):
      'mean_log_prob' and 'sum_log_prob' in nats, 'minimum' and 'quantile' a probability.
    threshold: float[], in the unit of the confidence.
    quantile: float[] in [0, 1], the level of 'quantile' (0 is the minimum), else None.

  Source: Narasimhan et al. 2025, SeqCascade[Chow]; the authors' measure of confidence is not published.
  """

  target: protocols.LanguageModel = struct.field(pytree_node=False)
  drafter: protocols.LanguageModel = struct.field(pytree_node=False)
  confidence: Confidence = struct.field(pytree_node=False)
  threshold: Any
  quantile: Any = None
  num_draft_tokens: ClassVar[int] = 0
  num_phases: ClassVar[int] = 2

  @property
  def slack(self):
    """Slots a row needs beyond its last token to run one more round."""
    return 1

  def init(self, params, requests, capacity):
    """The state before the first round, both prompts prefilled; arguments as in `SpeculativeDecoder.init`."""
    prompt = requests.prompt
    dtype = warping.probability_dtype(requests.sampling.temperature.dtype)
    first = FirstAnswer(
        cache=self.drafter.prefill(params['drafter'], prompt, capacity)[1], phase=jnp.zeros_like(prompt.length),
        log_probs=jnp.zeros((prompt.length.shape[0], capacity), dtype))
    return rounds.first_state(
        requests, capacity, slack=self.slack, num_draft_tokens=0,
        target_cache=self.target.prefill(params['target'], prompt, capacity)[1], drafter_state=first)

  def step(self, params, state):
    """The state after one token of every live row."""
    uniforms = keys.round_uniforms(
        state.key, keys.phase_start(state.length, state.drafter_state.phase), num_draft_tokens=0,
        dtype=warping.probability_dtype(state.sampling.temperature.dtype))
    return self.step_with(params, state, uniforms)[0]

  def step_with(self, params, state, uniforms):
    """As `step` with the round's `RoundUniforms` given; returns (state, `StepTrace`)."""
    live, first = state.status == types.Status.RUNNING, state.drafter_state
    redoing = live & (first.phase == REDOING)
    drafting = live & (first.phase == DRAFTING)
    extend = lambda model, name, cache, rows: feeding.feed(
        model, params[name], cache, state.tokens, until=state.length, needed=rows, allowed=rows, width=1)
    drafter = extend(self.drafter, 'drafter', first.cache, drafting)
    target = extend(self.target, 'target', state.target_cache, redoing)
    logits = rounds.choose_logits(redoing, target.logits, drafter.logits)
    drawn = rounds.draw(logits, state.sampling, uniforms, live=live)
    broken = rounds.Broken(jnp.where(drawn.is_broken, 0, 2), drafting)
    committed = rounds.commit_block(
        state, live, drawn.tokens[:, None], broken, num_emitted=live.astype(jnp.int32), slack=self.slack)
    first = FirstAnswer(
        cache=drafter.cache, phase=first.phase,
        log_probs=_with_log_prob(first.log_probs, logits, drawn.tokens, state, drafting))
    stats = rounds.count_token(
        state.stats, live, committed.num_kept, target_calls=redoing, target_passes=target.passes, drafter_calls=drafting)
    state = state.replace(
        tokens=committed.tokens, length=committed.length, status=committed.status, target_cache=target.cache,
        drafter_state=first, stats=stats)
    return self._judge(state, drafting), drawn.trace

  def _judge(self, state, drafting):
    """The state in which the rows whose answer the drafter just ended without confidence start again with the target."""
    answered = drafting & jnp.any(state.status[:, None] == jnp.array(_ANSWERED, jnp.int32)[None, :], axis=1)
    first = state.drafter_state
    level = None if self.quantile is None else jnp.asarray(self.quantile, first.log_probs.dtype)

    def unsure():
      confidence = jax.vmap(lambda *row: answer_confidence(self.confidence, *row, level=level))(
          first.log_probs, state.prompt_length, state.length)
      return confidence < jnp.asarray(self.threshold, confidence.dtype)

    restart = answered & lax.cond(jnp.any(answered), unsure, lambda: jnp.zeros_like(answered))
    length = jnp.where(restart, state.prompt_length, state.length)
    return state.replace(
        length=length,
        status=jnp.where(restart, types.Status.RUNNING, state.status),
        drafter_state=first.replace(phase=jnp.where(restart, REDOING, first.phase)),
        stats=state.stats.replace(emitted=state.stats.emitted - (state.length - length)))


def _with_log_prob(log_probs, logits, drawn, state, drafting):
  """`log_probs` float[B, L] with the log-probability at temperature 1 of the tokens `drawn` int32[B] by drafting rows."""
  plain = warping.plain_log_probs(warping.adjust(logits, state.sampling))
  at_token = jnp.take_along_axis(plain, drawn[:, None], axis=1).astype(log_probs.dtype)
  return commit.append(log_probs, at_token, length=state.length, count=drafting.astype(jnp.int32))


def answer_confidence(kind, log_probs, start, stop, *, level):
  """float[], the confidence in an answer. *Unbatched*.

  Args:
    kind: 'mean_log_prob', 'sum_log_prob' (nats), 'quantile' or 'minimum' (probabilities).
    log_probs: float[L], the log-probability of each token.
    start, stop: int32[], where the answer begins and ends; it has at least one token.
    level: float[] in [0, 1] for 'quantile'; between two tokens the value is interpolated linearly.
  """
  index = jnp.arange(log_probs.shape[0], dtype=jnp.int32)
  written = (index >= start) & (index < stop)
  count = stop - start
  if kind in ('mean_log_prob', 'sum_log_prob'):
    total = jnp.sum(jnp.where(written, log_probs, 0))
    return total if kind == 'sum_log_prob' else total / jnp.maximum(count, 1).astype(total.dtype)
  ordered = jnp.sort(jnp.exp(jnp.where(written, log_probs, jnp.inf)))
  if kind == 'minimum':
    return ordered[0]
  position = level * (count - 1).astype(level.dtype)
  low = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, jnp.maximum(count - 1, 0))
  high = jnp.minimum(low + 1, jnp.maximum(count - 1, 0))
  return ordered[low] + (position - low.astype(level.dtype)) * (ordered[high] - ordered[low])
