"""The points of a sweep: pair x task x batch x sampling x seed x method x K x knobs, each with an id of its own."""

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Mapping, Sequence

from specjax.core import checks
from specjax.core.errors import ConfigError
from specjax.evaluation import drafting
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import row_log

LOG = logging.getLogger('specjax.eval')

MAX_BATCH = 2**16
_RANGES = {'num_draft_tokens': (1, checks.MAX_DRAFT_TOKENS), 'batch_sizes': (1, MAX_BATCH), 'seeds': (0, 2**32 - 1)}
SAMPLING = ('temperature', 'top_p', 'top_k', 'min_p')


@dataclasses.dataclass(frozen=True)
class Point:
  """One setting of a sweep. Points that differ only in `seed` are replicas of one series.

  Attributes:
    pair, task: names.
    method, rule: names from `specjax.evaluation.methods`; `rule` is None for autoregressive decoding.
    knob: ((name, value), ...), what the rule is turned by; empty if it has none.
    num_draft_tokens: K, the most tokens a round accepts (of a tree its levels); 0 where nothing is drafted.
    verifier: of `methods.Method`.
    sampling: the sampling parameters.
    seed: of generation.
    batch: rows per batch.
  """

  pair: str
  task: str
  method: str
  rule: str | None
  knob: tuple[tuple[str, float], ...]
  num_draft_tokens: int
  verifier: str | None
  sampling: checks.SamplingParams
  seed: int
  batch: int

  def identity(self):
    """The JSON object that `point_id` is the hash of."""
    return {
        'method': self.method, 'rule': self.rule, 'knob': dict(self.knob), 'num_draft_tokens': self.num_draft_tokens,
        'verifier': self.verifier, 'sampling': {name: getattr(self.sampling, name) for name in SAMPLING}, 'seed': self.seed,
        'batch': self.batch, 'pair': self.pair, 'task': self.task, **self.tree,
    }

  @property
  def tree(self):
    """{'tree': the parents of its nodes, or how many best paths it holds}; {} of a chain, so that older points keep their ids."""
    method = methods_lib.METHODS.get(self.method)
    if method is None or not method.is_tree:
      return {}
    return {'tree': list(drafting.tree_shape(self.num_draft_tokens).parents) if method.tree == 'shape' else
            {'best_paths': drafting.NUM_BEST, 'top_k': drafting.TOP_K}}

  @property
  def num_nodes(self):
    """How many draft tokens a round verifies at most."""
    return methods_lib.lookup(self.method).num_nodes(self.num_draft_tokens)

  @property
  def point_id(self):
    """The first 12 hex digits of the SHA-256 of the canonical JSON of `identity`."""
    return hashlib.sha256(row_log.canonical_json(self.identity())).hexdigest()[:12]

  @property
  def structure(self):
    """What an executable depends on; points that differ elsewhere never recompile."""
    return self.pair, self.method, self.num_draft_tokens, self.batch

  @property
  def label(self):
    """A short name for logs: method, knobs, K, temperature and top-p."""
    knob = ''.join(f' {name}={value:g}' for name, value in self.knob)
    draft = f' K={self.num_draft_tokens}' if self.num_draft_tokens else ''
    top_p = f' top_p={self.sampling.top_p:g}' if self.sampling.top_p < 1 else ''
    return f'{self.pair} {self.task} {self.method}{knob}{draft} T={self.sampling.temperature:g}{top_p}'


@dataclasses.dataclass(frozen=True)
class Block:
  """Points that are timed against each other: same pair, task, batch, sampling and seed, the baseline first."""

  points: tuple[Point, ...]

  def order(self, visit):
    """The points in the order of one visit: forward, then backward, so that drift hits both sides (ABBA)."""
    return self.points if visit % 2 == 0 else self.points[::-1]


def samplings(*, temperatures: Sequence[float], top_p: Sequence[float], top_k: int, min_p: float):
  """The `SamplingParams` of a sweep. Temperature 0 is run once: it is greedy, so truncation changes nothing.

  Raises:
    ConfigError: an empty axis. ParamError: a number out of range.
  """
  check_not_empty('temperatures', temperatures)
  check_not_empty('top_p', top_p)
  found = []
  for temperature in temperatures:
    if temperature == 0:
      if len(set(top_p)) > 1 or set(top_p) != {1.0} or top_k > 0 or min_p > 0:
        LOG.info('temperature 0 is run once, untruncated: top_p %s, top_k %d and min_p %g have no effect there',
                 list(top_p), top_k, min_p)
      found.append(checks.SamplingParams(temperature=0.0))
    else:
      found += [checks.SamplingParams(temperature=temperature, top_p=p, top_k=top_k, min_p=min_p) for p in top_p]
  return list(dict.fromkeys(found))


def knob_values(method: methods_lib.Method, thresholds: Mapping | Sequence):
  """The knob settings of one method, as tuples of (name, value) pairs.

  Args:
    method: the method.
    thresholds: by method name, or one list for every method; a number each, or a tuple in knob order. A method that it
      does not name, and an empty list, take the method's own sweep.

  Raises:
    ConfigError: not as many numbers as knobs. ParamError: a number that the method refuses.
  """
  if not method.knobs:
    return [()]
  named = thresholds.get(method.name, ()) if isinstance(thresholds, Mapping) else thresholds
  found = []
  for value in named or method.thresholds:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(values) != len(method.knobs):
      raise ConfigError(
          what=f'knobs of {method.name}', where='thresholds', got=value, expected=f'({", ".join(method.knob_names)})',
          fix=f'Give thresholds = {{{method.name!r}: [{method.thresholds[0]!r}, ...]}}, or none for the default sweep.')
    knob = tuple(zip(method.knob_names, map(float, values), strict=True))
    method.build(dict(knob), methods_lib.Setting(1, 'rule', 'none'))  # Refused here, before anything is loaded.
    found.append(knob)
  return list(dict.fromkeys(found))


def check_thresholds(thresholds):
  """Raises `ConfigError` for thresholds of something that is no method with a knob."""
  for name in thresholds if isinstance(thresholds, Mapping) else ():
    if name not in methods_lib.METHODS or not methods_lib.METHODS[name].knobs:
      raise ConfigError(
          what=f'thresholds for {name!r}', where='thresholds',
          expected=f'one of {sorted(m.name for m in methods_lib.METHODS.values() if m.knobs)}')


def check_not_empty(name, axis):
  """Raises `ConfigError` for an axis without a value."""
  if not axis:
    raise ConfigError(what=f'empty {name}', where=f'evaluate.{name}', expected='at least one value')


def check_greedy(name, methods):
  """Raises `ConfigError` for one of `greedy_methods` that is none of `methods`."""
  methods_lib.lookup(name)
  if name not in methods:
    raise ConfigError(
        what=f'{name!r} is not among methods', where='greedy_methods', expected=f'some of {list(methods)}')


def check_integer(name, value):
  """Raises `ParamError` or `LimitError` for a value of an axis of integers that is out of its range."""
  low, high = _RANGES[name]
  checks.integer(name, value, low=low, high=high, where=f'evaluate.{name}')


def _at(chosen, sampling, greedy):
  """The methods that are run with one sampling; `greedy` are the names run at temperature 0, None for all."""
  if sampling.temperature > 0:
    return [method for method in chosen if not method.greedy_only]
  return [method for method in chosen if greedy is None or method.name in greedy]


def _report_left_out(chosen, samplings_, greedy):
  """One line for every method that some temperature leaves out; refuses a method that is left out everywhere."""
  warm = sorted({s.temperature for s in samplings_ if s.temperature > 0})
  is_cold = any(s.temperature == 0 for s in samplings_)
  for method in chosen:
    if not any(method in _at(chosen, sampling, greedy) for sampling in samplings_):
      raise ConfigError(
          what=f'no point of {method.name} is left', where='methods', got=f'temperatures {warm + [0.0] * is_cold}',
          expected='a temperature at which it runs' + (' (it exists at 0 only)' if method.greedy_only else ''),
          fix='Add the temperature, name it in greedy_methods, or leave the method out.')
    if method.greedy_only and warm:
      LOG.info('%s exists at temperature 0 only: left out at %s', method.name, ', '.join(f'{t:g}' for t in warm))
    if is_cold and greedy is not None and method.name not in greedy:
      LOG.info('%s is not among greedy_methods: left out at temperature 0', method.name)


def blocks(
    *, pairs: Sequence[str], tasks: Sequence[str], methods: Sequence[str], thresholds: Mapping | Sequence,
    num_draft_tokens: Sequence[int], samplings: Sequence[checks.SamplingParams], seeds: Sequence[int],
    batch_sizes: Sequence[int], greedy_methods: Sequence[str] | None = None,
):
  """The `Block`s of a sweep, in the order they are run.

  Args:
    seeds: temperature 0 is run with the first one only.
    greedy_methods: those of `methods` that are run at temperature 0; None is all.

  Raises:
    ConfigError: an empty axis, an unknown method, or a method without a point.
    ParamError: K, seed, batch size or a knob out of range.
  """
  axes = dict(pairs=pairs, tasks=tasks, methods=methods, num_draft_tokens=num_draft_tokens, samplings=samplings,
              seeds=seeds, batch_sizes=batch_sizes)
  for name, axis in axes.items():
    check_not_empty(name, axis)
  chosen = [methods_lib.lookup(name) for name in dict.fromkeys(methods)]
  for name in greedy_methods or ():
    check_greedy(name, methods)
  check_thresholds(thresholds)
  for name, axis in (('num_draft_tokens', num_draft_tokens), ('batch_sizes', batch_sizes), ('seeds', seeds)):
    for value in axis:
      check_integer(name, value)
  _report_left_out(chosen, samplings, greedy_methods)
  knobs = {method.name: knob_values(method, thresholds) for method in chosen}
  lengths = list(dict.fromkeys(num_draft_tokens))
  is_sampled = {sampling: sampling.temperature > 0 for sampling in samplings}
  if len(set(seeds)) > 1 and not all(is_sampled.values()):
    LOG.info('temperature 0 is run with seed %d only: seeds change no greedy token', seeds[0])
  settings = [
      setting for setting in itertools.product(*map(dict.fromkeys, (pairs, tasks, batch_sizes, samplings, seeds)))
      if is_sampled[setting[3]] or setting[4] == seeds[0]]
  return [
      Block(tuple(
          Point(pair=pair, task=task, method=method.name, rule=method.rule, knob=knob, num_draft_tokens=k,
                verifier=method.verifier, sampling=sampling, seed=seed, batch=batch)
          for method in _at(chosen, sampling, greedy_methods)
          for k in (lengths if method.drafts else (0,)) for knob in knobs[method.name]))
      for pair, task, batch, sampling, seed in settings]
