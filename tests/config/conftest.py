"""Makes the toy modules of these tests importable, as a user's own package would be."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

HEAD = 'from __gin__ import dynamic_registration\nimport toy_parts\nimport toy_entry\n'


@pytest.fixture
def write(tmp_path):
  """`write(text, name='run.gin', head=HEAD) -> path`, a gin file that imports the toys."""

  def write_file(text, name='run.gin', head=HEAD):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + text, encoding='utf-8')
    return str(path)

  return write_file
