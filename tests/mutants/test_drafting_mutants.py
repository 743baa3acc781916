"""Every planted bug of early stopping and of token trees is killed by the detector named for it."""

import pytest

from specjax.testing import drafting_mutants
from specjax.testing import tree_mutants

DETECTORS = drafting_mutants.DETECTORS | tree_mutants.DETECTORS
MUTANTS = drafting_mutants.MUTANTS | tree_mutants.MUTANTS


def test_no_name_is_used_twice():
  assert len(DETECTORS) == len(drafting_mutants.DETECTORS) + len(tree_mutants.DETECTORS)
  assert len(MUTANTS) == len(drafting_mutants.MUTANTS) + len(tree_mutants.MUTANTS)


@pytest.mark.parametrize('name', DETECTORS)
def test_detector(name):
  DETECTORS[name]()


@pytest.mark.parametrize('identifier', MUTANTS)
def test_mutant_is_killed_by_its_detector(identifier):
  mutant = MUTANTS[identifier]
  with mutant.applied(), pytest.raises(AssertionError) as caught:
    DETECTORS[mutant.killer]()
  print(f'{identifier} {mutant.description}: {caught.value}')
