"""The binary: verbs, flags, defaults and exit codes."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / 'evaluation'))

import fake_runner
from specjax import config
from specjax import eval as eval_binary
from specjax.evaluation import row_log
from specjax.evaluation import runner


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


def test_list_names_everything(capsys):
  assert _main('list') == 0
  text = capsys.readouterr().out
  for name in ('cascade_token_v3', 'synthetic/programs', 't5'):
    assert name in text
  assert _main('list', 'pairs') == 0 and 'cascade' not in capsys.readouterr().out


@pytest.mark.parametrize('argv, text', [
    (('--thresolds=0.1',), 'did you mean --thresholds?'), (('evaluate',), 'one of run, bench, plot, list'),
    (('list', 'chips'), 'one of methods, tasks, pairs'), (('plot',), 'plot DIR'), (('run', '--repeats=x'), '--repeats'),
    ((), 'output_path'), (('plot', '/nonexistent-results'), 'no results'),
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
  demo = given.arguments()
  assert demo['pairs'] == ['gemma', 't5'] and demo['max_samples'] >= 64 and len(demo['thresholds']) >= 6
  assert {'cascade_chow', 'cascade_token_v3', 'speculative', 'autoregressive'} <= set(demo['methods'])
