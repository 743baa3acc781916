"""The notebooks run from top to bottom, print what their prose claims, and what is stored is whole and of no machine.

`python tests/notebooks/test_notebooks.py [NAME ...]` runs them and stores their outputs, after every change of a cell.
"""

import hashlib
import importlib.resources
import os
import pathlib
import re
import sys
import tempfile

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / 'scripts' / 'notebooks'
DATA = pathlib.Path(str(importlib.resources.files('specjax.pairs'))) / 'data' / 'gemma' / 'target.safetensors'
MAX_BYTES = 300_000
# A slash that begins a path of more than one name, and not a fraction, a URL or the rest of a relative path.
ABSOLUTE = re.compile(r'(?<![\w.:/}~$\\<-])/[A-Za-z_]\w*/[\w./-]+|\b[A-Z]:\\')

# What the prose says about the numbers, as patterns that must be found in what is printed.
NOTHING, MUCH = r'(?:0\.0e\+00|\d\.\de-1[3-9])', r'(?:1\.0e\+00|\d\.\de-0[12])'
CLAIMS = {
    '01_decode_ops': (
        r'rows with a law that is NaN: \[0\]\nrows that are NaN in part: +\[\]',
        r'one level: +\d\.\de-0[1-4]\n.*two levels: \d\.\de-(0[6-9]|1\d)',
        r'rejection: +(0\.\d{4}).*\n.*variation of p and q: +\1',
        r'output law - target law\|: \d\.\de-0[789]'),
    '02_your_own_pair': (
        r'target: .* True\ndrafter: .* True',
        r'CheckpointError: .*damaged',
        r'equal token for token: (\d+) of \1 answers',
        r'stepped by hand and looped, equal: True'),
    '03_write_a_rule': (
        r'both hold',
        rf'(.*total variation {NOTHING}, .*\n){{3}}',
        r'AssertionError: .*goals sum to 0\.',
        rf' temperature 1 +{NOTHING} +{NOTHING} +{MUCH}\n',
        rf' temperature 0 +{NOTHING} +{MUCH} +{NOTHING}\n',
        r"executables: \['prefill', 'decode'\]"),
}
NAMES = tuple(CLAIMS)
SLOW = ('02_your_own_pair',)
CASES = [pytest.param(name, marks=[pytest.mark.nightly] if name in SLOW else []) for name in NAMES]


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def outputs(notebook, kind):
  return [output for cell in code_cells(notebook) for output in cell.outputs if output.output_type == kind]


def printed(notebook):
  return '\n'.join(output.text for output in outputs(notebook, 'stream'))


def sources_sha256(notebook):
  return hashlib.sha256('\0'.join(cell.source for cell in code_cells(notebook)).encode()).hexdigest()


def load(name):
  return nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)


def execute(notebook, folder):
  """Runs every cell of `notebook` in a fresh kernel in `folder`; CellExecutionError names the cell that failed."""
  for cell in code_cells(notebook):
    cell.outputs = []
  path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
  nbclient.NotebookClient(
      notebook, timeout=600, startup_timeout=300, kernel_name='python3', record_timing=False, coalesce_streams=True,
      resources={'metadata': {'path': str(folder)}}).execute(env={**os.environ, 'PYTHONPATH': path})


def check_claims(name, notebook):
  missing = [claim for claim in CLAIMS[name] if not re.search(claim, printed(notebook))]
  assert not missing, f'{missing} not found in\n{printed(notebook)}'


def test_all_are_here():
  assert sorted(path.stem for path in FOLDER.glob('*.ipynb')) == list(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_what_is_stored_is_whole_and_of_no_machine(name):
  notebook = load(name)
  nbformat.validate(notebook)
  cells = code_cells(notebook)
  assert (FOLDER / f'{name}.ipynb').stat().st_size <= MAX_BYTES
  assert notebook.metadata.kernelspec.name == 'python3'
  assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
  assert notebook.metadata.specjax.sources_sha256 == sources_sha256(notebook), 'the outputs are of other cells'
  assert not outputs(notebook, 'error')
  assert all(output.name == 'stdout' for output in outputs(notebook, 'stream')), 'a warning is stored'
  drawn = [cell for cell in cells if 'pyplot.subplots(' in cell.source]
  assert drawn and all(any('image/png' in output.get('data', {}) for output in cell.outputs) for cell in drawn)
  check_claims(name, notebook)
  texts = [cell.source for cell in notebook.cells] + [printed(notebook)]
  found = [match.group(0) for text in texts for match in ABSOLUTE.finditer(text)]
  assert not found, f'absolute paths {found}'
  assert not any(cell.metadata for cell in notebook.cells), 'metadata of an execution'


@pytest.mark.skipif(not DATA.is_file(), reason='the trained pairs are not there: run scripts/train_pairs.sh')
@pytest.mark.parametrize('name', CASES)
def test_it_runs_from_top_to_bottom_and_shows_what_it_says(name, tmp_path):
  notebook = load(name)
  kinds = lambda: [[output.output_type for output in cell.outputs] for cell in code_cells(notebook)]
  stored = kinds()
  execute(notebook, tmp_path)
  assert kinds() == stored
  check_claims(name, notebook)
  assert not list(tmp_path.iterdir()), 'it leaves files where it is run'


def store(names):
  """Executes notebooks and writes them back, without what tells times and machines."""
  for name in names:
    notebook = load(name)
    with tempfile.TemporaryDirectory() as folder:
      execute(notebook, folder)
    check_claims(name, notebook)
    notebook.metadata = {
        'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
        'language_info': {'name': 'python'},
        'specjax': {'sources_sha256': sources_sha256(notebook)}}
    nbformat.write(notebook, FOLDER / f'{name}.ipynb')


if __name__ == '__main__':
  store(sys.argv[1:] or NAMES)
