"""A `PairRunner` without a model: plausible counters, scores and times, a function of the point and the question alone."""

import collections
import hashlib

import numpy as np

from specjax.core import types
from specjax.decode import recorders
from specjax.decode import run
from specjax.evaluation import methods
from specjax.evaluation import rows
from specjax.evaluation import runner
from specjax.metrics import timing

Record = collections.namedtuple('Record', ('name', 'shapes', 'trace_seconds', 'compile_seconds'))

# Acceptance rate per position, and chance of a right answer, by method; cascades move both with the threshold.
DRAFTER_QUALITY, TARGET_QUALITY = 0.42, 0.81


class FakeRunner:
  """One pair.

  Args:
    name: of the pair.
    clock_noise: relative standard deviation of a batch's time.
    before_generate: called before each batch, with the point.
    ties: ids of questions whose lossless greedy answers differ from the target's in the third token, by a tie.
  """

  def __init__(
      self, name, *, dtype='float32', bonus='rule', force_length=False, detail='none', clock_noise=0.0,
      before_generate=None, ties=(), vocabulary='same'):
    del bonus, vocabulary
    self.name = name
    self.calls = []
    self.late_compiles = False
    self._dtype = dtype
    self._force_length = force_length
    self._noise = clock_noise
    self._before = before_generate
    self._detail = detail
    self._ties = frozenset(ties)
    self._log = []
    self._structures = set()
    self._right = {}

  model_id = property(lambda self: f'{self.name}-drafter>{self.name}-target')

  def metadata(self):
    return {'family': 'decoder-only', 'dtype': self._dtype, 'vocab_size': 896, 'tokenizer_sha256': 'ab',
            'checkpoint_sha256': 'cd', 'parameters': {'target': 1_000_000, 'drafter': 100_000}}

  def encode(self, example):
    return tuple(3 + byte for byte in example.inputs.encode()[:20]) or (3,)

  def encode_turn(self, text):
    return tuple(3 + byte for byte in text.encode()[:20])

  def follow_up(self, question, tokens):
    prompt = (*question.prompt, *tokens, *question.turns[question.turn])
    return question._replace(prompt=prompt, turn=question.turn + 1)

  def text(self, token_ids):
    return self._right.get(tuple(token_ids), 'wrong')

  def shape(self, questions, *, max_new_tokens, points):
    width = 32 + max(len(question.turns) for question in questions) * (20 + max_new_tokens)
    return runner.Shape(width, max_new_tokens, width + max_new_tokens + max(point.num_draft_tokens for point in points) + 1)

  def is_tie(self, question, tokens, other, position, shape):
    return question.id in self._ties

  def memory_parts(self, point, shape):
    return {'parameters': 4_400_000, 'caches': 1024 * point.batch * shape.capacity}

  def step_costs(self, shape):
    cost = {'cache_bytes_per_row': 2e5, 'capacity': shape.capacity}
    return {'target': cost | {'weight_bytes': 4e6, 'flops_per_token': 2e6},
            'drafter': cost | {'weight_bytes': 4e5, 'flops_per_token': 2e5}}

  def machine(self):
    return timing.Machine(bandwidths=((2**20, 1e10),), flops=5e10)

  def compile_log(self):
    return tuple(self._log)

  def compile(self, point, shape):
    records = [Record('prefill', f'capacity={shape.capacity}', 0.1, 0.5), Record('decode', '', 0.2, 1.5)]
    self._structures.add(point.structure)
    self._log += records
    return records

  def generate(self, point, questions, shape):
    if self._before is not None:
      self._before(point)
    self.calls.append((point, [question.id for question in questions]))
    if point.structure not in self._structures or self.late_compiles:
      self.compile(point, shape)
    simulated = [self._row(point, question, shape.max_new_tokens) for question in questions]
    rounds = max(steps for _, steps, _, _ in simulated)
    per_round = 0.004 if point.method != 'autoregressive_drafter' else 0.0011
    per_round += 0.0009 * point.num_draft_tokens
    generator = np.random.default_rng(self.address(point.point_id, questions[0].id, len(self.calls)))
    seconds = rounds * per_round * (1 + self._noise * generator.standard_normal())
    return rows.Generation(self._collected(point, questions, simulated, shape), 0.002, float(seconds))

  def address(self, *parts):
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], 'big')

  def _law(self, point):
    """(acceptance rate, chance of a right answer, deferral rate) of a point."""
    base = {'gemma': 0.72, 't5': 0.58}.get(self.name, 0.6) - 0.1 * (point.sampling.temperature > 0)
    method = methods.lookup(point.method)
    if point.method == 'autoregressive_drafter':
      return 0.0, DRAFTER_QUALITY, 0.0
    if not point.knob:
      return base + 0.02 * (point.verifier == 'block'), TARGET_QUALITY, 1.0
    # How far along its range the last knob is: 0 is the end that follows the target.
    knob = method.knobs[-1]
    low, high, here = map(knob.coordinate, (knob.low, knob.high, point.knob[-1][1]))
    t = min(1.0, max(0.0, (here - low) / (high - low)))
    t = 1 - t if knob.name == 'target_weight' or method.execution == 'query' else t
    if point.method == 'truncated_target':
      return base, TARGET_QUALITY - 0.1 * (1 - t), 1.0
    bend = {'token': 3.0, 'position': 1.6}.get(method.group, 1.2)
    quality = TARGET_QUALITY + 0.03 * np.sin(np.pi * t) - (TARGET_QUALITY - DRAFTER_QUALITY) * t**bend
    return base + (1 - base) * t, quality, 1 - t

  def _row(self, point, question, limit):
    """(tokens, steps, accepted per step, target calls) of one question."""
    rate, quality, deferral = self._law(point)
    exact = methods.lookup(point.method).keeps_greedy and point.sampling.temperature == 0
    seed = self.address(self.name, question.id, '' if exact else point.point_id, *[question.turn] * bool(question.turn))
    generator = np.random.default_rng(seed)
    count = limit if self._force_length else int(generator.integers(limit // 3, limit))
    tokens = [int(t) for t in generator.integers(4, 896, count)]
    if exact and point.method != 'autoregressive' and question.id in self._ties:
      tokens[2] = 3
    luck = np.random.default_rng(self.address(self.name, question.id, 'luck')).random()
    if luck < quality:
      self._right[tuple(tokens)] = question.example.targets
    accepted, emitted = [], 0
    while emitted < count:
      chain = 0
      while chain < point.num_draft_tokens and generator.random() < rate * (1 - 0.04 * chain):
        chain += 1
      accepted.append(min(chain, count - emitted))
      emitted += min(chain + 1, count - emitted)
    execution = methods.lookup(point.method).execution
    asked = {'token': int((generator.random(count) < deferral).sum()),
             'query': count * int(luck < deferral)}.get(execution, len(accepted))
    return tokens, len(accepted), accepted, asked

  def _collected(self, point, questions, simulated, shape):
    batch, k = point.batch, point.num_draft_tokens
    tokens = np.zeros((batch, shape.capacity), np.int32)
    length, prompt_length = np.ones(batch, np.int32), np.ones(batch, np.int32)
    columns = {name: np.zeros(batch, np.int64) for name in (
        'steps', 'emitted', 'target_calls', 'target_passes', 'drafter_calls', 'proposed', 'evaluated', 'accepted')}
    columns |= {name: np.zeros((batch, k), np.int64) for name in (
        'drafted_by_position', 'evaluated_by_position', 'accepted_by_position')}
    for row, (question, (made, steps, accepted, asked)) in enumerate(zip(questions, simulated, strict=True)):
      prompt_length[row] = len(question.prompt)
      length[row] = len(question.prompt) + len(made)
      tokens[row, :len(question.prompt)] = question.prompt
      tokens[row, len(question.prompt):length[row]] = made
      emitted = 0
      for chain in accepted:
        # The last round may have been cut by the end of the text: then nothing was rejected.
        evaluated = min(chain + (emitted + chain < len(made)), k)
        columns['evaluated'][row] += evaluated
        columns['drafted_by_position'][row] += 1
        columns['evaluated_by_position'][row, :evaluated] += 1
        columns['accepted_by_position'][row, :chain] += 1
        emitted += chain + 1
      columns['steps'][row], columns['target_calls'][row] = steps, asked
      columns['drafter_calls'][row] = columns['proposed'][row] = k * steps
      columns['accepted'][row] = sum(accepted)
      columns['emitted'][row] = len(made)
    columns['target_passes'][:] = columns['target_calls'].max()
    status = np.full(batch, types.Status.LIMIT if self._force_length else types.Status.EOS, np.int32)
    record = self._record(point, columns) if self._detail == 'summary' and k else None
    return run.Collected(tokens, length, prompt_length, status, None, types.DecodeStats(**columns), record)

  def _record(self, point, columns):
    """Sums over evaluated drafts; the predicted rejections are those that happened."""
    deferral, evaluated = self._law(point)[2], columns['evaluated'].astype(np.float32)
    means = dict(deferral=deferral, overlap=0.6, tv_to_target=0.4 * (1 - deferral), kl_to_target=0.5 * (1 - deferral))
    return recorders.Summary(
        **{name: mean * evaluated for name, mean in means.items()}, tv_goal_drafter=evaluated - columns['accepted'])


def settings(**changes):
  """Arguments of `evaluate` for a small run."""
  small = dict(
      pairs=['gemma'], tasks=['synthetic'],
      methods=['autoregressive', 'autoregressive_drafter', 'speculative', 'cascade_chow', 'cascade_token_v3'],
      greedy_methods=None, thresholds=[0.1, 0.5], num_draft_tokens=[4], temperatures=[0.0], top_p=[1.0], top_k=0,
      min_p=0.0, seeds=[0], batch_sizes=[4], max_new_tokens=24, max_samples=8, repeats=1, warmups=1, dtype='float32',
      bonus='rule', detail='none', split='test', data_seed=0, force_length=False, load_runner=FakeRunner)
  return small | changes
