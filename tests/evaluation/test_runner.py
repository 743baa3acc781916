"""The real loop under a sweep, on toy models with the real tokenizer."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

import fake_runner
from specjax.core import checks
from specjax.core import types
from specjax.core.errors import ConfigError, LimitError
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
from specjax.models import autoregressive_head
from specjax.models import gemma
from specjax.models import heads as heads_lib
from specjax.models import t5
from specjax.tasks import answer_ends
from specjax.tasks import judges
from specjax.tasks import synthetic
from specjax.tasks import vocabulary
from specjax.testing import exactness
from specjax.testing import toy
from specjax.training import ngram_counts


@functools.cache
def _pair(family):
  tokenizer = vocabulary.load_builtin_tokenizer()
  target, drafter = (
      toy.ToyLM(vocab_size=tokenizer.vocab_size, memory=memory_, scale=2.0, has_encoder=family == 'encoder-decoder')
      for memory_ in (2, 1))
  params = {'target': target.init(jax.random.key(0)), 'drafter': drafter.init(jax.random.key(1))}
  return pair_lib.Pair(
      name='toy', family=family, target=target, drafter=drafter, params=params, tokenizer=tokenizer)


@functools.cache
def _pair_with_parts(family):
  """Small models of the real families, and heads on the target."""
  tokenizer = vocabulary.load_builtin_tokenizer()
  if family == 'decoder-only':
    model = lambda layers: gemma.DecoderLM(gemma.DecoderConfig(
        vocab_size=tokenizer.vocab_size, embed_dim=16, hidden_dim=24, num_heads=2, num_kv_heads=1, head_dim=8,
        layer_kinds=(gemma.LOCAL, gemma.GLOBAL)[:layers], activation='gelu', window=24))
  else:
    model = lambda layers: t5.T5LM(t5.T5Config(
        vocab_size=tokenizer.vocab_size, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=24, num_encoder_layers=1,
        num_decoder_layers=layers, mlp='gated_gelu', tied_head=False, scale_logits=False))
  target, drafter = model(2), model(1)
  params = {role: exactness.random_params(one, seed, dtype=np.float32)
            for seed, (role, one) in enumerate((('target', target), ('drafter', drafter)))}
  pair = pair_lib.Pair(name='small', family=family, target=target, drafter=drafter, params=params, tokenizer=tokenizer)
  heads = heads_lib.DraftHeads(heads_lib.HeadsConfig(kind='medusa', num_heads=4, embed_dim=16))
  pair = pair.with_part('heads', heads, exactness.random_params(heads, 5, dtype=np.float32))
  head = autoregressive_head.AutoregressiveHead(autoregressive_head.AutoregressiveHeadConfig(
      embed_dim=16, hidden_dim=24, num_heads=2, num_kv_heads=1, head_dim=8))
  pair = pair.with_part('autoregressive_head', head, exactness.random_params(head, 6, dtype=np.float32))
  text = [np.random.RandomState(0).randint(4, 896, 400).tolist()]
  for order in (2, 4):
    pair = pair.with_part(f'ngrams_{order}', order, ngram_counts.train(
        text, order=order, vocab_size=896, discount_fallback=ngram_counts.FALLBACK))
  return pair


def _runner(family='decoder-only', *, dtype='float32', bonus='rule', force_length=True, detail='none', with_parts=False, **more):
  return runner.PairRunner(
      _pair_with_parts(family) if with_parts else _pair(family), checkpoint_sha256=None, dtype=dtype, bonus=bonus,
      force_length=force_length, detail=detail, **more)


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
    made.compile(point, shape)
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


# Of the drafting methods, each of which compiles a loop of its own, what runs by default.
SHORT = (('blockwise_2gram',), ('medusa_typical', 'decoder-only'))
DRAFTING = [name for name, method in methods.METHODS.items() if method.group == 'drafting']


def costly(*arguments):
  """The parameters of a test, run nightly unless they are one of `SHORT`."""
  return pytest.param(*arguments, marks=() if arguments in SHORT else pytest.mark.nightly)


@pytest.mark.parametrize('name', [costly(name) if name in DRAFTING else name for name in methods.METHODS])
def test_every_method_decodes_and_its_numbers_are_sound(name):
  method = methods.lookup(name)
  family = 'encoder-decoder' if len(name) % 2 else 'decoder-only'
  made = _runner(family, detail='summary', with_parts=bool(method.needs))
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
    for row in built:
      nodes = method.num_nodes(2) if method.drafts else 0
      assert row['target_calls'] <= row['verified_tokens'] <= row['target_calls'] + row['steps'] * nodes
      assert ('tree' in row) == method.is_tree
    if method.drafts and not method.is_tree:
      assert all(abs(row['deferral_rate'] - 1) < 1e-6 for row in built if method.lossless and row['evaluated'])
      assert all(-1e-6 <= row[field] <= 1 + 1e-6 for row in built if row['evaluated']
                 for field in ('overlap', 'tv_to_target', 'tv_goal_drafter'))
    assert len(made.compile_log()) - before <= 2  # one prefill, one decode, whatever the knob


@pytest.mark.parametrize('name, family', [
    costly(name, family) for name in DRAFTING for family in ('decoder-only', 'encoder-decoder')])
def test_greedy_output_of_every_drafting_method_is_the_targets(name, family):
  made = _runner(family, with_parts=True)
  asked = _questions(made, 3)
  points = grid.blocks(
      pairs=['small'], tasks=['synthetic'], methods=['autoregressive', name], thresholds={}, num_draft_tokens=[3],
      samplings=[checks.SamplingParams(temperature=0.0)], seeds=[0], batch_sizes=[3])[0].points[:2]
  shape = made.shape(asked, max_new_tokens=9, points=points)
  plain, drafted = (made.generate(point, asked, shape) for point in points)
  for row in range(3):
    assert rows.generated_tokens(plain.collected, row) == rows.generated_tokens(drafted.collected, row)


@pytest.mark.parametrize('name, text', [
    ('blockwise', 'blockwise on a pair without draft heads.*--heads=FILE'), ('medusa_typical', "the part 'heads'"),
    ('early_exit', 'without layers')])
def test_a_part_that_is_missing_is_named_before_anything_compiles(name, text):
  made = _runner()
  point = dataclasses.replace(_points()[0].points[1], method=name, knob=(('epsilon', 0.1),) if name == 'medusa_typical' else ())
  before = len(made.compile_log())
  with pytest.raises(ConfigError, match=text):
    made.shape(_questions(made, 2), max_new_tokens=4, points=[point])
  assert len(made.compile_log()) == before


def test_a_part_is_loaded_when_it_is_first_asked_for():
  asked, parts = [], _pair_with_parts('decoder-only')
  load = lambda role, pair: (asked.append(role), (parts.parts[role], parts.params[role]))[1]
  bare = dataclasses.replace(parts, parts={}, params={role: parts.params[role] for role in ('target', 'drafter')})
  made = runner.PairRunner(bare, checkpoint_sha256=None, dtype='float32', bonus='rule', force_length=True, load_part=load)
  points = {name: dataclasses.replace(_points()[0].points[1], method=name) for name in ('speculative', 'blockwise')}
  made.decoder(points['speculative'])
  assert not asked
  for _ in range(2):
    made.decoder(points['blockwise'])
  assert asked == ['heads']
  shape = made.shape(_questions(made, 1), max_new_tokens=4, points=list(points.values()))
  costs = made.step_costs(shape)
  assert set(costs) == {'target', 'drafter', 'rescorer', 'layers', 'heads'}
  assert costs['drafter']['weight_bytes'] < costs['target']['weight_bytes'] > costs['layers']['weight_bytes']
  table = 16 * 896
  assert costs['heads']['weight_bytes'] == 4 * (4 * 16 * 16 + 4 * 16 + table)
  assert costs['heads']['flops_per_token'] == 2 * (4 * 16 * 16 + 4 * 16 + 4 * table)


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


def _ending(question, ends):
  return question._replace(example=dataclasses.replace(question.example, check={'answer_ends': list(ends)}))


def _word_of(tokens):
  """(the text of one of some generated tokens that is known to end an answer, its position), not among the first."""
  tokenizer = vocabulary.load_builtin_tokenizer()
  for position, token in enumerate(tokens[3:], 3):
    word = tokenizer.decode([token]).strip()
    if word and (token,) in answer_ends.sequences(tokenizer, (word,)):
      return word, position
  raise AssertionError('no such token: another seed is needed')


@pytest.mark.parametrize('family', ['decoder-only', 'encoder-decoder'])
def test_an_answer_stops_behind_its_end_and_is_judged_alike(family):
  made, points = _runner(family, force_length=False), _points(temperatures=(1.0,))[0].points
  asked = _questions(made, 3)
  shape = made.shape(asked, max_new_tokens=24, points=points)
  collected = made.generate(points[0], asked, shape).collected
  free = [rows.generated_tokens(collected, row) for row in range(3)]
  assert shape.stops == (0, 0)
  ends = [_word_of(tokens) for tokens in free[:2]] + [('\nNever:', 24)]  # the last row does not write its own
  cut = [_ending(question, (word,)) for question, (word, _) in zip(asked, ends, strict=True)]
  shape = made.shape(cut, max_new_tokens=24, points=points)
  collected = made.generate(points[0], cut, shape).collected
  for row, (word, position) in enumerate(ends):
    tokens = rows.generated_tokens(collected, row)
    assert tokens == free[row][:len(tokens)] and len(tokens) <= position + 1
    assert (collected.status[row] == types.Status.STOP) == (row < 2)
    text, whole = made.text(tokens), made.text(free[row])
    assert judges.cut(text, (word,)) == judges.cut(whole, (word,)) and (word in text) == (row < 2)
  assert _runner(family).shape(cut, max_new_tokens=24, points=points).stops == (0, 0)  # a forced length


def test_tasks_with_other_ends_share_their_executables(tmp_path):
  data = {'gsm8k': {'question': 'add 1 and 2', 'answer': 'so #### 3'},
          'natural_questions': {'question': 'who', 'answer': ['me']},
          'mt_bench': {'question_id': 1, 'category': 'c', 'turns': ['one', 'two']}}
  for name, record in data.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / 'test.jsonl').write_text(json.dumps(record) + '\n')
  settings = fake_runner.settings(
      load_runner=lambda name, **options: _runner(**options), pairs=['toy'], tasks=list(data), data_dir=str(tmp_path),
      methods=['autoregressive', 'speculative'], num_draft_tokens=[2], batch_sizes=[1], max_new_tokens=6)
  evaluate.evaluate(**settings, output_path=str(tmp_path / 'run'))
  run_json = json.loads((tmp_path / 'run' / 'run.json').read_text())
  assert run_json['config']['stop_at_answer_end'] is True and run_json['sessions'][0]['n_compiles_after_warm_up'] == 0
  evaluate.evaluate(**settings, stop_at_answer_end=False, output_path=str(tmp_path / 'other'))
  other = json.loads((tmp_path / 'other' / 'run.json').read_text())
  assert other['config']['stop_at_answer_end'] is False and other['run_id'] != run_json['run_id']
  assert other['pairs']['toy']['shape']['stops'] == [0, 0]


@pytest.mark.parametrize('family', ['decoder-only', 'encoder-decoder'])
def test_likelihoods_are_those_of_the_cached_passes(family):
  made, pair = _runner(family), _pair(family)
  asked = _questions(made, 3)
  found = made.likelihoods(asked)
  for role in ('target', 'drafter'):
    model, params = getattr(pair, role), pair.params[role]
    for question, one in zip(asked, found[role], strict=True):
      tokens = pair.tokenizer.encode(question.example.targets)
      prompt = np.array([question.prompt], np.int32)
      length = np.array([len(question.prompt)], np.int32)
      start = np.array([[pair.tokenizer.pad_id]], np.int32)
      encoded = types.Prompt(start, np.ones(1, np.int32), prompt, length)
      given = types.Prompt(prompt, length) if family == 'decoder-only' else encoded
      _, cache = model.prefill(params, given, 256)
      fed = np.array([[given.tokens[0, -1], *tokens[:-1]]], np.int32)
      output, _ = model.extend(params, cache, fed, count=np.array([len(tokens)], np.int32))
      logits = np.asarray(output.logits[0], np.float64)
      laws = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
      assert one.log_prob == pytest.approx(laws[np.arange(len(tokens)), tokens].sum(), rel=1e-5)
      assert one.num_tokens == len(tokens) and one.num_bytes == len(question.example.targets.encode())
      assert one.is_best == bool((laws.argmax(-1) == tokens).all())


def test_running_text_has_a_perplexity_of_both_models(tmp_path):
  passages = (' '.join(f'word{(7 * i + j) % 50}' for j in range(100)) for i in range(4))
  (tmp_path / 'text.txt').write_text('\n\n'.join(passages))
  evaluate.evaluate(
      **fake_runner.settings(load_runner=lambda name, **options: _runner(**options), pairs=['toy'], batch_sizes=[2],
                             tasks=[f'text:{tmp_path}/text.txt', 'synthetic'], methods=['autoregressive'],
                             max_new_tokens=4, max_samples=2), output_path=str(tmp_path / 'run'))
  found = json.loads((tmp_path / 'run' / 'run.json').read_text())['likelihoods']['toy']
  assert list(found) == [f'text:{tmp_path}/text.txt']
  for role in ('target', 'drafter'):
    summary = found[f'text:{tmp_path}/text.txt'][role]
    # These models are random numbers: the mean may be more nats than a float's exponential holds, which JSON has no word for.
    estimate = summary['perplexity|unit:token']['estimate']
    assert (estimate is None or estimate > 1) and summary['texts'] == 2 and summary['bits_per_byte'] > 0


def test_more_tokens_than_a_model_was_made_for_are_refused():
  pair = _pair('decoder-only')
  short = dataclasses.replace(pair, target=dataclasses.replace(pair.target, max_length=128))
  made = runner.PairRunner(short, checkpoint_sha256=None, dtype='float32', bonus='rule', force_length=False)
  asked, points = _questions(made, 2), _points()[0].points
  longest = max(len(question.prompt) for question in asked)
  with pytest.raises(LimitError, match='max_length 128'):
    made.shape(asked, max_new_tokens=129 - longest, points=points)
  assert made.shape(asked, max_new_tokens=128 - longest, points=points).max_new_tokens == 128 - longest


def test_a_run_without_filters_has_programs_without_them_and_the_same_tokens():
  made = _runner()
  asked = _questions(made, 3)
  points = _points(temperatures=(0.7,))[0].points
  shape = made.shape(asked, max_new_tokens=5, points=points)
  assert not shape.may_truncate
  point = points[1]
  without, with_filters = (made.generate(point, asked, shape._replace(may_truncate=choice)) for choice in (False, True))
  np.testing.assert_array_equal(without.collected.tokens, with_filters.collected.tokens)
