"""Planted bugs of token trees, as in `mutants`, with the detector that must see each of them.

    with tree_mutants.MUTANTS['T01'].applied():
      tree_mutants.DETECTORS['recursive_law']()   # raises AssertionError
"""

import dataclasses
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np

from specjax import drafters
from specjax import rules
from specjax.core import checks
from specjax.core import types
from specjax.decode import blocks
from specjax.decode import generate
from specjax.decode import methods
from specjax.decode import speculative
from specjax.drafters import model_tree
from specjax.models import kv_cache
from specjax.ops import acceptance
from specjax.ops import trees
from specjax.ops import typical
from specjax.testing import enumeration
from specjax.testing import exactness
from specjax.testing import mutants
from specjax.testing import oracles
from specjax.testing import toy
from specjax.testing import typical_oracle

MUTANTS: dict[str, mutants.Mutant] = {}
_TRAVERSAL = trees.verify_by_traversal
_TYPICAL = typical.verify_typically

_REQUESTS = [
    exactness.Request(prompt=(1,), max_new_tokens=4),
    exactness.Request(prompt=(0, 1), max_new_tokens=3, warp=oracles.Warp(temperature=0.6), eos_ids=(1,)),
    exactness.Request(prompt=(1, 0), max_new_tokens=3, warp=oracles.Warp(temperature=1.7))]


def depth_first(shape):
  """The nodes, from 0, in the order in which traversal tests them: what is below a node comes before it."""

  def below(node):
    children = [child for child in range(1, shape.num_nodes + 1) if shape.parents[child - 1] == node]
    return [test for child in children for test in (*below(child), child - 1)]

  return tuple(below(0))


def _check_law(verifier, *, children, branching, vocab_size=2, order=None):
  """The enumerated joint law of decoding with one tree is the target's; `order` of the tests, by node where None."""
  with jax.enable_x64(True):
    pair = toy.toy_pair(vocab_size=vocab_size, seed=5, scale=0.6)
    shape = trees.TreeShape.from_branching(branching)
    decoder = speculative.SpeculativeDecoder(
        target=pair.target, rule=rules.Lossless(), verifier=verifier,
        drafter=drafters.ModelTreeDrafter(model=pair.drafter, shape=shape, children=children))
    joint = enumeration.Enumerator(rows=256, test_order=tuple(range(shape.num_nodes)) if order is None else order(shape)).joint(
        decoder, pair.params, exactness.arrays(_REQUESTS, vocab_size=vocab_size),
        capacity=exactness.capacity(decoder, _REQUESTS))
    oracle = exactness.Oracle.of(_REQUESTS, target=pair.target, drafter=None, params=pair.params)
  for row, request in enumerate(_REQUESTS):
    law = oracles.product_law(
        oracle.laws(row).goal, max_new_tokens=request.max_new_tokens, eos_ids=request.eos_ids)
    distance = enumeration.total_variation(law, joint.laws[row])
    if not distance <= 1e-12:
      raise AssertionError(f'request {row}: the joint law is off by {distance:.2e} in total variation')


def recursive_law():
  """Recursive rejection down a tree drawn without replacement."""
  _check_law(speculative.RecursiveVerifier(), children='distinct', branching=(2, 1), vocab_size=3)


def path_law():
  """A tree of two levels, most probable tokens: what stays in the cache of both models is the accepted path."""
  _check_law(speculative.RecursiveVerifier(), children='top', branching=(2, 2))


def traversal_law():
  """Traversal of a tree of two levels drawn with replacement."""
  _check_law(speculative.TraversalVerifier(), children='replacement', branching=(2, 1), order=depth_first)


def k_sequential_law():
  """K-SEQ over three independent draws."""
  _check_law(speculative.KSequentialVerifier(), children='replacement', branching=(3,))


def typical_law():
  """Typical acceptance of a tree of the most probable tokens: its closed form, and the greedy text at temperature 0."""
  # A bar of which both parts matter: of three tokens, .6 exp(-H) is .2 to .6.
  knobs, parents = dict(epsilon=0.4, delta=0.6), (0, 0, 1, 1, 2)
  with jax.enable_x64(True):
    pair = toy.toy_pair(vocab_size=3, seed=4, scale=0.6)
    decoder = speculative.SpeculativeDecoder(
        target=pair.target, rule=rules.Lossless(), verifier=speculative.TypicalVerifier(**knobs),
        drafter=drafters.ModelTreeDrafter(model=pair.drafter, shape=trees.TreeShape(parents), children='top'))
    asked = [*_REQUESTS, exactness.Request(prompt=(1,), max_new_tokens=4, warp=oracles.Warp(temperature=0.0))]
    joint = enumeration.Enumerator(rows=128).joint(
        decoder, pair.params, exactness.arrays(asked, vocab_size=3), capacity=exactness.capacity(decoder, asked))
    longer = [dataclasses.replace(one, max_new_tokens=one.max_new_tokens + 2) for one in asked]
    oracle = exactness.Oracle.of(longer, target=pair.target, drafter=pair.drafter, params=pair.params)
  for row, request in enumerate(asked):
    law = typical_oracle.joint_law(
        oracle.laws(row), parents, children='top', max_new_tokens=request.max_new_tokens, eos_ids=request.eos_ids, **knobs)
    distance = enumeration.total_variation(law, joint.laws[row])
    if not distance <= 1e-12:
      raise AssertionError(f'request {row}: off the closed form by {distance:.2e} in total variation')


def self_draft():
  """A tree that the target drafts for itself is accepted to its last level, round after round."""
  pair = toy.toy_pair(vocab_size=6, seed=3)
  pair = toy.ToyPair(pair.target, pair.target, {role: pair.params['target'] for role in ('target', 'drafter')})
  result = generate.generate(
      pair, [[1, 2], [3], [4, 4, 4]], method=methods.speculative_tree(shape=(2, 2, 1), children='top'),
      sampling=checks.SamplingParams(temperature=0.0), max_new_tokens=12, seed=0, eos_ids=())
  if not np.all(result.stats.target_calls == 3):
    raise AssertionError(f'{result.stats.target_calls} target calls for 12 tokens in fours')


DETECTORS = {
    'self_draft': self_draft, 'recursive_law': recursive_law, 'path_law': path_law, 'traversal_law': traversal_law,
    'k_sequential_law': k_sequential_law, 'typical_law': typical_law}


def _plant(identifier, killer, description):
  """Registers the decorated function, which returns the patches."""

  def register(patches):
    MUTANTS[identifier] = mutants.Mutant(identifier, description, killer, patches)
    return patches

  return register


def _acceptance(**changes):
  """Patches `acceptance` as `ops.trees` sees it."""
  return [(trees, 'acceptance', python_types.SimpleNamespace(**(vars(acceptance) | changes)))]


@_plant('N17', 'recursive_law', 'every child is tried against the goal itself')
def _():
  return _acceptance(residual_probs=lambda goal, drafter: goal)


@_plant('T01', 'recursive_law', 'a child drawn without replacement is tested with the law of its elder sibling')
def _():
  original = model_tree.ModelTreeDrafter._draw

  def draw(self, law, scores, taken, uniforms, rank):
    return original(self, law, scores, taken, uniforms, rank)[0], law

  return [(model_tree.ModelTreeDrafter, '_draw', draw)]


@_plant('T02', 'path_law', 'the cache keeps the first nodes of the block, not the path')
def _():
  original = toy.ToyLM.keep_path

  def keep_path(self, cache, length, path):
    index = jnp.broadcast_to(jnp.arange(path.shape[1], dtype=path.dtype)[None, :], path.shape)
    return original(self, cache, length, jnp.where(path >= 0, index, -1))

  return [(toy.ToyLM, 'keep_path', keep_path)]


@_plant('T03', 'path_law', 'a node sees all earlier nodes of the block')
def _():
  def everything(parents):
    width = parents.shape[1]
    return jnp.broadcast_to(jnp.tril(jnp.ones((width, width), bool))[None], (parents.shape[0], width, width))
  return [(kv_cache, 'tree_ancestors', everything)]


@_plant('M17', 'path_law', 'the goal of a node is read one node further on')
def _():
  original = trees.verify_recursively

  def verify(*args, goal_log_probs, **rest):
    return original(*args, goal_log_probs=jnp.roll(goal_log_probs, -1, axis=0), **rest)

  return [(trees, 'verify_recursively', verify)]


@_plant('T04', 'path_law', 'nodes sit at the position of their slot, not of their depth')
def _():
  original = blocks.TreeBlock.layout.fget

  def layout(self):
    tree = original(self)
    slot = jnp.arange(tree.depth.shape[1], dtype=tree.depth.dtype)[None, :]
    return types.Tree(tree.parents, jnp.broadcast_to(slot, tree.depth.shape))

  return [(blocks.TreeBlock, 'layout', property(layout))]


@_plant('T05', 'path_law', 'the tokens of the block are emitted in the order of their nodes')
def _():
  return [(blocks.TreeBlock, 'drafted', lambda self, verdict: self.proposal.tokens[:, :self.max_accepted])]


@_plant('T06', 'traversal_law', 'the weight of a path may exceed 1')
def _():
  def ratio(goal, drafter):
    possible = drafter > -jnp.inf
    return jnp.where(possible, jnp.exp(goal - jnp.where(possible, drafter, 0)), 0)
  return _acceptance(accept_probability=ratio)


@_plant('T07', 'traversal_law', 'the goal is not reduced where a leaf was cut')
def _():
  def verify(accept_uniforms, final_uniforms, *, goal_log_probs, **rest):
    verdict, trace = _TRAVERSAL(accept_uniforms, final_uniforms, goal_log_probs=goal_log_probs, **rest)
    last = jnp.take(verdict.path, verdict.num_accepted)
    probs = jnp.exp(goal_log_probs[last])
    token = trees.categorical.draw_from_probs(final_uniforms, probs)
    return verdict._replace(next_token=token), trace._replace(final_probs=probs)

  return [(trees, 'verify_by_traversal', verify)]


@_plant('T08', 'k_sequential_law', 'independent retries: min(1, p / q) for every draw')
def _():
  def law(goal, drafter, num_children):
    del num_children
    residual = jnp.maximum(goal - drafter, 0)
    return jnp.ones((), goal.dtype), jnp.where(jnp.sum(residual) > 0, residual, goal)
  return [(trees, '_k_sequential_law', law)]


@_plant('T09', 'self_draft', 'the drafter keeps its tree in its cache')
def _():
  def logits_of(self, params, cache, drafted, live):
    num_fed = drafted.shape[1]
    parents = jnp.array(self.shape.parents[:num_fed], jnp.int32) - 1
    depth = jnp.array(self.shape.depth[:num_fed], jnp.int32) - 1
    layout = types.Tree(*(jnp.tile(values[None, :], (drafted.shape[0], 1)) for values in (parents, depth)))
    output, cache = self.model.extend(params, cache, drafted, count=jnp.where(live, num_fed, 0), layout=layout)
    return output.logits, cache
  return [(model_tree.ModelTreeDrafter, '_logits_of', logits_of)]


def _bar(bar):
  """Patches the test of `ops.typical`: a token is typical above `bar`(law, epsilon, delta), a log-probability."""
  return [(typical, 'is_typical', lambda law, token, *, epsilon, delta: law[token] > bar(law, epsilon, delta))]


@_plant('T10', 'typical_law', 'the bar is the larger of the two')
def _():
  return _bar(lambda law, epsilon, delta: jnp.maximum(
      jnp.log(epsilon), jnp.log(delta) - typical.divergences.entropy(law)))


@_plant('T11', 'typical_law', 'the bar rises with the entropy')
def _():
  return _bar(lambda law, epsilon, delta: jnp.minimum(
      jnp.log(epsilon), jnp.log(delta) + typical.divergences.entropy(law)))


@_plant('T12', 'typical_law', 'the token behind the path is the best one, not drawn')
def _():
  greedy = python_types.SimpleNamespace(draw_from_probs=lambda uniforms, probs: jnp.argmax(probs).astype(jnp.int32))
  original = typical.verify_typically

  def verify(*args, **block):
    verdict, trace = original(*args, **block)
    best = jnp.where(jnp.arange(trace.final_probs.shape[0]) == jnp.argmax(trace.final_probs), 1.0, 0.0)
    return verdict, trace._replace(final_probs=best.astype(trace.final_probs.dtype))

  return [(typical, 'categorical', greedy), (typical, 'verify_typically', verify)]


@_plant('T13', 'typical_law', 'nodes are tested by the first law, without their parents')
def _():
  def verify(accept_uniforms, final_uniforms, *, parents, **block):
    verdict, trace = _TYPICAL(accept_uniforms, final_uniforms, parents=jnp.zeros_like(parents), **block)
    end = jnp.max(verdict.path)
    path = trees.path_to(end, parents, block['max_depth'])
    final = jnp.exp(block['goal_log_probs'][end])
    token = typical.categorical.draw_from_probs(final_uniforms, final)
    return types.Verdict(jnp.sum(path >= 0, dtype=jnp.int32) - 1, token, path), trace._replace(final_probs=final)

  return [(typical, 'verify_typically', verify)]


@_plant('T14', 'typical_law', 'of equally long paths the first stays')
def _():
  argmax = lambda values: jnp.argmax(values > -jnp.inf)
  return [(typical, 'jnp', python_types.SimpleNamespace(**(vars(jnp) | {'argmax': argmax})))]
