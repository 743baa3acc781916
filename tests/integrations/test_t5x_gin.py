"""The gin files for t5x name what is there, checked without t5x: a function renamed here would break them in silence."""

import ast
import pathlib

import pytest

from specjax.config import statements

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'specjax' / 'integrations'
FILES = sorted(FOLDER.glob('*.gin'))


def arguments(module, name):
  """What a function or the constructor of a class in a file of specjax takes, by its source; None for any."""
  tree = ast.parse((ROOT / f'{module.replace(".", "/")}.py').read_text())
  node = next(node for node in tree.body if getattr(node, 'name', None) == name)
  if isinstance(node, ast.ClassDef):
    init = [child for child in node.body if getattr(child, 'name', None) == '__init__']
    if not init:  # a dataclass
      return {child.target.id for child in node.body if isinstance(child, ast.AnnAssign)}
    node, = init
  return {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}


def selectors(parsed):
  """(selector, parameter or None) of every binding and reference."""
  for item in parsed:
    if isinstance(item, statements.Binding):
      yield item.selector, item.parameter
      for leaf in statements.leaves(item.value):
        if isinstance(leaf, statements.Reference):
          yield leaf.selector, None


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.name)
def test_names_and_parameters_of_specjax_exist(file):
  parsed = statements.parse(file.read_text(), file.name)
  modules = {item.name: item.module for item in parsed if isinstance(item, statements.Import)}
  for selector, parameter in selectors(parsed):
    prefix, _, name = selector.rpartition('.')
    module = modules.get(prefix, '')
    if module.startswith('specjax.'):
      found = arguments(module, name)
      assert parameter is None or parameter in found, f'{selector}.{parameter}: there are {sorted(found)}'


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.name)
def test_included_files_of_specjax_exist(file):
  for item in statements.parse(file.read_text(), file.name):
    if isinstance(item, statements.Include) and item.path.startswith('specjax/'):
      assert (ROOT / item.path).is_file(), item.path


def test_there_is_a_file_for_each_script():
  assert {'t5x_infer.gin', 't5x_eval.gin', 't5x_pair.gin'} == {file.name for file in FILES}
