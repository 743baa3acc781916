"""Hidden states on disk: what heads train on from there is what they train on when it is computed, and nothing else's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import errors
from specjax.models import gemma
from specjax.models import heads as heads_lib
from specjax.testing import exactness
from specjax.training import batches
from specjax.training import draft_heads
from specjax.training import hidden_states

VOCAB, LENGTH, ROWS = 11, 8, 7
TARGET = gemma.DecoderLM(gemma.DecoderConfig(
    vocab_size=VOCAB, embed_dim=8, hidden_dim=12, num_heads=2, num_kv_heads=1, head_dim=4, layer_kinds=('global',),
    activation='gelu', tied_head=True))
PARAMS = jax.tree.map(jnp.asarray, exactness.random_params(TARGET, 0, dtype=np.float32))
HEADS = heads_lib.DraftHeads(heads_lib.HeadsConfig(kind='blockwise', num_heads=2, embed_dim=8, hidden_dim=16))

pytest.importorskip('array_record')


@dataclasses.dataclass
class StopAfter:
  """A stop request that arrives before pass number `passes` + 1."""

  passes: int = 1000

  @property
  def requested(self):
    self.passes -= 1
    return self.passes < 0


def data(seed=0):
  tokens = np.random.default_rng(seed).integers(1, VOCAB, (ROWS, LENGTH + 1)).astype(np.int16)
  return batches.PackedData(dict(
      tokens=tokens[:, :-1], targets=tokens[:, 1:], segments=np.ones((ROWS, LENGTH), np.int16),
      weights=np.broadcast_to((np.arange(LENGTH) > 2).astype(np.float16), (ROWS, LENGTH)),
      positions=np.broadcast_to(np.arange(LENGTH, dtype=np.int16), (ROWS, LENGTH))))


def write(directory, **changes):
  arguments = dict(
      target=TARGET, params=PARAMS, target_sha256='a' * 64, data=data(), dtype='float32', batch_size=2, rows_per_part=3,
      stop=StopAfter(), show_progress=False)
  return hidden_states.write(directory, **(arguments | changes))


def stored(directory):
  return hidden_states.HiddenStates(directory, target_sha256='a' * 64)


@pytest.fixture
def written(tmp_path):
  assert write(tmp_path)
  return tmp_path


def test_rows_come_back_with_the_states_that_the_target_computes(written):
  rows = stored(written)
  assert len(rows) == ROWS
  index = np.array([6, 0, 4])
  batch, hidden = rows.rows(index, input_weight=0.25)
  wanted = data().rows(index, input_weight=0.25)
  for name in ('tokens', 'targets', 'weights', 'positions', 'segments'):
    np.testing.assert_array_equal(getattr(batch, name), getattr(wanted, name), strict=True)
  np.testing.assert_allclose(hidden, TARGET.forward(PARAMS, wanted).hidden, rtol=1e-5, atol=1e-6)
  assert batches.count_tokens(rows.rows(index)) == batches.count_tokens(wanted)


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-5), ('bfloat16', 0.02)])
def test_the_loss_from_disk_is_the_computed_one(tmp_path, dtype, tolerance):
  write(tmp_path, dtype=dtype)
  params = exactness.random_params(HEADS, 1, dtype=np.float32)
  loss = jax.jit(draft_heads.make_loss(TARGET, HEADS, head_weights=(1.0, 0.5), z_loss=0.0))
  index = np.arange(4)
  computed, from_disk = (loss(params, PARAMS, rows.rows(index))[0] for rows in (data(), stored(tmp_path)))
  np.testing.assert_allclose(from_disk, computed, rtol=tolerance)


def test_a_stopped_writer_goes_on_where_it_was_and_writes_the_same_bytes(tmp_path, written):
  other = tmp_path / 'other'
  assert not write(other, stop=StopAfter(3))  # In the middle of the second part.
  parts = sorted(path.name for path in other.glob('part_*'))
  assert parts == ['part_00000.array_record']
  before = (other / parts[0]).stat().st_mtime_ns
  assert write(other)
  assert (other / parts[0]).stat().st_mtime_ns == before and not list(other.glob('.tmp-*'))
  index = np.arange(ROWS)
  jax.tree.map(np.testing.assert_array_equal, stored(other).rows(index), stored(written).rows(index))


def test_nothing_is_computed_twice(written):
  assert write(written, stop=StopAfter(0))  # It would stop before the first pass.


@pytest.mark.parametrize('change, named', [
    (dict(target_sha256='b' * 64), 'target_sha256'), (dict(data=data(1)), 'data'), (dict(dtype='bfloat16'), 'dtype')])
def test_states_of_something_else_are_not_overwritten(written, change, named):
  with pytest.raises(errors.ConfigError, match=f'{named} of the hidden states'):
    write(written, **change)


def test_states_of_another_target_are_refused(written):
  with pytest.raises(errors.CheckpointError, match='target_sha256'):
    hidden_states.HiddenStates(written, target_sha256='b' * 64)


@pytest.mark.parametrize('damage', ['missing', 'truncated', 'empty', 'fewer'])
def test_a_damaged_part_is_named(written, damage):
  path = written / 'part_00001.array_record'
  if damage == 'missing':
    path.unlink()
  elif damage == 'fewer':
    path.write_bytes((written / 'part_00002.array_record').read_bytes())
  else:
    path.write_bytes(path.read_bytes()[:{'truncated': 1000, 'empty': 0}[damage]])
  with pytest.raises(errors.CheckpointError, match='part_00001'):
    stored(written).rows(np.array([4]))


def test_a_flipped_byte_is_seen(written):
  path = written / 'part_00000.array_record'
  content = bytearray(path.read_bytes())
  reads = []
  for offset in range(0, len(content), 97):
    flipped = bytearray(content)
    flipped[offset] ^= 0x40
    path.write_bytes(flipped)
    try:
      reads.append(stored(written).rows(np.arange(3)))
    except errors.CheckpointError:
      continue
  path.write_bytes(content)
  for read in reads:  # Bytes that no record uses may change.
    jax.tree.map(np.testing.assert_array_equal, read, stored(written).rows(np.arange(3)))


@pytest.mark.parametrize('content', ['', '[]', '{}', '{"target_sha256": "a"}', '{"num_rows": 0'])
def test_a_damaged_manifest_is_named(written, content):
  (written / 'manifest.json').write_text(content)
  with pytest.raises(errors.CheckpointError, match='manifest of hidden states'):
    stored(written)


def test_a_dtype_without_meaning_is_refused(tmp_path):
  with pytest.raises(errors.ParamError, match='dtype'):
    write(tmp_path, dtype='int8')
