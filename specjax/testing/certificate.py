"""Whether a method follows its law, in two steps: exactly on toys of its structure, statistically on a real pair.

The law is that of the numpy oracles (`part_oracles`), which share no code with the parts. The toys have the method's K,
rule, knobs, verifier, bonus and sampling, a vocabulary of two or three, and are enumerated in float64. On the pair itself
the joint law of the first tokens is worked out by uncached passes of both models and compared with counts of samples.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from specjax.core import checks
from specjax.core import errors
from specjax.core import types
from specjax.decode import generate as generate_lib
from specjax.decode import pair as pair_lib
from specjax.decode import routed
from specjax.decode import sequence_cascade
from specjax.decode import speculative
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import part_oracles
from specjax.testing import statistics
from specjax.testing import toy

TOLERANCE = 1e-12
LEAST_EXPECTED = 20.0  # samples; rarer continuations are counted together
_OTHER = -1


class Enumerated(NamedTuple):
  """What the enumeration of one structure found.

  Attributes:
    configurations: requests of all toys.
    largest_variation: the largest total variation between a joint law and its oracle's.
    is_independent: False where the rule has no oracle of its own and was acted out by its own code.
  """

  configurations: int
  largest_variation: float
  is_independent: bool

  @property
  def holds(self) -> bool:
    return self.largest_variation <= TOLERANCE


class Sampled(NamedTuple):
  """What sampling on a pair found.

  Attributes:
    num_prompts, num_samples: prompts, and samples of each.
    num_tokens: how many tokens the joint law is over.
    cells: cells of the law with at least `LEAST_EXPECTED` expected samples, over all prompts.
    smallest_p: the smallest p-value of Pearson's and the likelihood-ratio test over all prompts.
    level: it must not be below; `statistics.ALPHA` shared out among the tests.
    seen_variation: the total variation that Pearson's test of one prompt sees with 99 % certainty.
  """

  num_prompts: int
  num_samples: int
  num_tokens: int
  cells: int
  smallest_p: float
  level: float
  seen_variation: float | None

  @property
  def holds(self) -> bool:
    return self.smallest_p >= self.level


def enumerate_structure(
    method: Callable[[Any], Any], *, family: str, sampling: checks.SamplingParams, seeds: Sequence[int] = (0, 1),
) -> Enumerated:
  """`Enumerated` over toys with two and three tokens.

  Args:
    method: function of a pair -> decoder, as `specjax.speculative(...)` returns. K above 4 is slow.
    family: 'decoder-only' or 'encoder-decoder'.
    sampling: of every request.
    seeds: of the toys.

  Raises:
    NotImplementedError: a decoder that no oracle knows.
  """
  largest, count, independent = 0.0, 0, True
  with jax.enable_x64(True):
    for seed in seeds:
      vocab_size = 2 + seed % 2
      toys = toy.toy_pair(vocab_size=vocab_size, seed=100 + seed, scale=0.6, has_encoder=family == 'encoder-decoder')
      pair = pair_lib.Pair(target=toys.target, drafter=toys.drafter, params=toys.params, family=family, name='toy')
      decoder, requests = method(pair), _toy_requests(vocab_size, sampling, family)
      oracle = exactness.Oracle.of(requests, target=toys.target, drafter=toys.drafter, params=toys.params)
      phases = dict(phase_of=lambda state: state.drafter_state.phase) if isinstance(
          decoder, sequence_cascade.SequenceCascade) else {}
      breaks = ()
      if isinstance(decoder, routed.RoutedDecoder) and hasattr(decoder.router, 'rate'):
        breaks = [(float(decoder.router.rate),)] * len(requests)
      joint = enumeration.Enumerator(rows=256, policy_breaks=breaks, test_order=_test_order(decoder), **phases).joint(
          decoder, toys.params, exactness.arrays(requests, vocab_size=vocab_size),
          capacity=exactness.capacity(decoder, requests))
      for row in range(len(requests)):
        expected, own = part_oracles.law_of(decoder, oracle, row)
        largest = max(largest, enumeration.total_variation(expected.law, joint.laws[row]), abs(joint.mass()[row] - 1))
        count, independent = count + 1, independent and own
  return Enumerated(count, float(largest), independent)


def sample_pair(
    method: Callable[[Any], Any], pair: Any, prompts: Sequence[Any], *, sampling: checks.SamplingParams, num_tokens: int,
    num_samples: int, seed: int, batch_size: int = 256,
) -> Sampled | None:
  """`Sampled` of a pair, or None where the law is no product of laws of single tokens (see `token_law`).

  Args:
    method: function of a pair -> decoder.
    pair: a `specjax.Pair`.
    prompts: texts or token ids.
    sampling: of every prompt.
    num_tokens: length of the joint law, tokens; at least K + 2 spans two rounds.
    num_samples: of each prompt.
    seed: the first of generation; every 4,096 samples take the next.
    batch_size: rows decoded together.
  """
  decoder = method(pair)
  if token_law(decoder) is None:
    return None
  answers = _answers(
      pair, prompts, method=method, sampling=sampling, max_new_tokens=num_tokens, num_samples=num_samples, seed=seed,
      batch_size=batch_size)
  eos_ids = () if pair.tokenizer is None else (pair.tokenizer.eos_id,)
  p_values, cells, freedoms = [], 0, []
  for index, prompt in enumerate(prompts):
    law = token_law(decoder)(_warp(sampling), *_logits_behind(pair, prompt, num_tokens))
    tree = _tree(law, num_tokens=num_tokens, num_samples=num_samples, eos_ids=eos_ids)
    counts, expanded = dict.fromkeys(tree, 0), {cell[:i] for cell in tree for i in range(len(cell) + 1)}
    for tokens in answers[index]:
      counts[_cell(tokens, expanded)] += 1
    probs, seen = np.array(list(tree.values())), np.array(list(counts.values()))
    for test in (statistics.pearson, statistics.g_test):
      statistic, freedom, p_value = test(seen, probs)
      p_values.append(p_value if freedom > 0 else float(statistic == 0))
    cells, freedoms = cells + len(tree), [*freedoms, freedom]
  level = statistics.ALPHA / len(p_values)
  return Sampled(
      len(prompts), num_samples, num_tokens, cells, min(p_values), level, _seen_variation(num_samples, max(freedoms), level))


def _answers(pair, prompts, *, num_samples, seed, **options):
  """For every prompt a list of `num_samples` tuples of tokens; each call of `generate` has a seed of its own."""
  found = [[] for _ in prompts]
  for part, start in enumerate(range(0, num_samples, checks.MAX_SAMPLES)):
    result = generate_lib.generate(
        pair, prompts, seed=seed + part, num_samples=min(checks.MAX_SAMPLES, num_samples - start), **options)
    for index, tokens in zip(result.prompt_index, result.tokens):
      found[index].append(tuple(tokens.tolist()))
  return found


def token_law(decoder: Any) -> Callable[..., Any] | None:
  """(warp, target logits, drafter logits of a prefix) -> law of the next token given the emitted ones; None without one.

  Speculative decoding with the rule's law at the bonus position has one, and so has a token cascade. With `bonus='target'`
  and under typical acceptance the law depends on where rounds begin, and a sequence cascade judges whole answers.
  """
  if isinstance(getattr(decoder, 'verifier', None), speculative.TypicalVerifier):
    return None
  if isinstance(decoder, speculative.SpeculativeDecoder) and (decoder.bonus == 'rule' or decoder.num_draft_tokens == 0):
    goal, _ = part_oracles.goal_of(decoder.rule)
    return lambda warp, target, drafter: oracles.Laws(warp, target, drafter, rule=goal).goal
  deferral = part_oracles.deferral_of(decoder.router) if isinstance(decoder, routed.RoutedDecoder) else None
  if deferral is None:
    return None

  def cascade(warp, target, drafter):
    def law(prefix):
      share = deferral(warp.plain(target(prefix)), warp.plain(drafter(prefix)))
      return share * warp.law(target(prefix)) + (1 - share) * warp.law(drafter(prefix))
    return law

  return cascade


def _test_order(decoder):
  """The nodes of a tree, from 0, in the order in which they are tested; None for chains, whose tests stand for themselves."""
  shape = getattr(getattr(decoder, 'drafter', None), 'shape', None)
  if shape is None:
    return None
  if not isinstance(decoder.verifier, speculative.TraversalVerifier):
    return tuple(range(shape.num_nodes))

  def below(node):
    children = [child for child in range(1, shape.num_nodes + 1) if shape.parents[child - 1] == node]
    return [test for child in children for test in (*below(child), child - 1)]

  return tuple(below(0))


def _toy_requests(vocab_size, sampling, family):
  """Ragged prompts, limits and EOS."""
  warp = _warp(sampling)
  is_encoder = family == 'encoder-decoder'
  shapes = ((1, 5, ()), (2, 4, (1,)), (3, 3, ()), (2, 1, ()))
  return [
      exactness.Request(
          prompt=tuple((i + j) % vocab_size for j in range(1 if is_encoder else length)), max_new_tokens=limit, warp=warp,
          eos_ids=eos, encoder=tuple((i + 2 * j) % vocab_size for j in range(length)) if is_encoder else None)
      for i, (length, limit, eos) in enumerate(shapes)]


def _warp(sampling):
  if sampling.logit_bias is not None or sampling.allowed_tokens is not None:
    raise errors.ParamError(
        what='certificate with logit_bias or allowed_tokens', got='given', expected='none',
        fix='they belong to a vocabulary, which the toys do not share')
  return oracles.Warp(
      temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p)


def _logits_behind(pair, prompt, num_tokens):
  """Two functions prefix -> float64[V], the target's and the drafter's raw logits, by uncached passes of one shape."""
  tokens = pair.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
  encoder, start = (tokens, [pair.start_token]) if pair.family == 'encoder-decoder' else (None, tokens)
  width = len(start) + num_tokens

  def of(role):
    model, params = getattr(pair, role), pair.params[role]
    forward = jax.jit(lambda params, batch, at: model.forward(params, batch).logits[0, at])
    memory = {}

    def logits(prefix):
      if prefix not in memory:
        row = [*start, *prefix]
        memory[prefix] = np.asarray(
            forward(params, _teacher_forced(row, width, encoder), np.int32(len(row) - 1)), np.float64)
      return memory[prefix]

    return logits

  return of('target'), of('drafter')


def _teacher_forced(row, width, encoder):
  tokens = np.zeros((1, width), np.int32)
  tokens[0, :len(row)] = row
  index = np.arange(width, dtype=np.int32)[None]
  more = {}
  if encoder is not None:
    where = np.arange(len(encoder), dtype=np.int32)[None]
    more = dict(encoder_tokens=np.array([encoder], np.int32), encoder_positions=where,
                encoder_segments=np.ones_like(where))
  return types.TrainingBatch(
      tokens=tokens, targets=np.zeros_like(tokens), weights=np.zeros(tokens.shape, np.float32), positions=index,
      segments=(index < len(row)).astype(np.int32), **more)


def _tree(law, *, num_tokens, num_samples, eos_ids):
  """Cell -> probability. A cell is a whole continuation, or a prefix followed by `_OTHER`: any of its rare tokens."""
  cells = {}

  def expand(prefix, mass):
    if len(prefix) == num_tokens or (prefix and prefix[-1] in eos_ids):
      cells[prefix] = mass
      return
    probs = mass * law(prefix)
    common = np.flatnonzero(probs * num_samples >= LEAST_EXPECTED)
    for token in common:
      expand((*prefix, int(token)), probs[token])
    rest = mass - probs[common].sum()
    if len(common) < len(probs):
      cells[(*prefix, _OTHER)] = max(rest, 0.0) if np.delete(probs, common).any() else 0.0

  expand((), 1.0)
  return cells


def _cell(tokens, expanded):
  """The cell that a sample falls into."""
  prefix = ()
  for token in tokens:
    if (*prefix, token) not in expanded:
      return (*prefix, _OTHER)
    prefix = (*prefix, token)
  return prefix


def _seen_variation(num_samples, freedom, level):
  """The smallest of some total variations that Pearson's test sees with 99 % certainty, or None."""
  for variation in (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2):
    if freedom > 0 and statistics.power(num_samples, variation, freedom, alpha=level) >= 0.99:
      return variation
  return None
