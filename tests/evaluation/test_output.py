"""Where results may go: a path that cannot be written to is refused before anything is computed."""

import os

import pytest

from specjax.core.errors import ConfigError
from specjax.evaluation import output


@pytest.mark.parametrize('path', ['file', 'file/new', 'file/new/newer'])
def test_a_path_at_or_below_a_file_is_refused_by_name_and_nothing_is_made(tmp_path, path):
  (tmp_path / 'file').write_text('kept')
  with pytest.raises(ConfigError, match='cannot be written.*file'):
    output.check_free(tmp_path / path, resume=False, overwrite=True)
  assert (tmp_path / 'file').read_text() == 'kept' and len(list(tmp_path.iterdir())) == 1


def test_a_new_directory_at_any_depth_is_free_and_not_made(tmp_path):
  output.check_free(tmp_path / 'a' / 'b', resume=False, overwrite=False)
  assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason='the superuser may write everywhere')
def test_a_directory_of_somebody_else_is_refused(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(ConfigError, match='cannot be written'):
    output.check_writable(tmp_path / 'new')
