"""Numbers, years, ordinals and clock times in English and German words."""

_EN_SMALL = ('zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen '
             'seventeen eighteen nineteen').split()
_EN_TENS = '- - twenty thirty forty fifty sixty seventy eighty ninety'.split()
_DE_SMALL = ('null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn '
             'siebzehn achtzehn neunzehn').split()
_DE_TENS = '- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig'.split()
_EN_ORDINALS = {'one': 'first', 'two': 'second', 'three': 'third', 'five': 'fifth', 'eight': 'eighth', 'nine': 'ninth',
                'twelve': 'twelfth'}
_DE_ORDINALS = {1: 'erste', 3: 'dritte', 7: 'siebte', 8: 'achte'}


def english_number(number: int) -> str:
  """A number in [0, 999999] in British English: `three hundred and five`."""
  if number < 20:
    return _EN_SMALL[number]
  if number < 100:
    tens, ones = divmod(number, 10)
    return _EN_TENS[tens] + (f'-{_EN_SMALL[ones]}' if ones else '')
  if number < 1000:
    hundreds, rest = divmod(number, 100)
    return f'{_EN_SMALL[hundreds]} hundred' + (f' and {english_number(rest)}' if rest else '')
  thousands, rest = divmod(number, 1000)
  joint = ' and ' if 0 < rest < 100 else ' '
  return f'{english_number(thousands)} thousand' + (joint + english_number(rest) if rest else '')


def german_number(number: int) -> str:
  """A number in [0, 999999] as one German word: `dreihundertfünf`."""
  if number < 20:
    return _DE_SMALL[number]
  if number < 100:
    tens, ones = divmod(number, 10)
    return (f'{_german_stem(ones)}und' if ones else '') + _DE_TENS[tens]
  if number < 1000:
    hundreds, rest = divmod(number, 100)
    return f'{_german_stem(hundreds)}hundert' + (german_number(rest) if rest else '')
  thousands, rest = divmod(number, 1000)
  return f'{_german_stem(thousands)}tausend' + (german_number(rest) if rest else '')


def english_ordinal(number: int) -> str:
  """An ordinal in [1, 99]: `twenty-first`."""
  head, dash, last = english_number(number).rpartition('-')
  if last in _EN_ORDINALS:
    return head + dash + _EN_ORDINALS[last]
  return head + dash + (f'{last[:-1]}ieth' if last.endswith('y') else f'{last}th')


def german_ordinal(number: int) -> str:
  """An ordinal in [1, 99], nominative after an article: `einundzwanzigste`."""
  if number < 20:
    return _DE_ORDINALS.get(number) or f'{_DE_SMALL[number]}te'
  return f'{german_number(number)}ste'


def english_year(year: int) -> str:
  """A year in [1100, 1999] by hundreds, in [2000, 2099] as a number: `nineteen eighty-four`."""
  if year >= 2000:
    return english_number(year)
  century, rest = divmod(year, 100)
  if rest == 0:
    return f'{english_number(century)} hundred'
  return f'{english_number(century)} {"oh " if rest < 10 else ""}{english_number(rest)}'


def german_year(year: int) -> str:
  """A year in [1100, 1999] by hundreds, in [2000, 2099] as a number: `neunzehnhundertvierundachtzig`."""
  if year >= 2000:
    return german_number(year)
  century, rest = divmod(year, 100)
  return f'{german_number(century)}hundert' + (german_number(rest) if rest else '')


def english_time(hour: int, minute: int) -> str:
  """A time on the twelve-hour clock, hour in [1, 12], minute a multiple of five: `twenty-five past four`."""
  if minute == 0:
    return f"{english_number(hour)} o'clock"
  if minute == 30:
    return f'half past {english_number(hour)}'
  past = minute < 30
  distance = minute if past else 60 - minute
  amount = 'quarter' if distance == 15 else english_number(distance)
  return f'{amount} {"past" if past else "to"} {english_number(hour if past else _next_hour(hour))}'


def german_time(hour: int, minute: int) -> str:
  """A time on the twelve-hour clock, hour in [1, 12], minute a multiple of five: `fünf vor halb fünf`."""
  if minute == 0:
    return f'{"ein" if hour == 1 else german_number(hour)} Uhr'
  following = german_number(_next_hour(hour))
  if 25 <= minute <= 35:
    return {25: 'fünf vor ', 30: '', 35: 'fünf nach '}[minute] + f'halb {following}'
  past = minute < 30
  distance = minute if past else 60 - minute
  amount = 'Viertel' if distance == 15 else german_number(distance)
  return f'{amount} {"nach" if past else "vor"} {german_number(hour) if past else following}'


def _german_stem(number: int) -> str:
  """A number as the front of a compound: a final `eins` loses its s (`einundzwanzig`, `hunderteintausend`)."""
  word = german_number(number)
  return word[:-1] if word.endswith('eins') else word


def _next_hour(hour: int) -> int:
  return hour % 12 + 1
