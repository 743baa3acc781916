"""Trees drafted by a model: what they hold, and that they are decoded without loss in fewer calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax import drafters
from specjax.core import errors
from specjax.core import types
from specjax.ops import trees
from specjax.testing import exactness
from specjax.testing import toy

SHAPE = trees.TreeShape.from_branching((3, 2))


def proposed(children, *, temperature=1.0, top_k=0, live=(True, True)):
  """(`TreeProposal`, the drafter's model and parameters, the prompts)."""
  model = toy.ToyLM(vocab_size=7, memory=3)
  params = model.init(jax.random.key(4))
  drafter = drafters.ModelTreeDrafter(model=model, shape=SHAPE, children=children)
  tokens = np.zeros((2, 24), np.int32)
  tokens[:, :4] = [[1, 2, 3, 0], [4, 5, 0, 0]]
  prompt = types.Prompt(tokens[:, :4], np.array([3, 2], np.int32))
  state = drafter.init(params, prompt, types.Prefill(), 24)
  random = np.random.RandomState(0)
  uniform = lambda *shape: jnp.array(random.uniform(size=shape).astype(np.float32))
  uniforms = types.RoundUniforms(draft=uniform(2, 10, 2), policy=uniform(2, 10), accept=uniform(2, 9), final=uniform(2, 2))
  sampling = types.Sampling(
      temperature=np.full(2, temperature, np.float32), top_k=np.full(2, top_k, np.int32), top_p=np.ones(2, np.float32),
      min_p=np.zeros(2, np.float32))
  proposal, state = drafter.propose(
      params, state, uniforms, tokens=jnp.array(tokens), length=prompt.length, sampling=sampling, live=np.array(live),
      with_bonus=False)
  np.testing.assert_array_equal(model.length(state), prompt.length - ~np.array(live))
  return jax.tree.map(np.asarray, proposal), model, params, tokens


@pytest.mark.parametrize('children', ['replacement', 'distinct', 'top'])
def test_laws_behind_nodes_are_those_of_their_branches(children):
  proposal, model, params, tokens = proposed(children)
  for row, length in enumerate((3, 2)):
    for node in range(4):  # the pending token and the first level
      text = list(tokens[row, :length]) + ([proposal.tokens[row, node - 1]] if node else [])
      batch = exactness.arrays([exactness.Request(prompt=tuple(map(int, text)), max_new_tokens=1)], vocab_size=7)
      index = np.arange(len(text), dtype=np.int32)[None]
      logits = model.forward(params, types.TrainingBatch(
          tokens=batch.prompt.tokens, targets=index, weights=index, positions=index, segments=index + 1)).logits
      np.testing.assert_allclose(proposal.logits[row, node], logits[0, -1], rtol=1e-5, atol=1e-5)


def test_distinct_children_differ_and_their_laws_leave_out_the_elder_ones():
  proposal, *_ = proposed('distinct')
  for row in range(2):
    for parent in range(4):
      children = [node for node in range(9) if SHAPE.parents[node] == parent]
      tokens = proposal.tokens[row, children]
      assert len(set(tokens.tolist())) == len(children)
      for rank, node in enumerate(children):
        law = np.exp(proposal.log_probs[row, node])
        np.testing.assert_allclose(law.sum(), 1, rtol=1e-5)
        assert np.all(law[tokens[:rank]] == 0) and law[tokens[rank]] > 0


def test_top_children_are_the_most_probable_in_turn():
  proposal, *_ = proposed('top')
  for row in range(2):
    ranked = np.argsort(-proposal.logits[row, 0])
    np.testing.assert_array_equal(proposal.tokens[row, :3], ranked[:3])
    assert np.all(np.exp(proposal.log_probs[row]).max(axis=1) == 1)


@pytest.mark.parametrize('children, temperature, top_k', [('distinct', 0.0, 0), ('top', 0.0, 0), ('distinct', 1.0, 2)])
def test_behind_what_the_law_holds_the_next_best_are_drafted_for_certain(children, temperature, top_k):
  proposal, *_ = proposed(children, temperature=temperature, top_k=top_k)
  at_token = np.take_along_axis(proposal.log_probs, proposal.tokens[:, :, None], axis=2)[:, :, 0]
  behind = [node for node in range(9) if SHAPE.ranks[node] >= max(top_k, 1)]
  assert np.all(at_token[:, behind] == 0)
  for row in range(2):
    ranked = np.argsort(-proposal.logits[row, 0])
    assert set(proposal.tokens[row, :3]) == set(ranked[:3]) and proposal.tokens[row, 2] in ranked[max(top_k, 1):3]


def test_where_no_token_is_left_nothing_is_drafted():
  model = toy.ToyLM(vocab_size=2, memory=3)
  params = model.init(jax.random.key(4))
  for children in ('distinct', 'top'):
    drafter = drafters.ModelTreeDrafter(model=model, shape=trees.TreeShape.from_branching((3,)), children=children)
    prompt = types.Prompt(np.array([[1, 0]], np.int32), np.array([2], np.int32))
    state = drafter.init(params, prompt, types.Prefill(), 12)
    half = lambda *shape: jnp.full(shape, 0.5, jnp.float32)
    proposal, _ = drafter.propose(
        params, state, types.RoundUniforms(draft=half(1, 4, 2), policy=half(1, 4), accept=half(1, 3), final=half(1, 2)),
        tokens=jnp.zeros((1, 12), jnp.int32).at[0, 0].set(1), length=prompt.length, sampling=types.Sampling(
            temperature=np.ones(1, np.float32), top_k=np.zeros(1, np.int32), top_p=np.ones(1, np.float32),
            min_p=np.zeros(1, np.float32)), live=np.array([True]), with_bonus=False)
    at_token = np.take_along_axis(np.asarray(proposal.log_probs), np.asarray(proposal.tokens)[:, :, None], axis=2)[0, :, 0]
    assert set(np.asarray(proposal.tokens)[0, :2]) == {0, 1} and np.isfinite(at_token[:2]).all() and at_token[2] == -np.inf


def test_a_second_child_helps_greedy_decoding():
  pair = toy.toy_pair(vocab_size=6, seed=3)
  calls = {}
  for branching in ((1, 1), (3, 1)):
    result = specjax.generate(
        pair, [[i] for i in range(6)], method=specjax.speculative_tree(shape=branching),
        sampling=specjax.SamplingParams(temperature=0.0), max_new_tokens=24, seed=0, eos_ids=())
    calls[branching] = np.sum(result.stats.target_calls)
  assert calls[(3, 1)] < calls[(1, 1)]


def test_rows_that_are_not_live_propose_nothing():
  proposal, *_ = proposed('distinct', live=(False, True))
  np.testing.assert_array_equal(proposal.count, [1, 10])


@pytest.mark.parametrize('children, verifier', [
    ('top', 'recursive'), ('distinct', 'traversal'), ('replacement', 'k_sequential')])
def test_greedy_output_is_the_targets_in_fewer_calls(children, verifier):
  pair = toy.toy_pair(vocab_size=6, seed=3)
  pair = toy.ToyPair(pair.target, pair.target, {'target': pair.params['target'], 'drafter': pair.params['target']})
  run = lambda method: specjax.generate(
      pair, [[1, 2], [3], [4, 4, 4]], method=method, sampling=specjax.SamplingParams(temperature=0.0), max_new_tokens=12,
      seed=0, eos_ids=())
  plain = run(specjax.autoregressive())
  tree = run(specjax.speculative_tree(shape=(2, 2, 1), children=children, verifier=verifier))
  assert [list(row) for row in plain.tokens] == [list(row) for row in tree.tokens]
  assert np.all(tree.stats.target_calls == 3) and np.all(tree.stats.accepted == 9)
  np.testing.assert_allclose(np.stack(plain.log_probs), np.stack(tree.log_probs), atol=1e-5)


def test_more_children_keep_more_tokens():
  pair = toy.toy_pair(vocab_size=6, seed=3)
  calls = {}
  for branching in ((1, 1), (3, 1), (4, 3)):
    result = specjax.generate(
        pair, [[i] for i in range(6)] * 4, method=specjax.speculative_tree(shape=branching),
        sampling=specjax.SamplingParams(temperature=1.0), max_new_tokens=32, seed=0, eos_ids=(), batch_size=24)
    calls[branching] = np.sum(result.stats.target_calls)
  assert calls[(4, 3)] < calls[(3, 1)] < calls[(1, 1)]


@pytest.mark.parametrize('options, named', [
    (dict(shape=(2, 0, 1)), 'children of a level'), (dict(shape=(2,), children='best'), 'children'),
    (dict(shape=(2,), verifier='token'), 'verifier'), (dict(shape=(2,), verifier='k_sequential'), 'k_sequential'),
    (dict(shape=(300,)), 'children of a level'), (dict(shape=(16, 16)), 'nodes of a tree'),
    (dict(shape=(2,), recorder=object()), 'recorder')])
def test_bad_options_are_named(options, named):
  with pytest.raises(errors.ParamError, match=named):
    specjax.speculative_tree(**options)
