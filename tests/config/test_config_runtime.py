"""What a gin file means, and what is refused of it. gin itself is the reference for the meaning."""

import functools
import importlib
import subprocess
import sys

import gin
import pytest
import toy_entry
import toy_parts

from specjax import config
from specjax.config import statements
from specjax.core import errors

RUN = """
K = 4
TEMPERATURE = 0.5
NAME = 'large'
toy_entry.evaluate:
  temperature = %TEMPERATURE
  seed = 3
  num_draft_tokens = %K
  rule = @toy_parts.Rule()
  drafter = @small/toy_parts.Drafter()
  tasks = ('a', 'b')
toy_parts.Rule.threshold = 0.5
toy_parts.Drafter.num_draft_tokens = %K
toy_parts.Drafter.model = @toy_parts.model()
toy_parts.model.name = %NAME
small/toy_parts.model.layers = 7
"""
REQUIRED = 'toy_entry.evaluate.temperature = 1.0\ntoy_entry.evaluate.seed = 0\n'


HEAD = 'from __gin__ import dynamic_registration\nimport toy_parts\nimport toy_entry\n'


def resolve(*files, bindings=(), entry=toy_entry.evaluate, **options):
  return config.resolve(entry=entry, files=files, bindings=bindings, allow_modules=['toy_parts'], **options)


def refusal(*files, **options):
  """The error of a configuration that must not pass."""
  with pytest.raises(errors.ConfigError) as caught:
    resolve(*files, **options)
  return caught.value


def by_gin(text):
  """What plain gin calls the entry with."""
  gin.clear_config()
  try:
    gin.parse_config(text)
    return gin.get_configurable(toy_entry.evaluate)()
  finally:
    gin.clear_config()


def test_file_calls_the_entry_with_what_it_binds(write):
  result = resolve(write(RUN)).call()
  assert result == dict(
      temperature=0.5, seed=3, num_draft_tokens=4, rule=toy_parts.Rule(0.5),
      drafter=toy_parts.Drafter(('model', 'large', 7, None), 4), tasks=('a', 'b'), dtype='float32', resume=False,
      output_dir=None, rates=[], options=None, untyped=1.5)


@pytest.mark.parametrize('text', [
    RUN,
    REQUIRED + 'toy_entry.evaluate.drafter = [@a/toy_parts.model(), {"x": @a/b/toy_parts.model()}]\n'
    'toy_parts.model.name = "n"\na/toy_parts.model.layers = 3\na/b/toy_parts.model.scale = 2.0\n',
    REQUIRED + 'M = @toy_parts.model()\ntoy_parts.model.name = "n"\nM/toy_parts.model.layers = 5\n'
    'toy_entry.evaluate.rule = @x/toy_parts.Drafter()\ntoy_parts.Drafter.model = %M\n'
    'toy_parts.Drafter.num_draft_tokens = 1\n',
    REQUIRED + 'toy_entry.evaluate.tasks = (\n    "one"\n    " two",  # a comment\n    "three",\n)\n'
    'toy_entry.evaluate.rates = [-1.5, 2e3, 7]\ntoy_entry.evaluate.options = {"a": 1, "b": -2}\n',
    REQUIRED + 'A = (%B, %B)\nB = [1, 2]\ntoy_entry.evaluate.drafter = {"all": %A}\n',
])
def test_gin_itself_gives_the_same_call(write, text):
  path = write(text)
  ours = resolve(path)
  with open(path, encoding='utf-8') as file:
    theirs = by_gin(file.read())
  assert ours.call() == theirs
  assert by_gin(ours.operative()) == theirs


def test_operative_text_reads_back_to_the_same_run(write):
  first = resolve(write(RUN), bindings=['K=6'], overrides={'seed': 8, 'tasks': tuple('task%d' % i for i in range(30))})
  again = resolve(write(first.operative(), 'again.gin', head=''))
  assert again.operative() == first.operative()
  assert again.call() == first.call() and again.arguments() == first.arguments()
  assert first.call()['num_draft_tokens'] == 6


def test_operative_text_holds_defaults_and_leaves_out_what_is_not_reached_or_provided(write):
  run = config.resolve(
      entry=toy_entry.evaluate, files=[write(REQUIRED)], allow_modules=['toy_parts'], provided=['output_dir'])
  text = run.operative()
  assert "toy_entry.evaluate.dtype = 'float32'" in text and 'toy_entry.evaluate.seed = 0' in text
  assert 'toy_parts' not in text and 'output_dir' not in text
  assert run.call(output_dir='x')['output_dir'] == 'x'


def test_provided_parameters_cannot_be_bound(write):
  path = write(REQUIRED + 'toy_entry.evaluate.output_dir = "x"')
  error = refusal(path, provided=['output_dir'])
  assert error.where == f'{path}:6'


def test_call_takes_exactly_what_was_provided(write):
  with pytest.raises(TypeError):
    resolve(write(REQUIRED)).call(seed=4)


def test_reference_without_parentheses_is_handed_over_uncalled(write):
  plain = resolve(write(REQUIRED + 'toy_entry.evaluate.rule = @toy_parts.Rule')).call()['rule']
  assert plain is toy_parts.Rule
  bound = resolve(write(
      REQUIRED + 'toy_entry.evaluate.rule = @toy_parts.Rule\ntoy_parts.Rule.kind = "hard"')).call()['rule']
  assert isinstance(bound, functools.partial) and bound(threshold=0.25) == toy_parts.Rule(0.25, 'hard')


def test_runs_do_not_share_state(write):
  first = resolve(write(REQUIRED + 'toy_entry.evaluate.rates = [1.0]'))
  second = resolve(write(REQUIRED, 'other.gin'), bindings=['evaluate.rates=[2.0]'])
  first.call()['rates'].append(9.0)
  assert first.call()['rates'] == [1.0] and second.call()['rates'] == [2.0]


def test_class_as_entry_is_constructed(write):
  path = write('toy_entry.Settings.temperature = 1\ntoy_entry.Settings.seed = 2\n')
  assert resolve(path, entry=toy_entry.Settings).call() == toy_entry.Settings(temperature=1, seed=2)
  with pytest.raises(errors.ConfigError, match='temperature is negative'):
    resolve(path, entry=toy_entry.Settings, bindings=['Settings.temperature=-1']).call()


def test_no_file_is_needed():
  assert resolve(overrides={'temperature': 1.0, 'seed': 5}).call()['seed'] == 5


# Names.


@pytest.mark.parametrize('statement, suggestion', [
    ('toy_entry.evaluate.sed = 1', 'seed'),
    ('toy_entry.evaluate.Temperature = 1.0', 'temperature'),
    ('toy_entry.evaluat.seed = 1', 'toy_entry.evaluate'),
    ('toy_entries.evaluate.seed = 1', 'toy_entry.evaluate'),
    ('toy_parts.rule.threshold = 0.5', 'toy_parts.Rule'),
    ('toy_entry.evaluate.rule = @toy_parts.Rul()', 'toy_parts.Rule'),
    ('toy_entry.evaluate.rule = @toy_part.Lossless()', 'toy_parts.Lossless'),
    ('toy_parts.Rule.treshold = 0.5', 'threshold'),
    ('DEPTH = 3\ntoy_entry.evaluate.num_draft_tokens = %DEPHT', 'DEPTH'),
    ('DEPTH = 3\nDEPT = 4\ntoy_entry.evaluate.num_draft_tokens = %DEPTH', 'DEPTH'),
    ('toy_entry.evaluate.rule = @main/toy_parts.Rule()\ntoy_parts.Rule.threshold = 0.5\nmian/toy_parts.Rule.kind = "hard"', 'main'),
])
def test_misspelt_name_is_refused_with_a_suggestion(write, statement, suggestion):
  path = write(REQUIRED + statement)
  error = refusal(path)
  assert error.fix == f'did you mean {suggestion}?', error
  assert error.where.startswith(f'{path}:')
  assert int(error.where.rpartition(':')[2]) >= 6


@pytest.mark.parametrize('module, suggestion', [('toy_part', 'toy_parts'), ('specjax.rule', 'specjax.rules')])
def test_misspelt_module_is_refused_with_a_suggestion(write, module, suggestion):
  assert refusal(write(REQUIRED, head=f'{HEAD}import {module}\n')).fix == f'did you mean {suggestion}?'


@pytest.mark.parametrize('text', [
    'toy_parts.loose.anything = 1',  # Nothing of **kwargs has a name to check.
    'toy_entry.evaluate.rule = @toy_parts._private()',
    'toy_entry.evaluate.rule = @toy_entry.delete_everything()',
    'toy_entry.evaluate.rule = @evaluate()',
    'evaluate.rates = []',  # The bare name is for flags: plain gin could not read the file.
    'toy_parts.threshold = 4',
    'toy_entry.evaluate.rule = @toy_parts.DEFAULT',
    'gin.macro.value = 4',
    'K/gin.macro.value = 4',
    'toy_entry.evaluate.rule = @gin.singleton()',
])
def test_name_that_is_not_a_constructor_is_refused(write, text):
  assert refusal(write(REQUIRED + text)).where.endswith(':6')


# Values.


@pytest.mark.parametrize('parameter, value', [
    ('seed', '"five"'), ('seed', '1.0'), ('seed', 'True'), ('seed', 'None'), ('seed', '[1]'), ('seed', '@toy_parts.Lossless()'),
    ('seed', '@toy_parts.model'), ('temperature', '"1.0"'), ('temperature', 'False'), ('resume', '1'), ('resume', '"yes"'),
    ('tasks', '"a"'), ('tasks', '["a"]'), ('tasks', '("a", 1)'), ('dtype', '"float16"'), ('output_dir', '3'),
    ('rates', '("a",)'), ('rates', '["a"]'), ('options', '{"a": "b"}'), ('options', '[1]'), ('untyped', '"x"'),
])
def test_value_of_another_type_is_refused(write, parameter, value):
  other = REQUIRED.replace(f'toy_entry.evaluate.{parameter}', '#')
  path = write(other + f'toy_entry.evaluate.{parameter} = {value}')
  error = refusal(path)
  assert error.where == f'{path}:6' and error.what == f'evaluate.{parameter}' and error.expected


def test_value_of_another_type_behind_a_macro_names_both_lines(write):
  path = write(REQUIRED + 'K = "five"\nDEPTH = %K\ntoy_entry.evaluate.num_draft_tokens = %DEPTH')
  error = refusal(path)
  assert error.where == f'{path}:6 (%DEPTH at {path}:8)' and error.got == 'five' and error.expected == 'int'


def test_knob_of_a_rule_is_a_number(write):
  path = write(REQUIRED + 'toy_entry.evaluate.rule = @toy_parts.Rule()\ntoy_parts.Rule.threshold = "high"')
  assert refusal(path).expected == 'float'


def test_overridden_value_is_checked_too(write):
  path = write(REQUIRED + 'toy_entry.evaluate.rates = "x"')
  assert refusal(path, bindings=['evaluate.rates=[1.0]']).where == f'{path}:6'


def test_value_out_of_range_is_refused_at_its_binding(write):
  path = write(REQUIRED + 'toy_entry.evaluate.rule = @toy_parts.Rule()\ntoy_parts.Rule.threshold = 7.0')
  with pytest.raises(errors.ConfigError) as caught:
    resolve(path).call()
  assert caught.value.where == f'{path}:7' and caught.value.got == 7.0 and caught.value.expected == 'a number in [0, 1]'


def test_constructor_that_fails_is_named_with_its_line(write):
  path = write(REQUIRED + 'toy_entry.evaluate.rule = @toy_parts.fails()')
  with pytest.raises(errors.ConfigError, match='fails: 1 will not do') as caught:
    resolve(path).arguments()
  assert caught.value.where == f'{path}:6'


@pytest.mark.parametrize('value', ['1e999', '-1e999', '1j', 'b"x"', '{(1, 2): 3}', '{@toy_parts.model: 3}', '0x' + 'f' * 40])
def test_value_no_parameter_can_mean_is_refused(write, value):
  assert refusal(write(REQUIRED + f'toy_entry.evaluate.drafter = {value}')).where.endswith(':6')


def test_required_macro_must_be_given(write):
  path = write('SEED = %gin.REQUIRED\ntoy_entry.evaluate.seed = %SEED\ntoy_entry.evaluate.temperature = 1.0')
  error = refusal(path)
  assert 'SEED is required' in str(error) and '--gin.SEED=' in error.fix and error.where == f'{path}:4'
  assert resolve(path, bindings=['SEED=5']).call()['seed'] == 5


def test_missing_parameter_is_named(write):
  assert 'evaluate.seed is required' in str(refusal(write('toy_entry.evaluate.temperature = 1.0')))
  path = write(REQUIRED + 'toy_entry.evaluate.drafter = @toy_parts.Drafter()\ntoy_parts.Drafter.model = 1')
  error = refusal(path)
  assert 'Drafter.num_draft_tokens is required' in str(error) and error.where == f'{path}:6'


def test_error_of_another_kind_stays_what_it_is(write):
  with pytest.raises(errors.VocabError):
    resolve(write(REQUIRED + 'toy_entry.evaluate.rule = @toy_parts.mismatched()')).call()


def test_parameter_without_its_constructor_is_explained(write):
  error = refusal(write(REQUIRED + 'seed = 3\ntoy_entry.evaluate.num_draft_tokens = 4'))
  assert error.got == 'seed' and 'evaluate.seed' in error.expected


# Twice, never, in circles.


@pytest.mark.parametrize('text', [
    'toy_entry.evaluate.seed = 1\ntoy_entry.evaluate.seed = 2',
    'toy_entry.evaluate:\n  seed = 1\n  seed = 1',
    'K = 1\nK = 2\ntoy_entry.evaluate.seed = %K',
    'toy_entry.evaluate.rule = @s/toy_parts.model()\ns/toy_parts.model.name = "a"\ns/toy_parts.model.name = "b"',
])
def test_binding_twice_in_a_file_is_refused(write, text):
  assert 'twice' in str(refusal(write('toy_entry.evaluate.temperature = 1.0\n' + text)))


def test_name_for_two_modules_in_a_file_is_refused(write):
  head = HEAD + 'import toy_parts as part\nimport toy_entry as part\n'
  assert refusal(write(REQUIRED, head=head)).expected == 'a name of its own'


def test_binding_twice_under_two_names_is_refused(write):
  head = HEAD + 'import toy_entry as again\n'
  assert 'twice' in str(refusal(write(REQUIRED + 'again.evaluate.seed = 2', head=head)))


@pytest.mark.parametrize('text', [
    'K = 4',
    'A = %B\nB = 4',
    'toy_parts.Rule.threshold = 0.5',
    's/toy_entry.evaluate.dtype = "bfloat16"',
    'K = 4\ntoy_parts.Rule.threshold = %K',
    'toy_entry.evaluate.rule = @s/toy_parts.model()\ntoy_parts.model.name = "a"\ns/toy_parts.model.name = "b"',
    'toy_entry.evaluate.rule = @s/toy_parts.Lossless()\nt/toy_parts.Rule.threshold = 0.5',
])
def test_binding_without_effect_is_refused(write, text):
  error = refusal(write(REQUIRED + text))
  assert 'no effect' in str(error) and error.fix


@pytest.mark.parametrize('text', [
    'A = %A\ntoy_entry.evaluate.drafter = %A',
    'A = [%B]\nB = (%A,)\ntoy_entry.evaluate.drafter = %A',
    'toy_entry.evaluate.drafter = @toy_parts.Drafter()\ntoy_parts.Drafter.model = @toy_parts.Drafter()\n'
    'toy_parts.Drafter.num_draft_tokens = 3',
    'M = @toy_parts.Drafter()\ntoy_entry.evaluate.drafter = %M\ntoy_parts.Drafter.model = [%M]\n'
    'toy_parts.Drafter.num_draft_tokens = 3',
])
def test_circle_is_refused(write, text):
  error = refusal(write(REQUIRED + text))
  assert 'circle' in str(error) or 'define each other' in str(error)


@pytest.mark.parametrize('text', [
    ''.join(f'A{i} = [{", ".join([f"%A{i + 1}"] * 10)}]\n' for i in range(9)) + 'A9 = 1\ntoy_entry.evaluate.drafter = %A0',
    ''.join(f's{i}/toy_parts.Drafter.model = [{", ".join([f"@s{i + 1}/toy_parts.Drafter()"] * 10)}]\n' for i in range(9))
    + 's9/toy_parts.Drafter.model = 1\ntoy_parts.Drafter.num_draft_tokens = 3\ntoy_entry.evaluate.drafter = @s0/toy_parts.Drafter()',
    ''.join(f's{i}/toy_parts.Drafter.model = @s{i + 1}/toy_parts.Drafter()\n' for i in range(200))
    + 's200/toy_parts.Drafter.model = 1\ntoy_parts.Drafter.num_draft_tokens = 3\ntoy_entry.evaluate.drafter = @s0/toy_parts.Drafter()',
    ''.join(f'A{i} = %A{i + 1}\n' for i in range(200)) + 'A200 = 1\ntoy_entry.evaluate.drafter = %A0',
    'toy_entry.evaluate.drafter = ' + '[' * 5000 + ']' * 5000,
    'toy_entry.evaluate.drafter = ' + '[' * 60 + ']' * 60,
    'toy_entry.evaluate.drafter = ' + '"a" ' * 5000,
    'toy_entry.evaluate.drafter = [' + '1,' * 200_000 + ']',
    'toy_entry.evaluate.drafter = "' + 'a' * (1 << 20) + '"',
    ''.join(f'A{i} = 1\n' for i in range(11_000)),
], ids=['macros', 'references', 'long chain', 'chain of macros', 'nesting', 'just too deep', 'strings', 'tokens', 'bytes', 'statements'])
def test_expansion_without_bound_is_refused(write, text):
  what = refusal(write(REQUIRED + text)).what
  assert any(word in what for word in ('size', 'deep', 'define each other', 'nesting', 'length')), what


def test_fifty_levels_are_allowed(write):
  value = '[' * 50 + ']' * 50
  assert resolve(write(REQUIRED + f'toy_entry.evaluate.drafter = {value}')).call()['seed'] == 0


# Files over files.


def test_file_overrides_what_it_includes(write):
  write(RUN, 'base/run.gin')
  path = write("include 'base/run.gin'\nK = 7\ntoy_parts.model.name = 'other'", 'top.gin')
  result = resolve(path).call()
  assert result['num_draft_tokens'] == 7 and result['drafter'].model[1] == 'other' and result['seed'] == 3


def test_later_file_overrides_earlier_one(write):
  first, second = write(RUN, 'a.gin'), write('toy_entry.evaluate.seed = 11', 'b.gin')
  assert resolve(first, second).call()['seed'] == 11
  assert resolve(second, first).call()['seed'] == 3
  assert refusal(first, first).expected == 'given once'


def test_files_that_do_not_include_each_other_may_not_disagree(write):
  write('NAME = "a"\n', 'one.gin')
  write('NAME = "b"\n', 'two.gin')
  write(REQUIRED + 'toy_entry.evaluate.output_dir = %NAME', 'rest.gin')
  top = write("include 'one.gin'\ninclude 'two.gin'\ninclude 'rest.gin'\n", 'top.gin')
  assert 'two files' in str(refusal(top))


def test_file_included_twice_counts_once(write):
  write(REQUIRED, 'base.gin')
  write("include 'base.gin'\ntoy_entry.evaluate.rates = [1.0]", 'left.gin')
  write("include 'base.gin'\ntoy_entry.evaluate.tasks = ('x',)", 'right.gin')
  top = write("include 'left.gin'\ninclude 'right.gin'\ntoy_entry.evaluate.seed = 4", 'top.gin')
  assert resolve(top).call()['seed'] == 4


def test_fragment_may_bind_for_a_constructor_that_another_file_chooses(write):
  write('toy_parts.Rule.threshold = 0.5', 'rule.gin')
  top = write("include 'rule.gin'\n" + REQUIRED + 'toy_entry.evaluate.rule = @toy_parts.Rule()', 'top.gin')
  assert resolve(top).call()['rule'] == toy_parts.Rule(0.5)
  # The command line takes the rule out again: the files are still consistent, so this is no error.
  assert resolve(top, bindings=['evaluate.rule=@toy_parts.Lossless()']).call()['rule'] == toy_parts.Lossless()


def test_command_line_binding_must_count_in_what_is_run(write):
  path = write(RUN)
  assert resolve(path, bindings=['toy_parts.Rule.threshold=0.75']).call()['rule'] == toy_parts.Rule(0.75)
  error = refusal(path, bindings=['toy_parts.Rule.threshold=0.75', 'evaluate.rule=@toy_parts.Lossless()'])
  assert error.where == '--gin.toy_parts.Rule.threshold' and 'no effect' in str(error)
  error = refusal(path, bindings=['K=3'], overrides={'num_draft_tokens': 5, 'drafter': None})
  assert error.where == '--gin.K' and 'no effect' in str(error)


def test_flag_and_binding_for_the_same_parameter_are_refused(write):
  assert 'twice' in str(refusal(write(RUN), bindings=['evaluate.seed=1'], overrides={'seed': 2}))
  assert 'twice' in str(refusal(write(RUN), bindings=['K=1', 'K=2']))


def test_unknown_override_has_a_suggestion(write):
  error = refusal(write(RUN), overrides={'num_draft_token': 2})
  assert error.where == '--num_draft_token' and error.fix == 'did you mean num_draft_tokens?'


@pytest.mark.parametrize('value', [float('inf'), 1 << 70, b'x', object(), {(1, 2): 3}])
def test_override_is_a_literal_too(value):
  assert refusal(overrides={'temperature': 1.0, 'seed': 0, 'drafter': value}).where == '--drafter'


@pytest.mark.parametrize('binding', [
    '', 'K', 'K=', '=4', 'K=4\nimport os', 'import os', "include 'x.gin'", 'K=4 5', 'x=1', 'K=name', 'K=[1', 'a b=3', 'K==3'])
def test_binding_is_one_assignment(write, binding):
  assert str(refusal(write(RUN), bindings=[binding]).where).startswith('--gin.')


def test_unquoted_string_on_the_command_line_is_explained(write):
  assert 'quotes' in refusal(write(RUN), bindings=['NAME=large']).fix


def test_name_that_two_files_understand_differently_is_refused_on_the_command_line(write):
  first = write(REQUIRED, 'a.gin', head=HEAD + 'import toy_parts as part\n')
  assert resolve(first, bindings=['evaluate.rule=@part.Lossless()']).call()['rule'] == toy_parts.Lossless()
  second = write('', 'b.gin', head=HEAD + 'import toy_entry as part\n')
  assert refusal(first, second, bindings=['evaluate.rule=@part.Lossless()']).got == 'part.Lossless'


def test_library_constructors_need_no_import_on_the_command_line(write):
  run = config.resolve(
      entry=toy_entry.evaluate, bindings=['evaluate.rule=@rules.Lossless()'], overrides={'temperature': 1.0, 'seed': 0})
  assert type(run.call()['rule']).__name__ == 'Lossless'
  assert 'from specjax import rules' in run.operative()


# Files.


def test_missing_file_has_a_suggestion(write):
  path = write(RUN, 'runs/evaluation.gin')
  error = refusal(path.replace('evaluation', 'evalution'))
  assert error.where == '--gin_file' and 'evaluation.gin' in error.fix


def test_search_path_finds_files_and_includes(write, tmp_path):
  write(RUN, 'lib/parts/run.gin')
  write("include 'parts/run.gin'\n", 'lib/top.gin')
  assert resolve('top.gin', search_paths=[str(tmp_path / 'lib')]).call()['seed'] == 3
  assert resolve('top.gin', config_root=str(tmp_path / 'lib')).call()['seed'] == 3
  assert refusal('top.gin', search_paths=[str(tmp_path / 'missing')]).where == '--gin_search_paths'


@pytest.mark.parametrize('content', [
    b'\xff\xfeK\x00', b'K = 4\n\xc3\x28', b'K = 4\x00', b'K = 4\rimport os', b'\x1b[31mK = 4', b'\xef\xbb\xbfK = 4',
    'K = "\u202e"'.encode(), b'K = 4 $', b'K = (1,\n', b'K = """x', b'if True:\n  K = 4\n', b'K = 4\n   L = 5\n  M = 3\n',
    b'K = f"{1}"', b'K = 1 + 1', b'K = [x for x in ()]', b'K = open("x")', b'K: 4', b'@f = 3', b'%K = 3', b'K = %', b'K = @',
    b'K = @f(', b'K = @f(1)', b'K = -', b'K = --1', b'K = -"a"', b'K = {[1]: 2}', b'K = {1: 2', b'include', b'include 3',
    b'import', b'from x', b'from x import', b'import a as', b'import a.', b'a..b = 3', b'a/b/c = 3', b'a/ b.c = 3', b'/a.b = 3',
    b'K = 9' + b'9' * 5000, b'lambda = 3', b'K = True False', b'K = \\', b'a:\n', b'a:\n  b\n', b'a:\nb = 3',
])
def test_text_that_is_not_gin_is_refused_with_its_line(write, tmp_path, content):
  path = tmp_path / 'bad.gin'
  path.write_bytes(b'from __gin__ import dynamic_registration\n' + content)
  error = refusal(str(path))
  assert error.where.startswith(str(path)), error


def test_binding_needs_dynamic_registration(write):
  assert 'dynamic_registration' in refusal(write(REQUIRED, head='import toy_entry\n')).fix


@pytest.mark.parametrize('late', ["include 'base.gin'", 'import toy_parts'])
def test_import_or_include_after_a_binding_is_refused(write, late):
  write(REQUIRED, 'base.gin')
  assert 'before' in str(refusal(write(f'K = 4\n{late}\n', 'top.gin')))


def test_statement_is_not_lost_at_an_unexpected_end():
  with pytest.raises(errors.ConfigError):
    statements.parse('K = 4\nL = \\', 'x.gin')


def test_errors_of_the_entry_are_not_touched(write):
  def entry(*, seed: int):
    raise RuntimeError(seed)

  with pytest.raises(RuntimeError):
    config.resolve(entry=entry, overrides={'seed': 4}).call()


def test_config_imports_neither_jax_nor_tensorflow():
  code = 'import sys; import specjax.config; print([m for m in ("jax", "tensorflow", "flax") if m in sys.modules])'
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert result.stdout.strip() == '[]'


def test_entry_may_share_its_name_with_its_module(tmp_path, monkeypatch):
  package = tmp_path / 'toy_package'
  package.mkdir()
  (package / '__init__.py').write_text('from toy_package.evaluate import evaluate\n')
  (package / 'evaluate.py').write_text('def evaluate(*, seed: int, rate: float = 1.0):\n  return seed, rate\n')
  monkeypatch.syspath_prepend(str(tmp_path))
  entry = importlib.import_module('toy_package.evaluate').evaluate
  texts = [
      'from toy_package import evaluate\nevaluate.evaluate.seed = 3',
      'import toy_package\ntoy_package.evaluate.seed = 3',
      'import toy_package.evaluate\ntoy_package.evaluate.evaluate.seed = 3',
  ]
  for number, text in enumerate(texts):
    path = tmp_path / f'{number}.gin'
    path.write_text(f'from __gin__ import dynamic_registration\n{text}\n')
    run = config.resolve(entry=entry, files=[str(path)], bindings=['evaluate.rate=2.0'])
    assert run.call() == (3, 2.0)
    assert 'from toy_package import evaluate' in run.operative() and 'evaluate.evaluate.rate = 2.0' in run.operative()
  assert config.resolve(entry=entry, bindings=['evaluate.evaluate.seed=4']).call() == (4, 1.0)
