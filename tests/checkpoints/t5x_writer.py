"""Writes T5X checkpoints of every layout from a flat dict of parameters, for tests of the reader. No T5X needed."""

import pathlib

from flax import serialization
import ml_dtypes
import numpy as np
import tensorstore

STEP = 1000


def as_scalable(params, num_heads, *, scanned):
  """Parameters of examples/t5 as examples/scalable_t5 has them: heads apart, a position bias per layer, maybe scanned."""
  apart = {name: _heads_apart(name, value, num_heads) for name, value in params.items()}
  per_layer = {}
  for name, value in apart.items():
    if name.endswith('relpos_bias/rel_embedding'):
      stack = name.split('/')[0]
      per_layer |= {f'{stack}/layers_{i}/relpos_bias/rel_embedding': value for i in range(depth(params, stack))}
    else:
      per_layer[name] = value
  return _scanned(per_layer) if scanned else per_layer


def depth(params, stack):
  return 1 + max(int(name.split('/')[1].removeprefix('layers_')) for name in params if name.startswith(f'{stack}/layers_'))


def _heads_apart(name, value, num_heads):
  parts = name.split('/')
  if len(parts) < 3 or not parts[-3].endswith('attention'):
    return value
  if parts[-2] == 'out':
    return value.reshape(num_heads, -1, value.shape[-1])
  return value.reshape(value.shape[0], num_heads, -1)


def _scanned(params):
  """With the layers of a stack as axis 1 of one array."""
  layers = {}
  for name in params:
    stack, layer, *rest = name.split('/')
    if layer.startswith('layers_'):
      layers.setdefault((stack, *rest), []).append(int(layer.removeprefix('layers_')))
  found = {name: value for name, value in params.items() if 'layers_' not in name}
  for (stack, *rest), numbers in layers.items():
    rows = [params['/'.join([stack, f'layers_{i}', *rest])] for i in sorted(numbers)]
    found['/'.join([stack, stack, *rest])] = np.stack(rows, axis=1)
  return found


def write_array(store, value, *, compressor, chunks=None):
  """One zarr array at a kvstore spec; returns its metadata."""
  dtype = 'bfloat16' if value.dtype == ml_dtypes.bfloat16 else value.dtype.str
  metadata = {
      'shape': list(value.shape), 'chunks': list(chunks or value.shape), 'dtype': dtype,
      'compressor': compressor and {'id': compressor, 'level': 1}}
  spec = {'driver': 'zarr', 'kvstore': store, 'metadata': metadata}
  tensorstore.open(spec, create=True, delete_existing=True).result().write(value).result()
  return metadata


def write_legacy(folder, params, *, version=3, bucket=None, inline=(), compressor='gzip', old_paths=False, chunks=None):
  """A legacy checkpoint of the given version; returns its folder.

  Args:
    folder: where checkpoint_1000 is made.
    params: '/'-joined T5X names -> arrays.
    version: of the file; 2 and older write bfloat16 as uint16.
    bucket: write descriptions as if the files lay in this bucket.
    inline: names whose arrays go into the file itself.
    compressor: of the chunks, or None.
    old_paths: put paths at the top of the descriptions.
    chunks: function of a shape; None is one chunk.
  """
  path = pathlib.Path(folder, f'checkpoint_{STEP}')
  path.mkdir(parents=True)
  tree = {}
  for name, value in params.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    if name in inline:
      node[last] = np.asarray(value)
      continue
    if version < 3 and value.dtype == ml_dtypes.bfloat16:
      value = value.view(np.uint16)
    stored_name = f'target.{name.replace("/", ".")}'
    metadata = write_array(
        {'driver': 'file', 'path': f'{path}/{stored_name}/'}, value, compressor=compressor,
        chunks=chunks and chunks(value.shape))
    node[last] = _description(stored_name, metadata, value.dtype, bucket, old_paths)
  state = {'step': np.asarray(STEP, np.int32), 'param_states': {'decoder': {'decoder_norm': {'scale': {'m': np.zeros(1)}}}}}
  optimizer = {'target': tree, 'state': state}
  content = optimizer if version == 0 else {'version': version, 'optimizer': optimizer}
  (path / 'checkpoint').write_bytes(serialization.msgpack_serialize(content))
  return path


def _description(stored_name, metadata, dtype, bucket, old_paths):
  location = f'{stored_name}/'
  store = {'driver': 'file', 'path': location}
  if bucket is not None:
    store = {'driver': 'gcs', 'bucket': bucket, 'path': f'pretrained/small/checkpoint_{STEP}/{location}'}
  if old_paths:
    return {'driver': 'zarr', 'dtype': dtype.name, 'kvstore': {'driver': 'file'}, 'metadata': metadata, 'path': location}
  return {'driver': 'zarr', 'dtype': dtype.name, 'kvstore': store, 'metadata': metadata}


def write_orbax(folder, params, *, ocdbt=True):
  """A checkpoint in the Orbax layout; returns its folder. An optimizer slot is written too, which no reader wants."""
  path = pathlib.Path(folder, f'checkpoint_{STEP}')
  state = path / 'state'
  state.mkdir(parents=True)
  stored = {f'target.{name.replace("/", ".")}': value for name, value in params.items()}
  stored |= {'state.step': np.asarray([STEP], np.int32), 'state.param_states.x.v': np.zeros(3, np.float32)}
  for name, value in stored.items():
    store = {'driver': 'file', 'path': f'{state}/{name}/'}
    if ocdbt:
      store = {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{state}/'}, 'path': f'{name}/'}
    write_array(store, value, compressor='zstd')
  (path / 'commit_success.txt').write_text('done')
  return path
