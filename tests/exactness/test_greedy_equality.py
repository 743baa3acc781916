"""Greedy speculative decoding of the built-in pairs equals autoregressive decoding: 150 prompts each, 2,000 nightly."""

import pytest

import specjax
from specjax.core import errors
from specjax.tasks import prompts
from specjax.tasks import synthetic
from specjax.testing import greedy


@pytest.mark.parametrize('num_prompts', [150, pytest.param(2000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize('name', ['gemma', 't5'])
def test_greedy_outputs_differ_at_ties_only_and_never_at_the_same_width(name, num_prompts):
  try:
    pair = specjax.load_pair(name)
  except errors.CheckpointError as error:
    pytest.skip(f'the pair is not here: {error}')
  encode = prompts.decoder_only_prompt if pair.family == 'decoder-only' else prompts.encoder_tokens
  questions = [encode(example, pair.tokenizer) for example in synthetic.examples('test', num_prompts)]
  report = greedy.compare(pair, questions, num_draft_tokens=4, max_new_tokens=64, batch_size=50)
  print(f'{name}: {report.num_prompts} prompts, {report.num_tokens} tokens, plain differences {report.plain}')
  assert not report.not_ties
  assert not report.same_width
  assert report.log_probs_bitwise
