"""The points of a sweep: pair x task x batch x sampling x seed x method x K x knob, each with an id of its own."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from specjax.core import checks
from specjax.core.errors import ConfigError
from specjax.decode import methods as decode_methods
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import row_log

VERIFIER = 'token'
MAX_BATCH = 2**16
SAMPLING = ('temperature', 'top_p', 'top_k', 'min_p')


@dataclasses.dataclass(frozen=True)
class Point:
  """One setting of a sweep. Points that differ only in `seed` are replicas of one series.

  Attributes:
    pair, task: names.
    method, rule: names from `specjax.evaluation.methods`; `rule` is None for autoregressive decoding.
    knob: ((name, value), ...), what the rule is turned by; empty if it has none.
    num_draft_tokens: K.
    verifier: None for autoregressive decoding.
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
        'batch': self.batch, 'pair': self.pair, 'task': self.task,
    }

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
    """A short name for logs: method, knob, K and temperature."""
    knob = ''.join(f' {name}={value:g}' for name, value in self.knob)
    draft = f' K={self.num_draft_tokens}' if self.num_draft_tokens else ''
    return f'{self.pair} {self.task} {self.method}{knob}{draft} T={self.sampling.temperature:g}'


@dataclasses.dataclass(frozen=True)
class Block:
  """Points that are timed against each other: same pair, task, batch, sampling and seed, the baseline first."""

  points: tuple[Point, ...]

  def order(self, visit):
    """The points in the order of one visit: forward, then backward, so that drift hits both sides (ABBA)."""
    return self.points if visit % 2 == 0 else self.points[::-1]


def knob_values(method: methods_lib.Method, thresholds: Mapping | Sequence):
  """The knob settings of one method, as tuples of (name, value) pairs.

  Args:
    method: the method.
    thresholds: values for every method that has a knob, or a mapping from the method's name.

  Raises:
    ConfigError: a method with a knob and no value for it.
  """
  if method.knob is None:
    return [()]
  values = thresholds.get(method.name, ()) if isinstance(thresholds, Mapping) else thresholds
  values = list(dict.fromkeys(float(value) for value in values))
  if not values:
    raise ConfigError(
        what=f'no value of {method.knob} for {method.name}', where='thresholds', got=thresholds,
        expected='at least one number', fix=f'Give thresholds = {{{method.name!r}: [...]}}.')
  return [((method.knob, value),) for value in values]


def _check_rule(method, knob, sampling):
  """`ParamError` for a rule that refuses a knob value or a temperature, before any pair is loaded."""
  if method.rule_type is not None:
    decode_methods.check_sampling(decode_methods.check_rule(method.rule_type(**dict(knob))), sampling)


def _unknown_thresholds(methods, thresholds):
  if not isinstance(thresholds, Mapping):
    return
  known = {method.name for method in methods if method.knob}
  unknown = sorted(set(thresholds) - known - {m.name for m in methods_lib.METHODS.values() if m.knob})
  if unknown:
    raise ConfigError(
        what=f'thresholds for {unknown[0]!r}', where='thresholds', expected=f'one of {sorted(known)}')


def blocks(
    *, pairs: Sequence[str], tasks: Sequence[str], methods: Sequence[str], thresholds: Mapping | Sequence,
    num_draft_tokens: Sequence[int], samplings: Sequence[checks.SamplingParams], seeds: Sequence[int],
    batch_sizes: Sequence[int],
):
  """The `Block`s of a sweep, in the order they are run.

  Raises:
    ConfigError: an empty axis, an unknown method or a method without a knob value.
    ParamError: K, seed, batch size or a knob out of range, or a greedy rule at a temperature above 0.
  """
  axes = dict(pairs=pairs, tasks=tasks, methods=methods, num_draft_tokens=num_draft_tokens, samplings=samplings,
              seeds=seeds, batch_sizes=batch_sizes)
  for name, axis in axes.items():
    if not axis:
      raise ConfigError(what=f'empty {name}', where=f'evaluate.{name}', expected='at least one value')
  chosen = [methods_lib.lookup(name) for name in dict.fromkeys(methods)]
  _unknown_thresholds(chosen, thresholds)
  for name, axis, low, high in (('num_draft_tokens', num_draft_tokens, 1, checks.MAX_DRAFT_TOKENS),
                                ('batch_sizes', batch_sizes, 1, MAX_BATCH), ('seeds', seeds, 0, 2**32 - 1)):
    for value in axis:
      checks.integer(name, value, low=low, high=high, where=f'evaluate.{name}')
  for method in chosen:
    for knob in knob_values(method, thresholds):
      for sampling in samplings:
        _check_rule(method, knob, sampling)
  found = []
  for pair in dict.fromkeys(pairs):
    for task in dict.fromkeys(tasks):
      for batch in dict.fromkeys(batch_sizes):
        for sampling in dict.fromkeys(samplings):
          for seed in dict.fromkeys(seeds):
            points = tuple(
                Point(pair=pair, task=task, method=method.name, rule=method.rule, knob=knob, num_draft_tokens=k,
                      verifier=VERIFIER if method.drafts else None, sampling=sampling, seed=seed, batch=batch)
                for method in chosen
                for k in (dict.fromkeys(num_draft_tokens) if method.drafts else (0,))
                for knob in knob_values(method, thresholds))
            found.append(Block(points))
  return found
