"""The synthetic tasks: four domains of generated questions with checkable answers, any number, nothing to download.

Every example is a function of its address (seed, split, domain, number), so a stream resumes at any position and two
machines agree. The split of a question is a function of its text (`example.split_of`): train, validation and test are
disjoint by construction, for all seeds and sizes together. A train stream may repeat a question, as a finite set read
for many epochs would; validation and test streams never do.
"""

import itertools
from collections.abc import Iterator, Sequence

from specjax.core.errors import ParamError
from specjax.metrics.quality import exact_match
from specjax.tasks import arithmetic, programs, records, translation
from specjax.tasks.example import SPLITS, Draws, Example, split_of

DOMAINS = ('arithmetic', 'translation', 'records', 'programs')
LEVELS = (1, 2, 3, 4)
VERSION = 1  # Of what the generators make of an address; raised whenever an example changes.

_GENERATORS = {'arithmetic': arithmetic, 'translation': translation, 'records': records, 'programs': programs}


def example_at(split: str, domain: str, number: int, *, seed: int) -> Example:
  """The example at an address; levels follow each other, 1 2 3 4 1 2 ...

  Candidates are drawn until one belongs to the split: 1.1 draws for train, 25 for a held-out split.

  Args:
    split: one of `SPLITS`.
    domain: one of `DOMAINS`.
    number: 0, 1, 2, ...
    seed: which stream of examples.

  Raises:
    ParamError: an unknown split or domain, or a negative number.
  """
  _validate(split, (domain,), number)
  generator = _GENERATORS[domain]
  level = LEVELS[number % len(LEVELS)]
  for attempt in itertools.count():
    draws = Draws(f'{seed}/{split}/{domain}/{number}/{attempt}')
    inputs, targets, check = generator.generate(draws, level)
    if split_of(inputs) == split:
      return Example(id=f'{domain}/{split}/{seed}/{number}', domain=domain, level=level, inputs=inputs,
                     targets=targets, check=check)


def stream(split: str, *, seed: int = 0, domains: Sequence[str] = DOMAINS, start: int = 0) -> Iterator[Example]:
  """An endless iterator over a split, the domains taking turns.

  Validation and test skip what they have already given, and go on for as long as new questions are found; the easiest
  level of translation is the smallest, with some thousand held-out questions.

  Args:
    split: one of `SPLITS`.
    seed: which stream of examples; the splits of all seeds are disjoint.
    domains: which domains take turns, in which order; one named twice comes twice as often, with other questions.
    start: how many examples to leave out. Train jumps there; the others walk, since they remember what was given.

  Raises:
    ParamError: an unknown split or domain, or a negative start.
  """
  _validate(split, domains, start)
  return _train(seed, domains, start) if split == 'train' else _held_out(split, seed, domains, start)


def examples(split: str, count: int, *, seed: int = 0, domains: Sequence[str] = DOMAINS) -> list[Example]:
  """The first `count` examples of `stream`."""
  return list(itertools.islice(stream(split, seed=seed, domains=domains), count))


def score(example: Example, prediction: str) -> float:
  """1.0 when a prediction answers the question, otherwise 0.0; any text is judged, none raises.

  Arithmetic compares the final number, programs are run, translation, records and examples of other domains are
  compared with the reference.
  """
  if example.domain not in _GENERATORS:
    return exact_match(example.targets, prediction)
  return _GENERATORS[example.domain].score(example, prediction)


def _train(seed: int, domains: Sequence[str], start: int) -> Iterator[Example]:
  domains = tuple(domains)
  weight = [domains.count(domain) for domain in domains]
  before = [domains[:turn].count(domain) for turn, domain in enumerate(domains)]
  for position in itertools.count(start):
    number, turn = divmod(position, len(domains))
    yield example_at('train', domains[turn], number * weight[turn] + before[turn], seed=seed)


def _held_out(split: str, seed: int, domains: Sequence[str], start: int) -> Iterator[Example]:
  given = set()
  numbers = {domain: itertools.count() for domain in domains}
  for position in itertools.count():
    domain = domains[position % len(domains)]
    example = next(found for number in numbers[domain]
                   if (found := example_at(split, domain, number, seed=seed)).inputs not in given)
    given.add(example.inputs)
    if position >= start:
      yield example


def _validate(split: str, domains: Sequence[str], start: int) -> None:
  if split not in SPLITS:
    raise ParamError(f'unknown split {split!r}', what='split', where='synthetic', got=split, expected=SPLITS,
                     fix=f'choose one of {", ".join(SPLITS)}')
  unknown = [domain for domain in domains if domain not in _GENERATORS]
  if unknown or not domains:
    raise ParamError(f'domains {tuple(domains)!r}', what='domains', where='synthetic', got=tuple(domains),
                     expected=DOMAINS, fix=f'choose some of {", ".join(DOMAINS)}')
  if start < 0:
    raise ParamError(f'{start} is negative', what='start', where='synthetic', got=start, expected='>= 0',
                     fix='count examples from 0')
