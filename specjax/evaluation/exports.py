"""Aggregates as files for other programs: results.json, acceptance.csv and perf_results.csv."""

import csv
import io
import pathlib
from collections.abc import Sequence

import numpy as np

from specjax.evaluation import aggregate
from specjax.evaluation import matched as matched_lib
from specjax.evaluation import output
from specjax.metrics import efficiency

METRIC_DEFINITIONS = {
    'mean_acceptance_length': '1 + accepted / steps, bonus token included; 1 without drafts',
    'accepted_per_step': 'accepted / steps, bonus token excluded',
    'block_efficiency': 'emitted / target calls; prefill is not a call',
    'acceptance_rate': 'accepted / evaluated draft tokens',
    'draft_acceptance_rate': 'accepted / proposed draft tokens',
    'output_tok_s': 'sum of output tokens / sum of wall time, prefill included',
    'decode_tok_s': 'sum of output tokens / sum of decoding time',
    'speedup': 'output_tok_s / output_tok_s of the target alone, same harness, prompts, batch and sampling',
    'relative_latency': '1 / speedup',
    'spec_bench_speedup': 'ratio of means of per-question rates, the figure of Spec-Bench; its script counts the '
                          'baseline\'s tokens again from the text',
    'pct_of_limit': '100 x (time that bytes and operations of a round take at the measured rates) / measured time',
    'deferral_rate': 'weight of the target / evaluated drafts (speculative), tokens or queries',
    'tv_goal_drafter': 'mean TV(goal, drafter) over evaluated drafts: the rejection rate that theory predicts',
    'rejection_gap': 'measured rejection rate - tv_goal_drafter; Garwood intervals of the number of rejections, all series '
                     'of the run together at 95 %',
    'gains': 'largest speed-up among the points of a method with that share of the target\'s quality, cross-fitted: chosen on '
             'one half of the questions, reported on the other, the mean of both ways; kept: the chosen points\' share of '
             'the target\'s quality on the half where they were not chosen; knob and K are those chosen on all questions',
    'intervals': '95 %, each for itself. Speed-ups: Student\'s t on the logarithm over batches (questions at batch 1), '
                 'jackknife variance. Quality: 10,000 bootstrap samples of questions, widened for few; Wilson for a '
                 'proportion of questions. None below three batches or questions',
}


def write_results(directory, every, run, matched: Sequence[matched_lib.Matched]):
  """Writes results.json: one entry per series, as lm-eval's with more fields, and the lines of the matched tables."""
  results = [series.as_json() for series in every]
  output.write_json(pathlib.Path(directory) / 'results.json', {
      'run_id': run.get('run_id'), 'config': run.get('config'), 'prompt_sets': run.get('prompt_sets'),
      'results': results, 'matched_quality': [line.as_json() for line in matched],
      'definitions': METRIC_DEFINITIONS})


def write_csv(path, data):
  """Writes a list of dicts; the columns are those of all of them, in order of appearance."""
  names = list(dict.fromkeys(name for datum in data for name in datum))
  text = io.StringIO()
  writer = csv.DictWriter(text, fieldnames=names, lineterminator='\n', restval='')
  writer.writeheader()
  writer.writerows(data)
  output.write_text(path, text.getvalue())


def _setting(series):
  knob = ' '.join(f'{name}={value:g}' for name, value in series.knob.items())
  return {'pair': series.pair, 'subset': series.task, 'method': series.method, 'knob': knob,
          'num_speculative_tokens': series.num_draft_tokens, 'temperature': series.temperature, 'top_p': series.top_p,
          'batch': series.batch}


def _drafting(series):
  """Columns of vllm-project/speculators; its acceptance length includes the bonus token."""
  counts = series.counts
  found = {'num_drafts': counts.steps if series.drafts else 0, 'num_draft_tokens': counts.proposed,
           'num_accepted_tokens': counts.accepted, 'draft_acceptance_rate': efficiency.draft_acceptance_rate(counts),
           'acceptance_length': efficiency.mean_acceptance_length(counts)}
  for position, rate in enumerate(efficiency.acceptance_per_pos_uncond(counts)):
    found[f'acceptance_at_pos_{position}'] = rate
  return found


def write_acceptance(directory, every):
  """Writes acceptance.csv: one line per series that drafts."""
  data = [_setting(series) | _drafting(series) for series in every if series.drafts]
  write_csv(pathlib.Path(directory) / 'acceptance.csv', data)


def write_performance(directory, every, rows):
  """Writes perf_results.csv: medians over requests and totals of every series.

  A request of a batch lasts as long as its batch; the first token is not timed (`ttft_median_ms` is empty).
  """
  grouped = aggregate.group_rows(rows)
  data = []
  for series in every:
    found, is_timed = grouped[aggregate.key_of(series)], series.output_tok_s is not None
    latency = _median(found, lambda row, choice: sum(choice['wall_time']) * _rows_of(row))
    itl = _median(found, lambda row, choice: 1000 * sum(choice['decode_time']) * _rows_of(row) / max(
        1, sum(choice['new_tokens'])))
    data.append(_setting(series) | {
        'strategy': 'concurrent', 'target_rate': series.batch,
        'rps_median': len(found) / series.seconds if series.seconds and is_timed else None,
        'latency_median_s': latency if is_timed else None, 'itl_median_ms': itl if is_timed else None,
        'ttft_median_ms': None, 'output_tps_median': series.output_tok_s, 'total_output_tokens': series.tokens
    } | _drafting(series))
  write_csv(pathlib.Path(directory) / 'perf_results.csv', data)


def _median(rows, value):
  return float(np.median([value(row, row['choices'][0]) for row in rows]))


def _rows_of(row):
  return row['batch_rows']
