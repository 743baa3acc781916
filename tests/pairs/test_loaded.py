"""Pairs of the user's own folders, by name: loaded, decoded, evaluated without code."""

import importlib.resources
import json

import jax
import numpy as np
import pytest

import specjax
from specjax import config
from specjax import eval as eval_binary
from specjax.checkpoints import descriptions
from specjax.checkpoints import formats
from specjax.checkpoints import leaves
from specjax.models import gemma
from specjax.models import t5
from specjax.pairs import loaded

ROWS = 900  # A few more than the 896 tokens: padding that must not be drawn.


def folder_of(path, config, *, seed, tokenizer=True):
  """A Hugging Face folder of random weights, with the built-in vocabulary beside it."""
  model = descriptions.make_model(config, dtype=np.float32)
  formats.write(path, config, leaves.of(model.init(jax.random.key(seed))), format='hf', dtype=np.float32)
  if tokenizer:
    content = importlib.resources.files('specjax.tasks').joinpath('data/synthetic.model').read_bytes()
    (path / 'tokenizer.model').write_bytes(content)
  return path


def decoder(num_layers):
  return gemma.DecoderConfig(
      vocab_size=ROWS, embed_dim=16, hidden_dim=24, num_heads=2, num_kv_heads=1, head_dim=8,
      layer_kinds=(gemma.GLOBAL,) * num_layers, activation='gelu', norm_plus_one=True, scale_embeddings=True,
      max_length=4096)


def encoder_decoder():
  return t5.T5Config(
      vocab_size=ROWS, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=24, num_encoder_layers=1, num_decoder_layers=1,
      mlp='gated_gelu', tied_head=False, scale_logits=False)


@pytest.fixture(scope='module')
def named(tmp_path_factory):
  folder = tmp_path_factory.mktemp('models')
  target = folder_of(folder / 'target', decoder(2), seed=0)
  drafter = folder_of(folder / 'drafter', decoder(1), seed=1, tokenizer=False)
  return f'{target}::{drafter}'


def test_a_pair_of_two_folders_decodes_text_and_never_draws_padding(named):
  pair = loaded.load_named(named)
  result = specjax.generate(
      pair, ['add 2 and 3', 'a'], method=specjax.speculative(num_draft_tokens=3),
      sampling=specjax.SamplingParams(temperature=2.0), max_new_tokens=24, seed=0, num_samples=8)
  assert max(tokens.max() for tokens in result.tokens) < 896 and all(isinstance(text, str) for text in result.text)


def test_the_evaluation_takes_two_folders(named, tmp_path, capsys):
  code = config.run_main(eval_binary.main, [
      f'--pairs={named}', '--methods=autoregressive,speculative', '--num_draft_tokens=2', '--temperatures=1',
      '--max_samples=2', '--batch_sizes=2', '--max_new_tokens=8', '--repeats=1', f'--output_path={tmp_path}'])
  assert code == 0 and 'speculative' in capsys.readouterr().out
  rows = [json.loads(line) for line in (tmp_path / 'rows.jsonl').read_text().splitlines()]
  assert len(rows) == 4 and list(tmp_path.glob('quality_latency-*.png'))


def test_what_does_not_fit_is_named(named, tmp_path):
  target = named.split('::')[0]
  with pytest.raises(specjax.SpecjaxError, match='TARGET::DRAFTER'):
    loaded.load_named(f'{target}::')
  other = folder_of(tmp_path / 't5', encoder_decoder(), seed=0)
  with pytest.raises(specjax.SpecjaxError, match='two models of one kind'):
    loaded.load_named(f'{target}::{other}')
  bare = folder_of(tmp_path / 'bare', decoder(1), seed=0, tokenizer=False)
  with pytest.raises(specjax.SpecjaxError, match='tokenizer'):
    loaded.load_named(f'{bare}::{target}')
