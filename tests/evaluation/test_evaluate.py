"""A run from start to end without a model: rows, resume after kill -9, interleaving, refusals. Seeds are fixed."""

import functools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import textwrap

import pytest

import fake_runner
from specjax.core.errors import ConfigError, LimitError, SpecjaxError
from specjax.decode import memory
from specjax.evaluation import evaluate
from specjax.evaluation import interrupts
from specjax.evaluation import methods
from specjax.evaluation import output
from specjax.evaluation import row_log

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _run(path, **changes):
  return evaluate.evaluate(**fake_runner.settings(**changes), output_path=str(path))


def _comparable(path):
  rows, damage = row_log.read(path / 'rows.jsonl')
  assert damage == (0, ())
  assert len(rows) == len((path / 'rows.jsonl').read_bytes().splitlines())  # none twice
  return sorted((row_log.without_volatile(row) for row in rows), key=row_log.row_id)


def test_every_point_question_and_repeat_has_one_row(tmp_path):
  _run(tmp_path, repeats=2, temperatures=[0.0, 1.0], seeds=[0, 3])
  rows, _ = row_log.read(tmp_path / 'rows.jsonl')
  # 3 points without knob, 2 rules x 2 thresholds; 1 seed at temperature 0 and 2 at 1, 8 prompts, 2 repeats.
  assert len(rows) == len({row_log.row_id(row) for row in rows}) == (3 + 4) * (1 + 2) * 8 * 2
  assert len({row['run_id'] for row in rows}) == 1
  assert json.loads((tmp_path / 'run.json').read_text())['run_id'] == rows[0]['run_id']


def test_run_json_says_what_was_measured(tmp_path):
  _run(tmp_path)
  run = json.loads((tmp_path / 'run.json').read_text())
  session = run['sessions'][0]
  assert session['n_compiles'] == len(session['executables']) == 10 and session['n_compiles_after_warm_up'] == 0
  assert 0 < session['compile_s'] < 5 * 2.3  # Wall time: several compile at a time.
  assert session['ended'] >= session['started'] and run['finished']
  assert {'git', 'versions', 'chip', 'xla', 'prng'} <= session.keys()
  assert run['pairs']['gemma']['checkpoint_sha256'] == 'cd'
  assert run['prompt_sets']['synthetic']['prompts'] == 8
  assert run['machine']['bandwidths'] == [[2**20, 1e10]]


def test_questions_are_kept_in_spec_bench_format(tmp_path):
  _run(tmp_path)
  asked = output.read_questions(tmp_path)
  rows, _ = row_log.read(tmp_path / 'rows.jsonl')
  assert {(row['task'], row['question_id']) for row in rows} == asked.keys()
  assert all(set(line) >= {'question_id', 'category', 'turns', 'reference'} for line in asked.values())


def _recording(calls):
  def load(name, **settings):
    return fake_runner.FakeRunner(name, **settings, before_generate=calls.append)
  return load


def test_points_are_visited_forward_and_backward_after_one_warm_up_per_structure(tmp_path):
  calls = []
  _run(tmp_path, load_runner=_recording(calls), warmups=2)
  points = [point.point_id for point in calls]
  num_points, num_structures = 7, 5
  warm, timed = points[:2 * num_structures], points[2 * num_structures:]
  assert len({point.structure for point in calls[:2 * num_structures]}) == num_structures
  first, second = timed[:num_points], timed[num_points:]
  assert second == first[::-1] and calls[len(warm)].method == 'autoregressive'


def test_greedy_repeats_give_the_same_tokens(tmp_path):
  _run(tmp_path, repeats=2)
  rows, _ = row_log.read(tmp_path / 'rows.jsonl')
  tokens = {}
  for row in rows:
    tokens.setdefault((row['point_id'], row['question_id']), set()).add(str(row['choices'][0]['token_ids']))
  assert all(len(found) == 1 for found in tokens.values())


def test_greedy_rows_are_compared_with_the_target_in_forward_and_backward_visits(tmp_path):
  load = functools.partial(fake_runner.FakeRunner, ties=['programs/test/0/0', 'arithmetic/test/0/1'])
  _run(tmp_path, temperatures=[0.0, 1.0], max_samples=12, load_runner=load)
  rows, _ = row_log.read(tmp_path / 'rows.jsonl')
  target = {row['question_id']: row['choices'][0]['token_ids'] for row in rows
            if row['method'] == 'autoregressive' and row['temperature'] == 0}
  causes = {}
  for row in rows:
    found = row['equal_to_ar'], row['first_diff'], row['diff_cause']
    if row['temperature'] > 0 or row['method'] == 'autoregressive':
      assert found == (None, None, None)
      continue
    assert row['equal_to_ar'] == (row['choices'][0]['token_ids'] == target[row['question_id']])
    causes.setdefault(row['method'], []).append(row['diff_cause'])
    if row['diff_cause'] == 'tie':
      assert row['first_diff'] == 2
  assert sorted(causes['speculative']) == ['none'] * 10 + ['tie'] * 2
  assert set(causes['cascade_chow']) == set(causes['autoregressive_drafter']) == {'lossy'}


def test_rows_of_a_backward_visit_wait_for_the_target(tmp_path):
  calls = []

  def interrupt(point):
    calls.append(point)
    if len(calls) == 5 + 7 + 3:  # warm-ups, the forward visit, into the backward one
      os.kill(os.getpid(), signal.SIGINT)

  with pytest.raises(interrupts.Stopped):
    _run(tmp_path / 'out', load_runner=functools.partial(fake_runner.FakeRunner, before_generate=interrupt))
  assert len(row_log.read(tmp_path / 'out' / 'rows.jsonl')[0]) == 7 * 4
  _run(tmp_path / 'out', resume=True)
  _run(tmp_path / 'whole')
  assert _comparable(tmp_path / 'out') == _comparable(tmp_path / 'whole')


def test_without_the_target_nothing_is_compared(tmp_path):
  _run(tmp_path, methods=['speculative', 'cascade_chow'])
  rows, _ = row_log.read(tmp_path / 'rows.jsonl')
  assert len(rows) == 3 * 8 and {row['equal_to_ar'] for row in rows} == {None}


def test_the_sweep_a_method_brings_along_is_part_of_the_configuration(tmp_path):
  _run(tmp_path, methods=['autoregressive', 'cascade_chow', 'lossy'], thresholds={'cascade_chow': [0.5]})
  kept = json.loads((tmp_path / 'run.json').read_text())['config']['thresholds']
  assert kept == {'cascade_chow': [[0.5]], 'lossy': [[value] for value in methods.lookup('lossy').thresholds]}


def test_all_methods_over_two_temperatures_and_top_p(tmp_path):
  _run(tmp_path, methods=list(methods.METHODS), thresholds={}, temperatures=[0.0, 1.0], top_p=[0.5, 1.0], max_samples=4,
       detail='summary')
  rows, _ = row_log.read(tmp_path / 'rows.jsonl')
  settings = {(row['temperature'], row['top_p']) for row in rows}
  assert settings == {(0.0, 1.0), (1.0, 0.5), (1.0, 1.0)}
  greedy = {row['method'] for row in rows if row['temperature'] == 0}
  assert greedy == set(methods.METHODS)
  assert greedy - {row['method'] for row in rows if row['temperature'] == 1} == {'lossy_greedy', 'bild', 'bild_star'}
  bild = [row['knob'] for row in rows if row['method'] == 'bild']
  assert {tuple(knob) for knob in bild} == {('fallback_threshold', 'rollback_threshold')} and len(bild) == 9 * 4
  alone = ('autoregressive', 'autoregressive_drafter')
  assert {row['deferral_rate'] is None for row in rows if row['method'] in alone} == {True}
  assert {row['deferral_rate'] is None for row in rows if row['knob']} == {False}


def test_timed_batch_that_compiles_is_refused(tmp_path):
  runners = []

  def load(name, **settings):
    runners.append(fake_runner.FakeRunner(name, **settings, before_generate=late))
    return runners[-1]

  def late(point):
    runners[-1].late_compiles = len(runners[-1].calls) > 6

  with pytest.raises(SpecjaxError, match='timed batch compiled'):
    _run(tmp_path, load_runner=load)
  run = json.loads((tmp_path / 'run.json').read_text())
  assert run['sessions'][0]['n_compiles_after_warm_up'] == 2


@pytest.mark.parametrize('changes', [dict(methods=['speculativ']), dict(tasks=['synthetik']), dict(temperatures=[-1.0]),
                                     dict(dtype='float8'), dict(pairs='gemma'), dict(repeats=0), dict(warmups=0),
                                     dict(top_p=[]), dict(top_p=[0.0], temperatures=[1.0]), dict(detail='detailed'),
                                     dict(methods=['lossy'], thresholds=[1.0]), dict(force_length=True),
                                     dict(force_length=True, methods=['autoregressive', 'autoregressive_drafter']),
                                     dict(methods=['autoregressive', 'bild'], thresholds={}, temperatures=[1.0])])
def test_bad_configuration_writes_nothing(tmp_path, changes):
  with pytest.raises(SpecjaxError):
    _run(tmp_path / 'out', **changes)
  assert not (tmp_path / 'out').exists()


def test_existing_results_need_resume_or_overwrite(tmp_path):
  _run(tmp_path)
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  with pytest.raises(ConfigError, match='--resume to go on, --overwrite to start again'):
    _run(tmp_path)
  with pytest.raises(ConfigError, match='both'):
    _run(tmp_path, resume=True, overwrite=True)
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwrite_starts_again(tmp_path):
  _run(tmp_path)
  _run(tmp_path, overwrite=True, max_samples=4)
  rows, _ = row_log.read(tmp_path / 'rows.jsonl')
  assert len(rows) == 7 * 4 and len(json.loads((tmp_path / 'run.json').read_text())['sessions']) == 1


def test_resume_of_a_finished_run_measures_nothing(tmp_path):
  _run(tmp_path)
  before = (tmp_path / 'rows.jsonl').read_bytes()
  calls = []
  _run(tmp_path, resume=True, load_runner=_recording(calls))
  assert not calls and (tmp_path / 'rows.jsonl').read_bytes() == before


def test_resume_of_another_configuration_is_refused(tmp_path):
  _run(tmp_path)
  before = (tmp_path / 'rows.jsonl').read_bytes()
  with pytest.raises(ConfigError, match='differing: max_new_tokens'):
    _run(tmp_path, resume=True, max_new_tokens=25)
  assert (tmp_path / 'rows.jsonl').read_bytes() == before


def test_resume_with_another_checkpoint_is_refused(tmp_path):
  calls = []

  def stop_early(point):
    calls.append(point)
    if len(calls) == 9:
      raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    _run(tmp_path, load_runner=functools.partial(fake_runner.FakeRunner, before_generate=stop_early))

  class OtherWeights(fake_runner.FakeRunner):
    def metadata(self):
      return super().metadata() | {'checkpoint_sha256': 'other'}

  with pytest.raises(ConfigError, match='checkpoint_sha256'):
    _run(tmp_path, resume=True, load_runner=OtherWeights)


def test_resume_takes_up_a_torn_batch_and_only_warms_up_what_is_missing(tmp_path):
  _run(tmp_path / 'whole')
  _run(tmp_path / 'torn')
  path = tmp_path / 'torn' / 'rows.jsonl'
  path.write_bytes(path.read_bytes()[:-700])  # Into the last batch: some of its rows are there, one is torn.
  kept = len(row_log.read(path)[0])
  calls = []
  _run(tmp_path / 'torn', resume=True, load_runner=_recording(calls))
  assert kept < 7 * 8 and len(calls) == 2  # one warm-up, one batch
  assert _comparable(tmp_path / 'torn') == _comparable(tmp_path / 'whole')


@pytest.mark.parametrize('number', interrupts.SIGNALS)
def test_first_signal_finishes_the_batch_and_resume_completes(tmp_path, number):
  calls = []

  def interrupt(point):
    calls.append(point)
    if len(calls) == 10:
      os.kill(os.getpid(), number)

  handler = signal.getsignal(number)
  with pytest.raises(interrupts.Stopped) as stopped:
    _run(tmp_path / 'out', load_runner=functools.partial(fake_runner.FakeRunner, before_generate=interrupt))
  assert stopped.value.exit_code == 128 + number and signal.getsignal(number) is handler
  assert len(calls) == 10
  assert len(row_log.read(tmp_path / 'out' / 'rows.jsonl')[0]) == (10 - 5) * 4  # the tenth batch was finished
  _run(tmp_path / 'out', resume=True)
  _run(tmp_path / 'whole')
  assert _comparable(tmp_path / 'out') == _comparable(tmp_path / 'whole')


def test_second_signal_drops_the_batch(tmp_path):
  calls = []

  def interrupt_twice(point):
    calls.append(point)
    if len(calls) == 10:
      os.kill(os.getpid(), signal.SIGINT)
      os.kill(os.getpid(), signal.SIGINT)

  with pytest.raises(interrupts.Stopped):
    _run(tmp_path, load_runner=functools.partial(fake_runner.FakeRunner, before_generate=interrupt_twice))
  assert len(row_log.read(tmp_path / 'rows.jsonl')[0]) == (9 - 5) * 4


def test_batch_that_cannot_fit_is_refused_with_the_numbers_before_anything_compiles(tmp_path):
  calls = []

  class Huge(fake_runner.FakeRunner):
    def memory_parts(self, point, shape):
      return {'parameters': 2**30, 'caches': 2**50, '[B=4, K+1=5, V=896] buffers': 2**31}

  with pytest.raises(LimitError, match=r'1048579.00 GiB \(parameters 1.00 GiB, caches 1048576.00 GiB, \[B=4, K\+1=5'):
    _run(tmp_path, load_runner=functools.partial(Huge, before_generate=calls.append))
  assert not calls


def test_a_second_pair_that_cannot_fit_is_refused_before_the_first_compiles(tmp_path):
  calls = []

  class HugeSecond(fake_runner.FakeRunner):
    def memory_parts(self, point, shape):
      return {'caches': 2**50 if self.name == 't5' else 1}

  with pytest.raises(LimitError, match='t5.*caches 1048576.00 GiB'):
    _run(tmp_path, pairs=['gemma', 't5'], load_runner=functools.partial(HugeSecond, before_generate=calls.append))
  assert not calls


def test_memory_of_unknown_size_refuses_nothing():
  memory.check_fits({'caches': 2**60}, available=None, where='here')
  assert memory.available_bytes() > 2**20


CHILD = '''
  """Runs the sweep in forked children, kills each with SIGKILL after random progress, until one comes to its end."""
  import functools, json, os, random, signal, sys, time
  sys.path.insert(0, {tests!r})
  import fake_runner
  from specjax.evaluation import evaluate
  choose, kills = random.Random({seed}), 0
  rows = os.path.join({path!r}, 'rows.jsonl')
  size = lambda: os.path.getsize(rows) if os.path.exists(rows) else 0
  running = lambda child: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
  slow = functools.partial(fake_runner.FakeRunner, before_generate=lambda point: time.sleep(0.002))
  while True:
    child = os.fork()
    if child == 0:
      try:
        evaluate.evaluate(**fake_runner.settings(load_runner=slow, max_samples=16), output_path={path!r}, resume=True)
      except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
      os._exit(0)
    if kills < {kills}:
      # Progress and not time decides, so that a fast machine is interrupted as often as a busy one.
      goal = size() + choose.uniform(0, {longest})
      while size() <= goal and running(child):
        time.sleep(0.0002)
      time.sleep(choose.uniform(0, 0.003))
      os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
      kills += 1
    else:
      print(json.dumps([kills, os.waitstatus_to_exitcode(status)]))
      break
'''


def _kill_and_resume(tmp_path, *, kills, seed, longest):
  script = textwrap.dedent(CHILD).format(
      tests=str(ROOT / 'tests' / 'evaluation'), path=str(tmp_path / 'killed'), kills=kills, seed=seed, longest=longest)
  done = subprocess.run(
      [sys.executable, '-c', script], capture_output=True, text=True, timeout=600,
      env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'})
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_kill_9_and_resume_lose_no_row_and_double_none(tmp_path):
  killed, code = _kill_and_resume(tmp_path, kills=5, seed=20, longest=20_000)
  print(f'{killed} kills, seed 20')
  assert code == 0 and killed == 5
  _run(tmp_path / 'whole', max_samples=16)
  assert _comparable(tmp_path / 'killed') == _comparable(tmp_path / 'whole')


@pytest.mark.nightly
def test_kill_9_many_times(tmp_path):
  seed = random.SystemRandom().randrange(2**32)
  print(f'seed {seed}')
  total = 0
  for number in range(40):
    killed, code = _kill_and_resume(tmp_path / str(number), kills=30, seed=seed + number, longest=6_000)
    assert code == 0
    total += killed
    _run(tmp_path / str(number) / 'whole', max_samples=16)
    assert _comparable(tmp_path / str(number) / 'killed') == _comparable(tmp_path / str(number) / 'whole')
  print(f'{total} kills')
