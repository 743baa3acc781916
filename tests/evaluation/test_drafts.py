"""The analysis of drafts: what is collected place by place agrees with real decoding, and with the heads' own laws."""

import functools
import json

import numpy as np
import pytest

import fake_runner
import test_runner
from specjax.core import checks
from specjax.core.errors import ConfigError
from specjax.evaluation import analysis_plots
from specjax.evaluation import draft_collection
from specjax.evaluation import drafts
from specjax.evaluation import evaluate
from specjax.evaluation import grid
from specjax.evaluation import methods
from specjax.evaluation import report
from specjax.evaluation import rows
from specjax.metrics import drafts as drafts_lib

FAMILIES = ('decoder-only', 'encoder-decoder')


def point_of(name, *, num_draft_tokens=4):
  method = methods.lookup(name)
  return grid.Point(
      pair='small', task='synthetic', method=name, rule=method.rule, verifier=method.verifier, seed=0, batch=3,
      knob=grid.knob_values(method, {})[0], num_draft_tokens=num_draft_tokens if method.drafts else 0,
      sampling=checks.SamplingParams(temperature=0.0))


@functools.cache
def made(family):
  """(runner, questions, shape) of a small pair with four heads; texts of 14 tokens."""
  runner = test_runner._runner(family, with_parts=True)
  asked = test_runner._questions(runner, 3)
  points = [point_of(name, num_draft_tokens=4) for name in ('autoregressive', 'blockwise')]
  return runner, asked, runner.shape(asked, max_new_tokens=14, points=points)


@pytest.mark.parametrize('name, family', [
    ('prompt_lookup', 'decoder-only'), *[pytest.param(name, family, marks=pytest.mark.nightly) for name, family in (
        ('blockwise', 'decoder-only'), ('blockwise', 'encoder-decoder'), ('prompt_lookup', 'encoder-decoder'), ('speculative', 'decoder-only'),
        ('speculative', 'encoder-decoder'), ('blockwise_local', 'decoder-only'))]])
def test_collected_drafts_predict_real_decoding(name, family):
  runner, asked, shape = made(family)
  real = runner.generate(point_of(name), asked, shape).collected
  found, calls = draft_collection.collect_drafts(runner, point_of(name), asked, shape)
  for row, one in enumerate(found):
    assert one.text.tolist() == rows.generated_tokens(real, row) and one.tokens.shape == (14, 4)
    accepted = drafts_lib.agreeing(*one)
    assert len(drafts_lib.round_starts(accepted)) == real.stats.steps[row]
    limited = np.minimum(accepted[drafts_lib.round_starts(accepted)], 14)
    assert limited.sum() == real.stats.accepted[row]
  assert calls == {'blockwise': 0, 'prompt_lookup': 0, 'speculative': 4, 'blockwise_local': 4}[name]


@pytest.mark.parametrize('family', [FAMILIES[0], pytest.param(FAMILIES[1], marks=pytest.mark.nightly)])
def test_laws_of_the_heads_are_those_that_drafted(family):
  runner, asked, shape = made(family)
  found, _ = draft_collection.collect_drafts(runner, point_of('blockwise'), asked, shape)
  reader = draft_collection.HeadReader(runner, shape)
  for question, one in zip(asked, found, strict=True):
    outlook = reader.outlook(question, one.text)
    assert outlook.is_known.all() == (family == 'decoder-only') and outlook.is_known[1:].all()
    np.testing.assert_array_equal(one.lengths, np.where(outlook.is_known, 4, 0))
    np.testing.assert_array_equal(one.tokens[outlook.is_known], outlook.best[outlook.is_known])
    np.testing.assert_array_equal(drafts_lib.leading_hits(outlook.ranks, 1), drafts_lib.agreeing(*one))
    assert np.all(outlook.entropies[outlook.is_known] > 0) and np.all(outlook.entropies <= np.log(896) + 1e-5)
    inside = np.arange(14)[:, None] + np.arange(4)[None, :] < 14
    assert np.all(outlook.ranks[~inside] == 896) and np.all(outlook.ranks[1:][inside[1:]] < 896)


def settings(path, **changes):
  return dict(
      pair='small', task='synthetic', methods=['blockwise', 'prompt_lookup'], thresholds={}, num_draft_tokens=4,
      top_k=8, max_samples=8, max_new_tokens=10, batch_size=3, dtype='float32', split='test', data_seed=0,
      output_path=str(path),
      load_runner=lambda name, **options: test_runner._runner('decoder-only', with_parts=True, **options)) | changes


@pytest.fixture(scope='module')
def analysis(tmp_path_factory):
  path = tmp_path_factory.mktemp('analysis')
  return path, drafts.drafts(**settings(path))


def test_the_oracle_of_one_is_what_the_heads_do(analysis):
  _, result = analysis
  assert len(result['domains']) == 5
  for found in result['domains'].values():
    oracle = found['heads']['oracle_block_efficiency']
    assert oracle[0] == pytest.approx(found['methods']['blockwise']['block_efficiency']) and oracle == sorted(oracle)
    assert len(oracle) == 8 and len(found['heads']['mean_entropies']) == 5 and 1 <= found['heads']['h_max'] <= 5
    assert np.allclose(np.sum(found['heads']['entropy_shares'], axis=1), 1)
    against = found['methods']['prompt_lookup']['against_plain_heads']
    assert against['wins'] + against['ties'] + against['losses'] == found['tokens']
    assert found['methods']['blockwise']['against_plain_heads'] is None
  total = result['domains']['all']
  assert total['prompts'] == 8 and total['tokens'] == sum(
      found['tokens'] for name, found in result['domains'].items() if name != 'all')


def test_work_is_that_of_the_passes(analysis):
  _, result = analysis
  alone, heads = result['work']['autoregressive'], result['work']['blockwise']
  assert alone['block_efficiency'] == 1 and set(result['work']) == {
      'autoregressive', 'blockwise', 'prompt_lookup'}
  # The toy has one full layer (8 numbers of keys, 8 of values, float32) and one with a window of 24.
  assert alone['128']['cache_bytes'] == 64 * (128 + 24) and alone['2048']['cache_bytes'] == 64 * (2048 + 24)
  lookup = result['work']['prompt_lookup']
  assert lookup['128']['parameter_bytes'] == pytest.approx(alone['128']['parameter_bytes'] / lookup['block_efficiency'])
  assert lookup['128']['flops'] == pytest.approx(5 * alone['128']['flops'] / lookup['block_efficiency'])
  assert heads['128']['parameter_bytes'] * heads['block_efficiency'] > alone['128']['parameter_bytes']


def test_the_file_is_never_overwritten_by_accident(analysis):
  path, result = analysis
  kept = json.loads((path / 'drafts-small.json').read_text())
  assert kept['domains']['all'] == json.loads(json.dumps(result['domains']['all'])) and kept['session']['git']
  with pytest.raises(ConfigError, match='an analysis is there'):
    drafts.drafts(**settings(path))


def test_figures_and_tables_stand_in_the_report(analysis, tmp_path):
  path, result = analysis
  evaluate.evaluate(**fake_runner.settings(methods=['autoregressive', 'blockwise']), output_path=str(tmp_path))
  (tmp_path / 'drafts-small.json').write_text((path / 'drafts-small.json').read_text())
  written = report.write(tmp_path)
  names = {figure.name for figure in written.figures}
  for kind in ('head_entropy', 'oracle_top_k', 'repetition', 'draft_wins'):
    assert f'{kind}-small.png' in names and (tmp_path / f'{kind}-small.csv').exists()
  assert 'rising_heads.png' in names
  text = (tmp_path / 'report.md').read_text('utf-8')
  assert 'Drafts, looked at closely' in text and 'cache at 2048 (MB)' in text and drafts.text(result).splitlines()[0] in text
  assert 'Drafts, looked at closely' in (tmp_path / 'report.html').read_text('utf-8')


def test_without_heads_there_is_no_look_at_heads(tmp_path):
  result = drafts.drafts(**settings(tmp_path, methods=['prompt_lookup'], max_samples=4))
  assert {found['heads'] for found in result['domains'].values()} == {None}
  assert result['domains']['all']['methods']['prompt_lookup']['against_plain_heads'] is None
  names = {path.name.partition('-')[0] for path in analysis_plots.figures([result], tmp_path)}
  assert 'repetition' in names and not names & {'head_entropy', 'oracle_top_k', 'draft_wins', 'rising_heads.png'}


@pytest.mark.parametrize('changes, text', [
    (dict(methods=['medusa_tree']), 'medusa_tree drafts trees'), (dict(methods=['autoregressive']), 'drafts nothing'),
    (dict(methods=[]), 'empty methods'), (dict(methods=['blockwize']), 'blockwise'), (dict(top_k=0), 'top_k'),
    (dict(thresholds={'blockwise': [1.0]}), 'thresholds'), (dict(num_draft_tokens=5), '4 heads')])
def test_what_cannot_be_looked_at_is_refused(tmp_path, changes, text):
  with pytest.raises(ValueError, match=text):
    drafts.drafts(**settings(tmp_path, **changes))


def test_an_analysis_that_does_not_parse_is_named(tmp_path):
  (tmp_path / 'drafts-x.json').write_text('{')
  with pytest.raises(ConfigError, match='drafts-x.json does not parse'):
    drafts.read(tmp_path)
