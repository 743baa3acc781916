"""Every planted bug is killed by the detector named for it, and the control survives."""

import pytest

from specjax.testing import detectors
from specjax.testing import mutants


@pytest.mark.parametrize('identifier', mutants.MUTANTS)
def test_mutant_is_killed_by_its_detector(identifier):
  mutant = mutants.MUTANTS[identifier]
  detector = detectors.DETECTORS[mutant.killer]
  with mutant.applied():
    if mutant.survives:
      detector()
    else:
      with pytest.raises(AssertionError) as caught:
        detector()
      print(f'{identifier} {mutant.description}: {caught.value}')


def test_catalogue_is_large_enough():
  assert sum(not mutant.survives for mutant in mutants.MUTANTS.values()) >= 30


def test_the_planted_verifier_without_a_bug_is_exact():
  """What the mutants of the verifier change is a faithful second writing of it."""
  exact = mutants.Mutant('none', 'nothing planted', 'lossless_law', mutants._verifier(), survives=True)
  with exact.applied():
    detectors.lossless_law()
