"""The detectors of both cascades pass on the library as it is, and each kills the planted bugs that name it."""

import pytest

from specjax.testing import routing_detectors
from specjax.testing import routing_mutants


@pytest.mark.parametrize('name', routing_detectors.DETECTORS)
def test_detector(name):
  routing_detectors.DETECTORS[name]()


@pytest.mark.parametrize('identifier', routing_mutants.MUTANTS)
def test_mutant_is_killed_by_its_detector(identifier):
  mutant = routing_mutants.MUTANTS[identifier]
  detector = routing_detectors.DETECTORS[mutant.killer]
  with mutant.applied():
    if mutant.survives:
      detector()
    else:
      with pytest.raises(AssertionError) as caught:
        detector()
      print(f'{identifier} {mutant.description}: {caught.value}')


def test_every_detector_kills_something():
  assert {mutant.killer for mutant in routing_mutants.MUTANTS.values()} == set(routing_detectors.DETECTORS)
