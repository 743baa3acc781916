"""Official Gemma checkpoints: every layout, written by Orbax in this test; the published shapes; what is wrong with files."""

import numpy as np
import orbax.checkpoint as ocp
import pytest

import specjax
from specjax.checkpoints import formats
from specjax.checkpoints import gemma_orbax
from specjax.core import errors
from specjax.models import gemma
from tests.checkpoints import tiny_models

CONFIG = tiny_models.CONFIGS['gemma3_text']


def official(config, *, transposed):
  """{flat official name: array} of random parameters, and their leaves by our names."""
  found = tiny_models.random_leaves(config)
  ours = {name: leaf.read() for name, leaf in found.items()}
  heads = lambda x: x.reshape(x.shape[0], -1, config.head_dim).swapaxes(0, 1)  # [D, N * H] -> [N, D, H]
  named = {'embedder/input_embedding': ours['embedder/embedding'], 'final_norm/scale': ours['final_norm/scale']}
  norms = {theirs: name for theirs, name in gemma_orbax._NORMS.items() if f'layer_0/{name}' in ours}
  for i in range(config.num_layers):
    layer = f'layer_{i}'
    query, key, value = (heads(ours[f'{layer}/attention/{part}/kernel']) for part in ('query', 'key', 'value'))
    if config.num_heads == config.num_kv_heads:
      named[f'{layer}/attn/qkv_einsum/w'] = np.stack([query, key, value])
    else:
      named |= {f'{layer}/attn/q_einsum/w': query, f'{layer}/attn/kv_einsum/w': np.stack([key, value])}
    output = ours[f'{layer}/attention/output/kernel']
    named[f'{layer}/attn/attn_vec_einsum/w'] = output.reshape(config.num_heads, config.head_dim, -1)
    gating = np.stack([ours[f'{layer}/mlp/{part}/kernel'] for part in ('gate', 'up')])
    named[f'{layer}/mlp/gating_einsum/w'] = gating.swapaxes(1, 2) if transposed else gating
    named[f'{layer}/mlp/linear/w'] = ours[f'{layer}/mlp/down/kernel']
    named |= {f'{layer}/{theirs}': ours[f'{layer}/{name}'] for theirs, name in norms.items()}
  return named, found


def flat(named):
  tree = {}
  for name, value in named.items():
    module, leaf = name.rsplit('/', 1)
    tree.setdefault(f'transformer/{module}', {})[leaf] = value
  return tree


def nested(named):
  tree = {}
  for name, value in named.items():
    *parents, leaf = (name.removesuffix('/w') if '/mlp/' in name else name).split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return tree


def stacked(named, pattern=2):
  """Layers i, i + pattern, i + 2 * pattern ... are slices of one array; the last slice of some is missing."""
  plain, slices = {}, {}
  for name, value in named.items():
    layer, _, rest = name.partition('/')
    if not layer.startswith('layer_'):
      plain[name] = value
      continue
    kind = int(layer.removeprefix('layer_')) % pattern
    slices.setdefault(f'stacked_layers/attention_type_{kind}/{rest}', []).append(value)
  return flat(plain | {name: np.stack(values) for name, values in slices.items()})


def save(folder, tree):
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(folder.absolute(), tree)
  return folder


@pytest.mark.parametrize('layout', [flat, nested, stacked])
@pytest.mark.parametrize('name, transposed', [('gemma3_text', True), ('gemma2', False), ('gemma_multi_head', False)])
def test_every_layout_is_read_bitwise(layout, name, transposed, tmp_path):
  config = tiny_models.CONFIGS[name]
  named, expected = official(config, transposed=transposed)
  folder = save(tmp_path / 'model', layout(named))
  assert formats.detect(folder) == 'gemma_orbax'
  read_config, found, extra = formats.open_checkpoint(folder, config=config)
  assert read_config == config and not extra
  assert tiny_models.same(found, expected)


def test_parts_that_read_images_are_left_out_by_name_and_nothing_else_is(tmp_path):
  named, expected = official(CONFIG, transposed=True)
  vision = {
      'embedder/mm_input_projection/w': np.zeros((2, 2), np.float32),
      'embedder/mm_soft_embedding_norm/scale': np.zeros(2, np.float32)}
  tree = flat(named | vision) | {'SigLiPFromPatches_0/siglip_encoder/x': {'kernel': np.zeros((2, 2), np.float32)}}
  _, found, extra = formats.open_checkpoint(save(tmp_path / 'model', tree), config=CONFIG)
  assert not extra and tiny_models.same(found, expected)
  tree['transformer/layer_0/surprise'] = {'w': np.zeros(2, np.float32)}
  with pytest.raises(errors.CheckpointError, match='surprise'):
    specjax.load(save(tmp_path / 'other', tree), config=CONFIG)


@pytest.mark.parametrize('published', gemma_orbax.PUBLISHED)
def test_published_shapes_give_the_published_configuration(published):
  config = published(vocab_size=256_000)
  shapes = {'embedder/embedding': (256_000, config.embed_dim)}
  for i in range(config.num_layers):
    shapes |= {
        f'layer_{i}/mlp/down/kernel': (config.hidden_dim, config.embed_dim),
        f'layer_{i}/attention/query/kernel': (config.embed_dim, config.num_heads * config.head_dim),
        f'layer_{i}/attention/key/kernel': (config.embed_dim, config.num_kv_heads * config.head_dim)}
    if config.post_norms:
      shapes[f'layer_{i}/post_mlp_norm/scale'] = (config.embed_dim,)
    if config.query_key_norm:
      shapes[f'layer_{i}/attention/query_norm/scale'] = (config.head_dim,)
  assert gemma_orbax.infer(shapes, where='x') == config


def test_other_shapes_need_a_configuration(tmp_path):
  named, _ = official(CONFIG, transposed=True)
  folder = save(tmp_path / 'model', nested(named))
  with pytest.raises(errors.CheckpointError, match='pass config='):
    specjax.load(folder)
  with pytest.raises(errors.CheckpointError, match='another model'):
    specjax.load(folder, config=tiny_models.CONFIGS['gemma2'])


def test_all_that_is_wrong_is_one_error(tmp_path):
  named, _ = official(CONFIG, transposed=True)
  del named['layer_1/pre_ffw_norm/scale']
  named['layer_2/mlp/linear/w'] = named['layer_2/mlp/linear/w'].astype(np.int32)
  named['layer_0/attn/attn_vec_einsum/w'] = named['layer_0/attn/attn_vec_einsum/w'][:2]
  with pytest.raises(errors.CheckpointError) as caught:
    specjax.load(save(tmp_path / 'model', flat(named)), config=CONFIG)
  for part in ('missing layer_1/pre_mlp_norm/scale', 'linear.w is int32', 'attn_vec_einsum.w is [16, 16]'):
    assert part in str(caught.value)


def test_not_a_number_is_named(tmp_path):
  named, _ = official(CONFIG, transposed=True)
  named['layer_0/attn/kv_einsum/w'][1, 0, 0, 0] = np.nan
  with pytest.raises(errors.CheckpointError, match=r'kv_einsum.w\[1\] holds NaN') as caught:
    specjax.load(save(tmp_path / 'model', nested(named)), config=CONFIG)
  assert 'kv_einsum.w[0]' not in str(caught.value)


def test_gating_that_is_as_wide_as_the_embedding_is_ambiguous(tmp_path):
  square = gemma.DecoderConfig(**(vars(CONFIG) | dict(hidden_dim=CONFIG.embed_dim)))
  named, _ = official(square, transposed=True)
  with pytest.raises(errors.CheckpointError, match='cannot be seen'):
    specjax.load(save(tmp_path / 'model', nested(named)), config=square)


@pytest.mark.parametrize('damage', ['truncate', 'delete'])
def test_damaged_files_are_one_error(damage, tmp_path):
  named, _ = official(CONFIG, transposed=True)
  folder = save(tmp_path / 'model', nested(named))
  for path in sorted(path for path in folder.rglob('*') if path.is_file() and {'d', 'manifest.ocdbt'} & {
      path.parent.name, path.name}):
    content = path.read_bytes()
    if damage == 'delete':
      path.unlink()
    else:
      path.write_bytes(content[:len(content) // 2])
    try:
      found = formats.open_checkpoint(folder, format='gemma_orbax', config=CONFIG)[1]
      expected = official(CONFIG, transposed=True)[1]
      assert tiny_models.same(found, expected), path  # The file was not needed.
    except errors.CheckpointError as error:
      assert str(folder) in str(error)
    except ValueError:  # Of TensorStore, when a leaf is read outside of `leaves.load`, which names it.
      with pytest.raises(errors.CheckpointError):
        specjax.load(folder, format='gemma_orbax', config=CONFIG)
    path.write_bytes(content)
