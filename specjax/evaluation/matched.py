"""The two tables of the speculative-cascade paper: latency gain at matched quality, and best quality in the target's time.

A method is the set of its points (all knob values and K of one setting); its gain at a fraction f is the largest speed-up
among the points with at least f of the target's quality. One bootstrap serves all methods of a setting: each sample draws
questions for the qualities and clock groups for the times, picks every method's point anew, and so the intervals include
the choice, and the differences between methods are paired.

Source: Narasimhan et al. 2025, section 6; the choice is made on the same questions, so the figures are optimistic.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from specjax.evaluation import aggregate
from specjax.evaluation import methods as methods_lib
from specjax.metrics import statistics

FRACTIONS = (1.0, 0.99, 0.97, 0.95, 0.5)
# Below this share of bootstrap samples in which any point qualifies, an interval would be one of the others.
_ENOUGH = statistics.CONFIDENCE + (1 - statistics.CONFIDENCE) / 2


class Best(NamedTuple):
  """The best point of a method under one condition.

  Attributes:
    interval: of the figure; no estimate when no point meets the condition, no ends when nothing can be said.
    series: the point it is the figure of, or None.
    share: of the bootstrap samples in which any point meets the condition.
    is_leading: highest of its column, or not separated from the highest (paired 95 % interval contains 0).
  """

  interval: statistics.Interval
  series: aggregate.Series | None
  share: float | None
  is_leading: bool


@dataclasses.dataclass(frozen=True)
class Matched:
  """One line of the tables.

  Attributes:
    baseline: the target's series of the setting.
    method, title: whose points these are.
    gains: fraction of the target's quality -> `Best` speed-up. A lossless method has the target's quality by law, so its
      own sampled quality is not asked.
    quality: `Best` quality among the points that are not slower than the target.
  """

  baseline: aggregate.Series
  method: str
  title: str
  gains: Mapping[float, Best]
  quality: Best

  def as_json(self):
    """A JSON object; points are given by knob and K."""
    def best(found):
      point = found.series
      return {
          **found.interval._asdict(), 'share': found.share, 'leading': found.is_leading,
          'knob': point and dict(point.knob), 'num_draft_tokens': point and point.num_draft_tokens,
          'pct_of_limit': point and point.pct_of_limit}
    first = self.baseline
    return {
        **{name: getattr(first, name) for name in ('pair', 'task', 'batch', 'temperature', 'top_p', 'top_k', 'min_p')},
        'method': self.method, 'title': self.title,
        'gains': {f'{fraction:g}': best(found) for fraction, found in self.gains.items()},
        'best_quality': best(self.quality), 'baseline_quality': first.quality.estimate}


def tables(rows: Sequence[dict], every: Sequence[aggregate.Series]):
  """The `Matched` lines of all settings that have a scored baseline, in the order of `every`.

  A series that lacks questions of its baseline (an interrupted run) is left out.
  """
  grouped = aggregate.group_rows(rows)
  by_key = {aggregate.key_of(series): series for series in every}
  found = []
  for baseline in (s for s in every if s.is_baseline and s.quality.estimate is not None):
    mine = [(by_key[key], members) for key, members in grouped.items()
            if by_key[key].setting == baseline.setting and not by_key[key].is_baseline]
    points = _Points(grouped[aggregate.key_of(baseline)], [(s, members) for s, members in mine if _is_timed(s)])
    found += _lines(baseline, points)
  return found


def _is_timed(series):
  return series.speedup.estimate is not None and series.quality.estimate is not None


class _Points:
  """Bootstrap samples of speed-up and quality of every point of one setting.

  `speedup`, `quality` float64[1 + R, S]: the estimate first, then R samples; `target` float64[1 + R], the target's quality.
  """

  def __init__(self, baseline, candidates):
    clocks, questions = aggregate.clock_groups(baseline), [row['question_id'] for row in baseline]
    units, asked = np.unique(clocks), np.unique(questions)
    complete = [(s, rows) for s, rows in candidates if set(aggregate.clock_groups(rows)) == set(units)
                and {row['question_id'] for row in rows} == set(questions)]
    self.series = [s for s, _ in complete]
    self.is_timed = units.size > 1
    time = _weights(units.size)
    quality = _weights(asked.size)
    rate = lambda rows: _ratio(time, *_time_totals(rows))
    mean = lambda rows: _ratio(quality, *_score_totals(rows))
    self.target = mean(baseline)
    old = rate(baseline)
    stack = lambda columns: np.stack(columns, axis=1) if columns else np.zeros((self.target.size, 0))
    self.speedup = stack([rate(rows) / old for _, rows in complete])
    self.quality = stack([mean(rows) for _, rows in complete])


def _weights(size):
  """float64[1 + R, size]: ones, then the bootstrap's draws."""
  return np.concatenate([np.ones((1, size)), statistics.resampling_weights(size, seed=aggregate.BOOTSTRAP_SEED)])


def _ratio(weights, top, bottom):
  with np.errstate(divide='ignore', invalid='ignore'):
    return (weights @ top) / (weights @ bottom)


def _time_totals(rows):
  groups = aggregate.clock_groups(rows)
  choices = [row['choices'][0] for row in rows]
  return (statistics.group_totals([sum(c['new_tokens']) for c in choices], groups),
          statistics.group_totals([sum(c['wall_time']) for c in choices], groups))


def _score_totals(rows):
  questions = [row['question_id'] for row in rows]
  scores = [row['score'] if row['score'] is not None else 0.0 for row in rows]
  return (statistics.group_totals(scores, questions),
          statistics.group_totals([row['score'] is not None for row in rows], questions))


def _lines(baseline, points):
  by_method = {}
  for index, series in enumerate(points.series):
    by_method.setdefault(series.method, []).append(index)
  order = [name for name in methods_lib.METHODS if name in by_method]
  columns: dict[Any, dict] = {}
  for fraction in FRACTIONS:
    enough = points.quality >= fraction * points.target[:, None]
    enough |= np.array([s.is_lossless for s in points.series], bool)[None, :]
    columns[fraction] = _column(points, points.speedup, enough, by_method, needs_clock=True)
  columns['quality'] = _column(points, points.quality, points.speedup >= 1.0, by_method, needs_clock=False)
  return [
      Matched(baseline=baseline, method=name, title=methods_lib.lookup(name).title,
              gains={fraction: columns[fraction][name] for fraction in FRACTIONS}, quality=columns['quality'][name])
      for name in order]


def _column(points, values, allowed, by_method, *, needs_clock):
  """Method -> `Best` of `values` float64[1 + R, S] where `allowed` bool[1 + R, S]."""
  masked = np.where(allowed, values, -np.inf)
  best = {name: masked[:, indices].max(axis=1) for name, indices in by_method.items()}
  # A method without a point that qualifies is worth nothing in a comparison.
  worth = {name: np.where(np.isfinite(found), found, 0.0) for name, found in best.items()}
  leader = max(worth, key=lambda name: worth[name][0], default=None)
  has_ends = points.is_timed or not needs_clock
  return {name: _best(points, masked, indices, best[name], worth[name], worth[leader], has_ends=has_ends)
          for name, indices in by_method.items()}


def _best(points, masked, indices, found, worth, leading, *, has_ends):
  samples = found[1:]
  share = float(np.mean(np.isfinite(samples)))
  if not np.isfinite(found[0]):
    return Best(statistics.Interval(None, None, None), None, share, False)
  estimate = float(found[0])
  interval = statistics.Interval(estimate, None, None)
  if has_ends and share >= _ENOUGH:
    interval = statistics.percentile_interval(estimate, samples)
  behind = np.percentile(worth[1:] - leading[1:], 100 * _ENOUGH)
  chosen = points.series[indices[int(np.argmax(masked[0, indices]))]]
  return Best(interval, chosen, share, bool(worth[0] == leading[0] or behind >= 0 or not has_ends))
