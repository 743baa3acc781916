"""Every planted bug of early stopping is killed by the detector named for it."""

import pytest

from specjax.testing import drafting_mutants


@pytest.mark.parametrize('name', drafting_mutants.DETECTORS)
def test_detector(name):
  drafting_mutants.DETECTORS[name]()


@pytest.mark.parametrize('identifier', drafting_mutants.MUTANTS)
def test_mutant_is_killed_by_its_detector(identifier):
  mutant = drafting_mutants.MUTANTS[identifier]
  with mutant.applied(), pytest.raises(AssertionError) as caught:
    drafting_mutants.DETECTORS[mutant.killer]()
  print(f'{identifier} {mutant.description}: {caught.value}')
