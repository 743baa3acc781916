"""Points on disk are what a router will see, and nothing else's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pairs

from specjax.core import checks
from specjax.core import errors
from specjax.core import types
from specjax.decode import generate
from specjax.decode import methods
from specjax.pairs import kl_points
from specjax.routers import divergence as routers
from specjax.tasks import prompts
from specjax.tasks import synthetic

pytest.importorskip('array_record')

SHA256 = {'target': 'a' * 64, 'drafter': 'b' * 64}
EXAMPLES = synthetic.examples('train', 7, seed=3)
PAIRS = {name: tiny_pairs.make(name) for name in ('gemma', 't5')}
NAMES = ('target_drafter', 'drafter_target')


@dataclasses.dataclass
class StopAfter:
  """A stop request that arrives before pass number `passes` + 1."""

  passes: int = 1000

  @property
  def requested(self):
    self.passes -= 1
    return self.passes < 0


def write(directory, **changes):
  arguments = dict(
      pair=PAIRS['gemma'], sha256=SHA256, examples=EXAMPLES, answers=kl_points.Answers(), batch_size=2,
      stop=StopAfter(), show_progress=False, questions_per_part=3)
  return kl_points.write(directory, **(arguments | changes))


def stored(directory, **changes):
  return kl_points.KLPoints(directory, **(dict(sha256=SHA256) | changes))


def everything(points):
  return points.records(np.arange(len(points)))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  directory = tmp_path_factory.mktemp('points')
  assert write(directory)
  return directory


def copied(written, tmp_path):
  for path in written.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  return tmp_path


@functools.cache
def extending(name, role):
  """(cache, token int32[1, 1]) -> (output, cache), compiled once."""
  model, params = getattr(PAIRS[name], role), PAIRS[name].params[role]
  return jax.jit(lambda cache, token: model.extend(params, cache, token, count=jnp.ones(1, jnp.int32)))


def step_by_step(pair, example, answer):
  """(hidden states, KL(target || drafter), the reverse) as decoding finds them: token after token through the caches."""
  question = np.array([pair.encode_prompt(example.inputs)], np.int32)
  length = np.array([question.shape[1]], np.int32)
  prompt, text = types.Prompt(question, length), [*question[0], *answer]
  if pair.family == 'encoder-decoder':
    prompt = types.Prompt(np.array([[pair.start_token]], np.int32), np.ones(1, np.int32), question, length)
    text = [pair.start_token, *answer]
  start, laws, hidden = len(text) - len(answer) - 1, {}, []
  for role in ('target', 'drafter'):
    _, cache = getattr(pair, role).prefill(pair.params[role], prompt, 160)
    laws[role] = []
    for token in text[start:-1]:
      output, cache = extending(pair.name, role)(cache, np.array([[token]], np.int32))
      laws[role].append(np.asarray(jax.nn.log_softmax(output.logits[0, 0]), np.float64))
      hidden += [np.asarray(output.hidden[0, 0])] if role == 'drafter' else []
  p, q = (np.array(laws[role]) for role in ('target', 'drafter'))
  return np.array(hidden), (np.exp(p) * (p - q)).sum(-1), (np.exp(q) * (q - p)).sum(-1)


@pytest.mark.parametrize('name', [pytest.param('gemma', marks=pytest.mark.nightly), 't5'])
def test_points_are_what_decoding_sees(tmp_path, name):
  assert write(tmp_path, pair=PAIRS[name], examples=EXAMPLES[:4], batch_size=3)
  found, points = everything(stored(tmp_path)), stored(tmp_path)
  assert points.domains == sorted({example.domain for example in EXAMPLES[:4]})
  for number in (0, 3):
    example, mine = EXAMPLES[number], found[found['question'] == number]
    answer = prompts.target_tokens(example, PAIRS[name].tokenizer)
    assert mine['position'].tolist() == list(range(len(answer)))
    assert {points.domains[domain] for domain in mine['domain']} == {example.domain}
    hidden, forward, backward = step_by_step(PAIRS[name], example, answer)
    np.testing.assert_allclose(mine['features'], hidden, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(mine['target_drafter'], forward, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(mine['drafter_target'], backward, rtol=1e-3, atol=1e-4)
    assert np.abs(forward - backward).max() > 0.01 and forward.max() > 0.1


def test_rows_are_found_by_number_in_any_order_and_in_both_directions(written):
  every = everything(stored(written))
  index = np.array([len(every) - 1, 0, 5, 5, len(every) // 2])
  for direction in NAMES:
    points = stored(written, direction=direction)
    batch = points.rows(index)
    np.testing.assert_array_equal(batch.features, every['features'][index])
    np.testing.assert_array_equal(batch.divergence, every[direction][index])
  columns = stored(written).columns()
  assert set(columns) == set(every.dtype.names) - {'features'}
  np.testing.assert_array_equal(columns['question'], every['question'])
  assert stored(written).fingerprint() != stored(written, direction='drafter_target').fingerprint()


def test_points_do_not_depend_on_the_batch(tmp_path, written):
  assert write(tmp_path, batch_size=5, questions_per_part=3)
  one, other = everything(stored(written)), everything(stored(tmp_path))
  np.testing.assert_array_equal(one['question'], other['question'])
  for name in ('features', *NAMES):
    np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_a_stopped_collection_goes_on_where_it_was_and_writes_the_same_points(tmp_path, written):
  assert not write(tmp_path, stop=StopAfter(6))  # Two batches to decode and to read for a part: in the second one.
  parts = sorted(path.name for path in tmp_path.glob('part_*'))
  assert parts == ['part_00000.array_record']
  before = (tmp_path / parts[0]).stat().st_mtime_ns
  assert write(tmp_path)
  assert (tmp_path / parts[0]).stat().st_mtime_ns == before and not list(tmp_path.glob('.tmp-*'))
  np.testing.assert_array_equal(everything(stored(tmp_path)), everything(stored(written)))
  assert write(tmp_path, stop=StopAfter(0))  # Nothing is computed twice: it would stop before the first pass.


@pytest.mark.parametrize('change, named', [
    (dict(sha256={'target': 'c' * 64, 'drafter': 'b' * 64}), 'target_sha256'),
    (dict(sha256={'target': 'a' * 64, 'drafter': 'c' * 64}), 'drafter_sha256'),
    (dict(examples=EXAMPLES[:5]), 'questions'),
    (dict(answers=kl_points.Answers(kind='target')), 'answers'), (dict(questions_per_part=4), 'questions_per_part')])
def test_points_of_something_else_are_not_overwritten(written, change, named):
  with pytest.raises(errors.ConfigError, match=f'{named} of the KL points'):
    write(written, **change)


@pytest.mark.parametrize('role', ['target', 'drafter'])
def test_points_of_another_pair_are_refused(written, role):
  with pytest.raises(errors.CheckpointError, match=f'{role}_sha256 of KL points.*another pair'):
    stored(written, sha256=SHA256 | {role: 'c' * 64})


@pytest.mark.parametrize('damage', ['missing', 'truncated', 'empty', 'another'])
def test_a_damaged_part_is_named(written, tmp_path, damage):
  directory = copied(written, tmp_path)
  path = directory / 'part_00001.array_record'
  if damage == 'missing':
    path.unlink()
  elif damage == 'another':
    path.write_bytes((directory / 'part_00000.array_record').read_bytes())
  else:
    path.write_bytes(path.read_bytes()[:100] if damage == 'truncated' else b'')
  with pytest.raises(errors.CheckpointError, match='part_00001'):
    stored(directory)


def test_a_flipped_byte_is_seen_when_it_is_read(written, tmp_path):
  path, every = copied(written, tmp_path) / 'part_00001.array_record', everything(stored(written))
  mine = np.flatnonzero(every['question'] == 4)
  content = bytearray(path.read_bytes())
  for number in mine[[0, -1]]:
    place = content.index(every[number].tobytes()) + 9
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(errors.CheckpointError, match='part_00001'):
      stored(tmp_path).records(mine)
    content[place] ^= 1
  path.write_bytes(content)
  np.testing.assert_array_equal(everything(stored(tmp_path)), every)


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'{"domains": []}'])
def test_a_damaged_manifest_is_named(written, tmp_path, content):
  (copied(written, tmp_path) / 'manifest.json').write_bytes(content)
  with pytest.raises(errors.CheckpointError, match='manifest of KL points'):
    stored(tmp_path)


def test_no_questions_are_refused(tmp_path):
  with pytest.raises(errors.DataError, match='questions'):
    write(tmp_path, examples=[])


def test_a_broken_law_names_its_question(tmp_path):
  pair = PAIRS['gemma']
  broken = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), pair.params['drafter'])
  with pytest.raises(errors.LogitsError, match=EXAMPLES[0].id.split('/')[0]):
    write(tmp_path, pair=dataclasses.replace(pair, params={**pair.params, 'drafter': broken}), examples=EXAMPLES[:1])


@pytest.mark.nightly
@pytest.mark.parametrize('kind', ['target', 'drafter', 'backoff'])
def test_sampled_answers_are_those_of_the_models_that_are_named(kind):
  pair, examples = PAIRS['t5'], EXAMPLES[:3]
  level = {'level': 0.5} if kind == 'backoff' else {}
  sampled = kl_points.Answers(kind=kind, seed=4, max_new_tokens=6, **level).tokens(pair, examples, 3)
  assert all(1 <= len(tokens) <= 6 for tokens in sampled)
  decode = lambda method: [tokens.tolist() for tokens in generate.generate(
      pair, [example.inputs for example in examples], method=method, sampling=checks.SamplingParams(temperature=1.0),
      max_new_tokens=6, seed=4, example_ids=[example.id for example in examples]).tokens]
  threshold = {'backoff': 0.5, 'target': -1.0, 'drafter': 1e9}
  routed = {
      of: decode(methods.token_cascade(router=routers.KLOracle(threshold=one), chunk=4))
      for of, one in threshold.items()}
  assert sampled == routed[kind] and routed['target'] != routed['drafter']


@pytest.mark.nightly
def test_points_of_sampled_answers_survive_a_stop(tmp_path):
  answers = kl_points.Answers(kind='backoff', level=0.5, seed=1, max_new_tokens=5)
  arguments = dict(pair=PAIRS['t5'], answers=answers, examples=EXAMPLES[:4], questions_per_part=2)
  assert write(tmp_path / 'whole', **arguments)
  assert not write(tmp_path / 'parts', stop=StopAfter(3), **arguments) and write(tmp_path / 'parts', **arguments)
  np.testing.assert_array_equal(everything(stored(tmp_path / 'whole')), everything(stored(tmp_path / 'parts')))


@pytest.mark.parametrize('change', [
    dict(kind='teacher'), dict(kind='backoff'), dict(level=1.0), dict(kind='backoff', level=-1.0),
    dict(max_new_tokens=0), dict(kind='backoff', level=float('nan'))])
def test_answers_without_meaning_are_refused(change):
  with pytest.raises(errors.ParamError):
    kl_points.Answers(**change)


def test_joined_points_are_one_behind_the_other(written, tmp_path):
  assert write(tmp_path, examples=EXAMPLES[5:])
  parts = [stored(written), stored(tmp_path)]
  joined = kl_points.Joined(parts)
  assert len(joined) == len(parts[0]) + len(parts[1])
  index = np.array([len(joined) - 1, 0, len(parts[0]), len(parts[0]) - 1, 3])
  every = np.concatenate([everything(part) for part in parts])
  batch = joined.rows(index)
  np.testing.assert_array_equal(batch.features, every['features'][index])
  np.testing.assert_array_equal(batch.divergence, every['target_drafter'][index])
  columns = joined.columns()
  np.testing.assert_array_equal(columns['target_drafter'], every['target_drafter'])
  assert columns['domain'][0] == EXAMPLES[0].domain
  assert set(columns['domain']) == {example.domain for example in EXAMPLES}
