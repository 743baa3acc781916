"""No drafter: autoregressive decoding through the same loop."""

from typing import Any, ClassVar

from flax import struct
import jax.numpy as jnp

from specjax.core import types


@struct.dataclass(kw_only=True)
class NoDrafter:
  """Proposes nothing. With `num_draft_tokens` > 0 the target still runs K + 1 wide, of which one token counts.

  Attributes:
    vocab_size: V, static.
    num_draft_tokens: K, static; 0 is plain autoregressive decoding.
  """

  vocab_size: int = struct.field(pytree_node=False)
  num_draft_tokens: int = struct.field(pytree_node=False, default=0)
  params_from: ClassVar[str] = 'drafter'

  def init(self, params, prompt, prefill, capacity) -> Any:
    del params, prefill, capacity
    return jnp.zeros((prompt.tokens.shape[0], 0), jnp.int32)

  def propose(self, params, state, uniforms, *, tokens, length, sampling, live, with_bonus):
    del params, tokens, sampling, live, with_bonus
    batch, width = length.shape[0], self.num_draft_tokens
    return types.Proposal(
        tokens=jnp.zeros((batch, width), jnp.int32),
        length=jnp.zeros((batch,), jnp.int32),
        log_probs=jnp.zeros((batch, width, self.vocab_size), uniforms.accept.dtype),
    ), state

  def commit(self, params, state, *, tokens, length, verdict, target_output):
    del params, tokens, length, verdict, target_output
    return state

  def num_calls(self, proposal):
    """int32[B], drafter passes of this round."""
    return jnp.zeros_like(proposal.length)
