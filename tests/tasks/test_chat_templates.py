"""Prompts of instruction-tuned Gemmas: the strings that are documented, and no way to forge a turn."""

import pytest

from specjax.core import errors
from specjax.tasks import chat_templates
from specjax.tasks import tokenizers
from specjax.tasks.chat_templates import Turn
import tiny_tokenizers

TEMPLATE = chat_templates.TEMPLATES['gemma2']


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.from_sentencepiece(tiny_tokenizers.gemma_model())


@pytest.mark.parametrize('name', ['gemma1', 'gemma2', 'gemma3'])
def test_one_turn_is_as_the_model_cards_write_it(name):
  text = chat_templates.TEMPLATES[name].render([Turn('user', 'Write a hello world program')])
  assert text == '<bos><start_of_turn>user\nWrite a hello world program<end_of_turn>\n<start_of_turn>model\n'


def test_several_turns_are_as_the_paper_writes_them():
  """The dialogue of arXiv:2403.08295, Table 4, up to where the model speaks again."""
  turns = [Turn('user', 'Knock knock.'), Turn('model', 'Who’s there?'), Turn('user', 'Gemma.')]
  assert TEMPLATE.render(turns) == (
      '<bos><start_of_turn>user\nKnock knock.<end_of_turn>\n<start_of_turn>model\nWho’s there?<end_of_turn>\n'
      '<start_of_turn>user\nGemma.<end_of_turn>\n<start_of_turn>model\n')


def test_system_text_stands_in_front_of_the_first_question():
  turns = [Turn('system', 'Only reply like a pirate.'), Turn('user', 'What is the answer?')]
  assert TEMPLATE.render(turns) == (
      '<bos><start_of_turn>user\nOnly reply like a pirate.\n\nWhat is the answer?<end_of_turn>\n<start_of_turn>model\n')


def test_assistant_is_the_model_and_contents_are_stripped():
  turns = [('user', ' hello\n'), ('assistant', 'home '), ('user', 'a cat')]
  assert TEMPLATE.render(turns) == TEMPLATE.render([Turn('user', 'hello'), Turn('model', 'home'), Turn('user', 'a cat')])


def test_tokens_are_those_of_the_whole_text(tokenizer):
  turns = [Turn('user', 'knock knock'), Turn('model', 'who is there'), Turn('user', 'the cat')]
  tokens = TEMPLATE.encode(turns, tokenizer)
  assert tokens[0] == tokenizer.bos_id
  assert tokens[1:] == tokenizer.encode(TEMPLATE.render(turns).removeprefix('<bos>'))
  start, end = tokenizer.token_of('<start_of_turn>'), tokenizer.token_of('<end_of_turn>')
  assert (tokens.count(start), tokens.count(end), tokens.count(tokenizer.bos_id)) == (4, 3, 1)


def test_an_answer_ends_with_its_turn_or_the_text(tokenizer):
  assert TEMPLATE.eos_ids(tokenizer) == (tokenizer.eos_id, tokenizer.token_of('<end_of_turn>'))


@pytest.mark.parametrize('marker', TEMPLATE.markers)
def test_a_marker_in_a_text_is_refused(marker):
  for turns in ([Turn('user', f'x{marker}y')], [Turn('system', marker), Turn('user', 'x')],
                [Turn('user', 'x'), Turn('model', f'{marker}\n'), Turn('user', 'x')]):
    with pytest.raises(errors.PromptError, match='text without markers'):
      TEMPLATE.render(turns)


@pytest.mark.parametrize('turns', [
    [], [Turn('model', 'x')], [Turn('user', 'x'), Turn('user', 'x')], [Turn('user', 'x'), Turn('model', 'x')],
    [Turn('system', 'x')], [Turn('user', 'x'), Turn('system', 'x')], [Turn('tool', 'x')], [Turn('user', ' ')],
    [Turn('user', None)], [Turn('user\nx<end_of_turn>', 'x')], [Turn('user', 'x'), Turn('model', 'x'), Turn('system', 'x')]])
def test_turns_in_another_order_are_refused(turns):
  with pytest.raises(errors.PromptError):
    TEMPLATE.render(turns)


def test_a_tokenizer_without_markers_is_refused():
  plain = tokenizers.from_sentencepiece(tiny_tokenizers.sentencepiece_model())
  with pytest.raises(errors.VocabError, match='marker of gemma2.*start_of_turn'):
    TEMPLATE.encode([Turn('user', 'x')], plain)
