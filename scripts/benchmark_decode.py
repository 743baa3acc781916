"""How near the decoding loop is to the machine: autoregressive against the bandwidth, the loop against its parts.

A random Gemma-style float32 target of about 100M parameters and a 5M drafter. Five measurements:

  1. bandwidth: what one large matrix-vector product reaches in this process (bytes/s);
  2. autoregressive decoding: (weights + live cache) bytes / time, as a percentage of it;
  3. the same positions at capacity 512 and 4096: the cost must follow the live prefix, not the capacity;
  4. one round of the speculative loop against the sum of its parts, each in a compiled loop of its own over the same
     caches: K one-wide drafter extends, the K draws, one (K + 1)-wide target extend, rule and verification on
     [B, K + 1, V]; interleaved, with an A/A comparison as noise floor;
  5. the same with top-p 0.9 at vocabularies of 32k and 262k.

    python scripts/benchmark_decode.py [--only=ar,capacity,loop,topp] [--output=benchmark.json]

No other heavy process may run beside it. Compilation is excluded; every figure is a median over interleaved repeats.
"""

import argparse
import dataclasses
import json
import statistics
import time

import jax
import jax.numpy as jnp
from jax import lax
import numpy as np

from specjax.core import checks
from specjax.decode import autoregressive
from specjax.decode import blocks
from specjax.decode import generate
from specjax.decode import run
from specjax.decode import speculative
from specjax.drafters import model as model_drafter
from specjax.models import gemma
from specjax.models import layouts
from specjax.ops import categorical
from specjax.ops import keys
from specjax.ops import warping
from specjax.rules import lossless

STEPS = 50
FILL = 256


def decoder_model(*, vocab_size, embed_dim, hidden_dim, num_layers, num_heads, num_kv_heads, head_dim):
  """A Gemma-3-style `DecoderLM`, all layers global, so that capacity is what is measured."""
  return gemma.DecoderLM(gemma.DecoderConfig(
      vocab_size=vocab_size, embed_dim=embed_dim, hidden_dim=hidden_dim, num_heads=num_heads, num_kv_heads=num_kv_heads,
      head_dim=head_dim, layer_kinds=(gemma.GLOBAL,) * num_layers, activation='gelu', norm_plus_one=True, post_norms=True,
      query_key_norm=True, scale_embeddings=True))


def models(vocab_size):
  """The 100M target and the 5M drafter (embeddings included at a vocabulary of 8k; more behind larger vocabularies)."""
  target = decoder_model(
      vocab_size=vocab_size, embed_dim=768, hidden_dim=3072, num_layers=11, num_heads=6, num_kv_heads=2, head_dim=128)
  drafter = decoder_model(
      vocab_size=vocab_size, embed_dim=256, hidden_dim=1024, num_layers=3, num_heads=4, num_kv_heads=1, head_dim=64)
  return target, drafter


def parameters(model, seed):
  """Random float32 parameters on the device, laid out as it reads them fastest."""
  return jax.block_until_ready(layouts.for_backend(jax.jit(model.init)(jax.random.key(seed))))


def num_bytes(tree):
  """Bytes of all leaves."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def seconds(function, *args):
  """Wall time of one blocked call."""
  start = time.perf_counter()
  jax.block_until_ready(function(*args))
  return time.perf_counter() - start


def bandwidth(num_mb=512):
  """Bytes/s of one matrix-vector product with a matrix of `num_mb` MB, best of 7; the ceiling of batch-1 decoding."""
  side = int((num_mb * 2**20 / 4) ** 0.5) // 128 * 128
  matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.float32)
  vector = jnp.ones((1, side), jnp.float32)
  product = jax.jit(lambda m, v: v @ m).lower(matrix, vector).compile()
  product(matrix, vector)
  return num_bytes(matrix) / min(seconds(product, matrix, vector) for _ in range(7))


def requests(model, *, batch, prompt_length, max_new_tokens, top_p=1.0):
  """Random prompts of equal length, no EOS, temperature 1."""
  rng = np.random.default_rng(0)
  sampling = checks.SamplingParams(temperature=1.0, top_p=top_p)
  return generate.build_requests(
      [list(rng.integers(1, model.vocab_size, prompt_length)) for _ in range(batch)], family='decoder-only',
      width=prompt_length, batch_size=batch, sampling=[sampling] * batch, max_new_tokens=[max_new_tokens] * batch,
      eos_ids=(), seed=[0] * batch, example_id=range(batch), sample_index=[0] * batch, vocab_size=model.vocab_size)


def seconds_per_step(decoder, params, state_of, num_steps):
  """A function that runs `num_steps` rounds on a fresh state and returns seconds per round."""
  def once():
    state = jax.block_until_ready(state_of())
    return seconds(lambda: run.decode(decoder, params, state, max_steps=num_steps)) / num_steps
  return once


def interleaved(functions, repeats):
  """Median seconds of each function of a dict, in ABBA order."""
  times = {name: [] for name in functions}
  for function in functions.values():
    function()
  for repeat in range(repeats):
    names = list(functions) if repeat % 2 == 0 else list(functions)[::-1]
    for name in names:
      times[name].append(functions[name]())
  return {name: statistics.median(values) for name, values in times.items()}, times


def measure_autoregressive(batch, repeats):
  """Autoregressive decoding of the 100M target at capacities 512 and 4096, same positions."""
  target, _ = models(8192)
  params = {'target': parameters(target, 0)}
  decoder = dataclasses.replace(autoregressive.decoder(target), with_log_probs=False)
  work = requests(target, batch=batch, prompt_length=FILL, max_new_tokens=STEPS)
  functions = {}
  for capacity in (512, 4096):
    state_of = lambda capacity=capacity: run.prefill(decoder, params, work, capacity=capacity)
    functions[f'capacity {capacity}'] = seconds_per_step(decoder, params, state_of, STEPS)
  functions['capacity 512 again'] = functions['capacity 512']
  medians, _ = interleaved(functions, repeats)
  config = target.config
  weights = num_bytes(params) - (0 if config.tied_head else config.vocab_size * config.embed_dim * 4)
  live = batch * 2 * 4 * config.num_kv_heads * config.head_dim * config.num_layers * (FILL + STEPS / 2)
  return dict(
      batch=batch, parameters=num_bytes(params) // 4, seconds_per_token=medians['capacity 512'],
      bytes_per_step=weights + live, capacity_4096_over_512=medians['capacity 4096'] / medians['capacity 512'],
      a_a_noise=abs(medians['capacity 512 again'] / medians['capacity 512'] - 1))


def loop_parts(decoder, params, state):
  """Compiled loops of `STEPS` iterations of each part, over the caches and the fill of `state`. name -> function."""
  target, drafter = decoder.target, decoder.drafter.model
  width = decoder.drafter.num_draft_tokens
  batch = state.length.shape[0]
  live = jnp.ones((batch,), bool)
  vocab_size = target.vocab_size
  dtype = jnp.float32

  def repeated(body):
    return lambda params, cache: lax.fori_loop(0, STEPS, lambda i, carry: body(params, i, carry), cache)

  def extend_of(model, extend_width):
    # The next tokens depend on the logits, as in decoding, so that nothing is hoisted or skipped.
    def body(params, i, carry):
      cache, token = carry
      length = model.length(cache)
      output, cache = model.extend(
          params, cache, jnp.broadcast_to(token, (batch, extend_width)), count=jnp.full((batch,), extend_width, jnp.int32))
      token = jnp.argmax(output.logits[:, -1:, :8], axis=-1).astype(jnp.int32)
      return model.rewind(cache, length), token
    return repeated(body)

  def draws(params, i, carry):
    total, logits = carry
    uniforms = keys.round_uniforms(state.key, state.length + i, num_draft_tokens=width, dtype=dtype)
    for k in range(width):
      law = warping.sampling_log_probs(logits[:, k], state.sampling, live=live)
      total = total + jax.vmap(categorical.draw)(uniforms.draft[:, k], law)
      logits = logits.at[:, k, 0].add(total.astype(dtype) * 1e-9)
    return total, logits

  def verification(params, i, carry):
    total, logits, proposal = carry
    uniforms = keys.round_uniforms(state.key, state.length + i, num_draft_tokens=width, dtype=dtype)
    goal = decoder._goal(None, state, proposal, speculative._Laws.of(logits, state.sampling, live), live)
    verdict, _ = blocks.of(proposal).verify(decoder.verifier, uniforms, goal.log_probs)
    total = total + verdict.next_token + verdict.num_accepted
    return total, logits.at[:, 0, 0].add(total.astype(dtype) * 1e-9), proposal

  token = jnp.ones((batch, 1), jnp.int32)
  zero = jnp.zeros((batch,), jnp.int32)
  logits = jax.random.normal(jax.random.key(1), (batch, width + 1, vocab_size), dtype) * 3
  laws = jax.nn.log_softmax(jax.random.normal(jax.random.key(2), (batch, width, vocab_size), dtype) * 3)
  proposal = speculative.types.Proposal(
      tokens=jnp.ones((batch, width), jnp.int32), length=jnp.full((batch,), width, jnp.int32), log_probs=laws)
  specs = {
      'drafter extend x1': (extend_of(drafter, 1), params['drafter'], (state.drafter_state, token)),
      'draws xK': (repeated(draws), params['drafter'], (zero, logits)),
      'target extend x(K+1)': (extend_of(target, width + 1), params['target'], (state.target_cache, token)),
      'rule and verification': (repeated(verification), params['target'], (zero, logits, proposal)),
  }
  functions = {}
  for name, (function, arguments, carry) in specs.items():
    compiled = jax.jit(function, donate_argnums=(1,)).lower(arguments, carry).compile()

    def once(compiled=compiled, arguments=arguments, carry=carry):
      fresh = jax.block_until_ready(jax.tree.map(jnp.copy, carry))
      return seconds(compiled, arguments, fresh) / STEPS

    functions[name] = once
  return functions


def measure_loop(batch, vocab_size, top_p, num_draft_tokens, repeats):
  """One round of the speculative loop against the sum of its parts."""
  target, drafter = models(vocab_size)
  params = {'target': parameters(target, 0), 'drafter': parameters(drafter, 1)}
  decoder = speculative.SpeculativeDecoder(
      target=target, drafter=model_drafter.ModelDrafter(model=drafter, num_draft_tokens=num_draft_tokens),
      rule=lossless.Lossless(), with_log_probs=False)
  work = requests(target, batch=batch, prompt_length=FILL, max_new_tokens=STEPS * (num_draft_tokens + 1), top_p=top_p)
  capacity = FILL + STEPS * (num_draft_tokens + 1) + decoder.slack
  state_of = lambda: run.prefill(decoder, params, work, capacity=capacity)
  functions = loop_parts(decoder, params, state_of())
  functions['loop'] = seconds_per_step(decoder, params, state_of, STEPS)
  functions['loop again'] = functions['loop']
  medians, _ = interleaved(functions, repeats)
  k = num_draft_tokens
  listed = k * medians['drafter extend x1'] + medians['target extend x(K+1)'] + medians['rule and verification']
  total = listed + medians['draws xK']
  return dict(
      batch=batch, vocab_size=vocab_size, top_p=top_p, num_draft_tokens=k,
      milliseconds={name: round(value * 1e3, 4) for name, value in medians.items()},
      sum_of_parts=total, loop_over_parts=medians['loop'] / total, loop_over_parts_without_draws=medians['loop'] / listed,
      a_a_noise=abs(medians['loop again'] / medians['loop'] - 1))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--only', default='ar,loop,topp')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--num_draft_tokens', type=int, default=4)
  parser.add_argument('--output', default=None)
  options = parser.parse_args()
  wanted = options.only.split(',')
  results = {'device': str(jax.devices()[0]), 'jax': jax.__version__, 'bandwidth': bandwidth()}
  print(f"bandwidth of one matrix-vector product: {results['bandwidth'] / 1e9:.1f} GB/s")
  if 'ar' in wanted:
    results['autoregressive'] = []
    for batch in (1, 8):
      row = measure_autoregressive(batch, options.repeats)
      row['pct_of_limit'] = 100 * row['bytes_per_step'] / results['bandwidth'] / row['seconds_per_token']
      results['autoregressive'].append(row)
      print(f"autoregressive, batch {batch}: {row['parameters'] / 1e6:.0f}M parameters, "
            f"{row['seconds_per_token'] * 1e3:.2f} ms/step, {row['pct_of_limit']:.0f} % of the limit; "
            f"capacity 4096 / 512: {row['capacity_4096_over_512']:.3f} (A/A {row['a_a_noise']:.3f})")
  points = []
  if 'loop' in wanted:
    points += [(1, 8192, 1.0), (8, 8192, 1.0)]
  if 'topp' in wanted:
    points += [(batch, vocab_size, 0.9) for vocab_size in (32768, 262144) for batch in (1, 8)]
  results['loop'] = []
  for batch, vocab_size, top_p in points:
    row = measure_loop(batch, vocab_size, top_p, options.num_draft_tokens, options.repeats)
    results['loop'].append(row)
    print(f"loop, batch {batch}, V {vocab_size}, top-p {top_p}: {row['milliseconds']} ms; loop / parts "
          f"{row['loop_over_parts']:.3f}, without the draws {row['loop_over_parts_without_draws']:.3f} "
          f"(A/A {row['a_a_noise']:.3f})")
  if options.output:
    with open(options.output, 'w', encoding='utf-8') as file:
      json.dump(results, file, indent=1)


if __name__ == '__main__':
  main()
