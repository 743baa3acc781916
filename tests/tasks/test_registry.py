"""The seqio tasks give the same tokens as our own path, and their metrics the same scores."""

import itertools

import pytest

from specjax.core.errors import ParamError
from specjax.tasks import prompts, synthetic
from specjax.tasks.vocabulary import load_builtin_tokenizer

seqio = pytest.importorskip('seqio')


@pytest.fixture(scope='module')
def mixture():
  from specjax.tasks import registry
  return registry.register(num_train=40, num_held_out=12, seed=0)


@pytest.mark.parametrize('domain', synthetic.DOMAINS)
@pytest.mark.parametrize('split', ['train', 'test'])
def test_tokens_are_those_of_prompts(mixture, domain, split):
  tokenizer = load_builtin_tokenizer()
  dataset = seqio.get_mixture_or_task(f'{mixture}_{domain}').get_dataset(split=split, sequence_length=None,
                                                                         shuffle=False)
  expected = itertools.islice(synthetic.stream(split, seed=0, domains=(domain,)), 40 if split == 'train' else 12)
  for ours, theirs in zip(expected, dataset.as_numpy_iterator(), strict=True):
    assert theirs['inputs'].tolist() == prompts.encoder_tokens(ours, tokenizer)
    assert theirs['targets'].tolist() == prompts.target_tokens(ours, tokenizer)


def test_evaluator_scores_references_one_and_others_zero(mixture, tmp_path):
  evaluator = seqio.Evaluator(mixture, feature_converter=seqio.EncDecFeatureConverter(pack=False), eval_split='test',
                              sequence_length={'inputs': 64, 'targets': 64}, logger_cls=[], log_dir=str(tmp_path))

  def echo(dataset):
    return [(int(index), row['decoder_target_tokens'].tolist()) for index, row in dataset.as_numpy_iterator()]

  def silence(dataset):
    return [(int(index), [1]) for index, _ in dataset.as_numpy_iterator()]

  for predict, value in ((echo, 1.0), (silence, 0.0)):
    metrics, _ = evaluator.evaluate(compute_metrics=True, step=0, predict_fn=predict)
    results = metrics.result()
    assert set(results) == {f'{mixture}_{domain}' for domain in synthetic.DOMAINS}
    assert all(result == {'accuracy': value, 'exact_match': value} for result in results.values())
  evaluator.close()


def test_registering_twice_needs_the_same_sizes(mixture):
  from specjax.tasks import registry
  assert registry.register(num_train=40, num_held_out=12, seed=0) == mixture
  with pytest.raises(ParamError):
    registry.register(num_train=41, num_held_out=12, seed=0)
