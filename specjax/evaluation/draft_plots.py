"""Figures about drafts: acceptance by position and by draft length, speed-up by draft length and batch."""

from matplotlib import pyplot
from matplotlib import ticker
from matplotlib.lines import Line2D

from specjax.evaluation import methods
from specjax.evaluation import plots
from specjax.metrics import efficiency
from specjax.metrics import statistics


# In a panel; with more, legends and bands have no place in it.
_MOST_LINES = 8


def speedup_grid(every, directory, *, name, caption):
  """Speed-up of lossless speculative decoding against K, one curve per batch size.

  Returns:
    The path of the PNG, or None when neither K nor the batch varies.
  """
  shown = [s for s in every if s.method == 'speculative' and s.speedup.estimate is not None]
  lengths, batches = sorted({s.num_draft_tokens for s in shown}), sorted({s.batch for s in shown})
  if len(lengths) < 2 and len(batches) < 2:
    return None
  key = lambda s: (s.task, s.temperature, s.top_p, s.top_k, s.min_p)
  places = list(dict.fromkeys(map(key, shown)))
  colors = [pyplot.get_cmap('viridis')(0.88 * i / max(1, len(batches) - 1)) for i in range(len(batches))]
  with plots.look():
    figure, axes = plots.panels(
        len(places), width=4.4, height=3.4,
        title=f'{shown[0].pair}: speed-up of lossless speculative decoding')
    for axis, place in zip(axes, places, strict=True):
      mine = [s for s in shown if key(s) == place]
      for color, batch in zip(colors, batches, strict=True):
        points = sorted((s for s in mine if s.batch == batch), key=lambda s: s.num_draft_tokens)
        axis.errorbar([s.num_draft_tokens for s in points], [s.speedup.estimate for s in points],
                      yerr=plots.limits([s.speedup for s in points]), color=color, marker='o', markersize=6,
                      markeredgecolor='white', linewidth=1.8, elinewidth=1.0)
      axis.set_title(plots.setting_title(mine[0], with_batch=False))
      axis.set_xlabel('draft tokens per round, K')
      axis.set_ylabel('speed-up over the target alone')
      axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
      axis.set_ylim(0, max(1.15, axis.get_ylim()[1]))
      axis.axhspan(0, 1, color='#f3f0ee', linewidth=0, zorder=0)
      axis.axhline(1, color='#222222', linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    handles = [Line2D([], [], color=color, marker='o', markersize=6, markeredgecolor='white', linewidth=1.8,
                      label=f'batch {batch}') for color, batch in zip(colors, batches, strict=True)]
    plots.finish(figure, caption, handles=handles, columns=min(6, len(handles)))
    data = [plots.place(s) | {'speedup': s.speedup.estimate, 'speedup_low': s.speedup.low,
                              'speedup_high': s.speedup.high, 'output_tok_s': s.output_tok_s} for s in shown]
    return plots.write_figure(figure, directory, name, data)


def acceptance_by_length(every, directory, *, name, caption):
  """Acceptance length against K, a panel per group of methods; dotted is what independent acceptances would give.

  `every` is of one setting. Of a method with a knob the middle of the sweep is drawn; the data file has all.

  Returns:
    The path of the PNG, or None when K does not vary.
  """
  drafting = [s for s in every if s.drafts and s.counts.steps]
  lengths = sorted({s.num_draft_tokens for s in drafting})
  if len(lengths) < 2:
    return None
  groups = _drafting_groups(drafting)
  with plots.look():
    figure, axes = plots.panels(
        len(groups), width=4.4, height=3.6,
        title=f'{drafting[0].pair}: acceptance length against draft length · {plots.setting_title(drafting[0])}')
    for axis, (group, members) in zip(axes, groups.items(), strict=True):
      for points in _by_method(members).values():
        _length_curve(axis, points)
      axis.set_title(methods.GROUPS[group])
      axis.set_xlabel('draft tokens per round, K')
      axis.set_ylabel('acceptance length')
      axis.xaxis.set_major_locator(ticker.FixedLocator(lengths))
      _legend(axis, axis, loc='upper left')
    highest = max(axis.get_ylim()[1] for axis in axes)
    for axis in axes:
      axis.set_ylim(1, 1 + 1.3 * (highest - 1))  # Room for the legend.
    plots.finish(figure, caption, handles=[], columns=1)
    data = [plots.place(s) | {
        'mean_acceptance_length': efficiency.mean_acceptance_length(s.counts),
        'acceptance_rate': efficiency.acceptance_rate(s.counts)} for s in drafting]
    return plots.write_figure(figure, directory, name, data)


def _legend(axis, last, *, loc):
  """The legend of a row of panels: inside `axis`, or beside the `last` one where it would hide what is drawn."""
  handles, labels = axis.get_legend_handles_labels()
  if len(handles) <= _MOST_LINES:
    axis.legend(loc=loc, fontsize=8)
  else:
    last.legend(handles, labels, loc='upper left', bbox_to_anchor=(1.01, 1.03), fontsize=7, labelspacing=0.35)


def _length_curve(axis, points):
  """One method over K, at the middle of its sweep."""
  knobs = sorted({tuple(p.knob.items()) for p in points})
  middle = dict(knobs[len(knobs) // 2])
  chosen = sorted((p for p in points if dict(p.knob) == middle), key=lambda s: s.num_draft_tokens)
  x = [p.num_draft_tokens for p in chosen]
  label = points[0].title + ''.join(f', {value:g}' for value in middle.values())
  plots.draw_line(axis, x, [efficiency.mean_acceptance_length(p.counts) for p in chosen], points[0].method, label=label)
  expected = [efficiency.predicted_acceptance_length(efficiency.acceptance_rate(p.counts) or 0.0, p.num_draft_tokens)
              for p in chosen]
  axis.plot(x, expected, color=plots.style(points[0].method)['color'], linewidth=1.0, linestyle=':', zorder=2)


def _drafting_groups(drafting):
  """Group -> series, the references first."""
  references = [s for s in drafting if s.group == 'reference']
  return ({'reference': references} if references else {}) | plots.by_group(drafting)


def _by_method(series):
  found = {}
  for s in series:
    found.setdefault(s.method, []).append(s)
  return found


def acceptance_by_position(every, directory, *, name, caption):
  """Conditional and unconditional acceptance rate against draft position, with 95 % Wilson bands, a row per group.

  `every` is of one setting. One line per method at the longest K, of a knob's sweep the middle; the data file has all.

  Returns:
    The path of the PNG, or None when nothing was drafted.
  """
  drafting = [s for s in every if s.drafts and s.counts.steps]
  if not drafting:
    return None
  groups = _drafting_groups(drafting)
  with plots.look():
    figure, axes = plots.panels(
        2 * len(groups), width=5.2, height=3.1, columns=2,
        title=f'{drafting[0].pair}: acceptance by draft position · {plots.setting_title(drafting[0])}')
    for row, (group, members) in enumerate(groups.items()):
      chosen = _representatives(members)
      for axis, kind in zip(axes[2 * row:2 * row + 2], ('cond', 'uncond'), strict=True):
        _position_panel(axis, chosen, kind, title=methods.GROUPS[group])
      _legend(axes[2 * row], axes[2 * row + 1], loc='lower left')
    plots.finish(figure, caption, handles=[], columns=1)
    return plots.write_figure(figure, directory, name, [datum for s in drafting for datum in _position_data(s)])


def _representatives(series):
  """One series per method, the longest drafts and of a knob's sweep the middle."""
  longest = max(s.num_draft_tokens for s in series)
  curves = _by_method(s for s in series if s.num_draft_tokens == longest)
  return [sorted(points, key=lambda s: tuple(s.knob.values()))[len(points) // 2] for points in curves.values()]


def _rates(series, kind):
  counts = series.counts
  tried = counts.evaluated_by_position if kind == 'cond' else counts.drafted_by_position
  return [statistics.wilson_interval(a, n) for a, n in zip(counts.accepted_by_position, tried, strict=True)]


def _position_panel(axis, chosen, kind, *, title):
  for s in chosen:
    look_of = plots.style(s.method)
    rate = efficiency.acceptance_rate(s.counts)
    if kind == 'uncond' and rate is not None:
      positions = range(1, s.num_draft_tokens + 1)
      axis.plot(positions, [rate**i for i in positions], color=look_of['color'], linewidth=1.0, linestyle=':', zorder=2)
    rates = [(i, r) for i, r in enumerate(_rates(s, kind), 1) if r.estimate is not None]
    x = [i for i, _ in rates]
    if len(chosen) <= _MOST_LINES:  # More bands hide each other; the data file has them.
      axis.fill_between(x, [r.low for _, r in rates], [r.high for _, r in rates], color=look_of['color'], alpha=0.13,
                        linewidth=0, zorder=2)
    label = s.title + ''.join(f', {value:g}' for value in s.knob.values())
    plots.draw_line(axis, x, [r.estimate for _, r in rates], s.method, label=label)
  axis.set_title(f'{title} · {"conditional" if kind == "cond" else "unconditional"}')
  axis.set_xlabel('draft position')
  axis.set_ylabel('accepted / evaluated here' if kind == 'cond' else 'accepted / proposed here')
  axis.set_ylim(0, 1.03)
  axis.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
  axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  axis.margins(x=0.06)


def _position_data(series):
  rows = []
  for index, (cond, uncond) in enumerate(zip(_rates(series, 'cond'), _rates(series, 'uncond'), strict=True)):
    rows.append(plots.place(series) | {
        'position': index + 1, 'conditional': cond.estimate, 'conditional_low': cond.low,
        'conditional_high': cond.high, 'unconditional': uncond.estimate, 'unconditional_low': uncond.low,
        'unconditional_high': uncond.high, 'drafted': series.counts.drafted_by_position[index],
        'evaluated': series.counts.evaluated_by_position[index],
        'accepted': series.counts.accepted_by_position[index],
        'mean_acceptance_length': efficiency.mean_acceptance_length(series.counts)})
  return rows
