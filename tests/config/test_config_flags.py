"""Flat flags: which parameter they mean, which value, and what is refused."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Optional

import pytest
import toy_entry

from specjax import config
from specjax.core import errors

ALIASES = {
    'speculative-num-steps': 'num_draft_tokens',
    'spec_draft_n_max': 'num_draft_tokens',
    'limit': 'max_samples',
    'speculative_config': {'num_speculative_tokens': 'num_draft_tokens', 'method': 'method'},
    'wet': 'dry_run',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Every kind of flag."""

  temperature: float
  num_draft_tokens: int = 4
  method: Literal['lossless', 'chow'] = 'lossless'
  tasks: tuple[str, ...] = ()
  mesh: tuple[int, int] = (1, 1)
  thresholds: Sequence[float] = (0.5,)
  names: list[str] = dataclasses.field(default_factory=list)
  max_samples: Optional[int] = None
  output_path: str | None = None
  width: int | Literal['auto'] = 'auto'
  resume: bool = False
  dry_run: bool = True
  note: str = ''
  rule: Any = None
  extra: dict[str, int] | None = None


def parse(*argv, settings=Settings, **options):
  return config.parse(argv, settings, aliases=ALIASES, **options)


def refusal(*argv, **options):
  with pytest.raises(errors.ConfigError) as caught:
    parse(*argv, **options)
  return caught.value


@pytest.mark.parametrize('argv, expected', [
    (['--temperature=1.0'], {'temperature': 1.0}),
    (['--temperature', '1'], {'temperature': 1.0}),
    (['--temperature', '-1.5e-3'], {'temperature': -1.5e-3}),
    (['--temperature=.5'], {'temperature': 0.5}),
    (['--num_draft_tokens=5'], {'num_draft_tokens': 5}),
    (['--num-draft-tokens', '5'], {'num_draft_tokens': 5}),
    (['--num-draft_tokens=-5'], {'num_draft_tokens': -5}),
    (['--speculative-num-steps=3'], {'num_draft_tokens': 3}),
    (['--spec-draft-n-max=3'], {'num_draft_tokens': 3}),
    (['--limit', '10'], {'max_samples': 10}),
    (['--limit=none'], {'max_samples': None}),
    (['--method=chow'], {'method': 'chow'}),
    (['--tasks=a,b'], {'tasks': ('a', 'b')}),
    (['--tasks', 'a'], {'tasks': ('a',)}),
    (['--tasks='], {'tasks': ()}),
    (['--mesh=2,4'], {'mesh': (2, 4)}),
    (['--thresholds=0,.5,1e0'], {'thresholds': (0.0, 0.5, 1.0)}),
    (['--names=a,b'], {'names': ['a', 'b']}),
    (['--output-path=none'], {'output_path': None}),
    (['--output-path=/tmp/a=b'], {'output_path': '/tmp/a=b'}),
    (['--width=auto'], {'width': 'auto'}),
    (['--width=5'], {'width': 5}),
    (['--resume'], {'resume': True}),
    (['--resume=false'], {'resume': False}),
    (['--no_resume'], {'resume': False}),
    (['--noresume'], {'resume': False}),
    (['--no-dry-run', '--resume'], {'dry_run': False, 'resume': True}),
    (['--no_wet'], {'dry_run': False}),
    (['--note=--resume'], {'note': '--resume'}),
    (['--note', ''], {'note': ''}),
    (['--rule=3'], {'rule': 3}),
    (['--rule=abc'], {'rule': 'abc'}),
    (['--speculative-config', '{"num_speculative_tokens": 4, "method": "chow"}'], {'num_draft_tokens': 4, 'method': 'chow'}),
    ([], {}),
])
def test_flag_means_a_parameter(argv, expected):
  given = parse(*argv)
  assert given.overrides == expected
  assert [type(value) for value in given.overrides.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize('argv', [
    ['--temperature=hot'], ['--temperature=nan'], ['--temperature=inf'], ['--temperature=1_0'], ['--temperature='],
    ['--num_draft_tokens=4.0'], ['--num_draft_tokens=five'], ['--num_draft_tokens=４'], ['--num_draft_tokens=' + '9' * 30],
    ['--num_draft_tokens=none'], ['--method=greedy'], ['--mesh=2'], ['--mesh=2,4,8'], ['--mesh=a,b'], ['--thresholds=1,x'],
    ['--resume=maybe'], ['--extra=3'], ['--width=wide'],
    ['--temperature'], ['--temperature', '--resume'], ['--temperature', '-x'], ['--gin_file'], ['--gin.K'],
    ['--temperature=1', '--temperature=1'], ['--limit=1', '--max_samples=1'], ['--resume', '--no_resume'],
    ['--speculative_config={"num_speculative_tokens": 1}', '--num_draft_tokens=1'],
    ['--speculative_config={"num_speculative_tokens": "4"}'], ['--speculative_config={"num_speculative_token": 4}'],
    ['--speculative_config={"method": "chow", "method": "chow"}'], ['--speculative_config=[1]'], ['--speculative_config={'],
    ['--speculative_config=' + '[' * 20_000], ['--speculative_config="' + 'a' * 100_000 + '"'],
    ['--Temperature=1'], ['--temp=1'], ['-t', '1'], ['--no_temperature'], ['--no_resume=true'], ['extra'], ['--'], ['---resume'],
])
def test_flag_that_means_nothing_is_refused(argv):
  error = refusal(*argv)
  assert error.where and len(str(error)) < 700


@pytest.mark.parametrize('flag, suggestion', [
    ('--temprature=1', '--temperature'), ('--num-draft-token=4', '--num_draft_tokens'), ('--resum', '--resume'),
    ('--speculative_num_step=3', '--speculative_num_steps'), ('--gin_fil=x', '--gin_file'), ('--allow_modul=x', '--allow_module'),
    ('temperature=1', '--temperature'),
])
def test_unknown_flag_has_a_suggestion(flag, suggestion):
  assert suggestion in refusal(flag).fix


def test_parameter_that_the_binary_gives_is_no_flag():
  assert 'unknown' in str(refusal('--rule=3', provided=['rule']))
  assert '--rule' not in config.usage(Settings, provided=['rule'])


def test_choice_has_a_suggestion():
  assert refusal('--method=losless').fix == 'did you mean lossless?'


def test_gin_flags():
  given = parse(
      '--gin_file=a.gin', '--gin-file', 'b.gin', '--gin.K=4', '--gin.rules.Chow.threshold', '0.5', '--gin.NAME="a=b"',
      '--gin_search_paths=x,y', '--gin_search_paths=z', '--allow_module=my.pkg', '--temperature=1')
  assert given.files == ('a.gin', 'b.gin')
  assert given.bindings == ('K = 4', 'rules.Chow.threshold = 0.5', 'NAME = "a=b"')
  assert given.search_paths == ('x', 'y', 'z') and given.allow_modules == ('my.pkg',)
  assert set(given.sources()) == {'overrides', 'files', 'bindings', 'search_paths', 'allow_modules'}


def test_operands_are_limited():
  assert parse('bench', '--temperature=1', max_operands=1).operands == ('bench',)
  assert refusal('bench', 'again', max_operands=1).got == 'again'


def test_help():
  assert parse('--help').help and parse('-h').help and not parse().help
  text = config.usage(Settings, aliases=ALIASES)
  assert '--temperature: float (required)' in text
  assert '--num_draft_tokens: int (default 4, also --speculative_num_steps --spec_draft_n_max)' in text
  assert len(text.splitlines()) == len(dataclasses.fields(Settings)) + 1


def test_entry_function_can_be_the_settings(write):
  path = write('K = 4\ntoy_entry.evaluate.temperature = 1.0\ntoy_entry.evaluate.num_draft_tokens = %K\n')
  argv = [f'--gin_file={path}', '--gin.K=6', '--seed=3', '--tasks=a,b', '--resume', '--allow_module=toy_parts']
  given = config.parse(argv, toy_entry.evaluate)
  result = config.resolve(entry=toy_entry.evaluate, **given.sources()).call()
  assert (result['num_draft_tokens'], result['seed'], result['tasks'], result['resume']) == (6, 3, ('a', 'b'), True)


def test_binary_ends_with_one_line_and_status_2(capsys, tmp_path):
  written = tmp_path / 'results'

  def main(argv):
    given = config.parse(argv, toy_entry.evaluate)
    config.resolve(entry=toy_entry.evaluate, **given.sources())
    written.touch()

  assert config.run_main(main, ['--temperature=1', '--sed=3']) == 2
  assert capsys.readouterr().err == 'ConfigError: command line: unknown flag: got \'--sed\'. did you mean --seed?\n'
  assert not written.exists()
  assert config.run_main(main, ['--temperature=1', '--seed=3']) == 0
  assert written.exists()
