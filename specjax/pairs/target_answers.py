"""Questions answered by a target itself, on disk: what its draft heads train on in self-distillation."""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import pathlib
from typing import Any
import zipfile

from absl import logging
import numpy as np
import tqdm

from specjax.checkpoints import durable
from specjax.core import checks
from specjax.core import errors
from specjax.core import types
from specjax.decode import generate
from specjax.decode import inputs
from specjax.decode import methods
from specjax.decode import pair as pair_lib
from specjax.decode import run
from specjax.tasks import prompts
from specjax.tasks.example import Example
from specjax.training import stopping

EXAMPLES_PER_PART = 1024


class Stopped(Exception):
  """A stop was asked for before all answers were there; what is there is on disk."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetAnswers:
  """Answers examples with a pair's target, decoded alone. Parts that are on disk already are not decoded again.

  Attributes:
    pair: whose target answers; its tokenizer and framing are used.
    target_sha256: of the target's file.
    temperature: 0 is greedy.
    seed: of sampled answers, which are addressed by the examples' ids.
    max_new_tokens: of an answer.
    batch_size: rows decoded together.
    directory: where the parts are kept, each whole or not there.
    stop: asks to return between two batches.
    show_progress: show a progress bar.
  """

  pair: pair_lib.Pair
  target_sha256: str
  temperature: float
  seed: int
  max_new_tokens: int
  batch_size: int
  directory: pathlib.Path
  stop: stopping.StopRequest
  show_progress: bool = False

  @property
  def identity(self) -> dict[str, Any]:
    """What the answers depend on besides the questions, JSON-able."""
    names = ('target_sha256', 'temperature', 'seed', 'max_new_tokens')
    return {name: getattr(self, name) for name in names}

  def __call__(self, examples: Sequence[Example], *, length: int) -> list[Example]:
    """The examples with the target's answers for targets.

    Left out are answers that do not end, and those whose text the tokenizer writes in other tokens than the target did:
    training would see a text that the target never wrote.

    Args:
      examples: questions.
      length: tokens of a packed row, in which question and answer of a decoder-only model must fit.

    Raises:
      Stopped: `stop` asked before all were answered.
      DataError: no answer ends. LogitsError: the target produced NaN.
    """
    parts = [examples[start:start + EXAMPLES_PER_PART] for start in range(0, len(examples), EXAMPLES_PER_PART)]
    answerer = _Answerer(self, examples, length)
    self.directory.mkdir(parents=True, exist_ok=True)
    durable.remove_leftovers(self.directory)
    answered = []
    bar = tqdm.tqdm(total=len(examples), unit='answer', disable=not self.show_progress, dynamic_ncols=True)
    with bar:
      for part in parts:
        answers = self._answers(part, answerer, length)
        answered += [_with_answer(example, tokens, self.pair.tokenizer) for example, tokens in zip(part, answers, strict=True)]
        bar.update(len(part))
    kept = [example for example in answered if example is not None]
    logging.info('%d of %d answers end and are kept', len(kept), len(examples))
    if not kept:
      raise errors.DataError(
          what='answers of the target', got='none that ends', expected='at least one', fix='raise max_new_tokens')
    return kept

  def _answers(self, part, answerer, length):
    """The tokens of a part's answers, int32 arrays."""
    content = json.dumps([self.identity, length, [[example.id, example.inputs] for example in part]])
    path = self.directory / f'answers-{hashlib.sha256(content.encode()).hexdigest()[:16]}.npz'
    if path.is_file():
      try:
        with np.load(path, allow_pickle=False) as stored:
          return np.split(stored['tokens'], np.cumsum(stored['length'])[:-1])
      except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:  # A cache: made again.
        logging.warning('%s is damaged (%s) and made again', path, error)
    answers = []
    for start in range(0, len(part), self.batch_size):
      if self.stop.requested:
        raise Stopped
      answers += answerer.decode(part[start:start + self.batch_size])
    with durable.replacing(path) as file:
      np.savez(file, tokens=np.concatenate(answers), length=np.array([len(tokens) for tokens in answers], np.int32))
    return answers


class _Answerer:
  """Decodes batches of examples by one executable: shapes are those of the longest question."""

  def __init__(self, answers: TargetAnswers, examples: Sequence[Example], length: int):
    self._answers, self._length = answers, length
    pair = answers.pair
    self._decoder = methods.autoregressive()(pair)
    self._is_decoder_only = pair.family == 'decoder-only'
    longest = max(len(pair.encode_prompt(example.inputs)) for example in examples)
    self._width = generate.bucket(longest)
    prompt_width = self._width if self._is_decoder_only else 1
    self._capacity = prompt_width + generate.bucket(answers.max_new_tokens) + self._decoder.slack

  def decode(self, batch: Sequence[Example]) -> list[np.ndarray]:
    """The generated tokens of each example; one that reached its limit lacks an EOS."""
    answers, pair = self._answers, self._answers.pair
    ids = [pair.encode_prompt(example.inputs) for example in batch]
    rooms = [self._length + 1 - len(tokens) if self._is_decoder_only else self._length for tokens in ids]
    sampling = checks.SamplingParams(temperature=answers.temperature)
    requests = generate.build_requests(
        ids, family=pair.family, width=self._width, batch_size=answers.batch_size, sampling=[sampling] * len(ids),
        max_new_tokens=[max(min(room, answers.max_new_tokens), 0) for room in rooms], eos_ids=(pair.tokenizer.eos_id,),
        seed=[answers.seed] * len(ids), example_id=[inputs.example_address(example.id) for example in batch],
        sample_index=[0] * len(ids), vocab_size=pair.target.vocab_size, start_token=pair.start_token)
    state = run.prefill(self._decoder, pair.params, requests, capacity=self._capacity)
    found = run.collect(run.decode(self._decoder, pair.params, state, max_steps=self._capacity))
    for row, example in enumerate(batch):
      if found.status[row] in (types.Status.NONFINITE, types.Status.NONFINITE_DRAFTER):
        raise errors.LogitsError(what='logits of the target', where=example.id, got='NaN', expected='finite numbers')
    return [generate.generated(found, row) for row in range(len(batch))]


def _with_answer(example, tokens, tokenizer):
  """The example with the answer `tokens`, or None where it does not end or is not what the tokenizer writes."""
  tokens = [int(token) for token in tokens]
  text = prompts.answer_text(tokens, tokenizer)
  answered = dataclasses.replace(example, targets=text)
  return answered if prompts.target_tokens(answered, tokenizer) == tokens else None
