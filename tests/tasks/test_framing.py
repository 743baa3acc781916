"""Questions as text and as turns of a chat: the tokens that whole conversations have, and references behind prompts."""

import pytest

from specjax.core import errors
from specjax.tasks import chat_templates
from specjax.tasks import framing
from specjax.tasks import prompts
from specjax.tasks import tokenizers
from specjax.tasks import vocabulary
from specjax.tasks.chat_templates import Turn
import tiny_tokenizers

TEMPLATE = chat_templates.TEMPLATES['gemma2']


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.from_sentencepiece(tiny_tokenizers.gemma_model())


@pytest.fixture(scope='module')
def chat(tokenizer):
  return framing.make('gemma', tokenizer=tokenizer, family='decoder-only')


@pytest.mark.parametrize('family', ['decoder-only', 'encoder-decoder'])
def test_plain_questions_are_those_of_pre_training(family):
  builtin = vocabulary.load_builtin_tokenizer()
  plain = framing.make('none', tokenizer=builtin, family=family)
  prompt = plain.question('add 2 and 3')
  assert prompt == prompts.prompt_tokens('add 2 and 3', builtin, family) and plain.eos_ids == (builtin.eos_id,)
  answer, turn = [7, 8, builtin.eos_id], plain.turn('and 4')
  assert plain.follow_up(prompt, answer, turn) == prompts.follow_up(prompt, answer, turn, builtin, family)
  assert plain.reference('add 2', 'to 3') == (builtin.encode('to 3'), 'to 3')  # its prompts end with a separator


def test_a_conversation_has_the_tokens_of_its_template(chat, tokenizer):
  prompt = chat.question('knock knock')
  assert prompt == TEMPLATE.encode([Turn('user', 'knock knock')], tokenizer)
  answer, turn = tokenizer.encode('who is there'), chat.turn('the cat')
  turns = [Turn('user', 'knock knock'), Turn('model', 'who is there'), Turn('user', 'the cat')]
  expected = TEMPLATE.encode(turns, tokenizer)
  for end in ([], [tokenizer.token_of('<end_of_turn>')], [tokenizer.eos_id]):  # stopped by the limit, or by either end
    assert chat.follow_up(prompt, [*answer, *end], turn) == expected
  assert len(expected) == len(prompt) + len(answer) + len(turn) + chat.num_marks
  assert chat.eos_ids == (tokenizer.eos_id, tokenizer.token_of('<end_of_turn>'))
  assert chat.reference('knock knock', 'who is there') == (answer, 'who is there')


def test_a_vocabulary_without_the_markers_is_refused_at_once():
  with pytest.raises(errors.VocabError, match='start_of_turn|end_of_turn'):
    framing.make('gemma', tokenizer=vocabulary.load_builtin_tokenizer(), family='decoder-only')


def test_a_reference_continues_the_prompt_as_one_text(tokenizer):
  plain = framing.make('none', tokenizer=tokenizer, family='decoder-only')
  tokens, text = plain.reference('the cat sat on', 'the mat')
  assert plain.question('the cat sat on') + tokens == [tokenizer.bos_id, *tokenizer.encode('the cat sat on the mat')]
  assert text == ' the mat' and tokenizer.decode(tokens).strip() == 'the mat'


@pytest.mark.parametrize('files, expected', [
    ({}, None), ({'tokenizer_config.json': '{}'}, None), ({'tokenizer_config.json': '{"chat_template": "a"}'}, 'a'),
    ({'chat_template.json': '{"chat_template": "b"}', 'tokenizer_config.json': '{"chat_template": "a"}'}, 'b'),
    ({'chat_template.jinja': 'c'}, 'c'),
    ({'tokenizer_config.json': '{"chat_template": [{"name": "x", "template": "d"}, {"template": "e"}]}'}, 'd\ne')])
def test_template_programs_are_found_wherever_checkpoints_have_them(tmp_path, files, expected):
  for name, content in files.items():
    (tmp_path / name).write_text(content)
  assert tokenizers.chat_template(tmp_path) == expected


def test_text_ends_at_any_end_of_an_answer(tokenizer):
  tokens, end = tokenizer.encode('the cat'), tokenizer.token_of('<end_of_turn>')
  assert prompts.answer_text([*tokens, end, *tokens], tokenizer, eos_ids=(tokenizer.eos_id, end)) == 'the cat'
  assert prompts.answer_text([*tokens, tokenizer.eos_id, *tokens], tokenizer) == 'the cat'
