"""Hugging Face folders: round trips, both spellings of config.json, and every way in which a folder can be wrong."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

import specjax
from specjax.checkpoints import formats
from specjax.checkpoints import hf
from specjax.checkpoints import hf_config
from specjax.checkpoints import leaves
from specjax.checkpoints import manifest
from specjax.checkpoints import safetensors_file
from specjax.core import errors
from specjax.models import gemma_configs
from tests.checkpoints import tiny_models

CONFIG = tiny_models.CONFIGS['gemma2']


def write(folder, config=CONFIG, *, dtype=None, with_manifest=False, **options):
  formats.write(folder, config, tiny_models.random_leaves(config), format='hf', dtype=dtype, **options)
  if not with_manifest:  # As everybody else's folders are.
    (folder / manifest.NAME).unlink()
  return folder


@pytest.fixture
def folder(tmp_path):
  return write(tmp_path / 'model')


def edit_json(path, **changes):
  fields = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))


def tensors_of(path):
  """{name: array} of a file; written back by `rewrite`."""
  return {name: tensor.read() for name, tensor in safetensors_file.read_header(path)[0].items()}


def rewrite(path, arrays):
  safetensors_file.write(
      path, {name: (value.dtype, value.shape) for name, value in arrays.items()},
      [lambda value=value: value for value in arrays.values()])


def refusal(folder, **options):
  with pytest.raises(errors.CheckpointError) as caught:
    specjax.load(folder, **options)
  return str(caught.value)


@pytest.mark.parametrize('name, dtype', [
    *((name, ml_dtypes.bfloat16) for name in tiny_models.CONFIGS), ('gemma2', np.float32), ('t5_1_1', np.float16)])
def test_round_trip_is_bitwise(name, dtype, tmp_path):
  config = tiny_models.CONFIGS[name]
  found = tiny_models.random_leaves(config, dtype)
  formats.write(tmp_path / 'single', config, found, format='hf')
  formats.write(tmp_path / 'sharded', config, found, format='hf', max_shard_bytes=4000)
  assert not (tmp_path / 'sharded' / hf.WEIGHTS).exists() and (tmp_path / 'sharded' / hf.INDEX).exists()
  for written in ('single', 'sharded'):
    read_config, read, extra = formats.open_checkpoint(tmp_path / written)
    assert read_config == config and not extra
    assert tiny_models.same(read, found)


def test_dtype_is_the_stored_one_where_all_leaves_agree_on_bfloat16(folder, tmp_path):
  assert specjax.load(folder)[0].dtype == np.float32
  rounded = write(tmp_path / 'rounded', dtype=np.dtype(ml_dtypes.bfloat16))
  model, params = specjax.load(rounded)
  assert model.dtype == ml_dtypes.bfloat16 and params['final_norm']['scale'].dtype == ml_dtypes.bfloat16
  assert specjax.load(rounded, dtype='float32')[1]['final_norm']['scale'].dtype == np.float32


# Damage and hostility.


def test_every_truncation_is_named(folder):
  content = (folder / hf.WEIGHTS).read_bytes()
  header = 8 + struct.unpack('<Q', content[:8])[0]
  for length in (0, 3, 8, 9, header - 1, header, header + 1, len(content) - 1):
    (folder / hf.WEIGHTS).write_bytes(content[:length])
    assert hf.WEIGHTS in refusal(folder)
  (folder / hf.WEIGHTS).write_bytes(content + b'\0')
  assert 'tensors end at' in refusal(folder)


@pytest.mark.parametrize('length', [1 << 62, safetensors_file.MAX_HEADER_BYTES + 1])
def test_huge_header_is_refused_before_it_is_read(folder, length):
  with open(folder / hf.WEIGHTS, 'r+b') as file:
    file.write(struct.pack('<Q', length))
    file.truncate(100 << 20)  # Sparse: a file in which such a header could be.
  assert 'a header of' in refusal(folder)


@pytest.mark.parametrize('header, wrong', [
    ({'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}, 'b': {'dtype': 'F32', 'shape': [2], 'data_offsets': [4, 12]}},
     'begins at'),
    ({'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [4, 12]}}, 'begins at'),
    ({'a': {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 8]}}, 'its shape says'),
    ({'a': {'dtype': 'F32', 'shape': [1 << 60, 1 << 60], 'data_offsets': [0, 12]}}, 'its shape says'),
    ({'a': {'dtype': 'F32', 'shape': [-1, -3], 'data_offsets': [0, 12]}}, 'shape'),
    ({'a': {'dtype': 'F32', 'shape': [3.0], 'data_offsets': [0, 12]}}, 'shape'),
    ({'a': {'dtype': 'F32', 'shape': [True], 'data_offsets': [0, 12]}}, 'shape'),
    ({'a': {'dtype': 'O', 'shape': [3], 'data_offsets': [0, 12]}}, 'dtype'),
    ({'a': {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 12], 'path': 'x'}}, 'exactly'),
    ({'a': [1]}, 'exactly'),
    ({'__metadata__': {'format': 1}, 'a': {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 12]}}, '__metadata__'),
    ('[]', 'no JSON object'),
    ('{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, "a": {}}', 'twice'),
    ('[' * 100_000, 'recursion'),
])
def test_hostile_header_is_named(tmp_path, header, wrong):
  encoded = (header if isinstance(header, str) else json.dumps(header)).encode()
  path = tmp_path / 'x.safetensors'
  path.write_bytes(struct.pack('<Q', len(encoded)) + encoded + b'\0' * 12)
  with pytest.raises(errors.CheckpointError, match='x.safetensors: safetensors header') as caught:
    safetensors_file.read_header(path)
  assert wrong in str(caught.value)


@pytest.mark.parametrize('name', ['../model.safetensors', '/etc/passwd', 'a/b.safetensors', 'x.bin', '.safetensors', 7])
def test_index_names_plain_files_only(tmp_path, name):
  folder = write(tmp_path / 'model', max_shard_bytes=4000)
  weights = json.loads((folder / hf.INDEX).read_text())['weight_map']
  edit_json(folder / hf.INDEX, weight_map=weights | {'model.norm.weight': name})
  assert 'file of a shard' in refusal(folder)


def test_missing_and_swapped_shards_are_listed(tmp_path):
  folder = write(tmp_path / 'model', max_shard_bytes=4000)
  first, second, *_ = sorted(folder.glob('model-*.safetensors'))
  kept = first.read_bytes()
  first.unlink()
  assert f'{first.name} is missing' in refusal(folder)
  first.write_bytes(second.read_bytes())
  second.write_bytes(kept)
  message = refusal(folder)
  assert f'is not in {first.name}' in message and f'is not in {second.name}' in message


def test_weights_twice_are_refused(tmp_path):
  folder = write(tmp_path / 'model', max_shard_bytes=4000)
  next(folder.glob('model-*.safetensors')).rename(folder / hf.WEIGHTS)
  assert 'two sets of weights' in refusal(folder)


def test_pickles_are_never_read(folder):
  (folder / hf.WEIGHTS).rename(folder / 'pytorch_model.bin')
  assert 'pickles' in refusal(folder, format='hf')


def test_symbolic_links_lead_into_the_cache_of_their_snapshot_or_nowhere(tmp_path):
  outside = write(tmp_path / 'outside')
  folder = tmp_path / 'model'
  folder.mkdir()
  for name in (hf.WEIGHTS, hf.CONFIG):
    (folder / name).symlink_to(outside / name)
  assert 'symbolic link' in refusal(folder, format='hf')
  cache = tmp_path / 'models--owner--name'
  snapshot, blobs = cache / 'snapshots' / ('f' * 40), cache / 'blobs'
  snapshot.mkdir(parents=True)
  blobs.mkdir()
  for name in (hf.WEIGHTS, hf.CONFIG):
    (outside / name).rename(blobs / name)
    (snapshot / name).symlink_to(f'../../blobs/{name}')
  specjax.load(snapshot)


def test_everything_that_is_wrong_with_the_leaves_is_one_error(folder):
  arrays = tensors_of(folder / hf.WEIGHTS)
  arrays['model.layers.0.mlp.up_proj.weight'] = arrays['model.layers.0.mlp.up_proj.weight'][1:]
  arrays['model.layers.1.mlp.up_proj.weight'] = arrays['model.layers.1.mlp.up_proj.weight'].astype(np.int32)
  arrays['score.weight'] = np.zeros((2, 2), np.float32)
  del arrays['model.norm.weight']
  rewrite(folder / hf.WEIGHTS, arrays)
  message = refusal(folder)
  for part in ('missing final_norm/scale', 'extra score.weight', 'up_proj.weight is [16, 23]', 'is int32'):
    assert part in message


def test_all_broken_numbers_are_named(folder):
  arrays = tensors_of(folder / hf.WEIGHTS)
  arrays['model.layers.0.mlp.up_proj.weight'][3, 5] = np.nan
  arrays['model.norm.weight'][0] = np.inf
  arrays['model.layers.2.mlp.up_proj.weight'][0, 0] = 1e30
  rewrite(folder / hf.WEIGHTS, arrays)
  message = refusal(folder)
  assert 'layers.0.mlp.up_proj' in message and 'model.norm.weight' in message and 'layers.2' not in message
  assert 'layers.2' in refusal(folder, dtype='float16')  # 1e30 is infinite there.


@pytest.mark.parametrize('changes', [
    dict(hidden_size=32), dict(num_hidden_layers=2, layer_types=...), dict(num_hidden_layers=1024, layer_types=...),
    dict(num_attention_heads=8), dict(num_key_value_heads=4), dict(head_dim=16), dict(vocab_size=97),
    dict(intermediate_size=48), dict(model_type='gemma3_text'), dict(model_type='gemma'), dict(tie_word_embeddings=False)])
def test_configuration_of_other_weights_is_refused(folder, changes):
  edit_json(folder / hf.CONFIG, **changes)
  message = refusal(folder)
  assert 'checkpoint of another model' in message or 'number of layers' in message
  if changes.get('num_hidden_layers') == 1024:  # Building so deep a network to compare it would take a minute.
    assert 'number of layers' in message


@pytest.mark.parametrize('field, value', [
    ('model_type', 'mistral'), ('model_type', ['gemma2']), ('model_type', ...), ('hidden_activation', 'relu'),
    ('attention_bias', True), ('use_bidirectional_attention', True), ('rope_scaling', {'rope_type': 'yarn', 'factor': 2.0}),
    ('rope_scaling', {'type': 'dynamic', 'factor': 2.0}), ('rope_scaling', 7), ('partial_rotary_factor', 0.5),
    ('rope_parameters', {'rope_type': 'default', 'rope_theta': 1e4, 'partial_rotary_factor': 0.25}),
    ('quantization_config', {'quant_method': 'gptq'}), ('hidden_size', '16'), ('hidden_size', -1), ('hidden_size', True),
    ('num_hidden_layers', 1 << 40), ('layer_types', ['chunked_attention'] * 3), ('layer_types', ['full_attention']),
    ('sliding_window', None), ('sliding_window', 0), ('num_key_value_heads', 3), ('rms_norm_eps', float('nan')),
    ('query_pre_attn_scalar', 0), ('attn_logit_softcapping', -50.0), ('tie_word_embeddings', 'yes')])
def test_variants_that_are_not_implemented_are_refused_by_name(folder, field, value):
  edit_json(folder / hf.CONFIG, **{field: value})
  message = refusal(folder, format='hf')
  assert field in message or (field, value) in (('sliding_window', None), ('num_key_value_heads', 3))
  assert hf.CONFIG in message


@pytest.mark.parametrize('field, value', [
    ('mlp_bias', True), ('pretraining_tp', 2), ('hidden_act', 'gelu'), ('attention_bias', True),
    ('rope_scaling', {'rope_type': 'llama3', 'factor': 8.0})])
def test_variants_of_llama_are_refused_by_name(tmp_path, field, value):
  folder = write(tmp_path / 'model', tiny_models.CONFIGS['llama2'])
  edit_json(folder / hf.CONFIG, **{field: value})
  assert field in refusal(folder) or 'low_freq_factor' in refusal(folder)


@pytest.mark.parametrize('content', ['', '[]', '{', '[' * 100_000, '{"model_type": "t5", "model_type": "gemma"}', '\xff'])
def test_broken_config_is_named(folder, content):
  (folder / hf.CONFIG).write_bytes(content.encode('latin1'))
  assert hf.CONFIG in refusal(folder)


# What a format leaves to its readers.


def test_a_flipped_bit_is_seen_where_a_manifest_lies_beside_it(tmp_path):
  folder = write(tmp_path / 'model', with_manifest=True)
  specjax.load(folder)
  for path in sorted(folder.iterdir()):
    content = path.read_bytes()
    for at in (0, len(content) // 2, len(content) - 2):
      path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1:])
      assert path.name in refusal(folder)
    path.write_bytes(content)
  specjax.load(folder)


def test_files_that_a_manifest_does_not_list_are_no_part_of_the_model(tmp_path):
  folder = write(tmp_path / 'model', with_manifest=True)
  (folder / 'tokenizer.json').write_text('{}')
  specjax.load(folder)
  for name in ('other.safetensors', 'model.json'):
    (folder / name).write_bytes(b'{}')
    assert 'not in the manifest' in refusal(folder)
    (folder / name).unlink()


@pytest.mark.parametrize('prefix, head', [
    ('language_model.model.', 'language_model.lm_head.weight'), ('model.language_model.', 'lm_head.weight')])
def test_text_part_of_a_multimodal_gemma3_is_read(tmp_path, prefix, head):
  config = tiny_models.CONFIGS['gemma3_text']
  folder = write(tmp_path / 'model', config)
  arrays = {name.replace('model.', prefix, 1): value for name, value in tensors_of(folder / hf.WEIGHTS).items()}
  start = 'model.' if prefix.startswith('model.') else ''
  vision = {
      f'{start}vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias': np.zeros(3, np.float32),
      f'{start}vision_tower.vision_model.embeddings.position_ids': np.zeros(3, np.int64),
      f'{start}multi_modal_projector.mm_soft_emb_norm.weight': np.zeros(3, np.float32)}
  rewrite(folder / hf.WEIGHTS, arrays | vision | {head: arrays[f'{prefix}embed_tokens.weight']})
  fields = json.loads((folder / hf.CONFIG).read_text())
  (folder / hf.CONFIG).write_text(json.dumps(
      {'model_type': 'gemma3', 'text_config': fields, 'vision_config': {'model_type': 'siglip_vision_model'}}))
  read_config, read, extra = formats.open_checkpoint(folder)
  assert read_config == config and not extra and tiny_models.same(read, tiny_models.random_leaves(config))
  rewrite(folder / hf.WEIGHTS, arrays | vision | {f'{prefix}layers.0.self_attn.surprise': np.zeros(3, np.float32)})
  assert 'surprise' in refusal(folder)


def test_vision_tensors_in_a_text_model_are_not_ignored(folder):
  rewrite(folder / hf.WEIGHTS, tensors_of(folder / hf.WEIGHTS) | {'vision_tower.x': np.zeros(3, np.float32)})
  assert 'vision_tower.x' in refusal(folder)


def test_a_tied_head_that_is_stored_must_be_the_embedding(folder):
  arrays = tensors_of(folder / hf.WEIGHTS)
  head = arrays['model.embed_tokens.weight'].copy()
  rewrite(folder / hf.WEIGHTS, arrays | {'lm_head.weight': head})
  specjax.load(folder)
  head[7, 3] += 1
  rewrite(folder / hf.WEIGHTS, arrays | {'lm_head.weight': head})
  assert 'lm_head.weight' in refusal(folder)


@pytest.mark.parametrize('copies', [(), ('encoder',), ('encoder', 'decoder')])
def test_t5_copies_of_the_embedding_must_be_equal(tmp_path, copies):
  folder = write(tmp_path / 'model', tiny_models.CONFIGS['t5_1_1'])
  arrays = tensors_of(folder / hf.WEIGHTS)
  unread = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
  arrays |= {f'{stack}.embed_tokens.weight': arrays['shared.weight'] for stack in copies}
  rewrite(folder / hf.WEIGHTS, arrays | {unread: np.zeros((32, 4), np.float32)})
  specjax.load(folder)
  if copies:
    name = f'{copies[-1]}.embed_tokens.weight'
    rewrite(folder / hf.WEIGHTS, arrays | {name: arrays[name] + 1})
    assert name in refusal(folder)
    del arrays['shared.weight']
    rewrite(folder / hf.WEIGHTS, arrays)
    specjax.load(folder)


# The rule of T5's head: lm_head.weight where it is stored; scaled as scale_decoder_outputs says, else unless it is untied.
@pytest.mark.parametrize('fields, stored, tied, scaled', [
    (dict(tie_word_embeddings=True, scale_decoder_outputs=...), False, True, True),
    (dict(tie_word_embeddings=..., scale_decoder_outputs=...), False, True, True),
    (dict(tie_word_embeddings=False, scale_decoder_outputs=...), True, False, False),
    (dict(tie_word_embeddings=True, scale_decoder_outputs=False), True, False, False),
    (dict(tie_word_embeddings=True, scale_decoder_outputs=False), False, True, False),
    (dict(tie_word_embeddings=True, scale_decoder_outputs=True), False, True, True)])
def test_head_of_t5(tmp_path, fields, stored, tied, scaled):
  folder = write(tmp_path / 'model', tiny_models.CONFIGS['t5_1_1' if stored else 't5_1_0'])
  edit_json(folder / hf.CONFIG, **fields)
  config = formats.open_checkpoint(folder)[0]
  assert (config.tied_head, config.scale_logits) == (tied, scaled)


# config.json as on the Hub.

GEMMA2_2B = dict(
    model_type='gemma2', attn_logit_softcapping=50.0, final_logit_softcapping=30.0, head_dim=256,
    hidden_act='gelu_pytorch_tanh', hidden_activation='gelu_pytorch_tanh', hidden_size=2304, intermediate_size=9216,
    max_position_embeddings=8192, num_attention_heads=8, num_hidden_layers=26, num_key_value_heads=4,
    query_pre_attn_scalar=256, rms_norm_eps=1e-6, rope_theta=10000.0, sliding_window=4096, vocab_size=256000,
    cache_implementation='hybrid')
GEMMA2_27B = GEMMA2_2B | dict(
    head_dim=128, hidden_size=4608, intermediate_size=36864, num_attention_heads=32, num_hidden_layers=46,
    num_key_value_heads=16, query_pre_attn_scalar=144)
GEMMA3_4B = dict(model_type='gemma3', mm_tokens_per_image=256, vision_config={}, text_config=dict(
    hidden_size=2560, intermediate_size=10240, model_type='gemma3_text', num_hidden_layers=34,
    rope_scaling={'factor': 8.0, 'rope_type': 'linear'}, sliding_window=1024))
GEMMA3_4B_NEW = dict(model_type='gemma3', text_config=dict(
    hidden_size=2560, intermediate_size=10240, model_type='gemma3_text', num_hidden_layers=34, sliding_window=1024,
    rope_parameters=dict(
        full_attention=dict(factor=8.0, rope_type='linear', rope_theta=1_000_000.0),
        sliding_attention=dict(rope_type='default', rope_theta=10_000.0))))
GEMMA3_1B = dict(
    model_type='gemma3_text', head_dim=256, hidden_activation='gelu_pytorch_tanh', hidden_size=1152,
    intermediate_size=6912, max_position_embeddings=32768, num_attention_heads=4, num_hidden_layers=26,
    num_key_value_heads=1, query_pre_attn_scalar=256, rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000,
    sliding_window=512, sliding_window_pattern=6, vocab_size=262144)
GEMMA_2B = dict(
    model_type='gemma', hidden_act='gelu', head_dim=256, hidden_size=2048, intermediate_size=16384,
    max_position_embeddings=8192, num_attention_heads=8, num_hidden_layers=18, num_key_value_heads=1, rope_theta=10000.0,
    vocab_size=256000)
LLAMA3_2_1B = dict(
    model_type='llama', attention_bias=False, head_dim=64, hidden_act='silu', hidden_size=2048, intermediate_size=8192,
    max_position_embeddings=131072, mlp_bias=False, num_attention_heads=32, num_hidden_layers=16, num_key_value_heads=8,
    pretraining_tp=1, rms_norm_eps=1e-5, rope_theta=500000.0, tie_word_embeddings=True, vocab_size=128256,
    rope_scaling=dict(
        factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=8192, rope_type='llama3'))
LLAMA3_2_1B_NEW = {name: value for name, value in LLAMA3_2_1B.items() if not name.startswith('rope')} | dict(
    rope_parameters=LLAMA3_2_1B['rope_scaling'] | dict(rope_theta=500000.0))
LLAMA2_7B = dict(
    model_type='llama', hidden_act='silu', hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096,
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, pretraining_tp=1, rms_norm_eps=1e-5,
    rope_scaling=None, tie_word_embeddings=False, vocab_size=32000)


@pytest.mark.parametrize('fields, config', [
    (GEMMA_2B, gemma_configs.gemma_2b(vocab_size=256_000)),
    (GEMMA_2B | dict(hidden_activation='gelu_pytorch_tanh'), gemma_configs.gemma_2b(vocab_size=256_000)),
    (GEMMA2_2B, gemma_configs.gemma2_2b(vocab_size=256_000)),
    (GEMMA2_27B, gemma_configs.gemma2_27b(vocab_size=256_000)),
    (GEMMA3_4B, gemma_configs.gemma3_4b(vocab_size=262_208)),
    (GEMMA3_4B_NEW, gemma_configs.gemma3_4b(vocab_size=262_208)),
    (GEMMA3_1B, gemma_configs.gemma3_1b()),
    (LLAMA2_7B, gemma_configs.llama2_7b()),
    (LLAMA3_2_1B, gemma_configs.llama3_2_1b()),
    (LLAMA3_2_1B_NEW, gemma_configs.llama3_2_1b()),
])
def test_published_config_files_are_the_published_configurations(fields, config):
  assert hf_config.parse(fields, where='config.json', has_head=not config.tied_head) == config


def test_fields_that_nothing_reads_are_named_in_a_warning(caplog):
  hf_config.parse(GEMMA2_2B | dict(surprise=1, bos_token_id=2, torch_dtype='bfloat16'), where='config.json', has_head=False)
  assert 'surprise' in caplog.text and 'bos_token_id' not in caplog.text and 'cache_implementation' not in caplog.text


def test_a_configuration_of_no_family_is_not_written(tmp_path):
  config = tiny_models.CONFIGS['llama2']
  odd = type(config)(**(vars(config) | dict(query_key_norm=True)))
  with pytest.raises(errors.CheckpointError, match='query_key_norm'):
    formats.write(tmp_path / 'model', odd, tiny_models.random_leaves(odd), format='hf')
  assert not list(tmp_path.iterdir())


def test_infinite_weights_are_not_written(tmp_path):
  found = tiny_models.random_leaves(CONFIG)
  found['final_norm/scale'] = leaves.of({'x': np.full(16, np.inf, np.float32)})['x']
  with pytest.raises(errors.CheckpointError, match='finite'):
    formats.write(tmp_path / 'model', CONFIG, found, format='hf')
  assert not list(tmp_path.iterdir())
