"""Every planted bug of draft refinement is killed by the detector named for it."""

import pytest

from specjax.testing import refinement_mutants

DETECTORS, MUTANTS = refinement_mutants.DETECTORS, refinement_mutants.MUTANTS


@pytest.mark.parametrize('name', DETECTORS)
def test_detector(name):
  DETECTORS[name]()


@pytest.mark.parametrize('identifier', MUTANTS)
def test_mutant_is_killed_by_its_detector(identifier):
  mutant = MUTANTS[identifier]
  with mutant.applied(), pytest.raises(AssertionError) as caught:
    DETECTORS[mutant.killer]()
  print(f'{identifier} {mutant.description}: {caught.value}')
