"""What prompt lookup copies, and from where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax import drafters
from specjax.core import errors
from specjax.core import types
from specjax.decode import methods
from specjax.testing import toy

VOCAB = 10


def proposed(text, *, encoder=None, live=True, **options):
  """Tokens that one row drafts behind `text`."""
  drafter = drafters.PromptLookup(**dict(vocab_size=VOCAB, num_draft_tokens=4) | options)
  tokens = np.zeros((1, 32), np.int32)
  tokens[0, :len(text)] = text
  tokens[0, len(text):] = text[-1]  # What lies behind the text must not be found.
  length = np.array([len(text)], np.int32)
  source = None if encoder is None else np.array([encoder + [encoder[-1]] * 3], np.int32)
  prompt = types.Prompt(tokens, length, source, None if encoder is None else np.array([len(encoder)], np.int32))
  width = drafter.num_draft_tokens
  uniforms = types.RoundUniforms(
      draft=jnp.zeros((1, width + 1, 2)), policy=jnp.zeros((1, width + 1)), accept=jnp.zeros((1, width)),
      final=jnp.zeros((1, 2)))
  proposal, _ = drafter.propose(
      None, drafter.init(None, prompt, types.Prefill(), 32), uniforms, tokens=tokens, length=length, sampling=None,
      live=np.array([live]), with_bonus=False)
  laws = np.exp(np.asarray(proposal.log_probs))
  assert np.array_equal(laws.argmax(axis=2), proposal.tokens) and np.all(laws.sum(axis=2) == 1) and laws.max() == 1
  assert int(drafter.num_calls(proposal)[0]) == 0
  return np.asarray(proposal.tokens)[0, :int(proposal.length[0])].tolist()


@pytest.mark.parametrize('text, options, expected', [
    ([1, 2, 3, 4, 5, 6, 1, 2], {}, [3, 4, 5, 6]),
    ([1, 2, 3, 9, 2, 4, 8, 2], {}, [4, 8, 2, 4]),  # The last of equal matches, and on into the copy itself.
    ([1, 2, 3, 9, 2, 4, 8, 2], dict(prefers='first'), [3, 9, 2, 4]),
    ([1, 2, 3, 9, 2, 4, 1, 2], {}, [3, 9, 2, 4]),  # Two tokens agree there, one here.
    ([1, 2, 3, 9, 2, 4, 1, 2], dict(max_match=1), [4, 1, 2, 4]),
    ([7, 7], {}, [7, 7, 7, 7]),
    ([3, 1, 3, 1], {}, [3, 1, 3, 1]),
    ([1, 2, 3, 4], {}, []),
    ([5], {}, []),
    ([1, 2, 9, 2], dict(min_match=2), []),
    ([1, 2, 9, 1, 2], dict(min_match=2), [9, 1, 2, 9]),
    ([1, 2, 9, 1, 2], dict(max_draft_tokens=1), [9]),
    ([1, 2, 9, 1, 2], dict(max_draft_tokens=0), []),
    ([1, 2, 9, 1, 2], dict(live=False), []),
])
def test_what_is_copied_from_the_text(text, options, expected):
  assert proposed(text, **options) == expected


@pytest.mark.parametrize('text, encoder, expected', [
    ([0, 4], [3, 4, 5, 6], [5, 6]),  # Cut at the end of the source.
    ([0, 4, 8, 4], [3, 4, 5, 6], [8, 4, 8, 4]),  # One token agrees in both: the text wins.
    ([0, 3, 8, 4, 1, 8, 4], [8, 4, 5, 6], [1, 8, 4, 1]),
    ([0, 4, 1, 3, 4], [3, 4, 5, 6, 7], [5, 6, 7]),  # Two agree in the source.
    ([0, 6], [3, 4, 5, 6], []),  # Nothing follows there.
])
def test_what_is_copied_from_the_source(text, encoder, expected):
  assert proposed(text, encoder=encoder) == expected


def test_greedy_output_is_the_targets_and_takes_fewer_calls():
  pair = toy.toy_pair(vocab_size=6, seed=3)
  prompts = [[1, 2], [3], [4, 4, 4]]
  run = lambda method: specjax.generate(
      pair, prompts, method=method, sampling=specjax.SamplingParams(temperature=0.0), max_new_tokens=24, seed=0,
      eos_ids=())
  plain, copied = run(specjax.autoregressive()), run(specjax.prompt_lookup(num_draft_tokens=4))
  assert [list(row) for row in plain.tokens] == [list(row) for row in copied.tokens]
  assert np.sum(copied.stats.target_calls) < 0.7 * np.sum(plain.stats.target_calls)
  assert np.sum(copied.stats.drafter_calls) == 0


@pytest.mark.parametrize('options, named', [
    (dict(num_draft_tokens=0), 'num_draft_tokens'), (dict(num_draft_tokens=2, max_match=0), 'max_match'),
    (dict(num_draft_tokens=2, max_match=2, min_match=3), 'min_match'), (dict(num_draft_tokens=2, prefers='best'), 'prefers'),
    (dict(num_draft_tokens=2, max_draft_tokens=3), 'max_draft_tokens'),
    (dict(num_draft_tokens=2, rule=specjax.Chow(threshold=0.3)), 'rule of prompt_lookup')])
def test_bad_options_are_named(options, named):
  with pytest.raises(errors.SpecjaxError, match=named):
    specjax.prompt_lookup(**options)


@pytest.mark.parametrize('bonus', ['rule', 'target'])
def test_a_law_behind_the_draft_is_refused(bonus):
  method = methods.drafting(
      lambda pair: drafters.PromptLookup(vocab_size=VOCAB, num_draft_tokens=2), rule=specjax.Chow(threshold=0.3),
      bonus=bonus)
  with pytest.raises(errors.ParamError, match='PromptLookup'):
    specjax.generate(
        toy.toy_pair(vocab_size=VOCAB, seed=0), [[1, 2]], method=method, sampling=specjax.SamplingParams(temperature=1.0),
        max_new_tokens=4, seed=0, eos_ids=())
