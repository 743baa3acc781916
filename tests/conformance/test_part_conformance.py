"""Every rule and every drafter that the packages export passes its conformance suite."""

import types as python_types
from typing import Any, ClassVar

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import rules
from specjax.core import types
from specjax.testing import adversarial
from specjax.testing import conformance
from specjax.testing import toy

VOCAB = 6
# How to build a part that needs arguments; a new rule with numbers and static options only is found by itself.
THRESHOLD = 0.4


RULES = conformance.rule_variants(rules)
every_rule = pytest.mark.parametrize('name, options', RULES, ids=[' '.join([name, *o.values()]) for name, o in RULES])


def build_rule(name, options):
  rule = getattr(rules, name)
  return rule(**{knob: np.float32(THRESHOLD) for knob in rule.knobs}, **options)


def build_drafter(name):
  """(drafter, its parameters)."""
  model = toy.ToyLM(vocab_size=VOCAB, memory=4)
  params = model.init(jax.random.key(2))
  if name == 'ModelDrafter':
    return drafters.ModelDrafter(model=model, num_draft_tokens=3), params
  if name == 'NoDrafter':
    return drafters.NoDrafter(vocab_size=VOCAB, num_draft_tokens=2), None
  if name == 'PromptLookup':
    return drafters.PromptLookup(vocab_size=VOCAB, num_draft_tokens=3, max_match=2), None
  if name == 'NgramDrafter':
    return drafters.NgramDrafter(vocab_size=VOCAB, num_draft_tokens=3, text_order=3), None
  raise NotImplementedError(f'tell build_drafter in {__file__} how to build {name}')


def rule_params(name, vocab_size):
  """A probe for the rule that reads one: of the drafter's law, or of a `ToyLM`'s hidden state."""
  return toy.linear_probe(np.linspace(-1, 1, vocab_size)) if name == 'LearnedDeferral' else None


@every_rule
def test_rule(name, options):
  conformance.check_rule(build_rule(name, options), rule_params=rule_params(name, VOCAB), vocab_size=VOCAB)


@every_rule
def test_joint_law_of_a_rule(name, options):
  conformance.check_rule_law(build_rule(name, options), rule_params=rule_params(name, 3))


@struct.dataclass(kw_only=True)
class TruncatedMixture:
  """A rule of the other kind: it mixes laws that are already truncated, and its goal is final."""

  share: Any
  truncates: ClassVar[str] = 'inputs'
  needs_drafter_law: ClassVar[bool] = True
  greedy_only: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('share',)
  is_lossless: ClassVar[bool] = False

  def __call__(self, params, inputs):
    share = jnp.asarray(self.share, inputs.target_log_probs.dtype)
    return types.Goal(jnp.log(
        share * jnp.exp(inputs.target_log_probs) + (1 - share) * jnp.exp(inputs.drafter_log_probs)), share)


def test_a_rule_that_reads_truncated_laws_is_not_truncated_again():
  conformance.check_rule(TruncatedMixture(share=0.5), values=(0.0, 0.3, 1.0))
  conformance.check_rule_law(TruncatedMixture(share=0.3))


# Trees have proposals of another kind: tests/exactness/test_exact_trees.py and tests/drafters/test_model_tree.py.
# Heads follow the target's pass, not the text alone: tests/drafters/test_heads.py.
CHAINS = [
    name for name in drafters.__all__ if hasattr(getattr(drafters, name), 'propose') and name not in (
        'ModelTreeDrafter', 'HeadDrafter')]


@pytest.mark.parametrize('name', CHAINS)
def test_drafter(name):
  drafter, params = build_drafter(name)
  conformance.check_drafter(drafter, params, vocab_size=VOCAB)


@pytest.mark.parametrize('policy', [
    drafters.MaxProbability(threshold=np.float32(0.4)), drafters.Entropy(threshold=np.float32(1.5)),
    drafters.Survival(threshold=np.float32(0.2))])
def test_drafter_that_stops_early(policy):
  model_drafter, params = build_drafter('ModelDrafter')
  conformance.check_drafter(model_drafter.replace(stopping=policy), params, vocab_size=VOCAB)


def test_drafter_with_a_cap_or_an_adversarial_policy():
  model_drafter, params = build_drafter('ModelDrafter')
  conformance.check_drafter(model_drafter.replace(max_draft_tokens=np.int32(1)), params, vocab_size=VOCAB)
  admissible = [p for p in adversarial.Policy if p != adversarial.Policy.PEEK]
  for start in (0, 2):
    policy = np.array(admissible[start:start + 4], np.int32)
    drafter = adversarial.AdversarialDrafter(
        model=model_drafter.model, num_draft_tokens=3, policy=policy, law=np.array([0, 3, 1, 0], np.int32))
    conformance.check_drafter(drafter, params, vocab_size=VOCAB)


def test_the_suite_fails_on_a_drafter_that_looks_at_the_drawn_token():
  model_drafter, params = build_drafter('ModelDrafter')
  peeking = adversarial.AdversarialDrafter(
      model=model_drafter.model, num_draft_tokens=3, policy=np.full(4, adversarial.Policy.PEEK, np.int32),
      law=np.zeros(4, np.int32))
  with pytest.raises(AssertionError, match='depends on the token drawn'):
    conformance.check_drafter(peeking, params, vocab_size=VOCAB)


def test_the_suite_fails_on_a_drafter_that_goes_stale():

  @struct.dataclass(kw_only=True)
  class Stale(drafters.ModelDrafter):

    def commit(self, params, state, *, tokens, length, verdict, target_output):
      return self.model.rewind(state, length - 1)

  model_drafter, params = build_drafter('ModelDrafter')
  stale = Stale(model=model_drafter.model, num_draft_tokens=3)
  with pytest.raises(AssertionError, match='stale'):
    conformance.check_drafter(stale, params, vocab_size=VOCAB)


@pytest.mark.parametrize('goal', [
    lambda rule, params, inputs: types.Goal(inputs.target_log_probs + 0.1, jnp.float32(1)),
    lambda rule, params, inputs: types.Goal(inputs.target_log_probs, jnp.float32(2)),
    lambda rule, params, inputs: types.Goal(jnp.log(jnp.exp(inputs.target_log_probs) * jnp.nan), jnp.float32(1))])
def test_the_suite_fails_on_a_rule_whose_goal_is_no_law(goal):
  wrong = python_types.new_class('Wrong', (rules.Lossless,), exec_body=lambda body: body.update(__call__=goal))
  with pytest.raises(AssertionError):
    conformance.check_rule(struct.dataclass(wrong)())
