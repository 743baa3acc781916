"""Short answers against references: the official normalisations of SQuAD, TriviaQA and open question answering, numbers,
choices and last words. All take the references first; a prediction is untrusted text and none raises.
"""

import collections
import decimal
import re
import string
import unicodedata
from collections.abc import Sequence

SQUAD_NAME = 'exact_match|norm:squad'
SQUAD_F1_NAME = 'f1|norm:squad'
SQUAD2_NAME = 'exact_match|norm:squad|no_answer:empty'
SQUAD2_F1_NAME = 'f1|norm:squad|no_answer:empty'
OPEN_NAME = 'exact_match|norm:squad+nfd|refs:any'
TRIVIA_NAME = 'exact_match|norm:triviaqa|refs:any'
GSM8K_NAME = 'accuracy|extract:####,last_number'
CHOICE_NAME = 'accuracy|extract:choice'
LAST_WORD_NAME = 'accuracy|extract:first_word|norm:case,punctuation'

# What a model writes where a text holds no answer.
NO_ANSWER = 'unanswerable'

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_PUNCTUATION = frozenset(string.punctuation)
_TRIVIA_PUNCTUATION = _PUNCTUATION | set('‘’´`')
_NUMBER = re.compile(r'-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)')
_MARKED_NUMBER = re.compile(r'####\s*(-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+))')
_MAX_DIGITS = 40  # Longer numbers are no answers; comparing them would cost time that a text decides about.


def normalize_squad(text: str) -> str:
  """Lower case, without punctuation, articles and surplus white space.

  Source: the evaluation script of SQuAD 1.1 and 2.0.
  """
  text = ''.join(character for character in text.lower() if character not in _PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', text).split())


def normalize_open(text: str) -> str:
  """As for SQuAD, after canonical decomposition, so that two encodings of one accent agree.

  Source: the evaluation of NaturalQuestions-open and WebQuestions (Lee et al. 2019).
  """
  return normalize_squad(unicodedata.normalize('NFD', text))


def normalize_trivia(text: str) -> str:
  """As for SQuAD, but punctuation (with typographic quotation marks) and underscores become spaces.

  Source: the evaluation script of TriviaQA.
  """
  text = ''.join(' ' if character in _TRIVIA_PUNCTUATION else character for character in text.lower().replace('_', ' '))
  return ' '.join(_ARTICLES.sub(' ', text).split())


def squad_exact_match(references: Sequence[str], prediction: str) -> float:
  """1.0 when the prediction equals a reference after normalisation. No references: 1.0 for no answer."""
  said = normalize_squad(_no_answer_is_empty(prediction) if not references else prediction)
  return float(any(normalize_squad(reference) == said for reference in references or ('',)))


def squad_f1(references: Sequence[str], prediction: str) -> float:
  """The best F1 over words with any reference after normalisation. No references: 1.0 for no answer."""
  said = normalize_squad(_no_answer_is_empty(prediction) if not references else prediction).split()
  return max(_f1(normalize_squad(reference).split(), said) for reference in references or ('',))


def open_exact_match(references: Sequence[str], prediction: str) -> float:
  """1.0 when the prediction equals any alias, as NaturalQuestions-open and WebQuestions count."""
  return _equals_any(normalize_open, references, prediction)


def trivia_exact_match(references: Sequence[str], prediction: str) -> float:
  """1.0 when the prediction equals any alias, as TriviaQA counts."""
  return _equals_any(normalize_trivia, references, prediction)


def _equals_any(normalize, references, prediction):
  said = normalize(prediction)
  return float(bool(said) and any(normalize(reference) == said for reference in references))


def _no_answer_is_empty(prediction):
  return '' if normalize_squad(prediction) == NO_ANSWER else prediction


def _f1(reference, predicted):
  if not reference or not predicted:
    return float(reference == predicted)
  shared = sum((collections.Counter(reference) & collections.Counter(predicted)).values())
  return 2.0 * shared / (len(reference) + len(predicted))


def final_number(text: str) -> str | None:
  """The number behind '####', else the last number of the text, without thousands separators; None without any."""
  marked = _MARKED_NUMBER.search(text)
  found = [marked.group(1)] if marked else _NUMBER.findall(text)
  if not found or len(found[-1]) > _MAX_DIGITS:
    return None
  return found[-1].replace(',', '').replace('$', '')


def same_number(reference: str, prediction: str) -> float:
  """1.0 when the final numbers of both texts are equal as numbers ('18' and '18.00')."""
  expected, said = final_number(reference), final_number(prediction)
  if expected is None or said is None:
    return 0.0
  return float(decimal.Decimal(expected) == decimal.Decimal(said))


def choice_letter(choices: Sequence[tuple[str, str]], prediction: str) -> str | None:
  """The letter that a text chooses, None when it cannot be told.

  In order: the letter behind the last 'answer is' or 'answer:'; a letter that the text begins with; the only letter in
  parentheses; the choice whose words are the whole first line; the only choice whose words stand anywhere.

  Args:
    choices: (letter, words) pairs.
    prediction: what a model wrote.
  """
  letters = ''.join(re.escape(letter) for letter, _ in choices)
  said = re.findall(rf'answer(?: is)?:?\s*\(?([{letters}])\b', prediction)
  if said:
    return said[-1]
  begins = re.match(rf'\s*\(?([{letters}])(?:[).:,]|\s*(?:\n|$))', prediction)
  if begins:
    return begins.group(1)
  bracketed = set(re.findall(rf'\(([{letters}])\)', prediction))
  if len(bracketed) == 1:
    return bracketed.pop()
  first, everything = normalize_squad(prediction.strip().split('\n')[0]), f' {normalize_squad(prediction)} '
  whole = [letter for letter, words in choices if normalize_squad(words) == first]
  inside = [letter for letter, words in choices if f' {normalize_squad(words)} ' in everything]
  return next((found[0] for found in (whole, inside) if len(found) == 1), None)


def first_word(text: str) -> str:
  """The first word in lower case, without punctuation at its ends; '' without a word."""
  words = text.split()
  return words[0].strip(string.punctuation + '‘’“”').lower() if words else ''
