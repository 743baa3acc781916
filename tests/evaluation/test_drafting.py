"""How drafting methods are built: trees by K, parts that a pair lacks, the table of drafting methods."""

import csv
import pathlib

import pytest

import fake_runner
from specjax.core.errors import ConfigError, LimitError, ParamError
from specjax.evaluation import calibrate
from specjax.evaluation import drafting
from specjax.evaluation import drafting_table
from specjax.evaluation import evaluate
from specjax.evaluation import grid
from specjax.evaluation import methods
from specjax.evaluation import report
from specjax.evaluation import row_log

DRAFTING = [name for name, method in methods.METHODS.items() if method.group == 'drafting']


@pytest.mark.parametrize('num_levels', range(1, drafting.MOST_LEVELS + 1))
def test_the_default_tree_has_as_many_levels_as_k(num_levels):
  shape = drafting.tree_shape(num_levels)
  assert shape.max_depth == num_levels and shape.num_nodes == 3 * num_levels
  assert shape.depth.count(1) >= 2  # A second first token is likelier than a long path.


@pytest.mark.parametrize('num_levels', [0, drafting.MOST_LEVELS + 1])
def test_trees_of_other_sizes_are_refused(num_levels):
  with pytest.raises((LimitError, ParamError), match='num_draft_tokens of a tree'):
    drafting.tree_shape(num_levels)


@pytest.mark.parametrize('epsilon', [0.0, 1.0, -0.1])
def test_a_bar_outside_of_0_and_1_is_refused_before_anything_is_loaded(epsilon):
  with pytest.raises(ParamError, match='epsilon'):
    grid.knob_values(methods.lookup('medusa_typical'), {'medusa_typical': [epsilon]})


def test_trees_are_part_of_what_names_a_point_and_nothing_else_changes():
  def point(name):
    return grid.Point(
        pair='p', task='t', method=name, rule=None, knob=(), num_draft_tokens=3, verifier=None, sampling=None, seed=0, batch=1)

  assert point('speculative').tree == {} and point('blockwise').tree == {} and point('blockwise').num_nodes == 3
  assert point('medusa_tree').tree == {'tree': list(drafting.tree_shape(3).parents)} and point('medusa_tree').num_nodes == 9
  assert point('blockwise_16best_4gram').tree == {'tree': {'best_paths': 16, 'top_k': 16}}
  assert point('blockwise_16best_4gram').num_nodes == 48


def test_every_drafting_method_says_what_it_is():
  for name in DRAFTING:
    method = methods.lookup(name)
    assert set(method.needs) <= set(drafting.PARTS) and method.drafts and not method.defers
    assert method.lossless != (method.verifier == 'typical') and method.keeps_greedy
    assert method.is_tree == (method.verifier in ('recursive', 'traversal', 'typical'))
    assert (method.knob_names == ('weight',)) == bool({'rescorer', 'ngrams_2', 'ngrams_4'} & set(method.needs) and
                                                      'heads' in method.needs)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp('drafting')
  evaluate.evaluate(**fake_runner.settings(
      methods=['autoregressive', 'speculative', *DRAFTING], num_draft_tokens=[3],
      thresholds={name: [methods.lookup(name).thresholds[0]] for name in DRAFTING if methods.lookup(name).knobs},
      temperatures=[0.0, 0.7], max_samples=16, batch_sizes=[1], repeats=2), output_path=str(path))
  return path, report.write(path)


def test_the_table_has_a_line_per_method_and_a_column_per_domain(run):
  path, _ = run
  rows, _ = row_log.read(path / 'rows.jsonl')
  domains = sorted({row['category'] for row in rows})
  text = (path / 'report.md').read_text('utf-8')
  section = text[text.index('## Drafting methods'):text.index('## Latency gain')]
  assert section.count('| method ') == 4 and all(domain in section for domain in domains)
  for name in DRAFTING:
    assert f'| {name} ' in section
  assert (path / 'drafting-gemma-T0.png').exists() and 'drafting-gemma-T0_7.png' in text
  assert 'Block efficiency over that of blockwise' in section and 'Drafting methods' in (path / 'report.html').read_text('utf-8')


def test_the_numbers_of_the_table_are_those_of_the_rows(run):
  path, _ = run
  rows, _ = row_log.read(path / 'rows.jsonl')
  with open(path / drafting_table.FILE, encoding='utf-8') as file:
    table = list(csv.DictReader(file))
  domain = rows[0]['category']
  for name in ('blockwise', 'medusa_tree'):
    found = next(line for line in table if (line['method'], line['domain'], line['temperature']) == (name, domain, '0.7'))
    mine = [row for row in rows if row['method'] == name and row['category'] == domain and row['temperature'] == 0.7]
    assert float(found['block_efficiency']) == pytest.approx(
        sum(row['emitted'] for row in mine) / sum(row['target_calls'] for row in mine))
    seconds = lambda method: sum(row['choices'][0]['wall_time'][0] for row in rows if row['method'] == method and
                                 row['category'] == domain and row['temperature'] == 0.7)
    tokens = lambda method: sum(row['choices'][0]['new_tokens'][0] for row in rows if row['method'] == method and
                                row['category'] == domain and row['temperature'] == 0.7)
    assert float(found['speedup']) == pytest.approx(
        tokens(name) / seconds(name) / (tokens('autoregressive') / seconds('autoregressive')))
  plain = {line['domain']: float(line['block_efficiency']) for line in table
           if line['method'] == 'blockwise' and line['temperature'] == '0.0'}
  for line in table:
    if line['method'] == 'medusa_tree' and line['temperature'] == '0.0':
      assert float(line['gain']) == pytest.approx(float(line['block_efficiency']) / plain[line['domain']])
    if line['method'] in ('blockwise', 'prompt_lookup', 'speculative', 'autoregressive_head'):
      assert line['gain'] == ''


def test_without_drafting_methods_there_is_no_table(tmp_path):
  evaluate.evaluate(**fake_runner.settings(), output_path=str(tmp_path))
  report.write(tmp_path)
  assert 'Drafting methods' not in (tmp_path / 'report.md').read_text('utf-8')
  assert not pathlib.Path(tmp_path / drafting_table.FILE).exists()


def test_a_drafting_method_cannot_be_calibrated_for_a_deferral():
  with pytest.raises(ConfigError, match='medusa_typical defers nothing'):
    calibrate._checked(dict(
        what='threshold', method='medusa_typical', deferral_rate=0.3, quality_floor=None, calibration_samples=4,
        held_back_samples=4, batch_size=1, max_new_tokens=4, num_draft_tokens=3, seed=0))
