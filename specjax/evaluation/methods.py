"""The decoding methods that can be named in a sweep: the law each follows, its knobs, and the decoder it stands for."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from specjax import routers
from specjax import rules
from specjax.core.errors import ConfigError
from specjax.decode import autoregressive
from specjax.decode import methods as decode_methods
from specjax.decode import recorders
from specjax.drafters import stopping
from specjax.evaluation import drafting

BASELINE = 'autoregressive'
# Tokens per row that one target pass of a token cascade feeds when it catches up.
CHUNK = 8

GROUPS = {
    'reference': 'References', 'lossy': 'Lossy verification', 'position': 'Cascades, position rules',
    'token': 'Cascades, token rules', 'mixture': 'Mixture and control', 'sequential': 'Sequential cascades',
    'drafting': 'Drafting methods',
}
# What the grids of cascades are about; drafting methods have a configuration of their own.
CASCADE_GROUPS = tuple(group for group in GROUPS if group != 'drafting')


@dataclasses.dataclass(frozen=True)
class Knob:
  """A number that a sweep or a calibration turns.

  Attributes:
    name: the parameter's.
    low, high: the ends of its range; beyond them nothing more changes.
    pivot, unit: distances from `pivot` are searched on a logarithmic scale that begins at `unit`; evenly without a unit.
  """

  name: str
  low: float
  high: float
  pivot: float = 0.0
  unit: float | None = None

  def coordinate(self, value):
    """Where `value` lies on the scale that is searched evenly; increasing."""
    if self.unit is None:
      return value
    distance = value - self.pivot
    return math.copysign(math.log10(1.0 + abs(distance) / self.unit), distance)

  def value(self, coordinate):
    """The inverse of `coordinate`."""
    if self.unit is None:
      return coordinate
    return self.pivot + math.copysign(self.unit * (10.0 ** abs(coordinate) - 1.0), coordinate)


class Setting(NamedTuple):
  """What a decoder is built for beside its knobs: K, 'rule' or 'target' for the bonus token, 'none' or 'summary'."""

  num_draft_tokens: int
  bonus: Literal['rule', 'target']
  detail: Literal['none', 'summary']


@dataclasses.dataclass(frozen=True)
class Method:
  """One way of decoding.

  Attributes:
    name: what it is called in configurations, rows and tables.
    title: what it is called in figures.
    summary: one line for `list methods`.
    group: a key of `GROUPS`; a panel of a figure shows one group.
    build: (knob values by name, `Setting`) -> a function of a pair that returns the decoder. Values never compile.
    execution: 'alone' (one model), 'speculative' (draft and verify), 'token' (either model generates the next token),
      'query' (a whole answer is kept, or generated again).
    model: whose law is decoded when alone, 'target' or 'drafter'.
    rule: name of the deferral rule, None without one.
    knobs: what a sweep turns.
    thresholds: the sweep when the configuration names none: numbers, or tuples in knob order.
    verifier: 'token' or 'block', 'recursive', 'traversal' or 'typical' for trees, None where nothing is verified.
    lossless: whether the output follows the target's law exactly.
    greedy_only: whether it exists at temperature 0 only.
    is_oracle: whether it asks both models at every token in order to decide, so that its time says nothing.
    tree: what of K levels a round drafts: 'shape' the static tree of `drafting.tree_shape`, 'paths' the best paths of a
      lattice; None where it drafts K tokens in a row.
    needs: parts of a pair beside its models, of `drafting.PARTS`.
    roles: what drafts, name -> 'calls' where it passes once per counted drafter call, 'steps' where once per round.
  """

  name: str
  title: str
  summary: str
  group: str
  build: Callable[[Mapping[str, float], Setting], Callable[[Any], Any]]
  execution: Literal['alone', 'speculative', 'token', 'query'] = 'speculative'
  model: Literal['target', 'drafter'] = 'target'
  rule: str | None = None
  knobs: tuple[Knob, ...] = ()
  thresholds: tuple[Any, ...] = ()
  verifier: str | None = None
  lossless: bool = False
  greedy_only: bool = False
  is_oracle: bool = False
  tree: Literal['shape', 'paths'] | None = None
  needs: tuple[str, ...] = ()
  roles: Mapping[str, Literal['calls', 'steps']] = dataclasses.field(
      default_factory=lambda: {'drafter': 'calls'}, hash=False)

  @property
  def drafts(self):
    """Whether draft tokens are proposed and verified, K of them."""
    return self.execution == 'speculative'

  @property
  def is_tree(self):
    """Whether a round drafts a tree."""
    return self.tree is not None

  @property
  def keeps_greedy(self):
    """Whether its greedy output is the target's."""
    return self.lossless or self.rule == 'typical'

  @property
  def defers(self):
    """Whether its knob trades the target's tokens for the drafter's, so that there is a deferral to speak of."""
    return self.execution != 'alone' and self.group != 'drafting'

  def num_nodes(self, num_draft_tokens):
    """How many draft tokens a round verifies at most: K, or all nodes of a tree of K levels."""
    if self.tree is None:
      return num_draft_tokens
    return drafting.tree_shape(num_draft_tokens).num_nodes if self.tree == 'shape' else drafting.num_path_nodes(num_draft_tokens)

  @property
  def knob_names(self):
    """The knobs' names, in order."""
    return tuple(knob.name for knob in self.knobs)

  @property
  def first_knob(self):
    """Knob values by name at the first point of its sweep; {} without knobs."""
    first = self.thresholds[0] if self.thresholds else ()
    return dict(zip(self.knob_names, first if isinstance(first, tuple) else (first,), strict=True))


def _alone(model):
  return lambda knob, setting: lambda pair: autoregressive.decoder(getattr(pair, model)).replace(with_log_probs=False)


def _speculative(rule_type, *, verifier='token', **options):
  """The loop with one rule, whose knobs are the method's."""
  return lambda knob, setting: _loop(rule_type(**knob, **options), setting, verifier=verifier)


def _loop(rule, setting, *, bonus=None, **options):
  return decode_methods.speculative(
      num_draft_tokens=setting.num_draft_tokens, rule=rule, bonus=bonus or setting.bonus, with_log_probs=False,
      recorder=recorders.SummaryRecorder() if setting.detail == 'summary' else None, **options)


def _bild(knob, setting):
  return _loop(
      rules.Bild(rollback_threshold=knob['rollback_threshold']), setting, bonus='target',
      stopping=stopping.MaxProbability(threshold=knob['fallback_threshold']))


def _bild_star(knob, setting):
  return _loop(rules.Bild(**knob), setting, bonus='target')


def _routed(router_type):
  return lambda knob, setting: decode_methods.token_cascade(router=router_type(**knob), chunk=CHUNK)


def _sequence(confidence, quantile=None):
  return lambda knob, setting: decode_methods.sequence_cascade(confidence=confidence, quantile=quantile, **knob)


def _knobbed(name, title, summary, *, group, rule, build, knob, thresholds, verifier='token', **more):
  return Method(name, title, summary, group, build, rule=rule, knobs=(knob,), thresholds=thresholds, verifier=verifier,
                **more)


_SHARE = Knob('threshold', 0.0, 1.0)
_DIFFERENCE = Knob('threshold', -1.0, 1.0)
_PER_DISTANCE = Knob('threshold', -1e4, 1e4, unit=0.01)
# Where most tokens are nearly certain, what happens close to 1 counts.
_NEAR_ONE = Knob('threshold', 0.0, 1.0, pivot=1.0, unit=1e-7)
_NEAR_ONE_SIGNED = Knob('threshold', -1.0, 1.0, pivot=1.0, unit=1e-7)
_LENIENCE = Knob('lenience', 0.0, 1.0 - 1e-7, pivot=1.0, unit=1e-7)
_ROLLBACK = Knob('rollback_threshold', 0.0, 50.0, unit=0.01)

# Sweeps that trace a curve on the built-in pairs, whose models are sure of most tokens.
_SHARES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9)
_SIGNED = (-0.1, 0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 0.6, 0.9)
_TAIL = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 1.0)
_LENIENCES = (0.5, 0.8, 0.9, 0.97, 0.99, 0.997, 0.999, 0.9999)


_REFERENCES = (
    Method(BASELINE, 'Target alone', 'the target alone, one token per pass: the baseline', 'reference',
           _alone('target'), execution='alone', lossless=True),
    Method('autoregressive_drafter', 'Drafter alone', 'the drafter alone: a reference point, other law',
           'reference', _alone('drafter'), execution='alone', model='drafter'),
    Method('speculative', 'Speculative decoding', 'lossless draft and verify (Leviathan et al. 2023)', 'reference',
           _speculative(rules.Lossless), rule='lossless', verifier='token', lossless=True),
    Method('speculative_block', 'Speculative (block)', 'lossless, the block verified as a whole (Sun et al. '
           '2025)', 'reference', _speculative(rules.Lossless, verifier='block'), rule='lossless', verifier='block',
           lossless=True),
)

_LOSSY = tuple(
    _knobbed(name, title, summary, group='lossy', rule='lossy', knob=_LENIENCE, thresholds=_LENIENCES,
             build=_speculative(rules.LossySpeculative, residual=residual))
    for name, title, residual, summary in (
        ('lossy', 'Lossy', 'difference', 'accepts with min(1, p / ((1 - lenience) q)), residual (p - q)+ (Leviathan et al. '
         '2023)'),
        ('lossy_mass_balance', 'Lossy (balanced residual)', 'mass_balance', 'the same with residual (p / beta - q)+, beta '
         'solved (Tran-Thien 2023)'),
        ('lossy_target_residual', 'Lossy (target as residual)', 'target', 'the law of accepting leniently and drawing from '
         'the target after a rejection'))
) + (
    _knobbed('lossy_greedy', 'Lossy greedy', 'accepts a token with p >= (1 - lenience) max p; temperature 0 only',
             group='lossy', rule='lossy_greedy', build=_speculative(rules.LossyGreedy), knob=_LENIENCE,
             thresholds=_LENIENCES, greedy_only=True),
    Method('bild', 'BiLD', 'drafts while the drafter is sure, replaces what the target finds unlikely; temperature 0 only '
           '(Kim et al. 2023)', 'lossy', _bild, rule='bild', verifier='token', greedy_only=True,
           knobs=(Knob('fallback_threshold', 0.0, 1.0), _ROLLBACK),
           thresholds=tuple((fallback, rollback) for fallback in (0.2, 0.5, 0.8) for rollback in (2.0, 5.0, 8.0))),
    _knobbed('bild_star', 'BiLD*', 'BiLD with a fixed window and the rollback threshold alone; temperature 0 only',
             group='lossy', rule='bild', build=_bild_star, knob=_ROLLBACK, greedy_only=True,
             thresholds=(1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 8.5, 10.0)),
)

_POSITION = (
    _knobbed('cascade_chow', 'SpecCascade[Chow]', 'defers where the drafter is unsure', group='position', rule='chow',
             build=_speculative(rules.Chow), knob=_SHARE, thresholds=_SHARES),
    _knobbed('cascade_diff', 'SpecCascade[Diff]', 'defers where the target is surer than the drafter by the threshold',
             group='position', rule='diff', build=_speculative(rules.Diff), knob=_DIFFERENCE, thresholds=_SIGNED),
    _knobbed('cascade_opt', 'SpecCascade[OPT]', 'Diff with the threshold times the distance of the laws, the price of '
             'deferring', group='position', rule='opt', build=_speculative(rules.Opt, loss='zero_one'), knob=_PER_DISTANCE,
             thresholds=(-1.0, -0.3, 0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 1.0, 3.0)),
    _knobbed('cascade_opt_entropy', 'SpecCascade[OPT entropy]', 'OPT that reads confidence as entropy', group='position',
             rule='opt', build=_speculative(rules.Opt, loss='entropy'), knob=_PER_DISTANCE,
             thresholds=(-3.0, -0.3, 0.0, 0.3, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)),
)

_TOKEN = (
    _knobbed('cascade_token_v1', 'SpecCascade[TokenV1]', 'keeps drafter mass on tokens with q >= max p - threshold',
             group='token', rule='token_v1', build=_speculative(rules.TokenV1), knob=_NEAR_ONE_SIGNED,
             thresholds=(-0.2, 0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)),
    _knobbed('cascade_token_v2', 'SpecCascade[TokenV2]', 'keeps drafter mass on tokens with p >= max p - threshold',
             group='token', rule='token_v2', build=_speculative(rules.TokenV2), knob=_NEAR_ONE_SIGNED,
             thresholds=(0.0, 0.5, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0)),
    _knobbed('cascade_token_v3', 'SpecCascade[TokenV3]', 'keeps drafter mass on tokens with p >= (1 - threshold) max p '
             '(Narasimhan et al. 2025)', group='token', rule='token_v3', build=_speculative(rules.TokenV3), knob=_NEAR_ONE,
             thresholds=_TAIL),
)

_MIXTURE = (
    _knobbed('cascade_mixture', 'Mixture', 'the law (1 - weight) q + weight p at every position', group='mixture',
             rule='mixture', build=_speculative(rules.Mixture), knob=Knob('target_weight', 0.0, 1.0),
             thresholds=(0.0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95, 1.0)),
    _knobbed('truncated_target', 'Truncated target', 'the control: the target cut to p >= (1 - threshold) max p, decoded '
             'exactly', group='mixture', rule='truncated_target', build=_speculative(rules.TruncatedTarget), knob=_NEAR_ONE,
             thresholds=_TAIL),
)

_SEQUENTIAL = (
    _knobbed('token_cascade_chow', 'TokenCascade[Chow]', 'the drafter generates while it is sure, else the target gives '
             'the token', group='sequential', rule='chow', build=_routed(routers.ChowRouter), knob=_SHARE,
             thresholds=_SHARES, execution='token', verifier=None),
    _knobbed('sequence_cascade_chow', 'SeqCascade[Chow]', 'the drafter answers, the target again where the mean '
             'log-probability is below the threshold', group='sequential', rule='chow', build=_sequence('mean_log_prob'),
             knob=Knob('threshold', -20.0, 1.0, unit=1e-4), execution='query', verifier=None,
             thresholds=(-2.0, -1.5, -1.0, -0.7, -0.5, -0.3, -0.2, -0.1, -0.01)),
    _knobbed('oracle_diff', 'Oracle[Diff]', 'a token cascade that is told both laws: a bound on quality, without a time',
             group='sequential', rule='diff', build=_routed(routers.DiffOracle), knob=_DIFFERENCE, thresholds=_SIGNED,
             execution='token', verifier=None, is_oracle=True),
)



def _drafting(name, title, summary, build, **more):
  given = dict(rule='lossless', verifier='token', lossless=True) | more
  return Method(name, title, summary, 'drafting', build, **given)


_OF_HEADS = dict(needs=('heads',), roles={'heads': 'steps'})
# What a refinement's model weighs beside the heads; `calibrate --what=rescoring_weight` tunes it.
_WEIGHT = dict(knobs=(Knob('weight', 0.0, 16.0, unit=0.05),), thresholds=(0.5, 0.0, 0.1, 0.25, 1.0, 2.0, 4.0))
_LOCAL = dict(needs=('heads', 'rescorer'), roles={'heads': 'steps', 'rescorer': 'calls'}, **_WEIGHT)
_LATTICE_2 = dict(needs=('heads', 'ngrams_2'), roles={'heads': 'steps'}, **_WEIGHT)
_LATTICE_4 = dict(needs=('heads', 'ngrams_4'), roles={'heads': 'steps'}, **_WEIGHT)

_DRAFTING = (
    _drafting('prompt_lookup', 'Prompt lookup', 'copies what followed the latest tokens before (Saxena 2023)',
              drafting.prompt_lookup, roles={}),
    _drafting('early_exit', 'Early exit', "half of the target's own layers draft for all of them (Elhoushi et al. 2024)",
              drafting.early_exit, needs=('layers',), roles={'layers': 'calls'}),
    _drafting('speculative_tree', 'Tree', 'a tree drawn from the drafter without replacement, tested from the root (Miao et al. '
              '2024)', drafting.model_tree('recursive'), verifier='recursive', tree='shape'),
    _drafting('speculative_tree_traversal', 'Tree (traversal)', 'the same tree, tested from its leaves (Weng et al. 2025)',
              drafting.model_tree('traversal'), verifier='traversal', tree='shape'),
    _drafting('blockwise', 'Blockwise', "heads on the target's last hidden state draft K tokens (Stern et al. 2018)",
              drafting.heads_chain, **_OF_HEADS),
    _drafting('blockwise_local', 'Blockwise + local', 'a small model chooses among the best tokens of each head, in view of '
              'those before (Kim et al. 2024)', drafting.rescored_heads, **_LOCAL),
    _drafting('blockwise_2gram', 'Blockwise + 2-gram', 'the best path through the lattice of the heads\' best tokens, with a '
              '2-gram model (Kim et al. 2024)', drafting.lattice_heads(2), **_LATTICE_2),
    _drafting('blockwise_4gram', 'Blockwise + 4-gram', 'the same with a 4-gram model', drafting.lattice_heads(4), **_LATTICE_4),
    _drafting('blockwise_16best_0gram', '16-best 0-gram', 'the 16 best paths by the heads alone, verified as one tree',
              drafting.lattice_heads(0, num_best=drafting.NUM_BEST), verifier='recursive', tree='paths', **_OF_HEADS),
    _drafting('blockwise_16best_4gram', '16-best 4-gram', 'the 16 best paths with a 4-gram model, verified as one tree',
              drafting.lattice_heads(4, num_best=drafting.NUM_BEST), verifier='recursive', tree='paths', **_LATTICE_4),
    _drafting('medusa_tree', 'Medusa tree', 'heads draft a tree, tested without loss (Cai et al. 2024)', drafting.heads_tree,
              verifier='recursive', tree='shape', **_OF_HEADS),
    _drafting('medusa_local', 'Medusa tree + local', 'the same tree, its tokens chosen by a small model in view of those above',
              drafting.rescored_tree, verifier='recursive', tree='shape', **_LOCAL),
    _drafting('medusa_typical', 'Medusa typical', 'the same tree, accepted where p > min(epsilon, sqrt(epsilon) exp(-H)): lossy '
              'above temperature 0 (Cai et al. 2024)', drafting.heads_tree, rule='typical', verifier='typical', lossless=False,
              tree='shape', knobs=(Knob('epsilon', 1e-6, 1.0 - 1e-6, unit=1e-3),),
              thresholds=(0.01, 0.04, 0.09, 0.16, 0.25, 0.36), **_OF_HEADS),
    _drafting('autoregressive_head', 'Autoregressive head', "one decoder layer continues the target's hidden states (Li et al. "
              '2024, EAGLE)', drafting.autoregressive_head, needs=('autoregressive_head',), roles={'autoregressive_head': 'calls'}),
    _drafting('ngram', '4-gram', 'a trained 4-gram model drafts', drafting.ngram('trained', 4), needs=('ngrams_4',), roles={}),
    _drafting('ngram_text', '3-gram of the text', 'a 3-gram model of the text so far drafts', drafting.ngram('text', 3), roles={}),
)

METHODS = {
    method.name: method
    for method in (*_REFERENCES, *_LOSSY, *_POSITION, *_TOKEN, *_MIXTURE, *_SEQUENTIAL, *_DRAFTING)}


def lookup(name: str) -> Method:
  """The `Method` called `name`.

  Raises:
    ConfigError: there is none; names the nearest.
  """
  if name not in METHODS:
    near = difflib.get_close_matches(name, METHODS, n=1)
    raise ConfigError(
        what=f'unknown method {name!r}', where='methods', expected=f'one of {", ".join(METHODS)}',
        fix=f'Did you mean {near[0]!r}?' if near else None)
  return METHODS[name]


def build_decoder(pair, method: Method, *, knob: Mapping[str, float], setting: Setting):
  """(decoder, params): the loop of one method on a loaded pair.

  Args:
    pair: a `specjax.Pair`.
    method: which method.
    knob: name -> value; traced, so another value never recompiles.
    setting: K, the bonus token's law and what is recorded.

  Raises:
    ConfigError: the pair lacks a part that the method needs.
  """
  if method.execution == 'alone':
    params = {'target': pair.params[method.model]}
  else:
    params = {role: pair.params[role] for role in ('target', 'drafter')}
    pair, of_parts = drafting.equipped(pair, method.needs, method=method.name)
    params |= of_parts
  return method.build(knob, setting)(pair), params
