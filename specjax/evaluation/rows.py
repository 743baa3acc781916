"""One result row per grid point, question and repeat: a superset of Spec-Bench's rows, so that its scripts read them."""

import hashlib
import math
import time
import uuid
from typing import Any, NamedTuple

import numpy as np

from specjax.core import types
from specjax.decode import run
from specjax.evaluation import grid
from specjax.evaluation import methods
from specjax.evaluation import row_log
from specjax.metrics import efficiency

ROW_VERSION = 1


class Question(NamedTuple):
  """An example as it is asked.

  Attributes:
    id: unique inside its task.
    category: the example's domain.
    prompt: token ids; of an encoder-decoder the encoder's input.
    index: position in the task, the address of its random numbers.
    example: what the task's scorer is given.
  """

  id: str
  category: str
  prompt: tuple[int, ...]
  index: int
  example: Any

  @property
  def prompt_sha256(self):
    """Hex SHA-256 of the token ids."""
    return hashlib.sha256(row_log.canonical_json(list(self.prompt))).hexdigest()


class Generation(NamedTuple):
  """A timed batch: `collected` on the host, and seconds of prefill and of decoding, the copy to the host included."""

  collected: run.Collected
  prefill_seconds: float
  decode_seconds: float


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


def _summary(collected, row, *, counts, method):
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
  elif collected.record is not None and counts.evaluated:
    sums = {name: float(np.asarray(values, np.float64)[row]) for name, values in collected.record._asdict().items()}
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


def _choice(collected, row, *, counts, text, tokens, status, prefill_seconds, decode_seconds):
  log_probs = None
  if collected.log_probs is not None:
    start = int(collected.prompt_length[row])
    log_probs = [[round(float(x), 6) for x in np.asarray(collected.log_probs[row, start:start + len(tokens)], np.float64)]]
  return {
      'index': 0, 'turns': [text], 'decoding_steps': [counts.steps], 'new_tokens': [len(tokens)],
      'wall_time': [prefill_seconds + decode_seconds], 'accept_lengths': efficiency.accept_lengths(counts),
      'proposed': _proposed_per_step(counts), 'drafter_ids': None, 'finish_reason': [status.name],
      'token_ids': [tokens], 'logprobs': log_probs, 'ttft': [None], 'prefill_time': [prefill_seconds],
      'decode_time': [decode_seconds], 'time_draft': [None], 'time_verify': [None], 'time_other': [None],
      'target_calls': [counts.target_calls], 'draft_calls': [counts.drafter_calls],
  }


def build(
    *, run_id: str, point: grid.Point, question: Question, repeat: int, batch_index: int, num_rows: int, row: int,
    generation: Generation, text: str, score: float | None, score_name: str | None, model_id: str,
    compared: dict | None = None,
):
  """The row of one question, without its CRC.

  Args:
    run_id: the run's.
    point, question: what was asked, and how.
    repeat: number of the repeat.
    batch_index: which batch of the task the question was in; rows of one batch share a clock.
    num_rows: real rows of the batch; each is given that share of the batch's time.
    row: the question's row in the batch.
    generation: the timed batch.
    text: decoded output.
    score, score_name: the task's judgement, or None.
    model_id: of the pair.
    compared: what `agreement` says, None where nothing is compared.
  """
  collected, method = generation.collected, methods.lookup(point.method)
  counts = efficiency.row_counts(collected.stats, row)
  tokens = generated_tokens(collected, row)
  status = types.Status(int(collected.status[row]))
  choice = _choice(
      collected, row, counts=counts, text=text, tokens=tokens, status=status,
      prefill_seconds=generation.prefill_seconds / num_rows, decode_seconds=generation.decode_seconds / num_rows)
  sampling = {name: getattr(point.sampling, name) for name in grid.SAMPLING}
  built = {
      'row_version': ROW_VERSION, 'run_id': run_id, 'point_id': point.point_id, 'question_id': question.id,
      'repeat': repeat, 'category': question.category, 'answer_id': uuid.uuid4().hex[:22], 'model_id': model_id,
      'tstamp': time.time(), 'pair': point.pair, 'task': point.task, 'method': point.method, 'rule': point.rule,
      'knob': dict(point.knob), 'num_draft_tokens': point.num_draft_tokens, 'verifier': point.verifier, **sampling,
      'seed': point.seed, 'batch': point.batch, 'concurrency': point.batch, 'batch_index': batch_index,
      'batch_rows': num_rows,
      'choices': [choice], 'prompt_tokens': [len(question.prompt)], 'cached_tokens': [0],
      'prompt_sha256': question.prompt_sha256, **efficiency.summary(counts),
      **_summary(collected, row, counts=counts, method=method),
      'target_calls': counts.target_calls, 'draft_calls': counts.drafter_calls,
      'target_passes': int(np.max(np.asarray(collected.stats.target_passes))),
      'verified_tokens': counts.proposed + counts.target_calls,
      'drafted_by_position': list(counts.drafted_by_position),
      'evaluated_by_position': list(counts.evaluated_by_position),
      'accepted_by_position': list(counts.accepted_by_position), 'per_step': None, 'score': score,
      'score_name': score_name, 'reference_id': question.id, 'filtered_answer': None,
      **(compared or {'equal_to_ar': None, 'first_diff': None, 'diff_cause': None}), 'error': _error(status, question.id),
  }
  if not method.drafts:
    built['rejection_rate'] = None
  return finite(built)


def counts_of(row: dict) -> efficiency.Counts:
  """`Counts` of a stored row."""
  return efficiency.Counts(
      steps=row['steps'], emitted=row['emitted'], target_calls=row['target_calls'], drafter_calls=row['draft_calls'],
      proposed=row['proposed'], evaluated=row['evaluated'], accepted=row['accepted'],
      drafted_by_position=tuple(row['drafted_by_position']),
      evaluated_by_position=tuple(row['evaluated_by_position']),
      accepted_by_position=tuple(row['accepted_by_position']))
