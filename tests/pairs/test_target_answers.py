"""Self-distillation: the target's own answers, decoded once and kept, as the texts that its heads train on."""

import dataclasses
import importlib.resources
import pathlib

import pytest

import specjax
from specjax.core import errors
from specjax.pairs import packed_examples
from specjax.pairs import target_answers
from specjax.tasks import prompts
from specjax.tasks import synthetic

DATA = pathlib.Path(str(importlib.resources.files('specjax.pairs'))) / 'data'

pytestmark = pytest.mark.skipif(
    not (DATA / 'gemma' / 'target.safetensors').is_file(), reason=f'the trained pairs are not in {DATA}')


class Never:
  requested = False


@dataclasses.dataclass
class StopAfter:
  batches: int

  @property
  def requested(self):
    self.batches -= 1
    return self.batches < 0


@pytest.fixture(scope='module')
def pair():
  return specjax.load_pair('gemma')


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
  monkeypatch.setattr(target_answers, 'EXAMPLES_PER_PART', 4)


def examples():
  return synthetic.examples('validation', 6, seed=5)


def answers_of(pair, directory, **changes):
  arguments = dict(
      pair=pair, target_sha256='a' * 64, temperature=0.0, seed=3, max_new_tokens=48, batch_size=3, directory=directory,
      stop=Never())
  return target_answers.TargetAnswers(**(arguments | changes))


def test_answers_are_what_generate_gives_token_for_token(pair, tmp_path):
  answered = answers_of(pair, tmp_path)(examples(), length=128)
  assert [example.id for example in answered] == [example.id for example in examples()]
  result = specjax.generate(
      pair, [example.inputs for example in examples()], method=specjax.autoregressive(), max_new_tokens=48, seed=3,
      sampling=specjax.SamplingParams(temperature=0.0), example_ids=[example.id for example in examples()])
  for example, tokens in zip(answered, result.tokens, strict=True):
    assert prompts.target_tokens(example, pair.tokenizer) == list(tokens)


@pytest.mark.nightly
def test_sampled_answers_depend_on_the_seed_and_not_on_the_batch(pair, tmp_path):
  texts = lambda name, **changes: {example.id: example.targets for example in answers_of(
      pair, tmp_path / name, temperature=1.5, **changes)(examples(), length=128)}
  first, again, other = texts('a'), texts('b', batch_size=2), texts('c', seed=4)
  assert first == again and first != other


def test_a_stopped_run_goes_on_behind_its_last_part(pair, tmp_path):
  with pytest.raises(target_answers.Stopped):
    answers_of(pair, tmp_path, stop=StopAfter(2))(examples(), length=128)  # The first part has two batches.
  [part] = tmp_path.iterdir()
  changed = part.stat().st_mtime_ns
  answered = answers_of(pair, tmp_path, stop=StopAfter(1))(examples(), length=128)  # One batch is left.
  assert len(answered) == 6 and part.stat().st_mtime_ns == changed
  assert answers_of(pair, tmp_path, stop=StopAfter(0))(examples(), length=128) == answered


def test_a_damaged_part_is_made_again(pair, tmp_path):
  answered = answers_of(pair, tmp_path)(examples(), length=128)
  for part in tmp_path.iterdir():
    part.write_bytes(part.read_bytes()[:60])
  assert answers_of(pair, tmp_path)(examples(), length=128) == answered


@pytest.mark.nightly
def test_answers_that_do_not_end_are_left_out(pair, tmp_path):
  whole = answers_of(pair, tmp_path)(examples(), length=128)
  lengths = sorted(len(prompts.target_tokens(example, pair.tokenizer)) for example in whole)
  limit = lengths[3]
  kept = answers_of(pair, tmp_path, max_new_tokens=limit)(examples(), length=128)
  assert 0 < len(kept) < 6
  assert kept == [example for example in whole if len(prompts.target_tokens(example, pair.tokenizer)) <= limit]
  with pytest.raises(errors.DataError, match='answers of the target.*none that ends'):
    answers_of(pair, tmp_path, max_new_tokens=1)(examples(), length=128)


def test_question_and_answer_fit_a_packed_row(pair, tmp_path):
  longest = max(len(pair.encode_prompt(example.inputs)) for example in examples())
  for example in answers_of(pair, tmp_path)(examples(), length=longest + 8):
    whole = pair.encode_prompt(example.inputs) + prompts.target_tokens(example, pair.tokenizer)
    assert len(whole) - 1 <= longest + 8


def test_packed_rows_hold_the_targets_answers_and_are_kept_apart_from_the_texts(pair, tmp_path):
  pack = lambda **more: packed_examples.packed_examples(
      split='validation', seed=5, num_examples=6, family='decoder-only', length=128, encoder_length=8,
      cache_dir=tmp_path, **more)
  answers = answers_of(pair, tmp_path / 'answers')
  pack()
  answered = pack(answers=answers)
  assert len(list(tmp_path.glob('validation-*.npz'))) == 2
  pieces = {token for example in answers(examples(), length=128) for token in prompts.target_tokens(example, pair.tokenizer)}
  scored = answered['targets'][answered['weights'] > 0]
  assert set(scored.tolist()) == pieces
