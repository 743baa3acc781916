"""The files of gin/ fit the functions they configure."""

import importlib
import os
import pathlib
import subprocess
import sys

import pytest

from specjax import config
from specjax.config import registry
from specjax.config import statements

ROOT = pathlib.Path(__file__).resolve().parents[2] / 'gin'
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob('*.gin'))


def entry_of(file):
  """What the file binds first, of the one module it imports that exports no constructors."""
  parsed = statements.parse((ROOT / file).read_text(encoding='utf-8'), file)
  found = [item for item in parsed if isinstance(item, statements.Import) and item.module not in registry.PACKAGES]
  assert len(found) == 1, f'{file} imports {found}: one entry expected'
  names = [item.selector.partition('.') for item in parsed if isinstance(item, statements.Binding)]
  name = next(name for prefix, _, name in names if prefix == found[0].name)
  return getattr(importlib.import_module(found[0].module), name)


@pytest.mark.parametrize('file', FILES)
def test_shipped_file_resolves_and_reads_back(file, tmp_path):
  entry = entry_of(file)
  loaded = config.load([file], entry=entry)
  bound = {key.name for key in loaded.states[-1].assignments}
  missing = [name for name, parameter in loaded.entry.parameters.items() if parameter.required and name not in bound]
  run = config.resolve(entry=entry, files=[file], provided=missing)
  copy = tmp_path / 'operative.gin'
  copy.write_text(run.operative(), encoding='utf-8')
  again = config.resolve(entry=entry, files=[str(copy)], provided=missing)
  assert again.operative() == run.operative() and again.arguments() == run.arguments()


def test_header_says_what_is_required_and_commonly_overridden():
  for file in FILES:
    if '/' not in file:
      head = (ROOT / file).read_text(encoding='utf-8').split('from __gin__')[0]
      assert 'Required:' in head and 'Commonly overridden:' in head, file


def test_an_installed_package_has_the_files_too(tmp_path):
  subprocess.run(
      [sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', str(tmp_path)], cwd=ROOT.parent, check=True,
      capture_output=True)
  installed = {
      str(path.relative_to(tmp_path / 'specjax' / 'gin_files')) for path in (tmp_path / 'specjax/gin_files').rglob('*.gin')}
  assert installed == {str(path.relative_to(ROOT)) for path in ROOT.rglob('*.gin')}
  assert (tmp_path / 'specjax' / 'integrations' / 't5x_infer.gin').is_file()  # gin's own, not for this runtime
  code = 'from specjax.config import sources; print(sources._SHIPPED)'
  done = subprocess.run(
      [sys.executable, '-c', code], cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(tmp_path)), text=True,
      check=True, capture_output=True)
  assert done.stdout.strip() == str(tmp_path / 'specjax' / 'gin_files')
