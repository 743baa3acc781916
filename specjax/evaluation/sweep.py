"""One session of a sweep.

    for each pair:  load -> check memory
    for each pair:  load -> compile and warm up every structure -> for each block of points:
        for each visit (repeat, batch):  all points of the block, forward and backward in turn -> rows, fsync

Greedy outputs are compared with the target's own of the same visit. Where the visit runs backward the target comes last:
its rows wait for it, and a killed visit is measured again.
"""

import concurrent.futures
import logging
import os
import re
import time
from typing import NamedTuple

import jax

from specjax.core.errors import SpecjaxError
from specjax.decode import memory
from specjax.evaluation import grid
from specjax.evaluation import likelihoods
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import parts
from specjax.evaluation import row_log
from specjax.evaluation import rows as rows_lib

LOG = logging.getLogger('specjax.eval')

RUNNER_SETTINGS = ('dtype', 'bonus', 'force_length', 'detail')
# Compilations at a time: each holds the module it works on in memory.
MAX_COMPILATIONS = 4
OPTIONAL_SETTINGS = {'vocabulary': 'same', 'chat_template': 'auto', **parts.ARGUMENTS}


class Measured(NamedTuple):
  """One timed batch of a point: the `rows.Answer`s to each question, turn by turn."""

  point: grid.Point
  answers: list[list[rows_lib.Answer]]


class Visit(NamedTuple):
  """One batch of questions, run by all points of a block: which repeat, which batch, the questions and their shape."""

  repeat: int
  batch_index: int
  asked: list[rows_lib.Question]
  shape: NamedTuple


class Sweep:
  """The work of one session.

  Args:
    config: the arguments of `evaluate` that say what the rows say.
    out: an `output.Output`.
    bar: a `progress.Progress`.
    signals: an `interrupts.Interrupts`.
    tasks: name -> `task_sources.Task`.
    load_runner: (pair, **settings) -> a runner.
    profile: also write a profiler trace of each structure.
  """

  def __init__(self, *, config, out, bar, signals, tasks, load_runner, profile):
    self._config = config
    self._out = out
    self._bar = bar
    self._signals = signals
    self._tasks = tasks
    self._load_runner = load_runner
    self._profile = profile
    self._session = out.run['sessions'][-1]
    # What the target alone answered greedily, in rows of earlier sessions.
    self._greedy = {
        row_log.row_id(row): row['choices'][0]['token_ids'] for row in out.writer.rows
        if row['method'] == methods_lib.BASELINE and row['temperature'] == 0}

  def check_memory(self, pair, blocks):
    """Raises `LimitError` when a point of one pair that is still to be measured cannot fit."""
    pending = self._pending(blocks)
    if pending:
      runner, _, shape = self._load(pair, blocks)
      for point in largest(pending):
        memory.check_fits(
            runner.memory_parts(point, shape), available=memory.available_bytes(), where=point.label)

  def run_pair(self, pair, blocks):
    """Measures what is missing of one pair."""
    pending = self._pending(blocks)
    if not pending:
      LOG.info('%s: all rows are there', pair)
      return
    runner, questions, shape = self._load(pair, blocks)
    self._out.record_pair(pair, runner.metadata() | {'shape': shape._asdict(), 'step_costs': runner.step_costs(shape)})
    if 'machine' not in self._out.run:
      self._out.run['machine'] = runner.machine()._asdict()
    self._score_references(pair, runner, questions)
    structures = {point.structure: point for point in reversed(pending)}
    self._warm_up(runner, list(structures.values())[::-1], questions, shape)
    for block in blocks:
      self._measure(block, runner, questions[block.points[0].task], shape)

  def _score_references(self, pair, runner, questions):
    """Adds to run.json how likely both models find the references of running text; decoding has no part in that."""
    known = self._out.run.setdefault('likelihoods', {}).setdefault(pair, {})
    for name, asked in questions.items():
      if self._tasks[name].is_running_text and name not in known and not self._config['force_length']:
        is_judged = self._tasks[name].judge is not None
        known[name] = {role: likelihoods.summary(found, [question.id for question in asked], is_judged=is_judged)
                       for role, found in runner.likelihoods(asked).items()}
        for role, summary in known[name].items():
          LOG.info('%s %s: %s', pair, role, likelihoods.line(name, summary))

  def _pending(self, blocks):
    return [point for block in blocks for point in block.points
            if self._missing(point, self._tasks[point.task].examples)]

  def _load(self, pair, blocks):
    """(runner, questions by task, shape) of a pair."""
    settings = {name: self._config[name] for name in RUNNER_SETTINGS}
    for name, default in OPTIONAL_SETTINGS.items():  # A runner without checkpoints of the user need not know them.
      if self._config.get(name, default) != default:
        settings[name] = self._config[name]
    if self._config.get('share_executables'):
      settings['together'] = tuple(self._config['methods'])
    runner = self._load_runner(pair, **settings)
    questions = {name: ask(task.examples, runner) for name, task in self._tasks.items()}
    shape = runner.shape(
        [question for asked in questions.values() for question in asked],
        max_new_tokens=self._config['max_new_tokens'], points=[point for block in blocks for point in block.points])
    return runner, questions, shape

  def _id(self, point, question, repeat):
    return self._out.run_id, point.point_id, question.id, repeat

  def _missing(self, point, asked):
    """Whether any row of a point is still to be written; `asked` are examples or questions."""
    return any(self._id(point, question, repeat) not in self._out.writer.ids
               for repeat in range(self._config['repeats']) for question in asked)

  def _warm_up(self, runner, points, questions, shape):
    """Compiles every structure and runs it, outside of everything that is timed, and says what it took."""
    start = time.perf_counter()
    compiled = self._compile(runner, points, shape)
    seconds = time.perf_counter() - start
    for point in points:
      for _ in range(self._config['warmups']):
        self._signals.check()
        runner.generate(point, questions[point.task][:point.batch], shape)
    LOG.info('%d executables in %.1f s; warm-up %.1f s in all', len(compiled), seconds, time.perf_counter() - start)
    self._session['executables'] += compiled
    self._session['n_compiles'] += len(compiled)
    self._session['compile_s'] += seconds
    self._out.save()
    if self._profile:
      for point in points:
        with jax.profiler.trace(os.path.join(self._out.path, 'profile', profile_name(point.structure))):
          runner.generate(point, questions[point.task][:point.batch], shape)

  def _compile(self, runner, points, shape):
    """What was compiled for some points, with its structure; several at a time, as one compilation idles part of the time."""
    compiled = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(MAX_COMPILATIONS, os.cpu_count() or 1)) as pool:
      running = {pool.submit(runner.compile, point, shape): point for point in points}
      try:
        for done in concurrent.futures.as_completed(running):
          self._signals.check()
          structure = running[done].structure
          for record in done.result():
            compiled.append(record._asdict() | {'structure': ' '.join(map(str, structure))})
            LOG.info('compiled %-7s of %s %s K=%d B=%d: trace %.2f s, compile %.2f s (%s)', record.name, *structure,
                     record.trace_seconds, record.compile_seconds, record.shapes)
      finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return compiled

  def _measure(self, block, runner, asked, shape):
    size = block.points[0].batch
    batches = [asked[start:start + size] for start in range(0, len(asked), size)]
    num_visits = self._config['repeats'] * len(batches)
    for number in range(num_visits):
      repeat, batch_index = divmod(number, len(batches))
      self._visit(block, number, runner, Visit(repeat, batch_index, batches[batch_index], shape))
      self._bar.visited(block.points[0], number, num_visits)

  def _visit(self, block, number, runner, visit):
    reference = self._stored_reference(block, visit)
    waiting = []
    for point in block.order(number):
      self._signals.check()
      if all(self._id(point, question, visit.repeat) in self._out.writer.ids for question in visit.asked):
        continue
      measured = Measured(point, self._timed(point, runner, visit))
      waiting.append(measured)
      if point.method == methods_lib.BASELINE and reference is not None:
        reference = {found[0].question.id: [answer.tokens for answer in found] for found in measured.answers}
      if reference is None or reference:
        for one in waiting:
          self._write(one, runner, visit, reference or {})
        waiting = []

  def _stored_reference(self, block, visit):
    """Question id -> the target's greedy output of this visit; {} until it is there, None where nothing is compared."""
    baseline = next((point for point in block.points if point.method == methods_lib.BASELINE), None)
    if baseline is None or baseline.sampling.temperature > 0:
      return None
    found = {question.id: self._greedy.get(self._id(baseline, question, visit.repeat)) for question in visit.asked}
    return {} if None in found.values() else found

  def _timed(self, point, runner, visit):
    """The answers to the questions of a visit. A later turn is a batch of those that have one, with the model's own answer
    in the prompt."""
    before = len(runner.compile_log())
    answers = [[] for _ in visit.asked]
    asked = list(enumerate(visit.asked))
    while asked:
      questions = [question for _, question in asked]
      generation = runner.generate(point, questions, visit.shape)
      for row, (place, question) in enumerate(asked):
        text = runner.text(rows_lib.generated_tokens(generation.collected, row))
        answers[place].append(rows_lib.Answer(question, generation, row, len(asked), text))
      asked = [(place, runner.follow_up(question, answers[place][-1].tokens))
               for place, question in asked if question.turn < len(question.turns)]
    compiled = runner.compile_log()[before:]
    if compiled:
      self._session['n_compiles_after_warm_up'] += len(compiled)
      self._out.save()
      raise SpecjaxError(
          what=f'a timed batch compiled {[record.name for record in compiled]}', where=point.label,
          expected='0 compilations after the warm-up', fix='Its shapes are not those of the warm-up; its time is void.')
    return answers

  def _write(self, measured, runner, visit, reference):
    point = measured.point
    task = self._tasks[point.task]
    judged = task.judge is not None and not self._config['force_length']
    built = []
    for answers in measured.answers:
      question = answers[0].question
      built.append(rows_lib.build(
          run_id=self._out.run_id, point=point, answers=answers, repeat=visit.repeat, batch_index=visit.batch_index,
          scores=task.judge(question.example, answers[-1].text) if judged else None,
          score_name=task.score_name if judged else None, model_id=runner.model_id,
          compared=self._compared(point, answers, reference.get(question.id), runner, visit.shape)))
    self._bar.measured(point, self._out.writer.append(built))

  def _compared(self, point, answers, baseline, runner, shape):
    """What `rows.agreement` says of the first turn that differs; up to there the prompts are the same."""
    if baseline is None or point.method == methods_lib.BASELINE:
      return None
    offset = 0
    for answer, expected in zip(answers, baseline, strict=True):
      found = rows_lib.agreement(
          answer.tokens, expected, lossless=methods_lib.lookup(point.method).keeps_greedy,
          is_tie=lambda position, answer=answer, expected=expected: runner.is_tie(
              answer.question, answer.tokens, expected, position, shape))
      if not found['equal_to_ar']:
        return found | {'first_diff': offset + found['first_diff']}
      offset += len(expected)
    return found

  def finish(self):
    """Closes the session in run.json."""
    self._session['ended'] = time.time()
    self._out.run['finished'] = True
    self._out.save()


def profile_name(structure):
  """The name of the directory with a structure's trace: one name, also where the pair is two paths."""
  return re.sub(r'[^A-Za-z0-9_.]+', '-', '-'.join(map(str, structure)))[-100:].strip('-.')


def largest(points):
  """Some of the points, of which one holds the most memory.

  What a point holds depends on the tokens it verifies and the batch; the first of each is the largest (the target's own).
  """
  return list({(point.num_nodes, point.batch): point for point in reversed(points)}.values())


def ask(examples, runner, *, first=0):
  """The `rows.Question`s of a list of examples, the first of which has the number `first` in its task."""
  return [rows_lib.Question(
      id=example.id, category=example.domain, prompt=runner.encode(example), index=first + index, example=example,
      turns=tuple(runner.encode_turn(turn) for turn in example.check.get('turns', ())[1:]))
          for index, example in enumerate(examples)]
