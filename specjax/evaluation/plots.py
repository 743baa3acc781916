"""What figures share: look, panels, legends, and files as PNG and SVG with the data beside them. No display is needed."""

import csv
import io
import pathlib
import re
import textwrap

import matplotlib
matplotlib.use('Agg')
from matplotlib import pyplot
from matplotlib.lines import Line2D

from specjax.evaluation import methods
from specjax.evaluation import output
from specjax.evaluation import table

# Okabe and Ito's colours, told apart with every common colour blindness; the marker says it again. A panel shows one group,
# so groups share them.
_MEMBERS = (
    dict(color='#D55E00', marker='o', size=6), dict(color='#009E73', marker='^', size=6.5),
    dict(color='#CC79A7', marker='v', size=6.5), dict(color='#E69F00', marker='P', size=6.5),
    dict(color='#56B4E9', marker='X', size=6.5), dict(color='#8B6914', marker='d', size=6.5),
    # Behind the sixth of a group colours return with other markers.
    dict(color='#D55E00', marker='<', size=6.5), dict(color='#009E73', marker='s', size=5.5),
    dict(color='#CC79A7', marker='>', size=6.5), dict(color='#E69F00', marker='p', size=6.5),
    dict(color='#56B4E9', marker='D', size=5.5), dict(color='#8B6914', marker='H', size=6.5),
    dict(color='#0072B2', marker='8', size=6), dict(color='#D55E00', marker='P', size=6.5),
    dict(color='#009E73', marker='v', size=6.5), dict(color='#CC79A7', marker='o', size=6),
)
_REFERENCES = {
    'autoregressive': dict(color='#222222', marker='s', size=8),
    'autoregressive_drafter': dict(color='#7a7a7a', marker='D', size=7.5),
    'speculative': dict(color='#0072B2', marker='*', size=15),
    'speculative_block': dict(color='#0072B2', marker='h', size=8),
}
MUTED = '#d3d7da'


def _styles():
  found, members = dict(_REFERENCES), {}
  for name, method in methods.METHODS.items():
    if name not in found:
      found[name] = _MEMBERS[members.get(method.group, 0) % len(_MEMBERS)]
      members[method.group] = members.get(method.group, 0) + 1
  return found


STYLE = _styles()

_LOOK = {
    'font.family': 'DejaVu Sans', 'font.size': 10, 'axes.titlesize': 11, 'axes.titleweight': 'bold',
    'axes.titlelocation': 'left', 'axes.labelsize': 10, 'axes.spines.top': False, 'axes.spines.right': False,
    'axes.edgecolor': '#555555', 'axes.linewidth': 0.8, 'axes.grid': True, 'grid.color': '#e6e6e6',
    'grid.linewidth': 0.8, 'axes.axisbelow': True, 'xtick.color': '#333333', 'ytick.color': '#333333',
    'xtick.labelsize': 9, 'ytick.labelsize': 9, 'legend.frameon': False, 'legend.fontsize': 9.5,
    'figure.facecolor': 'white', 'savefig.facecolor': 'white', 'svg.hashsalt': 'specjax', 'text.parse_math': False,
}
_PNG_DPI = 180


def look():
  """A context in which figures look like ours."""
  return matplotlib.rc_context(_LOOK)


def style(method):
  """Colour, marker and size of a method."""
  return STYLE[method]


def write_figure(figure, directory, name, data):
  """Writes name.png, name.svg and the data in name.csv; returns the PNG's path. Equal inputs give equal files.

  Args:
    figure: closed afterwards.
    directory: a path.
    name: without suffix.
    data: list of dicts with the same keys.
  """
  name = re.sub(r'[^\w.,-]+', '_', name)  # A pair may be called by two paths.
  for suffix in ('png', 'svg'):
    buffer = io.BytesIO()
    metadata = {'Date': None} if suffix == 'svg' else {'Software': None}
    figure.savefig(buffer, format=suffix, dpi=_PNG_DPI, bbox_inches='tight', pad_inches=0.15, metadata=metadata)
    output.write_bytes(pathlib.Path(directory) / f'{name}.{suffix}', buffer.getvalue())
  pyplot.close(figure)
  if data:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(data[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(data)
    output.write_text(pathlib.Path(directory) / f'{name}.csv', text.getvalue())
  return pathlib.Path(directory) / f'{name}.png'


def limits(intervals):
  """((below...), (above...)) for the error bars of some `Interval`s, 0 where there is no interval."""
  return list(zip(*map(_whiskers, intervals), strict=True)) or None


def finish(figure, caption, *, handles, columns):
  """Puts the legend and the caption below the panels."""
  if handles:
    figure.legend(
        handles=handles, loc='upper center', bbox_to_anchor=(0.5, 0.0), ncols=columns, columnspacing=1.6,
        handletextpad=0.5)
  rows = -(-len(handles) // columns)
  width = figure.get_size_inches()[0]
  height = figure.get_size_inches()[1]
  figure.text(
      0.5, -(0.24 * rows + 0.17) / height, textwrap.fill(table.printable(caption), int(width * 15.5)), ha='center',
      va='top', fontsize=7.8, color='#666666', linespacing=1.35)


def _whiskers(interval):
  """(below, above) for an error bar, 0 where there is no interval."""
  if interval.low is None or interval.estimate is None:
    return 0.0, 0.0
  return max(0.0, interval.estimate - interval.low), max(0.0, interval.high - interval.estimate)


def panels(count, *, width, height, title, columns=None):
  """(figure, its first `count` axes) of a grid of panels of `width` x `height` inches each, under a title.

  Three columns by default, two where that leaves no hole. One panel alone is wide enough for its title.
  """
  columns = min(count, columns or (2 if count in (2, 4) else 3))
  width = max(width, 7.0) if columns == 1 else width
  rows = -(-count // columns)
  figure, axes = pyplot.subplots(
      rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout='constrained')
  flat = list(axes.flat)
  for unused in flat[count:]:
    unused.set_visible(False)
  figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
  # Broken between its parts, never inside one.
  parts = table.printable(title).replace(' ', '\u00a0').replace('\u00a0·\u00a0', ' ·\u00a0')
  figure.suptitle(textwrap.fill(parts, int(width * columns * 8.2)), x=0.012, ha='left', fontsize=13, fontweight='bold')
  return figure, flat[:count]


def setting_title(series, *, with_batch=True):
  """Task, temperature, truncation and batch of a series, for headings."""
  truncation = ''.join(f', {name} {getattr(series, name):g}' for name, off in (('top_p', 1), ('top_k', 0), ('min_p', 0))
                       if getattr(series, name) != off)
  batch = f' · batch {series.batch}' if with_batch else ''
  return f'{table.printable(series.task)} · temperature {series.temperature:g}{truncation}{batch}'


def place(series):
  """The first columns of every figure's data: which point it is."""
  knob = ' '.join(f'{name}={value:g}' for name, value in series.knob.items())
  return {'pair': series.pair, 'task': series.task, 'temperature': series.temperature, 'top_p': series.top_p,
          'batch': series.batch, 'method': series.method, 'knob': knob, 'num_draft_tokens': series.num_draft_tokens}


def settings(every):
  """The distinct settings of some series, in order."""
  return list(dict.fromkeys(series.setting for series in every))


def handle(method, *, is_line, label=None):
  """A legend's entry for a method."""
  look_of = style(method)
  return Line2D([], [], color=look_of['color'], marker=look_of['marker'], markersize=look_of['size'],
                markeredgecolor='white', linewidth=1.8 if is_line else 0, label=label or methods.lookup(method).title)


def by_group(every):
  """Group -> its series, in the order of `methods.GROUPS`; references are no group of their own."""
  found = {name: [s for s in every if s.group == name] for name in methods.GROUPS if name != 'reference'}
  return {name: members for name, members in found.items() if members}


def main_length(every):
  """The draft length that a figure with one K shows: the middle of those that were run, None without drafts."""
  lengths = sorted({s.num_draft_tokens for s in every if s.drafts})
  return lengths[len(lengths) // 2] if lengths else None


def at_length(every, length):
  """The series of one draft length, and those that draft nothing."""
  return [s for s in every if not s.drafts or s.num_draft_tokens == length]


def draw_line(axis, x, y, method, *, x_bars=None, y_bars=None, label=None, zorder=3):
  """Draws one method: a line with markers and whiskers (as `limits` gives them); a single point has no line."""
  look_of = style(method)
  if x_bars or y_bars:
    axis.errorbar(x, y, xerr=x_bars, yerr=y_bars, fmt='none', ecolor=look_of['color'], elinewidth=1.0, alpha=0.28, zorder=2)
  axis.plot(x, y, color=look_of['color'], linewidth=1.8 if len(x) > 1 else 0, marker=look_of['marker'],
            markersize=look_of['size'], markeredgecolor='white', markeredgewidth=0.8, zorder=zorder, label=label)
