"""Pairs of random models with the built-in tokenizer, in memory and as files: their laws are far from one another."""

import jax
import jax.numpy as jnp

from specjax.checkpoints import native
from specjax.pairs import builtin


def specs(name):
  """{role: ModelSpec}."""
  if name == 'gemma':
    return {'target': builtin._gemma(16, 2, 8, 24, ('local', 'global')), 'drafter': builtin._gemma(8, 1, 8, 12, ('global',))}
  return {'target': builtin._t5(16, 2, 8, 24, 1, 1), 'drafter': builtin._t5(8, 1, 8, 12, 1, 1)}


def models(name):
  """{role: (model, params)}; larger than fresh weights, so that hidden states differ."""
  found = {}
  for seed, (role, spec) in enumerate(specs(name).items()):
    model = builtin.make_model(spec)
    params = model.init(jax.random.key(seed))
    found[role] = model, jax.tree.map(lambda leaf: jnp.asarray(2 * leaf, jnp.bfloat16).astype(jnp.float32), params)
  return found


def make(name):
  """The pair."""
  return builtin.make_pair(name, **models(name))


def save(folder, name):
  """Writes the pair's files into `folder` as the package has them; returns `folder`."""
  for role, (_, params) in models(name).items():
    native.save_safetensors(folder / name / f'{role}.safetensors', params, builtin.describe(specs(name)[role]))
  return folder
