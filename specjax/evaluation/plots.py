"""Figures of a run, each as PNG and SVG with its data beside it. No display is needed."""

import csv
import io
import pathlib
import textwrap

import matplotlib
matplotlib.use('Agg')
from matplotlib import pyplot
from matplotlib import ticker
from matplotlib.lines import Line2D

from specjax.evaluation import methods
from specjax.evaluation import output
from specjax.evaluation import table
from specjax.metrics import efficiency
from specjax.metrics import statistics

# Okabe and Ito's colours, told apart with every common colour blindness; the marker says it again.
STYLE = {
    'autoregressive': dict(color='#222222', marker='s', size=8),
    'autoregressive_drafter': dict(color='#7a7a7a', marker='D', size=7.5),
    'speculative': dict(color='#0072B2', marker='*', size=15),
    'cascade_chow': dict(color='#D55E00', marker='o', size=6),
    'cascade_token_v3': dict(color='#009E73', marker='^', size=6.5),
}
_OTHER = dict(color='#CC79A7', marker='v', size=6.5)

_LOOK = {
    'font.family': 'DejaVu Sans', 'font.size': 10, 'axes.titlesize': 11, 'axes.titleweight': 'bold',
    'axes.titlelocation': 'left', 'axes.labelsize': 10, 'axes.spines.top': False, 'axes.spines.right': False,
    'axes.edgecolor': '#555555', 'axes.linewidth': 0.8, 'axes.grid': True, 'grid.color': '#e6e6e6',
    'grid.linewidth': 0.8, 'axes.axisbelow': True, 'xtick.color': '#333333', 'ytick.color': '#333333',
    'xtick.labelsize': 9, 'ytick.labelsize': 9, 'legend.frameon': False, 'legend.fontsize': 9.5,
    'figure.facecolor': 'white', 'savefig.facecolor': 'white', 'svg.hashsalt': 'specjax', 'text.parse_math': False,
}
_PNG_DPI = 180
# Where a label may stand, points from its marker, the best places first.
_LABEL_OFFSETS = ((0, 13), (0, -13), (-18, 0), (18, 0), (-15, 11), (15, 11), (-15, -11), (15, -11), (0, 18), (0, -18))
# Closer than this (points), the ends of a curve share one label.
_SAME_PLACE = 30


def look():
  """A context in which figures look like ours."""
  return matplotlib.rc_context(_LOOK)


def style(method):
  """Colour, marker and size of a method."""
  return STYLE.get(method, _OTHER)


def write_figure(figure, directory, name, data):
  """Writes name.png, name.svg and the data in name.csv; returns the PNG's path. Equal inputs give equal files.

  Args:
    figure: closed afterwards.
    directory: a path.
    name: without suffix.
    data: list of dicts with the same keys.
  """
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


def finish(figure, caption, *, handles, columns):
  """Puts the legend and the caption below the panels."""
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


def _panels(count, *, width, height, title):
  columns = min(count, 2)
  rows = -(-count // columns)
  figure, axes = pyplot.subplots(
      rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout='constrained')
  flat = list(axes.flat)
  for unused in flat[count:]:
    unused.set_visible(False)
  figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
  figure.suptitle(table.printable(title), x=0.012, ha='left', fontsize=13, fontweight='bold')
  return figure, flat[:count]


def setting_title(series):
  """Task, temperature, truncation and batch of a series, for headings."""
  truncation = ''.join(f', {name} {getattr(series, name):g}' for name, off in (('top_p', 1), ('top_k', 0), ('min_p', 0))
                       if getattr(series, name) != off)
  return f'{table.printable(series.task)} · temperature {series.temperature:g}{truncation} · batch {series.batch}'


def settings(every):
  """The distinct settings of some series, in order."""
  return list(dict.fromkeys(series.setting for series in every))


def quality_latency(every, directory, *, name, caption):
  """Quality against relative latency: parents and speculative decoding as points, each cascade as a curve of its knob.

  Returns:
    The path of the PNG, or None when no series has both a quality and a baseline.
  """
  shown = [s for s in every if s.quality.estimate is not None and s.relative_latency.estimate is not None]
  if not shown:
    return None
  with look():
    figure, axes = _panels(
        len(settings(shown)), width=5.6, height=4.2, title=f'{shown[0].pair}: quality against latency')
    for axis, setting in zip(axes, settings(shown), strict=True):
      _quality_panel(axis, [s for s in shown if s.setting == setting])
    _share_limits(axes, shown)
    figure.draw_without_rendering()  # Only now is it known where a point lies on the page.
    for axis, setting in zip(axes, settings(shown), strict=True):
      _label_ends(axis, [s for s in shown if s.setting == setting])
    finish(figure, caption, handles=_handles(shown), columns=3)
    return write_figure(figure, directory, name, [_quality_datum(s) for s in shown])


def _share_limits(axes, shown):
  """Gives all panels the same ranges, room for the region where speculation loses, and no quality above 1.

  A whisker may leave the panel: one noisy interval would squeeze everything else.
  """
  latest = max(s.relative_latency.estimate for s in shown)
  x = (min(a.get_xlim()[0] for a in axes), min(max(a.get_xlim()[1] for a in axes), 1.25 * latest))
  y = (min(a.get_ylim()[0] for a in axes), max(a.get_ylim()[1] for a in axes))
  is_rate = y[1] < 1.2
  for axis in axes:
    axis.set_xlim(max(0.0, x[0]), max(x[1], 1.12))
    axis.set_ylim(max(0.0, y[0]), min(y[1], 1.01) if is_rate else y[1])
    axis.axvspan(1.0, axis.get_xlim()[1], color='#f3f0ee', linewidth=0, zorder=0)
    axis.text(axis.get_xlim()[1], 0.015, 'slower than the target ', transform=axis.get_xaxis_transform(), rotation=90,
              ha='right', va='bottom', fontsize=8, color='#8a7f7a')
    if is_rate:
      axis.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))


def _quality_panel(axis, series):
  baseline = next((s for s in series if s.is_baseline), None)
  axis.axvline(1.0, color='#222222', linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
  if baseline is not None:
    axis.axhline(baseline.quality.estimate, color='#222222', linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
  curves = {}
  for one in series:
    curves.setdefault((one.method, one.num_draft_tokens), []).append(one)
  for (method, _), points in curves.items():
    points = sorted(points, key=lambda s: s.knob_value if s.knob_value is not None else 0.0)
    _quality_curve(axis, method, points)
  axis.set_title(setting_title(series[0]))
  axis.set_xlabel('latency per token, relative to the target alone  (← faster)')
  axis.set_ylabel(f'quality ({table.printable(series[0].score_name or "score")})')
  axis.margins(0.07, 0.10)


def _quality_curve(axis, method, points):
  look_of = style(method)
  x = [p.relative_latency.estimate for p in points]
  y = [p.quality.estimate for p in points]
  x_bars = list(zip(*(_whiskers(p.relative_latency) for p in points), strict=True))
  y_bars = list(zip(*(_whiskers(p.quality) for p in points), strict=True))
  on_top = {'autoregressive': 5, 'speculative': 4}.get(method, 3)
  axis.errorbar(x, y, xerr=x_bars, yerr=y_bars, fmt='none', ecolor=look_of['color'], elinewidth=1.0, alpha=0.28,
                zorder=2)
  axis.plot(x, y, color=look_of['color'], linewidth=1.8 if len(points) > 1 else 0, marker=look_of['marker'],
            markersize=look_of['size'], markeredgecolor='white', markeredgewidth=0.8, zorder=on_top)


def _label_ends(axis, series):
  """Writes the knob's value beside both ends of each curve, where it covers least of markers, lines and other labels."""
  pixels = axis.figure.dpi / 72
  frame = axis.get_window_extent()
  place = lambda s: axis.transData.transform((s.relative_latency.estimate, s.quality.estimate))
  box = lambda x, y, width, height: (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
  curves = {}
  for one in series:
    if one.knob_value is not None:
      curves.setdefault((one.method, one.num_draft_tokens), []).append(one)
  curves = {key: sorted(points, key=lambda s: s.knob_value) for key, points in curves.items()}
  taken = [box(*place(s), 13 * pixels, 13 * pixels) for s in series]
  for points in curves.values():
    for start, stop in zip(map(place, points[:-1]), map(place, points[1:]), strict=True):
      taken += [box(*(start + step * (stop - start)), 5 * pixels, 5 * pixels) for step in (0.2, 0.35, 0.5, 0.65, 0.8)]
  for (method, _), points in curves.items():
    first, last = points[0], points[-1]
    labels = [(first, f'{first.knob_value:g}'), (last, f'{last.knob_value:g}')][:len(points)]
    if len(points) > 1 and abs(place(first) - place(last)).max() < _SAME_PLACE * pixels:
      labels = [(last, f'{first.knob_value:g}\u2013{last.knob_value:g}')]
    for point, text in labels:
      x, y = place(point)
      boxes = [box(x + dx * pixels, y + dy * pixels, 6.5 * len(text) * pixels, 10 * pixels) for dx, dy in _LABEL_OFFSETS]
      covered = [sum(_overlap(one, other) for other in taken) if _inside(one, frame) else float('inf') for one in boxes]
      best = covered.index(min(covered))
      taken.append(boxes[best])
      axis.annotate(text, (point.relative_latency.estimate, point.quality.estimate), xytext=_LABEL_OFFSETS[best],
                    textcoords='offset points', ha='center', va='center', fontsize=8, color=style(method)['color'],
                    zorder=6)


def _inside(box, frame):
  return box[0] >= frame.x0 and box[1] >= frame.y0 and box[2] <= frame.x1 and box[3] <= frame.y1


def _overlap(a, b):
  return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _handles(every):
  found = []
  for name in methods.METHODS:
    members = [s for s in every if s.method == name]
    if members:
      look_of = style(name)
      is_curve = members[0].knob_value is not None
      title = members[0].title + (' (label: threshold)' if is_curve else '')
      found.append(Line2D([], [], color=look_of['color'], marker=look_of['marker'], markersize=look_of['size'],
                          markeredgecolor='white', linewidth=1.8 if is_curve else 0, label=title))
  return found


def _quality_datum(series):
  return {
      'pair': series.pair, 'task': series.task, 'temperature': series.temperature, 'batch': series.batch,
      'method': series.method, 'knob': series.knob_value, 'num_draft_tokens': series.num_draft_tokens,
      'relative_latency': series.relative_latency.estimate, 'relative_latency_low': series.relative_latency.low,
      'relative_latency_high': series.relative_latency.high, 'quality': series.quality.estimate,
      'quality_low': series.quality.low, 'quality_high': series.quality.high, 'prompts': series.prompts,
  }


def speedup_grid(every, directory, *, name, caption):
  """Speed-up of lossless speculative decoding against K, one curve per batch size.

  Returns:
    The path of the PNG, or None when neither K nor the batch varies.
  """
  shown = [s for s in every if s.method == 'speculative' and s.speedup.estimate is not None]
  lengths, batches = sorted({s.num_draft_tokens for s in shown}), sorted({s.batch for s in shown})
  if len(lengths) < 2 and len(batches) < 2:
    return None
  panels = list(dict.fromkeys((s.task, s.temperature) for s in shown))
  colors = [pyplot.get_cmap('viridis')(0.88 * i / max(1, len(batches) - 1)) for i in range(len(batches))]
  with look():
    figure, axes = _panels(
        len(panels), width=5.6, height=4.0, title=f'{shown[0].pair}: speed-up of lossless speculative decoding')
    for axis, (task, temperature) in zip(axes, panels, strict=True):
      for color, batch in zip(colors, batches, strict=True):
        points = sorted((s for s in shown if (s.task, s.temperature, s.batch) == (task, temperature, batch)),
                        key=lambda s: s.num_draft_tokens)
        bars = list(zip(*(_whiskers(s.speedup) for s in points), strict=True))
        axis.errorbar([s.num_draft_tokens for s in points], [s.speedup.estimate for s in points], yerr=bars or None,
                      color=color, marker='o', markersize=6, markeredgecolor='white', linewidth=1.8, elinewidth=1.0)
      axis.set_title(f'{table.printable(task)} · temperature {temperature:g}')
      axis.set_xlabel('draft tokens per round, K')
      axis.set_ylabel('speed-up over the target alone')
      axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
      axis.set_ylim(0, max(1.15, axis.get_ylim()[1]))
      axis.axhspan(0, 1, color='#f3f0ee', linewidth=0, zorder=0)
      axis.axhline(1, color='#222222', linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    handles = [Line2D([], [], color=color, marker='o', markersize=6, markeredgecolor='white', linewidth=1.8,
                      label=f'batch {batch}') for color, batch in zip(colors, batches, strict=True)]
    finish(figure, caption, handles=handles, columns=min(6, len(handles)))
    data = [{'pair': s.pair, 'task': s.task, 'temperature': s.temperature, 'batch': s.batch,
             'num_draft_tokens': s.num_draft_tokens, 'speedup': s.speedup.estimate, 'speedup_low': s.speedup.low,
             'speedup_high': s.speedup.high, 'output_tok_s': s.output_tok_s} for s in shown]
    return write_figure(figure, directory, name, data)


def acceptance_by_position(every, directory, *, name, caption):
  """Conditional and unconditional acceptance rate against draft position, with 95 % Wilson bands.

  One line per rule; of a rule with a knob the middle of the sweep. Every knob value is in the data file.

  Returns:
    The path of the PNG, or None when nothing was drafted.
  """
  drafting = [s for s in every if s.drafts and s.counts.steps]
  if not drafting:
    return None
  data = [datum for s in drafting for datum in _position_data(s)]
  with look():
    figure, axes = _panels(
        2 * len(settings(drafting)), width=5.2, height=3.5, title=f'{drafting[0].pair}: acceptance by draft position')
    shown = []
    for row, setting in enumerate(settings(drafting)):
      chosen = _representatives([s for s in drafting if s.setting == setting])
      shown += chosen
      for axis, kind in zip(axes[2 * row:2 * row + 2], ('cond', 'uncond'), strict=True):
        _position_panel(axis, chosen, kind)
    labels = {}
    for s in shown:
      label = s.title + (f', threshold {s.knob_value:g}' if s.knob_value is not None else '')
      labels.setdefault(label, s)
    handles = [Line2D([], [], color=style(s.method)['color'], marker=style(s.method)['marker'],
                      markersize=style(s.method)['size'], markeredgecolor='white', linewidth=1.8, label=label)
               for label, s in labels.items()]
    finish(figure, caption, handles=handles, columns=min(3, len(handles)))
    return write_figure(figure, directory, name, data)


def _representatives(series):
  """One series per method, the longest drafts and of a knob's sweep the middle."""
  longest = max(s.num_draft_tokens for s in series)
  curves = {}
  for s in series:
    if s.num_draft_tokens == longest:
      curves.setdefault(s.method, []).append(s)
  return [sorted(points, key=lambda s: s.knob_value or 0.0)[len(points) // 2] for points in curves.values()]


def _rates(series, kind):
  counts = series.counts
  tried = counts.evaluated_by_position if kind == 'cond' else counts.drafted_by_position
  return [statistics.wilson_interval(a, n) for a, n in zip(counts.accepted_by_position, tried, strict=True)]


def _position_panel(axis, chosen, kind):
  for s in chosen:
    look_of = style(s.method)
    rate = efficiency.acceptance_rate(s.counts)
    if kind == 'uncond' and rate is not None:
      positions = range(1, s.num_draft_tokens + 1)
      axis.plot(positions, [rate**i for i in positions], color=look_of['color'], linewidth=1.0, linestyle=':', zorder=2)
    rates = [(i, r) for i, r in enumerate(_rates(s, kind), 1) if r.estimate is not None]
    x = [i for i, _ in rates]
    axis.fill_between(x, [r.low for _, r in rates], [r.high for _, r in rates], color=look_of['color'], alpha=0.13,
                      linewidth=0, zorder=2)
    axis.plot(x, [r.estimate for _, r in rates], color=look_of['color'], marker=look_of['marker'],
              markersize=look_of['size'], markeredgecolor='white', markeredgewidth=0.8, linewidth=1.8, zorder=3)
  axis.set_title(f'{"Conditional" if kind == "cond" else "Unconditional"} · temperature {chosen[0].temperature:g}')
  axis.set_xlabel('draft position')
  axis.set_ylabel('accepted / evaluated here' if kind == 'cond' else 'accepted / proposed here')
  axis.set_ylim(0, 1.03)
  axis.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
  axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  axis.margins(x=0.06)


def _position_data(series):
  rows = []
  for index, (cond, uncond) in enumerate(zip(_rates(series, 'cond'), _rates(series, 'uncond'), strict=True)):
    rows.append({
        'pair': series.pair, 'task': series.task, 'temperature': series.temperature, 'batch': series.batch,
        'method': series.method, 'knob': series.knob_value, 'num_draft_tokens': series.num_draft_tokens,
        'position': index + 1, 'conditional': cond.estimate, 'conditional_low': cond.low,
        'conditional_high': cond.high, 'unconditional': uncond.estimate, 'unconditional_low': uncond.low,
        'unconditional_high': uncond.high, 'drafted': series.counts.drafted_by_position[index],
        'evaluated': series.counts.evaluated_by_position[index],
        'accepted': series.counts.accepted_by_position[index],
        'mean_acceptance_length': efficiency.mean_acceptance_length(series.counts)})
  return rows
