"""Series: totals, pairing with the baseline and what the table says, on rows small enough to add up by hand."""

import functools

import numpy as np
import pytest

import fake_runner
from specjax.evaluation import aggregate
from specjax.evaluation import evaluate
from specjax.evaluation import exports
from specjax.evaluation import matched
from specjax.evaluation import output
from specjax.evaluation import row_log
from specjax.evaluation import table
from specjax.metrics import efficiency
from specjax.metrics import statistics


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  evaluate.evaluate(
      **fake_runner.settings(pairs=['gemma', 't5'], max_samples=24, repeats=2, thresholds=[0.1, 0.5],
                             load_runner=functools.partial(fake_runner.FakeRunner, clock_noise=0.02)),
      output_path=str(path))
  rows, _ = row_log.read(path / 'rows.jsonl')
  return path, rows, output.read_run(path)


@pytest.fixture(scope='module')
def every(finished):
  return aggregate.all_series(*finished[1:])


def _of(every, pair, method, knob=None):
  return next(s for s in every if (s.pair, s.method, s.knob_value) == (pair, method, knob))


def _values(rows, name):
  return sum(row['choices'][0][name][0] for row in rows)


def test_speedup_is_the_ratio_of_totals(finished, every):
  _, rows, run = finished
  series = _of(every, 'gemma', 'speculative')
  rate = {}
  for method in ('speculative', 'autoregressive'):
    mine = [row for row in rows if row['pair'] == 'gemma' and row['method'] == method]
    rate[method] = _values(mine, 'new_tokens') / _values(mine, 'wall_time')
  assert series.output_tok_s == pytest.approx(rate['speculative'])
  assert series.speedup.estimate == pytest.approx(rate['speculative'] / rate['autoregressive'])
  assert series.relative_latency.estimate == pytest.approx(1 / series.speedup.estimate)
  assert series.speedup.low < series.speedup.estimate < series.speedup.high
  assert series.relative_latency.low == pytest.approx(1 / series.speedup.high)
  assert series.speedup_std is not None and series.spec_bench_speedup != series.speedup.estimate


def test_baseline_is_one_against_itself(every):
  baseline = _of(every, 't5', 'autoregressive')
  assert baseline.speedup == pytest.approx((1, 1, 1)) and baseline.is_baseline and not baseline.loses
  assert baseline.equal_to_baseline is None


def test_greedy_speculative_decoding_equals_the_baseline_and_the_drafter_does_not(every):
  assert _of(every, 'gemma', 'speculative').equal_to_baseline == (24, 24)
  assert _of(every, 'gemma', 'autoregressive_drafter').equal_to_baseline == (0, 24)


def test_repeats_measure_time_again_but_count_tokens_once(finished, every):
  _, rows, run = finished
  series = _of(every, 'gemma', 'speculative')
  once = [r for r in rows if r['pair'] == 'gemma' and r['method'] == 'speculative' and r['repeat'] == 0]
  assert series.prompts == series.samples == 24 and series.repeats == 2
  assert series.counts.accepted == sum(r['accepted'] for r in once)
  assert series.tokens == 2 * _values(once, 'new_tokens')


def test_rows_of_a_batch_share_a_clock_group(finished):
  _, rows, _ = finished
  mine = [r for r in rows if r['pair'] == 'gemma' and r['method'] == 'speculative']
  assert set(aggregate.clock_groups(mine)) == {0, 1, 2, 3, 4, 5}
  again = [r | {'seed': 1} for r in mine]  # no clusters of their own: the prompts are the same
  assert set(aggregate.clock_groups(mine + again)) == {0, 1, 2, 3, 4, 5}
  assert len(set(aggregate.clock_groups([r | {'batch': 1} for r in mine]))) == 24


@pytest.mark.parametrize('batches, is_unjudged', [(2, True), (3, False)])
def test_fewer_than_three_batches_have_no_interval_and_lose_nothing(finished, batches, is_unjudged):
  _, rows, run = finished
  few = [row | {'choices': [row['choices'][0] | {'wall_time': [9 * row['choices'][0]['wall_time'][0]]}]}
         if row['method'] == 'speculative' else row for row in rows if row['batch_index'] < batches]
  slow = _of(aggregate.all_series(few, run), 'gemma', 'speculative')
  assert slow.speedup.estimate < 1 and slow.is_unjudged == is_unjudged and slow.loses == (not is_unjudged)
  assert not slow.is_undecided


def test_all_right_with_every_seed_is_as_uncertain_as_its_questions(finished):
  _, rows, run = finished
  warm = [row | {'temperature': 1.0, 'seed': seed, 'score': 1.0} for row in rows for seed in (0, 1)]
  quality = _of(aggregate.all_series(warm, run), 'gemma', 'speculative').quality
  assert quality == pytest.approx((1.0, 24 / (24 + 1.96**2), 1.0), abs=1e-4)


def test_greedy_seeds_are_one_sample_and_sampled_ones_are_several(finished, every):
  # Sweeps of older versions ran temperature 0 with every seed.
  _, rows, run = finished
  doubled = rows + [row | {'seed': 1} for row in rows]
  greedy = _of(aggregate.all_series(doubled, run), 'gemma', 'speculative')
  once = _of(every, 'gemma', 'speculative')
  assert (greedy.samples, greedy.counts, greedy.quality) == (once.samples, once.counts, once.quality)
  assert greedy.equal_to_baseline == (24, 24) and greedy.categories == once.categories
  assert greedy.speedup == pytest.approx(once.speedup) and greedy.seconds == pytest.approx(2 * once.seconds)
  warm = aggregate.all_series([row | {'temperature': 1.0} for row in doubled], run)
  assert _of(warm, 'gemma', 'speculative').samples == 2 * once.samples


def test_percent_of_limit_by_hand(finished, every):
  _, rows, run = finished
  series = _of(every, 'gemma', 'speculative')
  mine = [r for r in rows if r['pair'] == 'gemma' and r['method'] == 'speculative']
  passes = sum({(r['batch_index'], r['repeat']): r['target_passes'] for r in mine}.values())
  context = sum(r['prompt_tokens'][0] + r['choices'][0]['new_tokens'][0] / 2 for r in mine) / len(mine)
  cache = 4 * 2e5 * context / (32 + 24 + 5)
  target = max((4e6 + cache) / 1e10, 5 * 4 * 2e6 / 5e10)
  drafter = max((4e5 + cache) / 1e10, 4 * 2e5 / 5e10)
  measured = _values(mine, 'decode_time') / passes
  assert series.pct_of_limit == pytest.approx(100 * (target + 4 * drafter) / measured)


def test_incomplete_run_still_aggregates(finished):
  _, rows, run = finished
  every = aggregate.all_series([r for r in rows if r['method'] != 'autoregressive'][:37], run)
  assert all(s.speedup.estimate is None for s in every)
  assert '-' in table.markdown(every)


def test_table_has_the_columns_and_a_line_per_series(every):
  lines = table.markdown(every).strip().splitlines()
  assert len(lines) == 2 + len(every) == 2 + 2 * (3 + 2 * 2)
  for column in ('task', 'n', 'T', 'K', 'AL', 'acceptance rate', 'tok/s AR', 'tok/s', 'speedup [95 % CI]', '% limit AR',
                 '% limit', 'quality AR', 'quality [95 % CI]'):
    assert f' {column} ' in lines[0]
  assert len({len(line) for line in lines}) == 1


def test_cells_cannot_break_out_of_the_table():
  text = table.markdown_table([('a', 'b'), ('x|y\n| z', '\x1b[31mred\x1b[0m\x07')])
  assert text.splitlines()[2] == '| x\\|y \\| z | red |'


def test_exports_have_the_columns_of_speculators(finished, every):
  path, rows, run = finished
  exports.write_acceptance(path, every)
  exports.write_performance(path, every, rows)
  exports.write_results(path, every, run, matched.tables(rows, every))
  acceptance = (path / 'acceptance.csv').read_text().splitlines()
  for column in ('subset', 'num_drafts', 'num_draft_tokens', 'num_accepted_tokens', 'acceptance_length',
                 'acceptance_at_pos_0', 'acceptance_at_pos_3'):
    assert column in acceptance[0].split(',')
  assert len(acceptance) == 1 + 2 * 5
  performance = (path / 'perf_results.csv').read_text().splitlines()
  for column in ('strategy', 'rps_median', 'latency_median_s', 'itl_median_ms', 'ttft_median_ms', 'output_tps_median',
                 'total_output_tokens'):
    assert column in performance[0].split(',')
  assert len(performance) == 1 + len(every)


def test_json_of_a_series_holds_every_ratio(finished, every):
  _, rows, run = finished
  series = _of(every, 'gemma', 'cascade_chow', 0.5)
  found = series.as_json()
  assert found['mean_acceptance_length'] == efficiency.mean_acceptance_length(series.counts)
  assert found['speedup'].keys() == {'estimate', 'low', 'high'} and found['knob'] == {'threshold': 0.5}


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
  path = tmp_path_factory.mktemp('recorded')
  evaluate.evaluate(
      **fake_runner.settings(
          methods=['autoregressive', 'speculative', 'speculative_block', 'cascade_chow', 'token_cascade_chow',
                   'sequence_cascade_chow', 'oracle_diff'], thresholds=[0.3], temperatures=[1.0], detail='summary'),
      output_path=str(path))
  rows, _ = row_log.read(path / 'rows.jsonl')
  return rows, output.read_run(path)


def test_deferral_rate_is_per_draft_token_or_query(recorded):
  rows, run = recorded
  found = {s.method: s.deferral_rate for s in aggregate.all_series(rows, run)}
  of = lambda method: [row for row in rows if row['method'] == method]
  chow, token, query = map(of, ('cascade_chow', 'token_cascade_chow', 'sequence_cascade_chow'))
  assert found['cascade_chow'] == pytest.approx(sum(r['deferral'] for r in chow) / sum(r['evaluated'] for r in chow))
  assert found['token_cascade_chow'] == pytest.approx(
      sum(r['target_calls'] for r in token) / sum(r['emitted'] for r in token))
  assert found['sequence_cascade_chow'] == sum(r['target_calls'] > 0 for r in query) / len(query)
  assert found['autoregressive'] is None and found['speculative'] == pytest.approx(1.0)


def test_rejections_are_checked_against_their_prediction_under_token_verification(recorded):
  rows, run = recorded
  found = {s.method: s for s in aggregate.all_series(rows, run)}
  gap = found['cascade_chow'].rejection_gap
  assert gap.estimate == pytest.approx(0, abs=1e-6) and gap.low < 0 < gap.high
  assert found['speculative_block'].rejection_gap.estimate is None
  moved = [row | {'tv_goal_drafter': 0.5 * row['tv_goal_drafter']} if row['method'] == 'cascade_chow' else row
           for row in rows]
  chow = {s.method: s for s in aggregate.all_series(moved, run)}['cascade_chow']
  predicted, evaluated = chow.tv_goal_drafter, chow.counts.evaluated
  count = statistics.count_interval(evaluated - chow.counts.accepted, confidence=1 - 0.05 / 2)  # two series are checked
  assert chow.rejection_gap.low == pytest.approx(count.low / evaluated - predicted)
  assert table.predicted(chow).endswith(' !') and '!' not in table.predicted(found['cascade_chow'])


def test_a_table_of_true_predictions_is_marked_once_in_twenty_at_most():
  # 40 series with 0.2 to 8 expected rejections each, 400 tables; 4 standard errors of slack. One interval of 95 % per
  # series, of a normal law with the predicted variance, marks nearly every table.
  generator, marked = np.random.default_rng(2), 0
  expected = np.linspace(0.2, 8.0, 40)
  row = {'verifier': 'token', 'evaluated': 400}
  for _ in range(400):
    rejections = generator.binomial(400, expected / 400)
    gaps = [aggregate._rejection_gap([row | {'accepted': 400 - count, 'tv_goal_drafter': mean / 400}], 1 - 0.05 / 40)
            for count, mean in zip(rejections.tolist(), expected.tolist(), strict=True)]
    marked += any(gap.low > 0 or gap.high < 0 for gap in gaps)
  assert marked / 400 <= 0.05 + 4 * (0.05 * 0.95 / 400) ** 0.5


def test_an_oracle_has_no_time(recorded):
  rows, run = recorded
  oracle = {s.method: s for s in aggregate.all_series(rows, run)}['oracle_diff']
  assert oracle.quality.estimate is not None and oracle.deferral_rate is not None
  for value in (oracle.output_tok_s, oracle.tpot, oracle.speedup.estimate, oracle.relative_latency.estimate,
                oracle.pct_of_limit):
    assert value is None


def test_limit_of_a_token_cascade_counts_the_passes_that_were_made(recorded):
  rows, run = recorded
  series = {s.method: s for s in aggregate.all_series(rows, run)}['token_cascade_chow']
  mine = [row for row in rows if row['method'] == 'token_cascade_chow']
  passes = sum({row['batch_index']: row['target_passes'] for row in mine}.values())
  context = sum(r['prompt_tokens'][0] + r['choices'][0]['new_tokens'][0] / 2 for r in mine) / len(mine)
  capacity = run['pairs']['gemma']['step_costs']['target']['capacity']
  target = max((4e6 + 4 * 2e5 * context / capacity) / 1e10, 4 * 2e6 / 5e10)
  assert series.pct_of_limit == pytest.approx(100 * passes * target / series.decode_seconds)
