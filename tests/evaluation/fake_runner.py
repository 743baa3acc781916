"""A `PairRunner` without a model: plausible counters, scores and times, a function of the point and the question alone."""

import collections
import hashlib

import numpy as np

from specjax.core import types
from specjax.decode import run
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
  """

  def __init__(self, name, *, dtype='float32', bonus='rule', force_length=False, clock_noise=0.0, before_generate=None):
    del bonus
    self.name = name
    self.calls = []
    self.late_compiles = False
    self._dtype = dtype
    self._force_length = force_length
    self._noise = clock_noise
    self._before = before_generate
    self._log = []
    self._structures = set()
    self._right = {}

  model_id = property(lambda self: f'{self.name}-drafter>{self.name}-target')

  def metadata(self):
    return {'family': 'decoder-only', 'dtype': self._dtype, 'vocab_size': 896, 'tokenizer_sha256': 'ab',
            'checkpoint_sha256': 'cd', 'parameters': {'target': 1_000_000, 'drafter': 100_000}}

  def encode(self, example):
    return tuple(3 + byte for byte in example.inputs.encode()[:20]) or (3,)

  def text(self, token_ids):
    return self._right.get(tuple(token_ids), 'wrong')

  def shape(self, questions, *, max_new_tokens, num_draft_tokens):
    return runner.Shape(32, max_new_tokens, 32 + max_new_tokens + num_draft_tokens + 1)

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

  def generate(self, point, questions, shape):
    if self._before is not None:
      self._before(point)
    self.calls.append((point, [question.id for question in questions]))
    if point.structure not in self._structures or self.late_compiles:
      self._structures.add(point.structure)
      self._log += [Record('prefill', f'capacity={shape.capacity}', 0.1, 0.5), Record('decode', '', 0.2, 1.5)]
    simulated = [self._row(point, question, shape.max_new_tokens) for question in questions]
    rounds = max(steps for _, steps, _ in simulated)
    per_round = 0.004 if point.method != 'autoregressive_drafter' else 0.0011
    per_round += 0.0009 * point.num_draft_tokens
    generator = np.random.default_rng(self._address(point.point_id, questions[0].id, len(self.calls)))
    seconds = rounds * per_round * (1 + self._noise * generator.standard_normal())
    return rows.Generation(self._collected(point, questions, simulated, shape), 0.002, float(seconds))

  def _address(self, *parts):
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], 'big')

  def _law(self, point):
    """(acceptance rate, chance of a right answer) of a point."""
    base = {'gemma': 0.72, 't5': 0.58}.get(self.name, 0.6) - 0.1 * (point.sampling.temperature > 0)
    if point.method == 'autoregressive_drafter':
      return 0.0, DRAFTER_QUALITY
    if not point.knob:
      return base, TARGET_QUALITY
    t = dict(point.knob)['threshold']
    bend = 3.0 if point.method == 'cascade_token_v3' else 1.6
    return base + (1 - base) * t, TARGET_QUALITY + 0.03 * np.sin(np.pi * t) - (TARGET_QUALITY - DRAFTER_QUALITY) * t**bend

  def _row(self, point, question, limit):
    """(tokens, steps, accepted per step) of one question."""
    rate, quality = self._law(point)
    exact = point.method in ('autoregressive', 'speculative') and point.sampling.temperature == 0
    seed = self._address(self.name, question.id, '' if exact else point.point_id)
    generator = np.random.default_rng(seed)
    count = limit if self._force_length else int(generator.integers(limit // 3, limit))
    tokens = [int(t) for t in generator.integers(4, 896, count)]
    luck = np.random.default_rng(self._address(self.name, question.id, 'luck')).random()
    if luck < quality:
      self._right[tuple(tokens)] = question.example.targets
    accepted, emitted = [], 0
    while emitted < count:
      chain = 0
      while chain < point.num_draft_tokens and generator.random() < rate * (1 - 0.04 * chain):
        chain += 1
      accepted.append(min(chain, count - emitted))
      emitted += min(chain + 1, count - emitted)
    return tokens, len(accepted), accepted

  def _collected(self, point, questions, simulated, shape):
    batch, k = point.batch, point.num_draft_tokens
    tokens = np.zeros((batch, shape.capacity), np.int32)
    length, prompt_length = np.ones(batch, np.int32), np.ones(batch, np.int32)
    columns = {name: np.zeros(batch, np.int64) for name in (
        'steps', 'emitted', 'target_calls', 'target_passes', 'drafter_calls', 'proposed', 'evaluated', 'accepted')}
    columns |= {name: np.zeros((batch, k), np.int64) for name in (
        'drafted_by_position', 'evaluated_by_position', 'accepted_by_position')}
    for row, (question, (made, steps, accepted)) in enumerate(zip(questions, simulated, strict=True)):
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
      for name in ('steps', 'target_calls', 'target_passes'):
        columns[name][row] = steps
      columns['drafter_calls'][row] = columns['proposed'][row] = k * steps
      columns['accepted'][row] = sum(accepted)
      columns['emitted'][row] = len(made)
    status = np.full(batch, types.Status.LIMIT if self._force_length else types.Status.EOS, np.int32)
    return run.Collected(tokens, length, prompt_length, status, None, types.DecodeStats(**columns), None)


def settings(**changes):
  """Arguments of `evaluate` for a small run."""
  small = dict(
      pairs=['gemma'], tasks=['synthetic'],
      methods=['autoregressive', 'autoregressive_drafter', 'speculative', 'cascade_chow', 'cascade_token_v3'],
      thresholds=[0.1, 0.5], num_draft_tokens=[4], temperatures=[0.0], top_p=1.0, top_k=0, min_p=0.0, seeds=[0],
      batch_sizes=[4], max_new_tokens=24, max_samples=8, repeats=1, warmups=1, dtype='float32', bonus='rule',
      split='test', data_seed=0, force_length=False, load_runner=FakeRunner)
  return small | changes
