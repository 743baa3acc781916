"""Reports: rebuilt from rows alone, and safe whatever a model wrote."""

import base64
import csv
import functools
import html.parser
import json
import re

import pytest

import fake_runner
from specjax.core.errors import ConfigError
from specjax.evaluation import aggregate
from specjax.evaluation import curves
from specjax.evaluation import evaluate
from specjax.evaluation import matched
from specjax.evaluation import methods
from specjax.evaluation import output
from specjax.evaluation import report
from specjax.evaluation import row_log
from specjax.evaluation import table

_PARTS = ('<script>alert(1)</script>', '<img src=x onerror=alert(1)>', '"><svg onload=alert(1)>', "'><iframe src=//e>",
          '</td></table><form action=//e>', '</style><link rel=stylesheet href=//e>', '<base href=//e>', '<!--',
          '<meta http-equiv=refresh content=0>', '{{ 7*7 }}', '{% raw %}', '&lt;script&gt;', '\x1b[31mred\x1b[0m',
          '\x1b]8;;http://e\x07link\x1b]8;;\x07', '\x00\x07\x08\x7f', '\u202egnp.exe', '\x9b31m', 'javascript:alert(1)',
          '\ud800', ']]>', '\u2028\u2029', '](javascript:alert(1))', '|a|b|', '`code`', '=HYPERLINK("//e")')
_WRAPS = ('{}', 'a {} b', '{}{}', '\n{}\n', '"{}"', "'{}'", '<b>{}</b>', '\t{}', '<<{}>>', '{} ' * 5)
PAYLOADS = [wrap.format(part, part) if wrap.count('{}') == 2 else wrap.replace('{}', part)
            for part in _PARTS for wrap in _WRAPS]
_ALLOWED = {
    'html', 'head', 'meta', 'title', 'style', 'body', 'main', 'h1', 'h2', 'h3', 'p', 'div', 'span', 'b', 'figure', 'img',
    'table', 'thead', 'tbody', 'tr', 'th', 'td', 'details', 'summary', 'dl', 'dt', 'dd', 'pre', 'ul', 'li'}
_CONTROL = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]')


class _Page(html.parser.HTMLParser):
  """Every element with its attributes."""

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.elements, self.text = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text.append(data)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  evaluate.evaluate(**fake_runner.settings(thresholds=[0.1, 0.9], max_samples=12), output_path=str(path))
  report.write(path)
  return path


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """A run with as little as a page can hold: two prompts, one setting."""
  path = tmp_path_factory.mktemp('small')
  evaluate.evaluate(
      **fake_runner.settings(methods=['autoregressive', 'speculative', 'cascade_chow'], thresholds=[0.5], max_samples=2,
                             batch_sizes=[1]), output_path=str(path))
  return path


def test_all_files_are_written(finished):
  names = {path.name for path in finished.iterdir()}
  assert {'rows.jsonl', 'run.json', 'questions.jsonl', 'results.json', 'acceptance.csv', 'perf_results.csv', 'report.md',
          'report.html'} <= names
  for figure in ('quality_latency-gemma', 'quality_rejection-gemma', 'latency_rejection-gemma',
                 'acceptance_by_position-gemma'):
    assert {f'{figure}.{suffix}' for suffix in ('png', 'svg', 'csv')} <= names
    assert (finished / f'{figure}.png').read_bytes().startswith(b'\x89PNG')
  assert not [name for name in names if '.tmp' in name]


def test_page_is_self_contained_and_its_policy_forbids_the_rest(finished):
  page = _Page((finished / 'report.html').read_text('utf-8'))
  policy = next(a['content'] for tag, a in page.elements if a.get('http-equiv') == 'Content-Security-Policy')
  assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
  assert 'unsafe' not in policy and 'script-src' not in policy
  assert {tag for tag, _ in page.elements} <= _ALLOWED
  sources = [a['src'] for tag, a in page.elements if tag == 'img']
  assert len(sources) == 4
  for source in sources:
    assert base64.b64decode(source.removeprefix('data:image/png;base64,')).startswith(b'\x89PNG')
  for _, attributes in page.elements:
    assert not [name for name in attributes if name.startswith('on') or name in ('style', 'href', 'action')]


def test_style_of_the_page_matches_its_hash(finished):
  import hashlib
  text = (finished / 'report.html').read_text('utf-8')
  style = text[text.index('<style>') + len('<style>'):text.index('</style>')]
  digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
  assert f"style-src &#39;sha256-{digest}&#39;" in text or f"style-src 'sha256-{digest}'" in text


def _with_text(source, target, payload):
  """A copy of a run in which everything that comes from outside is `payload`."""
  target.mkdir()
  rows, _ = row_log.read(source / 'rows.jsonl')
  lines = []
  for row in rows:
    row['choices'][0]['turns'] = [payload]
    row |= {'task': payload, 'category': payload, 'model_id': payload, 'score_name': payload, 'pair': 'p' + payload}
    row['error'] = {'class': payload, 'message': payload}
    lines.append(row_log.encode_line(row))
  (target / 'rows.jsonl').write_bytes(b''.join(lines))
  run = json.loads((source / 'run.json').read_text())
  run['pairs'] = {'p' + payload: run['pairs']['gemma'] | {'dtype': payload}}
  run['prompt_sets'] = {payload: {'sha256': payload, 'prompts': 1}}
  run['sessions'][0]['operative_config'] = payload
  run['sessions'][0]['executables'][0]['shapes'] = payload
  run['sessions'][0]['chip']['kind'] = payload
  output.write_json(target / 'run.json', run)
  asked = [{'task': payload, 'question_id': rows[0]['question_id'], 'category': payload, 'turns': [payload],
            'reference': [payload]}]
  (target / 'questions.jsonl').write_text(json.dumps(asked[0]) + '\n')


def _facts_of(path):
  """The page without figures, as fast as 250 payloads need it."""
  rows, damage = row_log.read(path / 'rows.jsonl')
  run = output.read_run(path)
  every = aggregate.all_series(rows, run)
  facts = report._facts(path, rows, run, every, matched.tables(rows, every), [], table.markdown(every), damage)
  environment = report.make_environment()
  return report._html(environment, facts), report._markdown(environment, facts), table.markdown(every)


@pytest.mark.parametrize('part', range(len(_PARTS)))
def test_hostile_text_adds_no_element_and_no_control_byte(small, tmp_path, part):
  plain = None
  for number, payload in enumerate(PAYLOADS[part * len(_WRAPS):(part + 1) * len(_WRAPS)]):
    path = tmp_path / str(number)
    _with_text(small, path, payload)
    if number == 0:
      _with_text(small, tmp_path / 'plain', 'plain')
      plain = [tag for tag, _ in _Page(_facts_of(tmp_path / 'plain')[0]).elements]
    page, markdown, terminal = _facts_of(path)
    assert [tag for tag, _ in _Page(page).elements] == plain
    assert not _CONTROL.search(page + markdown + terminal.replace('\n', ''))
    assert '<script' not in markdown and '<img' not in markdown and '<svg' not in markdown


def test_figures_take_hostile_names(small, tmp_path):
  _with_text(small, tmp_path / 'run', '<b>$x_1$ \x1b[31m ../../up')
  written = report.write(tmp_path / 'run')
  assert all(figure.parent == tmp_path / 'run' for figure in written.figures) and len(written.figures) == 2 + 1


def test_where_speculation_loses_is_said(finished, tmp_path):
  rows, _ = row_log.read(finished / 'rows.jsonl')
  path = tmp_path / 'slow'
  path.mkdir()
  for row in rows:
    if row['method'] == 'speculative':
      row['choices'][0]['wall_time'] = [5 * row['choices'][0]['wall_time'][0]]
  (path / 'rows.jsonl').write_bytes(b''.join(map(row_log.encode_line, rows)))
  output.write_json(path / 'run.json', output.read_run(finished))
  for text in _facts_of(path)[:2]:
    section = text[text.index('Where speculation loses'):]
    assert '1 of 6 settings are slower than the target alone: the whole 95 % interval lies below 1' in section
  assert 'In none of the 6 settings' in (finished / 'report.md').read_text('utf-8')


def test_settings_without_an_interval_are_counted(finished, tmp_path):
  rows, _ = row_log.read(finished / 'rows.jsonl')
  (tmp_path / 'rows.jsonl').write_bytes(b''.join(row_log.encode_line(row) for row in rows if row['batch_index'] < 2))
  output.write_json(tmp_path / 'run.json', output.read_run(finished))
  for text in _facts_of(tmp_path)[:2]:
    assert '6 of 6 have no interval: a speed-up needs three batches of different prompts' in text


def test_report_is_rebuilt_equal_from_the_rows(finished, tmp_path):
  before = {p.name: p.read_bytes() for p in finished.iterdir() if p.name not in ('rows.jsonl', 'run.json')}
  copy = tmp_path / 'copy'
  copy.mkdir()
  for name in ('rows.jsonl', 'run.json', 'questions.jsonl'):
    (copy / name).write_bytes((finished / name).read_bytes())
  report.write(copy)
  assert {p.name: p.read_bytes() for p in copy.iterdir() if p.name not in ('rows.jsonl', 'run.json')} == before


def test_torn_and_missing_rows(finished, tmp_path):
  copy = tmp_path / 'copy'
  copy.mkdir()
  with pytest.raises(ConfigError, match='no results'):
    report.write(copy)
  (copy / 'rows.jsonl').write_bytes((finished / 'rows.jsonl').read_bytes()[:-50])
  report.write(copy)  # without run.json too: no limits, no provenance, but the table
  assert (copy / 'report.html').exists()
  assert (copy / 'rows.jsonl').read_bytes().endswith(b'}\n') is False  # plotting never repairs


@pytest.fixture(scope='module')
def everything(tmp_path_factory):
  """All methods, two temperatures, two draft lengths and two top-p, recorded."""
  path = tmp_path_factory.mktemp('everything')
  evaluate.evaluate(
      **fake_runner.settings(
          methods=list(methods.METHODS), detail='summary', temperatures=[0.0, 1.0], top_p=[0.5, 1.0],
          thresholds={name: [method.thresholds[0], method.thresholds[-1]] for name, method in methods.METHODS.items()
                      if method.knobs},
          num_draft_tokens=[2, 4], max_samples=12,
          load_runner=functools.partial(fake_runner.FakeRunner, clock_noise=0.02, ties=['records/test/0/0'])),
      output_path=str(path))
  return path, report.write(path)


def test_every_method_has_its_place_in_the_page(everything):
  path, written = everything
  text = (path / 'report.html').read_text('utf-8')
  for name in methods.METHODS:
    assert f'class="mark {name}"' in text and f'.mark.{name} {{' in text
  assert {s.method for s in written.series} == set(methods.METHODS)
  assert 'In all' in text and 'agrees with the predicted one' in text
  assert text.index('Latency gain at matched quality') < text.index('<h2>Results</h2>')
  matched = json.loads((path / 'results.json').read_text())['matched_quality']
  assert {line['method'] for line in matched} == set(methods.METHODS) - {'autoregressive', 'oracle_diff'}


def test_figures_of_a_sweep_over_everything(everything):
  path, written = everything
  names = {figure.name for figure in written.figures}
  for place in ('T0-p1', 'T1-p0.5', 'T1-p1'):
    for kind in ('quality_latency', 'quality_rejection', 'quality_deferral', 'latency_rejection', 'acceptance_by_length',
                 'acceptance_by_position'):
      assert f'{kind}-gemma-{place.replace(".", "_")}.png' in names
  assert 'speedup-gemma.png' in names
  with open(path / 'quality_deferral-gemma-T1-p1.csv', encoding='utf-8') as file:
    shown = list(csv.DictReader(file))
  assert {'oracle_diff', 'sequence_cascade_chow', 'cascade_mixture'} <= {row['method'] for row in shown}
  per = {row['method']: row['per'] for row in shown}
  assert (per['oracle_diff'], per['sequence_cascade_chow'], per['cascade_mixture']) == ('token', 'query', 'evaluated draft token')
  panels = curves._panels(curves.DEFERRAL, [s for s in written.series if s.temperature == 1 and s.top_p == 1])
  assert {('sequential', 'token'), ('sequential', 'query'), ('position', 'evaluated draft token')} <= set(panels)
  assert all(curves.DEFERRAL.level(one) == level for (_, level), members in panels.items() for one in members)
  with open(path / 'quality_latency-gemma-T1-p1.csv', encoding='utf-8') as file:
    assert 'oracle_diff' not in {row['method'] for row in csv.DictReader(file)}


def test_speed_of_a_lossy_method_stands_beside_its_quality(everything):
  text = (everything[0] / 'report.html').read_text('utf-8')
  header = text[text.index('<h2>Results</h2>'):]
  places = [header.index(name) for name in ('quality [95 % CI]', 'speedup [95 % CI]', '% limit', 'AL')]
  assert places == sorted(places)
  for line in (everything[0] / 'report.md').read_text('utf-8').split('## Where speculation loses')[1].splitlines():
    if line.startswith('- gemma'):
      assert 'of the limit, quality' in line


def test_ties_are_named_in_the_table(everything):
  table_text = everything[1].table
  row = next(line for line in table_text.splitlines() if '| speculative ' in line and '| 0 ' in line)
  assert '11/12 (1 tie)' in row
