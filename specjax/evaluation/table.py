"""The Markdown table of a run, for the terminal and the reports."""

import re

from specjax.evaluation import methods
from specjax.metrics import efficiency

_CONTROL = re.compile(
    r'\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)?|'
    r'[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]')

COLUMNS = (
    'pair', 'task', 'method', 'follows', 'n', 'T', 'top-p', 'B', 'K', 'AL', 'block efficiency', 'accepted/step',
    'acceptance rate', 'deferral rate', 'rejection rate', 'predicted', 'TV to target', 'tok/s AR', 'tok/s', 'speedup [95 % CI]', '% limit AR',
    '% limit', 'quality AR', 'quality [95 % CI]', 'equal to AR',
)
# Those that are empty without `--detail=summary`.
DETAIL = ('predicted', 'TV to target')


def printable(text):
  """`text` without ANSI escapes, control bytes and direction overrides; tab and line feed stay."""
  return _CONTROL.sub('', str(text))


def number(value, digits=2):
  """`value` with thousands separators, '-' when there is none."""
  return '-' if value is None else f'{value:,.{digits}f}'


def with_interval(interval, digits=2, *, unit=''):
  """'1.23x [1.20, 1.26]', without brackets where there is no interval."""
  if interval.estimate is None:
    return '-'
  text = f'{interval.estimate:.{digits}f}{unit}'
  if interval.low is None:
    return text
  return f'{text} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]'


def method_label(series):
  """The method's name with its knob."""
  knob = ''.join(f' {name}={value:g}' for name, value in series.knob.items())
  return series.method + knob


def follows(name):
  """Whose law the output of a method follows: 'target', 'drafter' or 'rule'."""
  method = methods.lookup(name)
  return 'target' if method.lossless else 'drafter' if method.execution == 'alone' else 'rule'


def predicted(series):
  """The rejection rate that theory predicts, TV(goal, drafter); '!' where the measured one differs beyond doubt.

  All marks of a table together appear at most once in twenty tables where theory holds.
  """
  if series.tv_goal_drafter is None:
    return '-'
  gap = series.rejection_gap
  differs = gap.low is not None and (gap.low > 1e-6 or gap.high < -1e-6)
  return number(series.tv_goal_drafter, 3) + (' !' if differs else '')


def _equal(series):
  """'96/96', and the causes of differences: '94/96 (2 tie)'."""
  if series.equal_to_baseline is None:
    return '-'
  causes = ', '.join(f'{count} {cause}' for cause, count in sorted(series.diff_causes.items()) if cause != 'lossy')
  return '{}/{}'.format(*series.equal_to_baseline) + (f' ({causes})' if causes else '')


def cells(series, baseline):
  """The cells of one series, in the order of `COLUMNS`; `baseline` may be None."""
  counts = series.counts
  drafted = lambda text: text if series.drafts else '-'
  rejected = number(efficiency.rejection_rate(counts), 3)
  return (
      series.pair, series.task, method_label(series), follows(series.method), str(series.prompts),
      f'{series.temperature:g}', f'{series.top_p:g}', str(series.batch), drafted(str(series.num_draft_tokens)),
      drafted(number(efficiency.mean_acceptance_length(counts))), drafted(number(efficiency.block_efficiency(counts))),
      drafted(number(efficiency.accepted_per_step(counts))),
      drafted(number(efficiency.acceptance_rate(counts))), number(series.deferral_rate, 3), drafted(rejected),
      predicted(series), number(series.tv_to_target, 3), number(baseline and baseline.output_tok_s, 0),
      number(series.output_tok_s, 0), with_interval(series.speedup, unit='x'),
      number(baseline and baseline.pct_of_limit, 1), number(series.pct_of_limit, 1),
      number(baseline and baseline.quality.estimate, 3), with_interval(series.quality, 3), _equal(series),
  )


def baseline_of(series, every):
  """The autoregressive series that `series` is compared with, or None."""
  return next((other for other in every if other.is_baseline and other.setting == series.setting), None)


def markdown(every):
  """The table of all series, columns aligned so that it also reads as text."""
  rows = [COLUMNS] + [cells(series, baseline_of(series, every)) for series in every]
  return markdown_table(rows)


def markdown_table(rows):
  """Any table, first row the header; pipes in cells are escaped."""
  rows = [[printable(cell).replace('\n', ' ').replace('|', '\\|') for cell in row] for row in rows]
  widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
  line = lambda row: '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + ' |'
  rule = '|' + '|'.join('-' * (width + 2) for width in widths) + '|'
  return '\n'.join([line(rows[0]), rule, *map(line, rows[1:])]) + '\n'


def best_cell(best, *, with_limit=False, digits=2, unit=''):
  """A cell of the matched tables: figure, interval, quality that is kept where it was not chosen, percent of the limit of the
  point that is chosen on all questions, '*' if nothing in its column is beyond it.

  Where too few bootstrap samples have a point that qualifies on both halves, their share stands in place of the interval.
  """
  if best.interval.estimate is None:
    return '-'
  text = with_interval(best.interval, digits, unit=unit)
  if best.interval.low is None and best.share < 1:
    text += f' (reached in {100 * best.share:.0f} %)'
  if best.kept.estimate is not None:
    text += f' keeps {100 * best.kept.estimate:.0f} %'
  if with_limit and best.series is not None and best.series.pct_of_limit is not None:
    text += f' at {best.series.pct_of_limit:.0f} %'
  return text + (' *' if best.is_leading else '')


def matched_columns(fractions):
  """The header of the matched tables."""
  return ('method', *(f'{100 * fraction:g} % of quality' for fraction in fractions), 'best quality, not slower')


def matched_cells(line):
  """The cells of one `matched.Matched`, in the order of `matched_columns`."""
  gains = (best_cell(best, unit='x', with_limit=True) for best in line.gains.values())
  return (line.title, *gains, best_cell(line.quality, digits=3))
