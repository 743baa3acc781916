"""The binary: verbs, flags, defaults and exit codes."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / 'evaluation'))

import fake_runner
from specjax import config
from specjax import rules
from specjax import eval as eval_binary
from specjax.evaluation import grid
from specjax.evaluation import methods
from specjax.evaluation import row_log
from specjax.evaluation import runner
from specjax.testing import oracles
from specjax.testing import part_oracles


@pytest.fixture
def fake_pairs(monkeypatch):
  monkeypatch.setattr(runner, 'load_runner', fake_runner.FakeRunner)


SMALL = ('--max_samples=4', '--batch-size=2', '--max_new_tokens=12', '--repeats=1', '--warmups=1')


def _main(*argv):
  return config.run_main(eval_binary.main, list(argv))


def test_run_writes_reports_and_ends_with_the_table(fake_pairs, tmp_path, capsys):
  code = _main(*SMALL, '--methods=autoregressive,speculative,cascade_chow', '--threshold', '0.1,0.5', '--temperature=0',
               '--num_speculative_tokens=3', f'--output_path={tmp_path}')
  assert code == 0
  table = capsys.readouterr().out.strip().splitlines()
  assert len(table) == 2 + 4 and 'speedup [95 % CI]' in table[0] and 'cascade_chow threshold=0.5' in table[-1]
  assert (tmp_path / 'report.html').exists()
  rows, _ = row_log.read(tmp_path / 'rows.jsonl')
  assert {row['num_draft_tokens'] for row in rows} == {0, 3} and len(rows) == 4 * 4
  assert 'evaluate.evaluate.max_samples = 4' in (tmp_path / 'run.json').read_text()


def test_results_are_never_overwritten_by_accident(fake_pairs, tmp_path, capsys):
  arguments = (*SMALL, '--methods=autoregressive', f'--output_path={tmp_path}')
  assert _main(*arguments) == 0
  before = (tmp_path / 'rows.jsonl').read_bytes()
  assert _main(*arguments) == 2
  assert 'ConfigError' in capsys.readouterr().err
  assert (tmp_path / 'rows.jsonl').read_bytes() == before
  assert _main(*arguments, '--resume') == 0


def test_bench_forces_the_length_and_sweeps_batch_and_draft_length(fake_pairs, tmp_path):
  assert _main('bench', '--max_samples=4', '--max_new_tokens=8', '--batch_sizes=1,4', '--num_draft_tokens=1,3',
               '--repeats=1', '--warmups=1', f'--output_path={tmp_path}') == 0
  rows, _ = row_log.read(tmp_path / 'rows.jsonl')
  assert {row['emitted'] for row in rows} == {8} and {row['score'] for row in rows} == {None}
  assert {(row['batch'], row['num_draft_tokens']) for row in rows} == {(b, k) for b in (1, 4) for k in (0, 1, 3)}
  assert (tmp_path / 'speedup-gemma.png').exists()


def test_plot_rebuilds_from_rows(fake_pairs, tmp_path, capsys):
  _main(*SMALL, '--methods=autoregressive,speculative', f'--output_path={tmp_path}')
  first = capsys.readouterr().out
  (tmp_path / 'report.html').unlink()
  assert _main('plot', str(tmp_path)) == 0
  assert capsys.readouterr().out == first and (tmp_path / 'report.html').exists()


def test_calibrate_prints_range_threshold_and_check(fake_pairs, tmp_path, capsys):
  arguments = ('calibrate', '--method=cascade_chow', '--pair=t5', '--deferral-rate=0.3', '--calibration_samples=16',
               '--held_back_samples=16', '--batch_size=8', '--max_new_tokens=12', f'--output_path={tmp_path}')
  assert _main(*arguments) == 0
  text = capsys.readouterr().out
  assert text.startswith('attainable deferral rate: ') and 'threshold = ' in text and 'independent' in text
  assert (tmp_path / 'calibration.json').exists()
  assert _main(*arguments) == 2 and 'a calibration is there' in capsys.readouterr().err
  assert _main(*arguments, '--overwrite') == 0


def test_certify_writes_a_certificate_and_its_exit_code(tmp_path, capsys, monkeypatch):
  arguments = ('certify', '--method=cascade_chow', '--threshold=0.4', '--num_samples=128', '--num_prompts=1', '--num_tokens=2')
  assert _main(*arguments, f'--output_path={tmp_path}') == 0
  told = capsys.readouterr().out
  assert 'cascade_chow threshold=0.4 on gemma: holds' in told and 'would be seen' not in told, told
  written = json.loads((tmp_path / 'certificate.json').read_text())
  assert written['holds'] and written['enumeration']['configurations'] == 8 and written['samples']['num_samples'] == 128
  assert _main(*arguments, f'--output_path={tmp_path}') == 2
  monkeypatch.setitem(part_oracles._RULES, rules.Chow, lambda rule: oracles.lossless_goal)
  assert _main(*arguments, f'--output_path={tmp_path}', '--overwrite') == 1
  assert 'FAILS' in capsys.readouterr().out


def test_calibrate_outside_the_range_is_code_2_and_names_the_nearest(fake_pairs, tmp_path, capsys):
  code = _main('calibrate', '--method=truncated_target', '--deferral_rate=0.3', '--calibration_samples=4',
               '--held_back_samples=4', '--max_new_tokens=12', f'--output_path={tmp_path}')
  assert code == 2 and 'The nearest is 1.0000' in capsys.readouterr().err


def test_top_p_and_detail_are_flags(fake_pairs, tmp_path):
  assert _main(*SMALL, '--methods=autoregressive,lossy', '--threshold=0.5', '--temperature=0,1', '--top_p=0.5,1',
               '--detail=summary', f'--output_path={tmp_path}') == 0
  rows, _ = row_log.read(tmp_path / 'rows.jsonl')
  assert {(row['temperature'], row['top_p']) for row in rows} == {(0.0, 1.0), (1.0, 0.5), (1.0, 1.0)}
  assert {row['overlap'] is None for row in rows if row['method'] == 'lossy'} == {False}


def test_list_names_everything(capsys):
  assert _main('list') == 0
  text = capsys.readouterr().out
  for name in (*methods.METHODS, 'synthetic/programs', 't5'):
    assert name in text
  assert _main('list', 'pairs') == 0 and 'cascade' not in capsys.readouterr().out


@pytest.mark.parametrize('argv, text', [
    (('--thresolds=0.1',), 'did you mean --thresholds?'),
    (('evaluate',), 'one of run, bench, validate, calibrate, certify, drafts, compare, plot, list'),
    (('compare', 'A', 'B', 'C'), 'at most 2'), (('plot', 'A', 'B'), 'at most 1'),
    (('certify', '--method=cascade_chow', '--output_path=/dev/null'), 'cannot be written'),
    (('calibrate', '--method=cascade_chow', '--deferral_rate=0.3', '--output_path=/dev/null/x'), 'cannot be written'),
    (('list', 'chips'), 'one of methods, tasks, pairs'), (('plot',), 'plot DIR'), (('run', '--repeats=x'), '--repeats'),
    ((), 'output_path'), (('plot', '/nonexistent-results'), 'no results'),
    (('calibrate', '--output_path=x'), 'method'), (('calibrate', '--method=lossy', '--output_path=x'), 'exactly one'),
    (('--methods=lossy', 'calibrate'), 'in front of its flags'), (('certify', '--output_path=x'), 'method'),
    (('certify', '--method=autoregressive_drafter', '--output_path=x'), 'a method of a pair'),
    (('certify', '--method=bild', '--output_path=x'), 'greedy only'),
    (('calibrate', '--method=bild', '--deferral_rate=0.3', '--output_path=x'), 'bild has 2 knobs'),
    (('bench', '--methods=autoregressive,lossy', '--output_path=x'), 'lossy with a forced length'),
    (('plot', 'DIR', '--temperatures=1'), '--temperatures'), (('plot', 'DIR', '--output_path=x'), '--output_path'),
    (('list', '--pairs=t5'), '--pairs'), (('list', '--gin_file=eval.gin'), '--gin_file=eval.gin')])
def test_what_a_user_can_mend_is_one_line_and_code_2(argv, text, capsys):
  assert _main(*argv) == 2
  assert text in capsys.readouterr().err


def test_help_lists_the_flags(capsys):
  assert _main('--help') == 0
  text = capsys.readouterr().out
  assert '--temperatures' in text and '--load_runner' not in text and 'python -m specjax.eval' in text


def test_shipped_configurations_resolve():
  for verb, files in (('run', ('eval.gin',)), ('bench', ('bench.gin',)), ('run', ('runs/demo.gin',))):
    given = config.resolve(
        entry=eval_binary.evaluate.evaluate, files=files, overrides={'output_path': 'x'}, provided=eval_binary.PROVIDED)
    assert given.arguments()['output_path'] == 'x', verb


def _points(arguments):
  names = ('pairs', 'tasks', 'methods', 'thresholds', 'num_draft_tokens', 'seeds', 'batch_sizes', 'greedy_methods')
  sampling = {name: arguments[name] for name in ('temperatures', 'top_p', 'top_k', 'min_p')}
  blocks = grid.blocks(samplings=grid.samplings(**sampling), **{name: arguments[name] for name in names})
  return [point for block in blocks for point in block.points]


def _shipped(file):
  return config.resolve(entry=eval_binary.evaluate.evaluate, files=(file,), overrides={'output_path': 'x'},
                        provided=eval_binary.PROVIDED).arguments()


CASCADES = {name for name, method in methods.METHODS.items() if method.group in methods.CASCADE_GROUPS}


def test_every_method_belongs_to_one_of_the_two_studies():
  assert CASCADES | {name for name, method in methods.METHODS.items() if method.group == 'drafting'} == set(methods.METHODS)
  assert len(CASCADES) >= 22 and {'autoregressive', 'speculative', 'oracle_diff'} < CASCADES


def test_the_study_of_drafts_names_every_drafting_method():
  full = _shipped('runs/draft_refinement_full.gin')
  points = _points(full)
  drafting = {name for name, method in methods.METHODS.items() if method.group == 'drafting'}
  assert full['pairs'] == ['gemma', 't5'] and full['tasks'] == ['synthetic'] and full['batch_sizes'] == [1]
  assert {point.method for point in points} == drafting | {'autoregressive', 'speculative', 'speculative_block'}
  for temperature in (0.0, 0.7, 1.0):
    assert drafting <= {point.method for point in points if point.sampling.temperature == temperature}
  header = (pathlib.Path(__file__).resolve().parents[1] / 'gin/runs/draft_refinement_full.gin').read_text()
  assert f'{len(points):,} points' in header and f'{full["max_samples"]} prompts' in header


def test_demo_has_a_point_of_every_method_and_curves_of_four():
  demo = _shipped('runs/demo.gin')
  assert demo['pairs'] == ['gemma', 't5'] and demo['max_samples'] >= 64
  points = [point for point in _points(demo) if point.pair == 't5']
  assert {point.method for point in points} == CASCADES
  curves = {point.method: sum(p.method == point.method for p in points) for point in points}
  assert {name for name, count in curves.items() if count >= 7} == {
      'lossy', 'cascade_chow', 'cascade_opt', 'cascade_token_v3'}
  greedy = {point.method for point in points if point.sampling.temperature == 0}
  assert {name for name in CASCADES if methods.METHODS[name].greedy_only} < greedy


def test_full_grid_has_every_axis_and_the_points_that_its_header_states():
  full = _shipped('runs/cascades_full.gin')
  points = _points(full)
  assert {point.method for point in points} == CASCADES and full['seeds'] == [0, 1, 2]
  assert {point.num_draft_tokens for point in points} == {0, 3, 5, 7}
  assert {(p.sampling.temperature, p.sampling.top_p) for p in points} == {
      (0.0, 1.0), *((t, p) for t in (0.1, 0.5, 1.0) for p in (0.1, 0.25, 0.5, 1.0))}
  header = (pathlib.Path(__file__).resolve().parents[1] / 'gin/runs/cascades_full.gin').read_text()
  assert f'{len(points):,} points' in header and f'{full["max_samples"]} prompts' in header
  assert f'{round(len(points) * full["max_samples"], -3):,} rows' in header
