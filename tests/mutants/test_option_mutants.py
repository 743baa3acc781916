"""Planted bugs of block verification, stop sequences and the recorder are killed by their detectors."""

import pytest

from specjax.testing import option_detectors
from specjax.testing import option_mutants


@pytest.mark.parametrize('name', option_detectors.DETECTORS)
def test_detector(name):
  option_detectors.DETECTORS[name]()


@pytest.mark.parametrize('identifier', option_mutants.MUTANTS)
def test_mutant_is_killed_by_its_detector(identifier):
  mutant = option_mutants.MUTANTS[identifier]
  with mutant.applied():
    with pytest.raises(AssertionError) as caught:
      option_detectors.DETECTORS[mutant.killer]()
    print(f'{identifier} {mutant.description}: {caught.value}')


@pytest.mark.parametrize('name', ['block_law', 'ragged_block_law', 'block_law_in_front_of_a_broken_law'])
def test_the_planted_block_verifier_without_a_bug_is_exact(name):
  """What the mutants of block verification change is a faithful second writing of it."""
  with option_mutants.without_bug().applied():
    option_detectors.DETECTORS[name]()
