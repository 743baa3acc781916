"""Host-side checks: every value a user types is refused here, by name, before anything compiles."""

from collections.abc import Collection, Mapping
import dataclasses
import functools
import math
import numbers
import warnings

import numpy as np

from specjax.core import errors

MAX_DRAFT_TOKENS = 256
MAX_NEW_TOKENS = 1 << 20
MAX_SAMPLES = 4096
MAX_PROMPT_TOKENS = 1 << 20
MAX_STEPS = 1 << 40
MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 2.0
MAX_LOGIT_BIAS = 1e4

# Processors whose effect depends on what was generated change the law within a round; they are refused by name.
HISTORY_DEPENDENT = (
    'repetition_penalty', 'presence_penalty', 'frequency_penalty', 'no_repeat_ngram_size', 'encoder_repetition_penalty',
    'min_new_tokens', 'min_length', 'bad_words_ids', 'mirostat', 'dry_multiplier', 'xtc_probability', 'grammar',
    'guided_json', 'logits_processor')

# Knobs of rules with a range of their own; any other is a finite number.
_KNOB_RANGES = {
    'lenience': dict(  # The largest float32 below 1: what rounds to 1 would divide by 0.
        low=0, high=1 - 2**-24,
        fix="0 is lossless, at 1 nothing would be verified; Leviathan's factor l is 1 - lenience"),
    'rate': dict(low=0, high=1),
    'epsilon': dict(low=0, high=1 - 2**-24, fix='at 1 nothing is accepted, at temperature 0 either'),
    'delta': dict(low=0, low_open=True),
    'target_weight': dict(low=0, high=1)}


def real(name, value, *, low=-math.inf, high=math.inf, low_open=False, high_open=False, fix=None, where=None):
  """`value` as a float inside the interval; otherwise `ParamError`."""
  bounds = f"a number in {'(' if low_open else '['}{low:.9g}, {high:.9g}{')' if high_open else ']'}"
  if getattr(value, 'ndim', None) == 0 and not isinstance(value, np.generic):
    value = np.asarray(value)[()]  # An array of one number is a number.
  if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, np.floating, np.integer)):
    raise errors.ParamError(what=name, where=where, got=value, expected=bounds, fix=fix)
  value = float(value)
  inside = (low < value if low_open else low <= value) and (value < high if high_open else value <= high)
  if not math.isfinite(value) or not inside:
    raise errors.ParamError(what=name, where=where, got=value, expected=bounds, fix=fix)
  return value


def integer(name, value, *, low, high, fix=None, where=None, over=errors.LimitError):
  """`value` as an int in [low, high]; `ParamError` below or when not an integer, `over` (a cap) above."""
  expected = f'an integer in [{low}, {high}]'
  is_integer = isinstance(value, (numbers.Integral, np.integer)) and not isinstance(value, (bool, np.bool_))
  if not is_integer or value < low:
    raise errors.ParamError(what=name, where=where, got=value, expected=expected, fix=fix)
  if value > high:
    raise over(what=name, where=where, got=int(value), expected=expected, fix=fix or f'the cap on {name} is {high}')
  return int(value)


def choice(name, value, allowed, *, where=None):
  """`value` if it is one of the strings `allowed`; otherwise `ParamError`."""
  if not isinstance(value, str) or value not in allowed:
    raise errors.ParamError(what=name, where=where, got=value, expected=f'one of {tuple(allowed)}')
  return value


def knob(name, value, *, where=None):
  """`value` as a number that a rule may be turned by, in the range of the knob called `name`; otherwise `ParamError`."""
  return real(name if where is None else f'{where}.{name}', value, **_KNOB_RANGES.get(name, {}))


def _refusing_processors(cls):
  """`cls`, whose constructor names a processor that it refuses; Python's TypeError would not say why."""
  construct = cls.__init__

  @functools.wraps(construct)
  def checked(self, **values):
    for name in values:
      refuse_processor(name)
    construct(self, **values)

  cls.__init__ = checked
  return cls


@_refusing_processors
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
  """Sampling parameters of a request, checked. Applied to both models, in this order.

  Attributes:
    temperature: 0 (greedy) or [0.01, 2]; smaller positive values are raised to 0.01 with a warning.
    top_k: 0 or -1 keeps every token.
    top_p: in (0, 1].
    min_p: in [0, 1].
    logit_bias: dict token id -> number added to the logit, at most 1e4 in size, or None. To forbid a token leave it out
      of `allowed_tokens`.
    allowed_tokens: the token ids that may be generated, or None.
  """

  temperature: float
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  logit_bias: dict[int, float] | None = None
  allowed_tokens: tuple[int, ...] | None = None

  def __post_init__(self):
    temperature = real('temperature', self.temperature, low=0, high=MAX_TEMPERATURE)
    if 0 < temperature < MIN_TEMPERATURE:
      warnings.warn(f'temperature {temperature:g} raised to {MIN_TEMPERATURE}: below it float32 laws lose their tail')
      temperature = MIN_TEMPERATURE
    top_k = integer('top_k', self.top_k, low=-1, high=2**31 - 1)
    top_p = real('top_p', self.top_p, low=0, high=1, low_open=True)
    min_p = real('min_p', self.min_p, low=0, high=1)
    if temperature == 0 and (top_k > 0 or top_p < 1 or min_p > 0):
      warnings.warn('temperature 0 is greedy: top_k, top_p and min_p have no effect')
      top_k, top_p, min_p = 0, 1.0, 0.0
    object.__setattr__(self, 'temperature', temperature)
    object.__setattr__(self, 'top_k', max(top_k, 0))
    object.__setattr__(self, 'top_p', top_p)
    object.__setattr__(self, 'min_p', min_p)
    _check_logit_bias(self.logit_bias)
    object.__setattr__(self, 'allowed_tokens', _checked_allowed_tokens(self.allowed_tokens))

  @property
  def truncates(self):
    """Whether top-k, top-p or min-p may change the law."""
    return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

  @classmethod
  def from_dict(cls, values):
    """`SamplingParams` from a mapping; unknown and history-dependent names are refused."""
    known = {field.name for field in dataclasses.fields(cls)}
    for name in values:
      refuse_processor(name)
      if name not in known:
        raise errors.ParamError(what='sampling parameter', got=name, expected=f'one of {sorted(known)}')
    return cls(**values)


def _check_logit_bias(logit_bias):
  if logit_bias is None:
    return
  if not isinstance(logit_bias, Mapping):
    raise errors.ParamError(what='logit_bias', got=logit_bias, expected='a dict token id -> number')
  for token, bias in logit_bias.items():
    integer('logit_bias token id', token, low=0, high=2**31 - 1, over=errors.ParamError)
    # A larger number swallows the logits: in float32 the other tokens' differences are rounded away.
    real(f'logit_bias[{token}]', bias, low=-MAX_LOGIT_BIAS, high=MAX_LOGIT_BIAS, fix='allowed_tokens forbids a token')


def _checked_allowed_tokens(tokens):
  """Tuple of the ids, or None."""
  if tokens is None:
    return None
  is_list = isinstance(tokens, Collection) and not isinstance(tokens, (str, bytes, Mapping))
  if not is_list or (isinstance(tokens, np.ndarray) and tokens.ndim != 1):
    raise errors.ParamError(what='allowed_tokens', got=tokens, expected='a list of token ids')
  if not len(tokens):
    raise errors.ParamError(
        what='allowed_tokens', got=(), expected='at least one token id', fix='use None to allow every token')
  return tuple(integer('allowed token id', token, low=0, high=2**31 - 1, over=errors.ParamError) for token in tokens)


def refuse_processor(name):
  """`ParamError` for a processor that depends on the generated history."""
  if name in HISTORY_DEPENDENT:
    raise errors.ParamError(
        what=f'{name}: a processor that depends on the generated history', got=name,
        expected='processors that are a function of the logits alone (logit_bias, allowed_tokens)',
        fix='the tokens of one round are verified together, each must have a law of its own; decode without it')


def seed(value):
  """`value` as a seed in [0, 2^32)."""
  return integer('seed', value, low=0, high=2**32 - 1, over=errors.ParamError,
                 fix='seeds are 32 bits: key(2**32) would equal key(0)')


def token_ids(ids, vocab_size, *, what='token id', where=None):
  """`VocabError` unless every id lies in [0, vocab_size)."""
  ids = np.asarray(ids)
  if ids.size and not np.issubdtype(ids.dtype, np.integer):
    raise errors.VocabError(what=what, where=where, got=str(ids.dtype), expected='integers')
  bad = ids[(ids < 0) | (ids >= vocab_size)] if ids.size else ids
  if bad.size:
    raise errors.VocabError(
        what=what, where=where, got=int(bad.flat[0]), expected=f'0 <= id < {vocab_size}',
        fix='the prompt was tokenised for another vocabulary')


def matching_vocabularies(drafter_size, target_size):
  """`VocabError` unless the two sizes are equal."""
  if drafter_size != target_size:
    raise errors.VocabError(
        f'drafter vocabulary {drafter_size} != target vocabulary {target_size}: pad the drafter\'s embedding or choose a '
        f'matching pair; the first differing token is {min(drafter_size, target_size)}',
        what='vocabulary', got=drafter_size, expected=target_size)


def num_draft_tokens(value):
  """`value` as a draft length K in [0, 256]."""
  return integer('num_draft_tokens', value, low=0, high=MAX_DRAFT_TOKENS)


def max_new_tokens(value):
  """`value` as a number of new tokens in [0, 2^20]."""
  return integer('max_new_tokens', value, low=0, high=MAX_NEW_TOKENS)
