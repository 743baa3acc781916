"""`compare`: two runs side by side, point by point, from their rows and run.json alone.

Everything is second against first, over the questions that both were asked: quality as a paired difference, speed as
a ratio, both with the intervals of the reports. Tokens per second are comparable on one machine in one state only, and
it is said where they are not: other devices or XLA flags, or a baseline at another percent of the physical limit.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from specjax.core.errors import ConfigError
from specjax.evaluation import aggregate
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import output
from specjax.evaluation import provenance
from specjax.evaluation import row_log
from specjax.evaluation import rows as rows_lib
from specjax.evaluation import table
from specjax.metrics import efficiency
from specjax.metrics import statistics

COMPARISON = 'compare'
# Baselines whose percents of the limit are further apart than this part of the larger one were not measured alike.
SAME_LIMIT = 0.1

COLUMNS = (
    'pair', 'task', 'method', 'T', 'top-p', 'B', 'K', 'n', 'quality A', 'quality B', 'B - A [95 % CI]', 'tok/s A',
    'tok/s B', 'B / A [95 % CI]', 'speedup A', 'speedup B', 'acceptance A', 'acceptance B', 'AL A', 'AL B',
    'equal outputs')

_SESSION = ('git', 'versions', 'chip', 'xla', 'matmul_precision', 'prng', 'x64', 'metrics_version')
_PAIR = ('checkpoint_sha256', 'tokenizer_sha256', 'chat_template', 'parameters', 'models')
_NOTHING = statistics.Interval(None, None, None)
_MAX_TEXT = 120


class Run(NamedTuple):
  """What is read of a run.

  Attributes:
    directory: where.
    metadata: run.json.
    rows: by the key of their series, without texts.
    series: `aggregate.Series` by the same keys.
    limits: setting -> percent of the physical limit of the target alone.
  """

  directory: pathlib.Path
  metadata: Mapping[str, Any]
  rows: Mapping[tuple, list[dict]]
  series: Mapping[tuple, aggregate.Series]
  limits: Mapping[tuple, float | None]


def read(directory) -> Run:
  """The `Run` in a directory.

  Raises:
    ConfigError: there are no rows.
  """
  directory = pathlib.Path(directory)
  rows, _ = row_log.read(directory / output.ROWS, change=_essential)
  if not rows:
    raise ConfigError(what='no results', where=str(directory / output.ROWS), expected='the directory of a run')
  metadata = output.read_run(directory)
  every = aggregate.all_series(rows, metadata)
  return Run(
      directory, metadata, aggregate.group_rows(rows), {aggregate.key_of(series): series for series in every},
      {series.setting: series.pct_of_limit for series in every if series.is_baseline})


def _essential(row):
  """A row without the texts: two large sweeps have to fit in memory."""
  unread = ('turns', 'logprobs', 'accept_lengths', *(() if row['temperature'] == 0 else ('token_ids',)))
  choice = {name: value for name, value in row['choices'][0].items() if name not in unread}
  return {name: value for name, value in row.items() if name != 'filtered_answer'} | {'choices': [choice]}


def compare(first: Run, second: Run) -> dict[str, Any]:
  """The comparison as a JSON object.

  Returns:
    'runs': directory and id of both; 'configuration', 'provenance', 'likelihoods': name -> [first, second] of what
    differs; 'not_comparable': why speeds are not, empty where they are; 'warnings'; 'points': see `_point`;
    'only_first' and 'only_second': labels of the points that one of them lacks.
  """
  reasons = _machine_reasons(first.metadata, second.metadata)
  points, warnings = [], []
  for key in first.series:
    if key in second.series:
      point, said = _point(key, first, second)
      of_limit, unknown = _limits(first, second, first.series[key].setting)
      points.append(point | {'not_comparable': [*reasons, *of_limit]})
      warnings += [*said, *unknown]
  every_reason = [*reasons, *(reason for point in points for reason in point['not_comparable'])]
  return rows_lib.finite({
      'runs': [{'directory': str(run.directory), 'run_id': run.metadata.get('run_id')} for run in (first, second)],
      'configuration': _differing(_flat(first.metadata.get('config', {})), _flat(second.metadata.get('config', {}))),
      'provenance': _differing(_provenance(first.metadata), _provenance(second.metadata)),
      'likelihoods': _differing(*(_flat(run.metadata.get('likelihoods', {})) for run in (first, second))),
      'not_comparable': list(dict.fromkeys(every_reason)),
      'warnings': list(dict.fromkeys([*_session_warnings(first, second), *warnings])), 'points': points,
      'only_first': [label(first.series[key]) for key in first.series if key not in second.series],
      'only_second': [label(second.series[key]) for key in second.series if key not in first.series]})


def label(series) -> str:
  """A series in a few words."""
  draft = f' K={series.num_draft_tokens}' if series.drafts else ''
  top_p = f' top-p={series.top_p:g}' if series.top_p < 1 else ''
  method = f'{table.method_label(series)}{draft}'
  return f'{series.pair} {series.task} {method} T={series.temperature:g}{top_p} B={series.batch}'


def _point(key, first, second):
  """(JSON object of one point, warnings): two of each number, the first run's first."""
  series = first.series[key], second.series[key]
  shared, warnings = _shared_questions(key, first, second)
  rows, old = ([row for row in run.rows[key] if row['question_id'] in shared] for run in (second, first))
  same_score = series[0].score_name == series[1].score_name
  if not same_score and None not in (series[0].score_name, series[1].score_name):
    warnings.append(f'quality is {series[0].score_name} in A and {series[1].score_name} in B: not compared')
  is_timed = rows and not methods_lib.lookup(series[0].method).is_oracle
  found = {
      'label': label(series[0]),
      **{name: getattr(series[0], name) for name in (
          'pair', 'task', 'method', 'knob', 'num_draft_tokens', 'temperature', 'top_p', 'top_k', 'min_p', 'batch')},
      'prompts': len(shared), 'prompts_of_each': [one.prompts for one in series],
      'quality': [one.quality._asdict() for one in series],
      'quality_difference': (aggregate.quality_difference(rows, old) if rows and same_score else _NOTHING)._asdict(),
      'output_tok_s': [one.output_tok_s for one in series],
      'speed_ratio': (_speed_ratio(rows, old) if is_timed else _NOTHING)._asdict(),
      'speedup': [one.speedup._asdict() for one in series], 'pct_of_limit': [one.pct_of_limit for one in series],
      'acceptance_rate': [efficiency.acceptance_rate(one.counts) if one.drafts else None for one in series],
      'mean_acceptance_length': [efficiency.mean_acceptance_length(one.counts) for one in series],
      'equal_outputs': aggregate.equal_outputs(rows, old) if rows else None}
  return found, warnings


def _shared_questions(key, first, second):
  """(ids of the questions that both were asked in the same words, warnings)."""
  prompts = [{row['question_id']: row['prompt_sha256'] for row in run.rows[key]} for run in (first, second)]
  both = prompts[0].keys() & prompts[1].keys()
  pair, task = first.series[key].pair, first.series[key].task
  tokenizers = [run.metadata.get('pairs', {}).get(pair, {}).get('tokenizer_sha256') for run in (first, second)]
  changed = {name for name in both if prompts[0][name] != prompts[1][name]}
  if changed and tokenizers[0] != tokenizers[1]:
    return both, [f'{task}: tokenizers of {pair} differ, so questions are paired by their ids alone']
  if changed:
    counted = f'{len(changed)} of {len(both)} shared questions'
    return both - changed, [f'{task}: {counted} were asked with other prompts; left out']
  return both, []


def _speed_ratio(rows, reference):
  """`Interval` of the ratio; no ends where the two runs put other questions into one batch, which shares a clock."""
  batches = [_batches(found) for found in (rows, reference)]
  if rows[0]['batch'] > 1 and batches[0] != batches[1]:
    return aggregate.speed_ratio(rows, reference, groups=lambda found: [0] * len(found))
  return aggregate.speed_ratio(rows, reference)


def _batches(rows):
  found = {}
  for row in rows:
    found.setdefault(row['batch_index'], set()).add(row['question_id'])
  return found


def _session(metadata):
  sessions = metadata.get('sessions') or [{}]
  return sessions[-1]


def _machine_reasons(first, second):
  """Why no speed can be compared: other machines, or XLA told otherwise."""
  old, new = _session(first), _session(second)
  reasons = []
  if old.get('chip') != new.get('chip'):
    shown = [provenance.chip_label(one['chip']) if one.get('chip') else 'an unknown machine' for one in (old, new)]
    differing = _differing(_flat(old.get('chip') or {}), _flat(new.get('chip') or {}))
    reasons.append(f'machines differ: {shown[0]} and {shown[1]} ({", ".join(differing)})')
  if old.get('xla') != new.get('xla'):
    differing = _differing(_flat(old.get('xla') or {}), _flat(new.get('xla') or {}))
    reasons.append(f'settings of XLA differ: {", ".join(differing)}')
  return reasons


def _limits(first, second, setting):
  """(why the speeds of one setting cannot be compared, warnings): its baselines were at other percents of the limit."""
  percents = [run.limits.get(setting) for run in (first, second)]
  pair, task, batch, temperature, *_ = setting
  where = f'{pair} {task} B={batch} T={temperature:g}'
  if None in percents:
    return [], [f'{where}: without percents of the limit it is not known whether speeds are comparable']
  if abs(percents[0] - percents[1]) <= SAME_LIMIT * max(percents):
    return [], []
  return [f'{where}: the target alone ran at {percents[0]:.1f} % of the limit in A and {percents[1]:.1f} % in B'], []


def _session_warnings(first, second):
  for name, run in (('A', first), ('B', second)):
    sessions = run.metadata.get('sessions') or []
    if len({row_log.canonical_json(session.get('chip')) for session in sessions}) > 1:
      yield f'{name} was measured on several machines; the last one counts here'
    if len({(session.get('git') or {}).get('commit') for session in sessions}) > 1:
      yield f'{name} was measured with several commits; the last one counts here'
    if (_session(run.metadata).get('git') or {}).get('dirty'):
      yield f'{name} was measured with changes that were not committed'


def _provenance(metadata):
  """Name -> value of code, machine, weights and prompts."""
  session = _session(metadata)
  found = _flat({name: session.get(name) for name in _SESSION})
  for pair, known in metadata.get('pairs', {}).items():
    found |= _flat({f'pair {pair}': {name: known.get(name) for name in _PAIR}})
  return found | {f'prompts of {task}': known.get('sha256') for task, known in metadata.get('prompt_sets', {}).items()}


def _flat(value, prefix=''):
  """Name -> value of a nested JSON object, names joined by dots."""
  if not isinstance(value, Mapping):
    return {prefix: value}
  found = {}
  for name, inner in value.items():
    found |= _flat(inner, f'{prefix}.{name}' if prefix else str(name))
  return found


def _differing(old, new):
  return {name: [old.get(name), new.get(name)] for name in {**old, **new} if old.get(name) != new.get(name)}


def write(result: Mapping[str, Any], directory) -> list[pathlib.Path]:
  """Writes compare.json and compare.md into a directory, which is made if missing; returns their paths.

  Raises:
    ConfigError: it cannot be made or written to.
  """
  output.check_writable(directory, where='compare.output_path')
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  paths = [directory / f'{COMPARISON}.{ending}' for ending in ('json', 'md')]
  output.write_json(paths[0], result)
  output.write_text(paths[1], text(result))
  return paths


def text(result: Mapping[str, Any]) -> str:
  """The comparison as Markdown that also reads as text."""
  (first, second), parts = result['runs'], []
  parts.append(f'A: `{table.printable(first["directory"])}`\n\nB: `{table.printable(second["directory"])}`\n')
  for name in ('configuration', 'provenance', 'likelihoods'):
    if result[name]:
      rows = [(name, 'A', 'B'), *((key, *_shortened(values)) for key, values in result[name].items())]
      parts.append(table.markdown_table(rows))
  if not result['configuration'] and not result['provenance']:
    parts.append('Configuration, code, machine, weights and prompts are the same.\n')
  if result['not_comparable']:
    parts.append('SPEEDS ARE NOT COMPARABLE where they are marked with !:\n\n' + _listed(result['not_comparable']))
  if result['warnings']:
    parts.append(_listed(result['warnings']))
  if result['points']:
    parts.append(table.markdown_table([COLUMNS, *map(_cells, result['points'])]))
    parts.append('n questions that both were asked; intervals of 95 %, each for itself, paired by question or batch. '
                 'Speed-ups are over each run\'s own target alone. Columns of A or B alone are over all of its rows.\n')
  else:
    parts.append('No point is in both.\n')
  for name, run in (('only_first', 'A'), ('only_second', 'B')):
    if result[name]:
      parts.append(f'Only in {run}:\n\n' + _listed(result[name]))
  return '\n'.join(parts)


def _listed(lines: Sequence[str]):
  return ''.join(f'- {table.printable(line)}\n' for line in lines)


def _shortened(values):
  """Two values that differ as texts of a table; of long ones the part in which they begin to differ."""
  shown = ['-' if value is None else str(value) for value in values]
  same = len(os.path.commonprefix(shown))
  start = max(0, same - _MAX_TEXT // 4) if max(map(len, shown)) > _MAX_TEXT else 0
  before = '...' if start else ''
  return [before + text[start:start + _MAX_TEXT] + ('...' if len(text) > start + _MAX_TEXT else '') for text in shown]


def _cells(point):
  interval = lambda found: statistics.Interval(**found)
  two = lambda values, digits: (table.number(value, digits) for value in values)
  knob = ''.join(f' {name}={value:g}' for name, value in point['knob'].items())
  ratio = table.with_interval(interval(point['speed_ratio']), unit='x')
  equal = point['equal_outputs']
  return (
      point['pair'], point['task'], point['method'] + knob, f'{point["temperature"]:g}', f'{point["top_p"]:g}',
      point['batch'], point['num_draft_tokens'] or '-', point['prompts'],
      *two((one['estimate'] for one in point['quality']), 3),
      table.with_interval(interval(point['quality_difference']), 3),
      *two(point['output_tok_s'], 1), ratio + (' !' if point['not_comparable'] and ratio != '-' else ''),
      *(table.with_interval(interval(one), unit='x') for one in point['speedup']), *two(point['acceptance_rate'], 3),
      *two(point['mean_acceptance_length'], 2), '-' if equal is None else f'{equal[0]}/{equal[1]}')
