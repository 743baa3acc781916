"""`calibrate --what=rescoring_weight`: the weight of a refinement that gives the most tokens per target call.

Weights are tried on a grid, then between the neighbours of the best; all by one executable, on the same prompts with the same
random numbers, weight 0 among them, which is no refinement. What was found is measured on held-back prompts, against weight 0.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from specjax.core.errors import ConfigError
from specjax.evaluation import methods as methods_lib
from specjax.metrics import statistics

LOG = logging.getLogger('specjax.eval')

# The grid, evenly on the knob's scale, the ends included; then as many halvings of the gaps beside the best.
COARSE = 11
REFINEMENTS = 3


class Tried(NamedTuple):
  """What one weight gave on the calibration prompts: `value`, its `coordinate` on the scale, tokens per target call."""

  coordinate: float
  value: float
  block_efficiency: float


def check(config: Mapping[str, Any]) -> methods_lib.Method:
  """The `Method`, after refusing what has no weight and a goal of the other kind."""
  chosen = methods_lib.lookup(config['method'])
  if chosen.knob_names != ('weight',):
    fits = [method.name for method in methods_lib.METHODS.values() if method.knob_names == ('weight',)]
    raise ConfigError(what=f'{chosen.name} has no rescoring weight', where='calibrate.method', expected=f'one of {", ".join(fits)}')
  for name in ('deferral_rate', 'quality_floor'):
    if config[name] is not None:
      raise ConfigError(what=f'{name} with what=rescoring_weight', where='calibrate', got=config[name],
                        expected='None: the goal is the most tokens per target call')
  return chosen


def search(decoder: Any, method: methods_lib.Method) -> dict:
  """What is written: the curve, the weight, and what it gains on held-back prompts.

  Args:
    decoder: a `calibrate._Decoder`, whose `rows(name, knob, asked)` are the rows of some questions.
    method: with the one knob `weight`.
  """
  knob, tried = method.knobs[0], {}

  def at(coordinate):
    value = min(max(knob.value(coordinate), knob.low), knob.high)
    if value not in tried:
      rows = decoder.rows(method.name, ((knob.name, value),), decoder.calibration)
      tried[value] = Tried(float(coordinate), value, sum(row['emitted'] for row in rows) / sum(
          row['target_calls'] for row in rows))
      LOG.info('weight = %.6g: %.4f tokens per target call', value, tried[value].block_efficiency)
    return tried[value]

  low, high = knob.coordinate(knob.low), knob.coordinate(knob.high)
  gap = (high - low) / (COARSE - 1)
  for coordinate in np.linspace(low, high, COARSE):
    at(coordinate)
  for _ in range(REFINEMENTS):
    gap /= 2
    middle = best(tried.values())
    for coordinate in (middle.coordinate - gap, middle.coordinate + gap):
      at(min(max(coordinate, low), high))
  found = best(tried.values())
  rows, plain = (decoder.rows(method.name, ((knob.name, value),), decoder.held_back) for value in (found.value, knob.low))
  gain = statistics.speedup_interval(*_per_question(rows), *_per_question(plain))
  efficiency = lambda many: sum(row['emitted'] for row in many) / sum(row['target_calls'] for row in many)
  return {
      'method': method.name, 'knob': {knob.name: found.value}, 'holds': True,
      'curve': [{knob.name: one.value, 'block_efficiency': one.block_efficiency}
                for one in sorted(tried.values(), key=lambda one: one.coordinate)],
      'calibration': {'block_efficiency': found.block_efficiency, 'prompts': len(decoder.calibration),
                      'unrefined': tried[knob.low].block_efficiency},
      'held_back': {'block_efficiency': efficiency(rows), 'unrefined': efficiency(plain), 'gain': gain._asdict(),
                    'prompts': len(decoder.held_back)}}


def best(tried) -> Tried:
  """The one with the most tokens per call; of equals the smallest weight, which disturbs the heads least."""
  return max(tried, key=lambda one: (one.block_efficiency, -one.value))


def _per_question(rows):
  return [row['emitted'] for row in rows], [row['target_calls'] for row in rows], [row['question_id'] for row in rows]


def text(result: Mapping) -> str:
  """What the terminal is told."""
  held, found = result['held_back'], result['calibration']
  gain = held['gain']
  ends = '' if gain['low'] is None else f' [{100 * (gain["low"] - 1):+.1f} %, {100 * (gain["high"] - 1):+.1f} %]'
  return '\n'.join([
      f'weight = {result["knob"]["weight"]:.6g}   (calibration: {found["block_efficiency"]:.4f} tokens per target call on '
      f'{found["prompts"]} prompts, {found["unrefined"]:.4f} without refinement)',
      f'held back: {held["block_efficiency"]:.4f} tokens per target call on {held["prompts"]} other prompts, '
      f'{held["unrefined"]:.4f} without refinement: {100 * (gain["estimate"] - 1):+.1f} %{ends}'])
