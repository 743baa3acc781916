"""Warping: every law equals the one found by sorting, and broken rows show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import types
from specjax.ops import warping
from specjax.testing import oracles


def _sampling(warps):
  column = lambda name, kind: jnp.asarray([getattr(warp, name) for warp in warps], kind)
  return types.Sampling(
      temperature=column('temperature', jnp.float32), top_k=column('top_k', jnp.int32), top_p=column('top_p', jnp.float32),
      min_p=column('min_p', jnp.float32))


def test_law_dtype_is_at_least_float32_under_strict_promotion(x64):
  """`promote_types` refused bfloat16 and float64 under strict promotion, so no such decoder could be traced."""
  assert warping.probability_dtype(jnp.bfloat16) == jnp.float32
  assert warping.probability_dtype(jnp.float32) == jnp.float32
  assert warping.probability_dtype(jnp.float64) == jnp.float64
