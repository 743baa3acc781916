"""Clocks and the physical limit: how long a step must take for the bytes it reads and the operations it does."""

import contextlib
import gc
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp


MATRIX_BYTES = tuple(2**power for power in (18, 20, 22, 24, 26, 28))


class Machine(NamedTuple):
  """What the device was measured to do.

  Attributes:
    bandwidths: ((bytes, bytes/s), ...) of matrix-vector products over matrices of growing size: what fits in a cache is
      read faster than main memory.
    flops: 1/s, of a matrix product.
  """

  bandwidths: tuple[tuple[int, float], ...]
  flops: float

  def bandwidth(self, size):
    """bytes/s at which `size` bytes can be read at best: the highest rate over the largest matrix no larger, or beyond.

    Beyond, because small products are slowed down by the call itself.
    """
    first = max([number for number, (measured, _) in enumerate(self.bandwidths) if measured <= size], default=0)
    return max(rate for _, rate in self.bandwidths[first:])


class StepCost(NamedTuple):
  """What one pass of a model must do for a whole batch.

  Attributes:
    weight_bytes: bytes of the parameters that a pass reads, whatever the batch.
    cache_bytes: bytes of the live key-value cache of all rows.
    flops: floating-point operations of one token of every row.
  """

  weight_bytes: float
  cache_bytes: float
  flops: float


@contextlib.contextmanager
def garbage_collection_off():
  """Keeps the garbage collector out of a timed interval."""
  was_on = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_on:
      gc.enable()


def timed(function, *args, **kwargs):
  """(outputs, seconds) of one call, ending when all outputs are ready."""
  with garbage_collection_off():
    start = time.perf_counter()
    outputs = jax.block_until_ready(function(*args, **kwargs))
    return outputs, time.perf_counter() - start


def _best(function, *args, repeats):
  jax.block_until_ready(function(*args))
  return min(timed(function, *args)[1] for _ in range(repeats))


def measure_machine(*, sizes=MATRIX_BYTES, width=1024, repeats=5):
  """The `Machine` this process runs on: best of `repeats` after a warm-up.

  Args:
    sizes: bytes of the float32 matrices of the matrix-vector products, ascending.
    width: side of the square float32 matrices of the matrix product.
    repeats: timed calls of each.
  """
  columns = 1024
  product = jax.jit(jnp.matmul)
  bandwidths = []
  for size in sizes:
    rows = max(1, int(size) // (4 * columns))
    seconds = _best(product, jnp.ones((rows, columns)), jnp.ones((columns,)), repeats=repeats)
    bandwidths.append((4 * rows * columns, 4.0 * rows * columns / seconds))
  square = jnp.ones((width, width))
  seconds = _best(product, square, square, repeats=repeats)
  return Machine(bandwidths=tuple(bandwidths), flops=2.0 * width**3 / seconds)


def pass_limit(cost: StepCost, machine: Machine, *, width=1):
  """Seconds that one pass over `width` tokens per row takes at least: the larger of its bytes' and operations' time."""
  size = cost.weight_bytes + cost.cache_bytes
  return max(size / machine.bandwidth(size), width * cost.flops / machine.flops)


def pct_of_limit(limit_seconds, measured_seconds):
  """100 t_limit / t_measured; None where nothing was measured."""
  return 100.0 * limit_seconds / measured_seconds if measured_seconds else None
