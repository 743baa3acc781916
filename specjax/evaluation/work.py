"""Bytes and operations of a method's round, from the sizes of the networks that it runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from specjax.evaluation import methods as methods_lib
from specjax.metrics import drafts
from specjax.models import gemma

# Context lengths of the table, tokens.
LENGTHS = (128, 512, 1024, 2048)


def of_model(model: Any, cost: Mapping[str, float], *, itemsize: int) -> drafts.ModelWork:
  """The `ModelWork` of a language model; of an encoder-decoder the decoder, whose cross-attention reads a fixed cache beside.

  Args:
    model: the adapter.
    cost: its entry of `runner.step_costs`.
    itemsize: bytes of a number in the cache.
  """
  config = getattr(model, 'model', model).config
  if isinstance(config, gemma.DecoderConfig):
    num_full = sum(kind == gemma.GLOBAL for kind in config.layer_kinds)
    num_windowed, window = len(config.layer_kinds) - num_full, config.window or 0
    heads, kv_heads = config.num_heads, config.num_kv_heads
  else:
    num_full, num_windowed, window, heads, kv_heads = config.num_decoder_layers, 0, 0, config.num_heads, config.num_heads
  # Keys and values; scores and their sum, a multiplication and an addition each.
  of_layer, flops = 2 * kv_heads * config.head_dim * itemsize, 4 * heads * config.head_dim
  return drafts.ModelWork(
      cost['weight_bytes'], cost['flops_per_token'], num_full * of_layer, num_windowed * of_layer, window,
      (num_full * flops, num_windowed * flops))


def passes_of(
    method: methods_lib.Method, works: Mapping[str, drafts.ModelWork], *, num_draft_tokens: int, calls_per_round: float,
) -> Sequence[drafts.Pass] | None:
  """The passes of one round of a method, None where one of its networks is not among `works`.

  Args:
    method: which.
    works: role -> the network.
    num_draft_tokens: K, 0 without drafts.
    calls_per_round: drafter calls per round, as counted; each is fed one token.
  """
  if not method.roles.keys() <= works.keys():
    return None
  found = [drafts.Pass(works[method.model], 1, method.num_nodes(num_draft_tokens) + 1)]
  for role, each in method.roles.items():
    found.append(drafts.Pass(works[role], calls_per_round if each == 'calls' else 1, 1))
  return found
