"""The dependency direction of the packages, read from the source: an import in the wrong direction is an error."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'specjax'

# Lower layers first. A module may import modules of lower layers and of its own package, never a sibling package.
LAYERS = (
    {'core'},
    {'ops'},
    {'models', 'drafters', 'rules', 'routers'},
    {'decode', 'checkpoints'},  # a reader builds the configuration of the model it found
    {'metrics'},  # host arithmetic on counters and texts: task scorers use it, it uses nobody
    {'selection', 'tasks', 'training', 'online', 'planning'},
    {'pairs'},
    {'testing'},  # what proves the parts: certificates are made of it
    {'evaluation', 'config', 'integrations'},
)
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}
BINARIES = {'eval', 'train', 'online', 'plan', 'convert'}

PURE = {'core', 'ops', 'drafters', 'rules', 'routers', 'decode'}
PURE_IMPORTS = {'jax', 'numpy', 'flax'}
# A heavy library and the only places that may import it.
ONLY_IN = {
    'gin': {'config', *BINARIES},
    'seqio': {'tasks'},
    'tensorflow': {'tasks', 'training'},
    'optax': {'training', 'online'},
    'orbax': {'checkpoints'},
    't5x': {'integrations'},
    'gemma': {'integrations'},
    'kauldron': {'integrations'},
}
BANNED_NAMES = {'utils', 'util', 'helpers', 'common', 'misc'}
BANNED_CALLS = {'eval', 'exec'}
BANNED_MODULES = {'pickle', 'dill', 'joblib', 'marshal', 'shelve'}


def source_files():
  return sorted(path for path in PACKAGE.rglob('*.py'))


def package_of(path):
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return parts[0]


def imported_modules(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((alias.name, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'relative import at line {node.lineno}'
      yield node.module, node.lineno
      yield from ((f'{node.module}.{alias.name}', node.lineno) for alias in node.names)


def violations(path, text):
  package, found = package_of(path), []
  tree = ast.parse(text)
  for module, line in imported_modules(tree):
    top, _, rest = module.partition('.')
    if top == 'specjax' and rest:
      other = rest.split('.')[0]
      if package == '__init__' or package in BINARIES or other == package:
        continue
      if other not in LEVEL:
        found.append(f'{path.name}:{line}: imports {module}, which belongs to no layer')
      elif LEVEL[other] >= LEVEL[package]:
        found.append(f'{path.name}:{line}: {package} imports {module} of layer {LEVEL[other]}')
    elif package in PURE and top not in PURE_IMPORTS and top not in sys.stdlib_module_names:
      found.append(f'{path.name}:{line}: {package} imports {top}')
    if top in ONLY_IN and package not in ONLY_IN[top]:
      found.append(f'{path.name}:{line}: {top} is imported in {package}, only {sorted(ONLY_IN[top])} may')
    if top in BANNED_MODULES:
      found.append(f'{path.name}:{line}: imports {top}')
  for node in ast.walk(tree):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
      found.append(f'{path.name}:{node.lineno}: calls {node.func.id}')
    allowed = isinstance(getattr(node, 'value', None), ast.Constant) and node.value.value is False
    if isinstance(node, ast.keyword) and node.arg in ('allow_pickle', 'shell') and not allowed:
      found.append(f'{path.name}:{node.value.lineno}: passes {node.arg}')
  return found


def test_every_import_points_to_a_lower_layer():
  found = [f'{path.relative_to(ROOT)}: {line}' for path in source_files() for line in violations(path, path.read_text())]
  assert not found, '\n'.join(found)


@pytest.mark.parametrize('package, text', [
    ('ops', 'from specjax.decode import run'),
    ('drafters', 'from specjax.models import gemma'),
    ('rules', 'import optax'),
    ('tasks', 'def f():\n  from specjax.evaluation import rows'),
    ('metrics', 'import gin'),
    ('training', 'import pickle'),
    ('decode', 'eval("1")'),
    ('checkpoints', 'from t5x import models'),
    ('models', 'def f():\n  from gemma import gm'),
    ('evaluation', 'from specjax.integrations import t5x_model'),
])
def test_the_layer_test_sees_planted_violations(package, text):
  assert violations(PACKAGE / package / 'planted.py', text)


def test_no_module_has_a_name_that_says_nothing():
  assert not [path for path in source_files() if path.stem in BANNED_NAMES]


def test_files_and_functions_stay_small():
  found = []
  for path in source_files():
    text = path.read_text()
    if text.count('\n') > 600:
      found.append(f'{path.relative_to(ROOT)}: {text.count(chr(10))} lines')
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
        if node.end_lineno - first.lineno + 1 > 100:
          found.append(f'{path.relative_to(ROOT)}:{node.lineno} {node.name}')
  assert not found, '\n'.join(found)


def test_the_gin_folder_is_no_package():
  assert (ROOT / 'gin').is_dir()
  assert not list((ROOT / 'gin').rglob('*.py'))


def test_binaries_stay_thin():
  for name in BINARIES:
    path = PACKAGE / f'{name}.py'
    if path.exists():
      assert path.read_text().count('\n') < 150, name


def test_at_most_forty_public_names():
  import specjax
  assert 0 < len(specjax.__all__) <= 40
  for name in specjax.__all__:
    getattr(specjax, name)


def run_python(code):
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, timeout=300)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_importing_specjax_pulls_in_neither_tensorflow_nor_gin():
  loaded = run_python(
      'import sys, specjax; from specjax.decode import generate; specjax.generate; specjax.Chow\n'
      'print([m for m in ("tensorflow", "gin", "seqio", "orbax", "optax", "clu", "matplotlib") if m in sys.modules])')
  assert loaded.strip() == '[]'


def test_importing_specjax_takes_under_a_second_beyond_jax():
  seconds = run_python(
      'import time, jax, numpy\nstart = time.perf_counter()\nimport specjax; specjax.generate; specjax.speculative\n'
      'print(time.perf_counter() - start)')
  assert float(seconds) < 1.0
