"""`pytest --mutant=M05`: a whole run with one planted bug, to see what it breaks. Register it in `pytest_plugins`."""

import pytest

from specjax.testing import drafting_mutants
from specjax.testing import mutants
from specjax.testing import option_mutants
from specjax.testing import routing_mutants

MUTANTS = mutants.MUTANTS | drafting_mutants.MUTANTS | option_mutants.MUTANTS | routing_mutants.MUTANTS


def pytest_addoption(parser):
  """Adds --mutant."""
  parser.addoption('--mutant', default=None, help=f'plant a bug: one of {", ".join(MUTANTS)}')


def pytest_configure(config):
  """Refuses a mutant that there is not."""
  name = config.getoption('--mutant')
  if name is not None and name not in MUTANTS:
    raise pytest.UsageError(f'--mutant={name}: expected one of {", ".join(MUTANTS)}')


@pytest.fixture(autouse=True)
def planted_bug(request):
  """Applies the mutant of the command line around every test."""
  name = request.config.getoption('--mutant')
  if name is None:
    yield
    return
  with MUTANTS[name].applied():
    yield
