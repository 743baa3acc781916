"""Number words, read back by parsers written apart from the writer."""

import pytest

from specjax.tasks import numerals

_EN = {word: value for value, word in enumerate(
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen '
    'eighteen nineteen'.split())}
_EN |= {word: 10 * value for value, word in enumerate('twenty thirty forty fifty sixty seventy eighty ninety'.split(), 2)}
_DE = {word: value for value, word in enumerate(
    'null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn '
    'achtzehn neunzehn'.split())} | {'ein': 1}
_DE_TENS = {word: 10 * value for value, word in enumerate(
    'zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig'.split(), 2)}

NUMBERS = [*range(0, 2_200), *range(2_200, 1_000_000, 997), 21_000, 101_000, 201_001, 999_999]


def _read_english(text):
  total = group = 0
  for word in text.replace('-', ' ').replace(' and ', ' ').split():
    if word == 'hundred':
      group *= 100
    elif word == 'thousand':
      total, group = 1000 * group, 0
    else:
      group += _EN[word]
  return total + group


def _read_german(word):
  for name, factor in (('tausend', 1000), ('hundert', 100)):
    if name in word:
      front, _, rest = word.partition(name)
      return factor * _read_german(front) + (_read_german(rest) if rest else 0)
  if word in _DE:
    return _DE[word]
  for name, value in _DE_TENS.items():
    if word.endswith(name):
      front = word.removesuffix(name)
      return value + (_DE[front.removesuffix('und')] if front else 0)
  raise ValueError(word)


def test_numbers_read_back():
  for number in NUMBERS:
    assert _read_english(numerals.english_number(number)) == number
    assert _read_german(numerals.german_number(number)) == number


@pytest.mark.parametrize('number, english, german', [
    (0, 'zero', 'null'), (1, 'one', 'eins'), (16, 'sixteen', 'sechzehn'), (17, 'seventeen', 'siebzehn'),
    (21, 'twenty-one', 'einundzwanzig'), (30, 'thirty', 'dreißig'), (66, 'sixty-six', 'sechsundsechzig'),
    (77, 'seventy-seven', 'siebenundsiebzig'), (100, 'one hundred', 'einhundert'),
    (101, 'one hundred and one', 'einhunderteins'), (305, 'three hundred and five', 'dreihundertfünf'),
    (1000, 'one thousand', 'eintausend'), (1001, 'one thousand and one', 'eintausendeins'),
    (2100, 'two thousand one hundred', 'zweitausendeinhundert'),
    (21_021, 'twenty-one thousand and twenty-one', 'einundzwanzigtausendeinundzwanzig'),
    (101_000, 'one hundred and one thousand', 'einhunderteintausend'),
    (999_999, 'nine hundred and ninety-nine thousand nine hundred and ninety-nine',
     'neunhundertneunundneunzigtausendneunhundertneunundneunzig')])
def test_number_table(number, english, german):
  assert (numerals.english_number(number), numerals.german_number(number)) == (english, german)


@pytest.mark.parametrize('number, english, german', [
    (1, 'first', 'erste'), (2, 'second', 'zweite'), (3, 'third', 'dritte'), (5, 'fifth', 'fünfte'),
    (7, 'seventh', 'siebte'), (8, 'eighth', 'achte'), (9, 'ninth', 'neunte'), (12, 'twelfth', 'zwölfte'),
    (19, 'nineteenth', 'neunzehnte'), (20, 'twentieth', 'zwanzigste'), (21, 'twenty-first', 'einundzwanzigste'),
    (22, 'twenty-second', 'zweiundzwanzigste'), (30, 'thirtieth', 'dreißigste'),
    (31, 'thirty-first', 'einunddreißigste')])
def test_ordinal_table(number, english, german):
  assert (numerals.english_ordinal(number), numerals.german_ordinal(number)) == (english, german)


@pytest.mark.parametrize('year, english, german', [
    (1800, 'eighteen hundred', 'achtzehnhundert'), (1905, 'nineteen oh five', 'neunzehnhundertfünf'),
    (1984, 'nineteen eighty-four', 'neunzehnhundertvierundachtzig'), (2000, 'two thousand', 'zweitausend'),
    (2019, 'two thousand and nineteen', 'zweitausendneunzehn')])
def test_year_table(year, english, german):
  assert (numerals.english_year(year), numerals.german_year(year)) == (english, german)


@pytest.mark.parametrize('hour, minute, english, german', [
    (1, 0, "one o'clock", 'ein Uhr'), (4, 30, 'half past four', 'halb fünf'), (12, 30, 'half past twelve', 'halb eins'),
    (4, 15, 'quarter past four', 'Viertel nach vier'), (4, 45, 'quarter to five', 'Viertel vor fünf'),
    (12, 50, 'ten to one', 'zehn vor eins'), (4, 25, 'twenty-five past four', 'fünf vor halb fünf'),
    (4, 35, 'twenty-five to five', 'fünf nach halb fünf'), (1, 5, 'five past one', 'fünf nach eins')])
def test_time_table(hour, minute, english, german):
  assert (numerals.english_time(hour, minute), numerals.german_time(hour, minute)) == (english, german)


def test_each_phrase_names_one_thing():
  times = [(hour, minute) for hour in range(1, 13) for minute in range(0, 60, 5)]
  for words, domain in ((numerals.english_time, times), (numerals.german_time, times),
                        (numerals.english_year, [(year,) for year in range(1800, 2040)]),
                        (numerals.german_year, [(year,) for year in range(1800, 2040)]),
                        (numerals.english_ordinal, [(number,) for number in range(1, 100)]),
                        (numerals.german_ordinal, [(number,) for number in range(1, 100)])):
    assert len({words(*value) for value in domain}) == len(domain)
