"""Strict settings for every test: no silent rank or dtype promotion, keys used once."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest

from specjax.decode import run

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_debug_key_reuse', True)

pytest_plugins = ['specjax.testing.plugin']  # --mutant=M05 plants a bug

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module', autouse=True)
def executables_of_one_module():
  """Forgets what a test module compiled: thousands of executables took 5 GB and slowed everything that came after."""
  yield
  run.clear()
  jax.clear_caches()


@pytest.fixture
def golden_dir():
  """The folder of reference checkpoints, or a skip."""
  path = pathlib.Path(os.environ.get('SPECJAX_GOLDEN_DIR', ROOT.parent / 'shared' / 'golden'))
  if not path.is_dir():
    pytest.skip(f'no reference checkpoints at {path}: set SPECJAX_GOLDEN_DIR')
  return path


@pytest.fixture
def x64():
  """float64 for one test."""
  with jax.enable_x64(True):
    yield
