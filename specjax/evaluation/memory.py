"""Whether a batch fits: the bytes of its caches and [B, K + 1, V] buffers against what the machine has free."""

import os

import jax

from specjax.core.errors import LimitError

# Float32 arrays [B, K + 1, V] that are alive together in one round: target logits, the target's and the drafter's laws
# (tempered and truncated), the goal, and the drafter's logits.
LAW_BUFFERS = 7

_GIB = 2.0**30


def tree_bytes(tree):
  """Bytes of all arrays of a pytree, of `jax.ShapeDtypeStruct` as well."""
  return sum(int(leaf.size) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def round_bytes(*, batch, num_draft_tokens, vocab_size):
  """Bytes of the [B, K + 1, V] float32 buffers of one round."""
  return LAW_BUFFERS * 4 * batch * (num_draft_tokens + 1) * vocab_size


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
    where: which point asks for it.
  """
  total = sum(parts.values())
  if available is None or total <= available:
    return
  listed = ', '.join(f'{name} {size / _GIB:.2f} GiB' for name, size in parts.items())
  raise LimitError(
      what='a batch that cannot fit in memory', where=where, got=f'{total / _GIB:.2f} GiB ({listed})',
      expected=f'at most the {available / _GIB:.2f} GiB that are free',
      fix='Lower batch_size, num_draft_tokens or max_new_tokens.')
