"""The contracts between the parts of a decoder. See `specjax.core.types` for shapes and invariants."""

from typing import Any, Literal, Protocol

import jax

from specjax.core import types


class LanguageModel(Protocol):
  """A frozen, hashable adapter that holds no arrays; parameters are always arguments."""

  vocab_size: int
  max_extend: int | None  # the widest extend and the longest rewind (tokens), a field of the adapter; None is any
  max_length: int | None  # the most tokens a row may have, prompt and new ones; None is any

  def init(self, key: jax.Array) -> Any:
    """Fresh parameters, a nested dict of arrays."""

  def forward(self, params: Any, batch: types.TrainingBatch) -> types.LMOutput:
    """Teacher-forced logits [B, T, V] of a whole (packed) batch, without a cache. Differentiable."""

  def prefill(self, params: Any, prompt: types.Prompt, capacity: int) -> tuple[types.Prefill, Any]:
    """Runs the encoder and all but the last prompt token of each row.

    `capacity` is static: the number of slots of every full cache layer. Returns the cache covering
    `prompt.length - 1` tokens of each row; its leaves all have the batch as leading axis. An encoder-decoder takes
    `encoder_hidden` as a keyword too: the encoding of the same prompt by the same encoder, which it then does not run.
    """

  def extend(
      self, params: Any, cache: Any, tokens: jax.Array, *, count: jax.Array, layout: Any = types.CHAIN,
      logits_at: jax.Array | None = None,
  ) -> tuple[types.LMOutput, Any]:
    """Feeds the first `count` int32[B] of `tokens` int32[B, T] at each row's own end (0 leaves the row as it is).

    Logits and hidden states at index >= count are unspecified and never read; slots past the new end may hold garbage.
    The caller guarantees cache length + T <= capacity. With `logits_at` int32[B] the output holds that one index of each
    row, [B, 1, ...]: a large vocabulary is the most expensive layer of a small model.
    """

  def length(self, cache: Any) -> jax.Array:
    """int32[B], the number of tokens each row of the cache covers."""

  def rewind(self, cache: Any, length: jax.Array) -> Any:
    """Forgets everything past `length` int32[B], at most `max_extend` tokens back."""

  def keep_path(self, cache: Any, length: jax.Array, path: jax.Array) -> Any:
    """Keeps, of the block whose node 0 sits at slot `length` int32[B], the nodes `path` int32[B, N] (-1 pads), in order.

    The cache then covers `length` + number of kept nodes.
    """


class Drafter(Protocol):
  """A pytree: numbers are leaves, structure is static."""

  num_draft_tokens: int
  # static: 'drafter'; 'target' where it shares the target's parameters (the same arrays, no copy); 'both' for all of them
  params_from: str

  def init(self, params: Any, prompt: types.Prompt, prefill: types.Prefill, capacity: int) -> Any:
    """The drafter's state; every leaf has the batch as leading axis."""

  def propose(
      self, params: Any, state: Any, uniforms: types.RoundUniforms, *, tokens: jax.Array, length: jax.Array,
      sampling: types.Sampling, live: jax.Array, with_bonus: bool,
  ) -> tuple[types.Proposal, Any]:
    """Draft tokens that continue `tokens[:length]`, and the laws they were drawn from.

    `live` bool[B]: rows that are not live propose nothing and keep their state. `with_bonus` is static: whether the
    drafter's law behind its last draft token is asked for (one more pass).
    """

  def commit(
      self, params: Any, state: Any, *, tokens: jax.Array, length: jax.Array, verdict: types.Verdict,
      target_output: types.LMOutput,
  ) -> Any:
    """The state after the round: `tokens[:length]` is what is now committed."""

  def num_calls(self, proposal: types.Proposal) -> jax.Array:
    """int32[B] or int32[], how many passes of the drafter the proposal took."""


class TargetRule(Protocol):
  """Which law the output follows. *Unbatched*, pure; a pytree whose numbers are leaves.

  `truncates`: 'output' mixes untruncated laws and the loop truncates the goal; 'inputs' receives truncated laws and its
  goal is final. `needs_drafter_law`: whether it reads the drafter's. `greedy_only`: whether it is defined at temperature 0
  only. `knobs`: names of its numbers. `is_lossless`: whether the goal is the target's law. A rule that reads the drafter's
  hidden states says `needs_drafter_features = True` and may leave it out otherwise.
  """

  truncates: Literal['output', 'inputs']
  needs_drafter_law: bool
  greedy_only: bool
  knobs: tuple[str, ...]
  is_lossless: bool

  def __call__(self, params: Any, inputs: types.RuleInputs) -> types.Goal:
    """The goal law of one position."""


class Verifier(Protocol):
  """Makes the output follow the goal exactly. *Unbatched*, pure."""

  def __call__(
      self, accept_uniforms: jax.Array, final_uniforms: jax.Array, *, tokens: jax.Array, length: jax.Array,
      drafter_log_probs: jax.Array, goal_log_probs: jax.Array,
  ) -> tuple[types.Verdict, types.VerdictTrace]:
    """Accepts a prefix of `tokens` int32[K] and draws the next token. `goal_log_probs` float[K + 1, V]."""


class Router(Protocol):
  """Who draws the next token. *Unbatched*, pure; a pytree whose numbers are leaves."""

  needs_target: bool
  knobs: tuple[str, ...]  # names of its numbers

  def __call__(self, params: Any, inputs: types.RouterInputs) -> jax.Array:
    """bool[], whether the target draws the next token.

    A router that reads a NaN must not defer: the row then stops for the drafter. With `needs_target` (oracles) the target
    runs for every token, and the row stops when either law is broken.
    """


class Recorder(Protocol):
  """What a caller keeps of each step; runs after trimming. Without a recorder nothing of this is computed."""

  def init(self, batch: int, capacity: int) -> Any:
    """An empty record; every leaf has the batch as leading axis."""

  def update(
      self, record: Any, *, tokens: jax.Array, length: jax.Array, num_kept: jax.Array, evaluated: jax.Array,
      proposal: types.Proposal, target_output: types.LMOutput, target_log_probs: jax.Array, goal: types.Goal,
      verdict: types.Verdict,
  ) -> Any:
    """The record after one step.

    Args:
      record: the record before it.
      tokens, length: int32[B, L], int32[B], what is now committed.
      num_kept: int32[B], how many tokens of the round were kept; 0 of rows that are not live.
      evaluated: int32[B], how many draft tokens were evaluated, as counted by `DecodeStats`; 0 of rows that are not live.
        Laws at index >= evaluated may be NaN.
      proposal: the drafts and the laws they were drawn from.
      target_output: of the target's pass over the block.
      target_log_probs: float[B, K + 1, V], the target's sampling laws after truncation.
      goal: the laws that were verified against, [B, K + 1, ...].
      verdict: after trimming; `num_accepted` counts what was kept.
    """
