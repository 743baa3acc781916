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
from specjax.evaluation import calibrate
from specjax.evaluation import evaluate
from specjax.evaluation import grid
from specjax.evaluation import methods
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


def _runner(family='decoder-only', *, dtype='float32', bonus='rule', force_length=True, detail='none'):
  return runner.PairRunner(
      _pair(family), checkpoint_sha256=None, dtype=dtype, bonus=bonus, force_length=force_length, detail=detail)


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
  shape = made.shape(asked, max_new_tokens=6, points=_points()[0].points)
  plain, speculative, _ = (made.generate(point, asked, shape) for point in _points()[0].points)
  for row in range(3):
    tokens = rows.generated_tokens(plain.collected, row)
    assert len(tokens) == 6 and tokens == rows.generated_tokens(speculative.collected, row)
  assert plain.prefill_seconds > 0 and plain.decode_seconds > 0
  assert speculative.collected.stats.proposed.sum() > 0 and plain.collected.stats.proposed.sum() == 0


def test_numbers_never_compile_and_a_short_batch_is_filled_with_inert_rows():
  made = _runner()
  asked = _questions(made, 3)
  shape = made.shape(asked, max_new_tokens=5, points=_points()[0].points)
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
  shape = made.shape(asked, max_new_tokens=6, points=_points()[0].points)
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


@pytest.mark.parametrize('name', list(methods.METHODS))
def test_every_method_decodes_and_its_numbers_are_sound(name):
  method = methods.lookup(name)
  family = 'encoder-decoder' if len(name) % 2 else 'decoder-only'
  made = _runner(family, detail='summary')
  asked = _questions(made, 3)
  points = grid.blocks(
      pairs=['toy'], tasks=['synthetic'], methods=[name], thresholds={name: method.thresholds[2:4]} if method.knobs else {},
      num_draft_tokens=[2],
      samplings=[checks.SamplingParams(temperature=0.0 if method.greedy_only else 0.8)], seeds=[5],
      batch_sizes=[3])[0].points
  shape = made.shape(asked, max_new_tokens=7, points=points)
  before = len(made.compile_log())
  for point in points:
    generation = made.generate(point, asked, shape)
    built = [rows.build(
        run_id='r', point=point, answers=[rows.Answer(question, generation, row, 3, '')], repeat=0, batch_index=0,
        scores=None, score_name=None, model_id='m') for row, question in enumerate(asked)]
    assert all(row['emitted'] == 7 and row['error'] is None for row in built)
    assert all(row['deferral_rate'] is None or -1e-6 <= row['deferral_rate'] <= 1 + 1e-6 for row in built)
    if method.drafts:
      assert all(abs(row['deferral_rate'] - 1) < 1e-6 for row in built if method.lossless and row['evaluated'])
      assert all(-1e-6 <= row[field] <= 1 + 1e-6 for row in built if row['evaluated']
                 for field in ('overlap', 'tv_to_target', 'tv_goal_drafter'))
    assert len(made.compile_log()) - before <= 2  # one prefill, one decode, whatever the knob


def test_rules_share_one_prefill():
  made = _runner()
  asked = _questions(made, 3)
  points = grid.blocks(
      pairs=['toy'], tasks=['synthetic'], methods=['speculative', 'cascade_mixture', 'speculative_block'], thresholds=[0.5],
      num_draft_tokens=[2], samplings=[checks.SamplingParams(temperature=1.0)], seeds=[0], batch_sizes=[3])[0].points
  shape = made.shape(asked, max_new_tokens=9, points=points)
  before = len(made.compile_log())
  for point in points:
    made.generate(point, asked, shape)
  assert [record.name for record in made.compile_log()[before:]] == ['prefill', 'decode', 'decode', 'decode']


@pytest.mark.parametrize('family', ['decoder-only', 'encoder-decoder'])
def test_a_tie_is_two_tokens_that_the_target_finds_equally_good(family):
  made = _runner(family)
  asked = _questions(made, 3)
  shape = made.shape(asked, max_new_tokens=6, points=_points()[0].points)
  greedy = made.generate(_points()[0].points[0], asked, shape).collected
  for row, question in enumerate(asked):
    tokens = rows.generated_tokens(greedy, row)
    for position in (0, 3, 5):
      # The greedy token is the target's best, so the full pass agrees with the cached one, and another token is no tie.
      assert made.is_tie(question, tokens, tokens, position, shape)
      other = list(tokens)
      other[position] = (tokens[position] + 1) % 896
      assert not made.is_tie(question, tokens, other, position, shape)
      assert not made.is_tie(question, other, tokens, position, shape)
  assert not _runner(family, dtype='bfloat16').is_tie(asked[0], tokens, tokens, 0, shape)


@pytest.mark.parametrize('pair, names', [
    ('gemma', ['autoregressive', 'speculative', 'token_cascade_chow']),
    ('t5', ['autoregressive', 'lossy', 'sequence_cascade_chow'])])
def test_sweep_over_a_built_in_pair(tmp_path, pair, names):
  evaluate.evaluate(
      **fake_runner.settings(
          load_runner=runner.load_runner, pairs=[pair], methods=names, num_draft_tokens=[3], max_samples=8, batch_sizes=[8],
          temperatures=[0.0, 1.0], top_p=[0.9], detail='summary', max_new_tokens=32, split='validation',
          thresholds={name: [methods.lookup(name).thresholds[3]] for name in names if methods.lookup(name).knobs}),
      output_path=str(tmp_path))
  found, _ = row_log.read(tmp_path / 'rows.jsonl')
  assert len(found) == 8 * 2 * len(names) and not [row for row in found if row['error']]
  written = report.write(tmp_path)
  for series in written.series:
    if series.method == 'speculative' and series.temperature == 0:
      assert series.equal_to_baseline[0] + series.diff_causes.get('tie', 0) == 8
    if series.rejection_gap.estimate is not None:
      assert abs(series.rejection_gap.estimate) <= 2.5 * (series.rejection_gap.high - series.rejection_gap.estimate) + 1e-6
      assert series.overlap is not None and series.drafts
  assert {row['diff_cause'] for row in found if row['temperature'] == 0} <= {None, 'none', 'lossy', 'tie'}


def test_calibration_of_a_built_in_pair_hits_the_rate_on_held_back_prompts(tmp_path):
  result = calibrate.calibrate(
      what='threshold', method='token_cascade_chow', pair='gemma', task='synthetic', deferral_rate=0.25, quality_floor=None,
      calibration_samples=32, held_back_samples=32, num_draft_tokens=3, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0,
      seed=0, batch_size=32, max_new_tokens=48, dtype='float32', bonus='rule', split='validation', data_seed=0,
      output_path=str(tmp_path))
  assert result['holds'] and abs(result['calibration']['deferral_rate'] - 0.25) < 0.02
  assert result['attainable_deferral_rate'][0] == 0.0 and result['attainable_deferral_rate'][1] > 0.9
  assert result['held_back']['effective_sample'] < result['held_back']['decisions']


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
