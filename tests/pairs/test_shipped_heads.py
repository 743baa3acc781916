"""The heads in the package belong to the targets in the package, and the targets accept what they draft."""

import dataclasses
import importlib.resources
import json
import pathlib

import numpy as np
import pytest

import specjax
from specjax.checkpoints import native
from specjax.core import errors
from specjax.decode import methods
from specjax.pairs import builtin
from specjax.pairs import heads_recipe
from specjax.tasks import synthetic

DATA = pathlib.Path(str(importlib.resources.files('specjax.pairs'))) / 'data'

# Tokens per pass of the target that greedy drafting reaches at least, on the questions below.
FLOORS = {'gemma_heads': 1.5}

SHIPPED = [
    name for name in heads_recipe.SPECS
    if (DATA / name.split('_', 1)[0] / f'{name.split("_", 1)[1]}.safetensors').is_file()]


def load(name, **where):
  loader = builtin.load_autoregressive_head if name in builtin.AUTOREGRESSIVE_HEADS else builtin.load_heads
  return loader(heads_recipe.SPECS[name].pair, **where)


def test_every_file_of_heads_has_a_floor():
  assert set(SHIPPED) == set(FLOORS)


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_heads_are_those_of_the_recipe_on_the_shipped_target(name):
  heads, params = load(name)
  assert heads.config == heads_recipe.SPECS[name].config
  assert all(np.all(np.isfinite(leaf)) for leaf in native.flatten(params).values())
  pair, role = name.split('_', 1)
  description = json.loads((DATA / pair / f'{role}.json').read_text())
  assert description['target_sha256'] == native.sha256_file(DATA / pair / 'target.safetensors')
  assert description['recipe']['task'] == 'specjax_synthetic' and description['training']['target_weight'] is None


@pytest.mark.parametrize('name', SHIPPED)
def test_the_target_accepts_what_its_heads_draft(name):
  role = name.split('_', 1)[1]
  heads, params = load(name)
  pair = specjax.load_pair(heads_recipe.SPECS[name].pair)
  pair = dataclasses.replace(pair, params={**pair.params, role: params})
  make = specjax.draft_heads if role == 'heads' else methods.autoregressive_head
  method = make(**{'heads' if role == 'heads' else 'head': heads}, num_draft_tokens=4)
  examples = synthetic.examples('test', 8, seed=3)
  decode = lambda method: specjax.generate(
      pair, [example.inputs for example in examples], method=method, max_new_tokens=48, seed=0,
      sampling=specjax.SamplingParams(temperature=0.0))
  drafted, plain = decode(method), decode(specjax.autoregressive())
  assert [row.tolist() for row in drafted.tokens] == [row.tolist() for row in plain.tokens]
  assert np.sum(drafted.stats.emitted) / np.sum(drafted.stats.target_calls) >= FLOORS[name]


def test_a_pair_that_does_not_exist_is_named():
  for loader in (builtin.load_heads, builtin.load_autoregressive_head):
    with pytest.raises(errors.ParamError, match='pair'):
      loader('llama')


def test_missing_heads_are_named(tmp_path):
  with pytest.raises(errors.CheckpointError, match='heads.safetensors'):
    (tmp_path / 'gemma').mkdir()
    (tmp_path / 'gemma' / 'target.safetensors').write_bytes(b'')
    builtin.load_heads('gemma', data_dir=tmp_path)
