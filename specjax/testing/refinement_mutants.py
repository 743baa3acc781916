"""Refined drafts against their definition, round after round, and planted bugs that must show there (as in `mutants`)."""

import itertools
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import types
from specjax.drafters import refinement as refinement_lib
from specjax.ops import lattice
from specjax.ops import ngrams
from specjax.ops import trees
from specjax.testing import exactness
from specjax.testing import mutants
from specjax.testing import ngram_oracles
from specjax.testing import toy
from specjax.training import ngram_counts

MUTANTS: dict[str, mutants.Mutant] = {}
VOCAB = 13
CAPACITY = 48
WEIGHT = 1.5
TOP_K = 3

_CANDIDATES, _TREE = refinement_lib.best_candidates, lattice.prefix_tree


class Rounds:
  """Texts of two rows that grow by what a verifier might have kept, and the drafts that a refinement makes behind them.

  Args:
    refinement: the refinement.
    params: its parameters.
    num_heads: K.
    step: function (params, state, logits, tokens=, length=, live=) -> (..., state).
  """

  def __init__(self, refinement, params, *, num_heads, step):
    self._random = np.random.RandomState(0)
    self._params, self._num_heads, self._step = params, num_heads, jax.jit(step)
    self.texts = [[1, 4, 2], [7]]
    self.state = jax.jit(lambda *args: refinement.init(*args, CAPACITY))(params, types.Prompt(*self._arrays(3)))

  def refine(self):
    """(the heads' logits float[2, K, V], what the step returned before its state)."""
    logits = self._random.randn(2, self._num_heads, VOCAB)
    tokens, length = self._arrays(CAPACITY)
    *drafts, self.state = self._step(
        self._params, self.state, jnp.asarray(logits, jnp.result_type(float)), tokens=tokens, length=length,
        live=jnp.ones(2, bool))
    return logits, drafts

  def commit(self):
    """Lets the texts grow by one to K + 1 tokens."""
    for text in self.texts:
      text.extend(self._random.randint(VOCAB, size=self._random.randint(1, self._num_heads + 2)).tolist())

  def _arrays(self, width):
    tokens = np.zeros((2, width), np.int32)
    for row, text in enumerate(self.texts):
      tokens[row, :len(text)] = text
    return jnp.asarray(tokens), jnp.array([len(text) for text in self.texts], jnp.int32)


def law_behind(forward, text):
  """float64[V], log-softmax of a model behind a text, without a cache; `forward` as of `exactness.forward_of`."""
  tokens = np.array([text], np.int32)
  index = np.arange(len(text), dtype=np.int32)[None, :]
  batch = types.TrainingBatch(tokens, np.zeros_like(tokens), np.zeros(tokens.shape, np.float32), index, np.ones_like(tokens))
  logits = np.asarray(forward(batch), np.float64)[0, -1]
  return logits - np.log(np.sum(np.exp(logits)))


def rescored(forward, text, logits):
  """The best of the k tokens of one head behind a text, the best first."""
  best = np.argsort(-logits, kind='stable')[:TOP_K]
  scores = logits[best] + WEIGHT * law_behind(forward, text)[best]
  return [int(token) for token in best[np.argsort(-scores, kind='stable')]]


def check_local(model=None, shape=None):
  """Local rescoring along a chain, or down a tree, equals its definition; its cache holds the text and nothing else."""
  model = toy.ToyLM(vocab_size=VOCAB, scale=0.5) if model is None else model
  params = {'rescorer': exactness.random_params(model, 2, dtype=np.dtype(jnp.result_type(float)))}
  refinement = refinement_lib.LocalRescoring(model=model, top_k=TOP_K, weight=WEIGHT)
  step = refinement.refine
  if shape is not None:
    step = lambda params, state, logits, **text: refinement.refine_tree(params, state, logits, shape, **text)
  forward = exactness.forward_of(model, params['rescorer'])
  rounds = Rounds(refinement, params, num_heads=3, step=step)
  for _ in range(4):
    logits, drafts = rounds.refine()
    found = np.asarray(drafts[0].paths[:, 0] if shape is None else drafts[0])
    for row, text in enumerate(rounds.texts):
      expected = _local_nodes(forward, text, logits[row], shape or trees.TreeShape((0, 1, 2)))
      _require(found[row].tolist() == expected, f'{found[row].tolist()} for {expected} behind {text}')
    lengths = [len(text) for text in rounds.texts]
    _require(np.asarray(model.length(rounds.state)).tolist() == lengths, f'the cache does not cover {lengths} tokens')
    rounds.commit()


def _local_nodes(forward, text, logits, shape):
  paths = [list(text)]
  for parent, depth, rank in zip(shape.parents, shape.depth, shape.ranks, strict=True):
    paths.append(paths[parent] + [rescored(forward, paths[parent], logits[depth - 1])[rank]])
  return [path[-1] for path in paths[1:]]


def check_lattice(order, num_best):
  """The best paths of a lattice, with n-grams or without, equal brute force over all paths."""
  sequences = [[int(token) for token in np.random.RandomState(seed).zipf(1.4, 40) % VOCAB] for seed in range(4)]
  training = dict(order=order, vocab_size=VOCAB, discount_fallback=ngram_counts.FALLBACK)
  params = {'ngrams': ngram_counts.train(sequences, **training) if order else None}
  oracle = ngram_oracles.KneserNey(sequences, **training) if order else None
  refinement = refinement_lib.LatticeRescoring(top_k=TOP_K, order=order, num_best=num_best, weight=WEIGHT)
  rounds = Rounds(refinement, params, num_heads=4, step=refinement.refine)
  for _ in range(3):
    logits, drafts = rounds.refine()
    for row, text in enumerate(rounds.texts):
      best, scores = np.argsort(-logits[row], axis=1, kind='stable')[:, :TOP_K], {}
      for path in itertools.product(*best.tolist()):
        scores[path] = sum(logits[row, head, token] for head, token in enumerate(path))
        if order:
          scores[path] += WEIGHT * sum(np.log(oracle.prob(text + list(path[:head]), path[head])) for head in range(4))
      expected = sorted(scores, key=lambda path: -scores[path])[:num_best]
      found = [tuple(path) for path in np.asarray(drafts[0].paths[row]).tolist()]
      _require(found == expected, f'{found} for {expected} behind {text}')
    rounds.commit()


def check_prefix_tree():
  """Paths that share prefixes come back from their tree, with siblings in the order of their paths."""
  paths = np.array([[1, 2, 3], [1, 4, 3], [5, 2, 3], [1, 2, 6]], np.int32)
  tree = lattice.prefix_tree(jnp.asarray(paths), num_nodes=12)
  found = [()]
  for node in range(int(tree.count) - 1):
    found.append((*found[int(tree.parents[node])], int(tree.tokens[node])))
  expected = [(), (1,), (5,), (1, 2), (1, 4), (5, 2), (1, 2, 3), (1, 4, 3), (5, 2, 3), (1, 2, 6)]
  _require(found == expected, f'the tree holds {found}')


def check_zero_weight():
  """A weight of 0 gives 0 for a token that is never predicted."""
  found = np.asarray(refinement_lib.weighted(0.0, jnp.array([-1.0, -jnp.inf])))
  _require(np.array_equal(found, [0, 0]), f'{found} for zeros')


DETECTORS = {
    'local_chain': check_local, 'local_tree': lambda: check_local(shape=trees.TreeShape.from_branching((2, 2, 1))),
    'lattice_2': lambda: check_lattice(2, 1), 'lattice_4': lambda: check_lattice(4, 5), 'prefix_tree': check_prefix_tree,
    'zero_weight': check_zero_weight}


def _require(condition, message):
  if not condition:
    raise AssertionError(message)


def _plant(identifier, killer, description):
  def register(patches):
    MUTANTS[identifier] = mutants.Mutant(identifier, description, killer, patches)
    return patches

  return register


@_plant('R01', 'local_chain', 'the drafts stay in the cache of the rescorer')
def _():
  return [(toy.ToyLM, 'rewind', lambda self, cache, length: cache)]


@_plant('R02', 'local_chain', 'the rescorer does not read the pending token')
def _():
  original = refinement_lib.LocalRescoring._catch_up

  def catch_up(self, params, cache, tokens, length, live, *, width):
    return original(self, params, cache, tokens, jnp.maximum(length - 1, self.model.length(cache)), live, width=width)

  return [(refinement_lib.LocalRescoring, '_catch_up', catch_up)]


@_plant('R03', 'local_chain', 'all tokens are rescored, not the best of the head')
def _():
  return [(refinement_lib, 'best_candidates', lambda logits, top_k: _CANDIDATES(logits, logits.shape[-1]))]


@_plant('R04', 'local_tree', 'all nodes of a level are rescored behind the first node above')
def _():
  original = refinement_lib.LocalRescoring._behind_nodes

  def behind_nodes(self, *args):
    logits, cache = original(self, *args)
    return jnp.broadcast_to(logits[:, :1], logits.shape), cache

  return [(refinement_lib.LocalRescoring, '_behind_nodes', behind_nodes)]


@_plant('R05', 'lattice_2', 'the n-grams do not see the text')
def _():
  original = ngrams.history
  return [(ngrams, 'history', lambda model, recent: original(model, jnp.full_like(recent, -1)))]


@_plant('R06', 'lattice_4', 'the back-off weight is left out')
def _():
  original = ngrams.backoff
  return [(ngrams, 'backoff', lambda model, order, entry: 0 * original(model, order, entry))]


@_plant('R07', 'lattice_4', 'prefixes are kept by their own score, without what lies ahead')
def _():
  def scan(body, start, places, **options):
    last, behind = jax.lax.scan(body, start, places, **options)
    return last, jnp.zeros_like(behind) if options.get('reverse') else behind
  return [(lattice, 'lax', python_types.SimpleNamespace(**(vars(jax.lax) | {'scan': scan})))]


@_plant('R08', 'prefix_tree', 'paths are merged by their last token alone')
def _():
  return [(jnp, 'cumprod', lambda values, axis: values)]


@_plant('R09', 'zero_weight', 'the weight multiplies what is minus infinity')
def _():
  return [(refinement_lib, 'weighted', lambda weight, log_probs: weight * log_probs)]
