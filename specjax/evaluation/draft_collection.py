"""What drafters would draft at every place of the target's own greedy answers, and what its heads know there.

Drafts are collected by the ordinary loop with a verifier that keeps none: the text grows by the target's token, and every
place of it is the beginning of a round. The heads' laws are worked out afterwards, by one full pass over each answer.
"""

import functools
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import types
from specjax.evaluation import rows as rows_lib
from specjax.ops import categorical
from specjax.ops import divergences

# Places whose laws of all heads are in memory together.
_PLACES = 16


class Drafts(NamedTuple):
  """Of one answer of n tokens: `tokens` int[n, K], drafted behind t of them at index t; `lengths` int[n]; `text` int[n]."""

  tokens: np.ndarray
  lengths: np.ndarray
  text: np.ndarray


class Outlook(NamedTuple):
  """What the heads knew where a round might begin, behind t of the n tokens of an answer.

  Attributes:
    entropies: float[n, 1 + H] nats, of the target's own law and of each head's.
    ranks: int[n, H], from 0, of the answer's tokens in the laws of the heads for them.
    best: int[n, H], each head's most probable token.
    is_known: bool[n], whether there was a state to draft from.
  """

  entropies: np.ndarray
  ranks: np.ndarray
  best: np.ndarray
  is_known: np.ndarray


@struct.dataclass(kw_only=True)
class KeepNothing:
  """A verifier of chains that accepts no draft and draws from the goal: decoding without drafts, that looks at them."""

  def __call__(self, accept_uniforms, final_uniforms, *, tokens, length, drafter_log_probs, goal_log_probs):
    del tokens, length, drafter_log_probs
    probs = jnp.exp(goal_log_probs[0])
    return types.Verdict(jnp.int32(0), categorical.draw_from_probs(final_uniforms, probs)), types.VerdictTrace(
        jnp.zeros_like(accept_uniforms), probs)


@struct.dataclass(kw_only=True)
class DraftRecorder:
  """Keeps the drafts of every round at the length of the text it began behind: int32[B, L, K] and their lengths int32[B, L]."""

  num_draft_tokens: int = struct.field(pytree_node=False)

  def init(self, batch, capacity) -> Any:
    return jnp.zeros((batch, capacity, self.num_draft_tokens), jnp.int32), jnp.zeros((batch, capacity), jnp.int32)

  def update(
      self, record, *, tokens, length, num_kept, evaluated, proposal, target_output, target_log_probs, goal, verdict):
    del tokens, evaluated, target_output, target_log_probs, goal, verdict
    drafted, counts = record
    # Rows that have stopped keep nothing of a round: their place is out of bounds, where nothing is written.
    place = jnp.where(num_kept > 0, length - num_kept, drafted.shape[1])
    row = jnp.arange(drafted.shape[0], dtype=jnp.int32)
    return (drafted.at[row, place].set(proposal.tokens, mode='drop'),
            counts.at[row, place].set(proposal.length, mode='drop'))


def collect_drafts(runner, point, questions, shape):
  """([`Drafts`] of some questions, counted drafter calls per round) of a method whose drafts are chains.

  Args:
    runner: a `runner.PairRunner`.
    point: the method, at temperature 0.
    questions: at most as many as the point's batch.
    shape: as of `runner.generate`.
  """
  decoder, params = runner.decoder(point)
  decoder = decoder.replace(
      verifier=KeepNothing(), recorder=DraftRecorder(num_draft_tokens=decoder.num_draft_tokens))
  collected = runner.collect(decoder, params, point, questions, shape)
  drafted, counts = map(np.asarray, collected.record)
  found = []
  for row in range(len(questions)):
    text = np.array(rows_lib.generated_tokens(collected, row), np.int64)
    # Behind t tokens of the answer the text was `prompt_length` + t long.
    start = int(collected.prompt_length[row])
    places = slice(start, start + len(text))
    found.append(Drafts(drafted[row, places], counts[row, places], text))
  stats = collected.stats
  return found, float(np.sum(stats.drafter_calls) / max(1, np.sum(stats.steps)))


class HeadReader:
  """Works out what the draft heads of a pair know, by one full pass of the target over each answer.

  Args:
    runner: a `runner.PairRunner` of a pair with heads.
    shape: as of `runner.generate`.
  """

  def __init__(self, runner, shape):
    self._runner, self._shape = runner, shape
    self._pair = runner.pair_with(('heads',))
    self._read = jax.jit(functools.partial(
        _read, self._pair.target, self._pair.parts['heads'], num_places=shape.max_new_tokens))

  def outlook(self, question, text) -> Outlook:
    """The `Outlook` along one answer."""
    num_heads, size = self._pair.parts['heads'].num_heads, len(text)
    width = self._shape.width + self._shape.max_new_tokens
    batch, first = self._runner.teacher_forced(
        question.prompt, list(text), encoder_width=self._shape.width, width=width)
    answer = np.full(self._shape.max_new_tokens + num_heads, -1, np.int32)
    answer[:size] = text
    params = {role: self._pair.params[role] for role in ('target', 'heads')}
    entropies, ranks, best = (np.asarray(found)[:size] for found in self._read(params, batch, np.int32(first), answer))
    # The state behind t tokens predicted the last of them: before the first token there may be none.
    is_known = np.arange(size) + first >= 1
    ranks = np.where(is_known[:, None], ranks, self._pair.target.vocab_size)
    return Outlook(entropies, ranks, best, is_known)


def _read(target, heads, params, batch, first, answer, *, num_places):
  """(entropies [N, 1 + H], ranks [N, H], best tokens [N, H]) at the places 0 .. N of an answer behind index `first`."""
  hidden = target.forward(params['target'], batch).hidden[0]
  places = jnp.arange(num_places, dtype=jnp.int32)
  states = hidden[jnp.clip(first - 1 + places, 0, hidden.shape[0] - 1)]
  wanted = answer[places[:, None] + jnp.arange(heads.num_heads, dtype=jnp.int32)[None, :]]

  def one(state_and_wanted):
    state, tokens = state_and_wanted
    inputs = jnp.concatenate([state[None], heads(params['heads'], state).astype(state.dtype)])
    logits = target.unembed(params['target'], inputs[None])[0]
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    laws, of_heads = jax.nn.log_softmax(logits, axis=-1), logits[1:]
    at_token = jnp.take_along_axis(of_heads, jnp.maximum(tokens, 0)[:, None], axis=1)
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :]
    is_before = (of_heads > at_token) | ((of_heads == at_token) & (ids < tokens[:, None]))
    ranks = jnp.where(tokens < 0, logits.shape[-1], jnp.sum(is_before, axis=1, dtype=jnp.int32))
    return divergences.entropy(laws), ranks, jnp.argmax(of_heads, axis=1).astype(jnp.int32)

  return jax.lax.map(one, (states, wanted), batch_size=_PLACES)
