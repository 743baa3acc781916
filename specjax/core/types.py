"""The words of specjax: every array that crosses a module boundary is declared here, once.

Shapes: B rows, P prompt buffer, L token buffer, K draft tokens, T block width, V vocabulary, D hidden, S encoder.

Invariants of the decoding loop (asserted by `specjax.testing.conformance`):

  1. The cache lags: it covers `length - 1` committed tokens. The last committed token is *pending*, it is fed first.

         tokens   a  b  c  d  e  .  .  .        length = 5
         cache    a  b  c  d                    cache length = 4, pending token e

     In the routed loop each model has its own number of pending tokens; the target's may be any.

  2. Rows have their own lengths; a row's output is bitwise independent of its neighbours, slot and padding.
  3. A drafter never feeds a token twice: after full acceptance it is two tokens behind, else one.
  4. Exactness lives in one place: accept with u < min(1, goal / q), otherwise draw from norm(max(0, goal - q)).
  5. Every uniform is addressed by (seed, example id, sample index, round start, role, draw index).
  6. One draw, in two levels (`specjax.ops.categorical`).
  7. No full sort of the vocabulary (`specjax.ops.warping`).
  8. Draft length depends only on what is known before a token is drawn; a drawn token stays in the proposal.
  9. Capacity is checked on the host, with the widest extend as slack; a full row stops with a status.
 10. The emitted prefix is what counts: EOS, stop sequences and limits cut inside the step; caches and counters follow.
 11. Numbers are traced, structure is static; every leaf of the decoding state has the batch as leading axis.
 12. Failure under jit is a value: a status per row. NaN never becomes a token.
"""

import enum
from typing import Any, NamedTuple

from flax import struct
import jax


class Status(enum.IntEnum):
  """Why a row stopped. `NONFINITE` blames the target, `NONFINITE_DRAFTER` the drafter."""

  RUNNING = 0
  EOS = 1
  STOP = 2
  LIMIT = 3
  CAPACITY = 4
  NONFINITE = 5
  NONFINITE_DRAFTER = 6


class Prompt(NamedTuple):
  """Right-padded prompts. `tokens` int32[B, P], `length` int32[B] >= 1; for encoder-decoders also the encoder input.

  For an encoder-decoder `tokens` starts with the decoder start token; `encoder_tokens` int32[B, S],
  `encoder_length` int32[B].
  """

  tokens: jax.Array
  length: jax.Array
  encoder_tokens: jax.Array | None = None
  encoder_length: jax.Array | None = None


class Prefill(NamedTuple):
  """What prefill saw. `hidden` float[B, P, D], valid below length - 1; `encoder_hidden` float[B, S, D]; or None."""

  hidden: jax.Array | None = None
  encoder_hidden: jax.Array | None = None


class LMOutput(NamedTuple):
  """`logits` float[B, T, V] after the model's own soft-capping; `hidden` float[B, T, D], the last hidden state."""

  logits: jax.Array
  hidden: jax.Array | None = None


class Chain(NamedTuple):
  """Block layout in which every token follows the one before it. No leaves."""


class Tree(NamedTuple):
  """Block layout of a token tree: node 0 is the root, parents come first.

  `parents` int32[B, T] (the root's is -1), `depth` int32[B, T] (the root's is 0). Node n sits at position
  `length + depth[n]`, is written to slot `length + n`, and attends to the committed prefix and its ancestors.
  """

  parents: jax.Array
  depth: jax.Array


CHAIN = Chain()


class TrainingBatch(NamedTuple):
  """A teacher-forced batch, packed or padded.

  Attributes:
    tokens: int32[B, T] decoder inputs (already shifted right).
    targets: int32[B, T] what is to be predicted at each position.
    weights: float32[B, T] loss weights, 0 on padding.
    positions: int32[B, T] position inside its own segment, from 0.
    segments: int32[B, T] segment number from 1; 0 is padding. Attention stays inside a segment.
    encoder_tokens, encoder_positions, encoder_segments: int32[B, S], for encoder-decoders.
  """

  tokens: jax.Array
  targets: jax.Array
  weights: jax.Array
  positions: jax.Array
  segments: jax.Array
  encoder_tokens: jax.Array | None = None
  encoder_positions: jax.Array | None = None
  encoder_segments: jax.Array | None = None


@struct.dataclass(kw_only=True)
class Sampling:
  """Sampling parameters of each row, traced.

  Attributes:
    temperature: float[B]; 0 is greedy (a one-hot law).
    top_k: int32[B]; 0 keeps every token.
    top_p: float[B] in (0, 1]; 1 keeps every token.
    min_p: float[B] in [0, 1]; 0 keeps every token.
    logit_bias: float[B, V] added to the raw logits of both models, or None.
    allowed_tokens: bool[B, V], the others get no mass in either model, or None.

  top_k, top_p and min_p may all be None: then no request truncates, which makes a smaller program.
  """

  temperature: jax.Array
  top_k: jax.Array | None = None
  top_p: jax.Array | None = None
  min_p: jax.Array | None = None
  logit_bias: jax.Array | None = None
  allowed_tokens: jax.Array | None = None


@struct.dataclass(kw_only=True)
class Requests:
  """One batch of requests, as arrays.

  Attributes:
    prompt: the prompts.
    sampling: per-row sampling parameters.
    max_new_tokens: int32[B]; 0 makes the row inert from the start.
    eos_ids: int32[B, E], padded with -1.
    stop_sequences: int32[B, S, W], token ids, each sequence padded with -1 behind, or None. The row stops behind the
      first one that its generated tokens end with; the sequence stays in the tokens.
    seed, example_id, sample_index: uint32[B], the first three parts of every uniform's address.
  """

  prompt: Prompt
  sampling: Sampling
  max_new_tokens: jax.Array
  eos_ids: jax.Array
  seed: jax.Array
  example_id: jax.Array
  sample_index: jax.Array
  stop_sequences: jax.Array | None = None


@struct.dataclass(kw_only=True)
class Proposal:
  """Draft tokens and the laws they were drawn from. Built by one function that draws from the law it returns.

  Attributes:
    tokens: int32[B, K].
    length: int32[B] in 0..K; entries at index >= length are never read.
    log_probs: float[B, K, V], the law each token was really drawn from (one-hot when deterministic).
    logits: float[B, K + 1, V] raw drafter logits, or None; row `length` is the bonus row, valid iff `has_bonus`.
    features: float[B, K + 1, D] or None.
    has_bonus: static; whether the bonus row was computed.
  """

  tokens: jax.Array
  length: jax.Array
  log_probs: jax.Array
  logits: jax.Array | None = None
  features: jax.Array | None = None
  has_bonus: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass(kw_only=True)
class TreeProposal:
  """A tree of draft tokens: nodes 1..N in topological order, siblings in the order in which they were drawn.

  Node 0 is the pending token. A tree proposes nothing where `count` is 1.

  Attributes:
    tokens: int32[B, N].
    parents: int32[B, N], numbers of earlier nodes, 0 is the pending token.
    depth: int32[B, N], from 1.
    count: int32[B] in 1..N + 1, nodes in use, the pending one counted; the others come last and are never read.
    log_probs: float[B, N, V], the law each node was drawn from, given its parent and that its elder siblings were
      rejected: the same law with replacement, theirs taken out without, one-hot when deterministic.
    logits: float[B, N + 1, V] raw drafter logits behind each node, or None; those of leaves are valid iff `has_bonus`.
    features: float[B, N + 1, D] or None.
    max_depth: D, static; the most tokens that can be accepted.
    has_bonus: static; whether the rows of the leaves were computed.
  """

  tokens: jax.Array
  parents: jax.Array
  depth: jax.Array
  count: jax.Array
  log_probs: jax.Array
  logits: jax.Array | None = None
  features: jax.Array | None = None
  max_depth: int = struct.field(pytree_node=False)
  has_bonus: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass(kw_only=True)
class RuleInputs:
  """What a deferral rule sees at one position (*unbatched*). There is no draft token here, on purpose.

  Attributes:
    drafter_log_probs, target_log_probs: float[V], the sampling laws: after bias and temperature, and after truncation
      iff the rule's `truncates` is 'inputs'.
    drafter_truncated_log_probs, target_truncated_log_probs: float[V], the sampling laws after truncation, always.
    drafter_plain_log_probs, target_plain_log_probs: float[V], the laws at temperature 1, what confidence is read from.
    drafter_features: float[D] or None.
    position: int32[], index of the token in the sequence.
  The drafter's are None when the drafter has no logits.
  """

  drafter_log_probs: jax.Array | None
  target_log_probs: jax.Array
  drafter_truncated_log_probs: jax.Array | None
  target_truncated_log_probs: jax.Array
  drafter_plain_log_probs: jax.Array | None
  target_plain_log_probs: jax.Array
  drafter_features: jax.Array | None
  position: jax.Array


@struct.dataclass(kw_only=True)
class RouterInputs:
  """What a router sees before the next token is drawn (*unbatched*).

  Attributes:
    drafter_log_probs: float[V], the drafter's sampling law, after truncation.
    drafter_plain_log_probs: float[V], the drafter's law at temperature 1, what confidence is read from.
    drafter_features: float[D], the drafter's last hidden state, or None.
    target_log_probs, target_plain_log_probs: the target's, for routers with `needs_target`; else None.
    uniform: float[] in [0, 1), the router's own random number.
    position: int32[], index of the token in the sequence.
  """

  drafter_log_probs: jax.Array
  drafter_plain_log_probs: jax.Array
  drafter_features: jax.Array | None
  target_log_probs: jax.Array | None
  target_plain_log_probs: jax.Array | None
  uniform: jax.Array
  position: jax.Array


class Goal(NamedTuple):
  """The law a position must follow: `log_probs` float[V]; `deferral` float[] in [0, 1], the weight of the target."""

  log_probs: jax.Array
  deferral: jax.Array


class Verdict(NamedTuple):
  """`num_accepted` int32[], `next_token` int32[]; `path` for trees, None for chains.

  `path` int32[D + 1] holds the accepted nodes from the pending one, number 0, on; -1 pads behind.
  """

  num_accepted: jax.Array
  next_token: jax.Array
  path: jax.Array | None = None


class VerdictTrace(NamedTuple):
  """The arrays a verifier's comparisons used, for exact enumeration. *Unbatched*.

  `accept_probs` float[K]: the test at position i is u[i] < accept_probs[i] (0 beyond the proposal's length). Token
  verification stops at the first test that fails, block verification takes the last that holds. In trees the tests are of
  nodes; each depends on the tests before it, and one that was not made reads 0.
  `final_probs` float[V]: the (unnormalised) law the next token was drawn from.
  """

  accept_probs: jax.Array
  final_probs: jax.Array


@struct.dataclass(kw_only=True)
class RoundUniforms:
  """The random numbers of one round, every one addressed. In [0, 1).

  Attributes:
    draft: float[B, K + 1, 2] for drawing each draft token (two levels).
    policy: float[B, K + 1] for drafters whose length policy is randomised.
    accept: float[B, K] for the acceptance tests.
    final: float[B, 2] for the token drawn by the verifier.
  """

  draft: jax.Array
  policy: jax.Array
  accept: jax.Array
  final: jax.Array


@struct.dataclass(kw_only=True)
class DecodeStats:
  """Integer counters per row, counted on the device over live rows only; all int32[B] or int32[B, K].

  A step counts also when nothing was proposed. `accepted` counts draft tokens kept after EOS, stops and limits have cut;
  `evaluated` is accepted plus 1 if a kept position rejected its draft. `target_calls` counts the passes a row asked for (in
  a token cascade its deferrals), `target_passes` those of the whole batch while the row was live; the latter alone depends
  on the row's neighbours.
  """

  steps: jax.Array
  emitted: jax.Array
  target_calls: jax.Array
  target_passes: jax.Array
  drafter_calls: jax.Array
  proposed: jax.Array
  evaluated: jax.Array
  accepted: jax.Array
  drafted_by_position: jax.Array
  evaluated_by_position: jax.Array
  accepted_by_position: jax.Array


@struct.dataclass(kw_only=True)
class DecodeState:
  """Everything the next step needs. Every leaf has the batch as leading axis.

  Attributes:
    tokens: int32[B, L], prompt and generated tokens; garbage at index >= length.
    length: int32[B], committed tokens.
    prompt_length: int32[B].
    max_length: int32[B], the length at which the row stops with LIMIT.
    status: int32[B], a `Status`.
    log_probs: float[B, L], the target's own log-probability (temperature 1, no bias) of each generated token, or None.
    sampling, eos_ids, stop_sequences: as in `Requests`.
    key: key[B], folded with seed, example id and sample index.
    target_cache, drafter_state, record: pytrees of the parts.
    stats: counters.
  """

  tokens: jax.Array
  length: jax.Array
  prompt_length: jax.Array
  max_length: jax.Array
  status: jax.Array
  log_probs: jax.Array | None
  sampling: Sampling
  eos_ids: jax.Array
  key: jax.Array
  target_cache: Any
  drafter_state: Any
  record: Any
  stats: DecodeStats
  stop_sequences: jax.Array | None = None
