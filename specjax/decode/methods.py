"""Methods: functions of a pair that return a decoder, so that one name serves every pair."""

from specjax.core import checks
from specjax.core import errors
from specjax.decode import autoregressive as autoregressive_decoding
from specjax.decode import speculative as speculative_decoding
from specjax.drafters import model as model_drafter
from specjax.rules import lossless


def speculative(*, num_draft_tokens, rule=None, bonus='rule', max_draft_tokens=None, with_log_probs=True):
  """A method: speculative decoding with the pair's drafter.

  Args:
    num_draft_tokens: K in [0, 256]; 0 is autoregressive decoding of the target, and refuses a rule with another law.
    rule: a target rule (`specjax.rules`); None is lossless.
    bonus: 'rule' or 'target', the law of the token after full acceptance.
    max_draft_tokens: traced cap in 0..K on the proposal's length; 0 is the autoregressive baseline of the same executable.
    with_log_probs: keep the target's log-probabilities.
  """
  checks.num_draft_tokens(num_draft_tokens)
  if max_draft_tokens is not None:
    checks.integer('max_draft_tokens', max_draft_tokens, low=0, high=num_draft_tokens, over=errors.ParamError)
  if bonus not in ('rule', 'target'):
    raise errors.ParamError(what='bonus', got=bonus, expected="'rule' or 'target'")
  rule = lossless.Lossless() if rule is None else check_rule(rule)
  if num_draft_tokens == 0 and not rule.is_lossless:
    raise errors.ParamError(
        what=f'rule {type(rule).__name__} with num_draft_tokens', got=0, expected='at least 1',
        fix="without drafts there is the target's law alone: leave the rule out, or draft; max_draft_tokens=0 keeps a rule")

  def method(pair):
    if num_draft_tokens == 0:
      return autoregressive_decoding.decoder(pair.target).replace(with_log_probs=with_log_probs)
    drafter = model_drafter.ModelDrafter(
        model=pair.drafter, num_draft_tokens=num_draft_tokens, max_draft_tokens=max_draft_tokens)
    return speculative_decoding.SpeculativeDecoder(
        target=pair.target, drafter=drafter, rule=rule, bonus=bonus, with_log_probs=with_log_probs)

  return method


def autoregressive(*, width=1):
  """A method: the target alone, one token per pass; `width` > 1 makes each pass that wide (K + 1 for a same-width baseline)."""
  checks.integer('width', width, low=1, high=checks.MAX_DRAFT_TOKENS + 1)
  return lambda pair: autoregressive_decoding.decoder(pair.target, width=width)


def _check_part(what, part, attribute, expected):
  """`ParamError` for a part that is a name, a number or a class that was not called."""
  if isinstance(part, type) or getattr(part, attribute, None) is None:
    got = part.__name__ if isinstance(part, type) else part
    raise errors.ParamError(what=what, got=got, expected=expected)


def check_rule(rule):
  """`rule`, or `ParamError` for a knob that is not a number in its range."""
  _check_part('rule', rule, 'is_lossless', 'a rule such as specjax.Chow(threshold=0.3)')
  for knob in rule.knobs:
    checks.knob(knob, getattr(rule, knob), where=type(rule).__name__)
  return rule


def check_sampling(rule, sampling):
  """`ParamError` when a rule that is defined for greedy decoding meets a temperature above 0."""
  if rule.greedy_only and sampling.temperature > 0:
    raise errors.ParamError(
        what=f'temperature with the rule {type(rule).__name__}', got=sampling.temperature,
        expected='0: the rule is defined for greedy decoding only',
        fix='Set temperature=0, or choose a rule for sampling, such as TokenV3 or LossySpeculative.')
