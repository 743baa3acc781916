"""Everything that is rebuilt from a run's rows: figures, tables, report.md and the self-contained report.html.

Model text is hostile: templates escape it, control bytes are taken out, and the page's own policy forbids scripts,
requests and styles other than the one it carries.
"""

import base64
import datetime
import functools
import hashlib
import pathlib
from typing import Any, NamedTuple

import jinja2
import markupsafe

from specjax.core.errors import ConfigError
from specjax.evaluation import aggregate
from specjax.evaluation import exports
from specjax.evaluation import methods
from specjax.evaluation import output
from specjax.evaluation import plots
from specjax.evaluation import provenance
from specjax.evaluation import row_log
from specjax.evaluation import table

SAMPLES = 4
# Columns of the page's tables, of which there is one per setting.
PAGE_COLUMNS = ('method', 'K', 'AL', 'accepted/step', 'acceptance rate', 'tok/s', 'speedup [95 % CI]', '% limit',
                'quality [95 % CI]', 'equal to AR')
_MAX_TEXT = 600


class Report(NamedTuple):
  """What was written: `table` for the terminal, `figures` by file name, the `series` behind them."""

  directory: pathlib.Path
  table: str
  series: list[aggregate.Series]
  figures: list[pathlib.Path]


def write(directory):
  """Rebuilds the reports of a run from rows.jsonl and run.json; returns the `Report`.

  Raises:
    ConfigError: there are no rows.
  """
  directory = pathlib.Path(directory)
  rows, damage = row_log.read(directory / output.ROWS)
  if not rows:
    raise ConfigError(what='no results', where=str(directory / output.ROWS), fix='Run `python -m specjax.eval` first.')
  run = output.read_run(directory)
  every = aggregate.all_series(rows, run)
  figures = _figures(directory, every, run)
  exports.write_results(directory, every, run)
  exports.write_acceptance(directory, every)
  exports.write_performance(directory, every, rows)
  text = table.markdown(every)
  facts = _facts(directory, rows, run, every, figures, text, damage)
  environment = make_environment()
  output.write_text(directory / 'report.md', _markdown(environment, facts))
  output.write_text(directory / 'report.html', _html(environment, facts))
  return Report(directory, text, every, figures)


@functools.cache
def make_environment():
  """The templates: everything is escaped and cleaned, a missing name is an error."""
  return jinja2.Environment(
      loader=jinja2.PackageLoader('specjax.evaluation', 'templates'), autoescape=True, undefined=jinja2.StrictUndefined,
      trim_blocks=True, lstrip_blocks=True, finalize=_clean)


def _clean(value):
  """What a template prints: text without control bytes; markup of our own passes."""
  if isinstance(value, markupsafe.Markup):
    return value
  return '' if value is None else table.printable(value)


def _markdown(environment, facts):
  # Markdown passes raw HTML through to whoever renders it, so it is escaped here as well.
  return environment.get_template('report.md').render(facts)


def _html(environment, facts):
  style = environment.get_template('report.css').render()
  digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
  policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
  images = {}
  for figure in facts['figures']:
    data = base64.b64encode((facts['directory'] / figure['file']).read_bytes()).decode()
    images[figure['file']] = f'data:image/png;base64,{data}'
  return environment.get_template('report.html').render(
      facts, style=markupsafe.Markup(style), policy=policy, images=images)


def _slug(name):
  return ''.join(c if c.isalnum() or c in '-_' else '_' for c in name)


def _figures(directory, every, run):
  paths = []
  for pair in dict.fromkeys(s.pair for s in every):
    mine = [s for s in every if s.pair == pair]
    base = caption(mine, run)
    paths.append(plots.quality_latency(
        mine, directory, name=f'quality_latency-{_slug(pair)}',
        caption=base + ' Latency: ratio of totals, prefill included; quality: mean score. Bars: 95 % intervals.'))
    paths.append(plots.speedup_grid(
        mine, directory, name=f'speedup-{_slug(pair)}', caption=base + ' Ratio of totals; bars: 95 % intervals.'))
    paths.append(plots.acceptance_by_position(
        mine, directory, name=f'acceptance_by_position-{_slug(pair)}',
        caption=base + ' Bands: 95 % Wilson intervals. Dotted: what independent acceptances would give (a to the power '
        'of the position); a round that the end of a text cuts counts as not accepted behind the cut.'))
  return [path for path in paths if path is not None]


def caption(series, run):
  """One sentence for below a figure: pair, dtype, chip, batch, K, T, prompts and commit."""
  session = run.get('sessions', [{}])[-1] if run.get('sessions') else {}
  first = series[0]
  listed = lambda values: ', '.join(f'{value:g}' for value in sorted(set(values)))
  metadata = run.get('pairs', {}).get(first.pair, {})
  commit = (session.get('git') or {}).get('commit')
  dirty = ' (modified)' if (session.get('git') or {}).get('dirty') else ''
  parts = [f'Pair {first.pair}', metadata.get('dtype'),
           provenance.chip_label(session['chip']) if session.get('chip') else None,
           f'T = {listed(s.temperature for s in series)}', f'batch {listed(s.batch for s in series)}',
           f'K = {listed(s.num_draft_tokens for s in series if s.drafts)}' if any(s.drafts for s in series) else None,
           f'{first.prompts} prompts x {first.repeats} repeat{"s" if first.repeats > 1 else ""}',
           f'commit {commit[:9]}{dirty}' if commit else None]
  return table.printable(' · '.join(part for part in parts if part) + '.')


def _facts(directory, rows, run, every, figures, text, damage):
  """What the templates print."""
  sessions = run.get('sessions', [])
  pairs = list(dict.fromkeys(s.pair for s in every))
  return {
      'directory': directory, 'machine': run.get('machine'), 'prompt_sets': run.get('prompt_sets', {}),
      'run_id': rows[0]['run_id'], 'num_rows': len(rows),
      'sessions': [_session(s) for s in sessions], 'pairs': [_pair(pair, every, run) for pair in pairs],
      'table': text, 'columns': PAGE_COLUMNS, 'settings': [_setting(setting, every) for setting in plots.settings(every)],
      'figures': [{'file': path.name, 'title': path.stem.replace('_', ' ').replace('-', ', ')} for path in figures],
      'losing': [_line(s, every) for s in every if s.loses],
      'undecided': [_line(s, every) for s in every if s.is_undecided],
      'compared': sum(not s.is_baseline and s.speedup.estimate is not None for s in every),
      'matched': aggregate.matched_quality(every), 'fractions': aggregate.MATCHED,
      'categories': _categories(every), 'samples': _samples(directory, rows),
      'errors': [row for row in rows if row['error']][:10], 'definitions': exports.METRIC_DEFINITIONS,
      'executables': [e for s in sessions for e in s.get('executables', ())], 'damage': damage,
      'number': table.number, 'interval': table.with_interval,
      'date': _date(sessions[0].get('started')) if sessions else '',
  }


def _date(seconds):
  if seconds is None:
    return ''
  return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime('%Y-%m-%d %H:%M UTC')


def _session(session):
  git = session.get('git') or {}
  return session | {
      'began': _date(session.get('started')), 'finished': _date(session.get('ended')),
      'commit': (git.get('commit') or 'unknown') + (' (modified)' if git.get('dirty') else ''),
      'chip_label': provenance.chip_label(session.get('chip') or {})}


def _line(series, every):
  cells = dict(zip(table.COLUMNS, table.cells(series, table.baseline_of(series, every)), strict=True))
  return {'series': series, 'cells': cells, 'method': series.method}


def _setting(setting, every):
  """One table of the page: the series of a setting and what they have in common."""
  mine = [s for s in every if s.setting == setting]
  return {'title': f'{mine[0].pair} · {plots.setting_title(mine[0])} · {mine[0].prompts} prompts',
          'lines': [_line(s, every) for s in mine]}


def _pair(pair, every, run):
  """The headline of a pair: each temperature's speculative speed-up, and the fastest cascade at the target's quality."""
  mine = [s for s in every if s.pair == pair]
  headlines = []
  for baseline in (s for s in mine if s.is_baseline):
    peers = [s for s in mine if s.setting == baseline.setting]
    speculative = max((s for s in peers if s.method == 'speculative' and s.speedup.estimate is not None),
                      key=lambda s: s.speedup.estimate, default=None)
    enough = [s for s in peers if s.knob and s.speedup.estimate is not None and s.quality.estimate is not None
              and baseline.quality.estimate is not None and s.quality.estimate >= baseline.quality.estimate]
    cascade = max(enough, key=lambda s: s.speedup.estimate, default=None)
    headlines.append({'baseline': baseline, 'speculative': speculative, 'cascade': cascade,
                      'cascade_label': table.method_label(cascade) if cascade else None})
  return {'name': pair, 'metadata': run.get('pairs', {}).get(pair, {}), 'headlines': headlines}


def _categories(every):
  """Per category: speculative and autoregressive series only, where there is more than one category."""
  found = []
  for series in every:
    if series.method in (methods.BASELINE, 'speculative') and len(series.categories) > 1:
      for name, values in series.categories.items():
        found.append({'pair': series.pair, 'task': series.task, 'temperature': series.temperature,
                      'batch': series.batch, 'method': series.method, 'category': name, **values})
  return found


def _samples(directory, rows):
  """For the first questions of each pair: what each method answered (first knob value), cut to a length."""
  asked = output.read_questions(directory)
  found: dict[Any, dict] = {}
  for row in rows:
    if row['repeat'] or row['batch_index']:
      continue
    key = row['pair'], row['task'], row['temperature'], row['question_id']
    question = asked.get((row['task'], row['question_id']), {})
    entry = found.setdefault(key, {
        'pair': row['pair'], 'temperature': row['temperature'], 'question_id': row['question_id'],
        'prompt': _cut(question.get('turns', [''])[0]), 'reference': _cut(question.get('reference', [''])[0]),
        'answers': {}})
    label = row['method'] + ''.join(f' {name}={value:g}' for name, value in row['knob'].items())
    if row['method'] not in {answer['method'] for answer in entry['answers'].values()}:
      entry['answers'][label] = {'method': row['method'], 'text': _cut(row['choices'][0]['turns'][0]),
                                 'score': row['score']}
  chosen = []
  for pair in dict.fromkeys(key[0] for key in found):
    chosen += [entry for key, entry in found.items() if key[0] == pair][:SAMPLES]
  return chosen


def _cut(text):
  return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + ' ...'
