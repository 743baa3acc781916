"""What can be named in a sweep, as text."""

from specjax.core.errors import ConfigError
from specjax.evaluation import methods
from specjax.evaluation import table
from specjax.evaluation import task_sources
from specjax.pairs import builtin

KINDS = ('methods', 'tasks', 'pairs')

_TASK_NOTES = '''
Data sets are read from --data_dir: NAME/SPLIT.jsonl with TFDS' fields, the files as published, or what TFDS has prepared there.
* only with --allow_code_execution; pass@k needs several --seeds.
'''


def text(kind=None, /):
  """A Markdown table of one kind of name, or of all.

  Raises:
    ConfigError: an unknown kind.
  """
  if kind is not None and kind not in KINDS:
    raise ConfigError(what='list', where='command line', got=kind, expected=f'one of {", ".join(KINDS)}')
  makers = {'methods': _methods, 'tasks': _tasks, 'pairs': _pairs}
  shown = '\n'.join(table.markdown_table(makers[name]()) for name in (KINDS if kind is None else (kind,)))
  return shown + ('' if kind not in (None, 'tasks') else _TASK_NOTES)


def _methods():
  rows = [('method', 'group', 'output follows', 'knobs', 'default sweep', 'what it is')]
  for method in methods.METHODS.values():
    values = [' '.join(f'{v:g}' for v in (value if isinstance(value, tuple) else (value,))) for value in method.thresholds]
    rows.append((method.name, methods.GROUPS[method.group], f'the {table.follows(method.name)}',
                 ', '.join(method.knob_names) or '-', ', '.join(values) or '-', method.summary))
  return rows


def _tasks():
  return task_sources.table()


def _pairs():
  rows = [('pair', 'kind', 'target parameters', 'drafter parameters')]
  for name in builtin.PAIRS:
    models = [builtin.MODELS[f'{name}_{role}'] for role in ('target', 'drafter')]
    rows.append((name, models[0].kind, *(f'{builtin.describe(m)["num_parameters"]:,}' for m in models)))
  return rows
