"""What every language model, rule and drafter must satisfy; each check raises AssertionError with what is wrong.

A new part is done when its check passes: `check_language_model`, `check_rule`, `check_rule_law`, `check_drafter`.
"""

import functools
import itertools
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax import drafters
from specjax.core import checks
from specjax.core import errors
from specjax.core import types
from specjax.decode import speculative
from specjax.ops import categorical
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import oracles
from specjax.testing import toy

_CHEAP = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
_WIDTH, _CAPACITY, _PROMPT = 4, 32, 6


def _check(condition, message):
  if not condition:
    raise AssertionError(message)


def _jit(function):
  return jax.jit(function, compiler_options=_CHEAP)


# Language models.


class _Feeder:
  """One model with its executables: the same prefill, extend and rewind for every schedule, so that bits can be compared.

  Args:
    model, params: the model.
    text: int32[B, N], what is fed.
    prompt: `Prompt`, of which `text` is the continuation.
  """

  def __init__(self, model, params, text, prompt):
    self.model, self.params, self.text, self.prompt = model, params, text, prompt
    self._prefill = _jit(lambda params, prompt: model.prefill(params, prompt, _CAPACITY)[1])
    self._extend = _jit(lambda params, cache, tokens, count: model.extend(params, cache, tokens, count=count))
    self._rewind = _jit(lambda cache, length: model.rewind(cache, length))

  def start(self, prompt=None):
    return self._prefill(self.params, self.prompt if prompt is None else prompt)

  def length(self, cache):
    return np.asarray(self.model.length(cache))

  def extend(self, cache, count, seen, text=None):
    """Feeds `count` tokens of the text to every row; writes the logits they give into `seen` [B, N, V]."""
    text = self.text if text is None else text
    length = self.length(cache)
    index = np.minimum(length[:, None] + np.arange(_WIDTH), text.shape[1] - 1)
    # What lies past the count is poison: another token than the text's.
    tokens = np.take_along_axis(text, index, axis=1)
    tokens = np.where(np.arange(_WIDTH)[None, :] < count[:, None], tokens, (tokens + 1) % self.model.vocab_size)
    output, cache = self._extend(self.params, cache, tokens.astype(np.int32), count.astype(np.int32))
    _check(np.array_equal(self.length(cache), length + count), 'extend: the cache does not cover what was fed')
    logits = np.asarray(output.logits)
    for row in range(len(text)):
      seen[row, length[row]:length[row] + count[row]] = logits[row, :count[row]]
    return cache

  def feed(self, schedule, *, rewinds=False, prompt=None, text=None):
    """Logits [B, N, V] (NaN where never read) of feeding the text by `schedule(step) -> counts`, to its end."""
    text = self.text if text is None else text
    seen = np.full((*text.shape, self.model.vocab_size), np.nan)
    cache, step = self.start(prompt), 0
    start = self.length(cache)
    while np.any(self.length(cache) < text.shape[1]):
      count = np.minimum(schedule(step), text.shape[1] - self.length(cache))
      cache = self.extend(cache, count, seen, text)
      if rewinds and step % 2 == 0:
        back = np.minimum((step + np.arange(len(text))) % (_WIDTH + 1), count)
        back = np.where(step < 12, np.minimum(back, self.length(cache) - start), 0)
        wanted = (self.length(cache) - back).astype(np.int32)
        cache = self._rewind(cache, wanted)
        _check(np.array_equal(self.length(cache), wanted), 'rewind: the cache does not cover what it was told to')
      step += 1
    return seen


def example_prompt(vocab_size, *, has_encoder, seed=0):
  """(text int32[4, 14], ragged `Prompt`) for checks of models; encoder-decoders start from one forced token."""
  random = np.random.RandomState(seed)
  text = random.randint(0, vocab_size, (4, 14)).astype(np.int32)
  length = np.array([1, 3, 6, 4], np.int32)
  encoder = (None, None)
  if has_encoder:
    encoder = random.randint(0, vocab_size, (4, 5)).astype(np.int32), np.array([5, 1, 3, 4], np.int32)
  tokens = np.where(np.arange(_PROMPT)[None, :] < length[:, None], text[:, :_PROMPT], 0).astype(np.int32)
  return text, types.Prompt(tokens, length, *encoder)


def check_language_model(model, params, *, has_encoder=False, tolerance=1e-4):
  """Feeding in one block, in chunks, ragged, and after rewinds gives the logits of the uncached `forward`.

  Also: the cache covers `prompt.length - 1` tokens after prefill, every leaf leads with the batch, a count of 0 leaves a
  row as it is, and a row is bitwise the same with other neighbours, slot and padding.

  Args:
    model, params: the model.
    has_encoder: whether prompts carry encoder tokens.
    tolerance: largest difference of a logit.
  """
  text, prompt = example_prompt(model.vocab_size, has_encoder=has_encoder)
  feeder = _Feeder(model, params, text, prompt)
  cache = feeder.start()
  _check(np.array_equal(feeder.length(cache), prompt.length - 1), 'prefill must cover all but the last prompt token')
  _check(all(leaf.shape[0] == 4 for leaf in jax.tree.leaves(cache)), 'a leaf of the cache does not lead with the batch')
  expected = _forward(model, params, text, prompt)
  ragged = lambda step: np.array([(step + row) % (_WIDTH + 1) for row in range(4)])
  schedules = {
      'whole blocks': (lambda step: np.full(4, _WIDTH), False), 'token by token': (lambda step: np.full(4, 1), False),
      'ragged with counts of 0': (ragged, False), 'with rewinds': (lambda step: np.full(4, _WIDTH), True),
      'ragged with rewinds': (lambda step: 1 + ragged(step) % _WIDTH, True)}
  results = {}
  for name, (schedule, rewinds) in schedules.items():
    seen = results[name] = feeder.feed(schedule, rewinds=rewinds)
    for row in range(4):
      fed = slice(int(prompt.length[row]) - 1, None)
      error = np.abs(seen[row, fed] - expected[row, fed]).max()
      _check(error <= tolerance, f'{name}: row {row} is off by {error:.2e} from the uncached pass')
  _check_row_independence(feeder, results['ragged with counts of 0'], ragged)


def _forward(model, params, text, prompt):
  encoder = {}
  if prompt.encoder_tokens is not None:
    where = np.tile(np.arange(prompt.encoder_tokens.shape[1], dtype=np.int32), (4, 1))
    encoder = dict(
        encoder_tokens=prompt.encoder_tokens, encoder_positions=where,
        encoder_segments=(where < prompt.encoder_length[:, None]).astype(np.int32))
  index = np.tile(np.arange(text.shape[1], dtype=np.int32), (4, 1))
  batch = types.TrainingBatch(
      tokens=text, targets=text, weights=np.ones(text.shape, np.float32), positions=index, segments=np.ones_like(index),
      **encoder)
  return np.asarray(_jit(lambda params, batch: model.forward(params, batch).logits)(params, batch))


def _check_row_independence(feeder, seen, schedule):
  """The rows in reverse order, among poisoned padding, with one neighbour replaced: the other rows' bits are the same."""
  prompt, text = feeder.prompt, feeder.text[::-1].copy()
  text[0] = (text[0] + 1) % feeder.model.vocab_size
  real = np.arange(_PROMPT)[None, :] < prompt.length[::-1, None]
  reverse = lambda array: None if array is None else array[::-1]
  encoder = reverse(prompt.encoder_tokens)
  if encoder is not None:
    encoder = np.where(np.arange(encoder.shape[1])[None, :] < prompt.encoder_length[::-1, None], encoder, 2**31 - 1)
    encoder = encoder.astype(np.int32)
  poisoned = types.Prompt(
      np.where(real, text[:, :_PROMPT], 2**31 - 1).astype(np.int32), reverse(prompt.length), encoder,
      reverse(prompt.encoder_length))
  again = feeder.feed(lambda step: schedule(step)[::-1], prompt=poisoned, text=text)[::-1]
  for row in range(3):
    _check(np.array_equal(seen[row], again[row], equal_nan=True), f'row {row} depends on its neighbours, slot or padding')


def check_tree(model, params, *, has_encoder=False, tolerance=1e-4):
  """Logits of a token tree equal those of its branches; a kept path is a cache in which only the path was fed."""
  text, prompt = example_prompt(model.vocab_size, has_encoder=has_encoder)
  feeder = _Feeder(model, params, text, prompt)
  # Node:     0 pending, 1 and 2 its children, 3 the child of 2.
  parents, depth = np.array([-1, 0, 0, 2], np.int32), np.array([0, 1, 1, 2], np.int32)
  tile = lambda x: np.tile(x, (4, 1))
  start = feeder.start()
  nodes = np.stack([
      text[np.arange(4), prompt.length - 1], text[:, 7], (text[:, 7] + 1) % model.vocab_size, text[:, 8]], axis=1)
  full = np.full(4, 4, np.int32)
  output, cache = _jit(lambda params, cache, tokens, layout: model.extend(
      params, cache, tokens, count=full, layout=layout))(params, start, nodes, types.Tree(tile(parents), tile(depth)))
  kept = model.keep_path(cache, model.length(start), tile(np.array([0, 2, 3, -1], np.int32)))
  for branch in ((0, 1), (0, 2, 3)):
    tokens = np.pad(nodes[:, branch], ((0, 0), (0, _WIDTH - len(branch))))
    chain, after = feeder._extend(params, start, tokens, np.full(4, len(branch), np.int32))
    error = np.abs(np.asarray(chain.logits)[:, :len(branch)] - np.asarray(output.logits)[:, branch]).max()
    _check(error <= tolerance, f'branch {branch} of the tree is off by {error:.2e}')
  _check(np.array_equal(feeder.length(kept), feeder.length(after)), 'the kept path has another length')
  next_tokens, one = tile(np.array([3, 0, 0, 0], np.int32)), np.ones(4, np.int32)
  first, second = (np.asarray(feeder._extend(params, c, next_tokens, one)[0].logits)[:, 0] for c in (kept, after))
  _check(np.abs(first - second).max() <= tolerance, 'behind a kept path the logits differ')


# Rules.


def rule_variants(package):
  """Every rule that `package` exports with every value of its static options: list of (name, dict of options)."""
  found = []
  for name in package.__all__:
    hints = typing.get_type_hints(getattr(package, name))
    options = {field: typing.get_args(hint) for field, hint in hints.items() if typing.get_origin(hint) is typing.Literal}
    found += [(name, dict(zip(options, chosen))) for chosen in itertools.product(*options.values())]
  return found


def random_rule_inputs(vocab_size, *, batch, temperature=0.7, seed=0, dtype=np.float32):
  """`RuleInputs` with a leading batch axis: random laws, some tokens without mass, truncated ones beside them.

  The drafter's features are its law.
  """
  random = np.random.RandomState(seed)

  def laws():
    logits = 2 * random.randn(batch, vocab_size)
    logits[:, -1] = np.where(np.arange(batch) % 3 == 0, -np.inf, logits[:, -1])
    plain = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    tempered = logits / temperature - np.log(np.exp(logits / temperature).sum(axis=1, keepdims=True))
    truncated = np.log(np.array([oracles.truncate(row, 3, 0.9, 0.0) for row in np.exp(tempered)]).clip(0))
    return [x.astype(dtype) for x in (plain, tempered, truncated)]

  with np.errstate(divide='ignore'):
    (target_plain, target, target_truncated), (plain, drafter, truncated) = laws(), laws()
  return types.RuleInputs(
      drafter_log_probs=drafter, target_log_probs=target, drafter_truncated_log_probs=truncated,
      target_truncated_log_probs=target_truncated, drafter_plain_log_probs=plain, target_plain_log_probs=target_plain,
      drafter_features=np.exp(plain), position=np.arange(batch, dtype=np.int32))


def check_rule(rule, *, rule_params=None, values=(-0.1, 0.0, 0.3, 0.9, 1.0), vocab_size=6, batch=12):
  """Goals are laws, deferral lies in [0, 1], jit and vmap agree with the plain call, and no knob value compiles anew.

  Args:
    rule: a `TargetRule` whose `knobs` name its numbers.
    rule_params: parameters of a learned rule.
    values: what every knob is set to in turn, where all of them are in range.
  """
  _check(rule.truncates in ('output', 'inputs'), f'truncates is {rule.truncates!r}')
  _check(rule.greedy_only in (True, False), f'greedy_only is {rule.greedy_only!r}')
  inputs = random_rule_inputs(vocab_size, batch=batch)
  if rule.truncates == 'inputs':
    inputs = inputs.replace(
        drafter_log_probs=inputs.drafter_truncated_log_probs, target_log_probs=inputs.target_truncated_log_probs)
  traces = []

  def apply(rule, inputs):
    traces.append(1)
    return jax.vmap(lambda one: rule(rule_params, one))(inputs)

  jitted = _jit(apply)
  values = [value for value in values if _in_range(rule, value)]
  _check(bool(values), 'no value is in the range of the knobs')
  for value in values:
    tuned = rule.replace(**{knob: np.float32(value) for knob in rule.knobs})
    goal = jax.tree.map(np.asarray, jitted(tuned, inputs))
    total = np.exp(goal.log_probs).sum(axis=1)
    _check(not np.isnan(goal.log_probs).any(), f'{tuned}: a goal is NaN')
    _check(np.allclose(total, 1, atol=1e-5), f'{tuned}: goals sum to {total.min():.6f} .. {total.max():.6f}')
    _check(goal.deferral.shape == (batch,) and np.all((goal.deferral >= 0) & (goal.deferral <= 1 + 1e-6)), 'deferral')
    for row in range(0, batch, 5):
      alone = rule.replace(**{knob: float(value) for knob in rule.knobs})(
          rule_params, jax.tree.map(lambda x: jnp.asarray(x[row]), inputs))
      _check(np.allclose(np.exp(alone.log_probs), np.exp(goal.log_probs[row]), atol=1e-6), 'vmap and jit change the goal')
  _check(len(traces) == 1, f'{len(traces)} compilations for {len(values)} values of its knobs')


def _in_range(rule, value):
  """Whether every knob of `rule` may have this value."""
  try:
    return all(checks.knob(knob, value) == value for knob in rule.knobs)
  except errors.ParamError:
    return False


def check_rule_law(rule, *, rule_params=None, num_draft_tokens=2):
  """The enumerated joint law of the decoder is the product of the rule's own goals, on laws made by the numpy oracle."""
  with jax.enable_x64(True):
    pair = toy.toy_pair(vocab_size=3, seed=2, scale=0.6)
    requests = [
        exactness.Request(prompt=(1,), max_new_tokens=3), exactness.Request(
            prompt=(0, 2), max_new_tokens=3, warp=oracles.Warp(temperature=0.6, top_p=0.8), eos_ids=(1,)),
        exactness.Request(prompt=(2, 2), max_new_tokens=3, warp=oracles.Warp(temperature=0.0))]
    drafter = drafters.ModelDrafter(
        model=pair.drafter, num_draft_tokens=num_draft_tokens,
        with_features=getattr(rule, 'needs_drafter_features', False))
    decoder = speculative.SpeculativeDecoder(target=pair.target, drafter=drafter, rule=rule)
    joint = enumeration.Enumerator().joint(
        decoder, pair.params | {'rule': rule_params}, exactness.arrays(requests, vocab_size=3),
        capacity=exactness.capacity(decoder, requests))
    oracle = exactness.Oracle.of(requests, target=pair.target, drafter=pair.drafter, params=pair.params)
    for row, request in enumerate(requests):
      law = oracles.product_law(
          functools.partial(_goal_at, rule, rule_params, oracle.laws(row)), max_new_tokens=3, eos_ids=request.eos_ids)
      distance = enumeration.total_variation(law, joint.laws[row])
      _check(distance <= 1e-12, f'request {row}: the joint law is off by {distance:.2e}')


def _goal_at(rule, rule_params, laws, prefix):
  """float64[V], the rule's goal behind `prefix`, from laws warped in numpy."""
  both = {}
  for name, logits in (('drafter', laws._drafter(prefix)), ('target', laws._target(prefix))):
    tempered = laws.warp.tempered(logits)
    with np.errstate(divide='ignore'):
      both[name] = [np.log(x) for x in (tempered, laws.warp.truncated(tempered), laws.warp.plain(logits))]
  sampled = 1 if rule.truncates == 'inputs' else 0
  goal = rule(rule_params, types.RuleInputs(
      drafter_log_probs=jnp.asarray(both['drafter'][sampled]), target_log_probs=jnp.asarray(both['target'][sampled]),
      drafter_truncated_log_probs=jnp.asarray(both['drafter'][1]), drafter_plain_log_probs=jnp.asarray(both['drafter'][2]),
      target_truncated_log_probs=jnp.asarray(both['target'][1]), target_plain_log_probs=jnp.asarray(both['target'][2]),
      drafter_features=jnp.asarray(laws._drafter(prefix)), position=jnp.int32(len(prefix))))
  probs = np.exp(np.asarray(goal.log_probs))
  return probs if rule.truncates == 'inputs' else laws.warp.truncated(probs)


# Drafters.


def check_drafter(drafter, drafter_params, *, vocab_size, hidden: Any = None):
  """A drafter proposes what it says it drew, decides before it draws, and follows the text whatever was rejected.

  Args:
    drafter: a `Drafter` with at least one draft token.
    drafter_params: its parameters.
    vocab_size: V.
    hidden: the `Prefill` it is initialised with.
  """
  width = drafter.num_draft_tokens
  _check(drafter.params_from in ('drafter', 'target', 'both'), f'params_from is {drafter.params_from!r}')
  text, prompt = example_prompt(vocab_size, has_encoder=False)
  sampling = exactness.arrays(
      [exactness.Request(prompt=(0,), max_new_tokens=1, warp=warp) for warp in (
          oracles.Warp(), oracles.Warp(temperature=0.0), oracles.Warp(temperature=0.6, top_k=3), oracles.Warp(top_p=0.8))],
      vocab_size=vocab_size, dtype=np.float32).sampling
  tokens = np.pad(text, ((0, 0), (0, _CAPACITY - text.shape[1])))
  prefill = types.Prefill() if hidden is None else hidden
  init = _jit(lambda prompt: drafter.init(drafter_params, prompt, prefill, _CAPACITY))
  propose = _jit(lambda state, uniforms, tokens, length, live: drafter.propose(
      drafter_params, state, uniforms, tokens=tokens, length=length, sampling=sampling, live=live, with_bonus=False))
  state = init(prompt)
  _check(all(leaf.shape[0] == 4 for leaf in jax.tree.leaves(state)), 'a leaf of the state does not lead with the batch')
  live = np.array([True, True, False, True])
  uniforms = _uniforms(width, seed=0)
  proposal, _ = propose(state, uniforms, tokens, prompt.length, live)
  _check_proposal(proposal, uniforms, live, width, vocab_size)
  _check_decides_before_drawing(propose, state, tokens, prompt.length, live, proposal, width)
  _check_follows_text(drafter, drafter_params, init, propose, text, tokens, prompt, width)


def _uniforms(width, *, seed):
  random = np.random.RandomState(seed)
  uniform = lambda *shape: random.uniform(size=shape).astype(np.float32)
  return types.RoundUniforms(
      draft=uniform(4, width + 1, 2), policy=uniform(4, width + 1), accept=uniform(4, width), final=uniform(4, 2))


def _check_proposal(proposal, uniforms, live, width, vocab_size):
  length, tokens, laws = (np.asarray(x) for x in (proposal.length, proposal.tokens, proposal.log_probs))
  _check(tokens.shape == (4, width) and laws.shape == (4, width, vocab_size), 'shapes of the proposal')
  _check(np.all((length >= 0) & (length <= width)) and np.all(length[~live] == 0), f'lengths {length} with live {live}')
  for row in range(4):
    for i in range(length[row]):
      probs = np.exp(laws[row, i])
      _check(abs(probs.sum() - 1) < 1e-5, f'law {i} of row {row} sums to {probs.sum()}')
      one_hot = probs.max() == 1
      drawn = int(categorical.draw(jnp.asarray(uniforms.draft[row, i]), jnp.asarray(laws[row, i])))
      _check(tokens[row, i] == (probs.argmax() if one_hot else drawn), f'token {i} of row {row} is not a draw from its law')


def _check_decides_before_drawing(propose, state, tokens, length, live, proposal, width):
  """The uniform of draft i changes neither the laws up to i nor whether tokens up to i are proposed."""
  for i in range(width):
    for seed in (1, 2, 3):
      changed = _uniforms(width, seed=0)
      changed.draft[:, i:] = _uniforms(width, seed=seed).draft[:, i:]
      other, _ = propose(state, changed, tokens, length, live)
      first, second = (np.minimum(p.length, i + 1) for p in (proposal, other))
      _check(np.array_equal(first, second), f'whether draft {i} is proposed depends on the token drawn there')
      asked = first > i
      _check(np.array_equal(np.asarray(proposal.log_probs)[asked, :i + 1], np.asarray(other.log_probs)[asked, :i + 1]),
             f'law {i} depends on the token drawn there')


def _check_follows_text(drafter, drafter_params, init, propose, text, tokens, prompt, width):
  """After any verdict the next laws are those of a drafter that starts afresh on the same text."""
  live, everyone = np.ones(4, bool), np.arange(4)
  commit = _jit(lambda state, tokens, length, verdict: drafter.commit(
      drafter_params, state, tokens=tokens, length=length, verdict=verdict,
      target_output=types.LMOutput(jnp.zeros((4, width + 1, 1)))))
  state, length, buffer = init(prompt), prompt.length.copy(), tokens.copy()
  for round_index in range(2 * (width + 1)):
    proposal, state = propose(state, _uniforms(width, seed=round_index), buffer, length, live)
    accepted = np.minimum((round_index + everyone) % (width + 1), np.asarray(proposal.length)).astype(np.int32)
    for row in range(4):
      block = [*np.asarray(proposal.tokens)[row, :accepted[row]], text[row, round_index]]
      buffer[row, length[row]:length[row] + len(block)] = block
    length = (length + accepted + 1).astype(np.int32)
    verdict = types.Verdict(accepted, text[:, round_index])
    state = commit(state, buffer, length, verdict)
    if length.max() + width + 1 > _CAPACITY:
      return
    probe = _uniforms(width, seed=100 + round_index)
    carried, _ = propose(state, probe, buffer, length, live)
    # The fresh drafter's prompt is the whole text: one prompt width for every round.
    fresh = init(types.Prompt(buffer, length))
    expected, _ = propose(fresh, probe, buffer, length, live)
    _check(np.array_equal(carried.length, expected.length), f'round {round_index}: lengths differ from a fresh drafter')
    for row in range(4):
      used = slice(0, int(expected.length[row]))
      first, second = (np.exp(np.asarray(p.log_probs)[row, used]) for p in (carried, expected))
      _check(np.allclose(first, second, atol=1e-5), f'round {round_index}: row {row} drafts from stale state')
