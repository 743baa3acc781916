"""What a decoder must do, worked out in plain numpy float64: laws by sorting, rules by their formulas, rounds by recursion.

Nothing here calls `specjax.ops`, `specjax.rules` or a cache; of the models only `forward` is used, on whole sequences.
"""

import dataclasses
import itertools
from typing import Any, Callable

import numpy as np

from specjax.core import types


@dataclasses.dataclass(frozen=True)
class Warp:
  """Sampling parameters of one request; the oracle's counterpart of a row of `types.Sampling`."""

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  logit_bias: tuple[float, ...] | None = None
  allowed_tokens: tuple[bool, ...] | None = None

  def adjusted(self, logits):
    """Logits with bias added and forbidden tokens at -inf."""
    logits = np.asarray(logits, np.float64)
    if self.logit_bias is not None:
      logits = logits + np.asarray(self.logit_bias)
    return logits if self.allowed_tokens is None else np.where(self.allowed_tokens, logits, -np.inf)

  def plain(self, logits):
    """The law at temperature 1."""
    return softmax(self.adjusted(logits))

  def tempered(self, logits):
    """The law at the temperature; 0 is one-hot at the first largest logit."""
    logits = self.adjusted(logits)
    if self.temperature == 0:
      return (np.arange(len(logits)) == np.argmax(logits)).astype(np.float64)
    return softmax(logits / self.temperature)

  def truncated(self, probs):
    """A law after top-k, top-p and min-p, by sorting; greedy requests are not truncated."""
    return probs if self.temperature == 0 else truncate(probs, self.top_k, self.top_p, self.min_p)

  def law(self, logits):
    """The law tokens are drawn from."""
    return self.truncated(self.tempered(logits))


def softmax(logits):
  """float64[V]."""
  weights = np.exp(logits - np.max(logits))
  return weights / weights.sum()


def truncate(probs, top_k, top_p, min_p):
  """`probs` after top-k, top-p, min-p in this order, each on the survivors; ties by token id; renormalised."""
  order = np.lexsort((np.arange(len(probs)), -probs))
  kept = np.zeros(len(probs), bool)
  kept[order[:top_k] if top_k > 0 else order] = True
  if top_p < 1:
    survivors = [token for token in order if kept[token]]
    running = np.cumsum(probs[survivors])
    needed = int(np.searchsorted(running, top_p * running[-1] * (1 - 1e-15))) + 1
    kept[survivors[needed:]] = False
  kept &= probs >= min_p * np.max(np.where(kept, probs, 0))
  probs = np.where(kept, probs, 0)
  return probs / probs.sum()


@dataclasses.dataclass(frozen=True)
class FromLogits:
  """A rule whose goal depends on truncated laws: `law` is a function (warp, target logits, drafter logits) -> final law."""

  law: Callable[..., Any]


# Rules: (target tempered, drafter tempered, target plain, drafter plain) -> law before truncation; or a `FromLogits`.


def lossless_goal(target, drafter, target_plain, drafter_plain):
  """The target's law."""
  del drafter, target_plain, drafter_plain
  return target


def chow_goal(threshold):
  """Narasimhan et al. 2025, Eq. 2: the drafter where it is confident at temperature 1."""
  return lambda target, drafter, target_plain, drafter_plain: (
      drafter if np.max(drafter_plain) >= 1 - threshold else target)


def token_v3_goal(threshold):
  """Narasimhan et al. 2025, Eq. 15 with the mix of Eq. 11."""

  def goal(target, drafter, target_plain, drafter_plain):
    del drafter_plain
    good = target_plain >= (1 - threshold) * np.max(target_plain)
    return np.where(good, drafter, 0) + drafter[~good].sum() * target

  return goal


class Laws:
  """Laws of one request as functions of the emitted prefix (tuple of ints).

  Args:
    warp: `Warp` of the request.
    target_logits, drafter_logits: functions of the prefix; the drafter's may be None.
    rule: one of the goals above, or of `rule_oracles`.
    bonus: 'rule' or 'target'.
    draft: function (prefix, drafter's sampling law) -> the law drafts are really drawn from; None is the sampling law.
  """

  def __init__(self, warp, target_logits, drafter_logits, *, rule=lossless_goal, bonus='rule', draft=None):
    self.warp, self._target, self._drafter = warp, target_logits, drafter_logits
    self._rule, self._bonus, self._draft, self._memory = rule, bonus, draft, {}

  def goal(self, prefix):
    """float64[V], the law of a drafted position."""
    return self._remember('goal', prefix, self._goal)

  def bonus(self, prefix):
    """float64[V], the law of the token behind the last draft token."""
    if self._bonus == 'rule':
      return self.goal(prefix)
    return self.target(prefix)

  def target(self, prefix):
    """float64[V], the target's sampling law."""
    return self._remember('target', prefix, lambda prefix: self.warp.law(self._target(prefix)))

  def drafter(self, prefix):
    """float64[V], the law draft tokens are drawn from."""
    return self._remember('drafter', prefix, self._drafter_law)

  def drafter_plain(self, prefix):
    """float64[V], the drafter's law at temperature 1."""
    return self.warp.plain(self._drafter(prefix))

  def _drafter_law(self, prefix):
    law = None if self._drafter is None else self.warp.law(self._drafter(prefix))
    return law if self._draft is None else self._draft(prefix, law)

  def _goal(self, prefix):
    target = self._target(prefix)
    drafter = self._drafter(prefix) if self._drafter is not None else target
    warp = self.warp
    if isinstance(self._rule, FromLogits):
      return self._rule.law(warp, target, drafter)
    mixed = self._rule(warp.tempered(target), warp.tempered(drafter), warp.plain(target), warp.plain(drafter))
    return warp.truncated(mixed)

  def _remember(self, kind, prefix, function):
    if (kind, prefix) not in self._memory:
      self._memory[kind, prefix] = function(prefix)
    return self._memory[kind, prefix]


def status_after(tokens, *, max_new_tokens, eos_ids=(), stop_sequences=()):
  """The `Status` of a row once it has generated `tokens`; at one place EOS comes before a stop, a stop before the limit."""
  if tokens and tokens[-1] in eos_ids:
    return types.Status.EOS
  if any(tokens[-len(sequence):] == tuple(sequence) for sequence in stop_sequences):
    return types.Status.STOP
  return types.Status.LIMIT if len(tokens) >= max_new_tokens else types.Status.RUNNING


def product_law(law, *, max_new_tokens, eos_ids=(), stop_sequences=()):
  """(tokens, Status) -> probability of drawing token by token from `law(prefix)`: what a K-invariant rule must give."""
  finished, running = {}, {(): 1.0}
  if max_new_tokens == 0:
    return {((), types.Status.LIMIT): 1.0}
  for _ in range(max_new_tokens):
    longer = {}
    for prefix, weight in running.items():
      for token in np.flatnonzero(law(prefix)):
        tokens, mass = (*prefix, int(token)), weight * law(prefix)[token]
        status = status_after(
            tokens, max_new_tokens=max_new_tokens, eos_ids=eos_ids, stop_sequences=stop_sequences)
        if status == types.Status.RUNNING:
          longer[tokens] = mass
        else:
          finished[tokens, status] = mass
    running = longer
  return finished


@dataclasses.dataclass
class RoundStructured:
  """The law of decoding in rounds, and what the counters of `DecodeStats` must be in expectation."""

  law: dict[Any, float]
  counters: dict[str, Any]


def round_structured(
    laws, *, num_draft_tokens, max_new_tokens, eos_ids=(), stop_sequences=(), verifier='token',
    stop: Callable[..., float] = lambda *args: 0.0, observe: Callable[..., dict[str, float]] = lambda prefix: {}):
  """`RoundStructured` of draft, verify, trim.

  A drafted token x at a position with goal g and drafter law q is kept with mass min(g(x), q(x)), and the round ends there
  with any token y with mass max(0, g(y) - q(y)): what is rejected is what the residual law has. (Leviathan et al. 2023.)

  Block verification keeps a drafted prefix as a whole: drafted with mass d, it stays with probability w. With one token x
  more it is drafted with mass d q(x) and stays with min(1, w g(x) / q(x)); what is missing, d max(0, w g(y) - q(y)), ends
  the round with y. (Sun et al. 2025: the tests h of the algorithm are those that make this true.)

  Args:
    laws: `Laws`.
    num_draft_tokens: K.
    max_new_tokens: limit.
    eos_ids: tokens that end a row.
    stop_sequences: tuples of tokens that end a row.
    verifier: 'token' or 'block'.
    stop: function (prefix, drafted, drafter law at prefix + drafted) -> probability that the drafter proposes no further
      token. It is not asked at K.
    observe: function prefix -> dict name -> value, summed over evaluated positions into the counters.
  """
  ending = lambda tokens: status_after(
      tokens, max_new_tokens=max_new_tokens, eos_ids=eos_ids, stop_sequences=stop_sequences)
  counters = {name: 0.0 for name in ('steps', 'emitted', 'accepted', 'evaluated')}
  counters |= {name: np.zeros(num_draft_tokens) for name in ('accepted_by_position', 'evaluated_by_position')}
  finished, running = {}, {}
  if max_new_tokens == 0:
    return RoundStructured({((), types.Status.LIMIT): 1.0}, counters)

  def end(prefix, block, accepted, rejected, weight):
    """The round ends: `block` is what it emits, the first `accepted` of it drafted."""
    ends = [i + 1 for i in range(len(block)) if ending(prefix + block[:i + 1]) != types.Status.RUNNING]
    block = block[:ends[0]] if ends else block
    accepted = min(accepted, len(block))
    evaluated = accepted + int(rejected and len(block) > accepted)
    for name, value in (('emitted', len(block)), ('accepted', accepted), ('evaluated', evaluated)):
      counters[name] += weight * value
    counters['accepted_by_position'][:accepted] += weight
    counters['evaluated_by_position'][:evaluated] += weight
    tokens = prefix + block
    outcome, store = ((tokens, ending(tokens)), finished) if ends else (tokens, running)
    store[outcome] = store.get(outcome, 0.0) + weight

  def draft(prefix, drafted, weight, stays):
    """What follows a draft of mass `weight` that stays with probability `stays`."""
    here = prefix + drafted
    if drafted and ending(here) != types.Status.RUNNING:  # whatever follows is cut off
      end(prefix, drafted, len(drafted), False, weight * stays)
      return
    stopping = 1.0 if len(drafted) == num_draft_tokens else stop(prefix, drafted, laws.drafter(here))
    for token in np.flatnonzero(laws.bonus(here)) if stopping > 0 else ():
      end(prefix, (*drafted, int(token)), len(drafted), False, weight * stays * stopping * laws.bonus(here)[token])
    if stopping >= 1:
      return
    weight = weight * (1 - stopping)
    for name, value in observe(here).items():
      counters[name] = counters.get(name, 0.0) + weight * stays * value
    goal, law = stays * laws.goal(here), laws.drafter(here)
    for token in range(len(goal)):
      kept, rest = min(goal[token], law[token]), max(goal[token] - law[token], 0.0)
      if kept > 0:
        drawn, stay = (law[token], kept / law[token]) if verifier == 'block' else (kept, 1.0)
        draft(prefix, (*drafted, token), weight * drawn, stay)
      if rest > 0:
        end(prefix, (*drafted, token), len(drafted), True, weight * rest)

  running[()] = 1.0
  while running:
    prefix = min(running, key=len)
    weight = running.pop(prefix)
    counters['steps'] += weight
    draft(prefix, (), weight, 1.0)
  return RoundStructured(finished, counters)


class LogitTables:
  """Raw logits of one model behind every continuation of every prompt, from one uncached `forward`.

  Args:
    forward: function `TrainingBatch` -> logits [N, T, V], may be jitted; every call has the same shapes.
    prompt: `types.Prompt` on the host.
    max_new_tokens: longest continuation (tokens).
    vocab_size: V.
  """

  def __init__(self, forward, prompt, *, max_new_tokens, vocab_size):
    depth = max(max_new_tokens - 1, 0)
    sequences = np.array(list(itertools.product(range(vocab_size), repeat=depth)), np.int32).reshape(-1, depth)
    width = prompt.tokens.shape[1] + depth
    self._tables = []
    for row, length in enumerate(np.asarray(prompt.length)):
      tokens = np.zeros((len(sequences), width), np.int32)
      tokens[:, :length] = prompt.tokens[row, :length]
      tokens[:, length:length + depth] = sequences
      logits = np.asarray(forward(_batch(tokens, length + depth, prompt, row)))
      shape = (vocab_size,) * depth
      # Behind a prefix of j tokens every continuation has the same logits: read them at continuation 0, 0, ...
      self._tables.append([
          logits[:, length - 1 + j].reshape(*shape, vocab_size)[(slice(None),) * j + (0,) * (depth - j)]
          for j in range(depth + 1)])

  def row(self, index):
    """The function prefix -> logits float64[V] of one request."""
    tables = self._tables[index]
    return lambda prefix: tables[len(prefix)][prefix]


def toy_forward(model, params):
  """`ToyLM.forward` in numpy: a function `TrainingBatch` -> logits float64[B, T, V]."""
  table = np.asarray(params['table'], np.float64)

  def forward(batch):
    batch_size, width = batch.tokens.shape
    logits = np.zeros((batch_size, width, model.vocab_size))
    if model.has_encoder:
      real = (np.asarray(batch.encoder_segments) > 0)[:, :, None]
      logits += (np.asarray(params['encoder'], np.float64)[batch.encoder_tokens] * real).sum(axis=1)[:, None]
    for distance in range(min(width, model.window or width)):
      logits[:, distance:] += table[distance % model.memory][batch.tokens[:, :width - distance]]
    return logits

  return forward


def _batch(tokens, length, prompt, row):
  """A `TrainingBatch` in which the first `length` of every row of `tokens` are real, with the encoder input of `row`."""
  count, width = tokens.shape
  index = np.tile(np.arange(width, dtype=np.int32), (count, 1))
  encoder = {}
  if prompt.encoder_tokens is not None:
    encoder_tokens = np.tile(np.asarray(prompt.encoder_tokens)[row], (count, 1))
    where = np.tile(np.arange(encoder_tokens.shape[1], dtype=np.int32), (count, 1))
    encoder = dict(
        encoder_tokens=encoder_tokens, encoder_positions=where,
        encoder_segments=(where < np.asarray(prompt.encoder_length)[row]).astype(np.int32))
  return types.TrainingBatch(
      tokens=tokens, targets=np.zeros_like(tokens), weights=np.zeros(tokens.shape, np.float32), positions=index,
      segments=(index < length).astype(np.int32), **encoder)
