"""The Markdown table of a run, for the terminal and the reports."""

import re

from specjax.metrics import efficiency

_CONTROL = re.compile(r'\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)?|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]')

COLUMNS = (
    'pair', 'task', 'method', 'n', 'T', 'B', 'K', 'AL', 'accepted/step', 'acceptance rate', 'tok/s AR', 'tok/s',
    'speedup [95 % CI]', '% limit AR', '% limit', 'quality AR', 'quality [95 % CI]', 'equal to AR',
)


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


def cells(series, baseline):
  """The cells of one series, in the order of `COLUMNS`; `baseline` may be None."""
  counts = series.counts
  equal = '-' if series.equal_to_baseline is None else '{}/{}'.format(*series.equal_to_baseline)
  drafts = series.drafts
  return (
      series.pair, series.task, method_label(series), str(series.prompts), f'{series.temperature:g}',
      str(series.batch), str(series.num_draft_tokens) if drafts else '-',
      number(efficiency.mean_acceptance_length(counts)) if drafts else '-',
      number(efficiency.accepted_per_step(counts)) if drafts else '-',
      number(efficiency.acceptance_rate(counts)) if drafts else '-',
      number(baseline and baseline.output_tok_s, 0), number(series.output_tok_s, 0),
      with_interval(series.speedup, unit='x'), number(baseline and baseline.pct_of_limit, 1),
      number(series.pct_of_limit, 1), number(baseline and baseline.quality.estimate, 3),
      with_interval(series.quality, 3), equal,
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
