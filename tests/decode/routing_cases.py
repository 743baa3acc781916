"""Requests, tiny models and readings that the tests of both cascades share."""

import jax
import numpy as np

from specjax.core import types
from specjax.decode import run
from specjax.models import gemma
from specjax.models import t5
from specjax.testing import exactness
from specjax.testing import oracles

W = oracles.Warp
V, PROMPT, CAPACITY = 7, 4, 40


def request(prompt, max_new_tokens, eos_ids=(), encoder=None, **warp):
  return exactness.Request(
      prompt=prompt, max_new_tokens=max_new_tokens, eos_ids=eos_ids, encoder=encoder, warp=W(**warp))


MIXED = [
    request((1, 2), 9), request((3,), 12, temperature=0.0), request((5, 0, 6, 1), 7, temperature=0.6, top_k=3),
    request((2, 2, 4), 15, temperature=1.5, top_p=0.8, min_p=0.05)]


def arrays(requests, *, vocab_size=V, addresses=None, poison=0, encoder_width=5):
  """`Requests` of fixed shapes whatever the requests: prompts padded with `poison`, one EOS slot, given example ids."""
  built = exactness.arrays(requests, vocab_size=vocab_size, dtype=np.float32)
  prompt = built.prompt

  def padded(tokens, length, width):
    tokens = np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))
    return np.where(np.arange(width)[None, :] < length[:, None], tokens, poison).astype(np.int32)

  tokens = padded(prompt.tokens, prompt.length, PROMPT)
  encoder = None if prompt.encoder_tokens is None else padded(prompt.encoder_tokens, prompt.encoder_length, encoder_width)
  if addresses is not None:
    built = built.replace(example_id=np.array(addresses, np.uint32))
  return built.replace(prompt=types.Prompt(tokens, prompt.length, encoder, prompt.encoder_length))


def decoded(decoder, params, requests, *, chunks=(1000,), capacity=CAPACITY):
  """`Collected` of prefill and decode through `run`, in chunks of rounds."""
  state = run.prefill(decoder, params, requests, capacity=capacity)
  for steps in chunks:
    state = run.decode(decoder, params, state, max_steps=steps)
  return run.collect(state)


def text(collected, index):
  """The generated tokens of one row."""
  return collected.tokens[index, collected.prompt_length[index]:collected.length[index]].tolist()


def row(collected, index):
  """What one row produced, as comparable bytes: all counters but the passes of its batch."""
  stats = collected.stats.replace(target_passes=np.zeros_like(collected.stats.steps))
  parts = [np.array(text(collected, index), np.int32), collected.status[index]]
  return tuple(np.asarray(part).tobytes() for part in parts + [leaf[index] for leaf in jax.tree.leaves(stats)])


def rows(collected):
  return [row(collected, i) for i in range(len(collected.length))]


def texts(collected):
  return [text(collected, i) for i in range(len(collected.length))]


def _gemma(num_layers):
  config = gemma.DecoderConfig(
      vocab_size=16, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4,
      layer_kinds=(gemma.LOCAL, gemma.GLOBAL)[:num_layers], activation='gelu', window=5, norm_plus_one=True,
      post_norms=True)
  return gemma.DecoderLM(config, max_extend=4, block_size=8)


def _t5(num_layers):
  config = t5.T5Config(
      vocab_size=16, embed_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=1, num_decoder_layers=num_layers,
      num_buckets=8, max_distance=12, mlp='gated_gelu', tied_head=False, scale_logits=False)
  return t5.T5LM(config)


FAMILIES = {'gemma': _gemma, 't5': _t5}


def family_models(name):
  """(target, drafter, params) of one tiny real family with a vocabulary of 16."""
  target, drafter = FAMILIES[name](2), FAMILIES[name](1)
  return target, drafter, {
      role: exactness.random_params(model, seed, dtype=np.float32)
      for seed, (role, model) in enumerate((('target', target), ('drafter', drafter)), 1)}


def family_requests(name, *requests):
  """The prompts as they are for decoders, as encoder inputs for encoder-decoders."""
  if name == 'gemma':
    return list(requests)
  return [request((0,), r.max_new_tokens, r.eos_ids, encoder=r.prompt, temperature=r.warp.temperature) for r in requests]
