"""`evaluate`: runs pairs x tasks x methods x knobs x sampling x seeds, timed and scored, into rows.jsonl."""

import contextlib
import functools
from collections.abc import Mapping, Sequence

from specjax.core import checks
from specjax.core.errors import ConfigError
from specjax.decode import run
from specjax.evaluation import grid
from specjax.evaluation import interrupts
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import output
from specjax.evaluation import parts
from specjax.evaluation import progress as progress_lib
from specjax.evaluation import provenance
from specjax.evaluation import rows as rows_lib
from specjax.evaluation import runner as runner_lib
from specjax.evaluation import sweep as sweep_lib
from specjax.evaluation import task_sources
from specjax.tasks import framing

_CHOICES = {
    'dtype': ('float32', 'bfloat16'), 'bonus': ('rule', 'target'), 'detail': ('none', 'summary'),
    'vocabulary': ('same', 'intersection'), 'chat_template': framing.CHOICES}
AXES = ('pairs', 'tasks', 'methods', 'num_draft_tokens', 'temperatures', 'top_p', 'seeds', 'batch_sizes')
_IDLE = task_sources.DataSettings._field_defaults | {'vocabulary': 'same', 'chat_template': 'auto', **parts.ARGUMENTS}

# Arguments of `evaluate` that do not change what the rows say.
_NOT_CONFIGURATION = ('output_path', 'data_dir', 'resume', 'overwrite', 'profile', 'operative_config', 'compilation_cache',
                      'load_runner')


def evaluate(
    *, pairs: Sequence[str], tasks: Sequence[str], methods: Sequence[str], greedy_methods: Sequence[str] | None,
    thresholds: Mapping[str, Sequence[float | Sequence[float]]] | Sequence[float], num_draft_tokens: Sequence[int],
    temperatures: Sequence[float], top_p: Sequence[float], top_k: int, min_p: float, seeds: Sequence[int],
    batch_sizes: Sequence[int], max_new_tokens: int, max_samples: int, repeats: int, warmups: int, dtype: str, bonus: str,
    detail: str, split: str, data_seed: int, force_length: bool, output_path: str, data_dir: str | None = None,
    num_fewshot: int | Mapping[str, int] = 0, input_key: str = 'inputs', target_key: str = 'targets',
    allow_code_execution: bool = False, vocabulary: str = 'same', chat_template: str = 'auto',
    heads: str | None = None, autoregressive_head: str | None = None, ngrams: Sequence[str] = (),
    stop_at_answer_end: bool = True, share_executables: bool = False, resume: bool = False, overwrite: bool = False,
    profile: bool = False, operative_config: str | None = None, compilation_cache: Mapping | None = None,
    load_runner=runner_lib.load_runner,
):
  """The directory with the finished run's rows.

  Args:
    pairs: names of built-in pairs, and TARGET::DRAFTER for two checkpoints of the user.
    tasks: names, see `task_sources.descriptions`.
    methods: names, see `methods.METHODS`. Those that exist at temperature 0 only are left out elsewhere.
    greedy_methods: those that are run at temperature 0; None is all of them.
    thresholds: knob values, for all methods or by method name; tuples for a method with several knobs. Methods that it
      does not name take their own sweep.
    num_draft_tokens: draft lengths K of the methods that draft.
    temperatures: 0 is greedy.
    top_p, top_k, min_p: truncation; 1, 0 and 0 keep every token. `top_p` is an axis, except at temperature 0.
    seeds: of generation; replicas of every point.
    batch_sizes: rows per batch.
    max_new_tokens: longest output, tokens.
    max_samples: prompts per task at most.
    repeats: timed runs of every batch, same tokens.
    warmups: full generations of each structure before anything is timed, at least 1; the first compiles.
    dtype: 'float32' or 'bfloat16', weights and activations.
    bonus: 'rule' or 'target', the law of the token after full acceptance.
    detail: 'summary' records deferral, overlap and divergences (inside the timed loop), 'none' nothing.
    split, data_seed: which examples.
    data_dir: folder with the files of data sets, and with what TFDS has prepared; generated tasks need none.
    num_fewshot: worked examples in front of every question of a data set, one number or by task name.
    input_key, target_key: fields of `jsonl:` and `tsv:` files.
    allow_code_execution: run the programs that a model writes, in a process without network, files and further processes.
    vocabulary: 'same', or 'intersection' for checkpoints whose drafter has another vocabulary; lossless all the same.
    heads, autoregressive_head: files of heads on the target, for methods that need them; None is what a built-in pair is
      shipped with.
    ngrams: files of n-gram models in the ARPA format, of each order one, over token ids; with none, those of a built-in pair
      are counted on answers that it was trained on.
    chat_template: turns that questions are put in, 'gemma' or 'none'; 'auto' is what the target's folder says.
    stop_at_answer_end: stop where the answer of a task is over (a line break, the next question), as far as its tokens
      show; an answer that begins with its end is empty then. Otherwise models run on, and the text is cut there.
    force_length: ignore EOS and ends of answers, for speed alone; nothing is scored, so methods that change the law are
      refused.
    share_executables: methods whose rules alone differ run one executable that chooses among them by number: a third less to
      compile, and a branch inside the timed loop.
    output_path: directory of the run.
    resume, overwrite: what to do with results that are there.
    profile: also write a profiler trace of one generation per structure.
    operative_config, compilation_cache: kept in run.json.
    load_runner: (name, *, dtype, bonus, force_length, detail and, where they are not at their defaults, vocabulary,
      chat_template, files of parts and together) -> a `runner.PairRunner`.

  Raises:
    ConfigError, ParamError, PromptError, LimitError: before anything compiles.
    interrupts.Stopped: a signal came; rows on disk are whole.
    SpecjaxError: a timed batch compiled.
  """
  given = arguments_of(locals())
  for check in checks_of(given):
    check()
  samplings = grid.samplings(temperatures=temperatures, top_p=top_p, top_k=top_k, min_p=min_p)
  blocks = grid.blocks(
      pairs=pairs, tasks=tasks, methods=methods, thresholds=thresholds, num_draft_tokens=num_draft_tokens,
      samplings=samplings, seeds=seeds, batch_sizes=batch_sizes, greedy_methods=greedy_methods)
  output.check_free(output_path, resume=resume, overwrite=overwrite)
  loaded = {name: load_task(name, given, data_dir=data_dir) for name in dict.fromkeys(tasks)}
  config = configuration(given, loaded)
  name = name_of(config, loaded)
  with contextlib.ExitStack() as stack:
    signals = stack.enter_context(interrupts.Interrupts())
    out = stack.enter_context(output.Output(output_path, name=name, config=config, overwrite=overwrite))
    out.run['prompt_sets'] = {
        task.name: {'sha256': task.sha256, 'prompts': len(task.examples), 'source': task.source, 'left_out': task.num_left_out}
        for task in loaded.values()}
    out.write_questions(loaded.values())
    out.begin_session(provenance.session(
        operative_config=operative_config, compilation_cache=dict(compilation_cache or {}) or None))
    total = repeats * sum(len(loaded[block.points[0].task].examples) * len(block.points) for block in blocks)
    bar = progress_lib.Progress(total=total, done=len(out.writer.rows))
    stack.callback(bar.close)
    sweep = sweep_lib.Sweep(
        config=given, out=out, bar=bar, signals=signals, tasks=loaded, load_runner=load_runner, profile=profile)
    by_pair = {pair: [block for block in blocks if block.points[0].pair == pair] for pair in dict.fromkeys(pairs)}
    for pair, of_pair in by_pair.items():  # All of them before the first one compiles: a late refusal costs hours.
      sweep.check_memory(pair, of_pair)
    for pair, of_pair in by_pair.items():
      sweep.run_pair(pair, of_pair)
      run.forget()
    sweep.finish()
  return out.path


def arguments_of(given):
  """The arguments of `evaluate` that say what the rows say, of all of them."""
  return {name: value for name, value in given.items() if name not in _NOT_CONFIGURATION}


def checks_of(given):
  """Yields functions without arguments; each raises for one thing that is wrong with an argument of `evaluate`."""
  for name in ('max_new_tokens', 'max_samples', 'repeats', 'warmups'):
    yield functools.partial(
        checks.integer, name, given[name], low=1, high=checks.MAX_NEW_TOKENS, where=f'evaluate.{name}')
  for name, allowed in _CHOICES.items():
    yield functools.partial(_check_choice, name, given[name], allowed)
  for name in AXES:
    yield functools.partial(_check_list, name, given[name])
  for name in given['methods'] if given['force_length'] else ():
    yield functools.partial(_check_lossless, name)


def _check_choice(name, value, allowed):
  if value not in allowed:
    raise ConfigError(what=name, where=f'evaluate.{name}', got=value, expected=f'one of {allowed}')


def _check_list(name, value):
  if isinstance(value, str) or not isinstance(value, Sequence):
    raise ConfigError(what=name, where=f'evaluate.{name}', got=value, expected='a list')


def _check_lossless(name):
  if not methods_lib.lookup(name).lossless:
    raise ConfigError(
        what=f'{name} with a forced length', where='evaluate.force_length', expected='methods that keep the law',
        fix='Nothing is scored then, and the speed of a lossy method alone says nothing: run it without force_length.')


def configuration(given, tasks):
  """`arguments_of` as JSON, with the sweeps that methods bring along: what names a run, together with its prompts.

  Args:
    given: the arguments.
    tasks: name -> `task_sources.Task`.
  """
  # What is at its default changes nothing; left out, runs that were begun before it existed can be resumed.
  idle = {name for name, value in _IDLE.items() if given.get(name) == value}
  jsonable = {name: dict(value) if isinstance(value, Mapping) else value for name, value in given.items() if name not in idle}
  jsonable['thresholds'] = {
      name: [list(dict(knob).values()) for knob in grid.knob_values(methods_lib.lookup(name), given['thresholds'])]
      for name in given['methods'] if methods_lib.lookup(name).knobs}
  if any(task.ends_answers for task in tasks.values()) and not given['force_length']:
    jsonable['stop_at_answer_end'] = True  # A default, yet rows that were written before it existed are longer.
  return rows_lib.finite(jsonable)


def load_task(name, given, *, data_dir):
  """One of the tasks that the arguments name, as a `task_sources.Task`."""
  named = {field: given[field] for field in task_sources.DataSettings._fields if field in given}
  return task_sources.load(name, split=given['split'], count=given['max_samples'], seed=given['data_seed'],
                           data=task_sources.DataSettings(**named | {'data_dir': data_dir}))


def name_of(config, tasks):
  """The run's id, of its `configuration` and its tasks."""
  return output.run_id(config, {task.name: task.sha256 for task in tasks.values()})
