"""JAX's persistent compilation cache, turned on by the binaries: the second run of a command compiles nothing."""

import os

import jax


def keep():
  """{'path', 'entries'} of the persistent compilation cache after turning it on; None when the user has turned it off.

  JAX_COMPILATION_CACHE_DIR chooses the directory and JAX_ENABLE_COMPILATION_CACHE=false turns it off, as everywhere.
  """
  if not jax.config.jax_enable_compilation_cache:
    return None
  path = jax.config.jax_compilation_cache_dir
  if not path:
    base = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    path = os.path.join(base, 'specjax', 'xla')
    jax.config.update('jax_compilation_cache_dir', path)
  # Small executables are half of a demo's compile time.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  entries = len(os.listdir(path)) if os.path.isdir(path) else 0
  return {'path': path, 'entries': entries}
