"""Curves over the knobs: quality against latency, rejection and deferral, latency against rejection.

One figure shows one setting at one K: a panel per group of methods, its curves in colour, all others behind them in grey,
the references in every panel. Rates over different things (drafts, tokens, queries) have panels of their own.
"""

from collections.abc import Callable
from typing import NamedTuple

from matplotlib import ticker
import numpy as np

from specjax.evaluation import aggregate
from specjax.evaluation import methods
from specjax.evaluation import plots
from specjax.evaluation import table
from specjax.metrics import efficiency
from specjax.metrics import statistics

# Where a label may stand, points from its marker, the best places first.
_LABEL_OFFSETS = ((0, 13), (0, -13), (-18, 0), (18, 0), (-15, 11), (15, 11), (-15, -11), (15, -11), (0, 18), (0, -18))
# Closer than this (points), the ends of a curve share one label.
_SAME_PLACE = 30
_ENOUGH_TO_CORRELATE = 8
_DASHED = (0, (4, 3))


class Across(NamedTuple):
  """What lies on the horizontal axis.

  Attributes:
    name: in the data.
    label: of a panel, given one of its methods.
    value: of a series.
    target: where the target alone lies.
    level: what a series' value is per; only series of one level share a panel.
  """

  name: str
  label: Callable[[str], str]
  value: Callable[[aggregate.Series], statistics.Interval]
  target: float | None
  level: Callable[[aggregate.Series], str]


def _rejection(series):
  if series.method == 'autoregressive_drafter':
    return statistics.Interval(0.0, None, None)
  rate = efficiency.rejection_rate(series.counts) if series.drafts else None
  return statistics.Interval(rate, None, None)


def _deferral(series):
  known = {methods.BASELINE: 1.0, 'autoregressive_drafter': 0.0}
  return statistics.Interval(known.get(series.method, series.deferral_rate), None, None)


def _one_level(series):
  del series
  return ''


def _decided(series):
  """What a deferral rate is per; '' for a model alone, which lies at 0 or 1 of anything."""
  levels = {'speculative': 'evaluated draft token', 'token': 'token', 'query': 'query', 'alone': ''}
  return levels[methods.lookup(series.method).execution]


LATENCY = Across('relative_latency', lambda level: 'latency per token, relative to the target alone  (← faster)',
                 lambda series: series.relative_latency, 1.0, _one_level)
REJECTION = Across('rejection_rate', lambda level: 'rejected / evaluated draft tokens  (← cheaper)', _rejection, None,
                   _one_level)
DEFERRAL = Across('deferral_rate', lambda level: f'deferral rate per {level or "decision"}, the weight of the target', _deferral,
                  None, _decided)


def quality_latency(every, directory, *, name, caption):
  """Quality against relative latency. `every` is of one setting; returns the PNG's path, None without quality or times."""
  return _quality(every, directory, across=LATENCY, name=name, caption=caption, title='quality against latency')


def quality_rejection(every, directory, *, name, caption):
  """Quality against the rejection rate. As `quality_latency`; None without a method that has a knob and is verified."""
  if not any(s.knob and s.drafts for s in every):
    return None
  return _quality(every, directory, across=REJECTION, name=name, caption=caption, title='quality against rejection')


def quality_deferral(every, directory, *, name, caption):
  """Quality against the deferral rate, oracles included. As `quality_latency`; None when no deferral is known."""
  if not any(s.knob and s.deferral_rate is not None for s in every):
    return None
  return _quality(every, directory, across=DEFERRAL, name=name, caption=caption, title='quality against deferral')


def _quality(every, directory, *, across, name, caption, title):
  length = plots.main_length(every)
  shown = [s for s in plots.at_length(every, length)
           if s.quality.estimate is not None and across.value(s).estimate is not None]
  if not shown:
    return None
  groups = _panels(across, shown)
  baseline = next((s for s in every if s.is_baseline), None)
  with plots.look():
    heading = f'{shown[0].pair}: {title} · {plots.setting_title(shown[0])}' + (f' · K = {length}' if length else '')
    figure, axes = plots.panels(len(groups), width=4.6, height=3.9, title=heading)
    for axis, ((group, level), members) in zip(axes, groups.items(), strict=True):
      beside = [s for s in shown if across.level(s) in ('', level)]
      _panel(axis, across, beside, members, baseline, title=methods.GROUPS[group], label=across.label(level))
    _share_limits(axes, across, shown)
    figure.draw_without_rendering()  # Only now is it known where a point lies on the page.
    for axis, ((_, level), members) in zip(axes, groups.items(), strict=True):
      _label_ends(axis, across, members, [s for s in shown if across.level(s) in ('', level)])
    references = [s.method for s in shown if s.group == 'reference']
    plots.finish(figure, caption, handles=[plots.handle(m, is_line=False) for m in dict.fromkeys(references)], columns=4)
    level = lambda s: {'per': across.level(s)} if across is DEFERRAL else {}
    data = [plots.place(s) | _ends(across.name, across.value(s)) | level(s) | _ends('quality', s.quality)
            | {'prompts': s.prompts} for s in shown]
    return plots.write_figure(figure, directory, name, data)


def _panels(across, shown):
  """(group, level) -> its series, without the references."""
  found = {}
  for group, members in plots.by_group(shown).items():
    for one in members:
      found.setdefault((group, across.level(one)), []).append(one)
  return found or {('reference', ''): []}


def _ends(name, interval):
  return {name: interval.estimate, f'{name}_low': interval.low, f'{name}_high': interval.high}


def _curves(series):
  found = {}
  for one in series:
    if one.knob:
      found.setdefault(one.curve, []).append(one)
  return {key: sorted(points, key=lambda s: s.knob_value) for key, points in found.items()}


def _panel(axis, across, shown, members, baseline, *, title, label):
  if across.target is not None:
    axis.axvline(across.target, color='#222222', linewidth=0.8, linestyle=_DASHED, zorder=1)
  if baseline is not None and baseline.quality.estimate is not None:
    axis.axhline(baseline.quality.estimate, color='#222222', linewidth=0.8, linestyle=_DASHED, zorder=1)
  mine = _curves(members)
  x_of = lambda points: [across.value(p).estimate for p in points]
  for key, points in _curves(shown).items():
    if key not in mine:
      axis.plot(x_of(points), [p.quality.estimate for p in points], color=plots.MUTED, linewidth=1.1, zorder=1.5)
  for one in shown:
    if one.group == 'reference':
      plots.draw_line(axis, x_of([one]), [one.quality.estimate], one.method, x_bars=plots.limits([across.value(one)]),
                      y_bars=plots.limits([one.quality]), zorder=4)
  labelled = set()
  for (method, _, _), points in mine.items():
    entry = None if method in labelled else points[0].title
    labelled.add(method)
    plots.draw_line(axis, x_of(points), [p.quality.estimate for p in points], method,
                    x_bars=plots.limits([across.value(p) for p in points]),
                    y_bars=plots.limits([p.quality for p in points]), label=entry)
  axis.set_title(title)
  axis.set_xlabel(label)
  axis.set_ylabel(f'quality ({table.printable(shown[0].score_name or "score")})')
  axis.margins(0.07, 0.10)
  if mine:
    axis.legend(loc='best', fontsize=7.8, frameon=True, framealpha=0.85, edgecolor='none', borderpad=0.3)


def _share_limits(axes, across, shown):
  """Gives all panels the same ranges, room for the region where speculation loses, and no quality above 1.

  A whisker may leave the panel: one noisy interval would squeeze everything else.
  """
  furthest = max(across.value(s).estimate for s in shown)
  x = (min(a.get_xlim()[0] for a in axes), min(max(a.get_xlim()[1] for a in axes), 1.25 * furthest))
  qualities = [s.quality.estimate for s in shown]
  spread = max(qualities) - min(qualities)
  y = (max(min(a.get_ylim()[0] for a in axes), min(qualities) - 0.25 * spread - 0.02),
       max(a.get_ylim()[1] for a in axes))
  is_rate = y[1] < 1.2
  for axis in axes:
    is_latency = across.target is not None
    axis.set_xlim(max(0.0, x[0]) if is_latency else -0.03 * furthest, max(x[1], 1.12) if is_latency else max(x[1], 1e-3))
    axis.set_ylim(max(0.0, y[0]), min(y[1], 1.01) if is_rate else y[1])
    if is_latency:
      axis.axvspan(across.target, axis.get_xlim()[1], color='#f3f0ee', linewidth=0, zorder=0)
      axis.text(axis.get_xlim()[1], 0.99, 'slower than the target ', transform=axis.get_xaxis_transform(), rotation=90,
                ha='right', va='top', fontsize=7.5, color='#8a7f7a')
    if is_rate:
      axis.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))


def _label_ends(axis, across, members, shown):
  """Writes the knob's value beside both ends of each curve, where it covers least of markers, lines and other labels."""
  pixels = axis.figure.dpi / 72
  frame = axis.get_window_extent()
  at = lambda s: (across.value(s).estimate, s.quality.estimate)
  place = lambda s: axis.transData.transform(at(s))
  box = lambda x, y, width, height: (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
  curves = _curves(members)
  taken = [box(*place(s), 13 * pixels, 13 * pixels) for s in (*members, *(s for s in shown if s.group == 'reference'))]
  if axis.get_legend() is not None:
    extent = axis.get_legend().get_window_extent()
    taken.append((extent.x0, extent.y0, extent.x1, extent.y1))
  for points in curves.values():
    for start, stop in zip(map(place, points[:-1]), map(place, points[1:]), strict=True):
      taken += [box(*(start + step * (stop - start)), 5 * pixels, 5 * pixels) for step in (0.2, 0.35, 0.5, 0.65, 0.8)]
  for (method, _, _), points in curves.items():
    first, last = points[0], points[-1]
    labels = [(first, _shown(first)), (last, _shown(last))][:len(points)]
    if len(points) > 1 and abs(place(first) - place(last)).max() < _SAME_PLACE * pixels:
      labels = [(last, f'{_shown(first)}\u2013{last.knob_value:g}')]
    for point, text in labels:
      x, y = place(point)
      boxes = [box(x + dx * pixels, y + dy * pixels, 6.0 * len(text) * pixels, 9 * pixels) for dx, dy in _LABEL_OFFSETS]
      covered = [sum(_overlap(one, other) for other in taken) if _inside(one, frame) else float('inf') for one in boxes]
      best = covered.index(min(covered))
      taken.append(boxes[best])
      axis.annotate(text, at(point), xytext=_LABEL_OFFSETS[best], textcoords='offset points', ha='center', va='center',
                    fontsize=7.5, color=plots.style(method)['color'], zorder=6)


def _shown(series):
  """The knob's value at the end of a curve; with several knobs all of them."""
  return ', '.join(f'{value:g}' for value in series.knob.values())


def _inside(box, frame):
  return box[0] >= frame.x0 and box[1] >= frame.y0 and box[2] <= frame.x1 and box[3] <= frame.y1


def _overlap(a, b):
  return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def latency_rejection(every, directory, *, name, caption):
  """Relative latency against the rejection rate, a panel per K, with the correlation over its points where there are enough.

  `every` is of one setting. Returns the PNG's path, None with fewer than three points.
  """
  shown = [s for s in every if s.drafts and s.relative_latency.estimate is not None and s.counts.evaluated]
  if len(shown) < 3:
    return None
  lengths = sorted({s.num_draft_tokens for s in shown})
  groups = [group for group in methods.GROUPS if any(s.group == group for s in shown)]
  colors = dict(zip(methods.GROUPS, ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#8B6914'), strict=True))
  with plots.look():
    figure, axes = plots.panels(
        len(lengths), width=4.6, height=3.7,
        title=f'{shown[0].pair}: latency against rejection · {plots.setting_title(shown[0])}')
    for axis, length in zip(axes, lengths, strict=True):
      mine = [s for s in shown if s.num_draft_tokens == length]
      for group in groups:
        points = [s for s in mine if s.group == group]
        axis.plot([_rejection(s).estimate for s in points], [s.relative_latency.estimate for s in points], 'o',
                  color=colors[group], markersize=5.5, markeredgecolor='white', markeredgewidth=0.7, alpha=0.85,
                  label=methods.GROUPS[group])
      axis.set_title(f'K = {length}{_correlation(mine)}')
      axis.set_xlabel('rejected / evaluated draft tokens')
      axis.set_ylabel('latency, relative to the target alone')
      axis.axhline(1.0, color='#222222', linewidth=0.8, linestyle=_DASHED, zorder=1)
      axis.set_ylim(0, max(1.1, axis.get_ylim()[1]))
    handles = axes[0].get_legend_handles_labels()[0]
    plots.finish(figure, caption, handles=handles, columns=3)
    data = [plots.place(s) | {'rejection_rate': _rejection(s).estimate} | _ends('relative_latency', s.relative_latency)
            for s in shown]
    return plots.write_figure(figure, directory, name, data)


def _correlation(series):
  x, y = ([f(s).estimate for s in series] for f in (_rejection, LATENCY.value))
  if len(series) < _ENOUGH_TO_CORRELATE or np.std(x) == 0 or np.std(y) == 0:
    return ''
  return f' · correlation {np.corrcoef(x, y)[0, 1]:.2f} over {len(series)} points'
