"""SIGTERM and SIGINT as a request to finish the step and save."""

import signal

EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: saved, run the same command again to go on.


class StopRequest:
  """A context in which the first SIGTERM or SIGINT only sets `requested`; the second one acts as usual."""

  def __init__(self):
    self.requested = False
    self._previous = {}

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *unused):
    self._restore()

  def _receive(self, number, unused_frame):
    self.requested = True
    self._restore()

  def _restore(self):
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}
