"""Everything that is wrong with flags and files, found by putting aside what is wrong and reading on."""

import pytest
import toy_entry

from specjax import config

BOUND = 'toy_entry.evaluate.temperature = 1.0\ntoy_entry.evaluate.seed = 0\n'


def _whats(problems):
  return [str(problem) for problem in problems]


@pytest.mark.parametrize('argv, overrides, expected', [
    (['--seed=3', '--resume', 'run'], {'seed': 3, 'resume': True}, []),
    (['--seed', '3', '--temperature', '-1'], {'seed': 3, 'temperature': -1.0}, []),
    (['--sead=3', '--seed=4'], {'seed': 4}, ['did you mean --seed']),
    (['--sead', '3', '--seed=4', '--dtype=x', '--seed=5', '--rates'], {'seed': 4},
     ['--sead', 'dtype', 'given once', 'flag without a value']),
    (['--seed', 'x', 'run', '--sead', '--resume'], {'resume': True}, ['expected int', '--sead']),
    (['run', 'more'], {}, ["got 'more'"])])
def test_every_flag_that_cannot_be_read_is_named_and_the_others_are_read(argv, overrides, expected):
  given, problems = config.parse_all(argv, toy_entry.evaluate, max_operands=1)
  assert given.overrides == overrides and len(problems) == len(expected), _whats(problems)
  assert all(text in said for text, said in zip(expected, _whats(problems), strict=True)), _whats(problems)
  assert given.operands == (('run',) if 'run' in argv else ())


def test_gin_flags_are_kept():
  given, problems = config.parse_all(
      ['--gin_file', 'a.gin', '--gin.X', '3', '--what', 'ever', '--gin.Y=4'], toy_entry.evaluate)
  assert (given.files, given.bindings, len(problems)) == (('a.gin',), ('X = 3', 'Y = 4'), 1)


def _resolved(file, **options):
  return config.resolve_all(
      entry=toy_entry.evaluate, files=(file,), allow_modules=['toy_parts'],
      **{'placeholders': {'output_dir': ''}} | options)


def test_a_sound_configuration_is_what_resolve_says(write):
  file = write(BOUND)
  run, problems = _resolved(file, overrides={'seed': 7})
  same = config.resolve(entry=toy_entry.evaluate, files=(file,), allow_modules=['toy_parts'], overrides={'seed': 7})
  assert not problems and run.arguments() == same.arguments()


def test_every_statement_that_is_wrong_is_named_and_the_others_count(write):
  file = write(BOUND + 'UNUSED = 3\ntoy_entry.evaluate.sead = 1\ntoy_entry.evaluate.dtype = 4\n'
               'toy_entry.evaluate.tasks = %MISSING\ntoy_entry.evaluate.num_draft_tokens = 9\n')
  run, problems = _resolved(file, overrides={'resume': 3}, bindings=('evaluate.rates = "x"',))
  assert run.arguments()['num_draft_tokens'] == 9 and run.arguments()['resume'] is False
  told = _whats(problems)
  assert len(told) == 6 and all(any(text in said for said in told) for text in (
      'UNUSED has no effect', 'did you mean seed', 'dtype', 'MISSING', '--resume', '--gin.evaluate.rates')), told


def test_everything_that_is_missing_is_named_and_placeholders_let_the_rest_be_checked(write):
  run, problems = _resolved(write(''), placeholders={'seed': 0})
  assert run is None and [str(problem.what) for problem in problems] == [
      'evaluate.temperature is required', 'evaluate.seed is required']
  run, problems = _resolved(write(BOUND.splitlines()[0], name='other.gin'), placeholders={'seed': 5},
                            overrides={'seed': 'x'})
  assert run.arguments()['seed'] == 5 and len(problems) == 2


@pytest.mark.parametrize('text', ['toy_entry.evaluate.seed = = 1\n', 'include "nowhere.gin"\n'])
def test_a_file_that_cannot_be_read_leaves_nothing_to_check(write, text):
  run, problems = _resolved(write(text))
  assert run is None and len(problems) == 1
