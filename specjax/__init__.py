"""specjax: fast language-model decoding in JAX; speculative decoding, cascades and their relatives, proved exact."""

import importlib

_LAZY = {
    'generate': ('specjax.decode.generate', 'generate'),
    'stream': ('specjax.decode.generate', 'stream'),
    'DecodeResult': ('specjax.decode.generate', 'DecodeResult'),
    'SamplingParams': ('specjax.core.checks', 'SamplingParams'),
    'Status': ('specjax.core.types', 'Status'),
    'SpecjaxError': ('specjax.core.errors', 'SpecjaxError'),
    'SpeculativeDecoder': ('specjax.decode.speculative', 'SpeculativeDecoder'),
    'speculative': ('specjax.decode.methods', 'speculative'),
    'autoregressive': ('specjax.decode.methods', 'autoregressive'),
    'prompt_lookup': ('specjax.decode.methods', 'prompt_lookup'),
    'early_exit': ('specjax.decode.methods', 'early_exit'),
    'draft_heads': ('specjax.decode.methods', 'draft_heads'),
    'speculative_tree': ('specjax.decode.methods', 'speculative_tree'),
    'TreeShape': ('specjax.ops.trees', 'TreeShape'),
    'token_cascade': ('specjax.decode.methods', 'token_cascade'),
    'sequence_cascade': ('specjax.decode.methods', 'sequence_cascade'),
    'ModelDrafter': ('specjax.drafters', 'ModelDrafter'),
    'NoDrafter': ('specjax.drafters', 'NoDrafter'),
    'Lossless': ('specjax.rules', 'Lossless'),
    'Chow': ('specjax.rules', 'Chow'),
    'TokenV3': ('specjax.rules', 'TokenV3'),
    'ChowRouter': ('specjax.routers', 'ChowRouter'),
    'Pair': ('specjax.decode.pair', 'Pair'),
    'load': ('specjax.checkpoints.formats', 'load'),
    'load_pair': ('specjax.pairs.builtin', 'load_pair'),
}

_PACKAGES = ('drafters', 'ops', 'routers', 'rules')

__all__ = sorted((*_LAZY, *_PACKAGES))


def __getattr__(name):
  if name in _LAZY:
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)
  if name in _PACKAGES:
    return importlib.import_module(f'specjax.{name}')
  raise AttributeError(f"module 'specjax' has no attribute {name!r}")


def __dir__():
  return __all__
