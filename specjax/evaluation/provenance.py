"""What a result was made with: code, versions, chip, data and weights. Kept in run.json beside the rows."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import time

import jax

from specjax.evaluation import rows

METRICS_VERSION = 1
_PACKAGES = ('jax', 'jaxlib', 'libtpu', 'flax', 'numpy', 'sentencepiece', 'gin-config')
_XLA_VARIABLES = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'JAX_PLATFORMS', 'XLA_PYTHON_CLIENT_MEM_FRACTION')


def _git(*arguments):
  root = pathlib.Path(__file__).resolve().parents[2]
  try:
    done = subprocess.run(('git', '-C', str(root), *arguments), capture_output=True, text=True, timeout=10, check=True)
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip()


def git_state():
  """{'commit', 'dirty'} of the checkout this code runs from; None where it is not one."""
  commit = _git('rev-parse', 'HEAD')
  status = _git('status', '--porcelain', '--untracked-files=no') if commit else None
  return {'commit': commit, 'dirty': bool(status) if status is not None else None}


def versions():
  """Version of Python and of each package that is installed."""
  found = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


def _processor_name():
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      names = [line.split(':', 1)[1].strip() for line in file if line.startswith('model name')]
  except OSError:
    return platform.processor() or platform.machine()
  return names[0] if names else platform.machine()


def chip():
  """Kind and number of the devices, mesh and hosts."""
  devices = jax.devices()
  is_cpu = devices[0].platform == 'cpu'
  return {
      'platform': devices[0].platform, 'kind': _processor_name() if is_cpu else devices[0].device_kind,
      'devices': len(devices), 'cores': len(os.sched_getaffinity(0)) if is_cpu else None, 'mesh': None,
      'hosts': jax.process_count(),
  }


def chip_label(described):
  """One short phrase for captions: 'CPU, 2 cores (Xeon ...)' or '8 x TPU v5e'."""
  if described.get('platform') == 'cpu':
    return f'{described.get("cores")}-core CPU ({described.get("kind")})'
  return f'{described.get("devices")} x {described.get("kind")}'


def sha256_of_files(paths):
  """Hex SHA-256 over names and contents, None without files."""
  digest, paths = hashlib.sha256(), sorted(map(pathlib.Path, paths))
  for path in paths:
    digest.update(path.name.encode() + b'\0' + hashlib.sha256(path.read_bytes()).digest())
  return digest.hexdigest() if paths else None


def session(*, operative_config, compilation_cache):
  """What is known at the start of a session.

  Args:
    operative_config: the configuration as text that can be run again, or None.
    compilation_cache: {'path', 'entries'} at the start, or None when off.
  """
  return {
      'started': time.time(), 'ended': None, 'git': git_state(), 'versions': versions(), 'chip': chip(),
      'xla': {name: os.environ.get(name) for name in _XLA_VARIABLES},
      'matmul_precision': str(jax.config.jax_default_matmul_precision),
      'prng': str(jax.config.jax_default_prng_impl), 'x64': bool(jax.config.jax_enable_x64),
      'compilation_cache': compilation_cache, 'operative_config': operative_config, 'executables': [],
      'n_compiles': 0, 'compile_s': 0.0, 'n_compiles_after_warm_up': 0,
      'row_version': rows.ROW_VERSION, 'metrics_version': METRICS_VERSION,
  }
