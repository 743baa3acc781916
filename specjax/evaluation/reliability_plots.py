"""Figures of KL classifiers: what their probabilities are worth, and how the divergences of a pair are distributed."""

import json
import os
import pathlib

import numpy as np

from specjax.core import errors
from specjax.evaluation import plots
from specjax.metrics import calibration

_COLORS = ('#1f6fb4', '#d9822b', '#2d8a57', '#8e5aa8', '#b23a48')
_DIRECTIONS = {'target_drafter': 'KL(target ‖ drafter)', 'drafter_target': 'KL(drafter ‖ target)'}


def write(directory: str | os.PathLike) -> list[pathlib.Path]:
  """The PNGs, with an SVG and a CSV beside each, of what `pairs.classifier_recipe` left in a pair's folder.

  Raises:
    DataError: report.json or held_out.npz is missing or damaged.
  """
  directory = pathlib.Path(directory)
  try:
    report = json.loads((directory / 'report.json').read_text())
    with np.load(directory / 'held_out.npz', allow_pickle=False) as stored:
      arrays = dict(stored)
    labels = arrays[report['direction']] > report['level']
    found = {name: (arrays[f'raw_{name}'], arrays[f'probabilities_{name}']) for name in report['classifiers']}
    histograms = {name: report['histogram'][name] for name in _DIRECTIONS}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.DataError(
        what='figures of a classifier', where=str(directory), got=repr(error), fix='run the training again') from error
  event = f'{_DIRECTIONS[report["direction"]]} above {report["level"]:g} nats'
  return [
      reliability(found, labels, directory, name='reliability', title=f'{report["pair"]}: chance of {event}'),
      divergences(histograms, directory, name='divergences', title=f'{report["pair"]}: how far the two laws are apart')]


def reliability(found, labels, directory, *, name, title):
  """The path of a reliability diagram: rate against probability in bins of equal mass, a panel per classifier.

  Args:
    found: name -> (probabilities before calibration, and after), of the same points.
    labels: whether it happened.
    directory: where name.png, .svg and .csv go.
    name: without suffix.
    title: of the figure.
  """
  data = []
  with plots.look():
    figure, axes = plots.panels(len(found), width=4.6, height=4.4, title=title)
    for axis, (classifier, kinds) in zip(axes, found.items(), strict=True):
      axis.plot([0, 1], [0, 1], color='#222222', linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
      axis.axhline(np.mean(labels), color='#999999', linewidth=0.8, linestyle=':', zorder=1)
      axis.annotate(f'base rate {np.mean(labels):.0%}', (0.99, np.mean(labels)), ha='right', va='bottom', fontsize=8,
                    color='#777777')
      for kind, color, probabilities in zip(('before', 'after'), ('#a9a9a9', _COLORS[0]), kinds, strict=True):
        bins = calibration.reliability_bins(probabilities, labels)
        error = calibration.expected_calibration_error(probabilities, labels)
        axis.plot([one.mean_probability for one in bins], [one.rate for one in bins], color=color, linewidth=1.8,
                  marker='o', markersize=6, markeredgecolor='white', zorder=2 + (kind == 'after'),
                  label=f'{kind} calibration, ECE {error:.1%}')
        data += [{'classifier': classifier, 'calibration': kind} | one._asdict() for one in bins]
      auc, skill = calibration.auc(kinds[1], labels), calibration.brier_skill(kinds[1], labels)
      axis.set_title(classifier)
      if auc is not None:
        axis.annotate(f'AUC {auc:.3f}\nBrier skill {skill:.2f}', (0.97, 0.05), ha='right', va='bottom', fontsize=9)
      axis.set(xlim=(0, 1), ylim=(0, 1), xlabel='probability given', ylabel='rate observed', aspect='equal')
      axis.legend(loc='upper left', fontsize=8)
    plots.finish(
        figure, f'{len(labels):,} tokens of held-out questions, in 15 bins of equally many. On the dashed line what is '
        'said is what happens; the dotted one is what always saying the base rate would give.', handles=[], columns=1)
    return plots.write_figure(figure, directory, name, data)


def divergences(histograms, directory, *, name, title):
  """The path of a histogram of divergences by bucket, both directions, with the shares of at least 2, 5 and 10 nats.

  Args:
    histograms: direction -> a histogram of `pairs.classifier_recipe.histogram`.
    directory: where name.png, .svg and .csv go.
    name: without suffix.
    title: of the figure.
  """
  data = []
  with plots.look():
    figure, [axis] = plots.panels(1, width=7.0, height=4.0, title=title)
    for index, (direction, found) in enumerate(histograms.items()):
      shares, edges = np.array(found['shares']), [*found['edges'], np.inf]
      places = np.arange(len(shares)) + 0.4 * (index - 0.5)
      tail = ', '.join(f'≥ {edge} nats {share:.2%}' for edge, share in found['at_least'].items())
      axis.bar(places, 100 * shares, width=0.38, color=_COLORS[index], label=f'{_DIRECTIONS[direction]}: {tail}')
      for place, share in zip(places, shares, strict=True):
        axis.annotate(f'{100 * share:.3g}', (place, 100 * share), ha='center', va='bottom', fontsize=7, color='#555555')
      data += [{'direction': direction, 'from': low, 'to': high, 'share': share}
               for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True)]
    labels = [*(f'{low:g} – {high:g}' for low, high in zip(edges[:-2], edges[1:-1], strict=True)), f'≥ {edges[-2]:g}']
    axis.set_xticks(range(len(labels)), labels, fontsize=8)
    axis.set(xlabel='nats', ylabel='tokens, %')
    axis.grid(axis='x', visible=False)
    axis.legend(loc='upper right', fontsize=8)
    plots.finish(
        figure, 'Divergence of the laws of target and drafter at temperature 1, at every token of answers to held-out '
        'questions.', handles=[], columns=1)
    return plots.write_figure(figure, directory, name, data)
