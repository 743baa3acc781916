"""Rows to series: totals, ratios of totals and intervals, from rows.jsonl and run.json alone.

A *series* is a point without its seed: all rows of one pair, task, batch, sampling, method, knob and K. It is compared
with the autoregressive series of the same pair, task, batch and sampling.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from specjax.evaluation import corpus_scores
from specjax.evaluation import grid
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import rows as rows_lib
from specjax.metrics import efficiency
from specjax.metrics import statistics
from specjax.metrics import timing

BOOTSTRAP_SEED = 20250801

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
    diff_causes: why greedy outputs differ, name -> rows ('unknown' where no cause is known).
    deferral_rate: weight of the target, per evaluated draft (speculative), token or query. None if not recorded.
    overlap, tv_to_target, kl_to_target, tv_goal_drafter: means over evaluated drafts; None if not recorded.
    rejection_gap: `Interval` of the measured rejection rate minus the mean of TV(goal, drafter), which must contain 0 under
      token verification; simultaneous over all series of the run.
    categories: name -> {'prompts', 'mean_acceptance_length', 'acceptance_rate', 'quality'}.
    score_name: what quality measures.
    scores: corpus scores and further means, name with signature -> `Interval`; see `corpus_scores`.
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
  diff_causes: Mapping[str, int]
  deferral_rate: float | None
  overlap: float | None
  tv_to_target: float | None
  kl_to_target: float | None
  tv_goal_drafter: float | None
  rejection_gap: statistics.Interval
  categories: Mapping[str, Any]
  score_name: str | None
  scores: Mapping[str, statistics.Interval]
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
    """The number that the (last) knob is set to, None without one."""
    return list(self.knob.values())[-1] if self.knob else None

  @property
  def curve(self):
    """What the points of one curve share: method, K and all knobs but the last."""
    return self.method, self.num_draft_tokens, tuple(self.knob.values())[:-1]

  @property
  def group(self):
    """The group of methods it belongs to."""
    return methods_lib.lookup(self.method).group

  @property
  def is_lossless(self):
    return methods_lib.lookup(self.method).lossless

  @property
  def loses(self):
    """Whether the interval of its speed-up lies below 1."""
    return self.speedup.high is not None and self.speedup.high < 1 and not self.is_baseline

  @property
  def is_undecided(self):
    """Whether the interval of its speed-up contains 1."""
    return self.speedup.low is not None and self.speedup.low <= 1 <= self.speedup.high and not self.is_baseline

  @property
  def is_unjudged(self):
    """Whether too few clusters were timed for its speed-up to have an interval."""
    return self.speedup.estimate is not None and self.speedup.low is None and not self.is_baseline

  def as_json(self):
    """A JSON object with every number of the series."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    for name, value in fields.items():
      if isinstance(value, statistics.Interval):
        fields[name] = value._asdict()
    fields['scores'] = {name: interval._asdict() for name, interval in self.scores.items()}
    fields |= efficiency.summary(fields.pop('counts'))
    return rows_lib.finite(fields)


def setting_of(row):
  """What rows must share to be compared."""
  return tuple(row[name] for name in _SETTING)


def _series_key(row):
  method = tuple(tuple(sorted(row[name].items())) if name == 'knob' else row[name] for name in _METHOD)
  return setting_of(row) + method


def key_of(series):
  """The key of a series in `group_rows`."""
  return series.setting + tuple(
      tuple(sorted(series.knob.items())) if name == 'knob' else getattr(series, name) for name in _METHOD)


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
  # All of them together are wrong with the probability that one interval may be (Bonferroni).
  checks = sum(_is_predicted(_first_repeats(found)) for found in grouped.values())
  confidence = 1 - (1 - statistics.CONFIDENCE) / max(1, checks)
  series = [_series(found, baselines.get(setting_of(found[0])), run, confidence) for found in grouped.values()]
  order = {name: index for index, name in enumerate(methods_lib.METHODS)}
  pairs = list(dict.fromkeys(s.pair for s in series))
  return sorted(series, key=lambda s: (
      pairs.index(s.pair), s.task, s.temperature, -s.top_p, s.batch, order[s.method], s.num_draft_tokens,
      tuple(s.knob.values())))


def _of_choice(rows, name):
  return np.array([sum(row['choices'][0][name]) for row in rows], np.float64)  # over turns


def clock_groups(rows):
  """What a speed-up's interval draws again: the question, or the batch it was in, all seeds and repeats together.

  Several seeds of a batch are no clusters of their own. Their texts answer the same prompts, whose lengths and difficulty
  they share; counted apart, 4 batches of 3 seeds cover 82 % where prompts vary as much as seeds do, 69 % where they vary
  three times as much.
  """
  return np.array([row['question_id'] if row['batch'] == 1 else row['batch_index'] for row in rows])


def _first_repeats(rows):
  """One row per question and seed, or per question where decoding is greedy: a repeat measures time again, a seed changes
  no greedy token."""
  found = {}
  for row in rows:
    found.setdefault((row['question_id'], row['seed'] if row['temperature'] > 0 else None), row)
  return list(found.values())


def _limit(rows, run, decode_seconds):
  """Percent of the physical limit of the passes that were made; None if the machine was not measured.

  A batch made as many passes of a model as the row that asked for most.
  """
  first = rows[0]
  costs = run.get('pairs', {}).get(first['pair'], {}).get('step_costs')
  if not costs or 'machine' not in run:
    return None
  measured = run['machine']
  machine = timing.Machine(tuple(map(tuple, measured['bandwidths'])), measured['flops'])
  context = np.mean([prompt + new / 2 for row in rows
                     for prompt, new in zip(row['prompt_tokens'], row['choices'][0]['new_tokens'], strict=True)])
  seconds = lambda role, width: timing.pass_limit(_step_cost(costs[role], first['batch'], context), machine, width=width)
  method = methods_lib.lookup(first['method'])
  if not method.roles.keys() <= costs.keys():
    return None  # What drafted is not known.
  passes = {}
  for row in rows:
    batch = row['point_id'], row['batch_index'], row['repeat']
    target, drafter = passes.get(batch, (0, 0))
    passes[batch] = max(target, row['target_passes']), max(drafter, row['draft_calls'])
  target, drafter = map(sum, zip(*passes.values(), strict=True))
  limit = target * seconds(method.model, method.num_nodes(first['num_draft_tokens']) + 1)
  limit += sum((drafter if each == 'calls' else target) * seconds(role, 1) for role, each in method.roles.items())
  return timing.pct_of_limit(limit, decode_seconds)


def _step_cost(cost, batch, context):
  live = min(1.0, context / cost['capacity'])
  return timing.StepCost(
      weight_bytes=cost['weight_bytes'], cache_bytes=batch * live * cost['cache_bytes_per_row'],
      flops=batch * cost['flops_per_token'])


def equal_outputs(rows, baseline):
  """(equal, compared) outputs of greedy rows and of others to the same questions, None for sampled ones."""
  if baseline is None or rows[0]['temperature'] > 0:
    return None
  expected = {row['question_id']: row['choices'][0]['token_ids'] for row in _first_repeats(baseline)}
  pairs = [(row['choices'][0]['token_ids'], expected.get(row['question_id'])) for row in _first_repeats(rows)]
  compared = [(got, want) for got, want in pairs if want is not None]
  return sum(got == want for got, want in compared), len(compared)


def _diff_causes(rows):
  found = {}
  for row in _first_repeats(rows):
    if row.get('equal_to_ar') is False:
      cause = row['diff_cause'] or 'unknown'
      found[cause] = found.get(cause, 0) + 1
  return found


def _recorded(rows, name):
  """The mean of a recorded field over all evaluated drafts; None where a row has none (or an infinite one)."""
  drafted = [row for row in rows if row['evaluated']]
  if not drafted or any(row.get(name) is None for row in drafted):
    return None
  return efficiency.ratio(sum(row[name] * row['evaluated'] for row in drafted), sum(row['evaluated'] for row in drafted))


def _deferral_rate(rows):
  execution = methods_lib.lookup(rows[0]['method']).execution
  if execution == 'speculative':
    return _recorded(rows, 'deferral_rate')
  if execution == 'alone' or any(row['deferral'] is None for row in rows):
    return None
  per = sum(row['emitted'] for row in rows) if execution == 'token' else len(rows)
  return efficiency.ratio(sum(row['deferral'] for row in rows), per)


def _is_predicted(rows):
  """Whether theory says how many rejections to expect; under block verification it does not."""
  return rows[0]['verifier'] == 'token' and _recorded(rows, 'tv_goal_drafter') is not None


def _rejection_gap(rows, confidence):
  """Measured minus predicted rejection rate, at `confidence`.

  Rejections minus their probabilities are a martingale over the evaluated drafts, whatever the texts do; counted against
  their summed probabilities they vary no more than a Poisson process, also where only a few are expected.
  """
  if not _is_predicted(rows):
    return statistics.Interval(None, None, None)
  evaluated = sum(row['evaluated'] for row in rows)
  predicted = _recorded(rows, 'tv_goal_drafter')
  rejections = sum(row['evaluated'] - row['accepted'] for row in rows)
  return statistics.Interval(
      *(count / evaluated - predicted for count in statistics.count_interval(rejections, confidence=confidence)))


def _quality(rows):
  scored = [row for row in _first_repeats(rows) if row['score'] is not None]
  if not scored:
    return statistics.Interval(None, None, None)
  scores = np.array([row['score'] for row in scored], np.float64)
  questions = [row['question_id'] for row in scored]
  count = len(set(questions))
  if set(scores) <= {0.0, 1.0} and (count == len(scored) or len(set(scores)) == 1):
    # Where all samples of all questions are right, or wrong, a bootstrap has no spread; questions are what counts.
    return statistics.wilson_interval(int(scores.mean() * count), count)
  return statistics.mean_interval(scores, groups=questions, seed=BOOTSTRAP_SEED)


def quality_difference(rows, baseline):
  """`Interval` of the mean score of some rows minus that of others, paired by question."""
  ours, theirs = ([row for row in _first_repeats(found or []) if row['score'] is not None]
                  for found in (rows, baseline))
  if not ours or not theirs:
    return statistics.Interval(None, None, None)
  return statistics.difference_interval(
      [row['score'] for row in ours], [row['question_id'] for row in ours],
      [row['score'] for row in theirs], [row['question_id'] for row in theirs], seed=BOOTSTRAP_SEED)


def speed_ratio(rows, reference, *, groups=clock_groups):
  """`Interval` of the tokens per second of some rows over those of others, paired by `groups` of rows."""
  return statistics.speedup_interval(
      _of_choice(rows, 'new_tokens'), _of_choice(rows, 'wall_time'), groups(rows),
      _of_choice(reference, 'new_tokens'), _of_choice(reference, 'wall_time'), groups(reference))


def _speedup(rows, baseline):
  """(interval, decode estimate, Spec-Bench's figure, std over runs); nothing for an oracle."""
  if baseline is None or methods_lib.lookup(rows[0]['method']).is_oracle:
    return statistics.Interval(None, None, None), None, None, None
  tokens, seconds = _of_choice(rows, 'new_tokens'), _of_choice(rows, 'wall_time')
  old_tokens, old_seconds = _of_choice(baseline, 'new_tokens'), _of_choice(baseline, 'wall_time')
  interval = speed_ratio(rows, baseline)
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


def _times(rows):
  """The totals and rates of a series; an oracle has none."""
  tokens, seconds = int(_of_choice(rows, 'new_tokens').sum()), float(_of_choice(rows, 'wall_time').sum())
  prefill, decode = (float(_of_choice(rows, name).sum()) for name in ('prefill_time', 'decode_time'))
  found = {
      'tokens': tokens, 'seconds': seconds, 'prefill_seconds': prefill, 'decode_seconds': decode,
      'output_tok_s': efficiency.ratio(tokens, seconds), 'decode_tok_s': efficiency.ratio(tokens, decode),
      'tpot': efficiency.ratio(decode * rows[0]['batch'], tokens)}
  if methods_lib.lookup(rows[0]['method']).is_oracle:
    found |= dict.fromkeys(('output_tok_s', 'decode_tok_s', 'tpot'))
  return found


def _series(rows, baseline, run, confidence):
  first, once = rows[0], _first_repeats(rows)
  method = methods_lib.lookup(first['method'])
  counts = efficiency.sum_counts(rows_lib.counts_of(row) for row in once)
  speedup, decode_speedup, spec_bench, std = _speedup(rows, baseline)
  times = _times(rows)
  reasons = {}
  for row in once:
    reason = row['choices'][0]['finish_reason'][-1]
    reasons[reason] = reasons.get(reason, 0) + 1
  return Series(
      **{name: first[name] for name in _SETTING + _METHOD}, **times, title=method.title,
      prompts=len({row['question_id'] for row in rows}), samples=len(once),
      repeats=len({row['repeat'] for row in rows}), errors=sum(row['error'] is not None for row in rows),
      counts=counts, speedup=speedup, decode_speedup=decode_speedup, spec_bench_speedup=spec_bench, speedup_std=std,
      relative_latency=_inverse(speedup), quality=_quality(rows), quality_difference=quality_difference(rows, baseline),
      pct_of_limit=None if method.is_oracle else _limit(rows, run, times['decode_seconds']),
      equal_to_baseline=None if first['method'] == methods_lib.BASELINE else equal_outputs(rows, baseline),
      diff_causes=_diff_causes(rows), deferral_rate=_deferral_rate(once),
      rejection_gap=_rejection_gap(once, confidence),
      **{name: _recorded(once, name) for name in ('overlap', 'tv_to_target', 'kl_to_target', 'tv_goal_drafter')},
      categories=_categories(rows), score_name=first['score_name'],
      scores=corpus_scores.of_rows(once, seed=BOOTSTRAP_SEED), finish_reasons=reasons)
