"""The one decoding loop body: propose, extend the target, rule, verify, commit, rewind, count."""

from typing import Any, ClassVar, Literal

from flax import struct
import jax
import jax.numpy as jnp

from specjax.core import errors
from specjax.core import protocols
from specjax.core import types
from specjax.decode import blocks
from specjax.decode import rounds
from specjax.ops import commit
from specjax.ops import keys
from specjax.ops import trees
from specjax.ops import typical
from specjax.ops import verification
from specjax.ops import warping


@struct.dataclass(kw_only=True)
class TokenVerifier:
  """Token-level verification of a chain (Leviathan et al. 2023, Algorithm 1)."""

  def __call__(self, accept_uniforms, final_uniforms, *, tokens, length, drafter_log_probs, goal_log_probs):
    return verification.verify_tokens(
        accept_uniforms, final_uniforms, tokens=tokens, length=length, drafter_log_probs=drafter_log_probs,
        goal_log_probs=goal_log_probs)


@struct.dataclass(kw_only=True)
class BlockVerifier:
  """Block verification of a chain: at least as many tokens kept (Sun et al. 2025, Algorithm 2).

  The law is that of token verification, but where `bonus='target'` gives the token behind a whole draft another law than
  the rule's: whole drafts are kept more often here.
  """

  def __call__(self, accept_uniforms, final_uniforms, *, tokens, length, drafter_log_probs, goal_log_probs):
    return verification.verify_block(
        accept_uniforms, final_uniforms, tokens=tokens, length=length, drafter_log_probs=drafter_log_probs,
        goal_log_probs=goal_log_probs)


@struct.dataclass(kw_only=True)
class RecursiveVerifier:
  """Recursive rejection sampling down a tree, with or without replacement (Miao et al. 2024; Chen et al. 2024)."""

  def __call__(self, accept_uniforms, final_uniforms, **block):
    return trees.verify_recursively(accept_uniforms, final_uniforms, **block)


@struct.dataclass(kw_only=True)
class TraversalVerifier:
  """Traversal verification of a tree, from its leaves to its root (Weng et al. 2025)."""

  def __call__(self, accept_uniforms, final_uniforms, **block):
    return trees.verify_by_traversal(accept_uniforms, final_uniforms, **block)


@struct.dataclass(kw_only=True)
class KSequentialVerifier:
  """K-SEQ down a tree whose children were drawn with replacement (Sun et al. 2023, SpecTr)."""

  def __call__(self, accept_uniforms, final_uniforms, **block):
    return trees.verify_k_sequentially(accept_uniforms, final_uniforms, **block)


@struct.dataclass(kw_only=True)
class TypicalVerifier:
  """Typical acceptance of a tree (Cai et al. 2024, Medusa): *lossy* above temperature 0, where it is greedy decoding.

  A token stays where its probability exceeds min(epsilon, delta exp(-entropy)) of the target's sampling law, whatever it was
  drafted with. `ops/typical.py` says which law results.

  Attributes:
    epsilon: in [0, 1), traced.
    delta: > 0, traced; the paper's choice is the square root of epsilon.
  """

  epsilon: Any = 0.09
  delta: Any = 0.3
  knobs: ClassVar[tuple[str, ...]] = ('epsilon', 'delta')

  def __call__(self, accept_uniforms, final_uniforms, **block):
    return typical.verify_typically(
        accept_uniforms, final_uniforms, epsilon=self.epsilon, delta=self.delta, **block)


@struct.dataclass(kw_only=True)
class SpeculativeDecoder:
  """Draft, verify, commit. Autoregressive decoding is the drafter that proposes nothing; drafts are a chain or a tree.

  Parameters are one dict: `params['target']`, `params['drafter']` and, for learned rules, `params['rule']`.

  Attributes:
    target: the `LanguageModel` whose law matters, static.
    drafter, rule, verifier, recorder: the parts, pytrees; a drafter of trees wants a verifier of trees.
    bonus: static; the law of the token after full acceptance: 'rule' (the output law does not depend on K; one more
      drafter pass for rules that need its law) or 'target' (the law is round-structured).
    with_log_probs: static; keep the target's log-probability of what is emitted.
  """

  target: protocols.LanguageModel = struct.field(pytree_node=False)
  drafter: Any
  rule: Any
  verifier: Any = TokenVerifier()
  recorder: Any = None
  bonus: Literal['rule', 'target'] = struct.field(pytree_node=False, default='rule')
  with_log_probs: bool = struct.field(pytree_node=False, default=True)
  num_phases: ClassVar[int] = 1

  @property
  def num_draft_tokens(self):
    """K, the most tokens a round drafts; of trees all nodes."""
    return self.drafter.num_draft_tokens

  @property
  def max_accepted(self):
    """The most draft tokens a round keeps: K of a chain, the depth of a tree."""
    return getattr(self.drafter, 'max_depth', self.drafter.num_draft_tokens)

  @property
  def slack(self):
    """Slots a row needs beyond its last token to run one more round."""
    return self.drafter.num_draft_tokens + 1

  def init(self, params, requests, capacity):
    """The state before the first round: prompts prefilled, last prompt token pending.

    Args:
      params: dict of parameters.
      requests: `Requests`.
      capacity: static, L: prompt + new tokens + `slack`.
    """
    prompt = requests.prompt
    prefill, cache = self.target.prefill(params['target'], prompt, capacity)
    return rounds.first_state(
        requests, capacity, slack=self.slack, num_draft_tokens=self.max_accepted, target_cache=cache,
        drafter_state=self.drafter.init(self._drafter_params(params), prompt, prefill, capacity),
        with_log_probs=self.with_log_probs,
        record=None if self.recorder is None else self.recorder.init(prompt.length.shape[0], capacity))

  def step(self, params, state):
    """The state after one round of every live row."""
    uniforms = keys.round_uniforms(
        state.key, state.length, num_draft_tokens=self.num_draft_tokens,
        dtype=warping.probability_dtype(state.sampling.temperature.dtype))
    return self.step_with(params, state, uniforms)[0]

  def step_with(self, params, state, uniforms):
    """As `step` with the round's `RoundUniforms` given; returns (state, `StepTrace`)."""
    live = state.status == types.Status.RUNNING
    proposal, drafter_state = self.drafter.propose(
        self._drafter_params(params), state.drafter_state, uniforms, tokens=state.tokens, length=state.length,
        sampling=state.sampling, live=live, with_bonus=self._wants_bonus_row)
    block = blocks.of(proposal)
    pending = jnp.take_along_axis(state.tokens, state.length[:, None] - 1, axis=1)
    output, target_cache = self.target.extend(
        params['target'], state.target_cache, jnp.concatenate([pending, proposal.tokens], axis=1),
        count=jnp.where(live, block.num_fed, 0), layout=block.layout)
    target = _Laws.of(output.logits, state.sampling, live)
    goal = self._goal(params.get('rule'), state, proposal, target, live)
    verdict, trace = block.verify(self.verifier, uniforms, goal.log_probs)
    broken = _first_broken(target, block, verdict, trace)
    after = self._commit(params, state, live, proposal, output, goal, verdict, broken, target_cache, drafter_state)
    if self.recorder is not None:
      after = self._recorded(state, after, proposal, output, target, goal, verdict)
    return after, rounds.StepTrace(proposal, trace)

  def _drafter_params(self, params):
    """What the drafter reads of the parameters; all of them where it shares the target's and has its own."""
    return params if self.drafter.params_from == 'both' else params.get(self.drafter.params_from)

  @property
  def _wants_bonus_row(self):
    return self.bonus == 'rule' and self.rule.needs_drafter_law

  def _goal(self, rule_params, state, proposal, target, live):
    """The `Goal` behind every token of the block, [B, T, ...], truncated; `target` are the target's `_Laws`."""
    has_law, block = self.rule.needs_drafter_law, blocks.of(proposal)
    if has_law and proposal.logits is None:
      raise errors.ParamError(
          what=f"the rule {type(self.rule).__name__}, which reads the drafter's law", got=type(self.drafter).__name__,
          expected='a drafter whose proposals have logits',
          fix='choose a rule with needs_drafter_law False, such as Lossless, TruncatedTarget or LossyGreedy')
    drafter = _Laws.of(proposal.logits, state.sampling, live) if has_law else None
    position = state.length[:, None] + block.offsets
    pick = (lambda laws: laws.truncated) if self.rule.truncates == 'inputs' else (lambda laws: laws.tempered)
    inputs = types.RuleInputs(
        drafter_log_probs=pick(drafter) if has_law else None,
        target_log_probs=pick(target),
        drafter_truncated_log_probs=drafter.truncated if has_law else None,
        target_truncated_log_probs=target.truncated,
        drafter_plain_log_probs=drafter.plain if has_law else None,
        target_plain_log_probs=target.plain,
        drafter_features=proposal.features,
        position=position,
    )
    goal = jax.vmap(jax.vmap(lambda x: self.rule(rule_params, x)))(inputs)
    log_probs = goal.log_probs
    if self.rule.truncates == 'output':
      log_probs = warping.truncate(log_probs, state.sampling, live=live)
    if self.bonus == 'target' and not self.rule.is_lossless:
      log_probs = jnp.where(block.is_end[:, :, None], target.truncated, log_probs)
    return types.Goal(log_probs, goal.deferral)

  def _commit(self, params, state, live, proposal, output, goal, verdict, broken, target_cache, drafter_state):
    block = blocks.of(proposal)
    emitted = jax.vmap(commit.emitted_block)(block.drafted(verdict), verdict)
    tokens, length, status, num_kept = rounds.commit_block(
        state, live, emitted, broken, num_emitted=verdict.num_accepted + 1, slack=self.slack)
    kept = types.Verdict(jnp.minimum(verdict.num_accepted, num_kept), verdict.next_token, verdict.path)
    log_probs = state.log_probs
    if self.with_log_probs:
      own = _own_log_probs(block.along_text(output.logits, verdict), emitted).astype(log_probs.dtype)
      log_probs = commit.append(log_probs, own, length=state.length, count=num_kept)
    return state.replace(
        tokens=tokens,
        length=length,
        status=status,
        log_probs=log_probs,
        target_cache=block.keep(self.target, target_cache, verdict, live=live, length=length, num_kept=num_kept),
        drafter_state=self.drafter.commit(
            self._drafter_params(params), drafter_state, tokens=tokens, length=length, verdict=kept, target_output=output),
        stats=count_round(
            state.stats, live, block, verdict, num_kept, drafter_calls=self.drafter.num_calls(proposal)),
    )

  def _recorded(self, before, after, proposal, output, target, goal, verdict):
    """The state `after` a round with its record; `target` are the target's `_Laws`."""
    num_kept = after.length - before.length
    return after.replace(record=self.recorder.update(
        before.record, tokens=after.tokens, length=after.length, num_kept=num_kept,
        evaluated=after.stats.evaluated - before.stats.evaluated, proposal=proposal, target_output=output,
        target_log_probs=target.truncated, goal=goal,
        verdict=verdict._replace(num_accepted=jnp.minimum(verdict.num_accepted, num_kept))))


@struct.dataclass(kw_only=True)
class _Laws:
  """One model's laws at the K + 1 positions of a block, [B, K + 1, V]. What a rule does not read is never computed."""

  plain: jax.Array
  tempered: jax.Array
  truncated: jax.Array

  @classmethod
  def of(cls, logits, sampling, live):
    logits = warping.adjust(logits, sampling)
    tempered = warping.tempered_log_probs(logits, sampling.temperature)
    return cls(
        plain=warping.plain_log_probs(logits), tempered=tempered,
        truncated=warping.truncate(tempered, sampling, live=live))


def _first_broken(target, block, verdict, trace):
  """The `rounds.Broken` of a block: the first position of the text whose law was read and is not finite."""
  # A NaN, +inf or an all-masked row of logits makes the whole law NaN; this is the law that the goal was made of anyway.
  target_broke = jnp.isnan(block.along_text(target.tempered[:, :, :1], verdict)[:, :, 0])
  width = target_broke.shape[1]
  none = jnp.int32(width + 1)
  index = jnp.arange(width, dtype=jnp.int32)[None, :]
  seen = index <= verdict.num_accepted[:, None]
  target_broke &= seen
  total = jnp.sum(trace.final_probs, axis=-1, keepdims=True)
  no_mass = ~(total > 0) | ~jnp.isfinite(total)
  # A goal without mass at a position where the target's law is one: the drafter's, which the rule read, is none.
  goal_broke = no_mass & (index == verdict.num_accepted[:, None]) & ~target_broke
  drafter_broke = (block.drafter_broke(verdict) & seen) | goal_broke
  first = lambda mask: jnp.min(jnp.where(mask, index, none), axis=1)
  target_index, drafter_index = first(target_broke), first(drafter_broke)
  return rounds.Broken(jnp.minimum(target_index, drafter_index), drafter_index <= target_index)


def _own_log_probs(logits, block):
  """float[B, K + 1], the model's own log-probability of each emitted token: temperature 1, no bias."""
  logits = logits.astype(warping.probability_dtype(logits.dtype))
  at_token = jnp.take_along_axis(logits, block[:, :, None], axis=2)[:, :, 0]
  return at_token - jax.scipy.special.logsumexp(logits, axis=-1)


def count_round(stats, live, block, verdict, num_kept, *, drafter_calls):
  """`stats` after one round of which `num_kept` int32[B] tokens were kept; of a tree its levels count, not its nodes."""
  one = live.astype(jnp.int32)
  accepted = jnp.minimum(verdict.num_accepted, num_kept)
  proposed = block.length
  rejected = (verdict.num_accepted < proposed) & (num_kept > verdict.num_accepted)
  evaluated = accepted + rejected.astype(jnp.int32)
  index = jnp.arange(block.max_accepted, dtype=jnp.int32)[None, :]
  by_position = lambda count: ((index < count[:, None]) & live[:, None]).astype(jnp.int32)
  return types.DecodeStats(
      steps=stats.steps + one,
      emitted=stats.emitted + num_kept,
      target_calls=stats.target_calls + one,
      target_passes=stats.target_passes + one,
      drafter_calls=stats.drafter_calls + one * drafter_calls,
      proposed=stats.proposed + one * proposed,
      evaluated=stats.evaluated + one * evaluated,
      accepted=stats.accepted + one * accepted,
      drafted_by_position=stats.drafted_by_position + by_position(proposed),
      evaluated_by_position=stats.evaluated_by_position + by_position(evaluated),
      accepted_by_position=stats.accepted_by_position + by_position(accepted),
  )
