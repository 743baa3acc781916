"""Synthetic streams: disjoint splits, addressable examples, scorers that accept the reference and refuse its damage."""

import hashlib
import itertools
import json
import re
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest

from specjax.core.errors import ParamError
from specjax.tasks import synthetic
from specjax.tasks.example import SPLITS, Draws, split_of
from specjax.tasks.vocabulary import load_builtin_tokenizer

MAX_TOKENS = 64


@pytest.fixture(scope='module')
def train():
  return synthetic.examples('train', 16_000, seed=0)


@pytest.fixture(scope='module')
def held_out():
  return {split: synthetic.examples(split, 4_000, seed=0) for split in ('validation', 'test')}


def test_no_question_is_in_two_splits(train, held_out):
  questions = {'train': {example.inputs for example in train + synthetic.examples('train', 4_000, seed=1)}}
  questions |= {split: {example.inputs for example in examples} for split, examples in held_out.items()}
  for one, other in itertools.combinations(SPLITS, 2):
    assert not questions[one] & questions[other]


def test_splits_have_their_shares():
  counts = {split: 0 for split in SPLITS}
  for number in range(20_000):
    counts[split_of(f'question {number}')] += 1
  # Exact binomial law: six standard deviations are 166 of 20,000, a false alarm in 5e8 runs; the hash is fixed anyway.
  assert abs(counts['test'] - 800) < 170
  assert abs(counts['validation'] - 800) < 170


def test_held_out_streams_do_not_repeat_a_question(held_out):
  for examples in held_out.values():
    assert len({example.inputs for example in examples}) == len(examples)


def test_ids_are_unique(train, held_out):
  everything = train + held_out['validation'] + held_out['test']
  assert len({example.id for example in everything}) == len(everything)


def test_every_domain_and_level_has_its_share(train):
  for domain, level in itertools.product(synthetic.DOMAINS, synthetic.LEVELS):
    assert sum((example.domain, example.level) == (domain, level) for example in train) == len(train) // 16


@pytest.mark.parametrize('split', SPLITS)
def test_stream_started_late_is_the_tail(split):
  whole = synthetic.examples(split, 60, seed=3)
  assert list(itertools.islice(synthetic.stream(split, seed=3, start=37), 23)) == whole[37:]


def test_train_example_is_a_function_of_its_address(train):
  for position in (0, 1, 5, 4_000, 15_999):
    number, turn = divmod(position, len(synthetic.DOMAINS))
    assert synthetic.example_at('train', synthetic.DOMAINS[turn], number, seed=0) == train[position]


def test_another_seed_is_another_stream():
  assert synthetic.examples('train', 50, seed=0) != synthetic.examples('train', 50, seed=1)


def test_streams_never_change(held_out, train):
  """The pair in the package was trained on this stream: another one would make its report untrue."""
  text = json.dumps([[example.id, example.inputs, example.targets] for example in train[:2000] + held_out['test'][:500]])
  assert hashlib.sha256(text.encode()).hexdigest() == '5f2084424927b8db7cf8e8ad28f5103403cebf6f72a989012f4fc5f5864a5235'


def test_draws_match_the_published_generator():
  draws = Draws('')
  draws._state = 1234567  # the reference outputs of SplitMix64 for this seed
  assert [draws.below(1 << 32) for _ in range(3)] == [n >> 32 for n in (
      6457827717110365317, 3203168211198807973, 9817491932198370423)]


@pytest.mark.parametrize('split', ['train', 'test'])
def test_every_reference_scores_one(split, train, held_out):
  for example in train if split == 'train' else held_out[split]:
    assert synthetic.score(example, example.targets) == 1.0, example


def test_lengths_stay_below_the_cap(train, held_out):
  tokenizer = load_builtin_tokenizer()
  everything = train + held_out['validation'] + held_out['test']
  inputs = [len(tokens) for tokens in tokenizer.encode_many([example.inputs for example in everything])]
  targets = [len(tokens) for tokens in tokenizer.encode_many([example.targets for example in everything])]
  assert max(inputs) + 2 <= MAX_TOKENS  # bos and separator, or eos
  assert max(targets) + 1 <= MAX_TOKENS
  assert sum(inputs) + sum(targets) < 50 * len(everything)


def _damaged(example):
  """The reference with its last number, or else its last letter, changed."""
  number = re.search(r'[0-9]+(?=[^0-9]*$)', example.targets)
  if number:
    return f'{example.targets[:number.start()]}{int(number.group()) + 1}{example.targets[number.end():]}'
  return example.targets[:-1] + ('a' if example.targets[-1] != 'a' else 'b')


def test_damaged_references_score_zero(held_out):
  wrong = {domain: 0 for domain in synthetic.DOMAINS}
  for example in held_out['test']:
    wrong[example.domain] += synthetic.score(example, _damaged(example))
  assert wrong == {'arithmetic': 0, 'translation': 0, 'records': 0, 'programs': wrong['programs']}
  # Two in a hundred damaged programs are right: the length of a list does not depend on what was added to its elements.
  assert wrong['programs'] <= 0.025 * len(held_out['test']) / 4


def test_other_right_answers_score_one():
  arithmetic = synthetic.Example('a', 'arithmetic', 1, '', '3+4=7; answer 7', {'answer': 7})
  assert synthetic.score(arithmetic, 'four and three: answer 7') == 1.0
  assert synthetic.score(arithmetic, 'answer 7; answer 8') == 0.0
  assert synthetic.score(arithmetic, 'answer 71') == 0.0
  long = synthetic.Example('a', 'arithmetic', 1, '', 'answer 123456789', {'answer': 123456789})
  assert synthetic.score(long, 'answer 123456789') == 1.0
  assert synthetic.score(long, 'answer 1234567890') == 0.0
  program = synthetic.Example('p', 'programs', 1, '', 'x=x*2; x=x+6; return x', {'variable': 'x'})
  assert synthetic.score(program, 'return 2*(x+3)') == 1.0
  assert synthetic.score(program, 'return 2*(x+4)') == 0.0


@pytest.mark.parametrize('prediction', [
    '', ' ', '\x00', '\ud800', ';' * 9999, 'answer ' + '9' * 5000, 'return ' + '(' * 5000, 'return 9' + '*9' * 5000,
    'x=' * 9999, 'return ٣', 'answer ٣', 'return e', 'return x' * 1000, '__import__("os")', 'return map(v,e*e*e*e*e*e*e)'])
def test_hostile_predictions_score_zero(prediction):
  for example in synthetic.examples('test', 16):
    assert synthetic.score(example, prediction) == 0.0


@hypothesis.settings(derandomize=True, deadline=None, max_examples=200)
@hypothesis.given(st.one_of(
    st.text(), st.lists(st.sampled_from('x v e = == < > + - * // % ( ) , ; if then else return map keep sum max 0 7 99 '
                                        'answer ; ; ( ( return'.split()), max_size=40).map(' '.join)))
def test_score_never_raises(prediction):
  for example in synthetic.examples('test', 8):
    assert synthetic.score(example, prediction) in (0.0, 1.0)


@pytest.mark.parametrize('arguments', [
    {'split': 'dev'}, {'split': 'train', 'domains': ('poetry',)}, {'split': 'train', 'domains': ()},
    {'split': 'train', 'start': -1}])
def test_bad_arguments_are_param_errors(arguments):
  with pytest.raises(ParamError) as error:
    synthetic.stream(**arguments)
  assert error.value.what and error.value.fix


def test_unknown_split_of_an_address_is_a_param_error():
  with pytest.raises(ParamError):
    synthetic.example_at('dev', 'records', 0, seed=0)


def test_tasks_import_neither_seqio_nor_jax():
  program = ('import sys\n'
             'from specjax.tasks import synthetic, vocabulary, prompts, packing, local\n'
             'print([name for name in ("seqio", "tensorflow", "jax", "gin") if name in sys.modules])')
  assert subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True).stdout == '[]\n'


def test_a_domain_named_twice_comes_twice_as_often_with_other_questions():
  mixture = ('records', 'programs', 'records')
  first = list(itertools.islice(synthetic.stream('train', seed=3, domains=mixture), 60))
  assert [example.domain for example in first] == list(mixture) * 20
  assert [e.id for e in first if e.domain == 'records'] == [
      e.id for e in itertools.islice(synthetic.stream('train', seed=3, domains=('records',)), 40)]
