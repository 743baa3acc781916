"""Decoders against oracles: the enumerated law and counters of a batch of requests, and how far they are from right."""

import dataclasses
from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from specjax.core import types
from specjax.testing import enumeration
from specjax.testing import oracles
from specjax.testing import toy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """One request to enumerate; `encoder` is the encoder's input of an encoder-decoder."""

  prompt: tuple[int, ...]
  max_new_tokens: int
  warp: oracles.Warp = oracles.Warp()
  eos_ids: tuple[int, ...] = ()
  stop_sequences: tuple[tuple[int, ...], ...] = ()
  encoder: tuple[int, ...] | None = None


class Discrepancy(NamedTuple):
  """How far one request is from its oracle.

  Attributes:
    law: total variation between the enumerated joint law and the rule's.
    mass: |total probability - 1|.
    counters: largest difference between an expected counter and its closed form, tokens.
  """

  law: float
  mass: float
  counters: float


def arrays(requests, *, vocab_size, dtype=np.float64):
  """`types.Requests` of a list of `Request`, on the host; bias and mask arrays only where one of them has one."""
  column = lambda name, kind: np.array([getattr(request.warp, name) for request in requests], kind)
  bias = allowed = None
  if any(request.warp.logit_bias is not None for request in requests):
    bias = np.array([request.warp.logit_bias or (0.0,) * vocab_size for request in requests], dtype)
  if any(request.warp.allowed_tokens is not None for request in requests):
    allowed = np.array([request.warp.allowed_tokens or (True,) * vocab_size for request in requests], bool)
  tokens, length = _padded([request.prompt for request in requests], 0)
  encoder = (None, None)
  if any(request.encoder is not None for request in requests):
    encoder = _padded([request.encoder for request in requests], 0)
  eos_ids, _ = _padded([request.eos_ids or (-1,) for request in requests], -1)
  stops = None
  if any(request.stop_sequences for request in requests):
    stops = _stop_sequences([request.stop_sequences for request in requests])
  index = np.arange(len(requests), dtype=np.uint32)
  return types.Requests(
      prompt=types.Prompt(tokens, length, *encoder),
      sampling=types.Sampling(
          temperature=column('temperature', dtype), top_k=column('top_k', np.int32), top_p=column('top_p', dtype),
          min_p=column('min_p', dtype), logit_bias=bias, allowed_tokens=allowed),
      max_new_tokens=np.array([request.max_new_tokens for request in requests], np.int32), eos_ids=eos_ids,
      stop_sequences=stops, seed=np.zeros(len(requests), np.uint32), example_id=index,
      sample_index=np.zeros(len(requests), np.uint32))


def capacity(decoder, requests):
  """Slots that every request needs."""
  longest = max(len(request.prompt) for request in requests)
  return longest + max(request.max_new_tokens for request in requests) + decoder.slack


def forward_of(model, params):
  """An uncached forward pass `TrainingBatch` -> logits on the host: numpy for toys, one jitted call for the others."""
  if isinstance(model, toy.ToyLM):
    return oracles.toy_forward(model, params)
  forward = jax.jit(lambda params, batch: model.forward(params, batch).logits)
  return lambda batch: forward(params, batch)


def random_params(model, seed, *, scale=1.5, dtype=np.float64):
  """Parameters of `model` filled with normal numbers of deviation scale / sqrt(rows); nothing compiles."""
  random = np.random.RandomState(seed)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(lambda leaf: (random.randn(*leaf.shape) * scale / leaf.shape[0] ** 0.5).astype(dtype), shapes)


@dataclasses.dataclass
class Oracle:
  """The exact law of a list of requests under one pair of models.

  Attributes:
    target, drafter: `oracles.LogitTables`; the drafter's may be None.
    requests: list of `Request`.
  """

  target: oracles.LogitTables
  drafter: oracles.LogitTables | None
  requests: list[Request]

  @classmethod
  def of(cls, requests, *, target, drafter, params):
    """Tables of both models (adapters; the drafter's None without one) with `params`, one uncached pass per request."""
    prompt = arrays(requests, vocab_size=target.vocab_size).prompt
    longest = max(request.max_new_tokens for request in requests)
    tables = lambda model, name: None if model is None else oracles.LogitTables(
        forward_of(model, params[name]), prompt, max_new_tokens=longest, vocab_size=model.vocab_size)
    return cls(tables(target, 'target'), tables(drafter, 'drafter'), requests)

  def laws(self, row, *, goal=oracles.lossless_goal, bonus='rule', draft=None):
    """`oracles.Laws` of one request."""
    drafter = None if self.drafter is None else self.drafter.row(row)
    return oracles.Laws(
        self.requests[row].warp, self.target.row(row), drafter, rule=goal, bonus=bonus, draft=draft)


def compare(
    joint: enumeration.JointLaw, oracle: Oracle, *, num_draft_tokens: int, goal: Callable[..., Any] = oracles.lossless_goal,
    bonus: str = 'rule', verifier: str = 'token', stops: list[Any] | None = None, drafts: list[Any] | None = None,
    observers: list[Any] | None = None,
) -> list[Discrepancy]:
  """A `Discrepancy` per request.

  Args:
    joint: what was enumerated.
    oracle: laws of the same requests.
    num_draft_tokens: K of the drafter; 0 where nothing is proposed.
    goal: the rule as in `oracles`.
    bonus: 'rule' or 'target'; with 'target' the law is round-structured, otherwise the product of the goals.
    verifier: 'token' or 'block'; only counters depend on it, and the law with bonus 'target'.
    stops, drafts, observers: per request, `oracles.round_structured`'s `stop`, `oracles.Laws`' `draft`, and a function
      of the `oracles.Laws` that returns `oracles.round_structured`'s `observe`.
  """
  result, mass = [], joint.mass()
  for row, request in enumerate(oracle.requests):
    laws = oracle.laws(row, goal=goal, bonus=bonus, draft=drafts[row] if drafts else None)
    limits = dict(
        max_new_tokens=request.max_new_tokens, eos_ids=request.eos_ids, stop_sequences=request.stop_sequences)
    rounds = oracles.round_structured(
        laws, num_draft_tokens=num_draft_tokens, verifier=verifier, stop=stops[row] if stops else lambda *args: 0.0,
        observe=observers[row](laws) if observers else lambda prefix: {}, **limits)
    law = oracles.product_law(laws.goal, **limits) if bonus == 'rule' else rounds.law
    counters = max((
        float(np.max(np.abs(joint.counters[name][row][:np.size(expected)] - expected), initial=0))
        if np.ndim(expected) else abs(float(joint.counters[name][row]) - expected))
        for name, expected in rounds.counters.items()) if joint.counters else 0.0
    result.append(Discrepancy(enumeration.total_variation(law, joint.laws[row]), abs(mass[row] - 1), counters))
  return result


def _stop_sequences(rows):
  """int32[B, S, W] of lists of sequences."""
  width = max(len(sequence) for row in rows for sequence in row)
  stops = np.full((len(rows), max(map(len, rows)), width), -1, np.int32)
  for i, row in enumerate(rows):
    for j, sequence in enumerate(row):
      stops[i, j, :len(sequence)] = sequence
  return stops


def _padded(rows, fill):
  width = max(map(len, rows))
  tokens = np.full((len(rows), width), fill, np.int32)
  for i, row in enumerate(rows):
    tokens[i, :len(row)] = row
  return tokens, np.array([len(row) for row in rows], np.int32)
