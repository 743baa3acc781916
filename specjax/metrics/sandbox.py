"""Runs untrusted programs, one process each, and says which passed.

What holds is `barriers()`, found out by running a probe. On Linux (x86-64 and AArch64) the kernel refuses sockets, processes
and every change of the file system, root or not; elsewhere only resource limits and the interpreter's audit hook stand, and
they stop accidents, not attacks. No barrier here replaces a machine of its own for programs that somebody wrote to do harm.
Nothing calls this unless the user asked for the execution of code.
"""

import functools
import json
import os
import pathlib
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from specjax.core.errors import LimitError, SpecjaxError

MAX_PROGRAM_BYTES = 1 << 20
# A loaded machine has been seen to take four seconds for an interpreter that does nothing.
START_SECONDS = 120.0
_MAX_ANSWER_BYTES = 1 << 16
_CHILD = pathlib.Path(__file__).with_name('sandbox_child.py')


class Limits(NamedTuple):
  """What one program may use: seconds of wall clock and of processor, and bytes of address space."""

  wall_seconds: float = 20.0
  cpu_seconds: int = 5
  memory_bytes: int = 512 << 20


class Ending(NamedTuple):
  """How a program ended.

  Attributes:
    passed: it ran to its end without an error.
    reason: 'passed', 'failed: ...', 'time' (wall clock), or 'killed: signal' (a limit of the kernel).
    barriers: what stood around it.
  """

  passed: bool
  reason: str
  barriers: tuple[str, ...]


def run(program: str, *, limits: Limits = Limits(), use_filter: bool = True, use_hook: bool = True) -> Ending:
  """How a program ends, run in a process of its own that can harm nothing (see the module's first lines).

  Args:
    program: Python source; it is judged by whether it raises.
    limits: of time and memory.
    use_filter, use_hook: False leaves a barrier out, so that tests see what the other one stops.

  Raises:
    LimitError: the source is longer than `MAX_PROGRAM_BYTES`.
    SpecjaxError: the process could not be set up; nothing was run.
  """
  source = program.encode('utf-8', 'surrogatepass')
  if len(source) > MAX_PROGRAM_BYTES:
    raise LimitError(what='program', got=f'{len(source)} bytes', expected=f'at most {MAX_PROGRAM_BYTES} bytes')
  nonce = secrets.token_hex(16)
  with tempfile.TemporaryDirectory(prefix='specjax-program-') as folder:
    path = pathlib.Path(folder) / 'program.py'
    path.write_bytes(source)
    settings = {
        'program': str(path), 'cpu_seconds': limits.cpu_seconds, 'memory_bytes': limits.memory_bytes, 'processes': 0,
        'use_filter': use_filter, 'use_hook': use_hook}
    status, said = _finished(settings, nonce, limits.wall_seconds)
  return _ending(status, said, nonce)


def _finished(settings, nonce, seconds):
  """(exit status, or None after the time, what it wrote)."""
  # No variable of this process reaches the program; the loader's is for interpreters whose libraries lie elsewhere.
  environment = {name: os.environ[name] for name in ('LD_LIBRARY_PATH', 'SYSTEMROOT') if name in os.environ}
  process = subprocess.Popen(
      [sys.executable, '-I', '-S', '-B', str(_CHILD), json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL, env=environment, start_new_session=True, cwd=os.sep)
  with process:
    try:
      process.stdin.write(nonce.encode() + b'\n')
      process.stdin.close()
      said = _read(process.stdout.fileno(), seconds)
      return _status(process), said
    except BrokenPipeError:
      return _status(process), b''
    finally:
      _kill_group(process)


def _read(pipe, seconds):
  """What the process writes until it closes the pipe, or until `seconds` after its first line (it takes a while to start)."""
  said, deadline = b'', time.monotonic() + START_SECONDS
  while len(said) < _MAX_ANSWER_BYTES and (left := deadline - time.monotonic()) > 0:
    if not select.select([pipe], [], [], left)[0]:
      break
    piece = os.read(pipe, _MAX_ANSWER_BYTES)
    if not piece:
      break
    if not said.count(b'\n') and piece.count(b'\n'):
      deadline = time.monotonic() + seconds
    said += piece
  return said


def _status(process):
  """The exit status, None for a process that runs on a moment after its pipe fell silent."""
  try:
    return process.wait(timeout=1.0)
  except subprocess.TimeoutExpired:
    return None


def _kill_group(process):
  try:
    os.killpg(process.pid, signal.SIGKILL)
  except (ProcessLookupError, PermissionError):
    process.kill()  # Does nothing to a process that has ended.


def _ending(status, said, nonce):
  lines = [json.loads(line) for line in said.splitlines() if nonce.encode() in line]
  held = tuple(lines[0]['held']) if lines else ()
  if status is None:
    return Ending(False, 'time', held)
  if len(lines) == 2:
    return Ending(lines[1]['ending'] == 'passed', lines[1]['ending'], held)
  if not lines:
    raise SpecjaxError(what='the process for a program did not start', where='sandbox.run', got=f'exit status {status}')
  return Ending(False, f'killed: signal {-status}' if status < 0 else f'left with exit status {status}', held)


@functools.lru_cache
def barriers() -> tuple[str, ...]:
  """The barriers that hold on this machine, found by running an empty program."""
  return run('').barriers


def isolation() -> str:
  """'kernel' where a system call filter holds, 'interpreter' where only limits and the audit hook do."""
  return 'kernel' if 'system_call_filter' in barriers() else 'interpreter'
