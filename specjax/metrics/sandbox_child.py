"""Runs one program under limits; started by `specjax.metrics.sandbox` as a process of its own, never imported by it.

  python -I -S -B sandbox_child.py SETTINGS        SETTINGS: JSON; the nonce comes on stdin, the verdict goes to stdout

Only the standard library, and only what starts fast: every judged program pays for it. Barriers are put up from the one
that needs most rights to the one that takes all of them away:

  1. resource limits: CPU seconds, address space, bytes per file, open files, processes, no core dump;
  2. a network namespace of its own, where the kernel allows it: no interface but a loopback that is down;
  3. capabilities are dropped, so that root cannot lift its own limits;
  4. a system call filter (Linux on x86-64 and AArch64): no socket, no new process or program, no file opened for writing,
     made, renamed or removed, no signal to another process, no tracing, mounting or loading of kernel code;
  5. an audit hook of the interpreter, which refuses the same in Python's terms. Where 4 is missing it is what stands
     between the program and the machine, and a program that is written to escape it can.

Files may be read: nothing that is read can leave, since output is discarded and there is no network.
"""

import json
import os
import sys

PASSED, FAILED = 'passed', 'failed'

_X86, _ARM = 0xC000003E, 0xC00000B7
_MACHINES = {'x86_64': _X86, 'aarch64': _ARM, 'arm64': _ARM}
_CLONE_THREAD = 0x00010000
_EPERM, _ENOSYS = 1, 38
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# System calls by number: (x86-64, AArch64), None where the machine has none. `clone3` and `openat2` take their arguments by
# pointer, which a filter cannot read: as if the kernel were too old for them, callers fall back to the older calls.
_ABSENT = {'clone3': (435, 435), 'openat2': (437, 437)}
_REFUSED = {
    'socket': (41, 198), 'socketpair': (53, 199), 'connect': (42, 203), 'bind': (49, 200), 'io_uring_setup': (425, 425),
    'fork': (57, None), 'vfork': (58, None), 'execve': (59, 221), 'execveat': (322, 281),
    'kill': (62, 129), 'tkill': (200, 130), 'tgkill': (234, 131), 'rt_sigqueueinfo': (129, 138),
    'rt_tgsigqueueinfo': (297, 240), 'pidfd_open': (434, 434), 'pidfd_send_signal': (424, 424), 'pidfd_getfd': (438, 438),
    'ptrace': (101, 117), 'process_vm_readv': (310, 270), 'process_vm_writev': (311, 271), 'prlimit64': (302, 261),
    'setrlimit': (160, 164), 'setpriority': (141, 140), 'unshare': (272, 97), 'setns': (308, 268),
    'mount': (165, 40), 'umount2': (166, 39), 'pivot_root': (155, 41), 'chroot': (161, 51), 'fsopen': (430, 430),
    'open_tree': (428, 428), 'move_mount': (429, 429), 'bpf': (321, 280), 'perf_event_open': (298, 241),
    'userfaultfd': (323, 282), 'keyctl': (250, 219), 'add_key': (248, 217), 'request_key': (249, 218),
    'init_module': (175, 105), 'finit_module': (313, 273), 'delete_module': (176, 106), 'kexec_load': (246, 104),
    'reboot': (169, 142), 'swapon': (167, 224), 'swapoff': (168, 225), 'sethostname': (170, 161),
    'settimeofday': (164, 170), 'clock_settime': (227, 112), 'adjtimex': (159, 171), 'memfd_create': (319, 279),
    'shmget': (29, 194), 'semget': (64, 190), 'msgget': (68, 186), 'mq_open': (240, 180), 'mq_unlink': (241, 181),
    'creat': (85, None), 'unlink': (87, None), 'unlinkat': (263, 35), 'rename': (82, None), 'renameat': (264, 38),
    'renameat2': (316, 276), 'mkdir': (83, None), 'mkdirat': (258, 34), 'rmdir': (84, None), 'link': (86, None),
    'linkat': (265, 37), 'symlink': (88, None), 'symlinkat': (266, 36), 'mknod': (133, None), 'mknodat': (259, 33),
    'truncate': (76, 45), 'ftruncate': (77, 46), 'fallocate': (285, 47), 'chmod': (90, None), 'fchmod': (91, 52),
    'fchmodat': (268, 53), 'fchmodat2': (452, 452), 'chown': (92, None), 'fchown': (93, 55), 'lchown': (94, None),
    'fchownat': (260, 54), 'utime': (132, None), 'utimes': (235, None), 'utimensat': (280, 88), 'futimesat': (261, None),
    'setxattr': (188, 5), 'lsetxattr': (189, 6), 'fsetxattr': (190, 7), 'removexattr': (197, 14),
    'lremovexattr': (198, 15), 'fremovexattr': (199, 16),
}
# Calls that are refused by an argument: number, which argument, its bits, and whether the bits must be there to pass.
_BY_ARGUMENT = {
    'open': ((2, None), 1, _WRITING, False), 'openat': ((257, 56), 2, _WRITING, False),
    'clone': ((56, 220), 0, _CLONE_THREAD, True),
}

_REFUSED_EVENTS = (
    'socket.', 'subprocess.', 'os.fork', 'os.forkpty', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.system', 'os.startfile',
    'os.kill', 'os.killpg', 'signal.pthread_kill', 'os.remove', 'os.rename', 'os.rmdir', 'os.mkdir', 'os.link', 'os.symlink',
    'os.truncate', 'os.chmod', 'os.chown', 'os.utime', 'os.setxattr', 'os.removexattr', 'os.putenv', 'os.unsetenv',
    'os.chflags', 'os.lockf', 'os.mkfifo', 'os.mknod', 'shutil.', 'tempfile.', 'ctypes.', 'pty.', 'fcntl.', 'mmap.',
    'resource.', 'syslog.', 'webbrowser.', 'urllib.', 'http.', 'ftplib.', 'smtplib.', 'sqlite3.', 'sys._debugmallocstats',
)


def limit_resources(settings):
  """Puts up the limits that nothing but capabilities can lift; returns the names of those that hold."""
  import resource
  wanted = {
      'RLIMIT_CPU': settings['cpu_seconds'], 'RLIMIT_AS': settings['memory_bytes'], 'RLIMIT_FSIZE': 0,
      'RLIMIT_NOFILE': 32, 'RLIMIT_NPROC': settings['processes'], 'RLIMIT_CORE': 0}
  held = []
  for name, value in wanted.items():
    kind = getattr(resource, name, None)
    try:
      resource.setrlimit(kind, (value, value))
      held.append(name)
    except (TypeError, ValueError, OSError):
      continue  # The caller reads from the answer what does not hold.
  return held


def isolate(library, *, use_filter):
  """Takes away network, rights and system calls; returns the names of the barriers that hold."""
  held = []
  if not sys.platform.startswith('linux'):
    return held
  new_network, new_user = 0x40000000, 0x10000000
  if library.unshare(new_network) == 0 or library.unshare(new_user | new_network) == 0:
    held.append('network_namespace')
  if drop_capabilities(library):
    held.append('no_capabilities')
  if use_filter and filter_system_calls(library):
    held.append('system_call_filter')
  return held


def drop_capabilities(library):
  """Empties every capability set of the process; returns whether none is left."""
  import ctypes
  header = (ctypes.c_uint32 * 2)(0x20080522, 0)
  nothing = (ctypes.c_uint32 * 6)()
  return library.capset(header, nothing) == 0


def filter_program(machine):
  """The filter as (code, jump if true, jump if false, operand) of classic BPF; None for an unknown machine."""
  architecture = _MACHINES.get(machine)
  if architecture is None:
    return None
  column = 0 if architecture == _X86 else 1
  load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
  killed, allowed = 0x80000000, 0x7FFF0000
  answer = lambda error: (give, 0, 0, 0x00050000 | error)
  # struct seccomp_data: number at 0, architecture at 4, arguments of 8 bytes from 16 (the low half first).
  found = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, killed), (load, 0, 0, 0)]
  if column == 0:
    found += [(at_least, 0, 1, 0x40000000), (give, 0, 0, killed)]  # The x32 calls have other numbers.
  for numbers, error in [(n, _EPERM) for n in _REFUSED.values()] + [(n, _ENOSYS) for n in _ABSENT.values()]:
    if numbers[column] is not None:
      found += [(equal, 0, 1, numbers[column]), answer(error)]
  for numbers, index, bits, must_have in _BY_ARGUMENT.values():
    if numbers[column] is not None:
      refused = (any_bit, 1, 0, bits) if must_have else (any_bit, 0, 1, bits)
      found += [(equal, 0, 4, numbers[column]), (load, 0, 0, 16 + 8 * index), refused, answer(_EPERM), (load, 0, 0, 0)]
  return [*found, (give, 0, 0, allowed)]


def filter_system_calls(library):
  """Installs the filter for this process and all it could start; returns whether it holds."""
  import ctypes
  instructions = filter_program(os.uname().machine)
  if instructions is None or sys.byteorder != 'little':
    return False

  class Instruction(ctypes.Structure):
    _fields_ = [('code', ctypes.c_uint16), ('true', ctypes.c_uint8), ('false', ctypes.c_uint8), ('k', ctypes.c_uint32)]

  class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_uint16), ('instructions', ctypes.POINTER(Instruction))]

  array = (Instruction * len(instructions))(*(Instruction(*one) for one in instructions))
  program = Program(len(instructions), array)
  no_new_privileges, set_filter, filter_mode = 38, 22, 2
  if library.prctl(no_new_privileges, 1, 0, 0, 0) != 0:
    return False
  return library.prctl(set_filter, filter_mode, ctypes.byref(program), 0, 0) == 0


def refuse_events():
  """Adds the audit hook; nothing in the interpreter takes one away."""
  refused = _REFUSED_EVENTS
  writing = _WRITING

  def hook(event, arguments):
    if event == 'open':
      _, mode, flags = arguments
      if (isinstance(mode, str) and any(letter in mode for letter in 'wax+')) or (isinstance(flags, int) and flags & writing):
        raise PermissionError('files are read-only here')
    elif event.startswith(refused):
      raise PermissionError(f'{event} is refused here')

  sys.addaudithook(hook)


def main():
  """Reads settings and nonce, puts up the barriers, runs the program, says how it ended."""
  import ctypes
  import runpy
  settings = json.loads(sys.argv[1])
  nonce = sys.stdin.readline().strip()
  verdict = os.dup(1)
  nothing = os.open(os.devnull, os.O_RDWR)
  for descriptor in (0, 1, 2):
    os.dup2(nothing, descriptor)
  os.chdir(os.path.dirname(settings['program']))
  held = limit_resources(settings)
  held += isolate(ctypes.CDLL(None, use_errno=True), use_filter=settings['use_filter'])
  if settings['use_hook']:
    refuse_events()
    held.append('audit_hook')
  os.write(verdict, json.dumps({'nonce': nonce, 'held': held}).encode() + b'\n')
  try:
    sys.argv[:] = ['program']
    runpy.run_path(settings['program'], run_name='__main__')
    ending = PASSED
  except BaseException as error:  # SystemExit among them: a program that leaves early has not reached its tests.
    ending = f'{FAILED}: {type(error).__name__}: {error}'[:200]
  os.write(verdict, json.dumps({'nonce': nonce, 'ending': ending}).encode() + b'\n')
  # Not sys.exit: threads and exit handlers of the program do not run on.
  os._exit(0)


if __name__ == '__main__':
  main()
