"""Results as files for other programs: results.json, acceptance.csv, perf_results.csv, vllm_metrics.prom, spec_bench/."""

import csv
import io
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from specjax.core.errors import ConfigError
from specjax.evaluation import aggregate
from specjax.evaluation import grid
from specjax.evaluation import matched as matched_lib
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import output
from specjax.evaluation import row_log
from specjax.metrics import efficiency

METRIC_DEFINITIONS = {
    'mean_acceptance_length': '1 + accepted / steps, bonus token included; 1 without drafts',
    'accepted_per_step': 'accepted / steps, bonus token excluded',
    'block_efficiency': 'emitted / target calls; prefill is not a call',
    'acceptance_rate': 'accepted / evaluated draft tokens',
    'acceptance_length': 'in acceptance.csv, perf_results.csv and vllm_metrics.prom: 1 + accepted / drafts, vLLM\'s; a step in '
                         'which nothing was proposed is no draft',
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


# Counters of vLLM's /metrics; Prometheus appends _total to each. Without a position: one sample per series.
_VLLM = 'vllm:spec_decode_num_'
_VLLM_COUNTERS = {
    'drafts': 'Number of spec decoding drafts.', 'draft_tokens': 'Number of draft tokens.',
    'accepted_tokens': 'Number of accepted tokens.', 'accepted_tokens_per_pos': 'Accepted tokens per draft position.'}

_SPEC_BENCH_ROW = ('question_id', 'category', 'answer_id', 'model_id', 'tstamp')
_SPEC_BENCH_CHOICE = ('index', 'turns', 'decoding_steps', 'new_tokens', 'wall_time', 'accept_lengths')
_SPEC_BENCH_SETTING = ('pair', 'task', 'batch', *grid.SAMPLING, 'seed', 'repeat')


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
  """Columns of vllm-project/speculators, in vLLM's counts.

  A draft is a step in which something was proposed; the acceptance length is 1 + accepted tokens / drafts, and a position's
  acceptance is that of all drafts, whether they reached it or not.
  """
  counts = series.counts
  drafts = _num_drafts(counts)
  found = {'num_drafts': drafts, 'num_draft_tokens': counts.proposed, 'num_accepted_tokens': counts.accepted,
           'draft_acceptance_rate': efficiency.draft_acceptance_rate(counts),
           'acceptance_length': 1 + counts.accepted / drafts if drafts else None}
  for position, accepted in enumerate(counts.accepted_by_position):
    found[f'acceptance_at_pos_{position}'] = efficiency.ratio(accepted, drafts)
  return found


def _num_drafts(counts):
  return counts.drafted_by_position[0] if counts.drafted_by_position else 0


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


def write_vllm_metrics(directory, every):
  """Writes vllm_metrics.prom: the speculative-decoding counters of vLLM's /metrics, a label set for each series that drafts.

  What reads vLLM's endpoint reads this file: the same names and positions, `engine` and `model_name` among the labels. Accepted
  tokens are those kept in the output; vLLM counts those behind an EOS or the limit too.
  """
  samples = {name: [] for name in _VLLM_COUNTERS}
  for series in every:
    if not series.drafts:
      continue
    labels = {'engine': '0', 'model_name': series.pair} | _setting(series)
    totals = {'drafts': _num_drafts(series.counts), 'draft_tokens': series.counts.proposed,
              'accepted_tokens': series.counts.accepted}
    for name, total in totals.items():
      samples[name].append((labels, total))
    for position, total in enumerate(series.counts.accepted_by_position):
      samples['accepted_tokens_per_pos'].append((labels | {'position': position}, total))
  lines = []
  for name, text in _VLLM_COUNTERS.items():
    lines += [f'# HELP {_VLLM}{name}_total {text}', f'# TYPE {_VLLM}{name}_total counter']
    lines += [f'{_VLLM}{name}_total{{{_label_text(labels)}}} {float(total)}' for labels, total in samples[name]]
  output.write_text(pathlib.Path(directory) / 'vllm_metrics.prom', '\n'.join(lines) + '\n')


def _label_text(labels):
  escaped = {name: str(value).translate({92: r'\\', 34: r'\"', 10: r'\n'}) for name, value in labels.items()}
  return ','.join(f'{name}="{value}"' for name, value in escaped.items())


def write_spec_bench(directory):
  """Writes spec_bench/: what Spec-Bench's own scripts read, a file per point and repeat; returns the lines of index.csv.

  Each line of a file is a question with the fields that Spec-Bench writes and no others. index.csv says which file holds
  which setting, and which one is its baseline: the target alone on the same questions, the script's --base-path. The script
  counts the baseline's tokens again, with the tokenizer that it is given; ours are in `new_tokens`. A row of a batch is given
  its share of the batch's time: at batch 1, the setting of Spec-Bench, its own.

  Raises:
    ConfigError: no run is there.
  """
  rows, _ = row_log.read(pathlib.Path(directory) / output.ROWS, change=_spec_bench)
  if not rows:
    raise ConfigError(what='no results', where=str(pathlib.Path(directory) / output.ROWS), expected='the directory of a run')
  files = {}
  for setting, line in rows:
    files.setdefault(_spec_bench_name(setting), []).append((setting, line))
  folder = pathlib.Path(directory) / 'spec_bench'
  folder.mkdir(exist_ok=True)
  baselines = {
      _shared(found[0][0]): name for name, found in files.items() if found[0][0]['method'] == methods_lib.BASELINE}
  index = []
  for name, found in files.items():
    setting = found[0][0]
    output.write_bytes(folder / name, b''.join(row_log.canonical_json(line) + b'\n' for _, line in found))
    index.append({'file': name, 'baseline': baselines.get(_shared(setting))} | {
        key: value for key, value in setting.items() if key != 'point_id'})
  write_csv(folder / 'index.csv', index)
  return index


def _spec_bench(row):
  """(setting, line) of a stored row."""
  choice = row['choices'][0]
  setting = {name: row[name] for name in ('method', 'num_draft_tokens', *_SPEC_BENCH_SETTING, 'point_id')}
  setting['knob'] = ' '.join(f'{name}={value:g}' for name, value in row['knob'].items())
  line = {name: row[name] for name in _SPEC_BENCH_ROW}
  if line['question_id'].isdecimal():  # Spec-Bench's are numbers, and its scripts sort by them.
    line['question_id'] = int(line['question_id'])
  return setting, line | {'choices': [{name: choice[name] for name in _SPEC_BENCH_CHOICE}]}


def _spec_bench_name(setting):
  readable = '-'.join(str(setting[name]) for name in ('pair', 'task', 'method'))
  # A pair may be two paths; the id of the point keeps the names apart.
  readable = re.sub(r'[^A-Za-z0-9_.]+', '-', readable)[-100:].lstrip('-.')
  return f'{readable}-{setting["point_id"]}-run{setting["repeat"]}.jsonl'


def _shared(setting):
  return tuple(setting[name] for name in _SPEC_BENCH_SETTING)


def _median(rows, value):
  return float(np.median([value(row, row['choices'][0]) for row in rows]))


def _rows_of(row):
  return row['batch_rows']
