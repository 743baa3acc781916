"""Small records to read a field from, to list fields of, or to put into a sentence."""

from specjax.metrics.quality import exact_match
from specjax.tasks.example import Draws, Example
from specjax.tasks.word_lists import CITIES, FOODS, JOBS, NAMES, PETS

LEVELS = (1, 2, 3, 4)


def generate(draws: Draws, level: int) -> tuple[str, str, dict]:
  """A record with a question about it.

  Level 1 asks one of three fields in a fixed order; level 2 has four fields in any order and asks one field or a
  sentence; level 3 has six fields and asks several or a sentence; level 4 has two people and asks about one.

  Returns:
    The inputs, the targets, and the check `{'kind': 'extract' | 'list' | 'summarise'}`.
  """
  return _QUESTIONS[level](draws)


def score(example: Example, prediction: str) -> float:
  """1.0 for the reference, up to white space at the ends and its amount between words."""
  return exact_match(example.targets, prediction)


def _person(draws: Draws) -> dict[str, str]:
  return {'name': draws.choice(NAMES), 'age': str(draws.between(18, 79)), 'job': draws.choice(JOBS),
          'city': draws.choice(CITIES)}


def _written(person: dict[str, str], fields) -> str:
  return '; '.join([f'{field}: {person[field]}' for field in fields])


def _sentence(person: dict[str, str]) -> str:
  article = 'an' if person['job'][0] in 'aeiou' else 'a'
  return f'{person["name"]}, {person["age"]}, is {article} {person["job"]} from {person["city"]}'


def _one_of_three(draws: Draws):
  person = _person(draws)
  fields = ('name', 'job', 'city')
  asked = draws.choice(fields)
  return f'{_written(person, fields)}. What is the {asked}?', person[asked], {'kind': 'extract'}


def _one_of_four(draws: Draws):
  person = _person(draws)
  record = _written(person, draws.sample(('name', 'age', 'job', 'city'), 4))
  if draws.below(2):
    return f'{record}. Summarise.', f'{_sentence(person)}.', {'kind': 'summarise'}
  asked = draws.choice(('name', 'age', 'job', 'city'))
  return f'{record}. What is the {asked}?', person[asked], {'kind': 'extract'}


def _several_of_six(draws: Draws):
  person = _person(draws) | {'pet': draws.choice(PETS), 'food': draws.choice(FOODS)}
  fields = draws.sample(('name', 'age', 'job', 'city', 'pet', 'food'), 6)
  record = _written(person, fields)
  if draws.below(2):
    return (f'{record}. Summarise.', f'{_sentence(person)}, has a {person["pet"]} and likes {person["food"]}.',
            {'kind': 'summarise'})
  asked = draws.sample(fields, draws.between(2, 3))
  return (f'{record}. List {", ".join(asked)}.', ', '.join([person[field] for field in asked]), {'kind': 'list'})


def _one_of_two_people(draws: Draws):
  names, cities, jobs = draws.sample(NAMES, 2), draws.sample(CITIES, 2), draws.sample(JOBS, 2)
  people = [{'name': names[i], 'age': str(draws.between(18, 79)), 'job': jobs[i], 'city': cities[i]} for i in (0, 1)]
  record = '. '.join([_written(person, ('name', *draws.sample(('age', 'job', 'city'), 3))) for person in people])
  person = draws.choice(people)
  question = draws.below(3)
  if question == 0:
    return f'{record}. Summarise {person["name"]}.', f'{_sentence(person)}.', {'kind': 'summarise'}
  asked = draws.choice(('age', 'job', 'city'))
  if question == 1:
    return f'{record}. What is the {asked} of {person["name"]}?', person[asked], {'kind': 'extract'}
  field = draws.choice(('job', 'city'))
  return (f'{record}. Who has the {field} {person[field]}?', person['name'], {'kind': 'extract'})


_QUESTIONS = {1: _one_of_three, 2: _one_of_four, 3: _several_of_six, 4: _one_of_two_people}
