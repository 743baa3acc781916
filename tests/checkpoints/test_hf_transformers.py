"""Models that transformers makes, against its own logits; and what we write, loaded by transformers (extra `peers`)."""

import json

import numpy as np
import pytest

import specjax
from specjax.checkpoints import formats
from specjax.checkpoints import leaves
from specjax.models import t5
from tests.golden import logit_checks

transformers = pytest.importorskip('transformers')
torch = pytest.importorskip('torch')

_SIZES = dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, attn_implementation='eager')
_WINDOWED = _SIZES | dict(sliding_window=5, query_pre_attn_scalar=4)
_LINEAR = dict(
    full_attention=dict(rope_type='linear', factor=8.0, rope_theta=1e6),
    sliding_attention=dict(rope_type='default', rope_theta=1e4))
_LLAMA3 = dict(
    rope_type='llama3', rope_theta=500_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16)
_T5 = dict(vocab_size=96, d_model=32, d_kv=6, d_ff=40, num_layers=2, num_decoder_layers=3, num_heads=4,
    attn_implementation='eager')

# Name: configuration class, model class, fields.
MODELS = {
    'gemma': ('GemmaConfig', 'GemmaForCausalLM', _SIZES),
    'gemma2': ('Gemma2Config', 'Gemma2ForCausalLM', _WINDOWED),
    'gemma3_text': ('Gemma3TextConfig', 'Gemma3ForCausalLM', _WINDOWED | dict(
        layer_types=['sliding_attention', 'full_attention', 'sliding_attention'], rope_parameters=_LINEAR)),
    'llama2': ('LlamaConfig', 'LlamaForCausalLM', _SIZES),
    'llama3_tied': ('LlamaConfig', 'LlamaForCausalLM', _SIZES | dict(rope_parameters=_LLAMA3, tie_word_embeddings=True)),
    't5_1_0': ('T5Config', 'T5ForConditionalGeneration', _T5),
    't5_1_1': ('T5Config', 'T5ForConditionalGeneration', _T5 | dict(
        feed_forward_proj='gated-gelu', tie_word_embeddings=False)),
}


@pytest.fixture(autouse=True, scope='module')
def one_thread():
  """torch on one thread: these models are too small for two."""
  torch.set_num_threads(1)


def make(name):
  """A model of transformers with weights far enough from their start that every one matters."""
  config_class, model_class, fields = MODELS[name]
  torch.manual_seed(7)
  model = getattr(transformers, model_class)(getattr(transformers, config_class)(**fields)).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.15 * torch.randn_like(parameter))
  return model


def inputs_of(name):
  rng = np.random.default_rng(3)
  tokens = rng.integers(2, 96, (3, 16))
  if not name.startswith('t5'):
    return dict(tokens=tokens)
  return dict(tokens=tokens, encoder_tokens=rng.integers(2, 96, (3, 11)), encoder_length=np.array([11, 4, 7]))


def logits_of(model, tokens, encoder_tokens=None, encoder_length=None):
  with torch.no_grad():
    if encoder_tokens is None:
      return model(torch.tensor(tokens)).logits.float().numpy()
    mask = np.arange(encoder_tokens.shape[1])[None] < encoder_length[:, None]
    return model(
        input_ids=torch.tensor(encoder_tokens), attention_mask=torch.tensor(mask.astype(np.int64)),
        decoder_input_ids=torch.tensor(tokens)).logits.float().numpy()


def assert_ours_agrees(folder, model, name):
  inputs = inputs_of(name)
  ours, params = specjax.load(folder)
  logit_checks.assert_all_passes_agree(
      ours, params, logits_of(model, **inputs), np.ones((3, 16), bool), start=[1, 6, 9], **inputs)


@pytest.mark.nightly
@pytest.mark.parametrize('name', MODELS)
def test_logits_agree_and_what_we_write_is_the_same_model_to_transformers(name, tmp_path):
  model = make(name)
  model.save_pretrained(tmp_path / 'theirs')
  assert_ours_agrees(tmp_path / 'theirs', model, name)
  config, found, extra = formats.open_checkpoint(tmp_path / 'theirs')
  assert not extra
  formats.write(tmp_path / 'ours', config, found, format='hf', max_shard_bytes=20_000)
  read_back = type(model).from_pretrained(tmp_path / 'ours', attn_implementation='eager').eval()
  inputs = inputs_of(name)
  np.testing.assert_array_equal(logits_of(read_back, **inputs), logits_of(model, **inputs))
  theirs = dict(model.named_parameters())
  for parameter_name, parameter in read_back.named_parameters():
    assert torch.equal(parameter, theirs[parameter_name]), parameter_name
  again = formats.open_checkpoint(tmp_path / 'ours')[1]
  assert all(again[leaf].read().tobytes() == found[leaf].read().tobytes() for leaf in found)


@pytest.mark.nightly
def test_t5_with_a_head_of_its_own(tmp_path):
  """The layout of the published 1.1 and Flan files: lm_head.weight beside shared.weight."""
  model = make('t5_1_1')
  model.save_pretrained(tmp_path / 'tied')
  config, found, _ = formats.open_checkpoint(tmp_path / 'tied')
  config = t5.T5Config(**(vars(config) | dict(tied_head=False)))
  head = np.random.default_rng(4).standard_normal((32, 96)).astype(np.float32)
  formats.write(tmp_path / 'untied', config, found | leaves.of({'head/kernel': head}), format='hf')
  model = type(model).from_pretrained(tmp_path / 'untied').eval()
  np.testing.assert_array_equal(model.lm_head.weight.detach().numpy(), head.T)
  assert_ours_agrees(tmp_path / 'untied', model, 't5_1_1')


@pytest.mark.nightly
def test_text_part_of_a_multimodal_gemma3(tmp_path):
  vision = dict(
      hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
  text = MODELS['gemma3_text'][2]
  config = transformers.Gemma3Config(
      text_config=text, vision_config=vision, mm_tokens_per_image=4, attn_implementation='eager')
  torch.manual_seed(7)
  model = transformers.Gemma3ForConditionalGeneration(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.15 * torch.randn_like(parameter))
  model.save_pretrained(tmp_path / 'model')
  fields = json.loads((tmp_path / 'model' / 'config.json').read_text())
  assert fields['model_type'] == 'gemma3' and 'vision_config' in fields
  assert_ours_agrees(tmp_path / 'model', model, 'gemma3_text')
