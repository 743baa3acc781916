"""Programs that want out: each is stopped and fails, and this process is unharmed."""

import os
import sys
import threading

import pytest

from specjax.core.errors import LimitError
from specjax.metrics import sandbox
from specjax.metrics import sandbox_child

QUICK = sandbox.Limits(wall_seconds=30.0, cpu_seconds=10, memory_bytes=256 << 20)
on_linux = pytest.mark.skipif(
    not sys.platform.startswith('linux') or os.uname().machine not in ('x86_64', 'aarch64'), reason='no filter known here')


def _run(program, **options):
  return sandbox.run(program, limits=QUICK, **options)


@on_linux
def test_all_barriers_hold_on_linux():
  assert {'RLIMIT_CPU', 'RLIMIT_AS', 'RLIMIT_FSIZE', 'no_capabilities', 'system_call_filter', 'audit_hook'} <= set(sandbox.barriers())
  assert sandbox.isolation() == 'kernel'


@pytest.mark.parametrize('program, passed', [
    ('import collections, functools, heapq, itertools, math, random, re, string\nassert math.gcd(4, 6) == 2', True),
    ('assert False', False), ('def (', False), ('import sys; sys.exit(0)', False), ('import os; os._exit(0)', False),
    ('raise KeyboardInterrupt', False), ('x = "\\ud800"', True), ('def f(): f()\nf()', False),
    ('import threading\nt = threading.Thread(target=print)\nt.start(); t.join()', True)])
def test_only_a_program_that_reaches_its_end_passes(program, passed):
  assert _run(program).passed == passed


def test_a_verdict_cannot_be_forged_without_the_nonce():
  forged = 'import os, json\nfor n in range(3, 32):\n  try: os.write(n, b\'{"nonce": "", "ending": "passed"}\\n\' * 2)\n  except OSError: pass'
  assert not _run(forged + '\nos._exit(0)').passed


def test_endless_loop_is_stopped_by_the_processor_limit():
  ending = sandbox.run('while True: pass', limits=sandbox.Limits(wall_seconds=60.0, cpu_seconds=1))
  assert not ending.passed and (ending.reason.startswith('killed') or ending.reason == 'time')


@pytest.mark.parametrize('program', ['import time; time.sleep(600)', 'import os\nos.closerange(3, 32)\nimport time; time.sleep(600)'])
def test_sleep_is_stopped_by_the_clock(program):
  ending = sandbox.run(program, limits=sandbox.Limits(wall_seconds=0.5))
  assert not ending.passed and ending.reason == 'time'


def test_memory_bomb_is_stopped():
  assert _run('x = []\nwhile True: x.append(bytearray(10**7))').reason.startswith('failed: MemoryError')


@on_linux
def test_without_limits_the_memory_bomb_would_not_be_stopped():
  generous = sandbox.Limits(wall_seconds=30.0, cpu_seconds=10, memory_bytes=2 << 30)
  assert sandbox.run('x = [bytearray(10**7) for _ in range(40)]', limits=generous).passed
  assert not _run('x = [bytearray(10**7) for _ in range(40)]').passed


# What each tries; VICTIM and TARGET are replaced by paths.
ESCAPES = {
    'fork bomb': 'import os\nwhile True: os.fork()',
    'process': 'import subprocess\nsubprocess.run(["true"])',
    'write outside': 'open(TARGET, "w").write("x")',
    'append': 'open(VICTIM, "a").write("x")',
    'remove': 'import os\nos.remove(VICTIM)',
    'rename': 'import os\nos.rename(VICTIM, TARGET)',
    'truncate': 'import os\nos.truncate(VICTIM, 0)',
    'folder': 'import os\nos.mkdir(TARGET)',
    'mode': 'import os\nos.chmod(VICTIM, 0)',
    'socket': 'import socket\nsocket.socket()',
    'connection': 'import socket\nsocket.create_connection(("127.0.0.1", 9), timeout=1)',
    'kill parent': 'import os\nos.kill(os.getppid(), 9)',
    'lift limits': 'import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))',
}


def _attempt(tmp_path, program, **options):
  victim, target = tmp_path / 'victim', tmp_path / 'target'
  victim.write_text('precious')
  before = threading.active_count()
  ending = _run(program.replace('VICTIM', repr(str(victim))).replace('TARGET', repr(str(target))), **options)
  assert victim.read_text() == 'precious' and not target.exists() and victim.stat().st_mode & 0o400
  assert threading.active_count() == before
  return ending


@pytest.mark.parametrize('name', ESCAPES)
def test_escapes_fail(tmp_path, name):
  assert not _attempt(tmp_path, ESCAPES[name]).passed


@on_linux
@pytest.mark.parametrize('name', ESCAPES)
def test_the_kernel_refuses_them_without_the_hook(tmp_path, name):
  ending = _attempt(tmp_path, ESCAPES[name], use_hook=False)
  assert not ending.passed and ('Errno 1]' in ending.reason or 'not allowed to raise' in ending.reason), ending.reason


@pytest.mark.parametrize('name', [n for n in ESCAPES if n not in ('fork bomb', 'kill parent')])
def test_the_hook_refuses_them_without_the_filter(tmp_path, name):
  ending = _attempt(tmp_path, ESCAPES[name], use_filter=False)
  assert not ending.passed and ('refused' in ending.reason or 'read-only' in ending.reason), ending.reason


@on_linux
@pytest.mark.parametrize('call', ['fork()', 'socket(2, 1, 0)', 'kill(os.getppid(), 9)', 'unlink(VICTIM.encode())',
                                  'syscall(435, 0, 0)', 'ptrace(16, os.getppid(), 0, 0)'])
def test_calls_past_the_interpreter_are_refused_by_the_kernel(tmp_path, call):
  program = f'import ctypes, os\nassert ctypes.CDLL(None).{call} == -1\nraise SystemExit("refused")'
  assert _attempt(tmp_path, program, use_hook=False).reason.endswith('refused')


@on_linux
def test_without_barriers_a_file_would_be_written(tmp_path, monkeypatch):
  """The guards are what stops the program: with a filter that allows everything, and no hook, it writes."""
  child = tmp_path / 'child.py'
  source = open(sandbox_child.__file__).read()
  child.write_text(source.replace("'RLIMIT_FSIZE': 0", "'RLIMIT_FSIZE': 1 << 20").replace('_REFUSED = {', '_REFUSED = {}\n_UNUSED = {')
                   .replace('_BY_ARGUMENT = {', '_BY_ARGUMENT = {}\n_UNUSED_TOO = {'))
  monkeypatch.setattr(sandbox, '_CHILD', child)
  target = tmp_path / 'target'
  assert _run(f'open({str(target)!r}, "w").write("x")', use_hook=False).passed
  assert target.read_text() == 'x'


@pytest.mark.parametrize('machine', ['x86_64', 'aarch64'])
def test_filter_program_is_well_formed(machine):
  program = sandbox_child.filter_program(machine)
  assert 0 < len(program) < 4096
  for position, (code, true, false, operand) in enumerate(program):
    assert 0 <= operand < 2**32
    assert (code & 0x07) != 0x05 or max(position + 1 + true, position + 1 + false) < len(program)
  assert sandbox_child.filter_program('vax') is None


def test_a_program_that_is_too_long_is_refused():
  with pytest.raises(LimitError):
    sandbox.run('#' * (sandbox.MAX_PROGRAM_BYTES + 1))
