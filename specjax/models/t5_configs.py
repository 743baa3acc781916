"""Shapes of the published T5 models: 1.0 (ReLU, tied head), 1.1 and Flan (gated GELU, separate head).

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer";
Chung et al. 2022, "Scaling Instruction-Finetuned Language Models".
"""

import dataclasses
from typing import Literal

from specjax.core import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
  """The structure of one encoder-decoder.

  Attributes:
    vocab_size: rows of the embedding, padded as published.
    embed_dim: width of the residual stream (d_model).
    num_heads, head_dim: attention heads of both stacks; num_heads * head_dim need not equal embed_dim.
    mlp_dim: hidden width of the MLP (d_ff).
    num_encoder_layers, num_decoder_layers: depth of the two stacks.
    mlp: 'relu' is down(relu(up x)); 'gated_gelu' is down(gelu_tanh(gate x) * up x).
    tied_head: whether logits are read with the token embedding.
    scale_logits: whether the last hidden state is multiplied by embed_dim ** -0.5 before the head.
    num_buckets, max_distance: relative position buckets of each stack, and the distance (tokens) where they saturate.
    norm_epsilon: added to the mean square in every norm.
    max_length: tokens, the longest encoder input and decoder sequence; None is not checked. Relative position buckets end
      nowhere: the released models were trained on 512 tokens and are used on more.
  """

  vocab_size: int
  embed_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_encoder_layers: int
  num_decoder_layers: int
  mlp: Literal['relu', 'gated_gelu']
  tied_head: bool
  scale_logits: bool
  num_buckets: int = 32
  max_distance: int = 128
  norm_epsilon: float = 1e-6
  max_length: int | None = None

  def __post_init__(self):
    if self.mlp not in ('relu', 'gated_gelu'):
      raise errors.ConfigError(what='T5Config.mlp', got=self.mlp, expected="'relu' or 'gated_gelu'")
    if self.max_length is not None and self.max_length < 1:
      raise errors.ConfigError(what='T5Config.max_length', got=self.max_length, expected='a positive number, or None')
    if self.num_buckets % 4 or self.max_distance <= self.num_buckets // 2:
      raise errors.ConfigError(
          what='T5Config.num_buckets', got=(self.num_buckets, self.max_distance),
          expected='a multiple of 4, below twice max_distance')


_VOCAB_SIZE = 32128


def _t5_1_0(embed_dim, head_dim, mlp_dim, num_layers, num_heads):
  return T5Config(
      vocab_size=_VOCAB_SIZE, embed_dim=embed_dim, num_heads=num_heads, head_dim=head_dim, mlp_dim=mlp_dim,
      num_encoder_layers=num_layers, num_decoder_layers=num_layers, mlp='relu', tied_head=True, scale_logits=True)


def _t5_1_1(embed_dim, mlp_dim, num_layers, num_heads):
  return T5Config(
      vocab_size=_VOCAB_SIZE, embed_dim=embed_dim, num_heads=num_heads, head_dim=64, mlp_dim=mlp_dim,
      num_encoder_layers=num_layers, num_decoder_layers=num_layers, mlp='gated_gelu', tied_head=False,
      scale_logits=False)


def t5_small() -> T5Config:
  """T5 1.0 small, 60M parameters."""
  return _t5_1_0(512, 64, 2048, 6, 8)


def t5_base() -> T5Config:
  """T5 1.0 base, 220M parameters."""
  return _t5_1_0(768, 64, 3072, 12, 12)


def t5_large() -> T5Config:
  """T5 1.0 large, 740M parameters."""
  return _t5_1_0(1024, 64, 4096, 24, 16)


def t5_3b() -> T5Config:
  """T5 1.0 3B."""
  return _t5_1_0(1024, 128, 16384, 24, 32)


def t5_11b() -> T5Config:
  """T5 1.0 11B."""
  return _t5_1_0(1024, 128, 65536, 24, 128)


def t5_1_1_small() -> T5Config:
  """T5 1.1 small, 77M parameters."""
  return _t5_1_1(512, 1024, 8, 6)


def t5_1_1_base() -> T5Config:
  """T5 1.1 base, 250M parameters."""
  return _t5_1_1(768, 2048, 12, 12)


def t5_1_1_large() -> T5Config:
  """T5 1.1 large, 780M parameters."""
  return _t5_1_1(1024, 2816, 24, 16)


def t5_1_1_xl() -> T5Config:
  """T5 1.1 XL, 3B parameters."""
  return _t5_1_1(2048, 5120, 24, 32)


def t5_1_1_xxl() -> T5Config:
  """T5 1.1 XXL, 11B parameters."""
  return _t5_1_1(4096, 10240, 24, 64)


def flan_t5_small() -> T5Config:
  """Flan-T5 small: the shape of T5 1.1 small."""
  return t5_1_1_small()


def flan_t5_base() -> T5Config:
  """Flan-T5 base: the shape of T5 1.1 base."""
  return t5_1_1_base()


def flan_t5_large() -> T5Config:
  """Flan-T5 large: the shape of T5 1.1 large."""
  return t5_1_1_large()


def flan_t5_xl() -> T5Config:
  """Flan-T5 XL: the shape of T5 1.1 XL."""
  return t5_1_1_xl()


def flan_t5_xxl() -> T5Config:
  """Flan-T5 XXL: the shape of T5 1.1 XXL."""
  return t5_1_1_xxl()
