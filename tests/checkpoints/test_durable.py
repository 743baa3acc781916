"""Replaced whole or not at all; one process at a time."""

import subprocess
import sys

import pytest

from specjax.checkpoints import durable
from specjax.core import errors

HOLD = "import sys; from specjax.checkpoints import durable\nwith durable.locked(sys.argv[1]): print('held', flush=True); input()"


def test_a_block_that_raises_leaves_the_old_content_and_nothing_else(tmp_path):
  path = tmp_path / 'file'
  durable.replace(path, b'old')
  with pytest.raises(ValueError):
    with durable.replacing(path) as file:
      file.write(b'ne')
      raise ValueError
  assert path.read_bytes() == b'old' and [entry.name for entry in tmp_path.iterdir()] == ['file']


def test_a_reader_sees_the_old_content_until_the_end(tmp_path):
  path = tmp_path / 'file'
  durable.replace(path, b'old')
  with durable.replacing(path) as file:
    file.write(b'new')
    assert path.read_bytes() == b'old'
  assert path.read_bytes() == b'new'


@pytest.mark.parametrize('number, kept', [(1, True), (2**22 + 1, False), (2**70, False)])
def test_only_what_a_living_process_writes_is_kept(tmp_path, number, kept):
  leftover = tmp_path / f'.tmp-{number}-file'
  leftover.write_bytes(b'')
  durable.remove_leftovers(tmp_path)
  assert leftover.exists() == kept


def test_a_directory_is_held_by_one_process_until_it_dies(tmp_path):
  directory = tmp_path / 'run'
  owner = subprocess.Popen(
      [sys.executable, '-c', HOLD, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  assert owner.stdout.readline() == 'held\n'
  with pytest.raises(errors.ConfigError, match='run: directory in use'):
    with durable.locked(directory):
      pass
  owner.kill()
  owner.communicate()
  with durable.locked(directory):
    assert not list(directory.iterdir())
