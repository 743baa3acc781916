"""Checkpoints made to harm: nothing outside their folder is opened or asked for, memory stays small, the error is ours."""

import http.server
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import threading

from flax import serialization
import numpy as np
import pytest
import tensorstore

sys.path[:0] = [str(pathlib.Path(__file__).parents[1] / 'checkpoints')]

import t5x_writer

ROOT = pathlib.Path(__file__).resolve().parents[2]
VICTIM = 'target.encoder.encoder_norm.scale'
MAX_MEBIBYTES = 100


def weights():
  """The smallest T5 there is."""
  found = {'token_embedder/embedding': (8, 4)}
  for stack, attentions, norms in (
      ('encoder', ('attention',), ('attention', 'mlp')),
      ('decoder', ('self_attention', 'encoder_decoder_attention'), ('self_attention', 'cross_attention', 'mlp'))):
    layer = f'{stack}/layers_0'
    found |= {f'{stack}/{stack}_norm/scale': (4,), f'{stack}/relpos_bias/rel_embedding': (2, 8)}
    found |= {f'{layer}/pre_{norm}_layer_norm/scale': (4,) for norm in norms}
    found |= {f'{layer}/mlp/wi/kernel': (4, 6), f'{layer}/mlp/wo/kernel': (6, 4)}
    found |= {f'{layer}/{kind}/{name}/kernel': (4, 4) for kind in attentions for name in ('query', 'key', 'value', 'out')}
  return {name: np.full(shape, 0.5, np.float32) for name, shape in found.items()}


def edit_index(path, change):
  """Rewrites the file `checkpoint` after `change(parameter tree)`; whatever the change returns replaces the tree."""
  content = serialization.msgpack_restore((path / 'checkpoint').read_bytes())
  target = content['optimizer']['target']
  content['optimizer']['target'] = change(target) or target
  (path / 'checkpoint').write_bytes(serialization.msgpack_serialize(content))


def edit_spec(path, change):
  """Changes the description of one parameter, whose own array is removed."""
  edit_index(path, lambda target: change(target['encoder']['encoder_norm']['scale']))
  shutil.rmtree(path / VICTIM)


def edit_metadata(path, **values):
  file = path / VICTIM / '.zarray'
  file.write_text(json.dumps(json.loads(file.read_text()) | values))
  if 'shape' in values:
    edit_index(path, lambda target: target['encoder']['encoder_norm']['scale']['metadata'].update(shape=values['shape']))


def replace_by_link(path, target):
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  path.symlink_to(target)


def nested_arrays(depth, claim):
  """msgpack of arrays in arrays, each of which claims to be as long as the whole file may be."""
  return (b'\xdd' + struct.pack('>I', claim)) * depth


def sparse(path, size):
  with open(path, 'wb') as file:
    file.truncate(size)


def name_key(name):
  def change(target):
    target[name] = target.pop('token_embedder')
  return lambda path, outside, url: edit_index(path, change)


# name -> (checkpoint folder, folder outside it that holds a good array, URL that must not be asked).
LEGACY = {
    'relative escape': lambda path, outside, url: edit_spec(
        path, lambda spec: spec['kvstore'].update(path=f'../../outside/{VICTIM}/')),
    'absolute path': lambda path, outside, url: edit_spec(
        path, lambda spec: spec['kvstore'].update(path=f'{outside}/{VICTIM}/')),
    'http store': lambda path, outside, url: edit_spec(
        path, lambda spec: spec.update(kvstore={'driver': 'http', 'base_url': url, 'path': f'/{VICTIM}/'})),
    'bucket': lambda path, outside, url: edit_spec(
        path, lambda spec: spec.update(kvstore={'driver': 'gcs', 'bucket': 'b', 'path': f'x/{VICTIM}/'})),
    'another array': lambda path, outside, url: edit_index(
        path, lambda target: target['encoder']['encoder_norm']['scale']['kvstore'].update(
            path='target.decoder.decoder_norm.scale/')),
    'another driver': lambda path, outside, url: edit_spec(
        path, lambda spec: spec.update(driver='json', kvstore=f'{url}/x')),
    'cast around http': lambda path, outside, url: edit_spec(
        path, lambda spec: spec.update(driver='cast', base={'driver': 'zarr', 'kvstore': f'{url}/x/'})),
    'link to an array outside': lambda path, outside, url: replace_by_link(path / VICTIM, outside / VICTIM),
    'link to a chunk outside': lambda path, outside, url: replace_by_link(path / VICTIM / '0', outside / VICTIM / '0'),
    'link to an index outside': lambda path, outside, url: (
        shutil.copy(path / 'checkpoint', outside / 'checkpoint'), replace_by_link(path / 'checkpoint', outside / 'checkpoint')),
    'huge shape': lambda path, outside, url: edit_metadata(path, shape=[1 << 36]),
    'huge shape and chunk': lambda path, outside, url: edit_metadata(path, shape=[1 << 36], chunks=[1 << 36]),
    'absurd numbers': lambda path, outside, url: (path / VICTIM / '.zarray').write_text('{"shape": [' + '9' * 9000 + ']}'),
    'negative shape': lambda path, outside, url: edit_metadata(path, shape=[-4]),
    'objects': lambda path, outside, url: edit_metadata(path, dtype='|O'),
    'unknown compressor': lambda path, outside, url: edit_metadata(path, compressor={'id': 'python', 'code': 'x'}),
    'deep JSON': lambda path, outside, url: (path / VICTIM / '.zarray').write_text('[' * 60_000),
    'metadata of 8 GiB': lambda path, outside, url: sparse(path / VICTIM / '.zarray', 8 << 30),
    'chunk of 8 GiB': lambda path, outside, url: sparse(path / VICTIM / '0', 8 << 30),
    'index of 8 GiB': lambda path, outside, url: sparse(path / 'checkpoint', 8 << 30),
    'msgpack bomb': lambda path, outside, url: (path / 'checkpoint').write_bytes(
        b'\x81\xa7version' + nested_arrays(400, 1 << 20) + bytes(1 << 20)),
    'msgpack sizes': lambda path, outside, url: (path / 'checkpoint').write_bytes(b'\xdf\xff\xff\xff\xff'),
    'deep msgpack': lambda path, outside, url: (path / 'checkpoint').write_bytes(b'\x81\xa1x' * 100_000 + b'\xc0'),
    'control characters': name_key('token\x1b]0;x\x07\n_embedder'), 'dots': name_key('..'), 'slashes': name_key('/etc'),
    'a long name': name_key('a' * 5000), 'a surrogate': name_key('x\u202e'),
}
ORBAX = {
    'OCDBT key with dots': lambda path, outside, url: _ocdbt_key(path, 'target.../../outside/x'),
    'OCDBT key with control characters': lambda path, outside, url: _ocdbt_key(path, 'target.\x1b[2Jx'),
    'OCDBT data outside': lambda path, outside, url: (
        shutil.move(path / 'state' / 'd', outside / 'd'), (path / 'state' / 'd').symlink_to(outside / 'd')),
    'OCDBT manifest of 8 GiB': lambda path, outside, url: sparse(path / 'state' / 'manifest.ocdbt', 8 << 30),
}


def _ocdbt_key(path, name):
  base = {'driver': 'file', 'path': f'{path}/state/'}
  store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
  store.write(f'{name}/.zarray', b'{}').result()


class _Counting(http.server.BaseHTTPRequestHandler):
  hits = 0

  def do_GET(self):
    type(self).hits += 1
    self.send_error(404)

  do_HEAD = do_POST = do_GET

  def log_message(self, *args):
    pass


@pytest.fixture
def server():
  """A loopback server that counts requests."""
  _Counting.hits = 0
  served = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Counting)
  threading.Thread(target=served.serve_forever, daemon=True).start()
  yield f'http://127.0.0.1:{served.server_address[1]}'
  served.shutdown()


def test_hostile_checkpoints_have_no_effect(tmp_path, server):
  good = weights()
  outside = tmp_path / 'outside'
  outside.mkdir()
  shutil.copytree(t5x_writer.write_legacy(tmp_path / 'source', good) / VICTIM, outside / VICTIM)
  folders = [tmp_path / 'source' / f'checkpoint_{t5x_writer.STEP}']
  for cases, write in ((LEGACY, t5x_writer.write_legacy), (ORBAX, t5x_writer.write_orbax)):
    for name, change in cases.items():
      folders.append(write(tmp_path / name, good))
      change(folders[-1], outside, server)
  before = sorted(str(path) for path in outside.rglob('*'))
  done = subprocess.run(
      [sys.executable, str(pathlib.Path(__file__).with_name('open_hostile.py'))], input='\n'.join(map(str, folders)),
      capture_output=True, text=True, cwd=ROOT, timeout=300, env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'})
  assert done.returncode == 0, done.stderr[-2000:]
  results = [json.loads(line) for line in done.stdout.splitlines()]
  for name, ended, grown in results:
    print(f'{name:34} {grown:6.1f} MiB  {ended[:150]!r}')
  assert [name for name, *_ in results] == [*LEGACY, *ORBAX]
  for name, ended, grown in results:
    assert ended.startswith('CheckpointError: '), (name, ended)
    assert grown < MAX_MEBIBYTES, (name, grown)
    assert not any(ord(character) < 32 for character in ended), (name, 'a terminal would obey its error')
  assert _Counting.hits == 0
  assert sorted(str(path) for path in outside.rglob('*')) == before
