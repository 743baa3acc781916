"""The built-in pairs: what the drafters cost, what a model file may say, and the way through `specjax.generate`."""

import dataclasses
import importlib.resources
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax.checkpoints import native
from specjax.core import errors
from specjax.core import types
from specjax.models import layers
from specjax.pairs import builtin
from specjax.tasks import prompts
from specjax.tasks import synthetic
from specjax.tasks import vocabulary

DATA = pathlib.Path(str(importlib.resources.files('specjax.pairs'))) / 'data'
NUM_ENCODER_TOKENS, NUM_DECODER_TOKENS = 32, 24  # The longest synthetic example has 43 and 45.

needs_data = pytest.mark.skipif(
    not all((DATA / pair / f'{role}.safetensors').is_file() for pair in builtin.PAIRS for role in ('target', 'drafter')),
    reason=f'the trained pairs are not in {DATA}: run scripts/train_pairs.sh')

TINY = {
    'gemma': {
        'target': dict(embed_dim=16, hidden_dim=24, num_heads=2, head_dim=8, layer_kinds=('local', 'global')),
        'drafter': dict(embed_dim=8, hidden_dim=8, num_heads=1, head_dim=8, layer_kinds=('global',)),
    },
    't5': {
        'target': dict(embed_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1),
        'drafter': dict(embed_dim=8, num_heads=1, head_dim=8, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1),
    },
}


def tiny_spec(pair, role):
  full = builtin.MODELS[f'{pair}_{role}']
  return dataclasses.replace(full, config=dataclasses.replace(full.config, **TINY[pair][role]))


@pytest.fixture(scope='module')
def fresh_params():
  """Parameters as initialised, by (pair, role)."""
  keys = {role: jax.random.key(number) for number, role in enumerate(('target', 'drafter'))}
  return {
      (pair, role): jax.jit(builtin.make_model(tiny_spec(pair, role)).init)(key)
      for pair in builtin.PAIRS for role, key in keys.items()}


@pytest.fixture(scope='module')
def exports(fresh_params, tmp_path_factory):
  """A data directory with freshly initialised tiny models of both families; copied, never changed."""
  directory = tmp_path_factory.mktemp('data')
  for (pair, role), params in fresh_params.items():
    native.save_safetensors(
        directory / pair / f'{role}.safetensors', params, builtin.describe(tiny_spec(pair, role)))
  return directory


@pytest.fixture(scope='module')
def tiny_pairs(exports):
  return {name: builtin.load_pair(name, data_dir=exports) for name in builtin.PAIRS}


def shapes_of(name):
  model = builtin.make_model(builtin.MODELS[name])
  return model, jax.eval_shape(model.init, jax.random.key(0))


def step_weights(name):
  """Weights that one decoding step reads: all but the encoder and an embedding that is only looked up."""
  _, shapes = shapes_of(name)
  looked_up = () if builtin.MODELS[name].config.tied_head else ('token_embedder/', 'embedder/')
  return sum(leaf.size for path, leaf in native.flatten(shapes).items() if not path.startswith(('encoder/', *looked_up)))


def flops_per_token(name):
  """Floating-point operations of a whole pass, encoder and attention included, per decoder token."""
  model, shapes = shapes_of(name)
  integers = lambda length: jax.ShapeDtypeStruct((1, length), jnp.int32)
  decoder = dict.fromkeys(('tokens', 'targets', 'positions', 'segments'), integers(NUM_DECODER_TOKENS))
  names = ('encoder_tokens', 'encoder_positions', 'encoder_segments')
  encoder = dict.fromkeys(names, integers(NUM_ENCODER_TOKENS)) if builtin.MODELS[name].kind == 'encoder-decoder' else {}
  weights = jax.ShapeDtypeStruct((1, NUM_DECODER_TOKENS), jnp.float32)
  lowered = jax.jit(model.forward).lower(shapes, types.TrainingBatch(weights=weights, **decoder, **encoder))
  return lowered.cost_analysis()['flops'] / NUM_DECODER_TOKENS


@pytest.mark.parametrize('cost', [step_weights, flops_per_token])
@pytest.mark.parametrize('pair', builtin.PAIRS)
def test_drafter_costs_at_most_a_tenth(pair, cost):
  assert cost(f'{pair}_drafter') / cost(f'{pair}_target') <= 0.10


def test_the_head_counts_in_a_step():
  # A drafter of no layers still reads its head: 896 rows.
  assert step_weights('gemma_drafter') >= builtin.VOCAB_SIZE * builtin.GEMMA_DRAFTER.config.embed_dim
  assert step_weights('t5_drafter') >= builtin.VOCAB_SIZE * builtin.T5_DRAFTER.config.embed_dim


@pytest.mark.parametrize('name', builtin.MODELS)
def test_models_know_the_tokenizer(name):
  assert builtin.MODELS[name].config.vocab_size == vocabulary.load_builtin_tokenizer().vocab_size


@pytest.mark.parametrize('name', builtin.MODELS)
def test_description_round_trip_through_json(name):
  description = json.loads(json.dumps(builtin.describe(builtin.MODELS[name])))
  assert builtin.spec_from_description(description, where='here') == builtin.MODELS[name]


def test_description_keeps_a_rotary_embedding():
  spec = dataclasses.replace(builtin.GEMMA_TARGET, config=dataclasses.replace(
      builtin.GEMMA_TARGET.config, global_rotary=layers.Rotary(base=1e6, factor=8.0), query_scale=0.125))
  description = json.loads(json.dumps(builtin.describe(spec)))
  assert builtin.spec_from_description(description, where='here') == spec


@pytest.fixture(scope='module')
def description():
  return builtin.describe(builtin.GEMMA_DRAFTER)


HOSTILE = {
    'family not in the table': dict(family='os'),
    'family is a path': dict(family='specjax.models.gemma.DecoderLM'),
    'family is a list': dict(family=['gemma']),
    'no family': dict(family=None),
    'config is a list': dict(config=[1, 2]),
    'config is missing': dict(config=None),
    'fields missing': dict(config={'vocab_size': 896}),
}
HOSTILE_FIELDS = {
    'extra field': {'__class__': 'os.system'},
    'string for a number': dict(embed_dim='96'),
    'boolean for a number': dict(num_heads=True),
    'fraction for a count': dict(num_heads=3.0),
    'zero': dict(num_kv_heads=0),
    'negative': dict(embed_dim=-96),
    'enormous': dict(vocab_size=10**15),
    'too many heads': dict(num_heads=10**6),
    'not a number': dict(norm_epsilon=float('nan')),
    'infinite': dict(query_scale=float('inf')),
    'unknown layer kind': dict(layer_kinds=['import']),
    'nested layer kinds': dict(layer_kinds=[['local']]),
    'too many layers': dict(layer_kinds=['local'] * 2000),
    'local layers without a window': dict(window=None),
    'rotary extra field': dict(global_rotary={'base': 1e4, 'call': 'x'}),
    'rotary is a number': dict(global_rotary=7),
    'rotary of strings': dict(local_rotary={'base': '1e4'}),
    'object for a boolean': dict(tied_head={}),
}


@pytest.mark.parametrize('case', [*HOSTILE, *HOSTILE_FIELDS])
def test_a_hostile_description_is_refused_and_the_file_named(description, case):
  fields = dict(description['config'], **HOSTILE_FIELDS.get(case, {}))
  hostile = dict(description, config=fields) | HOSTILE.get(case, {})
  with pytest.raises(errors.CheckpointError, match='evil.safetensors'):
    builtin.spec_from_description(hostile, where='evil.safetensors')


def test_an_untouched_description_passes(description):
  assert builtin.spec_from_description(description, where='here') == builtin.GEMMA_DRAFTER


def test_numbers_that_fit_no_network_together_are_refused(exports, tmp_path):
  path = shutil.copytree(exports / 'gemma', tmp_path / 'gemma') / 'drafter.safetensors'
  description = json.loads(path.with_suffix('.json').read_text())
  description['config']['head_dim'] = 7  # Rotary embeddings come in pairs.
  path.with_suffix('.json').write_text(json.dumps(description))
  with pytest.raises(errors.CheckpointError, match='drafter.safetensors'):
    builtin.load_model(path)


@pytest.mark.parametrize('name', builtin.PAIRS)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_load_pair_reads_back_what_was_exported(exports, fresh_params, name, dtype):
  pair = builtin.load_pair(name, dtype=dtype, data_dir=exports)
  assert pair.family == builtin.MODELS[f'{name}_target'].kind
  assert pair.target.vocab_size == pair.drafter.vocab_size == pair.tokenizer.vocab_size
  for role in ('target', 'drafter'):
    assert getattr(pair, role) == builtin.make_model(tiny_spec(name, role), dtype=dtype)
    fresh = native.flatten(fresh_params[name, role])
    for leaf_name, leaf in native.flatten(pair.params[role]).items():
      assert leaf.dtype == dtype
      np.testing.assert_array_equal(leaf, fresh[leaf_name].astype(jnp.bfloat16).astype(dtype))


def test_a_model_of_another_vocabulary_is_refused(exports, tmp_path):
  directory = shutil.copytree(exports, tmp_path / 'data')
  beside = directory / 'gemma' / 'target.json'
  beside.write_text(json.dumps(dict(json.loads(beside.read_text()), tokenizer_sha256='0' * 64)))
  with pytest.raises(errors.VocabError, match='tokenizer_sha256.*train_pairs.sh'):
    builtin.load_pair('gemma', data_dir=directory)


def test_swapped_target_and_drafter_files_are_refused(exports, tmp_path):
  directory = shutil.copytree(exports, tmp_path / 'data') / 't5'
  (directory / 'target.safetensors').rename(directory / 'x')
  (directory / 'drafter.safetensors').rename(directory / 'target.safetensors')
  (directory / 'x').rename(directory / 'drafter.safetensors')
  with pytest.raises(errors.CheckpointError, match='SHA-256'):
    builtin.load_pair('t5', data_dir=directory.parent)


def test_an_unknown_pair_and_an_empty_directory_are_named(tmp_path):
  with pytest.raises(errors.ParamError, match="'gemma', 't5'"):
    builtin.load_pair('llama')
  with pytest.raises(errors.CheckpointError, match='train_pairs.sh'):
    builtin.load_pair('gemma', data_dir=tmp_path)


@pytest.mark.parametrize('name', builtin.PAIRS)
def test_a_prompt_is_framed_as_in_training(tiny_pairs, name):
  pair = tiny_pairs[name]
  frame = prompts.decoder_only_prompt if name == 'gemma' else prompts.encoder_tokens
  for example in synthetic.examples('test', 8):
    assert pair.encode_prompt(example.inputs) == frame(example, pair.tokenizer)
  assert [pair.start_token] == prompts.decoder_start(pair.tokenizer)


@pytest.mark.parametrize('name', builtin.PAIRS)
def test_generate_takes_texts_and_returns_texts(tiny_pairs, name):
  pair = tiny_pairs[name]
  texts = [example.inputs for example in synthetic.examples('test', 3)]
  arguments = dict(sampling=specjax.SamplingParams(temperature=0.0), max_new_tokens=6, seed=1, batch_size=4)
  method = specjax.speculative(num_draft_tokens=2)
  result = specjax.generate(pair, texts, method=method, **arguments)
  as_ids = specjax.generate(pair, [pair.encode_prompt(text) for text in texts], method=method, **arguments)
  plain = specjax.generate(pair, texts, method=specjax.autoregressive(width=3), **arguments)
  assert len(result.text) == 3
  for row in range(3):
    np.testing.assert_array_equal(result.tokens[row], as_ids.tokens[row])
    np.testing.assert_array_equal(result.tokens[row], plain.tokens[row])
    without_eos = [token for token in result.tokens[row].tolist() if token != pair.tokenizer.eos_id]
    assert result.text[row] == pair.tokenizer.decode(without_eos)


@needs_data
@pytest.mark.parametrize('name', builtin.PAIRS)
def test_the_shipped_files_hold_the_built_in_models(name):
  for role in ('target', 'drafter'):
    path = DATA / name / f'{role}.safetensors'
    assert builtin.spec_from_description(native.load_description(path), where=str(path)) == builtin.MODELS[f'{name}_{role}']
  builtin.load_pair(name)


@needs_data
def test_the_shipped_files_are_small():
  assert sum(path.stat().st_size for path in DATA.rglob('*') if path.is_file()) <= 60e6
