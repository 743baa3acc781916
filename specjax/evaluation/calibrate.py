"""`calibrate`: the threshold at which a method defers a given share, or keeps a given share of the target's quality.

The weight of a refinement is another search, in `rescoring_weight`, on the same prompts.

Every value of the knob that is tried is decoded for real, with the same prompts and random numbers, by one executable. The
rate is monotone in the knob up to the noise of the texts it leads to; its curve is bisected. What was found is then decoded
on held-back prompts of the same split, and the rate met there is given with its interval.

    ends and a coarse grid -> attainable range -> bisection between the two neighbours of the goal -> held-back prompts
"""

import contextlib
import dataclasses
import logging
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from specjax.core import checks
from specjax.core.errors import ConfigError, ParamError, SpecjaxError
from specjax.evaluation import aggregate
from specjax.evaluation import grid
from specjax.evaluation import interrupts
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import output
from specjax.evaluation import parts
from specjax.evaluation import provenance
from specjax.evaluation import rescoring_weight
from specjax.evaluation import rows as rows_lib
from specjax.evaluation import runner as runner_lib
from specjax.evaluation import sweep as sweep_lib
from specjax.evaluation import task_sources
from specjax.metrics import efficiency
from specjax.metrics import statistics

LOG = logging.getLogger('specjax.eval')

CALIBRATION = 'calibration.json'
WHAT = ('threshold', 'rescoring_weight')
# Values of the knob that are tried before the search, the ends included.
COARSE = 7
BISECTIONS = 14
# Nearer to the goal than this a search on a finite set of prompts means nothing.
CLOSE_ENOUGH = 0.0025
# What a rate on held-back prompts may be off the goal.
TOLERANCE = 0.02


class Tried(NamedTuple):
  """What one value of the knob gave: mean deferral and mean score over prompts, and its coordinate on the search scale."""

  coordinate: float
  value: float
  deferral_rate: float
  quality: float | None


@dataclasses.dataclass(frozen=True)
class Rate:
  """A deferral rate on some prompts.

  Attributes:
    estimate, low, high: the rate with a 95 % Wilson interval for the effective sample.
    decisions: drafts (speculative), tokens or queries that were decided.
    prompts: how many questions they come from; decisions about one question belong together.
    effective_sample: independent decisions that would be as uncertain, from the variance between prompts.
  """

  estimate: float
  low: float
  high: float
  decisions: int
  prompts: int
  effective_sample: float


def calibrate(
    *, what: str, method: str, pair: str, task: str, deferral_rate: float | None, quality_floor: float | None,
    calibration_samples: int, held_back_samples: int, num_draft_tokens: int, temperature: float, top_p: float, top_k: int,
    min_p: float, seed: int, batch_size: int, max_new_tokens: int, dtype: str, bonus: str, split: str, data_seed: int,
    output_path: str, data_dir: str | None = None, num_fewshot: int = 0, input_key: str = 'inputs',
    target_key: str = 'targets', allow_code_execution: bool = False, heads: str | None = None,
    autoregressive_head: str | None = None, ngrams: Sequence[str] = (), overwrite: bool = False,
    load_runner=runner_lib.load_runner,
):
  """The calibration as a JSON object, which is also written to `output_path`/calibration.json.

  Its `outcome` on held-back prompts is 'met', 'not refuted' or 'missed'; `holds` is False where it is missed.

  Args:
    what: 'threshold', or 'rescoring_weight' for the most tokens per target call.
    method: a method with one knob; for 'rescoring_weight' one with a weight.
    pair, task: names.
    deferral_rate: the share to defer, in [0, 1]; for 'threshold' exactly one of this and `quality_floor`.
    quality_floor: the share of the target's quality to keep, > 0; the least deferral that keeps it is searched.
    calibration_samples, held_back_samples: prompts to search on, and other prompts of the same split to check on.
    num_draft_tokens, temperature, top_p, top_k, min_p, seed, batch_size, max_new_tokens, dtype, bonus, split, data_seed,
      data_dir, num_fewshot, input_key, target_key, allow_code_execution, heads, autoregressive_head, ngrams: as in
      `evaluate.evaluate`.
    output_path: directory.
    overwrite: replace a calibration that is there.
    load_runner: as in `evaluate.evaluate`.

  Raises:
    ConfigError, ParamError: before anything compiles; `ParamError` also for a goal outside the attainable range.
  """
  config = {name: value for name, value in locals().items()
            if name not in ('output_path', 'data_dir', 'overwrite', 'load_runner')}
  chosen = _checked(config)
  output.check_writable(output_path, where='calibrate.output_path')
  path = pathlib.Path(output_path) / CALIBRATION
  if path.exists() and not overwrite:
    raise ConfigError(what='a calibration is there', where=str(path), fix='Add --overwrite, or another --output_path.')
  sampling = grid.samplings(temperatures=[temperature], top_p=[top_p], top_k=top_k, min_p=min_p)[0]
  if chosen.greedy_only and sampling.temperature > 0:
    raise ConfigError(what=f'{method} at temperature {temperature:g}', where='temperature', expected='0: it is greedy only')
  data = task_sources.DataSettings(data_dir, num_fewshot, input_key, target_key, allow_code_execution)
  loaded = task_sources.load(task, split=split, count=calibration_samples + held_back_samples, seed=data_seed, data=data)
  if len(loaded.examples) < calibration_samples + held_back_samples:
    raise ConfigError(what='too few prompts', where=f'task {task}', got=len(loaded.examples),
                      expected=calibration_samples + held_back_samples)
  if quality_floor is not None and loaded.judge is None:
    raise ConfigError(what='quality_floor without a score', where=f'task {task}', fix='Use a task with reference answers.')
  more = {name: config[name] for name, default in parts.ARGUMENTS.items() if config[name] != default}
  runner = load_runner(
      pair, dtype=dtype, bonus=bonus, force_length=False, detail='summary' if what == 'threshold' else 'none', **more)
  point = lambda name, knob: grid.Point(
      pair=pair, task=task, method=name, rule=methods_lib.lookup(name).rule, knob=knob,
      num_draft_tokens=num_draft_tokens if methods_lib.lookup(name).drafts else 0,
      verifier=methods_lib.lookup(name).verifier, sampling=sampling, seed=seed, batch=batch_size)
  asked = sweep_lib.ask(loaded.examples, runner)
  with contextlib.ExitStack() as stack:
    signals = stack.enter_context(interrupts.Interrupts())
    decoder = _Decoder(runner, loaded, asked, calibration_samples, point, chosen, max_new_tokens, signals)
    if what == 'rescoring_weight':
      result = rescoring_weight.search(decoder, chosen)
    else:
      result = _check(decoder, _search(decoder, chosen, config), chosen, config)
  path.parent.mkdir(parents=True, exist_ok=True)
  result = {'config': config, 'prompts_sha256': loaded.sha256, **result, 'pair': runner.metadata(),
            'session': provenance.session(operative_config=None, compilation_cache=None)}
  output.write_json(path, result)
  LOG.info('%s', path)
  return result


def _checked(config):
  """The `Method`, after refusing what cannot be calibrated."""
  if config['what'] not in WHAT:
    raise ConfigError(what='what', where='calibrate.what', got=config['what'], expected=f'one of {", ".join(WHAT)}')
  for name, low in (('calibration_samples', 2), ('held_back_samples', 3), ('batch_size', 1), ('max_new_tokens', 1),
                    ('num_draft_tokens', 1)):
    checks.integer(name, config[name], low=low, high=checks.MAX_NEW_TOKENS, where=f'calibrate.{name}')
  checks.seed(config['seed'])
  if config['what'] == 'rescoring_weight':
    return rescoring_weight.check(config)
  if (config['deferral_rate'] is None) == (config['quality_floor'] is None):
    raise ConfigError(
        what='the goal', where='calibrate', got={name: config[name] for name in ('deferral_rate', 'quality_floor')},
        expected='exactly one of --deferral_rate and --quality_floor')
  if config['deferral_rate'] is not None:
    checks.real('deferral_rate', config['deferral_rate'], low=0, high=1)
  else:
    checks.real('quality_floor', config['quality_floor'], low=0, high=2, low_open=True)
  chosen = methods_lib.lookup(config['method'])
  fits = [method.name for method in methods_lib.METHODS.values() if len(method.knobs) == 1 and method.defers]
  if len(chosen.knobs) != 1:
    raise ConfigError(
        what=f'{chosen.name} has {len(chosen.knobs)} knobs', where='calibrate.method', expected='a method with one',
        fix=f'One of {", ".join(fits)}.')
  if not chosen.defers:
    raise ConfigError(what=f'{chosen.name} defers nothing', where='calibrate.method', expected=f'one of {", ".join(fits)}')
  return chosen


class _Decoder:
  """Decodes the calibration or the held-back prompts with one value of the knob."""

  def __init__(self, runner, task, asked, num_calibration, point, method, max_new_tokens, signals):
    self._runner, self._task, self._point, self._signals = runner, task, point, signals
    self.method = method
    self.calibration, self.held_back = asked[:num_calibration], asked[num_calibration:]
    self.tried: list[Tried] = []
    knob = ((method.knobs[0].name, method.knobs[0].value(method.knobs[0].coordinate(method.thresholds[0]))),)
    self._shape = runner.shape(
        asked, max_new_tokens=max_new_tokens, points=[point(method.name, knob), point(methods_lib.BASELINE, ())])
    self._compiled = set()

  def rows(self, name, knob, asked):
    """The rows of some questions, without times worth keeping.

    Raises:
      SpecjaxError: another value of the knob compiled.
    """
    point, found, before = self._point(name, knob), [], len(self._runner.compile_log())
    for start in range(0, len(asked), point.batch):
      self._signals.check()
      batch = asked[start:start + point.batch]
      generation = self._runner.generate(point, batch, self._shape)
      for row, question in enumerate(batch):
        text = self._runner.text(rows_lib.generated_tokens(generation.collected, row))
        answer = rows_lib.Answer(question, generation, row, len(batch), text)
        found.append(rows_lib.build(
            run_id='calibration', point=point, answers=[answer], repeat=0, batch_index=start // point.batch,
            scores=self._task.judge(question.example, text) if self._task.judge else None,
            score_name=self._task.score_name, model_id=self._runner.model_id))
    if name in self._compiled and len(self._runner.compile_log()) > before:
      raise SpecjaxError(what='another value of the knob compiled', where=point.label, expected='one executable')
    self._compiled.add(name)
    return found

  def quality(self, asked):
    """The target's own mean score."""
    return _mean_score(self.rows(methods_lib.BASELINE, (), asked))

  def at(self, coordinate):
    """The `Tried` of one value of the knob on the calibration prompts; every value is decoded once."""
    knob = self.method.knobs[0]
    value = min(max(knob.value(coordinate), knob.low), knob.high)
    for one in self.tried:
      if one.value == value:
        return one
    rows = self.rows(self.method.name, ((knob.name, value),), self.calibration)
    totals = decisions(rows)
    self.tried.append(Tried(coordinate, value, float(totals[:, 0].sum() / totals[:, 1].sum()), _mean_score(rows)))
    LOG.info('%s = %.9g: deferral rate %.4f, quality %s', knob.name, value, self.tried[-1].deferral_rate,
             '-' if self.tried[-1].quality is None else f'{self.tried[-1].quality:.3f}')
    return self.tried[-1]


def _mean_score(rows):
  scores = [row['score'] for row in rows if row['score'] is not None]
  return float(np.mean(scores)) if scores else None


def decisions(rows: Sequence[Mapping]):
  """float64[N, 2] per row: summed deferral, and how many decisions (drafts, tokens or 1) it is the sum over.

  Rows without a decision are left out.
  """
  execution = methods_lib.lookup(rows[0]['method']).execution
  made = {'speculative': lambda row: row['evaluated'], 'token': lambda row: row['emitted'], 'query': lambda row: 1}
  found = [(row['deferral'], made[execution](row)) for row in rows if row['deferral'] is not None and made[execution](row)]
  if not found:
    raise SpecjaxError(what='no decision was made', where=rows[0]['method'], fix='Raise max_new_tokens or the prompts.')
  return np.array(found, np.float64)


def cluster_rate(totals) -> Rate:
  """The `Rate` of decisions that come in clusters, one per prompt: prompts vary, so decisions are fewer than they seem.

  The variance of the ratio of sums is estimated between prompts (linearised); the effective sample is what a binomial
  proportion with that variance would have, at most the number of decisions. A rate without variance (0 or 1) has as many
  independent decisions as prompts.

  Args:
    totals: float64[N, 2] as of `decisions`.
  """
  top, bottom = totals[:, 0], totals[:, 1]
  count, rate = len(totals), float(top.sum() / bottom.sum())
  spread = float(np.sum((top - rate * bottom) ** 2)) * count / max(1, count - 1)
  variance = spread / float(bottom.sum()) ** 2
  sample = rate * (1 - rate) / variance if variance > 0 else 0.0
  sample = min(sample, float(bottom.sum())) if sample > 0 else float(count)
  interval = statistics.wilson_interval(rate * sample, sample)
  return Rate(rate, interval.low, interval.high, int(bottom.sum()), count, sample)


def _search(decoder, method, config):
  """The `Tried` that is nearest to the goal; all values that were decoded stay in `decoder.tried`."""
  knob = method.knobs[0]
  low, high = knob.coordinate(knob.low), knob.coordinate(knob.high)
  curve = [decoder.at(coordinate) for coordinate in np.linspace(low, high, COARSE)]
  rates = [one.deferral_rate for one in curve]
  LOG.info('attainable deferral rates of %s: %.4f to %.4f (%s from %g to %g)', method.name, min(rates), max(rates),
           knob.name, knob.low, knob.high)
  if config['deferral_rate'] is not None:
    return _bisect_rate(decoder, curve, config['deferral_rate'], method, grain=1 / config['calibration_samples'])
  return _bisect_quality(decoder, curve, config['quality_floor'] * decoder.quality(decoder.calibration), method)


def _bisect_rate(decoder, curve, goal, method, *, grain):
  """The `Tried` nearest to the goal; one prompt is a share of `grain`."""
  rates = [one.deferral_rate for one in curve]
  if not min(rates) <= goal <= max(rates):
    nearest = min(curve, key=lambda one: abs(one.deferral_rate - goal))
    raise ParamError(
        what=f'deferral_rate of {method.name}', where='calibrate', got=goal,
        expected=f'a rate that it can attain, {min(rates):.4f} to {max(rates):.4f}',
        fix=f'The nearest is {nearest.deferral_rate:.4f}, at {method.knobs[0].name} = {nearest.value:g}.')
  first, second = next(
      (left, right) for left, right in zip(curve[:-1], curve[1:], strict=True)
      if min(left.deferral_rate, right.deferral_rate) <= goal <= max(left.deferral_rate, right.deferral_rate))
  for _ in range(BISECTIONS):
    nearest = min((first, second), key=lambda one: abs(one.deferral_rate - goal))
    if abs(nearest.deferral_rate - goal) <= CLOSE_ENOUGH:
      break
    middle = decoder.at((first.coordinate + second.coordinate) / 2)
    is_beside_first = (middle.deferral_rate - goal) * (first.deferral_rate - goal) > 0
    first, second = (middle, second) if is_beside_first else (first, middle)
  nearest = min(decoder.tried, key=lambda one: abs(one.deferral_rate - goal))
  if abs(nearest.deferral_rate - goal) > TOLERANCE + grain:
    # The two ends of the search are next to each other, and the goal lies between what they give.
    low, high = sorted((first, second), key=lambda one: one.deferral_rate)
    knob = method.knobs[0].name
    raise ParamError(
        what=f'deferral_rate of {method.name}', where='calibrate', got=goal,
        expected=f'a rate that it can attain: it jumps from {low.deferral_rate:.4f} at {knob} = {low.value:g} to '
        f'{high.deferral_rate:.4f} at {knob} = {high.value:g}',
        fix=f'The nearest is {nearest.deferral_rate:.4f}, at {knob} = {nearest.value:g}.')
  return nearest


def _bisect_quality(decoder, curve, floor, method):
  """The least deferral whose quality reaches `floor`, between the last value that does and the first that does not."""
  ordered = sorted(curve, key=lambda one: one.deferral_rate)
  enough = [one for one in ordered if one.quality >= floor]
  if not enough:
    best = max(ordered, key=lambda one: one.quality)
    raise ParamError(
        what=f'quality_floor of {method.name}', where='calibrate', got=f'quality {floor:.4f}',
        expected=f'a quality that it reaches, at most {best.quality:.4f}',
        fix=f'That is at {method.knobs[0].name} = {best.value:g}, deferral rate {best.deferral_rate:.4f}.')
  good = enough[0]
  below = [one for one in ordered if one.deferral_rate < good.deferral_rate]
  if not below:
    return good
  bad = below[-1]
  for _ in range(BISECTIONS):
    if good.deferral_rate - bad.deferral_rate <= CLOSE_ENOUGH:
      break
    middle = decoder.at((good.coordinate + bad.coordinate) / 2)
    good, bad = (middle, bad) if middle.quality >= floor else (good, middle)
  return good


def _check(decoder, found, method, config):
  """What is written: the curve, the threshold, and what it does on held-back prompts."""
  knob = method.knobs[0]
  rows = decoder.rows(method.name, ((knob.name, found.value),), decoder.held_back)
  rate = cluster_rate(decisions(rows))
  tried = sorted(decoder.tried, key=lambda one: one.coordinate)
  rates = [one.deferral_rate for one in tried]
  result = {
      'method': method.name, 'knob': {knob.name: found.value}, 'level': method.execution,
      'attainable_deferral_rate': [min(rates), max(rates)],
      'curve': [{knob.name: one.value, 'deferral_rate': one.deferral_rate, 'quality': one.quality} for one in tried],
      'calibration': {'deferral_rate': found.deferral_rate, 'quality': found.quality, 'prompts': len(decoder.calibration)},
      'held_back': dataclasses.asdict(rate)}
  if config['deferral_rate'] is not None:
    goal = config['deferral_rate']
    return result | _judged(rate.low, rate.high, goal - TOLERANCE, goal + TOLERANCE)
  baseline = decoder.rows(methods_lib.BASELINE, (), decoder.held_back)
  columns = lambda many: ([row['score'] for row in many], [row['question_id'] for row in many])
  difference = statistics.difference_interval(*columns(rows), *columns(baseline), seed=aggregate.BOOTSTRAP_SEED)
  target = _mean_score(baseline)
  result['held_back'] |= {'quality': _mean_score(rows), 'target_quality': target,
                          'quality_fraction': efficiency.ratio(_mean_score(rows), target),
                          'quality_difference': difference._asdict()}
  return result | _judged(difference.low, difference.high, (config['quality_floor'] - 1) * target, math.inf)


def _judged(low, high, goal_low, goal_high):
  """What held-back prompts say of the goal, by the ends of their interval: 'met' where all of it lies inside the goal's range,
  'missed' where all of it lies outside, else 'not refuted'; `holds` is False for 'missed' alone."""
  if low is not None and goal_low <= low and high <= goal_high:
    outcome = 'met'
  elif low is not None and (high < goal_low or low > goal_high):
    outcome = 'missed'
  else:
    outcome = 'not refuted'
  return {'outcome': outcome, 'holds': outcome != 'missed'}


def text(result):
  """What the terminal is told."""
  if result['config']['what'] == 'rescoring_weight':
    return rescoring_weight.text(result)
  (name, value), = result['knob'].items()
  held, low, high = result['held_back'], *result['attainable_deferral_rate']
  level = {'speculative': 'evaluated drafts', 'token': 'tokens', 'query': 'queries'}[result['level']]
  lines = [
      f'attainable deferral rate: {low:.4f} to {high:.4f} of {level}',
      f'{name} = {value:.9g}   (calibration: {result["calibration"]["deferral_rate"]:.4f} on '
      f'{result["calibration"]["prompts"]} prompts)',
      f'held back: deferral rate {held["estimate"]:.4f} [{held["low"]:.4f}, {held["high"]:.4f}] on {held["prompts"]} other '
      f'prompts; {held["decisions"]} decisions count as {held["effective_sample"]:.0f} independent ones']
  if 'quality' in held:
    difference = held['quality_difference']
    ends = '' if difference['low'] is None else f' [{difference["low"]:+.4f}, {difference["high"]:+.4f}]'
    lines.append(f'held back: quality {held["quality"]:.4f} against the target\'s {held["target_quality"]:.4f}, difference '
                 f'{difference["estimate"]:+.4f}{ends}')
  lines.append({
      'met': 'the goal is met: all of the interval lies within it',
      'not refuted': 'the goal is not refuted: the interval reaches it; more held-back prompts would tell',
      'missed': 'THE GOAL IS MISSED on held-back prompts: all of the interval lies outside'}[result['outcome']])
  return '\n'.join(lines)
