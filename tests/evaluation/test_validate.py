"""`validate`: every kind of problem is named, all of them together, before anything is loaded or compiled."""

import dataclasses
import json
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'pairs'))

from specjax import config
from specjax import eval as eval_binary
from specjax.checkpoints import leaves
from specjax.decode import memory
from specjax.decode import run
from specjax.evaluation import evaluate
from specjax.pairs import builtin
from specjax.pairs import loaded
from test_loaded import decoder, encoder_decoder, folder_of

SMALL = ('--max_samples=4', '--max_new_tokens=8', '--repeats=2', '--batch_sizes=2')


def _validate(capsys, *argv):
  """(exit code, the terminal's text) of the verb."""
  code = config.run_main(eval_binary.main, ['validate', *argv])
  return code, capsys.readouterr().out


def _problems(text):
  """The numbered lines."""
  return [line for line in text.splitlines() if line[:1].isdigit() and '. ' in line[:5]]


@pytest.fixture
def no_weights(monkeypatch):
  def refused(*args, **kwargs):
    raise AssertionError('weights were read')
  monkeypatch.setattr(builtin, 'load_pair', refused)


def test_a_sound_sweep_is_described_and_nothing_is_loaded_compiled_or_written(no_weights, tmp_path, capsys):
  before = len(run.compile_log())
  code, text = _validate(
      capsys, *SMALL, '--methods=autoregressive,speculative,cascade_chow', '--thresholds=0.1,0.5', '--temperatures=0,1',
      '--seeds=0,1', '--num_draft_tokens=2', '--pairs=gemma,t5', f'--output_path={tmp_path / "new"}')
  assert code == 0 and text.rstrip().endswith('nothing is wrong') and not _problems(text)
  # Per pair 4 points at temperature 0, and with two seeds at 1; 4 prompts, 2 repeats.
  assert '24 points in 6 blocks; 192 rows, at most 1,536 tokens' in text
  # The two rules share a prefill; knobs are numbers.
  assert 'gemma: 2 prefills and 3 decoding loops' in text and 't5: encoder-decoder, target 5,771,776 parameters' in text
  assert 'synthetic: 4 prompts (generated), scored by accuracy' in text and 'memory:      gemma: ' in text
  assert len(run.compile_log()) == before and not (tmp_path / 'new').exists()


def test_every_problem_is_named_at_once(no_weights, tmp_path, capsys):
  (tmp_path / 'bad.gin').write_text(
      'from __gin__ import dynamic_registration\nfrom specjax.evaluation import evaluate\n\n'
      "include 'eval.gin'\n\nNEVER_USED = 3\nevaluate.evaluate.max_sample = 3\nevaluate.evaluate.dtype = 'float64'\n"
      "evaluate.evaluate.thresholds = {'lossy': [0.5, 2.0], 'speculative': [1.0]}\n")
  (tmp_path / 'results').mkdir()
  (tmp_path / 'results' / 'rows.jsonl').write_text('')
  code, text = _validate(
      capsys, f'--gin_file={tmp_path / "bad.gin"}', '--warmup', '3', '--repeats=x', '--gin.evaluate.evaluate.top_q=0.5',
      f'--pairs=gemm,t5,{tmp_path}/a::{tmp_path}/b', '--tasks=synthetic,synthetik,gsm8k', '--temperatures=0,3',
      '--top_p=0,1', '--methods=autoregressive,lossy,spekulative', '--greedy_methods=cascade_chow',
      '--num_draft_tokens=0,4', '--batch_sizes=4', '--max_new_tokens=0', '--top_k=-7', '--seeds=-1,0',
      f'--output_path={tmp_path / "results"}')
  found = _problems(text)
  assert code == 2 and len(found) == len(set(found)) and f'{len(found)} problems' in text
  for expected in (
      "unknown flag: got '--warmup'", '--repeats', 'NEVER_USED has no effect', 'did you mean max_samples?',
      'did you mean top_p?', "'float64'", "got 'gemm'", f'{tmp_path}/a: no such file', f'{tmp_path}/b: no such file',
      "unknown task 'synthetik'", 'no data for gsm8k', 'temperature: got 3.0', 'top_p: got 0.0', 'top_k: got -7',
      "unknown method 'spekulative'", "thresholds for 'speculative'", 'lenience', "'cascade_chow' is not among methods",
      'num_draft_tokens: got 0', 'seeds: got -1', 'max_new_tokens: got 0', 'results exist already'):
    assert sum(expected in line for line in found) == 1, (expected, text)


@pytest.mark.parametrize('argv, expected', [
    (('bench', '--methods=autoregressive,lossy,bild', '--output_path=x'), ('lossy with a force', 'bild with a force')),
    (('--tasks=', '--output_path=x'), ('empty tasks',)),
    (('--temperatures=1', '--methods=bild', '--output_path=x'), ('no point',)),
    (('--gin_file=none.gin',), ('gin file',)), ((), ('output_path is required',)),
    (('--resume', '--overwrite', '--output_path=x'), ('both --resume and --overwrite',))])
def test_single_problems(argv, expected, capsys):
  code, text = _validate(capsys, *argv)
  assert code == 2 and len(_problems(text)) == len(expected)
  assert all(any(one in line for line in _problems(text)) for one in expected), text


def test_verbs_that_cannot_be_validated_are_refused(capsys):
  assert config.run_main(eval_binary.main, ['validate', 'certify']) == 2
  assert 'run or bench' in capsys.readouterr().err


def test_options_without_effect_are_notes(capsys, tmp_path):
  questions = tmp_path / 'mine.jsonl'
  questions.write_text('{"id": "a", "inputs": "one"}\nbroken\n')
  code, text = _validate(
      capsys, '--methods=autoregressive_drafter', f'--tasks=file:{tmp_path}/mine.jsonl', '--output_path=x',
      '--bonus=target', '--detail=summary', '--vocabulary=intersection', '--input_key=q', '--num_fewshot=5',
      f'--data_dir={tmp_path}',
      '--allow_code_execution', '--top_p=0.5', '--seeds=0,0')
  assert code == 2 and f'{tmp_path}/mine.jsonl:2' in text  # `file:` refuses what `jsonl:` leaves out
  for expected in (
      'bonus: no method', 'detail: no method', 'vocabulary: built-in', 'input_key: no task', 'num_fewshot: no task',
      'data_dir: no task', 'allow_code_execution: no task', 'without autoregressive', 'top_p [0.5]',
      'seeds: 0 is named twice'):
    assert expected in text, (expected, text)
  code, text = _validate(capsys, f'--tasks=jsonl:{questions}', '--output_path=x')
  assert code == 0 and '1 bad lines left out' in text and 'fewer than max_samples' in text and 'has no score' in text


def test_prompts_beyond_a_models_limit_and_batches_beyond_memory_are_problems(monkeypatch, capsys, tmp_path):
  short = dataclasses.replace(decoder(1), max_length=24)
  target, drafter = folder_of(tmp_path / 'target', decoder(2), seed=0), folder_of(tmp_path / 'drafter', short, seed=1)
  monkeypatch.setattr(loaded.formats, 'load', None)  # No weight is read.
  arguments = (*SMALL, f'--pairs={target}::{drafter}', '--output_path=x')
  code, text = _validate(capsys, *arguments)
  assert code == 2 and 'at most its max_length 24' in text and len(_problems(text)) == 1
  monkeypatch.setattr(memory, 'available_bytes', lambda: 1000)
  code, text = _validate(capsys, *SMALL, '--output_path=x')
  assert code == 2 and 'cannot fit in memory' in text


def test_two_checkpoints_that_do_not_belong_together(capsys, tmp_path):
  target, other = folder_of(tmp_path / 'a', decoder(1), seed=0), folder_of(tmp_path / 'b', encoder_decoder(), seed=0)
  code, text = _validate(capsys, f'--pairs={target}::{other}', '--output_path=x')
  assert code == 2 and 'two models of one kind' in text


def test_weights_of_another_shape_than_configured_are_named_from_their_headers(capsys, tmp_path, monkeypatch):
  target, drafter = (folder_of(tmp_path / name, decoder(1), seed=0) for name in ('target', 'drafter'))
  described = json.loads((drafter / 'config.json').read_text())
  (drafter / 'config.json').write_text(json.dumps(described | {'intermediate_size': 48}))
  (drafter / 'specjax.sha256.json').unlink()
  monkeypatch.setattr(leaves, 'load', None)
  code, text = _validate(capsys, f'--pairs={target}::{drafter}', '--output_path=x')
  assert code == 2 and len(_problems(text)) == 1 and str(drafter) in text and 'weights' in text, text


def test_a_run_is_taken_up_only_with_its_own_configuration(tmp_path, capsys):
  arguments = (*SMALL, '--resume', f'--output_path={tmp_path}')
  given = config.resolve(
      entry=evaluate.evaluate, files=('eval.gin',), provided=eval_binary.PROVIDED,
      overrides={'max_samples': 4, 'max_new_tokens': 8, 'repeats': 2, 'batch_sizes': [2], 'output_path': 'x'}
  ).arguments()
  kept = evaluate.arguments_of(given)
  tasks = {'synthetic': evaluate.load_task('synthetic', kept, data_dir=None)}
  configuration = evaluate.configuration(kept, tasks)
  run_json = {'run_id': evaluate.name_of(configuration, tasks), 'config': configuration}
  (tmp_path / 'run.json').write_text(json.dumps(run_json))
  (tmp_path / 'rows.jsonl').write_text('{}\n{}\n')
  code, text = _validate(capsys, *arguments)
  assert code == 0 and '2 rows are there' in text
  code, text = _validate(capsys, *arguments, '--top_k=5', '--temperatures=1')
  assert code == 2 and 'differing: temperatures, top_k' in text


@pytest.mark.skipif(os.geteuid() == 0, reason='the superuser may write everywhere')
def test_a_directory_that_is_not_ours(tmp_path, capsys):
  tmp_path.chmod(0o500)
  code, text = _validate(capsys, *SMALL, f'--output_path={tmp_path}/new')
  assert code == 2 and 'cannot be written' in text


def test_an_output_path_below_a_file_is_a_problem(tmp_path, capsys):
  (tmp_path / 'file').write_text('')
  code, text = _validate(capsys, *SMALL, f'--output_path={tmp_path}/file/new')
  assert code == 2 and 'cannot be written' in text
