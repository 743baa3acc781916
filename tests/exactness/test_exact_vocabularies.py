"""A drafter with another vocabulary is lossless: the enumerated law of the translated drafter's loop is the target's."""

import numpy as np
import pytest

from specjax import drafters
from specjax import rules
from specjax.decode import speculative
from specjax.models import vocabularies
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import toy

W = oracles.Warp
REQUESTS = [
    exactness.Request(prompt=(1,), max_new_tokens=4), exactness.Request(prompt=(0, 1), max_new_tokens=3, eos_ids=(1,)),
    exactness.Request(prompt=(2, 1, 0), max_new_tokens=4, warp=W(temperature=0.5, top_k=2)),
    exactness.Request(prompt=(1,), max_new_tokens=4, warp=W(temperature=0.0)),
    exactness.Request(prompt=(1, 1), max_new_tokens=4, warp=W(temperature=1.7, top_p=0.8), eos_ids=(2,))]
# The drafter has six tokens, the target three; they share two, or one, or all under other ids. Its unknown token is 3.
TRANSLATIONS = {
    'one is foreign': ([4, 3, 2], [True, False, True]), 'two are foreign': ([3, 3, 0], [False, False, True]),
    'permuted': ([5, 0, 2], [True, True, True])}


@pytest.fixture(scope='module')
def enumerator():
  return enumeration.Enumerator(rows=512)


def pair(translation):
  """(target, translated drafter, parameters), float64."""
  target, inner = toy.ToyLM(vocab_size=3, scale=0.6), toy.ToyLM(vocab_size=6, memory=3, scale=0.6)
  token_of, is_shared = TRANSLATIONS[translation]
  own = exactness.random_params(inner, 6)
  return target, vocabularies.TranslatedLM(inner, 3), {
      'target': exactness.random_params(target, 5),
      'drafter': {'model': own, 'token_of': np.array(token_of, np.int32), 'is_shared': np.array(is_shared)}}


def discrepancies(translation, enumerator, *, foreign_drafts=False):
  target, drafter, params = pair(translation)
  decoder = speculative.SpeculativeDecoder(
      target=target, drafter=drafters.ModelDrafter(model=drafter, num_draft_tokens=2), rule=rules.Lossless())
  joint = enumerator.joint(
      decoder, params, exactness.arrays(REQUESTS, vocab_size=3), capacity=exactness.capacity(decoder, REQUESTS))
  if foreign_drafts:  # what the oracle would have to see if the drafter's law were not renormalised
    params = {**params, 'drafter': {**params['drafter'], 'is_shared': np.ones(3, bool)}}
  oracle = exactness.Oracle.of(REQUESTS, target=target, drafter=drafter, params=params)
  return exactness.compare(joint, oracle, num_draft_tokens=2)


@pytest.mark.parametrize('translation', TRANSLATIONS)
def test_joint_law_is_the_targets(translation, enumerator, x64):
  """Counters too: what is accepted is what the drafter's renormalised law on the shared tokens predicts."""
  for one in discrepancies(translation, enumerator):
    assert one.law <= 1e-12 and one.mass <= 1e-12 and one.counters <= 1e-11, one


def test_a_drafter_that_is_not_renormalised_is_told_apart(enumerator, x64):
  """Negative control: the law stays the target's under any drafter, but acceptance is another."""
  found = discrepancies('one is foreign', enumerator, foreign_drafts=True)
  assert max(one.law for one in found) <= 1e-12 and max(one.counters for one in found) > 1e-3
