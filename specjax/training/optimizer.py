"""The optimizer: AdamW with warm-up, cosine decay to zero, and a global-norm clip."""

import dataclasses
import functools

import jax
import optax

from specjax.core import errors


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW in numbers.

  Attributes:
    learning_rate: the peak.
    num_steps: length of the schedule; the learning rate reaches 0 there.
    warmup_steps: linear from 0.
    weight_decay: decoupled, on matrices only (never on norm scales and biases).
    clip_norm: largest global norm of the gradient.
    beta1, beta2: decay of the two moments.
    query_learning_rate_scale: factor of the learning rate of query projections. T5 does not divide attention scores by
      sqrt(head_dim) but starts its queries that much smaller; Adam's steps do not shrink with them, so without a factor
      of head_dim ** -0.5 the scores saturate and cross-attention never forms (seen here: loss stuck at 0.77, not 0.36).
  """

  learning_rate: float
  num_steps: int
  warmup_steps: int
  weight_decay: float = 0.1
  clip_norm: float = 1.0
  beta1: float = 0.9
  beta2: float = 0.98
  query_learning_rate_scale: float = 1.0

  def __post_init__(self):
    if not 0 <= self.warmup_steps < self.num_steps:
      raise errors.ParamError(
          what='warmup_steps', got=self.warmup_steps, expected=f'0 <= warmup_steps < num_steps = {self.num_steps}'
      )
    if not self.learning_rate > 0:
      raise errors.ParamError(what='learning_rate', got=self.learning_rate, expected='a positive number')
    if not self.query_learning_rate_scale > 0:
      raise errors.ParamError(
          what='query_learning_rate_scale', got=self.query_learning_rate_scale, expected='a positive number')


def schedule(config: OptimizerConfig) -> optax.Schedule:
  """Learning rate as a function of the step."""
  rate = optax.warmup_cosine_decay_schedule(
      init_value=0.0, peak_value=config.learning_rate, warmup_steps=config.warmup_steps,
      decay_steps=config.num_steps, end_value=0.0,
  )
  return _with_promotion(rate)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """The gradient transformation of `config`."""
  chain = optax.chain(
      optax.clip_by_global_norm(config.clip_norm),
      optax.adamw(
          schedule(config), b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay, mask=_matrices
      ),
      optax.masked(optax.scale(config.query_learning_rate_scale), query_mask),
  )
  return optax.GradientTransformation(chain.init, _with_promotion(chain.update))


def _with_promotion(function):
  """`function` under JAX's ordinary promotion: optax mixes integer step counters with floats, strict settings refuse."""

  @functools.wraps(function)
  def promoting(*args, **kwargs):
    with jax.numpy_dtype_promotion('standard'):
      return function(*args, **kwargs)

  return promoting


def _matrices(params):
  return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def query_mask(params):
  """Which leaves belong to a query projection, as a tree of bool."""
  is_query = lambda path: any(getattr(entry, 'key', None) == 'query' for entry in path)
  return jax.tree_util.tree_map_with_path(lambda path, leaf: is_query(path), params)
