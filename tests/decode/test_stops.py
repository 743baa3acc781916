"""Stop sequences on the device and stop strings on the host, through `specjax.generate` and the jit boundary."""

import dataclasses

import numpy as np
import pytest

import specjax
from specjax.core import errors
from specjax.core import types
from specjax.decode import autoregressive
from specjax.decode import generate
from specjax.decode import run
from specjax.decode import stops
from specjax.testing import toy

V = 5
SAMPLED = specjax.SamplingParams(temperature=1.3)
PROMPTS = [[1, 2, 3], [4], [2, 2], [0, 1, 2, 3]]
BLOCK = specjax.speculative(num_draft_tokens=3, verifier='block')
TOKEN = specjax.speculative(num_draft_tokens=3)


class Letters:
  """A tokenizer whose texts are easily read: token 0 is EOS, 1 is 'a', 2 is 'b', 3 is 'ab', 4 is a space."""

  eos_id = 0
  pieces = ('', 'a', 'b', 'ab', ' ')

  def decode(self, tokens):
    return ''.join(self.pieces[token] for token in tokens)

  def encode(self, text):
    raise NotImplementedError(text)


@pytest.fixture(scope='module')
def pair():
  plain = toy.toy_pair(vocab_size=V, seed=3, scale=0.5)
  return dataclasses.replace(plain, tokenizer=Letters())


def decode(pair, method=TOKEN, **changes):
  arguments = dict(sampling=SAMPLED, max_new_tokens=40, seed=4, batch_size=4, num_samples=3, eos_ids=()) | changes
  return specjax.generate(pair, PROMPTS, method=method, **arguments)


def first_match(tokens, sequences):
  """How many tokens there are up to the earliest end of a sequence; None without one."""
  for end in range(1, len(tokens) + 1):
    if any(len(s) <= end and tuple(tokens[end - len(s):end]) == tuple(s) for s in sequences):
      return end
  return None


def of_one_shape(*sequences):
  """With a long sequence added as often as it takes to have four: one executable for all sets of them."""
  return [*sequences, *[(4, 3, 2, 1, 0, 4, 3)] * (4 - len(sequences))]


SEQUENCES = [of_one_shape(*sequences) for sequences in (
    [(2,)], [(1, 2)], [(1, 2, 3), (2, 2)], [(1, 1, 1, 1), (3, 4), (4, 3)], [(0, 1, 2, 3, 4, 0, 1)])]


@pytest.mark.parametrize('method', [TOKEN, BLOCK, specjax.autoregressive(), specjax.speculative(num_draft_tokens=7)])
def test_greedy_rows_are_the_free_rows_cut_behind_the_first_match(pair, method):
  """Speculation and stops change nothing in front of the match, nothing stands behind it, and counters follow."""
  greedy = dict(sampling=specjax.SamplingParams(temperature=0.0), num_samples=1)
  free = decode(pair, method, **greedy)
  stopped = 0
  for sequences in SEQUENCES + [of_one_shape(tuple(tokens[5:7].tolist())) for tokens in free.tokens]:
    found = decode(pair, method, stop_sequences=sequences, **greedy)
    for row, tokens in enumerate(free.tokens):
      end = first_match(tokens, sequences)
      np.testing.assert_array_equal(found.tokens[row], tokens[:end])
      np.testing.assert_allclose(found.log_probs[row], free.log_probs[row][:end], atol=1e-5)
      assert found.status[row] == (types.Status.LIMIT if end is None else types.Status.STOP)
      assert found.stats.emitted[row] == len(found.tokens[row])
      assert found.stats.accepted[row] + found.stats.steps[row] >= found.stats.emitted[row]
      assert found.stats.accepted[row] <= found.stats.emitted[row]
      stopped += end is not None
  assert stopped >= 8


def test_sampled_rows_are_the_plain_loops(pair):
  for sequences in SEQUENCES[:3]:
    work = generate.plan(
        pair, PROMPTS, method=specjax.autoregressive(), sampling=SAMPLED, max_new_tokens=20, seed=4, num_samples=1,
        batch_size=4, example_ids=None, eos_ids=(0,), stop_sequences=sequences)
    expected = autoregressive.reference(pair.target, pair.params['target'], work.requests[0])
    found = decode(pair, specjax.autoregressive(), num_samples=1, max_new_tokens=20, eos_ids=(0,), stop_sequences=sequences)
    for ours, plain in zip(found.tokens, expected):
      np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize('method', [TOKEN, BLOCK])
def test_every_row_stops_at_its_first_match_or_not_at_all(pair, method):
  statuses = set()
  for sequences in SEQUENCES:
    found = decode(pair, method, stop_sequences=sequences, eos_ids=(0,), max_new_tokens=8)
    for tokens, status in zip(found.tokens, found.status):
      end, eos = first_match(tokens, sequences), first_match(tokens, [(0,)])
      expected = 'EOS' if eos else 'STOP' if end else 'LIMIT'
      assert status == types.Status[expected] and len(tokens) == min(filter(None, (end, eos)), default=8)
      statuses.add(expected)
  assert statuses == {'EOS', 'STOP', 'LIMIT'}


def test_the_prompt_is_not_searched(pair):
  """A sequence that the end of a prompt begins and the first token completes is not there; nor one that is the prompt."""
  free = decode(pair, TOKEN)
  sequences = of_one_shape((2, int(free.tokens[6][0])), (2, 2, int(free.tokens[7][0])), (0, 1, 2, 3))
  assert PROMPTS[2] == [2, 2] and PROMPTS[3] == list(sequences[2])
  found = decode(pair, TOKEN, stop_sequences=sequences)
  for ours, tokens in zip(found.tokens, free.tokens):
    np.testing.assert_array_equal(ours, tokens[:first_match(tokens, sequences)])
  assert len(found.tokens[6]) > 1 and len(found.tokens[7]) > 1


def test_text_ends_in_front_of_the_sequence_and_tokens_behind_it(pair):
  found = decode(pair, stop_sequences=of_one_shape((1, 2), (3, 1, 2)), eos_ids=(0,))
  assert types.Status.STOP in found.status
  for tokens, status, text in zip(found.tokens, found.status, found.text):
    if status == types.Status.STOP:
      longest = 3 if tuple(tokens[-3:]) == (3, 1, 2) else 2
      assert tuple(tokens[-2:]) == (1, 2) and text == Letters().decode(tokens[:-longest])


def test_more_sequences_of_the_same_shape_compile_nothing(pair):
  decode(pair, stop_sequences=of_one_shape((1, 2), (3,)))
  before = len(run.compile_log())
  decode(pair, stop_sequences=[(4, 4, 4, 4, 4)] * 3)
  decode(pair, stop_sequences=of_one_shape((0,), (2, 1)))
  assert len(run.compile_log()) == before


@pytest.mark.parametrize('strings', [['ab'], ['b a', 'bb'], ['abab', 'b'], ['aaaaaaaaaaaaaaaaaaaaaaa']])
def test_strings_cut_the_text_and_stop_the_row(pair, strings):
  """However the string was tokenised. The tokens are those of the free row, as far as they were decoded."""
  free = decode(pair, TOKEN, max_new_tokens=200)
  found = decode(pair, TOKEN, max_new_tokens=200, stop_strings=strings)
  for row, text in enumerate(free.text):
    ends = [text.index(s) + len(s) for s in strings if s in text]
    expected = types.Status.STOP if ends else types.Status.LIMIT
    assert found.status[row] == expected and not any(s in found.text[row] for s in strings)
    assert text.startswith(found.text[row]) and (ends or text == found.text[row])
    np.testing.assert_array_equal(found.tokens[row], free.tokens[row][:len(found.tokens[row])])
    assert found.stats.emitted[row] == found.length[row]
    if ends:
      # The string is found at the latest at the end of the chunk of rounds in which it was completed.
      assert len(found.text[row]) < min(ends)
      assert found.stats.steps[row] <= free.stats.steps[row]
  if strings == ['ab']:
    assert sum(found.length) < sum(free.length) / 2


def test_a_law_that_breaks_behind_a_stop_string_breaks_nothing(pair):
  """The row had ended when its target turned NaN, although nobody had looked yet. Without the string it is an error."""
  one = dict(method=TOKEN, sampling=SAMPLED, max_new_tokens=12, num_samples=1, batch_size=1, eos_ids=())
  prompt = [4]
  for seed in range(20):
    free = specjax.generate(pair, [prompt], seed=seed, **one)
    first, *rest = free.tokens[0].tolist()
    poison = next((token for token in rest if token not in (first, *prompt)), None)
    if first in (1, 2) and poison in (0, 3):
      break
  table = np.array(pair.params['target']['table'])
  table[:, poison] = np.nan
  broken = dataclasses.replace(pair, params=pair.params | {'target': pair.params['target'] | {'table': table}})
  with pytest.raises(errors.LogitsError):
    specjax.generate(broken, [prompt], seed=seed, **one)
  found = specjax.generate(broken, [prompt], seed=seed, stop_strings=[Letters.pieces[first]], **one)
  assert found.status == [types.Status.STOP] and found.text == ['']


def test_where_a_text_is_cut():
  assert stops.find_string('one two', ()) is None
  assert stops.find_string('one two', ('three',)) is None
  assert stops.find_string('one two', ('two', 'e t')) == 2  # the one that ends first
  assert stops.find_string('xabc', ('bc', 'abc')) == 1  # of those that end together the longest
  assert stops.find_string('abab', ('b',)) == 1


def test_what_is_cut_off_the_tokens():
  sequences = ((1, 2), (2,), (3, 1, 2))
  assert stops.without_sequence([4, 3, 1, 2], sequences) == [4]
  assert stops.without_sequence([4, 2], sequences) == [4]
  assert stops.without_sequence([2, 4], sequences) == [2, 4]
  assert stops.without_sequence([], sequences) == [] == stops.without_sequence([1, 2], ((1, 2),))


def test_arrays_are_padded_behind_to_few_shapes():
  assert stops.as_array((), 2) is None
  shapes = {stops.as_array(((1,) * n,) * m, 2).shape for n in range(1, 9) for m in range(1, 9)}
  assert shapes == {(2, m, n) for n in (1, 2, 4, 8) for m in (1, 2, 4, 8)}
  assert stops.as_array(((1, 2, 3), (4,)), 1).tolist() == [[[1, 2, 3, -1], [4, -1, -1, -1]]]


def test_streamed_chunks_end_where_generate_ends(pair):
  arguments = dict(method=TOKEN, sampling=SAMPLED, max_new_tokens=40, seed=4, eos_ids=(0,),
                   stop_sequences=of_one_shape((1, 2), (3, 3)))
  whole = specjax.generate(pair, PROMPTS, batch_size=len(PROMPTS), **arguments)
  chunks = list(specjax.stream(pair, PROMPTS, steps_per_chunk=2, **arguments))
  for row, expected in enumerate(whole.tokens):
    np.testing.assert_array_equal(np.concatenate([chunk[row] for chunk in chunks]), expected)


@pytest.mark.parametrize('changes, error, text', [
    (dict(stop_sequences='ab'), errors.ParamError, 'stop_strings'),
    (dict(stop_sequences=['ab']), errors.ParamError, 'stop_strings'),
    (dict(stop_sequences=[1, 2]), errors.ParamError, 'stop sequence 0'),
    (dict(stop_sequences=[[]]), errors.ParamError, 'at least one'),
    (dict(stop_sequences=[[1], [V]]), errors.VocabError, 'stop sequence 1'),
    (dict(stop_sequences=[[-1]]), errors.VocabError, '-1'),
    (dict(stop_sequences=[[1.5]]), errors.VocabError, 'integers'),
    (dict(stop_sequences=[[1]] * 65), errors.LimitError, 'number of stop_sequences'),
    (dict(stop_sequences=[[1] * 65]), errors.LimitError, 'tokens of a stop sequence'),
    (dict(stop_strings='ab'), errors.ParamError, 'list'),
    (dict(stop_strings=['']), errors.ParamError, 'non-empty'),
    (dict(stop_strings=[[1]]), errors.ParamError, 'stop_sequences'),
    (dict(stop_strings=['a'] * 65), errors.LimitError, 'number of stop_strings'),
])
def test_bad_stops_are_refused_before_compilation(pair, changes, error, text):
  before = len(run.compile_log())
  with pytest.raises(error, match=text):
    decode(pair, **changes)
  assert len(run.compile_log()) == before


def test_strings_need_a_tokenizer(pair):
  with pytest.raises(errors.ParamError, match='tokenizer'):
    decode(dataclasses.replace(pair, tokenizer=None), stop_strings=['ab'])


def test_strings_are_refused_where_whole_answers_are_judged(pair):
  """The drafter's answer would be judged by text behind the string."""
  cascade = specjax.sequence_cascade(confidence='sum_log_prob', threshold=-20.0)
  with pytest.raises(errors.ParamError, match='stop_strings.*stop_sequences'):
    decode(pair, cascade, stop_strings=['a'])
