"""Every planted bug of token trees is killed by the detector named for it."""

import pytest

from specjax.testing import tree_mutants


@pytest.mark.parametrize('name', tree_mutants.DETECTORS)
def test_detector(name):
  tree_mutants.DETECTORS[name]()


@pytest.mark.parametrize('identifier', tree_mutants.MUTANTS)
def test_mutant_is_killed_by_its_detector(identifier):
  mutant = tree_mutants.MUTANTS[identifier]
  with mutant.applied(), pytest.raises(AssertionError) as caught:
    tree_mutants.DETECTORS[mutant.killer]()
  print(f'{identifier} {mutant.description}: {caught.value}')
