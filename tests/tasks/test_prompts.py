"""What a model reads and is asked for."""

from specjax.tasks import prompts, synthetic
from specjax.tasks.vocabulary import load_builtin_tokenizer


def test_sequences_have_their_special_tokens():
  tokenizer = load_builtin_tokenizer()
  example = synthetic.examples('test', 1)[0]
  inputs, targets = tokenizer.encode(example.inputs), tokenizer.encode(example.targets)
  assert prompts.decoder_only_prompt(example, tokenizer) == [2, *inputs, 4]
  assert prompts.encoder_tokens(example, tokenizer) == [*inputs, 1]
  assert prompts.decoder_start(tokenizer) == [0]
  assert prompts.target_tokens(example, tokenizer) == [*targets, 1]


def test_generated_target_tokens_score_one():
  tokenizer = load_builtin_tokenizer()
  for example in synthetic.examples('test', 200):
    tokens = [*prompts.target_tokens(example, tokenizer), 0, 0, 77]  # what stands after eos is not read
    assert synthetic.score(example, prompts.answer_text(tokens, tokenizer)) == 1.0
