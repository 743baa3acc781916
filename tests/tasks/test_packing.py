"""Packed rows hold the same tokens as the examples one by one."""

import numpy as np
import pytest

from specjax.core.errors import LimitError
from specjax.tasks import packing, prompts, synthetic
from specjax.tasks.vocabulary import load_builtin_tokenizer

TOKENIZER = load_builtin_tokenizer()
EXAMPLES = synthetic.examples('train', 600, seed=7)


def _segments(packed, prefix=''):
  """(row, segment) to the slots it occupies, checked to be neighbours."""
  found = {}
  segments = packed[f'{prefix}segments']
  for row in range(len(segments)):
    for segment in range(1, segments[row].max() + 1):
      slots = np.flatnonzero(segments[row] == segment)
      assert slots.size and (np.diff(slots) == 1).all()
      np.testing.assert_array_equal(packed[f'{prefix}positions'][row, slots], np.arange(slots.size))
      found[row, segment] = slots
  return found


def test_decoder_only_rows_unpack_to_the_examples():
  packed = packing.pack_decoder_only(EXAMPLES, TOKENIZER, 128)
  expected = sorted((prompts.decoder_only_prompt(example, TOKENIZER), prompts.target_tokens(example, TOKENIZER))
                    for example in EXAMPLES)
  unpacked = []
  for (row, _), slots in _segments(packed).items():
    tokens, targets = packed['tokens'][row, slots].tolist(), packed['targets'][row, slots].tolist()
    assert tokens[1:] == targets[:-1]
    answer = packed['weights'][row, slots] == 1.0
    assert (np.diff(answer.astype(np.int32)) >= 0).all()
    unpacked.append((tokens[:len(tokens) - answer.sum() + 1], [t for t, counts in zip(targets, answer) if counts]))
  assert sorted(unpacked) == expected


def test_encoder_decoder_rows_unpack_to_the_examples():
  packed = packing.pack_encoder_decoder(EXAMPLES, TOKENIZER, 96, 64)
  expected = sorted((prompts.encoder_tokens(example, TOKENIZER), prompts.target_tokens(example, TOKENIZER))
                    for example in EXAMPLES)
  encoder, unpacked = _segments(packed, 'encoder_'), []
  for (row, segment), slots in _segments(packed).items():
    tokens, targets = packed['tokens'][row, slots].tolist(), packed['targets'][row, slots].tolist()
    assert tokens == [TOKENIZER.pad_id, *targets[:-1]]
    assert (packed['weights'][row, slots] == 1.0).all()
    unpacked.append((packed['encoder_tokens'][row, encoder[row, segment]].tolist(), targets))
  assert sorted(unpacked) == expected


@pytest.mark.parametrize('packed', [packing.pack_decoder_only(EXAMPLES, TOKENIZER, 128),
                                    packing.pack_encoder_decoder(EXAMPLES, TOKENIZER, 96, 64)])
def test_padding_is_empty_and_types_are_stated(packed):
  for prefix in ('', 'encoder_') if 'encoder_tokens' in packed else ('',):
    padding = packed[f'{prefix}segments'] == 0
    for name in ('tokens', 'targets', 'weights', 'positions'):
      if f'{prefix}{name}' in packed:
        assert not packed[f'{prefix}{name}'][padding].any()
  for name, array in packed.items():
    assert array.dtype == (np.float32 if name == 'weights' else np.int32)


def test_little_is_wasted():
  packed = packing.pack_decoder_only(EXAMPLES, TOKENIZER, 128)
  assert (packed['segments'] > 0).mean() > 0.9


def test_packing_is_deterministic():
  one, other = (packing.pack_decoder_only(EXAMPLES, TOKENIZER, 128) for _ in range(2))
  for name in one:
    np.testing.assert_array_equal(one[name], other[name])


def test_no_examples_give_no_rows():
  assert packing.pack_decoder_only([], TOKENIZER, 128)['tokens'].shape == (0, 128)


def test_exact_fit_is_allowed_and_one_more_is_an_error():
  example = EXAMPLES[0]
  needed = len(prompts.decoder_only_prompt(example, TOKENIZER)) + len(prompts.target_tokens(example, TOKENIZER)) - 1
  assert packing.pack_decoder_only([example], TOKENIZER, needed)['segments'].all()
  with pytest.raises(LimitError, match=example.id):
    packing.pack_decoder_only([example], TOKENIZER, needed - 1)
  with pytest.raises(LimitError):
    packing.pack_encoder_decoder([example], TOKENIZER, 4, 64)
  with pytest.raises(LimitError):
    packing.pack_encoder_decoder([example], TOKENIZER, 64, 4)
