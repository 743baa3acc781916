"""Shapes of published decoders. `vocab_size` counts the rows of the embedding in the file at hand: padding differs."""

from specjax.models import gemma
from specjax.models import layers


def _gemma(**fields) -> gemma.DecoderConfig:
  return gemma.DecoderConfig(activation='gelu', norm_plus_one=True, scale_embeddings=True, **fields)


def _gemma1(*, num_layers: int, **fields) -> gemma.DecoderConfig:
  return _gemma(layer_kinds=('global',) * num_layers, head_dim=256, max_length=8192, **fields)


def _gemma2(*, num_layers: int, **fields) -> gemma.DecoderConfig:
  return _gemma(
      layer_kinds=('local', 'global') * (num_layers // 2), window=4096, attention_softcap=50.0, final_softcap=30.0,
      post_norms=True, max_length=8192, **fields)


def _gemma3(*, num_layers: int, position_factor: float = 1.0, **fields) -> gemma.DecoderConfig:
  kinds = tuple('global' if i % 6 == 5 else 'local' for i in range(num_layers))
  return _gemma(
      layer_kinds=kinds, global_rotary=layers.Rotary(base=1e6, factor=position_factor), post_norms=True,
      query_key_norm=True, **fields)


def gemma_2b(*, vocab_size: int = 256_128) -> gemma.DecoderConfig:
  """Gemma 1 2B. Source: arXiv:2403.08295, Table 1."""
  return _gemma1(vocab_size=vocab_size, num_layers=18, embed_dim=2048, hidden_dim=16_384, num_heads=8, num_kv_heads=1)


def gemma_7b(*, vocab_size: int = 256_128) -> gemma.DecoderConfig:
  """Gemma 1 7B. Source: arXiv:2403.08295, Table 1."""
  return _gemma1(vocab_size=vocab_size, num_layers=28, embed_dim=3072, hidden_dim=24_576, num_heads=16, num_kv_heads=16)


def gemma2_2b(*, vocab_size: int = 256_128) -> gemma.DecoderConfig:
  """Gemma 2 2B. Source: arXiv:2408.00118, Table 1."""
  return _gemma2(
      vocab_size=vocab_size, num_layers=26, embed_dim=2304, hidden_dim=9216, num_heads=8, num_kv_heads=4, head_dim=256)


def gemma2_9b(*, vocab_size: int = 256_128) -> gemma.DecoderConfig:
  """Gemma 2 9B. Source: arXiv:2408.00118, Table 1."""
  return _gemma2(
      vocab_size=vocab_size, num_layers=42, embed_dim=3584, hidden_dim=14_336, num_heads=16, num_kv_heads=8,
      head_dim=256)


def gemma2_27b(*, vocab_size: int = 256_128) -> gemma.DecoderConfig:
  """Gemma 2 27B; queries are scaled by (embed_dim / num_heads) ** -0.5. Source: arXiv:2408.00118, Table 1."""
  return _gemma2(
      vocab_size=vocab_size, num_layers=46, embed_dim=4608, hidden_dim=36_864, num_heads=32, num_kv_heads=16,
      head_dim=128, query_scale=(4608 / 32) ** -0.5)


def gemma3_270m(*, vocab_size: int = 262_144) -> gemma.DecoderConfig:
  """Gemma 3 270M. Source: gemma 3.3.0."""
  return _gemma3(
      vocab_size=vocab_size, num_layers=18, embed_dim=640, hidden_dim=2048, num_heads=4, num_kv_heads=1, head_dim=256,
      window=512, max_length=32_768)


def gemma3_1b(*, vocab_size: int = 262_144) -> gemma.DecoderConfig:
  """Gemma 3 1B. Source: gemma 3.3.0."""
  return _gemma3(
      vocab_size=vocab_size, num_layers=26, embed_dim=1152, hidden_dim=6912, num_heads=4, num_kv_heads=1, head_dim=256,
      window=512, max_length=32_768)


def gemma3_4b(*, vocab_size: int = 262_144) -> gemma.DecoderConfig:
  """Gemma 3 4B, text only. Source: gemma 3.3.0."""
  return _gemma3(
      vocab_size=vocab_size, num_layers=34, embed_dim=2560, hidden_dim=10_240, num_heads=8, num_kv_heads=4,
      head_dim=256, window=1024, position_factor=8.0, max_length=131_072)


def gemma3_12b(*, vocab_size: int = 262_144) -> gemma.DecoderConfig:
  """Gemma 3 12B, text only. Source: gemma 3.3.0."""
  return _gemma3(
      vocab_size=vocab_size, num_layers=48, embed_dim=3840, hidden_dim=15_360, num_heads=16, num_kv_heads=8,
      head_dim=256, window=1024, position_factor=8.0, max_length=131_072)


def gemma3_27b(*, vocab_size: int = 262_144) -> gemma.DecoderConfig:
  """Gemma 3 27B, text only; queries are scaled by (embed_dim / num_heads) ** -0.5. Source: gemma 3.3.0."""
  return _gemma3(
      vocab_size=vocab_size, num_layers=62, embed_dim=5376, hidden_dim=21_504, num_heads=32, num_kv_heads=16,
      head_dim=128, window=1024, position_factor=8.0, query_scale=(5376 / 32) ** -0.5, max_length=131_072)


def _llama(*, num_layers: int, **fields) -> gemma.DecoderConfig:
  return gemma.DecoderConfig(layer_kinds=('global',) * num_layers, activation='silu', norm_epsilon=1e-5, **fields)


def _llama3_rotary(factor: float) -> layers.Rotary:
  return layers.Rotary(
      base=500_000.0, factor=factor, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=8192)


def llama2_7b(*, vocab_size: int = 32_000) -> gemma.DecoderConfig:
  """Llama 2 7B. Source: arXiv:2307.09288."""
  return _llama(
      vocab_size=vocab_size, num_layers=32, embed_dim=4096, hidden_dim=11_008, num_heads=32, num_kv_heads=32,
      head_dim=128, tied_head=False, max_length=4096)


def llama2_13b(*, vocab_size: int = 32_000) -> gemma.DecoderConfig:
  """Llama 2 13B. Source: arXiv:2307.09288."""
  return _llama(
      vocab_size=vocab_size, num_layers=40, embed_dim=5120, hidden_dim=13_824, num_heads=40, num_kv_heads=40,
      head_dim=128, tied_head=False, max_length=4096)


def llama3_8b(*, vocab_size: int = 128_256) -> gemma.DecoderConfig:
  """Llama 3 8B. Source: arXiv:2407.21783, Table 3."""
  return _llama(
      vocab_size=vocab_size, num_layers=32, embed_dim=4096, hidden_dim=14_336, num_heads=32, num_kv_heads=8,
      head_dim=128, global_rotary=layers.Rotary(base=500_000.0), tied_head=False, max_length=8192)


def llama3_1_8b(*, vocab_size: int = 128_256) -> gemma.DecoderConfig:
  """Llama 3.1 8B. Source: arXiv:2407.21783, Table 3."""
  return _llama(
      vocab_size=vocab_size, num_layers=32, embed_dim=4096, hidden_dim=14_336, num_heads=32, num_kv_heads=8,
      head_dim=128, global_rotary=_llama3_rotary(8.0), tied_head=False, max_length=131_072)


def llama3_1_70b(*, vocab_size: int = 128_256) -> gemma.DecoderConfig:
  """Llama 3.1 70B. Source: arXiv:2407.21783, Table 3."""
  return _llama(
      vocab_size=vocab_size, num_layers=80, embed_dim=8192, hidden_dim=28_672, num_heads=64, num_kv_heads=8,
      head_dim=128, global_rotary=_llama3_rotary(8.0), tied_head=False, max_length=131_072)


def llama3_2_1b(*, vocab_size: int = 128_256) -> gemma.DecoderConfig:
  """Llama 3.2 1B, tied."""
  return _llama(
      vocab_size=vocab_size, num_layers=16, embed_dim=2048, hidden_dim=8192, num_heads=32, num_kv_heads=8, head_dim=64,
      global_rotary=_llama3_rotary(32.0), max_length=131_072)


def llama3_2_3b(*, vocab_size: int = 128_256) -> gemma.DecoderConfig:
  """Llama 3.2 3B, tied."""
  return _llama(
      vocab_size=vocab_size, num_layers=28, embed_dim=3072, hidden_dim=8192, num_heads=24, num_kv_heads=8, head_dim=128,
      global_rotary=_llama3_rotary(32.0), max_length=131_072)
