"""Number, date and time phrases between English and German, by rule and exact in both directions."""

from specjax.metrics.quality import exact_match
from specjax.tasks import numerals
from specjax.tasks.example import Draws, Example

LEVELS = (1, 2, 3, 4)

_EN_MONTHS = ('January February March April May June July August September October November December').split()
_DE_MONTHS = ('Januar Februar März April Mai Juni Juli August September Oktober November Dezember').split()
_MONTH_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_EN_DAYS = 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split()
_DE_DAYS = 'Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag'.split()
_EN_PARTS = ('in the morning', 'in the afternoon', 'in the evening', 'at night')
_DE_PARTS = ('morgens', 'nachmittags', 'abends', 'nachts')


def generate(draws: Draws, level: int) -> tuple[str, str, dict]:
  """A phrase to translate.

  Level 1 is a date in digits, a clock time with a weekday, or a number below 100; level 2 a number below 1000 or a
  time with day, month and part of the day; level 3 a number below 10,000 or a date in words; level 4 a number below
  1,000,000 or a date in words with weekday and year.

  Returns:
    The inputs, the targets, and the check `{'kind': str, 'language': str}`, the language of the targets.
  """
  kind, phrase = draws.choice(_PHRASES[level])
  english, german = phrase(draws)
  if draws.below(2):
    return f'translate to German: {english}', german, {'kind': kind, 'language': 'de'}
  return f'translate to English: {german}', english, {'kind': kind, 'language': 'en'}


def score(example: Example, prediction: str) -> float:
  """1.0 for the reference, up to white space at the ends and its amount between words."""
  return exact_match(example.targets, prediction)


def _number(low: int, high: int):
  def phrase(draws: Draws):
    number = draws.between(low, high)
    return numerals.english_number(number), numerals.german_number(number)
  return 'number', phrase


def _short_date(draws: Draws):
  month = draws.below(12)
  day, year = draws.between(1, _MONTH_LENGTHS[month]), draws.between(1800, 2039)
  return f'the {_digit_ordinal(day)} of {_EN_MONTHS[month]} {year}', f'der {day}. {_DE_MONTHS[month]} {year}'


def _time(draws: Draws):
  day, hour, minute = draws.below(7), draws.between(1, 12), 5 * draws.below(12)
  return (f'on {_EN_DAYS[day]} at {numerals.english_time(hour, minute)}',
          f'am {_DE_DAYS[day]} um {numerals.german_time(hour, minute)}')


def _appointment(draws: Draws):
  month, part = draws.below(12), draws.below(4)
  day, hour, minute = draws.between(1, _MONTH_LENGTHS[month]), draws.between(1, 12), 5 * draws.below(12)
  english, german = numerals.english_time(hour, minute), numerals.german_time(hour, minute)
  return (f'on the {_digit_ordinal(day)} of {_EN_MONTHS[month]} at {english} {_EN_PARTS[part]}',
          f'am {day}. {_DE_MONTHS[month]} um {german} {_DE_PARTS[part]}')


def _word_date(draws: Draws):
  month = draws.below(12)
  day, year = draws.between(1, _MONTH_LENGTHS[month]), draws.between(1800, 2039)
  return (f'the {numerals.english_ordinal(day)} of {_EN_MONTHS[month]} {numerals.english_year(year)}',
          f'der {numerals.german_ordinal(day)} {_DE_MONTHS[month]} {numerals.german_year(year)}')


def _full_date(draws: Draws):
  english, german = _word_date(draws)
  day = draws.below(7)
  return f'{_EN_DAYS[day]}, {english}', f'{_DE_DAYS[day]}, {german}'


def _digit_ordinal(number: int) -> str:
  """`1st`, `22nd`, `13th`."""
  suffix = 'th' if 10 < number < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')
  return f'{number}{suffix}'


_PHRASES = {
    1: (('date', _short_date), ('date', _short_date), ('time', _time), _number(0, 99)),
    2: (('time', _appointment), _number(100, 999)),
    3: (('date', _word_date), _number(1000, 9999)),
    4: (('date', _full_date), _number(10000, 999999)),
}
