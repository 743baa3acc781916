"""What the README shows runs."""

import importlib.resources
import pathlib
import re

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(encoding='utf-8'), re.DOTALL)
DATA = pathlib.Path(str(importlib.resources.files('specjax.pairs'))) / 'data' / 'gemma' / 'target.safetensors'


@pytest.mark.timeout(900)
@pytest.mark.skipif(not DATA.is_file(), reason='the trained pairs are not there: run scripts/train_pairs.sh')
def test_the_examples_of_the_readme_run_one_after_the_other():
  assert len(BLOCKS) == 4
  names = {}
  for block in BLOCKS:
    exec(compile(block, 'README.md', 'exec'), names)
    if 'translated' not in names:
      names['translated'] = names['result'].text
  assert len(names['translated']) == 2 and all(names['translated'])
  assert (names['found'].length > names['found'].prompt_length).all()
  jax.tree.map(np.testing.assert_array_equal, names['weights'], names['params']['target'])
  assert names['result'].text is None and [len(row) for row in names['result'].tokens] == [16, 16]
  assert all(np.isfinite(row).all() for row in names['result'].log_probs)
