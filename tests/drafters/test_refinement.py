"""Refined drafts equal a brute-force computation, and greedy output stays the target's."""

import functools

import jax
import numpy as np
import pytest

import specjax
from specjax import drafters
from specjax.core import errors
from specjax.decode import run
from specjax.models import gemma
from specjax.models import heads as heads_lib
from specjax.models import t5
from specjax.ops import ngrams
from specjax.ops import trees
from specjax.testing import exactness
from specjax.testing import refinement_mutants
from specjax.testing import toy
from specjax.training import ngram_counts

VOCAB = 13
GEMMA_CONFIG = dict(
    vocab_size=VOCAB, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4, activation='gelu', window=6,
    norm_plus_one=True, post_norms=True)
GEMMA = gemma.DecoderLM(gemma.DecoderConfig(layer_kinds=(gemma.LOCAL, gemma.GLOBAL), **GEMMA_CONFIG))
SMALL = gemma.DecoderLM(gemma.DecoderConfig(layer_kinds=(gemma.LOCAL,), **GEMMA_CONFIG | dict(window=3)), max_extend=5)
T5 = t5.T5LM(t5.T5Config(
    vocab_size=VOCAB, embed_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=1, num_decoder_layers=1,
    num_buckets=8, max_distance=12, mlp='gated_gelu', tied_head=False, scale_logits=False))
TOY = toy.ToyLM(vocab_size=VOCAB, scale=0.5)
HEADS = heads_lib.DraftHeads(heads_lib.HeadsConfig(kind='blockwise', num_heads=4, embed_dim=8, hidden_dim=6))
SEQUENCES = [[int(token) for token in np.random.RandomState(seed).zipf(1.4, 40) % VOCAB] for seed in range(4)]
TREE = trees.TreeShape.from_branching((2, 2, 1))


@functools.cache
def ngram_model(order):
  return ngram_counts.train(
      SEQUENCES, order=order, vocab_size=VOCAB, discount_fallback=ngram_counts.FALLBACK)


def pair_of(target, *, order=2, rescorer=TOY):
  params = {'target': exactness.random_params(target, 0, dtype=np.float32),
            'heads': exactness.random_params(HEADS, 1, dtype=np.float32), 'drafter': {},
            'rescorer': exactness.random_params(rescorer, 2, dtype=np.float32), 'ngrams': ngram_model(order)}
  family = 'encoder-decoder' if target is T5 else 'decoder-only'
  return specjax.Pair(target=target, drafter=target, params=params, family=family)


def generate(pair, method, temperature=0.0, prompts=((1, 2, 3), (4,), (5, 6)), **options):
  return specjax.generate(
      pair, [list(prompt) for prompt in prompts], method=method, sampling=specjax.SamplingParams(temperature=temperature),
      max_new_tokens=12, seed=0, eos_ids=(), **options)


def tokens_of(result):
  return [row.tolist() for row in result.tokens]


REFINED = {
    'local': dict(num_draft_tokens=4, refinement=drafters.LocalRescoring(model=TOY, top_k=4, weight=1.5)),
    'local, block': dict(
        num_draft_tokens=3, refinement=drafters.LocalRescoring(model=SMALL, top_k=5, weight=0.7), verifier='block'),
    'local, tree': dict(shape=TREE, refinement=drafters.LocalRescoring(model=TOY, top_k=4, weight=1.5)),
    '2-gram': dict(num_draft_tokens=4, refinement=drafters.LatticeRescoring(top_k=4, order=2, weight=0.8)),
    '6-best 2-gram': dict(
        num_draft_tokens=3, refinement=drafters.LatticeRescoring(top_k=4, order=2, num_best=6, weight=0.8)),
    '5-best 0-gram': dict(num_draft_tokens=3, refinement=drafters.LatticeRescoring(top_k=3, order=0, num_best=5)),
    '4-gram': dict(num_draft_tokens=4, refinement=drafters.LatticeRescoring(top_k=3, order=4, weight=0.8)),
    '8-best 4-gram, traversal': dict(
        num_draft_tokens=4, refinement=drafters.LatticeRescoring(top_k=3, order=4, num_best=8, weight=0.8),
        verifier='traversal')}


def refined(name):
  """(method, the pair's options)."""
  refinement = REFINED[name]['refinement']
  return specjax.draft_heads(heads=HEADS, **REFINED[name]), dict(
      order=getattr(refinement, 'order', 0) or 2, rescorer=getattr(refinement, 'model', TOY))


FAST = (('local', 'gemma'),)
TARGETS = {'gemma': GEMMA, 't5': T5}


def nightly_unless(is_fast, *values):
  return pytest.param(*values, marks=() if is_fast else pytest.mark.nightly)


@pytest.mark.parametrize('name, target', [
    nightly_unless((name, target) in FAST, name, target) for name in REFINED for target in TARGETS])
def test_greedy_output_is_the_targets(name, target):
  target = TARGETS[target]
  method, options = refined(name)
  pair = pair_of(target, **options)
  plain, drafted = generate(pair, specjax.autoregressive()), generate(pair, method)
  assert tokens_of(plain) == tokens_of(drafted)
  assert np.sum(drafted.stats.proposed) > 0
  calls = 0 if name.count('gram') else REFINED[name].get('num_draft_tokens', 3)
  assert np.all(drafted.stats.drafter_calls == calls * np.asarray(drafted.stats.steps))


@pytest.mark.parametrize('refinement, options, temperature', [
    nightly_unless(temperature == 1 and getattr(kind, 'order', 0) == 2, kind, options, temperature)
    for kind, options in [
        (drafters.LocalRescoring(model=TOY, top_k=4, weight=0), dict(num_draft_tokens=4)),
        (drafters.LocalRescoring(model=TOY, top_k=4, weight=0.0), dict(shape=TREE)),
        (drafters.LatticeRescoring(top_k=4, order=2, weight=0.0), dict(num_draft_tokens=4)),
        (drafters.LatticeRescoring(top_k=4, order=0), dict(num_draft_tokens=4))]
    for temperature in (0.0, 1.0)])
def test_zero_weight_is_no_refinement(refinement, options, temperature):
  pair = pair_of(GEMMA)
  draws = dict(draws='greedy') if 'num_draft_tokens' in options else {}
  plain = generate(pair, specjax.draft_heads(heads=HEADS, **options, **draws), temperature)
  same = generate(pair, specjax.draft_heads(heads=HEADS, refinement=refinement, **options), temperature)
  assert tokens_of(plain) == tokens_of(same)
  for name in ('steps', 'proposed', 'accepted'):
    np.testing.assert_array_equal(getattr(plain.stats, name), getattr(same.stats, name))


@pytest.mark.nightly
def test_a_sweep_over_weights_is_one_executable_and_weight_zero_no_refinement():
  pair = pair_of(GEMMA)
  weighted = lambda weight: specjax.draft_heads(
      heads=HEADS, num_draft_tokens=3, refinement=drafters.LocalRescoring(model=TOY, top_k=4, weight=weight))
  first = generate(pair, weighted(0))
  compiled = len(run.compile_log())
  second = generate(pair, weighted(2.5))
  assert len(run.compile_log()) == compiled and tokens_of(first) == tokens_of(second)
  assert not np.array_equal(first.stats.accepted, second.stats.accepted)
  plain = generate(pair, specjax.draft_heads(heads=HEADS, num_draft_tokens=3, draws='greedy'))
  np.testing.assert_array_equal(first.stats.accepted, plain.stats.accepted)


@pytest.mark.parametrize('model', [TOY, pytest.param(SMALL, marks=pytest.mark.nightly)], ids=['toy', 'sliding window'])
def test_local_drafts_equal_the_definition(model):
  refinement_mutants.check_local(model)


def test_local_trees_equal_the_definition():
  refinement_mutants.check_local(shape=TREE)


@pytest.mark.parametrize('order, num_best', [
    nightly_unless(order == 4 and num_best > 1, order, num_best)
    for order, num_best in [(0, 4), (1, 3), (2, 1), (2, 5), (4, 1), (4, 6)]])
def test_lattice_paths_equal_brute_force(order, num_best):
  refinement_mutants.check_lattice(order, num_best)


@pytest.mark.nightly
def test_rescoring_finds_what_the_target_wants():
  # The rescorer is the target: wherever its choice is among the best of a head it is drafted, and so accepted.
  plain = specjax.draft_heads(heads=HEADS, num_draft_tokens=4, draws='greedy')
  pair = pair_of(GEMMA, rescorer=GEMMA)
  pair.params['rescorer'] = pair.params['target']
  local = specjax.draft_heads(
      heads=HEADS, num_draft_tokens=4, refinement=drafters.LocalRescoring(model=GEMMA, top_k=VOCAB, weight=1e6))
  result = generate(pair, local)
  # 12 tokens in fives, and one round without drafts for the prompt of one token.
  assert np.asarray(result.stats.target_calls).tolist() == [3, 4, 3]
  assert np.sum(generate(pair, plain).stats.target_calls) > 10


@pytest.mark.nightly
def test_a_capped_tree_of_paths_drafts_as_deep_as_the_cap():
  pair = pair_of(GEMMA)
  method = lambda cap: specjax.draft_heads(
      heads=HEADS, num_draft_tokens=3, max_draft_tokens=cap,
      refinement=drafters.LatticeRescoring(top_k=3, order=2, num_best=4, weight=0.5))
  results = [generate(pair, method(cap)) for cap in (0, 2)]
  assert tokens_of(results[0]) == tokens_of(results[1])
  assert np.sum(results[0].stats.proposed) == 0 and np.all(results[0].stats.steps == 12)
  assert np.sum(np.asarray(results[1].stats.drafted_by_position)[:, 2]) == 0 < np.sum(results[1].stats.proposed)


@pytest.mark.nightly
def test_a_broken_rescorer_stops_the_row():
  pair = pair_of(GEMMA)
  pair.params['rescorer'] = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), pair.params['rescorer'])
  method = lambda weight: specjax.draft_heads(
      heads=HEADS, num_draft_tokens=2, refinement=drafters.LocalRescoring(model=TOY, top_k=4, weight=weight))
  with pytest.raises(errors.LogitsError, match='drafter'):
    generate(pair, method(1.0))
  assert len(tokens_of(generate(pair, method(0.0)))[0]) == 12


LOCAL, LATTICE = (functools.partial(drafters.LocalRescoring, model=TOY), drafters.LatticeRescoring)


@pytest.mark.parametrize('refinement, options, error, named', [
    (lambda: LOCAL(top_k=VOCAB + 1, weight=1.0), {}, errors.ParamError, 'top_k'),
    (lambda: LOCAL(top_k=0, weight=1.0), {}, errors.ParamError, 'top_k'),
    (lambda: LOCAL(top_k=2, weight=-1.0), {}, errors.ParamError, 'weight'),
    (lambda: LOCAL(top_k=2, weight=float('nan')), {}, errors.ParamError, 'weight'),
    (lambda: LOCAL(top_k=2, weight=1.0), dict(draws='sampled'), errors.ParamError, 'draws'),
    (lambda: LOCAL(top_k=2, weight=1.0, model=toy.ToyLM(vocab_size=VOCAB + 1)), {}, errors.VocabError, 'rescorer'),
    (lambda: drafters.LocalRescoring, {}, errors.ParamError, 'refinement'),
    (lambda: 'local', {}, errors.ParamError, 'refinement'),
    (lambda: LATTICE(top_k=VOCAB + 1, order=2, weight=1.0), {}, errors.ParamError, 'top_k'),
    (lambda: LATTICE(top_k=2, order=2), {}, errors.ParamError, 'weight'),
    (lambda: LATTICE(top_k=2, order=3, weight=1.0), {}, errors.ParamError, "order: got 3, expected 2"),
    (lambda: LATTICE(top_k=2, order=9, weight=1.0), {}, errors.ParamError, 'order'),
    (lambda: LATTICE(top_k=41, order=4, weight=1.0), {}, errors.ParamError, 'states of the lattice'),
    (lambda: LATTICE(top_k=2, order=0, num_best=9), {}, errors.ParamError, 'num_best'),
    (lambda: LATTICE(top_k=2, order=0, num_best=0), {}, errors.ParamError, 'num_best'),
    (lambda: LATTICE(top_k=12, order=0, num_best=130), {}, errors.ParamError, 'tree of the 130 best paths'),
    (lambda: LATTICE(top_k=2, order=0), dict(shape=(2,), num_draft_tokens=None), errors.ParamError, 'shape with the ref'),
    (lambda: LATTICE(top_k=2, order=0, num_best=2), dict(verifier='token'), errors.ParamError, 'verifier'),
    (lambda: LATTICE(top_k=2, order=0), dict(num_draft_tokens=5), errors.ParamError, 'tokens in a row')])
def test_bad_input_is_named(refinement, options, error, named):
  with pytest.raises(error, match=named):
    specjax.draft_heads(**dict(heads=HEADS, num_draft_tokens=3, refinement=refinement()) | options)(pair_of(GEMMA))


@pytest.mark.parametrize('missing, refinement', [
    ('rescorer', LOCAL(top_k=2, weight=1.0)), ('ngrams', LATTICE(top_k=2, order=2, weight=1.0))])
def test_missing_parameters_are_named(missing, refinement):
  pair = pair_of(GEMMA)
  del pair.params[missing]
  with pytest.raises(errors.ParamError, match=f"the key '{missing}'"):
    specjax.draft_heads(heads=HEADS, num_draft_tokens=3, refinement=refinement)(pair)


def test_n_grams_of_another_vocabulary_are_refused():
  pair = pair_of(GEMMA)
  pair.params['ngrams'] = ngrams.NgramModel.from_tables([([0] * 4, range(4), np.zeros(4), np.zeros(4)), ([], [], [], [])])
  with pytest.raises(errors.VocabError, match='vocabulary'):
    specjax.draft_heads(heads=HEADS, num_draft_tokens=3, refinement=LATTICE(top_k=2, order=2, weight=1.0))(pair)


def test_drawn_heads_are_refused_by_the_drafter_too():
  with pytest.raises(errors.ParamError, match='draws with a refinement'):
    drafters.HeadDrafter(heads=HEADS, model=GEMMA, num_draft_tokens=2, refinement=LATTICE(top_k=2, order=0))
