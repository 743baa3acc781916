"""The exact joint law of the jitted decoding step, by integration over its uniforms.

With inverse-CDF draws the tokens of a round are piecewise constant in the round's uniforms: one point per cell times the
volume of the cell integrates the compiled step without sampling error. The breakpoints are read off the arrays that the step
itself compared with (`StepTrace`), never off an oracle, which a bug would not move.

    contexts (prefix, real caches) -> policy cells -> draft cells, token by token -> accept cells -> final cells
      -> states after the step -> contexts of the next round, merged by what was emitted

Rows of the compiled batch are cells: every request of the batch is enumerated at once, among neighbours of other prefixes,
parameters and lengths. States are carried on as they come out of the step, one representative for every (request, emitted
tokens, status, cache lengths), so that a stale or misplaced cache entry shows in the law of a later round.

Each round's uniforms are integrated by themselves; this cannot see random numbers that return in a later round.
"""

import copy
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import types
from specjax.ops import categorical
from specjax.ops import keys

_ROUND_FIELDS = ('draft', 'policy', 'accept', 'final')


@dataclasses.dataclass
class JointLaw:
  """What a decoder does, in expectation.

  Attributes:
    laws: one dict per request, (tuple of emitted tokens, Status) -> probability.
    counters: dict of `DecodeStats` field -> expected value, float64[requests] or float64[requests, K]; the record's fields
      too where a recorder is set whose record is a NamedTuple of sums.
    num_cells: how many cells were integrated.
  """

  laws: list[dict[tuple[tuple[int, ...], types.Status], float]]
  counters: dict[str, np.ndarray]
  num_cells: int

  def mass(self):
    """float64[requests], the total probability, which must be 1."""
    return np.array([sum(law.values()) for law in self.laws])


@dataclasses.dataclass
class Cells:
  """Boxes of the unit cube: `context` int[N], `weight` float64[N] (volume times the context's), a point in each box."""

  context: np.ndarray
  weight: np.ndarray
  uniforms: dict[str, np.ndarray]

  @classmethod
  def whole(cls, weight, num_draft_tokens, at):
    """One cell per context: nothing is split yet, every uniform is at `at`."""
    width = num_draft_tokens + 1
    shapes = dict(draft=(width, 2), policy=(width,), accept=(num_draft_tokens,), final=(2,))
    return cls(np.arange(len(weight)), weight.copy(), {
        name: np.full((len(weight), *shape), at, np.float64) for name, shape in shapes.items()})

  def split(self, field, index, edges, at):
    """The cells cut along one uniform at `edges` float64[N, n + 1] from 0 to 1, and which cell each is a part of.

    Cells without volume disappear.
    """
    row, part = np.nonzero(np.diff(edges, axis=1) > 0)
    low, high = edges[row, part], edges[row, part + 1]
    uniforms = {name: values[row] for name, values in self.uniforms.items()}
    uniforms[field][(slice(None), *index)] = low + at * (high - low)
    return Cells(self.context[row], self.weight[row] * (high - low), uniforms), row


class _Trace(NamedTuple):
  """What the comparisons of a step used: draft_cdf [B, K, V], accept_probs [B, K], final_cdf [B, V]."""

  draft_cdf: jax.Array
  accept_probs: jax.Array
  final_cdf: jax.Array


def _traced_step(decoder, params, state, uniforms):
  state, trace = decoder.step_with(params, state, uniforms)
  running = jax.vmap(categorical.cdf)
  return state, _Trace(
      draft_cdf=jax.vmap(running)(jnp.exp(trace.proposal.log_probs)),
      accept_probs=trace.verdict.accept_probs, final_cdf=running(trace.verdict.final_probs))


class Enumerator:
  """Integrates decoders; compiles once per structure.

  Args:
    rows: rows of the compiled step (static); cells are padded to a multiple of it.
    at: where in each cell the step is evaluated, in (0, 1). The law must not depend on it: near 0 and 1 this tests that the
      step's breakpoints are where its trace says.
    policy_breaks: for every request, the n points at which a randomised length policy compares its own uniforms (repeated
      where there are fewer); () without such a policy.
    phase_of: function of a state -> int[rows], for decoders that start an answer again; the phase grows where one does.
    test_order: the acceptance tests in an order in which each depends on those before it alone, as in trees; None where no
      test depends on another.
    optimise: whether XLA optimises the step as in production; without, it compiles in half the time.
  """

  def __init__(self, *, rows=512, at=0.5, policy_breaks=(), phase_of=lambda state: 0 * state.length, test_order=None,
               optimise=False):
    self.rows, self.at, self.policy_breaks, self.phase_of = rows, at, tuple(policy_breaks), phase_of
    self.test_order = test_order
    options = None if optimise else {
        'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
    self._prefill = jax.jit(
        lambda decoder, params, requests, capacity: decoder.init(params, requests, capacity), static_argnums=3,
        compiler_options=options)
    # A function of its own: jax must not hand out what it traced before a module was patched.
    self._step = jax.jit(lambda *args: _traced_step(*args), compiler_options=options)

  def evaluated_at(self, at):
    """The same executables at another point of the cells."""
    other = copy.copy(self)
    other.at = at
    return other

  def joint(self, decoder, params, requests, *, capacity):
    """`JointLaw` of decoding `requests` to the end. Run it in an x64 context with float64 parameters."""
    decoder = jax.tree.map(np.asarray, decoder)
    num_requests = requests.max_new_tokens.shape[0]
    state = _host(self._prefill(decoder, params, requests, capacity))
    contexts = _Contexts(state, np.ones(num_requests), np.arange(num_requests))
    result = JointLaw([{} for _ in range(num_requests)], {}, 0)
    while True:
      contexts = contexts.without_stopped(result.laws)
      if not len(contexts.weight):
        return result
      cells = self._cells(decoder, params, contexts)
      after = self._run(decoder, params, contexts, cells, _state_after)
      result.num_cells += len(cells.weight)
      contexts = contexts.advanced(cells, after, result.counters, self.phase_of)

  def _cells(self, decoder, params, contexts):
    """The cells of one round of all contexts."""
    num_draft_tokens = decoder.num_draft_tokens
    cells = Cells.whole(contexts.weight, num_draft_tokens, self.at)
    for i in range(max(num_draft_tokens, 1) if self.policy_breaks else 0):
      breaks = np.array(self.policy_breaks, np.float64)[contexts.request[cells.context]]
      edges = np.pad(np.pad(breaks, ((0, 0), (1, 0))), ((0, 0), (0, 1)), constant_values=1)
      cells, _ = cells.split('policy', (i,), edges, self.at)
    for i in range(num_draft_tokens):
      running = self._run(decoder, params, contexts, cells, lambda _, trace, i=i: trace.draft_cdf[:, i])
      is_law = np.abs(running[:, -1:] - 1) < 1e-2
      cells, _ = cells.split('draft', (i, 1), _edges(np.where(is_law, running, 1)), self.at)
    if num_draft_tokens and self.test_order is None:
      accept = self._run(decoder, params, contexts, cells, lambda _, trace: trace.accept_probs)
      # All 2^K patterns: a verifier may scan on past the first rejection.
      for i in range(num_draft_tokens):
        cells, source = cells.split('accept', (i,), _accept_edges(accept[:, i]), self.at)
        accept = accept[source]
    for i in self.test_order or ():
      accept = self._run(decoder, params, contexts, cells, lambda _, trace, i=i: trace.accept_probs[:, i])
      cells, _ = cells.split('accept', (i,), _accept_edges(accept), self.at)
    final = self._run(decoder, params, contexts, cells, lambda _, trace: trace.final_cdf)
    return cells.split('final', (1,), _edges(final), self.at)[0]

  def _run(self, decoder, params, contexts, cells, pick):
    """What `pick(state, trace)` reads of one step in every cell, on the host."""
    total = len(cells.weight)
    _require(total > 0, 'no cell has volume: a law without mass')
    parts = []
    for start in range(0, total, self.rows):
      chosen = np.minimum(np.arange(start, start + self.rows), total - 1)
      state = contexts.gather(cells.context[chosen])
      uniforms = types.RoundUniforms(**{name: cells.uniforms[name][chosen] for name in _ROUND_FIELDS})
      picked = pick(*self._step(decoder, params, state, uniforms))
      parts.append(jax.tree.map(lambda x: np.asarray(x)[:total - start], picked))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@dataclasses.dataclass
class _Contexts:
  """The states a round starts from: host rows, their probabilities, and the request each belongs to."""

  state: Any
  weight: np.ndarray
  request: np.ndarray

  def gather(self, rows):
    state = jax.tree.map(lambda x: x[rows], self.state)
    # The step with given uniforms never reads the key; typed keys do not live on the host.
    return state.replace(key=jax.random.wrap_key_data(np.zeros((len(rows), 2), np.uint32), impl=keys.IMPLEMENTATION))

  def without_stopped(self, laws):
    """The contexts that still run; the others are added to `laws`."""
    running = self.state.status == types.Status.RUNNING
    for row in np.flatnonzero(~running):
      start, stop = self.state.prompt_length[row], self.state.length[row]
      outcome = tuple(int(t) for t in self.state.tokens[row, start:stop]), types.Status(int(self.state.status[row]))
      law = laws[self.request[row]]
      law[outcome] = law.get(outcome, 0.0) + self.weight[row]
    return _Contexts(jax.tree.map(lambda x: x[running], self.state), self.weight[running], self.request[running])

  def advanced(self, cells, after, counters, phase_of):
    """The contexts of the next round: equal outcomes merged. Adds what the round counted to `counters`."""
    length, *counted = jax.tree.map(lambda x: x[cells.context], (self.state.length, self.state.stats, self.state.record))
    starts_again = phase_of(after) > phase_of(self.state)[cells.context]
    stuck = (after.status == types.Status.RUNNING) & (after.length <= length) & ~starts_again
    _require(not stuck.any(), 'a round emitted nothing and the row still runs')
    request = self.request[cells.context]
    num_requests = int(self.request.max()) + 1 if not counters else next(iter(counters.values())).shape[0]
    before = _counters(*counted)
    for name, value in _counters(after.stats, after.record).items():
      change = np.asarray(value - before[name], np.float64)
      total = counters.setdefault(name, np.zeros((num_requests, *change.shape[1:])))
      np.add.at(total, request, change * cells.weight.reshape((-1,) + (1,) * (change.ndim - 1)))
    kept = np.arange(after.tokens.shape[1])[None, :] < after.length[:, None]
    key = np.column_stack([request, after.status, np.where(kept, after.tokens, -1), *_lengths(after)])
    # Which of the equal outcomes stands for the others is arbitrary on purpose: their garbage slots differ.
    order = np.random.RandomState(len(key)).permutation(len(key))
    _, first, inverse = np.unique(key[order], axis=0, return_index=True, return_inverse=True)
    weight = np.bincount(inverse.reshape(-1), weights=cells.weight[order])
    chosen = order[first]
    return _Contexts(jax.tree.map(lambda x: x[chosen], after), weight, request[chosen])


def _counters(stats, record):
  """dict name -> array [rows, ...] of everything that only grows."""
  found = {field.name: getattr(stats, field.name) for field in dataclasses.fields(types.DecodeStats)}
  return found | (record._asdict() if hasattr(record, '_asdict') else {})


def _state_after(state, trace):
  del trace
  return state.replace(key=None)


def _host(state):
  return jax.tree.map(np.asarray, state.replace(key=None))


def _lengths(state):
  """Every per-row integer of the caches and of the drafter: lengths and policy states."""
  leaves = jax.tree.leaves((state.target_cache, state.drafter_state))
  return [leaf for leaf in leaves if leaf.ndim == 1 and np.issubdtype(leaf.dtype, np.integer)]


def _accept_edges(accept):
  """float64[N, 3], the two cells of a test that compares with `accept` float[N]."""
  _require(np.all((accept >= 0) & (accept <= 1)), 'an acceptance probability lies outside [0, 1]')
  return np.stack([np.zeros(len(accept)), accept, np.ones(len(accept))], axis=1)


def _edges(running):
  """float64[N, V + 1], the cells of draws that compare with `running` float[N, V]; one cell where that is no law."""
  running = running.astype(np.float64)
  total = running[:, -1:]
  is_law = np.isfinite(total) & (total > 0)
  running = np.where(is_law, running / np.where(is_law, total, 1), 1)
  return np.concatenate([np.zeros_like(total), running[:, :-1], np.ones_like(total)], axis=1)


def _require(condition, message):
  if not condition:
    raise AssertionError(message)


def total_variation(first, second):
  """Half the L1 distance of two laws given as dicts."""
  return 0.5 * sum(abs(first.get(x, 0.0) - second.get(x, 0.0)) for x in {*first, *second})
