"""Greedy equality: speculative decoding at temperature 0 against autoregressive decoding of the same target.

Two programs of different width round differently, so plain equality can fail at ties and nowhere else: every difference
must have a top-2 logit gap below the stated bound. At the *same* width, through the same executable, equality is bitwise.
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from specjax.core import checks
from specjax.core import types
from specjax.decode import generate
from specjax.decode import methods

TIE_GAP = 1e-4


class Difference(NamedTuple):
  """The first token at which two greedy decodes differ, and the target's top-2 logit gap there."""

  prompt: int
  position: int
  ours: int
  baseline: int
  gap: float


@dataclasses.dataclass(frozen=True)
class GreedyReport:
  """What was compared: prompts and tokens, differences against each baseline."""

  num_prompts: int
  num_tokens: int
  plain: list[Difference]
  same_width: list[Difference]
  log_probs_bitwise: bool

  @property
  def not_ties(self):
    """Differences that a tie does not explain."""
    return [difference for difference in self.plain if difference.gap > TIE_GAP]


def compare(pair, prompts, *, num_draft_tokens, max_new_tokens, batch_size):
  """`GreedyReport` of decoding `prompts` (lists of token ids) three times: speculative, autoregressive, same width."""
  sampling = checks.SamplingParams(temperature=0.0)
  decode = lambda method: generate.generate(
      pair, prompts, method=method, sampling=sampling, max_new_tokens=max_new_tokens, seed=0, batch_size=batch_size)
  ours = decode(methods.speculative(num_draft_tokens=num_draft_tokens, max_draft_tokens=num_draft_tokens))
  same_width = decode(methods.speculative(num_draft_tokens=num_draft_tokens, max_draft_tokens=0))
  plain = decode(methods.autoregressive())
  return GreedyReport(
      num_prompts=len(prompts), num_tokens=int(ours.length.sum()),
      plain=_differences(pair, prompts, ours.tokens, plain.tokens),
      same_width=_differences(pair, prompts, ours.tokens, same_width.tokens),
      log_probs_bitwise=all(np.array_equal(a, b) for a, b in zip(ours.log_probs, same_width.log_probs)))


def _differences(pair, prompts, ours, baseline):
  found = []
  for index, (a, b) in enumerate(zip(ours, baseline)):
    if np.array_equal(a, b):
      continue
    shorter = min(len(a), len(b))
    unequal = np.flatnonzero(a[:shorter] != b[:shorter])
    position = int(unequal[0]) if unequal.size else shorter
    token = lambda row: int(row[position]) if position < len(row) else -1
    found.append(Difference(index, position, token(a), token(b), top_two_gap(pair, prompts[index], a[:position])))
  return found


def top_two_gap(pair, prompt, generated):
  """float, the gap between the target's two largest logits behind `prompt` + `generated`, by a full forward pass."""
  encoder = {}
  if pair.family == 'encoder-decoder':
    source = np.array([prompt], np.int32)
    encoder = dict(
        encoder_tokens=source, encoder_positions=np.arange(len(prompt), dtype=np.int32)[None],
        encoder_segments=np.ones_like(source))
    prompt = [0]
  tokens = np.array([[*prompt, *generated]], np.int32)
  positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
  batch = types.TrainingBatch(
      tokens=tokens, targets=tokens, weights=np.ones(tokens.shape, np.float32), positions=positions,
      segments=np.ones_like(tokens), **encoder)
  logits = jax.jit(lambda params, batch: pair.target.forward(params, batch).logits[0, -1])(pair.params['target'], batch)
  best = np.sort(np.asarray(logits))[-2:]
  return float(best[1] - best[0])
