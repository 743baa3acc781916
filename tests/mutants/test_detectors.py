"""The detectors pass on the library as it is; `pytest --mutant=ID` shows which of them a planted bug fails."""

import pytest

from specjax.testing import detectors


@pytest.mark.parametrize('name', detectors.DETECTORS)
def test_detector(name):
  detectors.DETECTORS[name]()
