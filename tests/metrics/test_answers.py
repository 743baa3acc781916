"""Short answers, hand-scored; the normalisations are those of the official scripts."""

import pytest

from specjax.metrics import answers

CHOICES = [('A', 'bank'), ('B', 'library'), ('C', 'department store'), ('D', 'mall'), ('E', 'new york')]


@pytest.mark.parametrize('references, prediction, exact, f1', [
    (['The Eiffel Tower'], 'eiffel tower!', 1.0, 1.0),
    (['in 1972', '1972'], 'It was 1972', 0.0, 0.5),  # {1972} of 3 words against 1: 2 * 1 / (3 + 1)
    (['Denver Broncos'], 'the Carolina Panthers', 0.0, 0.0),
    (['Denver Broncos'], '', 0.0, 0.0), ([], '', 1.0, 1.0), ([], 'unanswerable', 1.0, 1.0), ([], 'Denver', 0.0, 0.0),
    (['a'], 'the', 1.0, 1.0)])  # the official script takes both for nothing
def test_squad(references, prediction, exact, f1):
  assert answers.squad_exact_match(references, prediction) == exact
  assert answers.squad_f1(references, prediction) == pytest.approx(f1)


@pytest.mark.parametrize('references, prediction, value', [
    (['14 December 1972 UTC', 'December 1972'], ' december, 1972. ', 1.0), (['Beyonc\u00e9'], 'Beyonce\u0301', 1.0),
    (['Bobby Scott'], 'Bob Scott', 0.0), (['x'], '', 0.0), (['The'], '', 0.0)])
def test_open_questions_take_any_alias(references, prediction, value):
  assert answers.open_exact_match(references, prediction) == value


@pytest.mark.parametrize('references, prediction, value', [
    (['Spider-Man'], 'spider man', 1.0), (['Rock_and_roll', "Rock 'n' roll"], 'rock and roll', 1.0), (['Mark Twain'], 'Twain', 0.0),
    (['‘Hello’'], 'hello', 1.0)])
def test_trivia_turns_punctuation_into_spaces(references, prediction, value):
  assert answers.trivia_exact_match(references, prediction) == value


def test_squad_deletes_punctuation_where_trivia_leaves_a_space():
  assert answers.normalize_squad('Spider-Man') == 'spiderman'
  assert answers.normalize_trivia('Spider-Man') == 'spider man'


@pytest.mark.parametrize('text, number', [
    ('She makes 9 * 2 = $18.\n#### 18', '18'), ('#### 1,234,567.50', '1234567.50'), ('so it costs $3.50.', '3.50'),
    ('#### -7', '-7'), ('first 3, then 4', '4'), ('none', None), ('', None), ('### 5 then 6', '6'), ('9' * 100, None),
    ('about .5', '.5'), ('#### 12 and later 15', '12')])
def test_final_number(text, number):
  assert answers.final_number(text) == number


@pytest.mark.parametrize('reference, prediction, value', [
    ('#### 18', 'The answer is 18.00', 1.0), ('#### 1,000', '1000', 1.0), ('#### 18', '81', 0.0), ('#### 18', '', 0.0),
    ('#### 0.5', 'it is .5', 1.0)])
def test_numbers_are_compared_as_numbers(reference, prediction, value):
  assert answers.same_number(reference, prediction) == value


@pytest.mark.parametrize('prediction, letter', [
    ('A', 'A'), (' (B) library', 'B'), ('C.', 'C'), ('The answer is D', 'D'), ('answer: (E)\nbecause', 'E'),
    ('I think (B) it is', 'B'), ('library', 'B'), ('A library, I would say', 'B'), ('A bank or a mall', None), ('', None),
    ('Zebra', None), ('The answer is A. No, the answer is B.', 'B'), ('Department Store.', 'C')])
def test_choice(prediction, letter):
  assert answers.choice_letter(CHOICES, prediction) == letter


@pytest.mark.parametrize('text, word', [('Signs.', 'signs'), ('  “menu” she said', 'menu'), ('', ''), ('--', '')])
def test_first_word(text, word):
  assert answers.first_word(text) == word
