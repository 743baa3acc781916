"""`evaluate`: runs pairs x tasks x methods x knobs x sampling x seeds, timed and scored, into rows.jsonl.

    for each pair:  load -> check memory
    for each pair:  load -> compile and warm up every structure -> for each block of points:
        for each visit (repeat, batch):  all points of the block, forward and backward in turn -> rows, fsync
"""

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence

import jax

from specjax.core import checks
from specjax.core.errors import ConfigError, SpecjaxError
from specjax.decode import memory
from specjax.evaluation import grid
from specjax.evaluation import interrupts
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import output
from specjax.evaluation import progress as progress_lib
from specjax.evaluation import provenance
from specjax.evaluation import row_log
from specjax.evaluation import rows as rows_lib
from specjax.evaluation import runner as runner_lib
from specjax.evaluation import task_sources

LOG = logging.getLogger('specjax.eval')

DTYPES = ('float32', 'bfloat16')

# Arguments of `evaluate` that do not change what the rows say.
_NOT_CONFIGURATION = ('output_path', 'resume', 'overwrite', 'profile', 'operative_config', 'compilation_cache',
                      'load_runner')


def evaluate(
    *, pairs: Sequence[str], tasks: Sequence[str], methods: Sequence[str], thresholds: Mapping[str, Sequence[float]] | Sequence[float],
    num_draft_tokens: Sequence[int], temperatures: Sequence[float], top_p: float, top_k: int, min_p: float,
    seeds: Sequence[int], batch_sizes: Sequence[int], max_new_tokens: int, max_samples: int, repeats: int, warmups: int,
    dtype: str, bonus: str, split: str, data_seed: int, force_length: bool, output_path: str, resume: bool = False,
    overwrite: bool = False, profile: bool = False, operative_config: str | None = None,
    compilation_cache: Mapping | None = None, load_runner=runner_lib.load_runner,
):
  """The directory with the finished run's rows.

  Args:
    pairs: names of built-in pairs.
    tasks: names, see `task_sources.descriptions`.
    methods: names, see `methods.METHODS`.
    thresholds: knob values, for all methods that have a knob or by method name.
    num_draft_tokens: draft lengths K of the methods that draft.
    temperatures: 0 is greedy.
    top_p, top_k, min_p: truncation; 1, 0 and 0 keep every token.
    seeds: of generation; replicas of every point.
    batch_sizes: rows per batch.
    max_new_tokens: longest output, tokens.
    max_samples: prompts per task at most.
    repeats: timed runs of every batch, same tokens.
    warmups: full generations of each structure before anything is timed, at least 1; the first compiles.
    dtype: 'float32' or 'bfloat16', weights and activations.
    bonus: 'rule' or 'target', the law of the token after full acceptance.
    split, data_seed: which examples.
    force_length: ignore EOS, for speed alone; nothing is scored.
    output_path: directory of the run.
    resume, overwrite: what to do with results that are there.
    profile: also write a profiler trace of one generation per structure.
    operative_config, compilation_cache: kept in run.json.
    load_runner: (name, *, dtype, bonus, force_length) -> a `runner.PairRunner`.

  Raises:
    ConfigError, ParamError, PromptError, LimitError: before anything compiles.
    interrupts.Stopped: a signal came; rows on disk are whole.
    SpecjaxError: a timed batch compiled.
  """
  given = {name: value for name, value in locals().items() if name not in _NOT_CONFIGURATION}
  config = _checked(given)
  samplings = [checks.SamplingParams(temperature=t, top_p=top_p, top_k=top_k, min_p=min_p) for t in temperatures]
  blocks = grid.blocks(
      pairs=pairs, tasks=tasks, methods=methods, thresholds=thresholds, num_draft_tokens=num_draft_tokens,
      samplings=samplings, seeds=seeds, batch_sizes=batch_sizes)
  output.check_free(output_path, resume=resume, overwrite=overwrite)
  loaded = {name: task_sources.load(name, split=split, count=max_samples, seed=data_seed)
            for name in dict.fromkeys(tasks)}
  name = output.run_id(config, {task.name: task.sha256 for task in loaded.values()})
  with contextlib.ExitStack() as stack:
    signals = stack.enter_context(interrupts.Interrupts())
    out = stack.enter_context(output.Output(output_path, name=name, config=config, overwrite=overwrite))
    out.run['prompt_sets'] = {task.name: {'sha256': task.sha256, 'prompts': len(task.examples)}
                              for task in loaded.values()}
    out.write_questions(loaded.values())
    out.begin_session(provenance.session(
        operative_config=operative_config, compilation_cache=dict(compilation_cache or {}) or None))
    total = repeats * sum(len(loaded[block.points[0].task].examples) * len(block.points) for block in blocks)
    bar = progress_lib.Progress(total=total, done=len(out.writer.rows))
    stack.callback(bar.close)
    sweep = _Sweep(
        config=given, out=out, bar=bar, signals=signals, tasks=loaded, load_runner=load_runner, profile=profile)
    by_pair = {pair: [block for block in blocks if block.points[0].pair == pair] for pair in dict.fromkeys(pairs)}
    for pair, of_pair in by_pair.items():  # All of them before the first one compiles: a late refusal costs hours.
      sweep.check_memory(pair, of_pair)
    for pair, of_pair in by_pair.items():
      sweep.run_pair(pair, of_pair)
    sweep.finish()
  return out.path


def _checked(given):
  """The configuration as JSON, scalars checked."""
  for name, low in (('max_new_tokens', 1), ('max_samples', 1), ('repeats', 1), ('warmups', 1)):
    checks.integer(name, given[name], low=low, high=checks.MAX_NEW_TOKENS, where=f'evaluate.{name}')
  for name, allowed in (('dtype', DTYPES), ('bonus', ('rule', 'target'))):
    if given[name] not in allowed:
      raise ConfigError(what=name, where=f'evaluate.{name}', got=given[name], expected=f'one of {allowed}')
  for name in ('pairs', 'tasks', 'methods', 'num_draft_tokens', 'temperatures', 'seeds', 'batch_sizes'):
    if isinstance(given[name], str) or not isinstance(given[name], Sequence):
      raise ConfigError(what=name, where=f'evaluate.{name}', got=given[name], expected='a list')
  jsonable = {name: dict(value) if isinstance(value, Mapping) else value for name, value in given.items()}
  return rows_lib.finite(jsonable)


class _Sweep:
  """One session of a run."""

  def __init__(self, *, config, out, bar, signals, tasks, load_runner, profile):
    self._config = config
    self._out = out
    self._bar = bar
    self._signals = signals
    self._tasks = tasks
    self._load_runner = load_runner
    self._profile = profile
    self._session = out.run['sessions'][-1]

  def check_memory(self, pair, blocks):
    """Raises `LimitError` when a point of one pair that is still to be measured cannot fit."""
    pending = self._pending(blocks)
    if pending:
      runner, _, shape = self._load(pair)
      # What a point holds depends on K and the batch; the first of each is the largest (the target's own).
      for point in {(point.num_draft_tokens, point.batch): point for point in reversed(pending)}.values():
        memory.check_fits(
            runner.memory_parts(point, shape), available=memory.available_bytes(), where=point.label)

  def _pending(self, blocks):
    return [point for block in blocks for point in block.points
            if self._missing(point, self._tasks[point.task].examples)]

  def _load(self, pair):
    """(runner, questions by task, shape) of a pair."""
    runner = self._load_runner(pair, **{name: self._config[name] for name in ('dtype', 'bonus', 'force_length')})
    questions = {name: _questions(task, runner) for name, task in self._tasks.items()}
    shape = runner.shape(
        [question for asked in questions.values() for question in asked],
        max_new_tokens=self._config['max_new_tokens'], num_draft_tokens=max(self._config['num_draft_tokens']))
    return runner, questions, shape

  def run_pair(self, pair, blocks):
    """Measures what is missing of one pair."""
    pending = self._pending(blocks)
    if not pending:
      LOG.info('%s: all rows are there', pair)
      return
    runner, questions, shape = self._load(pair)
    self._out.record_pair(pair, runner.metadata() | {'shape': shape._asdict(), 'step_costs': runner.step_costs(shape)})
    if 'machine' not in self._out.run:
      self._out.run['machine'] = runner.machine()._asdict()
    structures = {point.structure: point for point in reversed(pending)}
    self._warm_up(runner, list(structures.values())[::-1], questions, shape)
    for block in blocks:
      self._measure(block, runner, questions[block.points[0].task], shape)

  def _missing(self, point, asked):
    """Whether any row of a point is still to be written; `asked` are examples or questions."""
    ids = self._out.writer.ids
    return any((self._out.run_id, point.point_id, question.id, repeat) not in ids
               for repeat in range(self._config['repeats']) for question in asked)

  def _warm_up(self, runner, points, questions, shape):
    """Compiles every structure, outside of everything that is timed, and says what it took."""
    start, compiled = time.perf_counter(), []
    for point in points:
      self._signals.check()
      before = len(runner.compile_log())
      for _ in range(self._config['warmups']):
        runner.generate(point, questions[point.task][:point.batch], shape)
      for record in runner.compile_log()[before:]:
        compiled.append(record._asdict() | {'structure': ' '.join(map(str, point.structure))})
        LOG.info('compiled %-7s of %s %s K=%d B=%d: trace %.2f s, compile %.2f s (%s)', record.name, *point.structure,
                 record.trace_seconds, record.compile_seconds, record.shapes)
    seconds = sum(record['trace_seconds'] + record['compile_seconds'] for record in compiled)
    LOG.info('%d executables in %.1f s; warm-up %.1f s in all', len(compiled), seconds, time.perf_counter() - start)
    self._session['executables'] += compiled
    self._session['n_compiles'] += len(compiled)
    self._session['compile_s'] += seconds
    self._out.save()
    if self._profile:
      for point in points:
        directory = os.path.join(self._out.path, 'profile', '-'.join(map(str, point.structure)))
        with jax.profiler.trace(directory):
          runner.generate(point, questions[point.task][:point.batch], shape)

  def _measure(self, block, runner, asked, shape):
    size = block.points[0].batch
    batches = [asked[start:start + size] for start in range(0, len(asked), size)]
    num_visits = self._config['repeats'] * len(batches)
    for visit in range(num_visits):
      repeat, batch_index = divmod(visit, len(batches))
      for point in block.order(visit):
        self._signals.check()
        self._measure_batch(point, runner, batches[batch_index], repeat, batch_index, shape)
      self._bar.visited(block.points[0], visit, num_visits)

  def _measure_batch(self, point, runner, asked, repeat, batch_index, shape):
    ids = self._out.writer.ids
    if all((self._out.run_id, point.point_id, question.id, repeat) in ids for question in asked):
      return
    before = len(runner.compile_log())
    generation = runner.generate(point, asked, shape)
    compiled = runner.compile_log()[before:]
    if compiled:
      self._session['n_compiles_after_warm_up'] += len(compiled)
      self._out.save()
      raise SpecjaxError(
          what=f'a timed batch compiled {[record.name for record in compiled]}', where=point.label,
          expected='0 compilations after the warm-up', fix='Its shapes are not those of the warm-up; its time is void.')
    task = self._tasks[point.task]
    judged = task.score is not None and not self._config['force_length']
    built = []
    for row, question in enumerate(asked):
      text = runner.text(rows_lib.generated_tokens(generation.collected, row))
      built.append(rows_lib.build(
          run_id=self._out.run_id, point=point, question=question, repeat=repeat, batch_index=batch_index,
          num_rows=len(asked), row=row, generation=generation, text=text,
          score=float(task.score(question.example, text)) if judged else None,
          score_name=task.score_name if judged else None, model_id=runner.model_id))
    self._bar.measured(point, self._out.writer.append(built))

  def finish(self):
    """Closes the session in run.json."""
    self._session['ended'] = time.time()
    self._out.run['finished'] = True
    self._out.save()


def _questions(task, runner):
  return [rows_lib.Question(id=example.id, category=example.domain, prompt=runner.encode(example), index=index,
                            example=example) for index, example in enumerate(task.examples)]
