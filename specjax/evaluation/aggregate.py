"""Rows to series: totals, ratios of totals and intervals, from rows.jsonl and run.json alone.

A *series* is a point without its seed: all rows of one pair, task, batch, sampling, method, knob and K. It is compared
with the autoregressive series of the same pair, task, batch and sampling.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from specjax.evaluation import grid
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import rows as rows_lib
from specjax.metrics import efficiency
from specjax.metrics import statistics
from specjax.metrics import timing

BOOTSTRAP_SEED = 20250801
MATCHED = (1.0, 0.99, 0.97, 0.95, 0.5)

_SETTING = ('pair', 'task', 'batch', *grid.SAMPLING)
_METHOD = ('method', 'rule', 'knob', 'num_draft_tokens', 'verifier')


@dataclasses.dataclass(frozen=True)
class Series:
  """One line of the tables.

  Attributes:
    pair, task, batch, temperature, top_p, top_k, min_p, method, rule, knob, num_draft_tokens: what was run.
    title: the method's name in figures.
    prompts, samples, repeats, errors: distinct questions; rows; timed repeats; rows with an error.
    counts: summed counters, each sample once.
    tokens, seconds, prefill_seconds, decode_seconds: totals over all rows.
    output_tok_s, decode_tok_s, tpot: ratios of totals; `tpot` seconds of decoding per token of a row.
    speedup: `Interval` against the baseline, end to end. decode_speedup, spec_bench_speedup: estimates.
    speedup_std: standard deviation over runs (seed x repeat), None with one run.
    relative_latency: `Interval`, 1 / speedup.
    quality: `Interval` of the mean score; quality_difference: `Interval` against the baseline, paired.
    pct_of_limit: 100 x shortest possible time / measured decoding time.
    equal_to_baseline: (equal outputs, compared outputs) where both are greedy, else None.
    categories: name -> {'prompts', 'mean_acceptance_length', 'acceptance_rate', 'quality'}.
    score_name: what quality measures.
    finish_reasons: name -> rows.
  """

  pair: str
  task: str
  batch: int
  temperature: float
  top_p: float
  top_k: int
  min_p: float
  method: str
  rule: str | None
  knob: Mapping[str, float]
  num_draft_tokens: int
  verifier: str | None
  title: str
  prompts: int
  samples: int
  repeats: int
  errors: int
  counts: efficiency.Counts
  tokens: int
  seconds: float
  prefill_seconds: float
  decode_seconds: float
  output_tok_s: float | None
  decode_tok_s: float | None
  tpot: float | None
  speedup: statistics.Interval
  decode_speedup: float | None
  spec_bench_speedup: float | None
  speedup_std: float | None
  relative_latency: statistics.Interval
  quality: statistics.Interval
  quality_difference: statistics.Interval
  pct_of_limit: float | None
  equal_to_baseline: tuple[int, int] | None
  categories: Mapping[str, Any]
  score_name: str | None
  finish_reasons: Mapping[str, int]

  @property
  def is_baseline(self):
    return self.method == methods_lib.BASELINE

  @property
  def drafts(self):
    return self.num_draft_tokens > 0

  @property
  def setting(self):
    """What two series must share to be compared."""
    return self.pair, self.task, self.batch, self.temperature, self.top_p, self.top_k, self.min_p

  @property
  def knob_value(self):
    """The number the knob is set to, None without one."""
    return next(iter(self.knob.values()), None)

  @property
  def loses(self):
    """Whether it is slower than the baseline beyond doubt."""
    return self.speedup.high is not None and self.speedup.high < 1 and not self.is_baseline

  @property
  def is_undecided(self):
    """Whether it may be faster or slower than the baseline."""
    return self.speedup.low is not None and self.speedup.low <= 1 <= self.speedup.high and not self.is_baseline

  def as_json(self):
    """A JSON object with every number of the series."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    for name, value in fields.items():
      if isinstance(value, statistics.Interval):
        fields[name] = value._asdict()
    fields |= efficiency.summary(fields.pop('counts'))
    return rows_lib.finite(fields)


def setting_of(row):
  """What rows must share to be compared."""
  return tuple(row[name] for name in _SETTING)


def _series_key(row):
  method = tuple(tuple(sorted(row[name].items())) if name == 'knob' else row[name] for name in _METHOD)
  return setting_of(row) + method


def group_rows(rows):
  """Series key -> its rows, in order of first appearance."""
  grouped = {}
  for row in rows:
    grouped.setdefault(_series_key(row), []).append(row)
  return grouped


def all_series(rows: Sequence[dict], run: Mapping):
  """The `Series` of a run, in the order of the sweep.

  Args:
    rows: as read by `row_log.read`.
    run: run.json.
  """
  grouped = group_rows(rows)
  baselines = {}
  for found in grouped.values():
    if found[0]['method'] == methods_lib.BASELINE:
      baselines[setting_of(found[0])] = found
  series = [_series(found, baselines.get(setting_of(found[0])), run) for found in grouped.values()]
  order = {name: index for index, name in enumerate(methods_lib.METHODS)}
  pairs = list(dict.fromkeys(s.pair for s in series))
  return sorted(series, key=lambda s: (
      pairs.index(s.pair), s.task, s.temperature, s.batch, s.num_draft_tokens if s.drafts else 0, order[s.method],
      s.knob_value if s.knob_value is not None else -np.inf))


def _of_choice(rows, name):
  return np.array([row['choices'][0][name][0] for row in rows], np.float64)


def clock_groups(rows):
  """What shares a clock reading: the question, or the batch it was in. With one batch only, the run (seed, repeat)."""
  if rows[0]['batch'] == 1:
    return np.array([row['question_id'] for row in rows])
  batches = np.array([row['batch_index'] for row in rows])
  if np.unique(batches).size > 1:
    return batches
  return np.array([f'{row["seed"]}/{row["repeat"]}' for row in rows])


def _first_repeats(rows):
  """One row per question and seed: repeats measure time again, their tokens are the same."""
  found = {}
  for row in rows:
    found.setdefault((row['question_id'], row['seed']), row)
  return list(found.values())


def _per_pass(rows, seconds):
  """Mean seconds per pass of the batch: each batch's time over its passes, added up from its rows' shares."""
  passes = {}
  for row in rows:
    passes[row['point_id'], row['batch_index'], row['repeat']] = row['target_passes']
  total = sum(passes.values())
  return seconds / total if total else None


def _limit(rows, run, decode_seconds):
  """Percent of the physical limit of a round (K drafter passes, one target pass); None if the machine was not measured."""
  first = rows[0]
  costs = run.get('pairs', {}).get(first['pair'], {}).get('step_costs')
  per_pass = _per_pass(rows, decode_seconds)
  if not costs or 'machine' not in run or not per_pass:
    return None
  measured = run['machine']
  machine = timing.Machine(tuple(map(tuple, measured['bandwidths'])), measured['flops'])
  context = np.mean([row['prompt_tokens'][0] + row['choices'][0]['new_tokens'][0] / 2 for row in rows])
  role = methods_lib.lookup(first['method']).model
  limit = timing.round_limit(
      _step_cost(costs[role], first['batch'], context), _step_cost(costs['drafter'], first['batch'], context), machine,
      num_draft_tokens=first['num_draft_tokens'])
  return timing.pct_of_limit(limit, per_pass)


def _step_cost(cost, batch, context):
  live = min(1.0, context / cost['capacity'])
  return timing.StepCost(
      weight_bytes=cost['weight_bytes'], cache_bytes=batch * live * cost['cache_bytes_per_row'],
      flops=batch * cost['flops_per_token'])


def _equal_to_baseline(rows, baseline):
  """(equal, compared) outputs of greedy rows, None for sampled ones."""
  if baseline is None or rows[0]['temperature'] > 0:
    return None
  expected = {(row['question_id'], row['seed']): row['choices'][0]['token_ids'] for row in baseline}
  pairs = [(row['choices'][0]['token_ids'], expected.get((row['question_id'], row['seed'])))
           for row in _first_repeats(rows)]
  compared = [(got, want) for got, want in pairs if want is not None]
  return sum(got == want for got, want in compared), len(compared)


def _quality(rows):
  scored = [row for row in _first_repeats(rows) if row['score'] is not None]
  if not scored:
    return statistics.Interval(None, None, None)
  scores = np.array([row['score'] for row in scored], np.float64)
  questions = [row['question_id'] for row in scored]
  if len(set(questions)) == len(scored) and set(scores) <= {0.0, 1.0}:
    return statistics.wilson_interval(int(scores.sum()), len(scored))
  return statistics.mean_interval(scores, groups=questions, seed=BOOTSTRAP_SEED)


def _quality_difference(rows, baseline):
  ours, theirs = ([row for row in _first_repeats(found or []) if row['score'] is not None]
                  for found in (rows, baseline))
  if not ours or not theirs:
    return statistics.Interval(None, None, None)
  return statistics.difference_interval(
      [row['score'] for row in ours], [row['question_id'] for row in ours],
      [row['score'] for row in theirs], [row['question_id'] for row in theirs], seed=BOOTSTRAP_SEED)


def _speedup(rows, baseline):
  """(interval, decode estimate, Spec-Bench's figure, std over runs)."""
  if baseline is None:
    return statistics.Interval(None, None, None), None, None, None
  tokens, seconds = _of_choice(rows, 'new_tokens'), _of_choice(rows, 'wall_time')
  old_tokens, old_seconds = _of_choice(baseline, 'new_tokens'), _of_choice(baseline, 'wall_time')
  interval = statistics.speedup_interval(
      tokens, seconds, clock_groups(rows), old_tokens, old_seconds, clock_groups(baseline), seed=BOOTSTRAP_SEED)
  decode = efficiency.ratio(
      statistics.ratio_of_totals(tokens, _of_choice(rows, 'decode_time')) or 0.0,
      statistics.ratio_of_totals(old_tokens, _of_choice(baseline, 'decode_time')))
  spec_bench = efficiency.ratio(np.mean(tokens / seconds), np.mean(old_tokens / old_seconds))
  return interval, decode, spec_bench, _std_over_runs(rows, baseline)


def _std_over_runs(rows, baseline):
  def rates(found):
    totals = {}
    for row, tokens, seconds in zip(found, _of_choice(found, 'new_tokens'), _of_choice(found, 'wall_time'), strict=True):
      old = totals.get((row['seed'], row['repeat']), (0.0, 0.0))
      totals[row['seed'], row['repeat']] = (old[0] + tokens, old[1] + seconds)
    return {run: tokens / seconds for run, (tokens, seconds) in totals.items() if seconds}

  new, old = rates(rows), rates(baseline)
  ratios = [new[run] / old[run] for run in new.keys() & old.keys() if old[run]]
  return float(np.std(ratios, ddof=1)) if len(ratios) > 1 else None


def _categories(rows):
  found = {}
  for row in _first_repeats(rows):
    found.setdefault(row['category'], []).append(row)
  return {name: _category(members) for name, members in sorted(found.items())}


def _category(rows):
  counts = efficiency.sum_counts(rows_lib.counts_of(row) for row in rows)
  scores = [row['score'] for row in rows if row['score'] is not None]
  return {
      'prompts': len({row['question_id'] for row in rows}),
      'mean_acceptance_length': efficiency.mean_acceptance_length(counts),
      'acceptance_rate': efficiency.acceptance_rate(counts), 'quality': float(np.mean(scores)) if scores else None,
  }


def _inverse(interval):
  flip = lambda x: None if not x else 1.0 / x
  return statistics.Interval(flip(interval.estimate), flip(interval.high), flip(interval.low))


def _series(rows, baseline, run):
  first, once = rows[0], _first_repeats(rows)
  counts = efficiency.sum_counts(rows_lib.counts_of(row) for row in once)
  tokens, seconds = int(_of_choice(rows, 'new_tokens').sum()), float(_of_choice(rows, 'wall_time').sum())
  prefill, decode = (float(_of_choice(rows, name).sum()) for name in ('prefill_time', 'decode_time'))
  speedup, decode_speedup, spec_bench, std = _speedup(rows, baseline)
  reasons = {}
  for row in once:
    reason = row['choices'][0]['finish_reason'][0]
    reasons[reason] = reasons.get(reason, 0) + 1
  return Series(
      **{name: first[name] for name in _SETTING + _METHOD}, title=methods_lib.lookup(first['method']).title,
      prompts=len({row['question_id'] for row in rows}), samples=len(once),
      repeats=len({row['repeat'] for row in rows}), errors=sum(row['error'] is not None for row in rows),
      counts=counts, tokens=tokens, seconds=seconds, prefill_seconds=prefill, decode_seconds=decode,
      output_tok_s=efficiency.ratio(tokens, seconds), decode_tok_s=efficiency.ratio(tokens, decode),
      tpot=efficiency.ratio(decode * first['batch'], tokens), speedup=speedup, decode_speedup=decode_speedup,
      spec_bench_speedup=spec_bench, speedup_std=std, relative_latency=_inverse(speedup), quality=_quality(rows),
      quality_difference=_quality_difference(rows, baseline),
      pct_of_limit=_limit(rows, run, decode),
      equal_to_baseline=None if first['method'] == methods_lib.BASELINE else _equal_to_baseline(rows, baseline),
      categories=_categories(rows), score_name=first['score_name'], finish_reasons=reasons)


def matched_quality(series: Sequence[Series]):
  """For each cascade rule of one setting: latency gain at fractions of the baseline's quality, and quality in budget.

  Returns:
    A list of {'pair', 'task', 'temperature', 'batch', 'method', 'title', 'gains': {fraction: gain}, 'best_quality'};
    empty without scores or baseline.
  """
  found = []
  for baseline in (s for s in series if s.is_baseline and s.quality.estimate is not None):
    curves = {}
    for one in series:
      if one.setting == baseline.setting and one.knob and one.relative_latency.estimate is not None:
        curves.setdefault((one.method, one.num_draft_tokens), []).append(one)
    for (method, k), points in curves.items():
      latencies = [p.relative_latency.estimate for p in points]
      qualities = [p.quality.estimate for p in points]
      gains = {
          fraction: efficiency.latency_gain_at_matched_quality(
              latencies, qualities, reference_latency=1.0, reference_quality=baseline.quality.estimate,
              fraction=fraction)
          for fraction in MATCHED}
      found.append({
          'pair': baseline.pair, 'task': baseline.task, 'temperature': baseline.temperature, 'batch': baseline.batch,
          'method': method, 'num_draft_tokens': k, 'title': points[0].title, 'gains': gains,
          'best_quality': efficiency.best_quality_within_budget(latencies, qualities, budget=1.0),
          'baseline_quality': baseline.quality.estimate})
  return found
