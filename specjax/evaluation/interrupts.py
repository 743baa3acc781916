"""Ctrl-C and SIGTERM: the first lets the batch in flight finish, the second drops it. Rows on disk are whole either way."""

import signal
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
  """The run was asked to stop; `exit_code` is 128 + the signal's number."""

  def __init__(self, signal_number):
    self.exit_code = 128 + signal_number
    super().__init__(f'stopped by {signal.Signals(signal_number).name}')


class Interrupts:
  """Catches the signals inside a `with` block; `check` raises `Stopped` between batches."""

  def __init__(self):
    self._received = None
    self._previous = {}

  def __enter__(self):
    try:
      self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
    except ValueError:  # Not the main thread: signals stay with whoever has it.
      self._previous = {}
    return self

  def __exit__(self, *exception):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _receive(self, number, frame):
    del frame
    if self._received is not None:
      raise Stopped(number)
    self._received = number
    print('\nstopping after this batch; once more to drop it', file=sys.stderr, flush=True)

  def check(self):
    """Raises `Stopped` if a signal has come."""
    if self._received is not None:
      raise Stopped(self._received)
