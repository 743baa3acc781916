"""Strict settings for every test: no silent rank or dtype promotion, keys used once."""

import collections
import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests compile far more than they run: this halves the time of LLVM, and changes nothing before it (buffers, aliasing).
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true')

import jax
import pytest

from specjax.decode import run

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_debug_key_reuse', True)

pytest_plugins = ['specjax.testing.plugin']  # --mutant=M05 plants a bug

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Parametrized tests of which the default suite runs one case in so many: most of the CPU time of everything together.
SAMPLED = {
    'tests/exactness/test_exact_': 8, 'tests/mutants/': 8, 'tests/conformance/': 3, 'tests/decode/test_routed.py': 3,
    'tests/decode/test_sequence_cascade.py': 3, 'tests/drafters/test_heads.py': 3, 'tests/drafters/test_model_tree.py': 3,
    'tests/drafters/test_refinement.py': 3, 'tests/evaluation/test_runner.py': 4}


@pytest.hookimpl(tryfirst=True)  # before -m "not nightly" looks at the marks
def pytest_collection_modifyitems(items):
  """Marks what `SAMPLED` leaves out as nightly; the nightly suite runs all."""
  seen = collections.Counter()
  for item in items:
    path = item.path.relative_to(ROOT).as_posix()
    every = next((every for prefix, every in SAMPLED.items() if path.startswith(prefix)), 1)
    if path != 'tests/exactness/test_exact_law.py' and hasattr(item, 'callspec'):
      family = path, item.originalname
      if seen[family] % every:
        item.add_marker(pytest.mark.nightly)
      seen[family] += 1


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
