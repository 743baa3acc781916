"""One result row per grid point, question and repeat: a superset of Spec-Bench's rows, so that its scripts read them."""

import hashlib
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from specjax.core import types
from specjax.decode import run
from specjax.evaluation import grid
from specjax.evaluation import methods
from specjax.evaluation import row_log
from specjax.metrics import efficiency
from specjax.metrics import scores as scores_lib

ROW_VERSION = 1


class Question(NamedTuple):
  """An example as it is asked.

  Attributes:
    id: unique inside its task.
    category: the example's domain.
    prompt: token ids; of an encoder-decoder the encoder's input.
    index: position in the task, the address of its random numbers.
    example: what the task's scorer is given.
    turns: token ids of what is asked afterwards, turn by turn, without marks.
    turn: 0 for the first question, then which of the turns `prompt` ends with.
  """

  id: str
  category: str
  prompt: tuple[int, ...]
  index: int
  example: Any
  turns: tuple[tuple[int, ...], ...] = ()
  turn: int = 0

  @property
  def prompt_sha256(self):
    """Hex SHA-256 of the token ids."""
    return hashlib.sha256(row_log.canonical_json(list(self.prompt))).hexdigest()


class Generation(NamedTuple):
  """A timed batch: `collected` on the host, and seconds of prefill and of decoding, the copy to the host included."""

  collected: run.Collected
  prefill_seconds: float
  decode_seconds: float


class Answer(NamedTuple):
  """One answer of a question with several turns, or the only one.

  Attributes:
    question: as it was asked in this turn.
    generation: the timed batch.
    row: which row of the batch.
    num_rows: real rows of the batch; each is given that share of the batch's time.
    text: decoded output.
  """

  question: Question
  generation: Generation
  row: int
  num_rows: int
  text: str

  @property
  def tokens(self):
    """The generated token ids."""
    return generated_tokens(self.generation.collected, self.row)


def prompt_set_sha256(questions):
  """Hex SHA-256 over the prompts of a task, in order."""
  return hashlib.sha256('\n'.join(q.prompt_sha256 for q in questions).encode()).hexdigest()


def finite(value):
  """`value` with floats that JSON cannot hold (NaN, inf) as None, at any depth."""
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {k: finite(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [finite(v) for v in value]
  return value


def generated_tokens(collected, row):
  """The generated token ids of one row, EOS included, as Python integers."""
  start, stop = int(collected.prompt_length[row]), int(collected.length[row])
  return [int(t) for t in collected.tokens[row, start:stop]]


def _proposed_per_step(counts):
  """K for each step where every step proposed the same number; None where the counters cannot tell."""
  if not counts.steps:
    return []
  each, rest = divmod(counts.proposed, counts.steps)
  constant = rest == 0 and all(n == counts.steps for n in counts.drafted_by_position[:each])
  return [each] * counts.steps if constant else None


def _summary(answers, *, counts, method):
  """The recorder's fields of a row: means over evaluated positions, None where nothing was recorded or evaluated.

  A cascade that picks a model needs no recorder: its deferrals are the target's calls (token) or whether there was one
  (query). KL is None as well where it is infinite.
  """
  names = ('deferral_rate', 'overlap', 'tv_to_target', 'kl_to_target', 'tv_goal_drafter')
  found = dict.fromkeys(('deferral', *names))
  if method.execution == 'token':
    found |= {'deferral': counts.target_calls, 'deferral_rate': efficiency.ratio(counts.target_calls, counts.emitted)}
  elif method.execution == 'query':
    found |= {'deferral': int(counts.target_calls > 0), 'deferral_rate': float(counts.target_calls > 0)}
  elif answers[0].generation.collected.record is not None and counts.evaluated:
    recorded = [(answer.generation.collected.record._asdict(), answer.row) for answer in answers]
    sums = {name: sum(float(np.asarray(record[name], np.float64)[row]) for record, row in recorded) for name in recorded[0][0]}
    found |= {name: sums[name.removesuffix('_rate')] / counts.evaluated for name in names} | {'deferral': sums['deferral']}
  return found


def agreement(tokens, baseline, *, lossless, is_tie):
  """The row's fields that compare greedy outputs: equal_to_ar, first_diff (position in the output), diff_cause.

  Args:
    tokens, baseline: generated token ids of the method and of the target alone.
    lossless: whether the method follows the target's law; a difference of any other is 'lossy'.
    is_tie: position -> whether the two tokens there are a tie of the target within rounding; called at most once. A
      lossless difference that is none has no known cause (None).
  """
  if tokens == baseline:
    return {'equal_to_ar': True, 'first_diff': None, 'diff_cause': 'none'}
  shorter = min(len(tokens), len(baseline))
  first = next((i for i in range(shorter) if tokens[i] != baseline[i]), shorter)
  tie = lossless and first < shorter and is_tie(first)
  return {'equal_to_ar': False, 'first_diff': first, 'diff_cause': ('tie' if tie else None) if lossless else 'lossy'}


def _error(status, row_name):
  if status not in (types.Status.NONFINITE, types.Status.NONFINITE_DRAFTER):
    return None
  model = 'drafter' if status == types.Status.NONFINITE_DRAFTER else 'target'
  return {'class': 'LogitsError', 'message': f'{model} logits are not finite: example {row_name}'}


def _log_probs(answer):
  collected, tokens = answer.generation.collected, answer.tokens
  if collected.log_probs is None:
    return None
  start = int(collected.prompt_length[answer.row])
  found = np.asarray(collected.log_probs[answer.row, start:start + len(tokens)], np.float64)
  return [round(float(x), 6) for x in found]


def _choice(answers, counts):
  """Spec-Bench's choice: lists with one entry per turn; accept_lengths and proposed are flat over turns."""
  prefill = [answer.generation.prefill_seconds / answer.num_rows for answer in answers]
  decode = [answer.generation.decode_seconds / answer.num_rows for answer in answers]
  proposed = [_proposed_per_step(one) for one in counts]
  log_probs = [_log_probs(answer) for answer in answers]
  absent = [None] * len(answers)
  return {
      'index': 0, 'turns': [answer.text for answer in answers], 'decoding_steps': [one.steps for one in counts],
      'new_tokens': [len(answer.tokens) for answer in answers], 'wall_time': [p + d for p, d in zip(prefill, decode)],
      'accept_lengths': [length for one in counts for length in efficiency.accept_lengths(one)],
      'proposed': None if None in proposed else [k for one in proposed for k in one], 'drafter_ids': None,
      'finish_reason': [_status(answer).name for answer in answers], 'token_ids': [answer.tokens for answer in answers],
      'logprobs': None if None in log_probs else log_probs, 'ttft': absent, 'prefill_time': prefill, 'decode_time': decode,
      'time_draft': absent, 'time_verify': absent, 'time_other': absent,
      'target_calls': [one.target_calls for one in counts], 'draft_calls': [one.drafter_calls for one in counts],
  }


def _status(answer):
  return types.Status(int(answer.generation.collected.status[answer.row]))


def build(
    *, run_id: str, point: grid.Point, answers: Sequence[Answer], repeat: int, batch_index: int,
    scores: scores_lib.Scores | None, score_name: str | None, model_id: str, compared: dict | None = None,
):
  """The row of one question, without its CRC.

  Args:
    run_id: the run's.
    point: how it was asked.
    answers: of its turns, in order.
    repeat: number of the repeat.
    batch_index: which batch of the task the question was in; rows of one batch share a clock.
    scores, score_name: the task's judgement, or None.
    model_id: of the pair.
    compared: what `agreement` says, None where nothing is compared.
  """
  question, method = answers[0].question, methods.lookup(point.method)
  by_turn = [efficiency.row_counts(answer.generation.collected.stats, answer.row) for answer in answers]
  counts = efficiency.sum_counts(by_turn)
  sampling = {name: getattr(point.sampling, name) for name in grid.SAMPLING}
  passes = [int(np.max(np.asarray(answer.generation.collected.stats.target_passes))) for answer in answers]
  errors = [_error(_status(answer), question.id) for answer in answers]
  built = {
      'row_version': ROW_VERSION, 'run_id': run_id, 'point_id': point.point_id, 'question_id': question.id,
      'repeat': repeat, 'category': question.category, 'answer_id': uuid.uuid4().hex[:22], 'model_id': model_id,
      'tstamp': time.time(), 'pair': point.pair, 'task': point.task, 'method': point.method, 'rule': point.rule,
      'knob': dict(point.knob), 'num_draft_tokens': point.num_draft_tokens, 'verifier': point.verifier, **sampling,
      'seed': point.seed, 'batch': point.batch, 'concurrency': point.batch, 'batch_index': batch_index,
      'batch_rows': answers[0].num_rows,
      'choices': [_choice(answers, by_turn)], 'prompt_tokens': [len(answer.question.prompt) for answer in answers],
      'cached_tokens': [0] * len(answers), 'prompt_sha256': question.prompt_sha256, **efficiency.summary(counts),
      **_summary(answers, counts=counts, method=method),
      'target_calls': counts.target_calls, 'draft_calls': counts.drafter_calls, 'target_passes': sum(passes),
      # A tree is proposed whole or not at all; its levels are counted.
      'verified_tokens': counts.target_calls + (
          counts.proposed * point.num_nodes // point.num_draft_tokens if method.is_tree else counts.proposed),
      'drafted_by_position': list(counts.drafted_by_position),
      'evaluated_by_position': list(counts.evaluated_by_position),
      'accepted_by_position': list(counts.accepted_by_position), 'per_step': None,
      **_judged(scores, score_name), 'reference_id': question.id,
      **point.tree, **(compared or {'equal_to_ar': None, 'first_diff': None, 'diff_cause': None}),
      'error': next((error for error in errors if error), None),
  }
  if not method.drafts:
    built['rejection_rate'] = None
  return finite(built)


def _judged(scores, score_name):
  if scores is None:
    scores = scores_lib.Scores(math.nan)
  return {'score': None if math.isnan(scores.value) else float(scores.value), 'score_name': score_name,
          'scores': dict(scores.others), 'score_statistics': {name: list(sums) for name, sums in scores.statistics.items()},
          'filtered_answer': scores.answer}


def counts_of(row: dict) -> efficiency.Counts:
  """`Counts` of a stored row."""
  return efficiency.Counts(
      steps=row['steps'], emitted=row['emitted'], target_calls=row['target_calls'], drafter_calls=row['draft_calls'],
      proposed=row['proposed'], evaluated=row['evaluated'], accepted=row['accepted'],
      drafted_by_position=tuple(row['drafted_by_position']),
      evaluated_by_position=tuple(row['evaluated_by_position']),
      accepted_by_position=tuple(row['accepted_by_position']))
