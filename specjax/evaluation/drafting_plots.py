"""The figure of the table of drafting methods: block efficiency by domain, and speed-up."""

import numpy as np

from specjax.evaluation import drafting_table
from specjax.evaluation import methods
from specjax.evaluation import plots

_COLORS = ('#222222', '#D55E00', '#009E73', '#0072B2', '#CC79A7', '#E69F00', '#56B4E9', '#8B6914')


def by_method(found: drafting_table.Table, directory, *, name, caption):
  """The path of the PNG of one table: a line per series, with all domains in the left panel.

  Args:
    found: the table.
    directory: a path.
    name: without suffix.
    caption: of the figure.
  """
  labels = [_label(line) for line in found.lines]
  places = np.arange(len(labels))[::-1]
  with plots.look():
    figure, axes = plots.panels(2, width=5.6, height=1.3 + 0.24 * len(labels), title=found.title)
    for domain, color in zip(found.domains, _COLORS * len(found.domains), strict=False):
      is_all = domain == drafting_table.ALL
      axes[0].plot([line.cells[domain].block_efficiency for line in found.lines], places, color=color, linewidth=0,
                   marker='D' if is_all else 'o', markersize=7 if is_all else 5, markeredgecolor='white',
                   zorder=4 if is_all else 3, label='all domains' if is_all else domain)
    speedups = [line.cells[drafting_table.ALL].speedup for line in found.lines]
    for line, place, speedup in zip(found.lines, places, speedups, strict=True):
      if speedup.estimate is not None:
        ends = [] if speedup.low is None else plots.limits([speedup])
        axes[1].errorbar([speedup.estimate], [place], xerr=ends or None, **{
            'color': plots.style(line.series.method)['color'], 'marker': 'o', 'markersize': 6, 'markeredgecolor': 'white'})
    axes[1].axvline(1, color='#222222', linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for axis in axes:
      axis.set_yticks(places, labels, fontsize=8)
      axis.set_ylim(-0.7, len(labels) - 0.3)
    axes[1].tick_params(labelleft=False)
    axes[0].set(title='Block efficiency', xlabel='tokens per target call', xlim=(1, None))
    axes[1].set(title='Speed-up, all domains', xlabel='over the target alone')
    plots.finish(figure, caption, handles=axes[0].get_legend_handles_labels()[0], columns=5)
    data = [plots.place(line.series) | {'domain': domain, 'block_efficiency': cell.block_efficiency,
                                        'speedup': cell.speedup.estimate}
            for line in found.lines for domain, cell in line.cells.items()]
    return plots.write_figure(figure, directory, name, data)


def _label(line):
  knob = ''.join(f', {value:g}' for value in line.series.knob.values())
  return f'{methods.lookup(line.series.method).title}{knob} · K = {line.series.num_draft_tokens}'
