"""What draft refinement adds to a step of blockwise parallel decoding.

A random Gemma-style float32 target of about 100M parameters with random heads, a rescorer of one layer, and n-gram models
trained on random tokens. A step drafts K tokens and verifies them in one pass; refined steps are the same step with local
rescoring or a lattice in front. Chains alone are compared: p best paths verify more nodes, and that cost is the target's.

    python scripts/benchmark_refinement.py [--repeats=9] [--output=benchmark.json]
    python scripts/benchmark_refinement.py --small     # a target of 1M parameters, to see the script work

No other heavy process may run beside it. Compilation is excluded; figures are medians over interleaved repeats, an A/A
comparison is the noise floor, and every step writes the same number of tokens where drafts are accepted alike: random heads
are hardly ever right, so a step is a step.
"""

import argparse
import dataclasses
import json
import statistics
import time

import jax
import numpy as np

from specjax.core import checks
from specjax.decode import generate
from specjax.decode import methods
from specjax.decode import pair as pair_lib
from specjax.decode import run
from specjax.drafters import refinement
from specjax.models import gemma
from specjax.models import heads as heads_lib
from specjax.models import layouts
from specjax.training import ngram_counts

FILL = 256
GOALS = {'local': 0.25, '2-gram': 0.05, '4-gram': 0.05}


def decoder_model(*, vocab_size, embed_dim, hidden_dim, num_layers, num_heads, num_kv_heads, head_dim):
  """A Gemma-3-style `DecoderLM` of global layers."""
  return gemma.DecoderLM(gemma.DecoderConfig(
      vocab_size=vocab_size, embed_dim=embed_dim, hidden_dim=hidden_dim, num_heads=num_heads, num_kv_heads=num_kv_heads,
      head_dim=head_dim, layer_kinds=(gemma.GLOBAL,) * num_layers, activation='gelu', norm_plus_one=True, post_norms=True,
      query_key_norm=True, scale_embeddings=True))


def random_pair(*, small, num_heads, vocab_size):
  """(the pair with all parameters but the n-grams, the heads, the rescorer)."""
  if small:
    target = decoder_model(
        vocab_size=vocab_size, embed_dim=64, hidden_dim=256, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=32)
    rescorer_size = dict(embed_dim=32, hidden_dim=64, num_heads=1, num_kv_heads=1, head_dim=32)
  else:
    target = decoder_model(
        vocab_size=vocab_size, embed_dim=768, hidden_dim=3072, num_layers=11, num_heads=6, num_kv_heads=2, head_dim=128)
    rescorer_size = dict(embed_dim=256, hidden_dim=1024, num_heads=4, num_kv_heads=1, head_dim=64)
  rescorer = decoder_model(vocab_size=vocab_size, num_layers=1, **rescorer_size)
  embed_dim = target.config.embed_dim
  heads = heads_lib.DraftHeads(heads_lib.HeadsConfig(
      kind='blockwise', num_heads=num_heads, embed_dim=embed_dim, hidden_dim=embed_dim))
  random = np.random.default_rng(0)
  params = {role: layouts.for_backend(jax.jit(model.init)(jax.random.key(seed)))
            for seed, (role, model) in enumerate(dict(target=target, rescorer=rescorer).items())}
  head_params = jax.tree.map(lambda leaf: leaf + 0.02 * random.standard_normal(leaf.shape).astype(np.float32),
                             heads.init(jax.random.key(2)))
  params |= {'heads': on_device(head_params), 'drafter': {}}
  return pair_lib.Pair(target=target, drafter=target, params=params, family='decoder-only'), heads, rescorer


def on_device(tree):
  """The arrays where a server would have them."""
  return jax.block_until_ready(jax.tree.map(jax.numpy.asarray, tree))


def with_ngrams(pair, *, order, num_tokens):
  """The pair with an n-gram model of random tokens, whose frequencies fall off as those of words do."""
  text = np.random.default_rng(0).zipf(1.2, num_tokens) % pair.target.vocab_size
  model = ngram_counts.train(
      [text], order=order, vocab_size=pair.target.vocab_size, discount_fallback=ngram_counts.FALLBACK)
  return dataclasses.replace(pair, params=dict(pair.params) | {'ngrams': on_device(model)})


def steps_of(pair, method, *, batch, num_steps, capacity):
  """A function that runs `num_steps` rounds behind fresh prompts and returns (seconds per round, tokens per round)."""
  decoder = method(pair)
  random = np.random.default_rng(1)
  sampling = checks.SamplingParams(temperature=0.0)
  requests = generate.build_requests(
      [list(random.integers(1, pair.target.vocab_size, FILL)) for _ in range(batch)], family='decoder-only', width=FILL,
      batch_size=batch, sampling=[sampling] * batch, max_new_tokens=[capacity - FILL - 2 * decoder.slack] * batch,
      eos_ids=(), seed=[0] * batch, example_id=range(batch), sample_index=[0] * batch, vocab_size=pair.target.vocab_size)

  def once():
    state = jax.block_until_ready(run.prefill(decoder, pair.params, requests, capacity=capacity))
    start = time.perf_counter()
    state = jax.block_until_ready(run.decode(decoder, pair.params, state, max_steps=num_steps))
    return (time.perf_counter() - start) / num_steps, float(np.mean(state.stats.emitted)) / num_steps

  return once


def measure(functions, repeats):
  """{name: list of seconds per step}, {name: tokens per step}; interleaved, in ABBA order."""
  times, tokens = {name: [] for name in functions}, {}
  for name, function in functions.items():
    tokens[name] = function()[1]
  for repeat in range(repeats):
    for name in list(functions)[::1 if repeat % 2 == 0 else -1]:
      times[name].append(functions[name]()[0])
  return times, tokens


def main():
  """Measures each refinement against the plain step and prints what it adds."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--small', action='store_true')
  parser.add_argument('--repeats', type=int, default=9)
  parser.add_argument('--steps', type=int, default=30)
  parser.add_argument('--batch', type=int, default=1)
  parser.add_argument('--num_heads', type=int, default=4)
  parser.add_argument('--top_k', type=int, default=16)
  parser.add_argument('--vocab_size', type=int, default=8192)
  parser.add_argument('--num_tokens', type=int, default=1_000_000, help='of the text that n-grams are trained on')
  parser.add_argument('--output')
  args = parser.parse_args()
  pair, heads, rescorer = random_pair(small=args.small, num_heads=args.num_heads, vocab_size=args.vocab_size)
  pairs = {order: with_ngrams(pair, order=order, num_tokens=args.num_tokens) for order in (2, 4)}
  refinements = {
      'plain': None, 'local': refinement.LocalRescoring(model=rescorer, top_k=args.top_k, weight=1.0),
      '2-gram': refinement.LatticeRescoring(top_k=args.top_k, order=2, weight=1.0),
      '4-gram': refinement.LatticeRescoring(top_k=args.top_k, order=4, weight=1.0),
      '0-gram': refinement.LatticeRescoring(top_k=args.top_k, order=0)}
  functions = {}
  for name, chosen in refinements.items():
    method = methods.draft_heads(
        heads=heads, num_draft_tokens=args.num_heads, draws='greedy', refinement=chosen, with_log_probs=False)
    capacity = FILL + (args.num_heads + 1) * (args.steps + 4)
    functions[name] = steps_of(
        pairs[4 if name == '4-gram' else 2], method, batch=args.batch, num_steps=args.steps, capacity=capacity)
  functions['plain again'] = functions['plain']
  times, tokens = measure(functions, args.repeats)
  medians = {name: statistics.median(values) for name, values in times.items()}
  found = dict(vars(args), seconds_per_step=medians, tokens_per_step=tokens,
               added={name: value / medians['plain'] - 1 for name, value in medians.items()}, goals=GOALS,
               num_parameters=sum(leaf.size for leaf in jax.tree.leaves(pair.params['target'])))
  for name, value in medians.items():
    goal = f', goal {100 * GOALS[name]:.0f} %' if name in GOALS else ''
    print(f'{name:12s} {1000 * value:8.3f} ms a step, {100 * found["added"][name]:+6.1f} %{goal}; '
          f'{tokens[name]:.2f} tokens a step')
  if args.output:
    with open(args.output, 'w', encoding='utf-8') as file:
      json.dump(found, file, indent=2)


if __name__ == '__main__':
  main()
