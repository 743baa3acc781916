"""`validate`: all that a sweep would refuse, at once, and what it would cost; no weight is read and nothing compiles.

It asks the functions that `evaluate` asks, one by one, with shapes in place of parameters.
"""

import contextlib
import logging
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from specjax.core.errors import ConfigError, SpecjaxError
from specjax.decode import memory
from specjax.evaluation import evaluate
from specjax.evaluation import grid
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import output
from specjax.evaluation import runner as runner_lib
from specjax.evaluation import sweep
from specjax.evaluation import task_sources
from specjax.pairs import builtin
from specjax.pairs import loaded
from specjax.tasks import catalogue

_WHEN_THERE = ('resume', 'overwrite')
_MAX_TEXT = 60
_UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB')
# What stands for an argument that is wrong, so that the others can be checked.
_SOUND = {'max_new_tokens': 1, 'max_samples': 1, 'repeats': 1, 'dtype': 'float32', 'bonus': 'rule', 'detail': 'none',
          'vocabulary': 'same', 'chat_template': 'auto'}


class Findings(NamedTuple):
  """What is known about a configuration before it is run.

  Attributes:
    problems: why it would be refused.
    notes: what has no effect or will be missed; it runs all the same.
    facts: (name, text) of what it is and what it costs, as far as that is known.
  """

  problems: list[SpecjaxError]
  notes: list[str]
  facts: list[tuple[str, str]]


class _Checklist:
  """Problems as they are found, each once."""

  def __init__(self, problems):
    self.problems = list(problems)

  def attempt(self, function, *args, **options):
    """What the function returns; None where it raises, which is noted."""
    try:
      return function(*args, **options)
    except SpecjaxError as error:
      self._note(error)
      return None

  def passes(self, function, *args, **options):
    """Whether the function does not raise; what it raises is noted."""
    try:
      function(*args, **options)
    except SpecjaxError as error:
      self._note(error)
      return False
    return True

  def _note(self, error):
    if str(error) not in map(str, self.problems):
      self.problems.append(error)


def validate(arguments: Mapping[str, Any], *, problems: Iterable[SpecjaxError] = ()) -> Findings:
  """The `Findings` about a sweep.

  Args:
    arguments: all arguments of `evaluate.evaluate`, apart from those that the binary provides.
    problems: what has been found before.
  """
  checklist = _Checklist(problems)
  with _logged() as logged:
    facts, notes = _examine(arguments, checklist)
  return Findings(checklist.problems, list(dict.fromkeys([*logged, *notes])), facts)


@contextlib.contextmanager
def _logged():
  """A list with what is logged meanwhile: a run would say it, too."""
  messages, handler = [], logging.Handler()
  handler.emit = lambda record: messages.append(record.getMessage())
  loggers = [logging.getLogger(name) for name in ('specjax.eval', 'specjax.tasks')]
  levels = [(logger.propagate, logger.level) for logger in loggers]
  for logger in loggers:
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
  try:
    yield messages
  finally:
    for logger, (propagate, level) in zip(loggers, levels, strict=True):
      logger.removeHandler(handler)
      logger.propagate = propagate
      logger.setLevel(level)


def _examine(arguments, checklist):
  """(facts, notes) of a sweep; what is wrong goes to the checklist."""
  given = _sound_scalars(evaluate.arguments_of(arguments), checklist)
  tasks = {name: checklist.attempt(evaluate.load_task, name, given, data_dir=arguments.get('data_dir'))
           for name in dict.fromkeys(given['tasks'])}
  tasks = {name: task for name, task in tasks.items() if task is not None}
  axes = _sound_axes(given, checklist)
  thresholds = _sound_thresholds(given, axes['methods'], checklist)
  greedy = _sound_greedy(given, axes['methods'], checklist)
  blocks = None
  if all(axes.values()):
    blocks = checklist.attempt(grid.blocks, pairs=given['pairs'], tasks=given['tasks'], **axes, thresholds=thresholds,
                               greedy_methods=greedy)
  pairs = {name: _outline(name, given, checklist) for name in dict.fromkeys(given['pairs'])}
  facts = [('task', _task_fact(task, given)) for task in tasks.values()]
  costs = []
  for name, runner in pairs.items():
    if runner is not None:
      facts.append(('pair', _pair_fact(runner)))
      if blocks and tasks:
        costs += _pair_costs(name, runner, blocks, tasks, given, checklist)
  if blocks and len(tasks) == len(set(given['tasks'])):
    facts.append(('points', _points_fact(blocks, tasks, given)))
  facts += costs
  if arguments['output_path']:  # Empty where it is missing, which has been said.
    checklist.attempt(output.check_free, arguments['output_path'], **{name: arguments[name] for name in _WHEN_THERE})
  if not checklist.problems and arguments['resume']:
    facts.append(('output', checklist.attempt(_resumed, arguments['output_path'], given, tasks)))
  return [fact for fact in facts if fact[1] is not None], list(_notes(arguments, given, axes, tasks))


def _sound_scalars(given, checklist):
  """The arguments, with sound values in place of those that are wrong."""
  sound = dict(given)
  for check in evaluate.checks_of(given):
    name = getattr(check, 'args', (None,))[0]
    if not checklist.passes(check) and isinstance(name, str) and name in _SOUND:
      sound[name] = _SOUND[name]
  return sound


def _sound_axes(given, checklist):
  """The axes of the grid beside pairs and tasks, without the values that are wrong; an empty one says so."""
  axes = {name: [value for value in given[name] if checklist.passes(grid.check_integer, name, value)]
          for name in ('num_draft_tokens', 'seeds', 'batch_sizes')}
  axes['methods'] = [name for name in given['methods'] if checklist.passes(methods_lib.lookup, name)]
  axes['samplings'] = _sound_samplings(given, checklist)
  for name in evaluate.AXES:
    checklist.attempt(grid.check_not_empty, name, given[name])
  return axes


def _sound_thresholds(given, names, checklist):
  """Method name -> the values that it takes, of those that are given."""
  thresholds, found = given['thresholds'], {}
  checklist.attempt(grid.check_thresholds, thresholds)
  for method in map(methods_lib.lookup, names):
    named = thresholds.get(method.name, ()) if isinstance(thresholds, Mapping) else thresholds
    is_taken = lambda value, method=method: checklist.passes(grid.knob_values, method, {method.name: [value]})
    if method.knobs:
      found[method.name] = [value for value in named if is_taken(value)]
  return {name: values for name, values in found.items() if values}


def _sound_samplings(given, checklist):
  plain = {'temperatures': [1.0], 'top_p': [1.0], 'top_k': 0, 'min_p': 0.0}
  fits = lambda name, value: checklist.passes(grid.samplings, **plain | {name: value})
  sound = {name: [value for value in given[name] if fits(name, [value])] for name in ('temperatures', 'top_p')}
  sound |= {name: given[name] if fits(name, given[name]) else plain[name] for name in ('top_k', 'min_p')}
  return grid.samplings(**sound) if sound['temperatures'] and sound['top_p'] else []


def _sound_greedy(given, methods, checklist):
  """`greedy_methods` without what is no method of the run."""
  if given['greedy_methods'] is None:
    return None
  return [name for name in given['greedy_methods']
          if checklist.passes(grid.check_greedy, name, given['methods']) and name in methods]


def _outline(name, given, checklist):
  """The runner of a pair without its weights; both checkpoints are looked at, also where one is wrong."""
  if loaded.is_named(name):
    paths = checklist.attempt(loaded.paths_of, name) or ()
    sound = [checklist.passes(loaded.outline, path, dtype=jnp.dtype(given['dtype'])) for path in paths]
    if len(sound) < 2 or not all(sound):
      return None
  settings = {setting: given[setting] for setting in sweep.RUNNER_SETTINGS}
  settings |= {setting: given.get(setting, default) for setting, default in sweep.OPTIONAL_SETTINGS.items()}
  return checklist.attempt(runner_lib.load_runner, name, **settings, is_outline=True)


def _task_fact(task, given):
  first = ' '.join(task.examples[0].inputs.split())
  shown = first if len(first) <= _MAX_TEXT else first[:_MAX_TEXT - 3] + '...'
  left_out = f', {task.num_left_out} bad lines left out' if task.num_left_out else ''
  scored = 'not scored' if task.judge is None or given['force_length'] else f'scored by {task.score_name}'
  return (f'{task.name}: {len(task.examples)} prompts ({task.source or "generated"}{left_out}), {scored}; '
          f'the first: {shown!r}')


def _pair_fact(runner):
  known = runner.metadata()
  sizes = ', '.join(f'{role} {known["parameters"][role]:,} parameters' for role in ('target', 'drafter'))
  chat = f', asked in the turns of {known["chat_template"]}' if known['chat_template'] else ''
  return f'{runner.name}: {known["family"]}, {sizes}, vocabulary {known["vocab_size"]:,}, {known["dtype"]}{chat}'


def _points_fact(blocks, tasks, given):
  points = [point for block in blocks for point in block.points]
  rows = given['repeats'] * sum(len(tasks[point.task].examples) for point in points)
  tokens = rows * given['max_new_tokens']
  return f'{len(points):,} points in {len(blocks):,} blocks; {rows:,} rows, at most {tokens:,} tokens'


def _pair_costs(name, runner, blocks, tasks, given, checklist):
  """Facts about lengths, executables and memory of one pair."""
  points = [point for block in blocks for point in block.points if point.pair == name and point.task in tasks]
  asked = [checklist.attempt(sweep.ask, task.examples, runner) for task in tasks.values()]
  questions = [question for found in asked if found for question in found]
  if not points or not questions:
    return []
  longest = max(len(question.prompt) for question in questions)
  shape = checklist.attempt(runner.shape, questions, max_new_tokens=given['max_new_tokens'], points=points)
  prefills, decodes = runner.executables(points)
  lengths = f'longest prompt {longest} tokens, {given["max_new_tokens"]} new ones at most'
  facts = [('executables', f'{name}: {prefills} prefills and {decodes} decoding loops')]
  if shape is None:
    return [('capacity', f'{name}: {lengths}'), *facts]
  parts = [_memory(runner, point, shape) for point in sweep.largest(points)]
  most = max(parts, key=lambda found: sum(found.values()))
  free = memory.available_bytes()
  checklist.attempt(memory.check_fits, most, available=free, where=name)
  listed = ', '.join(f'{part} {_bytes(size)}' for part, size in most.items())
  known = 'unknown' if free is None else _bytes(free)
  return [('capacity', f'{name}: {lengths}, caches of {shape.capacity} slots'), *facts,
          ('memory', f'{name}: {_bytes(sum(most.values()))} of {known} free ({listed})')]


def _memory(runner, point, shape):
  return {'parameters': sum(runner.metadata()['parameter_bytes'].values()), **runner.memory_parts(point, shape)}


def _bytes(size):
  power = min(len(_UNITS) - 1, int(math.log2(max(1, size)) // 10))
  return f'{size / 1024**power:.1f} {_UNITS[power]}' if power else f'{size} B'


def _resumed(directory, given, tasks):
  """What of the run is there already.

  Raises:
    ConfigError: it is another run's.
  """
  run, config = output.read_run(directory), evaluate.configuration(given, tasks)
  if not run:
    return 'nothing is there to go on with'
  output.check_same(directory, run, found=run['run_id'], name=evaluate.name_of(config, tasks), config=config)
  rows = pathlib.Path(directory) / output.ROWS
  count = sum(1 for _ in open(rows, 'rb')) if rows.exists() else 0
  return f'{count:,} rows are there'


def _notes(arguments, given, axes, tasks):
  """What the user may not expect: options without effect, and what will be missing."""
  chosen = [methods_lib.lookup(name) for name in axes['methods']]
  temperatures = [sampling.temperature for sampling in axes['samplings']]
  yield from _idle_methods(given, chosen, temperatures)
  yield from _idle_data(arguments, given)
  for name in evaluate.AXES:
    repeated = sorted({str(value) for value in given[name] if list(given[name]).count(value) > 1})
    if repeated:
      yield f'{name}: {", ".join(repeated)} is named twice and run once'
  if chosen and methods_lib.BASELINE not in axes['methods']:
    yield f'methods: without {methods_lib.BASELINE} there is no speed-up and no difference of quality'
  if given['force_length']:
    yield 'force_length: nothing is scored'
  for task in tasks.values():
    if len(task.examples) < given['max_samples']:
      yield f'tasks: {task.name} has {len(task.examples)} prompts, fewer than max_samples {given["max_samples"]}'
    if task.judge is None and not given['force_length']:
      yield f'tasks: {task.name} has no score, so only speeds are compared'


def _idle_methods(given, chosen, temperatures):
  """Options of methods and sampling without effect."""
  if isinstance(given['thresholds'], Mapping):
    for name in sorted(set(given['thresholds']) & set(methods_lib.METHODS) - set(given['methods'])):
      yield f'thresholds: {name} is not among methods'
  elif given['thresholds'] and not any(method.knobs for method in chosen):
    yield 'thresholds: no method here has a knob'
  if chosen and not any(method.drafts for method in chosen):
    for name, default in (('num_draft_tokens', given['num_draft_tokens'][:1]), ('bonus', 'rule'), ('detail', 'none')):
      if given[name] != default:
        yield f'{name}: no method here drafts'
  if temperatures and 0 not in temperatures and given['greedy_methods'] is not None:
    yield 'greedy_methods: no temperature is 0'


def _idle_data(arguments, given):
  """Options of tasks and pairs without effect."""
  prefixes = {name.partition(':')[0] for name in given['tasks'] if ':' in name}
  named = [name for name in given['tasks'] if name in catalogue.RECORDS]
  if not named:
    if arguments.get('data_dir') is not None:
      yield 'data_dir: no task here is read from it'
    if given['num_fewshot']:
      yield 'num_fewshot: no task here has worked examples'
  elif isinstance(given['num_fewshot'], Mapping):
    for name in sorted(set(given['num_fewshot']) - set(named)):
      yield f'num_fewshot: {name} is not among the tasks that have worked examples'
  defaults = task_sources.DataSettings._field_defaults
  if not prefixes & {'jsonl', 'tsv'}:
    for name in ('input_key', 'target_key'):
      if given[name] != defaults[name]:
        yield f'{name}: no task here is a jsonl: or tsv: file'
  if given['allow_code_execution'] and not any(catalogue.RECORDS[name].family == 'program' for name in named):
    yield 'allow_code_execution: no task here is about programs'
  if given['vocabulary'] != 'same' and all(name in builtin.PAIRS for name in given['pairs']):
    yield 'vocabulary: built-in pairs have one vocabulary'


def text(findings: Findings) -> str:
  """What the terminal is told."""
  lines = [f'{name + ":":13}{said}' for name, said in findings.facts]
  lines += [f'{"note:":13}{note}' for note in findings.notes]
  if findings.problems:
    lines.append('')
    lines += [f'{number}. {type(problem).__name__}: {" ".join(str(problem).split())}'
              for number, problem in enumerate(findings.problems, 1)]
  count = len(findings.problems)
  lines.append('\nnothing is wrong' if not count else f'\n{count} {"problem" if count == 1 else "problems"}')
  return '\n'.join(lines)
