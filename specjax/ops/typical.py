"""Typical acceptance of a token tree: a lossy test that asks the target alone. Functions are *unbatched*: vmap them over rows.

Its law is not the target's. What it is: given the text, a tree is drafted; the longest path of typical tokens stays, of equally
long ones the most probable; one token from the target's law follows. So the text is made in rounds and depends on where they
begin, and where drafts are deterministic the accepted tokens are a function of the text, without randomness of their own. At
temperature 0 the target's law is one-hot, its one token alone is typical, and the text is the greedy one.

Source: Cai et al. 2024 (Medusa), section 2.3.1, after Hewitt et al. 2022 (truncation by entropy).
"""

import jax.numpy as jnp
from jax import lax

from specjax.core import types
from specjax.ops import categorical
from specjax.ops import divergences
from specjax.ops import trees


def is_typical(log_probs, token, *, epsilon, delta):
  """bool[], whether p(token) > min(epsilon, delta exp(-H(p))), strictly; False where the law is broken (NaN).

  Args:
    log_probs: float[V], the law p.
    token: int32[].
    epsilon: float[] in [0, 1); the bar where p is sure.
    delta: float[] > 0; the bar of a law of entropy H is delta exp(-H), that share of a uniform law over as many tokens.
  """
  # In logarithms: exp(-H) of a large vocabulary would round, and a token without mass is never above -inf.
  bar = jnp.minimum(jnp.log(epsilon), jnp.log(delta) - divergences.entropy(log_probs))
  return log_probs[token] > bar


def verify_typically(
    accept_uniforms, final_uniforms, *, tokens, parents, count, max_depth, drafter_log_probs, goal_log_probs, epsilon, delta):
  """The longest path of typical tokens, of equally long ones that with the largest sum of log p; then a token of the law.

  Args:
    accept_uniforms: float[N], not read: the test is deterministic.
    final_uniforms: float[2], of the token behind the path.
    tokens, parents, count, max_depth, drafter_log_probs, goal_log_probs: as of `trees.verify_recursively`; which law a node
      was drawn from does not matter, as long as it has one.
    epsilon, delta: as of `is_typical`.

  Returns:
    (`Verdict`, `VerdictTrace` whose tests are 1 on the accepted path and 0 elsewhere).
  """
  num_nodes = tokens.shape[0]
  # Without mass at its token nothing was drawn for a node.
  has_mass = jnp.take_along_axis(drafter_log_probs, tokens[:, None], axis=1)[:, 0] > -jnp.inf
  usable = has_mass & trees.usable(
      parents, count, tokens=tokens, drafter_log_probs=drafter_log_probs, goal_log_probs=goal_log_probs)
  epsilon, delta = (jnp.asarray(knob, goal_log_probs.dtype) for knob in (epsilon, delta))

  def reach(node, carry):
    depth, score = carry  # of nodes 0..N; -1 where a node or one above it is not typical
    parent, law = parents[node], goal_log_probs[parents[node]]
    is_reached = usable[node] & (depth[parent] >= 0) & is_typical(law, tokens[node], epsilon=epsilon, delta=delta)
    depth = depth.at[node + 1].set(jnp.where(is_reached, depth[parent] + 1, -1))
    return depth, score.at[node + 1].set(jnp.where(is_reached, score[parent] + law[tokens[node]], -jnp.inf))

  start = (jnp.full((num_nodes + 1,), -1, jnp.int32).at[0].set(0),
           jnp.full((num_nodes + 1,), -jnp.inf, goal_log_probs.dtype).at[0].set(0))
  depth, score = lax.fori_loop(jnp.int32(0), jnp.int32(num_nodes), reach, start)
  end = jnp.argmax(jnp.where(depth == jnp.max(depth), score, -jnp.inf)).astype(jnp.int32)
  path = trees.path_to(end, parents, max_depth)
  final_probs = jnp.exp(goal_log_probs[end])
  node = jnp.arange(1, num_nodes + 1, dtype=jnp.int32)
  accepted = jnp.any(path[None, :] == node[:, None], axis=1)
  return types.Verdict(depth[end], categorical.draw_from_probs(final_uniforms, final_probs), path), types.VerdictTrace(
      accepted.astype(accept_uniforms.dtype), final_probs)
