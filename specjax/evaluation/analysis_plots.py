"""Figures and tables of `drafts` analyses: entropy of heads, oracles of the top k, repetition, wins, work per token."""

from collections.abc import Mapping, Sequence

from matplotlib import pyplot
from matplotlib import ticker
import numpy as np

from specjax.evaluation import drafts
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import plots
from specjax.evaluation import table
from specjax.evaluation import work

_COLORS = ('#222222', '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#8B6914')
_OUTCOMES = (('wins', '#009E73'), ('ties', '#d3d7da'), ('losses', '#D55E00'))


def figures(analyses: Sequence[Mapping], directory) -> list:
  """The paths of the PNGs of some analyses, one per `drafts` run."""
  found = []
  with plots.look():
    for analysis in analyses:
      for draw in (entropies, oracle, repetition, wins):
        found.append(draw(analysis, directory))
    found.append(rising_heads(analyses, directory))
  return [path for path in found if path is not None]


def entropies(analysis, directory):
  """Mean entropy by head and domain, and the histogram of each head over all; None without heads."""
  domains = _with_heads(analysis)
  if not domains:
    return None
  figure, axes = plots.panels(2, width=5.4, height=3.8, title=f'{_name(analysis)}: how sure the heads are')
  data = []
  for (name, heads), color in zip(domains.items(), _colors(domains), strict=True):
    means = heads['mean_entropies']
    index = np.arange(1, len(means) + 1)
    _line(axes[0], index, means, color, label=_label(name))
    axes[0].plot(heads['h_max'], means[heads['h_max'] - 1], 'o', markersize=11, markerfacecolor='none',
                 markeredgecolor=color, markeredgewidth=1.4)
    data += [{'domain': name, 'head': int(head), 'mean_entropy': mean, 'h_max': heads['h_max']}
             for head, mean in zip(index, means, strict=True)]
  axes[0].set(xlabel="head (1: the target's own)", ylabel='mean entropy (nats)', title='Mean by domain, h_max ringed')
  axes[0].set_ylim(0, 1.08 * axes[0].get_ylim()[1])
  axes[0].xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  axes[0].legend(fontsize=8)
  heads = domains[drafts.ALL]
  shares, edges = np.array(heads['entropy_shares']), np.array(heads['entropy_edges'])
  colors = pyplot.get_cmap('viridis')(np.linspace(0, 0.9, len(shares)))
  for head, (share, color) in enumerate(zip(shares, colors, strict=True), 1):
    axes[1].step(edges, [*share, share[-1]], where='post', color=color, linewidth=1.6, label=f'head {head}')
  axes[1].set(xlabel='entropy (nats)', ylabel='share of places (log)', title='Histograms, all domains', yscale='log')
  axes[1].yaxis.set_major_formatter(ticker.FuncFormatter(lambda share, _: f'{100 * share:g} %'))
  axes[1].legend(fontsize=7.5, ncols=2)
  return _finished(figure, directory, f'head_entropy-{_slug(analysis)}', data, analysis)


def oracle(analysis, directory):
  """Block efficiency if the right one of k tokens of each head were drafted, absolute and against k = 1; None without heads."""
  domains = _with_heads(analysis)
  if not domains:
    return None
  figure, axes = plots.panels(2, width=5.4, height=3.8, title=f'{_name(analysis)}: what the top k of the heads hold')
  data = []
  for (name, heads), color in zip(domains.items(), _colors(domains), strict=True):
    values = heads['oracle_block_efficiency']
    k = np.arange(1, len(values) + 1)
    _line(axes[0], k, values, color, label=_label(name))
    _line(axes[1], k, np.array(values) / values[0], color, label=_label(name))
    data += [{'domain': name, 'k': int(i), 'block_efficiency': value} for i, value in zip(k, values, strict=True)]
  axes[0].set(xlabel='k', ylabel='tokens per target call', title='Oracle block efficiency', ylim=(1, None))
  axes[1].set(xlabel='k', ylabel='relative to k = 1', title='What there is to gain')
  for axis in axes:
    axis.set_xscale('log', base=2)
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda k, _: f'{k:g}'))
  axes[0].legend(fontsize=8)
  return _finished(figure, directory, f'oracle_top_k-{_slug(analysis)}', data, analysis)


def repetition(analysis, directory):
  """Share of equal neighbours and mean longest run of the drafts of each method, by domain."""
  found = analysis['domains']
  names = [name for name in next(iter(found.values()))['methods'] if any(
      one['methods'][name]['neighbour_rate'] is not None for one in found.values())]
  if not names:
    return None
  figure, axes = plots.panels(2, width=5.8, height=3.9, title=f'{_name(analysis)}: repetition inside drafts')
  data, places, width = [], np.arange(len(found)), 0.8 / len(names)
  for number, name in enumerate(names):
    ours = [one['methods'][name] for one in found.values()]
    for axis, key in zip(axes, ('neighbour_rate', 'mean_longest_run'), strict=True):
      values = [np.nan if one[key] is None else one[key] for one in ours]
      axis.bar(places + (number - (len(names) - 1) / 2) * width, values, 0.92 * width, label=methods_lib.lookup(name).title,
               color=_COLORS[1 + number % (len(_COLORS) - 1)])
    data += [{'domain': domain, 'method': name, 'neighbour_rate': one['neighbour_rate'],
              'mean_longest_run': one['mean_longest_run']} for domain, one in zip(found, ours, strict=True)]
  for axis in axes:
    axis.set_xticks(places, [_label(name) for name in found], rotation=18, ha='right')
  axes[0].set(ylabel='equal neighbours', title='Consecutive repetition')
  axes[0].yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
  axes[1].set(ylabel='tokens', title='Longest run, mean over rounds', ylim=(1, None))
  handles = axes[0].get_legend_handles_labels()[0]
  return _finished(figure, directory, f'repetition-{_slug(analysis)}', data, analysis, handles=handles)


def wins(analysis, directory):
  """Share of places at which a method's accepted prefix is longer, as long, shorter than that of plain heads."""
  found = analysis['domains']
  names = [name for name, one in found[drafts.ALL]['methods'].items() if one['against_plain_heads']]
  if not names:
    return None
  figure, axes = plots.panels(len(names), width=5.0, height=1.5 + 0.34 * len(found),
                              title=f'{_name(analysis)}: accepted prefix against that of {drafts.PLAIN_HEADS}')
  data, places = [], np.arange(len(found))[::-1]
  for axis, name in zip(axes, names, strict=True):
    counts = [one['methods'][name]['against_plain_heads'] for one in found.values()]
    totals = np.array([sum(one[key] for key, _ in _OUTCOMES) for one in counts], np.float64)
    left = np.zeros(len(found))
    for key, color in _OUTCOMES:
      share = np.array([one[key] for one in counts]) / np.maximum(totals, 1)
      axis.barh(places, share, left=left, color=color, height=0.72, label=key)
      for place, start, value in zip(places, left, share, strict=True):
        if value >= 0.07:
          axis.text(start + value / 2, place, f'{100 * value:.0f}', ha='center', va='center', fontsize=7.5, color='#222222')
      left += share
    axis.set_yticks(places, [_label(domain) for domain in found])
    axis.set(title=methods_lib.lookup(name).title, xlim=(0, 1))
    axis.xaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    axis.grid(visible=False)
    data += [{'domain': domain, 'method': name, **{key: one[key] for key, _ in _OUTCOMES}}
             for domain, one in zip(found, counts, strict=True)]
  handles = axes[0].get_legend_handles_labels()[0]
  return _finished(figure, directory, f'draft_wins-{_slug(analysis)}', data, analysis, handles=handles)


def rising_heads(analyses, directory):
  """Block efficiency of plain heads against h_max, a point per pair and domain, with their correlation; None below three."""
  points = [
      {'pair': _name(analysis), 'domain': name, 'h_max': one['heads']['h_max'],
       'block_efficiency': one['heads']['oracle_block_efficiency'][0]}
      for analysis in analyses for name, one in analysis['domains'].items() if one['heads'] and name != drafts.ALL]
  if len(points) < 3:
    return None
  figure, axes = plots.panels(1, width=5.6, height=4.0, title='Block efficiency and the heads over which entropy rises')
  for pair, color in zip(dict.fromkeys(point['pair'] for point in points), _COLORS[1:], strict=False):
    mine = [point for point in points if point['pair'] == pair]
    axes[0].plot([p['h_max'] for p in mine], [p['block_efficiency'] for p in mine], 'o', color=color, markersize=7,
                 markeredgecolor='white', label=pair)
    for point in mine:
      axes[0].annotate(_label(point['domain']), (point['h_max'], point['block_efficiency']), fontsize=7.5, color='#555555',
                       xytext=(6, 3), textcoords='offset points')
  x, y = (np.array([point[key] for point in points], np.float64) for key in ('h_max', 'block_efficiency'))
  said = f'correlation {np.corrcoef(x, y)[0, 1]:.2f} over {len(points)} points' if np.std(x) and np.std(y) else 'h_max is one number'
  axes[0].set(xlabel='h_max', ylabel='tokens per target call', title=said)
  axes[0].xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  axes[0].margins(x=0.2, y=0.12)
  axes[0].legend(fontsize=8)
  return _finished(figure, directory, 'rising_heads', points, analyses[0])


def work_table(analysis) -> str:
  """A Markdown table: bytes and operations per token of each method, by context length."""
  header = ['method', 'tokens per call', 'parameters (MB)', *(f'cache at {length} (MB)' for length in work.LENGTHS),
            *(f'Mflop at {length}' for length in (work.LENGTHS[0], work.LENGTHS[-1]))]
  lines = [header]
  for name, one in analysis['work'].items():
    at = [one[str(length)] for length in work.LENGTHS]
    lines.append([name, table.number(one['block_efficiency']), table.number(at[0]['parameter_bytes'] / 1e6),
                  *(table.number(found['cache_bytes'] / 1e6, 3) for found in at),
                  *(table.number(found['flops'] / 1e6, 1) for found in (at[0], at[-1]))])
  return table.markdown_table(lines)


def _with_heads(analysis):
  return {name: one['heads'] for name, one in analysis['domains'].items() if one['heads']}


def _colors(domains):
  return [_COLORS[number % len(_COLORS)] for number in range(len(domains))]


def _line(axis, x, y, color, *, label):
  axis.plot(x, y, color=color, marker='o', markersize=5, markeredgecolor='white', linewidth=1.8, label=label)


def _label(domain):
  return 'all domains' if domain == drafts.ALL else table.printable(domain)


def _name(analysis):
  return table.printable(analysis['config']['pair'])


def _slug(analysis):
  return drafts.file_name(analysis['config']['pair'])[len('drafts-'):-len('.json')]


def _finished(figure, directory, name, data, analysis, *, handles=()):
  config = analysis['config']
  caption = (f'Pair {config["pair"]} · task {config["task"]} · {analysis["domains"][drafts.ALL]["prompts"]} prompts, '
             f'{analysis["domains"][drafts.ALL]["tokens"]:,} tokens of the target\'s greedy answers · K = '
             f'{config["num_draft_tokens"]} · {config["dtype"]}.')
  plots.finish(figure, caption, handles=list(handles), columns=4)
  return plots.write_figure(figure, directory, name, data)
