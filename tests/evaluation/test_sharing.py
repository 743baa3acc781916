"""Rules in one executable give the tokens that they give in their own."""

import jax
import numpy as np
import pytest

from specjax.core import checks
from specjax.decode import generate
from specjax.decode import run
from specjax.evaluation import methods
from specjax.evaluation import sharing
from specjax.testing import toy

SETTING = methods.Setting(2, 'rule', 'summary')


@pytest.fixture(scope='module')
def pair():
  return toy.toy_pair(vocab_size=7, seed=3, scale=0.7)


def built(pair, knobs=None):
  """name -> decoder of every method that drafts a chain without further parts, at the first or the given knob."""
  drafting = {name: method for name, method in methods.METHODS.items() if method.drafts and not method.needs}
  return {name: methods.build_decoder(pair, method, knob=(knobs or {}).get(name, method.first_knob), setting=SETTING)[0]
          for name, method in drafting.items()}


def test_rules_of_a_kind_share_and_the_others_stay_as_they_are(pair):
  decoders = built(pair)
  shared = {name: sharing.switched(decoder, name, decoders) for name, decoder in decoders.items()}
  alone = {name for name, decoder in shared.items() if not isinstance(decoder.rule, sharing.Switch)}
  assert {'speculative', 'speculative_block', 'truncated_target', 'bild', 'bild_star', 'prompt_lookup'} <= alone
  assert {'lossy', 'cascade_chow', 'cascade_opt_entropy', 'cascade_token_v3', 'cascade_mixture'} <= shared.keys() - alone
  structures = {jax.tree.structure(decoder) for name, decoder in shared.items() if name not in alone}
  assert len(structures) == 2  # Lossy rules read truncated laws.
  assert sharing.switched(decoders['cascade_chow'], 'cascade_chow', {'cascade_chow': decoders['cascade_chow']}) is (
      decoders['cascade_chow'])


@pytest.mark.parametrize('temperature', [pytest.param(0.0, marks=pytest.mark.nightly), 0.9])
def test_tokens_and_counters_are_those_of_the_rules_own_executable(pair, temperature):
  decoders = built(pair)
  requests = generate.build_requests(
      [[1, 2], [3], [4, 5, 6]], family='decoder-only', width=4, batch_size=3,
      sampling=[checks.SamplingParams(temperature=temperature)] * 3, max_new_tokens=[20] * 3, eos_ids=(), seed=[0] * 3,
      example_id=range(3), sample_index=[0] * 3, vocab_size=7)
  run.clear()
  names = ['lossy', 'cascade_opt', 'cascade_token_v3'] + (['lossy_greedy'] if temperature == 0 else [])
  results, texts = {}, set()
  for name in names:
    for last in (False, True):
      method = methods.lookup(name)
      value = method.thresholds[-1 if last else len(method.thresholds) // 2]
      decoder = built(pair, {name: {method.knob_names[0]: value}})[name]
      for is_shared in (False, True):
        used = sharing.switched(decoder, name, decoders) if is_shared else decoder
        state = run.prefill(used, pair.params, requests, capacity=32)
        results[is_shared] = run.collect(run.decode(used, pair.params, state, max_steps=30))
      jax.tree.map(np.testing.assert_array_equal, results[True].stats, results[False].stats)
      np.testing.assert_array_equal(results[True].tokens, results[False].tokens)
      texts.add(results[True].tokens.tobytes())
  assert len(texts) > 2  # The rules and knobs do something.
  decodes = [record for record in run.compile_log() if record.name == 'decode']
  assert len(decodes) == len(names) + 2
