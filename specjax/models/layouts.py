"""How matrices lie in memory. On CPU a block of a few tokens is multiplied faster by matrices stored output first.

Models are defined with kernels [features in, features out]. XLA's product of a few rows with such a matrix takes twice the
time of one row with it, although both read the same bytes; with the transpose it takes little more. So parameters may be
handed to a model with `kernel_t` [features out, features in] in place of `kernel`. On an accelerator the compiler lays out
matrices itself: leave the parameters as they are there.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

# Smaller matrices stay in the cache of a core, where the order makes no difference.
MIN_BYTES = 2**20


def output_first(params: Any, *, min_bytes: int = MIN_BYTES) -> Any:
  """`params` with every kernel of at least `min_bytes` stored output first, for decoding on CPU; copies of those kernels."""
  return _renamed(params, 'kernel', 'kernel_t', lambda leaf: leaf.ndim == 2 and leaf.nbytes >= min_bytes)


def input_first(params: Any) -> Any:
  """The inverse of `output_first`: parameters as models define them and as they are saved."""
  return _renamed(params, 'kernel_t', 'kernel', lambda leaf: True)


def for_backend(params: Any) -> Any:
  """`params` as the default backend reads them fastest: output first on CPU, unchanged elsewhere."""
  return output_first(params) if jax.default_backend() == 'cpu' else params


def _renamed(params, old, new, is_wanted):
  if not isinstance(params, Mapping):
    return params
  return {
      new if name == old and is_wanted(leaf) else name: (
          jnp.swapaxes(leaf, 0, 1) if name == old and is_wanted(leaf) else _renamed(leaf, old, new, is_wanted))
      for name, leaf in params.items()}
