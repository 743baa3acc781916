"""The real loop under a sweep, on toy models with the real tokenizer."""

import functools
import json

import jax
import numpy as np
import pytest

import fake_runner
from specjax.core import checks
from specjax.decode import memory
from specjax.decode import pair as pair_lib
from specjax.evaluation import evaluate
from specjax.evaluation import grid
from specjax.evaluation import report
from specjax.evaluation import row_log
from specjax.evaluation import rows
from specjax.evaluation import runner
from specjax.tasks import synthetic
from specjax.tasks import vocabulary
from specjax.testing import toy


@functools.cache
def _pair(family):
  tokenizer = vocabulary.load_builtin_tokenizer()
  target, drafter = (
      toy.ToyLM(vocab_size=tokenizer.vocab_size, memory=memory_, scale=2.0, has_encoder=family == 'encoder-decoder')
      for memory_ in (2, 1))
  params = {'target': target.init(jax.random.key(0)), 'drafter': drafter.init(jax.random.key(1))}
  return pair_lib.Pair(
      name='toy', family=family, target=target, drafter=drafter, params=params, tokenizer=tokenizer)


def _runner(family='decoder-only', *, dtype='float32', bonus='rule', force_length=True):
  return runner.PairRunner(
      _pair(family), checkpoint_sha256=None, dtype=dtype, bonus=bonus, force_length=force_length)


def _questions(made, count):
  return [rows.Question(e.id, e.domain, made.encode(e), i, e) for i, e in enumerate(synthetic.examples('test', count))]


def _points(temperatures=(0.0,), thresholds=(0.5,)):
  return grid.blocks(
      pairs=['toy'], tasks=['synthetic'], methods=['autoregressive', 'speculative', 'cascade_chow'],
      thresholds=list(thresholds), num_draft_tokens=[2],
      samplings=[checks.SamplingParams(temperature=t) for t in temperatures], seeds=[0], batch_sizes=[3])


@pytest.mark.parametrize('family', ['decoder-only', 'encoder-decoder'])
def test_greedy_speculative_tokens_equal_autoregressive_ones(family):
  made = _runner(family)
  asked = _questions(made, 3)
  shape = made.shape(asked, max_new_tokens=6, num_draft_tokens=2)
  plain, speculative, _ = (made.generate(point, asked, shape) for point in _points()[0].points)
  for row in range(3):
    tokens = rows.generated_tokens(plain.collected, row)
    assert len(tokens) == 6 and tokens == rows.generated_tokens(speculative.collected, row)
  assert plain.prefill_seconds > 0 and plain.decode_seconds > 0
  assert speculative.collected.stats.proposed.sum() > 0 and plain.collected.stats.proposed.sum() == 0


def test_numbers_never_compile_and_a_short_batch_is_filled_with_inert_rows():
  made = _runner()
  asked = _questions(made, 3)
  shape = made.shape(asked, max_new_tokens=5, num_draft_tokens=2)
  blocks = _points(temperatures=(0.0, 0.7), thresholds=(0.1, 0.6))
  for point in blocks[0].points:
    made.generate(point, asked, shape)
  before = len(made.compile_log())
  whole = made.generate(blocks[1].points[1], asked, shape)
  for block in blocks:
    for point in block.points:
      made.generate(point, asked[:2], shape)
  short = made.generate(blocks[1].points[1], asked[:2], shape)
  assert len(made.compile_log()) == before
  assert short.collected.length[2] == short.collected.prompt_length[2]
  for row in range(2):
    assert rows.generated_tokens(short.collected, row) == rows.generated_tokens(whole.collected, row)


def test_sizes_are_known_without_running_anything():
  made = _runner()
  asked = _questions(made, 3)
  shape = made.shape(asked, max_new_tokens=6, num_draft_tokens=2)
  before = len(made.compile_log())
  parts = made.memory_parts(_points()[0].points[1], shape)
  assert set(parts) == {'state and caches', f'prefill of {shape.width} tokens', '[B=3, K+1=3, V=896] buffers'}
  assert parts['[B=3, K+1=3, V=896] buffers'] == memory.LAW_BUFFERS * 4 * 3 * 3 * 896
  # Two ToyCaches: tokens and length int32, encoder float32[V]; slots = prompt + 6 + K + 1.
  caches = 2 * 3 * 4 * (shape.capacity + 1 + 896)
  assert caches < parts['state and caches'] < 2 * caches
  assert shape.capacity == shape.width + 6 + 3
  costs = made.step_costs(shape)
  assert costs['target']['flops_per_token'] == 2 * sum(x.size for x in _pair('decoder-only').params['target'].values()
                                                       ) - 2 * _pair('decoder-only').params['target']['encoder'].size
  assert len(made.compile_log()) == before


def test_sweep_and_report_over_the_real_loop(tmp_path):
  load = lambda name, **settings: _runner(**settings)
  evaluate.evaluate(
      **fake_runner.settings(load_runner=load, pairs=['toy'], methods=['autoregressive', 'speculative', 'cascade_token_v3'],
                             thresholds=[0.2, 0.6], num_draft_tokens=[2], max_samples=4, batch_sizes=[3],
                             max_new_tokens=6), output_path=str(tmp_path))
  found, _ = row_log.read(tmp_path / 'rows.jsonl')
  run = json.loads((tmp_path / 'run.json').read_text())
  assert len(found) == 4 * 4 and run['sessions'][0]['n_compiles_after_warm_up'] == 0
  assert all(row['emitted'] == len(row['choices'][0]['token_ids'][0]) for row in found)
  written = report.write(tmp_path)
  speculative = next(s for s in written.series if s.method == 'speculative')
  assert speculative.equal_to_baseline == (4, 4) and speculative.pct_of_limit > 0
  assert np.isfinite(speculative.speedup.estimate)
