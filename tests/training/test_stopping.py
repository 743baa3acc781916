"""SIGTERM as a request."""

import signal

import pytest

from specjax.training import stopping


def test_first_signal_asks_and_the_second_acts_as_usual():
  received = []
  before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
  try:
    with stopping.StopRequest() as stop:
      assert not stop.requested
      signal.raise_signal(signal.SIGTERM)
      assert stop.requested and not received
      signal.raise_signal(signal.SIGTERM)
      assert received == [signal.SIGTERM]
  finally:
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_handlers_are_put_back(number):
  before = signal.getsignal(number)
  with stopping.StopRequest():
    assert signal.getsignal(number) != before
  assert signal.getsignal(number) == before
