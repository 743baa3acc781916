"""The table of drafting methods: domain x method, block efficiency and speed-up, and what is gained over plain heads."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from specjax.evaluation import aggregate
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import output
from specjax.evaluation import plots
from specjax.evaluation import rows as rows_lib
from specjax.evaluation import table
from specjax.metrics import efficiency
from specjax.metrics import statistics

ALL = 'all'
# What heads are compared with: the same heads, undisturbed.
PLAIN_HEADS = 'blockwise'
FILE = 'drafting.csv'


class Cell(NamedTuple):
  """One method on one domain.

  Attributes:
    block_efficiency: tokens per target call.
    speedup: `Interval` over the target alone; a domain has one at batch 1, where it has a clock of its own.
    gain: `Interval` of the block efficiency over that of `PLAIN_HEADS` at the same K, paired by question; for heads only.
  """

  block_efficiency: float | None
  speedup: statistics.Interval
  gain: statistics.Interval


class Line(NamedTuple):
  """One series: its method's label, K, and domain -> `Cell`."""

  series: aggregate.Series
  cells: Mapping[str, Cell]


class Table(NamedTuple):
  """One setting: its title, its domains (`ALL` first), its lines."""

  title: str
  domains: tuple[str, ...]
  lines: list[Line]


def tables(rows: Sequence[dict], every: Sequence[aggregate.Series]) -> list[Table]:
  """A `Table` for each setting in which a drafting method was run.

  Args:
    rows: as read by `row_log.read`.
    every: their series.
  """
  grouped = aggregate.group_rows(rows)
  found = []
  for setting in plots.settings(every):
    mine = [s for s in every if s.setting == setting]
    shown = [s for s in mine if s.group == 'drafting' or (s.is_lossless and s.drafts)]
    if not any(s.group == 'drafting' for s in shown):
      continue
    baseline = next((grouped[aggregate.key_of(s)] for s in mine if s.is_baseline), None)
    domains = (ALL, *sorted({row['category'] for s in shown for row in grouped[aggregate.key_of(s)]}))
    lines = []
    for series in shown:
      plain = next((other for other in shown if other.method == PLAIN_HEADS
                    and other.num_draft_tokens == series.num_draft_tokens and other is not series), None)
      is_heads = 'heads' in methods_lib.lookup(series.method).needs
      lines.append(Line(series, _cells(
          grouped[aggregate.key_of(series)], baseline, grouped[aggregate.key_of(plain)] if plain and is_heads else None,
          domains if len(domains) > 2 else (ALL,))))
    found.append(Table(f'{mine[0].pair} · {plots.setting_title(mine[0])}', domains if len(domains) > 2 else (ALL,), lines))
  return found


def _cells(rows, baseline, plain, domains):
  return {domain: _cell(*(_of_domain(part, domain) for part in (rows, baseline, plain)), domain) for domain in domains}


def _of_domain(rows, domain):
  return rows if rows is None or domain == ALL else [row for row in rows if row['category'] == domain]


def _cell(rows, baseline, plain, domain):
  if not rows:
    return Cell(None, *[statistics.Interval(None, None, None)] * 2)
  counts = efficiency.sum_counts(rows_lib.counts_of(row) for row in rows)
  speedup = gain = statistics.Interval(None, None, None)
  if baseline and (domain == ALL or rows[0]['batch'] == 1):
    speedup = aggregate.speed_ratio(rows, baseline)
  if plain:
    per_call = lambda found: (np.array([row['emitted'] for row in found], np.float64),
                              np.array([row['target_calls'] for row in found], np.float64),
                              [row['question_id'] for row in found])
    gain = statistics.speedup_interval(*per_call(rows), *per_call(plain))
  return Cell(efficiency.block_efficiency(counts), speedup, gain)


class Block(NamedTuple):
  """One table as text: what stands above it, its header, and its lines as {'method', 'cells'}."""

  note: str
  header: tuple[str, ...]
  lines: list[dict]


def blocks(found: Table) -> list[Block]:
  """Block efficiency with speed-up, and the gains of heads over plain heads where there are any."""
  header = ('method', 'K', *found.domains)
  line_of = lambda line, show: {'method': line.series.method, 'cells': (
      table.method_label(line.series), str(line.series.num_draft_tokens), *map(show, line.cells.values()))}
  gained = [line for line in found.lines if any(cell.gain.estimate is not None for cell in line.cells.values())]
  made = [Block('', header, [line_of(line, _shown) for line in found.lines])]
  if gained:
    made.append(Block(f'Block efficiency over that of {PLAIN_HEADS}, paired by question.', header,
                      [line_of(line, _gain) for line in gained]))
  return made


def text(found: Table) -> str:
  """`blocks` in Markdown."""
  parts = []
  for block in blocks(found):
    parts += [block.note + '\n'] if block.note else []
    parts.append(table.markdown_table([block.header, *(line['cells'] for line in block.lines)]))
  return '\n'.join(parts)


def _shown(cell):
  return f'{table.number(cell.block_efficiency)} ({table.with_interval(cell.speedup, unit="x")})'


def _gain(cell):
  if cell.gain.estimate is None:
    return '-'
  percent = statistics.Interval(*(None if value is None else 100 * (value - 1) for value in cell.gain))
  return table.with_interval(percent, 1, unit=' %')


def write(directory: str | pathlib.Path, found: Sequence[Table]) -> None:
  """Writes drafting.csv, one line per series and domain; nothing where there is no table."""
  if not found:
    return
  ends = lambda name, interval: {name: interval.estimate, f'{name}_low': interval.low, f'{name}_high': interval.high}
  data = [
      plots.place(line.series) | {'domain': domain, 'block_efficiency': cell.block_efficiency}
      | ends('speedup', cell.speedup) | ends('gain', cell.gain)
      for one in found for line in one.lines for domain, cell in line.cells.items()]
  content = io.StringIO()
  writer = csv.DictWriter(content, fieldnames=list(data[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(data)
  output.write_text(pathlib.Path(directory) / FILE, content.getvalue())
