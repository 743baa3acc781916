"""The two tables of the speculative-cascade paper: latency gain at matched quality, and best quality in the target's time.

A method is the set of its points (all knob values and K of one setting); its gain at a fraction f is the largest speed-up
among the points with at least f of the target's quality. A largest of noisy numbers flatters, the more the more points a
method has, so a figure is cross-fitted:

    questions -> two halves; on each half the point is chosen, on the other one it is reported; the mean of both

What is reported had no part in the choice. The interval is Student's t with the standard deviation of a bootstrap that
draws questions and clock groups inside the halves, chooses anew, and is shared by all methods of a setting, so that their
differences are paired. The point that a table names is the one that is chosen on all questions.

Source: Narasimhan et al. 2025, section 6, for the tables.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from specjax.evaluation import aggregate
from specjax.evaluation import methods as methods_lib
from specjax.metrics import statistics

FRACTIONS = (1.0, 0.99, 0.97, 0.95, 0.5)
# Below this share of bootstrap samples in which both halves have a point, an interval would be one of the others.
_ENOUGH = statistics.CONFIDENCE + (1 - statistics.CONFIDENCE) / 2


class Best(NamedTuple):
  """What the best point of a method is worth under one condition.

  Attributes:
    interval: of the cross-fitted figure; no estimate when a half has no point that meets the condition, no ends when nothing
      can be said.
    kept: `Interval` of the chosen points' share of the target's quality on the half where they were not chosen; without
      estimate for a lossless method, which has it by law, and where quality is the figure.
    series: the point that is chosen on all questions, or None.
    share: of the bootstrap samples in which both halves have a point that meets the condition.
    is_leading: highest of its column, or not separated from the highest (paired 95 % interval contains 0).
  """

  interval: statistics.Interval
  kept: statistics.Interval
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
          **found.interval._asdict(), 'kept': found.kept._asdict(), 'share': found.share, 'leading': found.is_leading,
          'knob': point and dict(point.knob), 'num_draft_tokens': point and point.num_draft_tokens,
          'pct_of_limit': point and point.pct_of_limit}
    first = self.baseline
    return {
        **{name: getattr(first, name) for name in ('pair', 'task', 'batch', 'temperature', 'top_p', 'top_k', 'min_p')},
        'method': self.method, 'title': self.title,
        'gains': {f'{fraction:g}': best(found) for fraction, found in self.gains.items()},
        'best_quality': best(self.quality), 'baseline_quality': first.quality.estimate}


class Totals(NamedTuple):
  """What was measured in one setting: of the target, then of S points.

  Attributes:
    tokens, seconds: float64[1 + S, G] by clock group.
    scores, scored: float64[1 + S, Q] by question: summed score, and how many samples have one.
    group_half: int[G], 0 or 1. None with fewer than three clock groups per half: times are not split then, both halves
      choose and report with all of them.
    question_half: int[Q], 0 or 1; the half of its clock group where those are split.
  """

  tokens: np.ndarray
  seconds: np.ndarray
  scores: np.ndarray
  scored: np.ndarray
  group_half: np.ndarray | None
  question_half: np.ndarray


def tables(rows: Sequence[dict], every: Sequence[aggregate.Series]):
  """The `Matched` lines of all settings that have a scored baseline, in the order of `every`.

  A series that lacks questions of its baseline (an interrupted run) is left out.
  """
  grouped = aggregate.group_rows(rows)
  by_key = {aggregate.key_of(series): series for series in every}
  found = []
  for baseline in (s for s in every if s.is_baseline and s.quality.estimate is not None):
    own = grouped[aggregate.key_of(baseline)]
    mine = [(by_key[key], members) for key, members in grouped.items()
            if by_key[key].setting == baseline.setting and not by_key[key].is_baseline]
    mine = [(series, members) for series, members in mine if _is_timed(series) and _is_complete(members, own)]
    points = Points(totals_of([own, *(members for _, members in mine)]), resamples=statistics.RESAMPLES)
    found += _lines(baseline, [series for series, _ in mine], points)
  return found


def _is_timed(series):
  return series.speedup.estimate is not None and series.quality.estimate is not None


def _is_complete(rows, baseline):
  covered = lambda found: (set(aggregate.clock_groups(found)), {row['question_id'] for row in found})
  return covered(rows) == covered(baseline)


def halves(strata: Mapping[Any, str]):
  """Unit -> 0 or 1, by turns in the order of stratum and hash: the same in every run, every stratum in both halves."""
  order = sorted(strata, key=lambda unit: (strata[unit], hashlib.sha256(str(unit).encode()).digest()))
  return {unit: place % 2 for place, unit in enumerate(order)}


def totals_of(series_rows: Sequence[Sequence[dict]]):
  """The `Totals` of the rows of some complete series, the target's first; categories are the strata."""
  baseline = series_rows[0]
  group_of = dict(zip([row['question_id'] for row in baseline], aggregate.clock_groups(baseline).tolist(), strict=True))
  categories: dict[Any, set] = {}
  is_split = len(set(group_of.values())) >= 2 * statistics.FEWEST_GROUPS
  for row in baseline:
    unit = group_of[row['question_id']] if is_split else row['question_id']
    categories.setdefault(unit, set()).add(str(row['category']))
  half = halves({unit: ' '.join(sorted(found)) for unit, found in categories.items()})
  groups, questions = np.unique(list(group_of.values())), np.unique(list(group_of))
  of_question = [half[group_of[question]] if is_split else half[question] for question in questions.tolist()]
  times, scores = zip(*((_time_totals(rows), _score_totals(rows)) for rows in series_rows), strict=True)
  columns = lambda parts: map(np.stack, zip(*parts, strict=True))
  return Totals(
      *columns(times), *columns(scores), np.array([half[group] for group in groups.tolist()]) if is_split else None,
      np.array(of_question))


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


class Points:
  """Speed-up and quality of every point of one setting on both halves, with their bootstrap samples.

  Attributes:
    speedup, quality: float64[2, 1 + R, S]: the half, the estimate and then R samples, the point.
    target: float64[2, 1 + R], the target's quality.
    on_all: (speed-up float64[S], quality float64[S], the target's quality) on all questions.
    speed_scale, quality_scale: what a standard deviation of samples is multiplied by to give the half width of a 95 %
      interval; None where there are too few clock groups or questions for one.
    score_range: least and greatest possible score, as far as scores are fractions.
    num_questions: Q.
  """

  def __init__(self, totals: Totals, *, resamples):
    group_weights, self.speed_scale = _draws(totals.group_half, totals.tokens.shape[1], resamples)
    question_weights, self.quality_scale = _draws(totals.question_half, totals.scores.shape[1], resamples)
    rates = np.stack([_ratio(weights, totals.tokens, totals.seconds) for weights in group_weights])
    means = np.stack([_ratio(weights, totals.scores, totals.scored) for weights in question_weights])
    self.speedup, self.quality, self.target = rates[..., 1:] / rates[..., :1], means[..., 1:], means[..., 0]
    rate = _ratio(np.ones((1, totals.tokens.shape[1])), totals.tokens, totals.seconds)[0]
    mean = _ratio(np.ones((1, totals.scores.shape[1])), totals.scores, totals.scored)[0]
    self.on_all = rate[1:] / rate[0], mean[1:], mean[0]
    is_fraction = bool(np.all((totals.scores >= 0) & (totals.scores <= totals.scored)))
    self.num_questions = totals.scores.shape[1]
    self.score_range = (0.0, 1.0) if is_fraction else (-np.inf, np.inf)


def _draws(half, size, resamples):
  """(two float64[1 + R, size]: ones and then the bootstrap's draws, 0 outside the half; the scale of its deviations)."""
  draw = lambda units, seed: np.concatenate(
      [np.ones((1, units)), statistics.resampling_weights(units, seed=seed, resamples=resamples)])
  if half is None:
    weights = draw(size, aggregate.BOOTSTRAP_SEED)
    return (weights, weights), statistics.deviation_scale(size) if size >= statistics.FEWEST_GROUPS else None
  found, sizes = [], [int(np.sum(half == side)) for side in (0, 1)]
  for side, units in enumerate(sizes):
    weights = np.zeros((1 + resamples, size))
    if units:
      weights[:, half == side] = draw(units, aggregate.BOOTSTRAP_SEED + side)
    found.append(weights)
  return found, statistics.deviation_scale(*sizes) if min(sizes) >= 2 else None


def _ratio(weights, top, bottom):
  with np.errstate(divide='ignore', invalid='ignore'):
    return (weights @ top.T) / (weights @ bottom.T)


def cross_fitted(values, allowed, *reported):
  """Per table of figures float64[1 + R]: the mean over halves of that of the point that the other half chooses.

  Args:
    values: float64[2, 1 + R, P], what is made as large as possible.
    allowed: bool[2, 1 + R, P], the points that may be chosen on a half.
    *reported: float64[2, 1 + R, P], what is read on the other half.

  Returns:
    A list as long as `reported`; NaN where a half has nothing to choose.
  """
  masked = np.where(allowed, values, -np.inf)
  chosen = masked.argmax(axis=-1)[..., None]
  is_there = np.isfinite(np.take_along_axis(masked, chosen, axis=-1))[..., 0].all(axis=0)
  return [np.where(is_there, np.take_along_axis(found[::-1], chosen, axis=-1)[..., 0].mean(axis=0), np.nan)
          for found in reported]


def interval_of(figures, scale, *, limits=(-np.inf, np.inf), num_questions=0):
  """The `Interval` of a figure float64[1 + R]: the estimate, plus and minus `scale` standard deviations of its samples.

  A fraction that is 0 or 1 in all samples has no spread: Wilson's interval for `num_questions` questions stands in.
  """
  estimate, samples = float(figures[0]), figures[1:][np.isfinite(figures[1:])]
  if scale is None or np.mean(np.isfinite(figures[1:])) < _ENOUGH:
    return statistics.Interval(estimate, None, None)
  spread = scale * float(np.std(samples))
  if spread == 0 and num_questions and estimate in limits:
    return statistics.wilson_interval(estimate * num_questions, num_questions)
  return statistics.Interval(estimate, max(limits[0], estimate - spread), min(limits[1], estimate + spread))


def _lines(baseline, series, points):
  by_method: dict[str, list[int]] = {}
  for index, one in enumerate(series):
    by_method.setdefault(one.method, []).append(index)
  order = [name for name in methods_lib.METHODS if name in by_method]
  is_lossless = np.array([one.is_lossless for one in series], bool)
  speed_on_all, quality_on_all, target_on_all = points.on_all
  columns: dict[Any, dict] = {}
  for fraction in FRACTIONS:
    columns[fraction] = _column(
        series, points, points.speedup, (points.quality >= fraction * points.target[..., None]) | is_lossless,
        np.where((quality_on_all >= fraction * target_on_all) | is_lossless, speed_on_all, -np.inf), by_method,
        is_speed=True)
  columns['quality'] = _column(
      series, points, points.quality, points.speedup >= 1.0, np.where(speed_on_all >= 1.0, quality_on_all, -np.inf),
      by_method, is_speed=False)
  return [
      Matched(baseline=baseline, method=name, title=methods_lib.lookup(name).title,
              gains={fraction: columns[fraction][name] for fraction in FRACTIONS}, quality=columns['quality'][name])
      for name in order]


def _column(series, points, values, allowed, on_all, by_method, *, is_speed):
  """Method -> `Best` of `values` where `allowed`, both [2, 1 + R, S]; `on_all` float64[S] names the point."""
  with np.errstate(divide='ignore', invalid='ignore'):
    kept = points.quality / points.target[..., None] if is_speed else np.full_like(values, np.nan)
  found = {name: cross_fitted(values[..., members], allowed[..., members], values[..., members], kept[..., members])
           for name, members in by_method.items()}
  # A method without a point that qualifies is worth nothing in a comparison.
  worth = {name: np.nan_to_num(figures, nan=0.0) for name, (figures, _) in found.items()}
  leader = max(worth, key=lambda name: worth[name][0], default=None)
  scale, limits = (points.speed_scale, (0.0, np.inf)) if is_speed else (points.quality_scale, points.score_range)
  best = {}
  for name, (figures, share) in found.items():
    point = by_method[name][int(np.argmax(on_all[by_method[name]]))]
    lags = interval_of(worth[name] - worth[leader], scale).high
    is_known = is_speed and not series[point].is_lossless and np.isfinite(share[0])
    nothing = statistics.Interval(None, None, None)
    best[name] = Best(
        interval=interval_of(figures, scale, limits=limits, num_questions=0 if is_speed else points.num_questions)
        if np.isfinite(figures[0]) else nothing,
        kept=interval_of(share, points.quality_scale) if is_known else nothing,
        series=series[point] if np.isfinite(on_all[point]) else None, share=float(np.mean(np.isfinite(figures[1:]))),
        is_leading=bool(np.isfinite(figures[0]) and (lags is None or lags >= 0)))
  return best
