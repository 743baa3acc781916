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
from specjax.evaluation import analysis_plots
from specjax.evaluation import curves
from specjax.evaluation import draft_plots
from specjax.evaluation import drafting_plots
from specjax.evaluation import drafting_table
from specjax.evaluation import drafts
from specjax.evaluation import exports
from specjax.evaluation import matched as matched_lib
from specjax.evaluation import methods
from specjax.evaluation import output
from specjax.evaluation import plots
from specjax.evaluation import provenance
from specjax.evaluation import row_log
from specjax.evaluation import table

SAMPLES = 4
# Columns of the page's tables, of which there is one per setting.
PAGE_COLUMNS = ('method', 'follows', 'K', 'quality [95 % CI]', 'speedup [95 % CI]', '% limit', 'AL', 'block efficiency',
                'accepted/step', 'acceptance rate', 'deferral rate', 'rejection rate', 'predicted', 'TV to target', 'tok/s', 'equal to AR')
# A page with more settings than this shows the figures of the untruncated ones; the others stand beside it as files.
_MAX_SETTINGS = 4
_MAX_TEXT = 600
_UNREAD = frozenset((
    'answer_id', 'tstamp', 'model_id', 'prompt_sha256', 'cached_tokens', 'crc32', 'reference_id', 'filtered_answer',
    'per_step', 'concurrency', 'acceptance_histogram', 'acceptance_per_pos_cond', 'acceptance_per_pos_uncond',
    'mean_acceptance_length', 'accepted_per_step', 'block_efficiency', 'draft_acceptance_rate', 'wasted_verify_tokens',
    'verified_tokens'))


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
  rows, damage = row_log.read(directory / output.ROWS, change=_essential)
  if not rows:
    raise ConfigError(what='no results', where=str(directory / output.ROWS), fix='Run `python -m specjax.eval` first.')
  run = output.read_run(directory)
  every = aggregate.all_series(rows, run)
  matched = matched_lib.tables(rows, every)
  analyses, drafting = drafts.read(directory), drafting_table.tables(rows, every)
  figures = _figures(directory, every, run) + _drafting_figures(directory, drafting, run) + [
      _Figure(path, True) for path in analysis_plots.figures(analyses, directory)]
  exports.write_results(directory, every, run, matched)
  exports.write_acceptance(directory, every)
  exports.write_performance(directory, every, rows)
  exports.write_vllm_metrics(directory, every)
  drafting_table.write(directory, drafting)
  text = table.markdown(every)
  facts = _facts(directory, rows, run, every, matched, figures, text, damage, drafting=drafting, analyses=analyses)
  environment = make_environment()
  output.write_text(directory / 'report.md', _markdown(environment, facts))
  output.write_text(directory / 'report.html', _html(environment, facts))
  return Report(directory, text, every, [figure.path for figure in figures])


def _essential(row):
  """A row without what no table or figure reads: a large sweep has to fit in memory."""
  choice = row['choices'][0]
  names = ['new_tokens', 'wall_time', 'prefill_time', 'decode_time', 'finish_reason']
  names += ['token_ids'] if row['temperature'] == 0 else []
  names += [] if row['batch_index'] or row['repeat'] else ['turns']
  return {name: value for name, value in row.items() if name not in _UNREAD} | {
      'choices': [{name: choice[name] for name in names}]}


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
  style = environment.get_template('report.css').render(
      marks={name: plots.style(name)['color'] for name in methods.METHODS})
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


class _Figure(NamedTuple):
  """A figure's file, and whether the page shows it."""

  path: pathlib.Path
  is_shown: bool


_OF_SETTING = (
    (curves.quality_latency, 'Latency: ratio of totals, prefill included; quality: mean score. Bars: 95 % intervals; '
     'points whose bars overlap are not told apart. Grey: the methods of the other panels.'),
    (curves.quality_rejection, 'Quality: mean score, bars: 95 % intervals. A rejection costs a target pass. Grey: the '
     'methods of the other panels.'),
    (curves.quality_deferral, 'Deferral: the weight of the target, per what the axis of a panel says; rates over different '
     'things are not compared. Bars: 95 % intervals.'),
    (curves.latency_rejection, 'Every point is one method at one knob value.'),
    (draft_plots.acceptance_by_length, 'Of a method with a knob the middle of its sweep. Dotted: what independent '
     'acceptances would give.'),
    (draft_plots.acceptance_by_position, 'Of a method with a knob the middle of its sweep. Bands: 95 % Wilson intervals. '
     'Dotted: what independent acceptances would give (a to the power of the position); a round that the end of a text '
     'cuts counts as not accepted behind the cut.'),
)


def _figures(directory, every, run):
  found = []
  for pair in dict.fromkeys(s.pair for s in every):
    mine = [s for s in every if s.pair == pair]
    found.append(_Figure(draft_plots.speedup_grid(
        mine, directory, name=f'speedup-{_slug(pair)}',
        caption=caption(mine, run) + ' Ratio of totals; bars: 95 % intervals.'), True))
    settings = plots.settings(mine)
    for setting in settings:
      members = [s for s in mine if s.setting == setting]
      is_shown = len(settings) <= _MAX_SETTINGS or members[0].top_p == 1
      for draw, explanation in _OF_SETTING:
        name = f'{draw.__name__}-{_slug(_setting_name(members[0], mine))}'
        found.append(_Figure(draw(
            members, directory, name=name, caption=f'{caption(members, run)} {explanation}'), is_shown))
  return [figure for figure in found if figure.path is not None]


def _drafting_figures(directory, tables, run):
  """The `_Figure`s of the tables of drafting methods."""
  members = [[line.series for line in found.lines] for found in tables]
  every = [series for of_table in members for series in of_table]
  return [
      _Figure(drafting_plots.by_method(
          found, directory, name=f'drafting-{_slug(_setting_name(mine[0], [s for s in every if s.pair == mine[0].pair]))}',
          caption=caption(mine, run) + ' Ratio of totals; bars: 95 % intervals. Block efficiency: tokens per call of the '
          'target.'), True) for found, mine in zip(tables, members, strict=True)]


def _setting_name(series, every):
  """The pair, and what tells this setting from the pair's others."""
  letters = {'task': '', 'temperature': 'T', 'top_p': 'p', 'top_k': 'k', 'min_p': 'm', 'batch': 'B'}
  parts = [f'{letter}{value if isinstance(value, str) else f"{value:g}"}' for name, letter in letters.items()
           for value in [getattr(series, name)] if len({getattr(s, name) for s in every}) > 1]
  return '-'.join([series.pair, *parts])


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
           f'T = {listed(s.temperature for s in series)}',
           f'top-p {listed(s.top_p for s in series)}' if any(s.top_p < 1 for s in series) else None,
           f'batch {listed(s.batch for s in series)}',
           f'K = {listed(s.num_draft_tokens for s in series if s.drafts)}' if any(s.drafts for s in series) else None,
           f'{first.prompts} prompts x {first.repeats} repeat{"s" if first.repeats > 1 else ""}',
           f'commit {commit[:9]}{dirty}' if commit else None]
  return table.printable(' · '.join(part for part in parts if part) + '.')


def _facts(directory, rows, run, every, matched, figures, text, damage, *, drafting=(), analyses=()):
  """What the templates print."""
  sessions = run.get('sessions', [])
  pairs = list(dict.fromkeys(s.pair for s in every))
  has_detail = any(s.tv_goal_drafter is not None for s in every)
  return {
      'directory': directory, 'machine': run.get('machine'), 'prompt_sets': run.get('prompt_sets', {}),
      'run_id': rows[0]['run_id'], 'num_rows': len(rows),
      'sessions': [_session(s) for s in sessions], 'pairs': [_pair(pair, every, matched, run) for pair in pairs],
      'table': text, 'columns': [name for name in PAGE_COLUMNS if has_detail or name not in table.DETAIL],
      'settings': [_setting(setting, every) for setting in plots.settings(every)],
      'figures': [{'file': figure.path.name, 'title': figure.path.stem.replace('_', ' ').replace('-', ', '),
                   'width': _pixels(figure.path) // 2} for figure in figures if figure.is_shown],
      'other_figures': [figure.path.name for figure in figures if not figure.is_shown],
      'losing': [_line(s, every) for s in every if s.loses],
      'undecided': [_line(s, every) for s in every if s.is_undecided],
      'unjudged': sum(s.is_unjudged for s in every),
      'compared': sum(not s.is_baseline and s.speedup.estimate is not None for s in every),
      'matched': _matched(matched), 'matched_columns': table.matched_columns(matched_lib.FRACTIONS),
      'drafting': [{'title': found.title, 'text': drafting_table.text(found), 'blocks': drafting_table.blocks(found)}
                   for found in drafting],
      'analyses': [{'title': f'{found["config"]["pair"]} · {found["config"]["task"]}', 'text': drafts.text(found),
                    'work': analysis_plots.work_table(found)} for found in analyses],
      'theory': _theory(every), 'categories': _categories(every), 'corpus': _corpus(every),
      'corpus_text': _corpus_text(every), 'samples': _samples(directory, rows),
      'errors': [row for row in rows if row['error']][:10], 'definitions': exports.METRIC_DEFINITIONS,
      'executables': [e for s in sessions for e in s.get('executables', ())], 'damage': damage,
      'number': table.number, 'interval': table.with_interval,
      'date': _date(sessions[0].get('started')) if sessions else '',
  }


def _pixels(path):
  """How wide a PNG is; it is shown at half of that, so that text has the same size in all figures."""
  with open(path, 'rb') as file:
    return int.from_bytes(file.read(24)[16:20], 'big')


def _matched(matched):
  """The matched tables, one per setting: title, the target's quality, lines of cells."""
  found = []
  for setting in dict.fromkeys(line.baseline.setting for line in matched):
    lines = [line for line in matched if line.baseline.setting == setting]
    baseline = lines[0].baseline
    found.append({
        'title': f'{baseline.pair} · {plots.setting_title(baseline)}',
        'quality': table.with_interval(baseline.quality, 3), 'pct_of_limit': table.number(baseline.pct_of_limit, 0),
        'lines': [{'method': line.method, 'cells': table.matched_cells(line)} for line in lines],
        'text': table.markdown_table(
            [table.matched_columns(matched_lib.FRACTIONS), *map(table.matched_cells, lines)])})
  return found


def _theory(every):
  """How many series have a predicted rejection rate, and which differ from it beyond doubt."""
  checked = [s for s in every if s.rejection_gap.low is not None]
  return {'checked': len(checked), 'differing': [
      f'{s.pair} {table.method_label(s)} T={s.temperature:g} top-p={s.top_p:g} K={s.num_draft_tokens}' for s in checked
      if table.predicted(s).endswith('!')]}


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


def _pair(pair, every, matched, run):
  """The headlines of a pair, a card per setting."""
  mine = [s for s in every if s.pair == pair]
  baselines = [s for s in mine if s.is_baseline]
  if len(baselines) > _MAX_SETTINGS:
    baselines = [s for s in baselines if s.top_p == 1]
  return {'name': pair, 'metadata': run.get('pairs', {}).get(pair, {}),
          'headlines': [_headline(s, mine, matched) for s in baselines]}


def _headline(baseline, mine, matched):
  """Lossless speculation at the main K, and what is gained at the target's quality; nothing is ranked that overlaps."""
  peers = [s for s in mine if s.setting == baseline.setting]
  speculative = next((s for s in plots.at_length(peers, plots.main_length(peers))
                      if s.method == 'speculative' and s.speedup.estimate is not None), None)
  leading = [line for line in matched if line.baseline is baseline and line.gains[1.0].is_leading]
  gains = [line.gains[1.0].interval.estimate for line in leading]
  gain = f'{min(gains):.2f}x to {max(gains):.2f}x' if gains else None
  if len(leading) == 1:
    best = leading[0].gains[1.0]
    gain = f'{table.with_interval(best.interval, unit="x")} ({table.number(best.series.pct_of_limit, 0)} % of the limit)'
  return {'baseline': baseline, 'speculative': speculative, 'leading': [line.title for line in leading], 'gain': gain}


def _corpus(every):
  """Per series and name: what papers quote, see `corpus_scores`."""
  return [{'pair': series.pair, 'task': series.task, 'temperature': series.temperature, 'top_p': series.top_p,
           'method': series.method, 'knob': series.knob_value, 'num_draft_tokens': series.num_draft_tokens, 'name': name,
           'value': table.with_interval(interval, 2 if interval.estimate > 1 else 3)}
          for series in every for name, interval in series.scores.items()]


def _corpus_text(every):
  """The same as a Markdown table, '' without any."""
  found = [tuple(str(value) for value in line.values()) for line in _corpus(every)]
  header = ('pair', 'task', 'T', 'top-p', 'method', 'knob', 'K', 'score', 'value [95 % CI]')
  return markupsafe.Markup(markupsafe.escape(table.markdown_table([header, *found]))) if found else ''


def _categories(every):
  """Per category: speculative and autoregressive series only, where there is more than one category."""
  found = []
  for series in every:
    if series.method in (methods.BASELINE, 'speculative') and len(series.categories) > 1:
      for name, values in series.categories.items():
        found.append({'pair': series.pair, 'task': series.task, 'temperature': series.temperature, 'top_p': series.top_p,
                      'batch': series.batch, 'method': series.method, 'category': name, **values})
  return found


def _samples(directory, rows):
  """For the first questions of each pair: what each method answered (first knob value), cut to a length."""
  asked = output.read_questions(directory)
  found: dict[Any, dict] = {}
  for row in rows:
    if row['repeat'] or row['batch_index']:
      continue
    key = row['pair'], row['task'], row['temperature'], row['top_p'], row['question_id']
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
