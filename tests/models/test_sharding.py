"""Which axis of which array goes where."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import pytest

from specjax.core import errors
from specjax.core import types
from specjax.models import gemma
from specjax.models import gemma_configs
from specjax.models import sharding
from specjax.models import t5
from specjax.models import t5_configs

MESH = jax.sharding.AbstractMesh((2, 4), ('data', 'model'))


def shortened(config):
  return dataclasses.replace(config, layer_kinds=config.layer_kinds[:2])


def specs(tree):
  return jax.tree.map(lambda leaf: leaf.spec, tree)


def test_decoder_is_split_between_heads_mlp_columns_and_vocabulary():
  config = shortened(gemma_configs.gemma2_2b())
  shapes = jax.eval_shape(gemma.DecoderLM(config).init, jax.random.key(0))
  found = specs(sharding.parameter_shardings(
      MESH, shapes, num_heads=config.num_heads, num_kv_heads=config.num_kv_heads))
  assert found['embedder']['embedding'] == P('model', None)
  layer = found['layer_1']
  assert layer['attention']['query']['kernel'] == layer['attention']['key']['kernel'] == P(None, 'model')
  assert layer['attention']['output']['kernel'] == layer['mlp']['down']['kernel'] == P('model', None)
  assert layer['mlp']['gate']['kernel'] == layer['mlp']['up']['kernel'] == P(None, 'model')
  assert layer['pre_mlp_norm']['scale'] == P(None)


def test_one_key_head_is_replicated_in_parameters_and_cache():
  config = shortened(gemma_configs.gemma3_270m())
  model = gemma.DecoderLM(config)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  found = specs(sharding.parameter_shardings(
      MESH, shapes, num_heads=config.num_heads, num_kv_heads=config.num_kv_heads))
  assert found['layer_0']['attention']['key']['kernel'] == P(None, None)
  prompt = types.Prompt(jnp.zeros((4, 8), jnp.int32), jnp.ones(4, jnp.int32))
  _, cache = jax.eval_shape(lambda params: model.prefill(params, prompt, 128), shapes)
  found = specs(sharding.state_shardings(MESH, cache))
  assert found.length == P('data')
  assert found.layers[0].keys == P('data', None, None, None)


def test_rows_that_do_not_divide_are_replicated():
  assert sharding.state_shardings(MESH, jnp.zeros(3)).spec == P(None)


def test_the_table_of_relative_positions_is_not_split():
  config = dataclasses.replace(t5_configs.t5_1_1_small(), num_heads=8)
  shapes = jax.eval_shape(t5.T5LM(config).init, jax.random.key(0))
  found = specs(sharding.parameter_shardings(MESH, shapes, num_heads=8, num_kv_heads=8))
  tables = {path: spec for path, spec in _flat(found).items() if path[-1] == 'embedding'}
  assert tables.pop(('token_embedder', 'embedding')) == P('model', None)
  assert len(tables) == 2 and set(tables.values()) == {P(None, None)}


def _flat(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, P))
  return {tuple(key.key for key in path): spec for path, spec in leaves}


@pytest.mark.parametrize('rules, named', [
    (sharding.DEFAULT_RULES | {'mlp': 'modle'}, "'mlp'.*'modle'.*'data', 'model'"), ({'head': 'model'}, "'head'")])
def test_a_rule_that_names_no_axis_is_refused(rules, named):
  params = {'embedder': {'embedding': jnp.zeros((8, 4))}}
  with pytest.raises(errors.TopologyError, match=named):
    sharding.parameter_shardings(MESH, params, num_heads=4, num_kv_heads=4, rules=rules)
  with pytest.raises(errors.TopologyError, match=named):
    sharding.state_shardings(MESH, params, rules=rules)


def test_a_mesh_without_rows_says_so():
  mesh = jax.sharding.AbstractMesh((4,), ('model',))
  with pytest.raises(errors.TopologyError, match=r"'batch'.*got 'data'.*rules=dict\(DEFAULT_RULES, batch=None\)"):
    sharding.state_shardings(mesh, jnp.zeros(4))
  assert sharding.state_shardings(mesh, jnp.zeros(4), rules=sharding.DEFAULT_RULES | {'batch': None}).spec == P(None)
