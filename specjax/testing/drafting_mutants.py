"""Planted bugs of drafts that end early, as in `mutants`, with the detector that must see each of them.

    with drafting_mutants.MUTANTS['D01'].applied():
      drafting_mutants.DETECTORS['stopping_law']()   # raises AssertionError
"""

import types

import jax
import jax.numpy as jnp
import numpy as np

from specjax import drafters
from specjax import rules
from specjax.decode import speculative
from specjax.drafters import model as model_drafter
from specjax.drafters import stopping
from specjax.ops import warping
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import mutants
from specjax.testing import oracles
from specjax.testing import toy

MUTANTS: dict[str, mutants.Mutant] = {}
THRESHOLD = 0.35
NUM_DRAFT_TOKENS = 3

_REQUESTS = [
    exactness.Request(prompt=(1,), max_new_tokens=5),
    exactness.Request(prompt=(0, 1, 1), max_new_tokens=5, warp=oracles.Warp(temperature=0.6))]


def survival_stop(laws, *, threshold=THRESHOLD):
  """The oracle's counterpart of `stopping.Survival`: the `stop` argument of `oracles.round_structured`."""
  plain = lambda prefix: laws.warp.plain(laws._drafter(prefix))

  def stop(prefix, drafted, law):
    del law
    own = [plain(prefix + drafted[:i])[drafted[i]] for i in range(len(drafted))]
    return float(np.prod(own) * plain(prefix + drafted).max() < threshold)

  return stop


def _found():
  with jax.enable_x64(True):
    pair = toy.toy_pair(vocab_size=2, seed=5, scale=0.6)
    decoder = speculative.SpeculativeDecoder(
        target=pair.target, rule=rules.TokenV3(threshold=0.5), drafter=drafters.ModelDrafter(
            model=pair.drafter, num_draft_tokens=NUM_DRAFT_TOKENS, stopping=stopping.Survival(threshold=THRESHOLD)))
    joint = enumeration.Enumerator(rows=256).joint(
        decoder, pair.params, exactness.arrays(_REQUESTS, vocab_size=2),
        capacity=exactness.capacity(decoder, _REQUESTS))
    oracle = exactness.Oracle.of(_REQUESTS, target=pair.target, drafter=pair.drafter, params=pair.params)
    return exactness.compare(
        joint, oracle, num_draft_tokens=NUM_DRAFT_TOKENS, goal=oracles.token_v3_goal(0.5),
        stops=[survival_stop(oracle.laws(row)) for row in range(len(_REQUESTS))])


def stopping_law():
  """The joint law of TokenV3 is the same wherever drafts end."""
  worst = max(max(one.law, one.mass) for one in _found())
  if worst > 1e-12:
    raise AssertionError(f'the joint law is off by {worst:.2e} in total variation')


def stopping_counters():
  """Drafts end where the policy says: expected counters equal those of the oracle's policy."""
  worst = max(one.counters for one in _found())
  if worst > 1e-10:
    raise AssertionError(f'an expected counter is off by {worst:.2e}')


DETECTORS = {'stopping_law': stopping_law, 'stopping_counters': stopping_counters}


def _plant(identifier, killer, description):
  """Registers the decorated function, which returns the patches."""

  def register(patches):
    MUTANTS[identifier] = mutants.Mutant(identifier, description, killer, patches)
    return patches

  return register


def _propose(change):
  """Patches `ModelDrafter.propose` with `change(proposal)` behind it."""
  original = model_drafter.ModelDrafter.propose

  def propose(self, *args, **kwargs):
    proposal, state = original(self, *args, **kwargs)
    return change(proposal), state

  return [(model_drafter.ModelDrafter, 'propose', propose)]


@_plant('D01', 'stopping_law', 'a drawn token that the drafter found unlikely is taken back')
def _():
  def change(proposal):
    own = jnp.exp(jnp.take_along_axis(proposal.log_probs, proposal.tokens[:, :, None], axis=2)[:, :, 0])
    sure = jnp.sum(jnp.cumprod((own >= 0.5).astype(jnp.int32), axis=1), axis=1, dtype=jnp.int32)
    return proposal.replace(length=jnp.minimum(proposal.length, sure))
  return _propose(change)


@_plant('D02', 'stopping_law', 'the bonus row of a stopped row is that of the last draft position')
def _():
  def change(proposal):
    rows = jnp.arange(proposal.length.shape[0], dtype=jnp.int32)
    return proposal.replace(logits=proposal.logits.at[rows, proposal.length].set(proposal.logits[:, -1]))
  return _propose(change)


@_plant('D03', 'stopping_counters', 'the policy reads a sharpened law')
def _():
  sharp = lambda logits: warping.plain_log_probs(2 * logits)
  return [(model_drafter, 'warping', types.SimpleNamespace(**(vars(warping) | {'plain_log_probs': sharp})))]


@_plant('D04', 'stopping_counters', 'the policy never hears of the tokens that were drafted')
def _():
  return [(model_drafter._Progress, 'after', lambda self, draft, index: self)]
