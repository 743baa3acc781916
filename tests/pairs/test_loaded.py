"""Pairs of the user's own folders, by name: loaded, decoded, evaluated without code."""

import importlib.resources
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'tasks'))

import specjax
from specjax import config
from specjax import eval as eval_binary
from specjax.checkpoints import descriptions
from specjax.checkpoints import formats
from specjax.checkpoints import leaves
from specjax.evaluation import runner
from specjax.models import gemma
from specjax.models import t5
from specjax.pairs import loaded
from specjax.tasks import chat_templates
from specjax.tasks import example as specjax_example
from specjax.tasks import tokenizers
import tiny_tokenizers

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


def test_a_damaged_tokenizer_of_the_drafter_is_not_replaced_by_the_targets(named, tmp_path):
  drafter = folder_of(tmp_path / 'drafter', decoder(1), seed=1)
  loaded.load_pair_of(named.split('::')[0], drafter, is_outline=True)
  (drafter / 'tokenizer.model').write_bytes(b'damaged')
  with pytest.raises(specjax.SpecjaxError, match='drafter'):
    loaded.load_pair_of(named.split('::')[0], drafter, is_outline=True)


@pytest.mark.parametrize('program, expected', [
    (None, 'none'), ("{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}{% endfor %}", 'gemma'),
    ('<|start_header_id|>', 'none')])
def test_a_folder_says_whether_its_model_was_tuned_for_chats(tmp_path, program, expected):
  if program is not None:
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'chat_template': program}))
  assert loaded.chat_template_of(tmp_path) == expected


def test_an_instruction_tuned_pair_is_asked_in_turns(tmp_path):
  target, drafter = (folder_of(tmp_path / name, decoder(1), seed=0, tokenizer=False) for name in ('target', 'drafter'))
  (target / 'tokenizer.model').write_bytes(tiny_tokenizers.gemma_model())
  name = f'{target}::{drafter}'
  settings = dict(dtype='float32', bonus='rule', force_length=False, detail='none', is_outline=True)
  example = specjax_example.Example(id='a', domain='d', level=1, inputs='the cat', targets='', check={})
  plain = runner.load_runner(name, **settings)
  assert plain.metadata()['chat_template'] is None and plain.encode(example)[0] == 2
  (target / 'tokenizer_config.json').write_text(json.dumps({'chat_template': '<start_of_turn>'}))
  chat = runner.load_runner(name, **settings)
  tokenizer = tokenizers.load(target)
  expected = chat_templates.TEMPLATES['gemma2'].encode([chat_templates.Turn('user', 'the cat')], tokenizer)
  assert chat.metadata()['chat_template'] == 'gemma' and list(chat.encode(example)) == expected
  end = tokenizer.token_of('<end_of_turn>')
  assert chat.text([*tokenizer.encode('a dog'), end, 7]) == 'a dog'
  assert runner.load_runner(name, **settings, chat_template='none').encode(example) == plain.encode(example)
  with pytest.raises(specjax.SpecjaxError, match='encoder-decoder'):
    runner.load_runner('t5', **settings, chat_template='gemma')
  with pytest.raises(specjax.SpecjaxError, match='turn'):
    runner.load_runner('gemma', **settings, chat_template='gemma')
