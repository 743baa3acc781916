"""`compare`, on rows made by hand: equal runs, planted differences, points that one lacks, another machine."""

import copy
import json

import pytest

from specjax import config
from specjax import eval as eval_binary
from specjax.evaluation import compare
from specjax.evaluation import output
from specjax.evaluation import row_log

CHIP = {'platform': 'cpu', 'kind': 'Xeon', 'devices': 1, 'cores': 2, 'mesh': None, 'hosts': 1}
SESSION = {'git': {'commit': 'aaaa', 'dirty': False}, 'versions': {'jax': '0.10.2'}, 'chip': CHIP,
           'xla': {'XLA_FLAGS': None}, 'matmul_precision': 'None', 'prng': 'threefry', 'x64': False,
           'metrics_version': 1}
COST = {'weight_bytes': 1e6, 'flops_per_token': 1e6, 'cache_bytes_per_row': 1e3, 'capacity': 64}
RUN = {'run_id': 'run', 'config': {'max_samples': 8, 'thresholds': {'lossy': [[0.5]]}}, 'sessions': [SESSION],
       'pairs': {'gemma': {'checkpoint_sha256': 'cc', 'tokenizer_sha256': 'tt',
                           'step_costs': {'target': COST, 'drafter': COST}}},
       'prompt_sets': {'t': {'sha256': 'pp'}}, 'machine': {'bandwidths': [[2**20, 1e9]], 'flops': 1e10}}
NUM = 8


def _row(method, question, *, seconds=1.0, score=1.0, tokens=(5, 6), temperature=0.0, batch=1, prompt='p'):
  drafts = 4 if method == 'speculative' else 0
  return {
      'run_id': 'run', 'point_id': f'{method}{temperature}', 'question_id': f'q{question}', 'repeat': 0,
      'pair': 'gemma', 'task': 't', 'batch': batch, 'temperature': temperature, 'top_p': 1.0, 'top_k': 0,
      'min_p': 0.0, 'method': method,
      'rule': 'lossless' if drafts else None, 'knob': {}, 'num_draft_tokens': drafts,
      'verifier': 'token' if drafts else None, 'seed': 0, 'category': 'c', 'batch_index': question // batch,
      'batch_rows': batch, 'score': score, 'score_name': 'accuracy',
      'score_statistics': {}, 'scores': {}, 'error': None, 'prompt_tokens': [3], 'prompt_sha256': f'{prompt}{question}',
      'target_passes': 10, 'draft_calls': 0, 'deferral': None, 'deferral_rate': None, 'equal_to_ar': None,
      'tv_goal_drafter': None, 'filtered_answer': None,
      'choices': [{'turns': ['text'], 'new_tokens': [10], 'wall_time': [seconds], 'prefill_time': [0.0],
                   'decode_time': [seconds], 'token_ids': [list(tokens)], 'finish_reason': ['EOS']}],
      'steps': 2, 'emitted': 10, 'target_calls': 2, 'proposed': 2 * drafts, 'evaluated': 2 * drafts,
      'accepted': drafts, 'drafted_by_position': [2] * drafts, 'evaluated_by_position': [2] * drafts,
      'accepted_by_position': [1] * drafts}


def _rows(**changes):
  """Two methods and eight questions; `changes` of one method are functions of the question's number."""
  found = []
  for method, seconds in (('autoregressive', 1.0), ('speculative', 0.5)):
    for number in range(NUM):
      own = {name: value(number) for name, value in changes.get(method, {}).items()}
      found.append(_row(method, number, **{'seconds': seconds * (1 + 0.01 * number)} | own))
  return found


def _written(directory, rows, **changes):
  directory.mkdir()
  (directory / output.ROWS).write_bytes(b''.join(map(row_log.encode_line, rows)))
  run = copy.deepcopy(RUN)
  for path, value in changes.items():
    *parents, last = path.split('__')
    inner = run
    for name in parents:
      inner = inner[int(name) if isinstance(inner, list) else name]
    inner[last] = value
  (directory / output.RUN).write_text(json.dumps(run))
  return directory


def _compared(tmp_path, first, second):
  return compare.compare(compare.read(_written(tmp_path / 'a', *first[:1], **dict(first[1:]))),
                         compare.read(_written(tmp_path / 'b', *second[:1], **dict(second[1:]))))


def _of(result, method):
  return next(point for point in result['points'] if point['method'] == method)


def test_equal_runs_differ_in_nothing(tmp_path):
  result = _compared(tmp_path, [_rows()], [_rows()])
  assert not any(result[name] for name in (
      'configuration', 'provenance', 'likelihoods', 'not_comparable', 'warnings', 'only_first', 'only_second'))
  assert [point['method'] for point in result['points']] == ['autoregressive', 'speculative']
  for point in result['points']:
    assert point['equal_outputs'] == [NUM, NUM] and point['prompts'] == NUM
    assert point['quality_difference'] == {'estimate': 0.0, 'low': 0.0, 'high': 0.0}
    assert point['speed_ratio'] == pytest.approx({'estimate': 1.0, 'low': 1.0, 'high': 1.0})
  assert _of(result, 'speculative')['acceptance_rate'] == [0.5, 0.5]
  assert _of(result, 'speculative')['mean_acceptance_length'] == [3.0, 3.0]
  assert _of(result, 'autoregressive')['acceptance_rate'] == [None, None]
  assert 'are the same' in compare.text(result) and '!' not in compare.text(result)


def test_a_planted_difference_of_quality_and_speed_is_found(tmp_path):
  worse = {'score': lambda n: float(n >= 3), 'seconds': lambda n: 0.25 * (1 + 0.01 * n),
           'tokens': lambda n: (5, 6 if n else 7)}
  point = _of(_compared(tmp_path, [_rows()], [_rows(speculative=worse)]), 'speculative')
  difference, ratio = point['quality_difference'], point['speed_ratio']
  assert difference['estimate'] == pytest.approx(-3 / 8) and difference['low'] < -3 / 8 < difference['high']
  assert ratio == pytest.approx({'estimate': 2.0, 'low': 2.0, 'high': 2.0})  # every question twice as fast
  assert point['equal_outputs'] == [NUM - 1, NUM]
  # Twice the speed of another run's method, and of its own baseline.
  assert [one['estimate'] for one in point['speedup']] == pytest.approx([2.0, 4.0])


def test_only_questions_that_both_were_asked_count(tmp_path):
  # Without the question that B was not asked, A answers 4 of 7.
  first = _rows(speculative={'score': lambda n: float(n % 2)})
  second = [row for row in _rows() if row['question_id'] != 'q1']
  point = _of(_compared(tmp_path, [first], [second]), 'speculative')
  assert point['prompts'] == 7 and point['prompts_of_each'] == [8, 7]
  assert point['quality_difference']['estimate'] == pytest.approx(1 - 3 / 7)


def test_points_of_one_run_alone_are_named(tmp_path):
  first = [row for row in _rows() if row['method'] == 'autoregressive']
  second = [*_rows(), *(_row('speculative', n, temperature=1.0) for n in range(NUM))]
  result = _compared(tmp_path, [first], [second])
  assert [point['method'] for point in result['points']] == ['autoregressive'] and result['only_first'] == []
  assert result['only_second'] == ['gemma t speculative K=4 T=0 B=1', 'gemma t speculative K=4 T=1 B=1']
  assert 'Only in B' in compare.text(result)
  (tmp_path / 'more').mkdir()
  nothing = _compared(tmp_path / 'more', [first], [second[NUM:]])
  assert 'No point is in both' in compare.text(nothing)


@pytest.mark.parametrize('path, value, reason', [
    ('sessions__0__chip', CHIP | {'cores': 8}, 'machines differ: 2-core CPU (Xeon) and 8-core CPU (Xeon) (cores)'),
    ('sessions__0__xla', {'XLA_FLAGS': '--x'}, 'settings of XLA differ: XLA_FLAGS'),
    ('machine', {'bandwidths': [[2**20, 2e9]], 'flops': 2e10},
     'the target alone ran at 1.0 % of the limit in A and 0.5 % in B')])
def test_speeds_of_another_machine_are_marked(tmp_path, path, value, reason):
  result = _compared(tmp_path, [_rows()], [_rows(), (path, value)])
  assert any(reason in said for said in result['not_comparable']), result['not_comparable']
  text = compare.text(result)
  assert 'SPEEDS ARE NOT COMPARABLE' in text and text.count('] !') == 2


def test_without_a_baseline_it_is_not_known_whether_speeds_are_comparable(tmp_path):
  rows = [row for row in _rows() if row['method'] == 'speculative']
  result = _compared(tmp_path, [rows], [rows])
  assert not result['not_comparable'] and 'it is not known whether speeds are comparable' in result['warnings'][0]


def test_what_differs_in_configuration_and_provenance(tmp_path):
  result = _compared(
      tmp_path, [_rows()], [
          _rows(), ('config__thresholds', {'lossy': [[0.7]]}), ('config__detail', 'summary'),
          ('sessions__0__git', {'commit': 'bbbb', 'dirty': True}), ('prompt_sets__t', {'sha256': 'qq'})])
  assert result['configuration'] == {'thresholds.lossy': [[[0.5]], [[0.7]]], 'detail': [None, 'summary']}
  assert result['provenance'] == {
      'git.commit': ['aaaa', 'bbbb'], 'git.dirty': [False, True], 'prompts of t': ['pp', 'qq']}
  assert result['warnings'] == ['B was measured with changes that were not committed'] and not result['not_comparable']


def test_long_values_are_shown_where_they_differ(tmp_path):
  model = 'Model(' + ', '.join(f'size_{n}={n}' for n in range(40))
  described = {'pairs__gemma__models': {'target': f'{model}, dtype=float32, ' + 'x' * 200}}
  first = [_rows(), *described.items()]
  second = [_rows(), ('pairs__gemma__models', {'target': f'{model}, dtype=bfloat16, ' + 'x' * 200})]
  text = compare.text(_compared(tmp_path, first, second))
  line = next(line for line in text.splitlines() if 'models.target' in line)
  assert 'dtype=float32' in line and 'dtype=bfloat16' in line and 'size_0=' not in line and len(line) < 400, line


def test_questions_with_other_prompts_are_left_out_and_other_tokenizers_pair_by_id(tmp_path):
  changes = {'prompt': lambda n: 'p' if n < 5 else 'other', 'score': lambda n: float(n < 5), 'tokens': lambda n: (n // 5,)}
  other = {name: changes for name in ('autoregressive', 'speculative')}
  first = {name: {'tokens': lambda n: (0,)} for name in other}
  result = _compared(tmp_path, [_rows(**first)], [_rows(**other)])
  assert result['warnings'] == ['t: 3 of 8 shared questions were asked with other prompts; left out']
  for point in result['points']:
    assert point['prompts'] == 5 and point['equal_outputs'] == [5, 5] and point['quality_difference']['estimate'] == 0
  (tmp_path / 'more').mkdir()
  result = _compared(tmp_path / 'more', [_rows()], [_rows(**other), ('pairs__gemma__tokenizer_sha256', 'uu')])
  assert {point['prompts'] for point in result['points']} == {8} and 'by their ids alone' in result['warnings'][0]


def test_batches_of_other_questions_have_no_interval_of_speed(tmp_path):
  def rows(order):
    return [_row(method, n, batch=2) | {'batch_index': place // 2}
            for method in ('autoregressive', 'speculative') for place, n in enumerate(order)]
  same = _of(_compared(tmp_path, [rows(range(8))], [rows(range(8))]), 'speculative')
  assert same['speed_ratio']['low'] is not None
  (tmp_path / 'more').mkdir()
  other = _of(_compared(tmp_path / 'more', [rows(range(8))], [rows((0, 2, 1, 3, 4, 5, 6, 7))]), 'speculative')
  assert other['speed_ratio'] == {'estimate': 1.0, 'low': None, 'high': None}


def test_another_metric_is_not_subtracted(tmp_path):
  second = [row | {'score_name': 'f1'} for row in _rows()]
  result = _compared(tmp_path, [_rows()], [second])
  assert _of(result, 'speculative')['quality_difference']['estimate'] is None
  assert 'not compared' in result['warnings'][0]


def test_the_verb_prints_and_writes(tmp_path, capsys):
  first, second = _written(tmp_path / 'a', _rows()), _written(tmp_path / 'b', _rows())
  run = lambda *argv: config.run_main(eval_binary.main, ['compare', *argv])
  assert run(str(first), str(second)) == 0
  shown = capsys.readouterr().out
  assert shown.strip() == (first / 'compare.md').read_text().strip() and '8/8' in shown
  assert json.loads((first / 'compare.json').read_text())['points'][0]['prompts'] == NUM
  assert run(str(first), str(second), f'--output_path={tmp_path / "c"}') == 0
  assert (tmp_path / 'c' / 'compare.md').exists()
  capsys.readouterr()
  (tmp_path / 'file').write_text('')
  for argv, expected in (((str(first),), 'compare DIR_A DIR_B'),
                         ((str(first), str(second), f'--output_path={tmp_path / "file"}'), 'cannot be written'),
                         ((str(first), str(second), f'--output_path={tmp_path / "file" / "new"}'), 'cannot be written'), ((str(first), str(tmp_path)), 'no results'),
                         ((str(first), str(second), '--gin_file=x'), 'reads no configuration')):
    assert run(*argv) == 2 and expected in capsys.readouterr().err
