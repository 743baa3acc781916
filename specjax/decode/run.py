"""THE jit boundary of decoding: one executable per (structure, batch, prompt width, capacity), compiled once and logged.

Numbers (thresholds, temperatures, limits, learned weights) are arguments of the executables; only structure compiles. The
decoding state is donated and returned, nothing calls back to the host inside, and `decode` is one `lax.while_loop`.

    state = run.prefill(decoder, params, requests, capacity=256)
    state = run.decode(decoder, params, state, max_steps=1000)
    result = run.collect(state)
"""

import collections
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
import numpy as np

from specjax.core import errors
from specjax.core import types


class CompileRecord(NamedTuple):
  """One executable: its entry point, a description of the shapes, and what tracing and compiling took (seconds)."""

  name: str
  shapes: str
  trace_seconds: float
  compile_seconds: float


_EXECUTABLES = {}
_LOG = []
# One lock per executable: two threads that ask for the same one must not both compile it.
_COMPILING = collections.defaultdict(threading.Lock)
_LOCK = threading.Lock()  # of that table


def compile_log():
  """Tuple of `CompileRecord`, every executable this process compiled, in order."""
  return tuple(_LOG)


def forget():
  """Drops all executables; the log stays. A process can hold a few hundred: each takes maps of memory, of which there are
  65,530 by default on Linux, and then LLVM cannot allocate any."""
  _EXECUTABLES.clear()
  _COMPILING.clear()


def clear():
  """Forgets all executables and the log."""
  forget()
  _LOG.clear()


def prefill(decoder, params, requests, *, capacity):
  """The decoding state before the first round. Compiled per structure, batch, prompt width and `capacity` (static).

  Raises:
    LimitError: the prompts are wider than `capacity`.
  """
  width = jnp.shape(requests.prompt.tokens)[1]
  if capacity < width:
    raise errors.LimitError(
        what='capacity', got=capacity, expected=f'at least the {width} tokens of the prompts',
        fix="make room for the new tokens and the decoder's slack too")
  return compiled('prefill', decoder, params, requests, capacity=capacity)(_leaves(decoder), params, requests)


def decode(decoder, params, state, *, max_steps):
  """The state after at most `max_steps` rounds (traced), or when every row has stopped. `state` is donated."""
  steps = np.int32(max_steps)
  return compiled('decode', decoder, params, state, steps)(_leaves(decoder), params, state, steps)


def step(decoder, params, state):
  """The state after one round, for notebooks; the same step as `decode`. `state` is donated."""
  return compiled('step', decoder, params, state)(_leaves(decoder), params, state)


def insert(state, rows, other):
  """`state` with row `rows[i]` int32[N] replaced by row i of `other`; same structure, no recompile.

  Raises:
    ParamError: no such row, one named twice, or not one for each row of `other`.
  """
  rows = np.asarray(rows)
  if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
    raise errors.ParamError(what='rows to insert', got=rows.tolist(), expected='a list of row numbers')
  batch, count = state.length.shape[0], other.length.shape[0]
  named = rows.tolist()
  if len(named) != count or len(set(named)) != count or not all(0 <= row < batch for row in named):
    # The device would drop a row that does not exist without a word.
    raise errors.ParamError(
        what='rows to insert', got=named, expected=f'{count} different numbers in [0, {batch}), one per row of the other')
  rows = rows.astype(np.int32)
  return compiled('insert', None, state, rows, other)(state, rows, other)


def finish(state, rows):
  """`state` with the rows bool[B] stopped (status STOP): inert until replaced."""
  return compiled('finish', None, state, rows)(state, rows)


def compiled(name, decoder, *args, **static):
  """The executable of an entry point for these arguments, compiled on first use.

  Args:
    name: 'prefill', 'decode', 'step', 'insert' or 'finish'.
    decoder: the decoder, or None for entry points that need none.
    *args: its traced arguments, arrays or `jax.ShapeDtypeStruct`.
    **static: static arguments.

  Returns:
    `jax.stages.Compiled`; its first argument is the decoder's leaves where there is a decoder.
  """
  return _executable(name, decoder, args, static)[0]


def compile_ahead(decoder, params, requests, *, capacity, first=None):
  """The `CompileRecord`s of what was compiled now of the programs that `prefill` and `decode` would ask for; runs nothing.

  May be called from several threads: a compilation leaves part of two cores idle.

  Args:
    decoder, params, requests, capacity: as of `prefill`; shapes (`jax.ShapeDtypeStruct`) do in place of arrays.
    first: the decoder whose `init` is the prefill; None is `decoder`. Rules that share it share an executable.
  """
  first = decoder if first is None else first
  state = jax.eval_shape(lambda params, requests: first.init(params, requests, capacity), params, requests)
  found = (_executable('prefill', first, (params, requests), dict(capacity=capacity)),
           _executable('decode', decoder, (params, state, np.int32(0)), {}))
  return [record for _, record in found if record is not None]


def _executable(name, decoder, args, static):
  """(the executable, its `CompileRecord` where this call compiled it)."""
  prefix = () if decoder is None else (_leaves(decoder),)
  traced = prefix + args
  structure = jax.tree.structure(decoder)
  leaves, treedef = jax.tree.flatten(traced)
  key = (name, structure, treedef, tuple(map(_signature, leaves)), tuple(sorted(static.items())), _settings())
  with _LOCK:
    compiling = _COMPILING[key]
  with compiling:
    if key in _EXECUTABLES:
      return _EXECUTABLES[key], None
    _EXECUTABLES[key], record = _compile(name, structure, traced, static, leaves)
  return _EXECUTABLES[key], record


def _compile(name, structure, traced, static, leaves):
  function, donated = _ENTRY_POINTS[name]
  jitted = jax.jit(_named(name, lambda *args: function(structure, *args, **static)), donate_argnums=donated)
  start = time.perf_counter()
  lowered = jitted.lower(*traced)
  traced_at = time.perf_counter()
  executable = lowered.compile()
  done = time.perf_counter()
  biggest = max((jnp.shape(x) for x in leaves), key=lambda shape: int(np.prod(shape)), default=())
  shapes = ', '.join([f'{k}={v}' for k, v in sorted(static.items())] + [f'largest leaf {tuple(biggest)}'])
  record = CompileRecord(name, shapes, traced_at - start, done - traced_at)
  _LOG.append(record)
  return executable, record


def _named(name, function):
  function.__name__ = f'specjax_{name}'
  return function


def _leaves(decoder):
  """The decoder's numbers as arrays, so that a Python float and a new value of it share one executable."""
  return [_as_array(leaf) for leaf in jax.tree.leaves(decoder)]


def _as_array(leaf):
  if isinstance(leaf, float):
    return np.asarray(leaf, jnp.result_type(float))
  if isinstance(leaf, (bool, np.bool_)):
    return np.asarray(leaf)
  if isinstance(leaf, int):
    return np.asarray(leaf, np.int32)
  return leaf


def _signature(leaf):
  # An array that nobody has placed goes where a numpy array goes: one executable for both.
  sharding = leaf.sharding if getattr(leaf, 'committed', False) else None
  return (jnp.shape(leaf), jnp.result_type(leaf), getattr(leaf, 'weak_type', False), sharding)


def _settings():
  """The settings of jax that change what is compiled."""
  return (
      jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision, jax.config.jax_debug_nans,
      jax.config.jax_numpy_dtype_promotion)


def _prefill(structure, decoder_leaves, params, requests, *, capacity):
  return jax.tree.unflatten(structure, decoder_leaves).init(params, requests, capacity)


def _decode(structure, decoder_leaves, params, state, max_steps):
  decoder = jax.tree.unflatten(structure, decoder_leaves)

  def running(carry):
    state, steps = carry
    return jnp.any(state.status == types.Status.RUNNING) & (steps < max_steps)

  def body(carry):
    state, steps = carry
    return decoder.step(params, state), steps + 1

  return lax.while_loop(running, body, (state, jnp.int32(0)))[0]


def _step(structure, decoder_leaves, params, state):
  return jax.tree.unflatten(structure, decoder_leaves).step(params, state)


def _insert(structure, state, rows, other):
  del structure
  return jax.tree.map(lambda old, new: old.at[rows].set(new), state, other)


def _finish(structure, state, rows):
  del structure
  stopped = rows & (state.status == types.Status.RUNNING)
  return state.replace(status=jnp.where(stopped, types.Status.STOP, state.status))


_ENTRY_POINTS = {
    'prefill': (_prefill, ()),
    'decode': (_decode, (2,)),
    'step': (_step, (2,)),
    'insert': (_insert, (0,)),
    'finish': (_finish, (0,)),
}


class Collected(NamedTuple):
  """A finished batch on the host, numpy. Shapes as in `DecodeState`; stats are int64."""

  tokens: np.ndarray
  length: np.ndarray
  prompt_length: np.ndarray
  status: np.ndarray
  log_probs: np.ndarray | None
  stats: types.DecodeStats
  record: object


def collect(state):
  """`Collected`: what a caller reads of a state, in one transfer. The state stays usable."""
  wanted = (state.tokens, state.length, state.prompt_length, state.status, state.log_probs, state.stats, state.record)
  tokens, length, prompt_length, status, log_probs, stats, record = jax.device_get(wanted)
  stats = jax.tree.map(lambda x: np.asarray(x, np.int64), stats)
  return Collected(tokens, length, prompt_length, status, log_probs, stats, record)
