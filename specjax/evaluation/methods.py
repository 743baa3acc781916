"""The decoding methods that can be named in a sweep, and the decoder each one stands for."""

import dataclasses
import difflib
from typing import Any

from specjax import rules
from specjax.core.errors import ConfigError
from specjax.decode import autoregressive
from specjax.decode import methods as decode_methods


@dataclasses.dataclass(frozen=True)
class Method:
  """One way of decoding.

  Attributes:
    name: what it is called in configurations, rows and tables.
    title: what it is called in figures.
    summary: one line for `list methods`.
    model: whose law is decoded, 'target' or 'drafter'.
    rule: name of the deferral rule, None for autoregressive decoding.
    rule_type: its constructor; takes the knob by name.
    knob: name of the number that a sweep turns, or None.
    lossless: whether the output follows the target's law exactly.
    drafts: whether draft tokens are proposed.
  """

  name: str
  title: str
  summary: str
  model: str = 'target'
  rule: str | None = None
  rule_type: Any = None
  knob: str | None = None
  lossless: bool = False

  @property
  def drafts(self):
    return self.rule is not None


BASELINE = 'autoregressive'

METHODS = {
    method.name: method
    for method in (
        Method(BASELINE, 'Target, autoregressive', 'the target alone, one token per pass: the baseline', lossless=True),
        Method('autoregressive_drafter', 'Drafter, autoregressive', 'the drafter alone: a reference point, other law',
               model='drafter'),
        Method('speculative', 'Speculative decoding', 'lossless draft and verify (Leviathan et al. 2023)',
               rule='lossless', rule_type=rules.Lossless, lossless=True),
        Method('cascade_chow', 'Cascade, Chow', 'speculative cascade that defers where the drafter is unsure',
               rule='chow', rule_type=rules.Chow, knob='threshold'),
        Method('cascade_token_v3', 'Cascade, TokenV3', 'speculative cascade with the token-specific rule V3 (Narasimhan '
               'et al. 2025)', rule='token_v3', rule_type=rules.TokenV3, knob='threshold'),
    )
}


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


def build_decoder(pair, method: Method, *, knob: dict, num_draft_tokens: int, bonus: str):
  """(decoder, params): the loop of one method on a loaded pair.

  Args:
    pair: a `specjax.Pair`.
    method: which method.
    knob: name -> value; traced, so another value never recompiles.
    num_draft_tokens: K; unused by autoregressive methods.
    bonus: whose law the token after full acceptance follows, 'rule' or 'target'.
  """
  if method.drafts:
    build = decode_methods.speculative(
        num_draft_tokens=num_draft_tokens, rule=method.rule_type(**knob), bonus=bonus, with_log_probs=False)
    return build(pair), {role: pair.params[role] for role in ('target', 'drafter')}
  model = pair.target if method.model == 'target' else pair.drafter
  decoder = autoregressive.decoder(model).replace(with_log_probs=False)
  return decoder, {'target': pair.params[method.model]}
