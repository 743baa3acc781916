"""Whether a batch fits: bytes of its state, its prefill and its [B, K + 1, V] buffers against what the machine has free."""

import os

import jax
import numpy as np

from specjax.core import errors

# Float32 arrays [B, K + 1, V] that are alive together in one round: target logits, the target's and the drafter's laws
# (tempered and truncated), the goal, and the drafter's logits.
LAW_BUFFERS = 7
# Arrays of the size of the largest one in prefill that are alive together: attention's scores and their softmax.
PREFILL_BUFFERS = 2

_GIB = 2.0**30
_TRACED = {}  # Tracing costs a tenth of a second, a request of known shapes does not pay it again.


def tree_bytes(tree):
  """Bytes of all arrays of a pytree, of `jax.ShapeDtypeStruct` as well."""
  return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def batch_bytes(decoder, params, requests, *, capacity):
  """Name -> bytes that a batch needs beside the parameters, found by tracing `decoder.init`; allocates nothing.

  Args:
    decoder: a decoder.
    params, requests: its arguments; arrays or `jax.ShapeDtypeStruct`.
    capacity: slots of a full cache layer.
  """
  leaves, treedef = jax.tree.flatten((params, requests))
  # Leaves of the decoder are numbers: they make no array larger.
  key = (jax.tree.structure(decoder), treedef, capacity, tuple((np.shape(x), str(x.dtype)) for x in leaves))
  if key not in _TRACED:
    _TRACED[key] = _trace(decoder, params, requests, capacity)
  return dict(_TRACED[key])


def _trace(decoder, params, requests, capacity):
  # Abstract evaluation: a batch that cannot fit must not be allocated to be refused.
  traced, state = jax.make_jaxpr(lambda p, r: decoder.init(p, r, capacity), return_shape=True)(params, requests)
  batch, width, vocab_size = state.length.shape[0], decoder.num_draft_tokens + 1, decoder.target.vocab_size
  return {
      'state and caches': tree_bytes(state),
      f'prefill of {requests.prompt.tokens.shape[1]} tokens': PREFILL_BUFFERS * _largest_array(traced.jaxpr),
      f'[B={batch}, K+1={width}, V={vocab_size}] buffers': LAW_BUFFERS * 4 * batch * width * vocab_size,
  }


def _largest_array(jaxpr):
  """Bytes of the largest array that a program makes on the way, inside its loops and branches too."""
  largest = 0
  for equation in jaxpr.eqns:
    for value in equation.params.values():
      for inner in jax.tree.leaves(value, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          largest = max(largest, _largest_array(inner))
    largest = max([largest, *(_bytes(variable.aval) for variable in equation.outvars)])
  return largest


def _bytes(array):
  dtype = getattr(array, 'dtype', None)
  if dtype is None:
    return 0
  # Keys of random numbers have a dtype of their own; they are two words.
  return int(array.size) * (8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize)


def available_bytes():
  """Bytes that can still be allocated on the default device: its own limit, or the host's free memory and cgroup limit.

  None where the system does not say.
  """
  stats = jax.devices()[0].memory_stats() if jax.default_backend() != 'cpu' else None
  if stats and 'bytes_limit' in stats:
    return int(stats['bytes_limit']) - int(stats.get('bytes_in_use', 0))
  free = [value for value in (_meminfo_available(), _cgroup_available()) if value is not None]
  return min(free) if free else None


def _meminfo_available():
  try:
    with open('/proc/meminfo', encoding='ascii') as file:
      fields = dict(line.split(':', 1) for line in file)
    return int(fields['MemAvailable'].split()[0]) * 1024
  except (OSError, KeyError, ValueError):
    return None


def _cgroup_available(root='/sys/fs/cgroup'):
  try:
    with open(os.path.join(root, 'memory.max'), encoding='ascii') as file:
      limit = int(file.read())
    with open(os.path.join(root, 'memory.current'), encoding='ascii') as file:
      return max(0, limit - int(file.read()))
  except (OSError, ValueError):
    return None


def check_fits(parts, *, available, where):
  """Raises `LimitError` with the numbers when the sum of `parts` exceeds `available`.

  Args:
    parts: name -> bytes.
    available: bytes, or None when unknown (then nothing is refused).
    where: what asks for it.
  """
  total = sum(parts.values())
  if available is None or total <= available:
    return
  listed = ', '.join(f'{name} {size / _GIB:.2f} GiB' for name, size in parts.items())
  raise errors.LimitError(
      what='a batch that cannot fit in memory', where=where, got=f'{total / _GIB:.2f} GiB ({listed})',
      expected=f'at most the {available / _GIB:.2f} GiB that are free',
      fix='Lower batch_size, num_draft_tokens or max_new_tokens.')
