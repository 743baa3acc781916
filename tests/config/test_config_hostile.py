"""Configurations that want to run something, read something or name something they must not. Nothing may happen."""

import ast
import importlib
import pathlib
import sys

import pytest
import specjax
import toy_entry

from specjax import config
from specjax.config import registry
from specjax.core import errors

HEAD = 'from __gin__ import dynamic_registration\nimport toy_entry\n'
REQUIRED = 'toy_entry.evaluate.temperature = 1.0\ntoy_entry.evaluate.seed = 0\n'

# What the error is about, what the file tries, and its text.
HOSTILE_FILES = [
    ('import', 'shell', 'import subprocess\ntoy_entry.evaluate.rule = @subprocess.getoutput()\nsubprocess.getoutput.cmd = "touch CANARY"'),
    ('import', 'from import', 'from os import path\n'),
    ('import', 'dotted import', 'import os.path\n'),
    ('import', 'renamed import', 'import os as toy_parts\ntoy_entry.evaluate.rule = @toy_parts.system()\ntoy_parts.system.command = "touch CANARY"'),
    ('import', 'only an import', 'import evil'),
    ('import', 'import from a package', 'from evil_package import evil'),
    ('import', 'import under a library name', 'import evil as rules'),
    ('import', 'name that begins like an allowed one', 'import toy_parts_evil'),
    ('import', 'name that begins like the library', 'import specjax_evil'),
    ('import', 'the library itself', 'import specjax.config.registry\n'),
    ('import', 'library module that writes', 'import specjax.checkpoints\n'),
    ('import', 'module behind a library package', 'import specjax.rules.chow\n'),
    ('import', 'private module', 'import toy_parts.__main__\n'),
    ('import', 'gin', 'import gin\n'),
    ('import', 'gin by another name', 'import gin.config as rules\n'),
    ('import', 'another gin feature', 'from __gin__ import skip_unknown\n'),
    ('import', 'renamed registration', 'from __gin__ import dynamic_registration as toy_parts\n'),
    ('import', 'name gin taken', 'import toy_parts as gin\n'),
    ('import', 'main', 'import __main__\n'),
    ('import', 'builtins', 'import builtins\ntoy_entry.evaluate.rule = @builtins.exec()\n'),
    ('name', 'module of a module', 'import toy_parts\ntoy_entry.evaluate.rule = @toy_parts.subprocess.getoutput()\n'
     'toy_parts.subprocess.getoutput.cmd = "touch CANARY"'),
    ('name', 'name brought in', 'import toy_parts\ntoy_entry.evaluate.rule = @toy_parts.system()\ntoy_parts.system.command = "touch CANARY"'),
    ('name', 'dunder', 'import toy_parts\ntoy_entry.evaluate.rule = @toy_parts.__builtins__.exec()\n'),
    ('name', 'attribute of a class', 'import toy_parts\ntoy_entry.evaluate.rule = @toy_parts.Rule.__init__()\n'),
    ('name', 'method', 'import toy_parts\ntoy_entry.evaluate.rule = @toy_parts.Rule.__post_init__()\n'),
    ('name', 'beside the entry', 'toy_entry.evaluate.rule = @toy_entry.delete_everything()\ntoy_entry.delete_everything.path = "x"'),
    ('name', 'module of the entry', 'toy_entry.evaluate.rule = @toy_entry.dataclasses.make_dataclass()\n'),
    ('references in a circle', 'the entry itself', 'toy_entry.evaluate.rule = @toy_entry.evaluate()\n'),
    ('references in a circle', 'scope with a module', 'toy_entry.evaluate.rule = @os.path/toy_entry.evaluate()\n'),
    ('include', 'include absolute', 'include "/etc/passwd"'),
    ('include', 'include upwards', 'include "../../../../../../../../etc/passwd"'),
    ('include', 'include a device', 'include "/dev/zero"'),
    ('include', 'include a link', 'include "link.gin"'),
    ('include', 'include a directory link', 'include "linked/outside.gin"'),
    ('include', 'include an address', 'include "http://127.0.0.1:9/x.gin"'),
    ('include', 'include with a NUL', 'include "x\\0.gin"'),
    ('include', 'include itself', 'include "hostile.gin"'),
    ('include', 'include a long name', 'include "' + 'a' * 5000 + '.gin"'),
    ('control character', 'hidden line', '# harmless \rimport evil\n'),
    ('control character', 'hidden by direction', 'K = "\u202e" # \u2066 import evil\n'),
    ('cannot be read as gin', 'call in a value', 'toy_entry.evaluate.rule = __import__("evil")'),
    ('cannot be read as gin', 'formatted string', 'toy_entry.evaluate.output_dir = f"{__import__(\'evil\')}"'),
    ('cannot be read as gin', 'statement after a value', 'toy_entry.evaluate.rates = []; import evil'),
    ('import', 'import after an allowed one', 'import toy_never\nimport evil\n'),
]


@pytest.fixture
def trap(tmp_path, monkeypatch):
  """A directory on sys.path full of modules that leave a canary; returns (directory, canary)."""
  canary = tmp_path / 'canary'
  touch = f'import pathlib\npathlib.Path({str(canary)!r}).touch()\n'
  directory = tmp_path / 'configs'
  (directory / 'evil_package').mkdir(parents=True)
  for name in ('evil', 'toy_parts_evil', 'specjax_evil', 'toy_never', 'evil_package/__init__', 'evil_package/evil'):
    (directory / f'{name}.py').write_text(touch)
  outside = tmp_path / 'outside'
  outside.mkdir()
  (outside / 'outside.gin').write_text(HEAD + REQUIRED)
  (directory / 'link.gin').symlink_to(outside / 'outside.gin')
  (directory / 'linked').symlink_to(outside)
  monkeypatch.syspath_prepend(str(directory))
  monkeypatch.chdir(directory)
  return directory, canary


def refuse(path, **options):
  before = set(sys.modules)
  with pytest.raises(errors.ConfigError) as caught:
    config.resolve(entry=toy_entry.evaluate, files=[str(path)], allow_modules=['toy_parts', 'toy_never'], **options).call()
  assert not {name for name in set(sys.modules) - before if 'evil' in name or name == 'toy_never'}
  return caught.value


@pytest.mark.parametrize('what, text', [pytest.param(what, text, id=kind) for what, kind, text in HOSTILE_FILES])
def test_hostile_file_is_refused_before_anything_happens(trap, what, text):
  directory, canary = trap
  path = directory / 'hostile.gin'
  path.write_bytes((HEAD + text.replace('CANARY', str(canary)) + '\n' + REQUIRED).encode())
  error = refuse(path)
  assert not canary.exists()
  assert error.what.startswith(what) and error.where.startswith(str(path)) and 'root:' not in str(error)


@pytest.mark.parametrize('binding', [
    'evaluate.rule=@os.system()', 'os.system.command="touch CANARY"', 'evaluate.rule=@evil.run()', 'evil.run.x=1',
    'evaluate.rule=@specjax.config.runtime.load()', 'evaluate.rule=@rules.jnp.save()', 'evaluate.rule=@toy_parts.system()',
    'K=4\nimport evil', 'K=4;import evil', 'import evil', 'K=__import__("evil")', 'evaluate.rule=@checkpoints.save()',
    'evaluate.rule=@rules.__loader__()', 'evaluate.rule=@gin.macro()',
])
def test_hostile_binding_is_refused(trap, binding):
  directory, canary = trap
  path = directory / 'fine.gin'
  path.write_text(HEAD + REQUIRED)
  refuse(path, bindings=[binding.replace('CANARY', str(canary))])
  assert not canary.exists()


def test_the_traps_do_work(trap):
  """The negative control: what is refused above would have left a canary."""
  directory, canary = trap
  path = directory / 'run.gin'
  path.write_text(HEAD + 'import evil\n' + REQUIRED)
  config.resolve(entry=toy_entry.evaluate, files=[str(path)], allow_modules=['evil'])
  assert canary.exists()
  sys.modules.pop('evil')


def test_selector_imports_nothing_by_itself(trap):
  directory, canary = trap
  (directory / 'toy_half').mkdir()
  (directory / 'toy_half' / 'fine.py').write_text('def make():\n  return 1\n')
  (directory / 'toy_half' / 'evil.py').write_text((directory / 'evil.py').read_text() + 'def make():\n  return 1\n')
  path = directory / 'run.gin'
  text = HEAD + 'import toy_half.fine\n' + REQUIRED + 'toy_entry.evaluate.rule = @toy_half.{}.make()\n'
  for module, passes in (('fine', True), ('evil', False)):
    path.write_text(text.format(module))
    options = dict(entry=toy_entry.evaluate, files=[str(path)], allow_modules=['toy_half.fine'])
    if passes:
      assert config.resolve(**options).call()['rule'] == 1
    else:
      with pytest.raises(errors.ConfigError):
        config.resolve(**options)
  assert not canary.exists()


def test_module_of_the_entry_exports_only_the_entry(trap):
  directory, _ = trap
  (directory / 'toy_listed.py').write_text(
      '__all__ = ["run", "wipe"]\ndef run(*, value=None):\n  return value\ndef wipe():\n  raise AssertionError\n')
  entry, head = importlib.import_module('toy_listed').run, 'from __gin__ import dynamic_registration\n'
  path = directory / 'run.gin'
  path.write_text(head + 'import toy_listed\ntoy_listed.run.value = @toy_listed.wipe()\n')
  with pytest.raises(errors.ConfigError, match='toy_listed.wipe'):
    config.resolve(entry=entry, files=[str(path)])
  path.write_text(head + 'import toy_listed\ntoy_listed.run.value = 3\n')
  assert config.resolve(entry=entry, files=[str(path)]).call() == 3


@pytest.mark.parametrize('module', ['os', 'subprocess', 'builtins', 'gin', 'specjax', '', 'a b', '../x', '.x', '__main__', 'x;y'])
def test_module_that_is_no_registry_cannot_be_allowed(module):
  with pytest.raises(errors.ConfigError) as caught:
    config.load(allow_modules=[module])
  assert caught.value.where == '--allow_module'


def test_module_that_only_calls_itself_specjax_is_refused(tmp_path, monkeypatch):
  canary = tmp_path / 'canary'
  (tmp_path / 'impostor.py').write_text(f'import pathlib\npathlib.Path({str(canary)!r}).touch()\n')
  monkeypatch.setattr(specjax, '__path__', [*specjax.__path__, str(tmp_path)])
  with pytest.raises(errors.ConfigError, match='impostor'):
    registry.Registry().module('specjax.impostor', 'x')
  assert not canary.exists()


def test_allowed_module_that_fails_is_a_config_error(trap):
  directory, _ = trap
  (directory / 'toy_broken.py').write_text('raise KeyError("broken")')
  path = directory / 'run.gin'
  path.write_text(HEAD + 'import toy_broken\n' + REQUIRED)
  with pytest.raises(errors.ConfigError, match='KeyError') as caught:
    config.resolve(entry=toy_entry.evaluate, files=[str(path)], allow_modules=['toy_broken'])
  assert caught.value.where == f'{path}:3'


@pytest.mark.parametrize('name', ['/dev/zero', '/dev/stdin', '/proc/self/mem', '/', '', 'x\0y', 'a' * 10_000, '.'])
def test_file_that_is_no_file_is_refused(name):
  with pytest.raises(errors.ConfigError):
    config.load([name])


def test_message_is_one_printable_line(capsys):
  def main(argv):
    config.load([argv[0]])

  assert config.run_main(main, ['\x1b[31m\nred\x07']) == 2
  out, err = capsys.readouterr()
  assert not out and err.endswith('\n') and err[:-1].isprintable() and err.startswith('ConfigError: ')


def test_no_dangerous_calls_in_the_runtime():
  for path in pathlib.Path(registry.__file__).parent.glob('*.py'):
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    assert not names & {'eval', 'exec', 'compile', '__import__'}, path
