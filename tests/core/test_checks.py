"""Bad parameters: each is refused by name, before anything compiles."""

import copy
import dataclasses
import inspect
import math
import warnings

import numpy as np
import pytest

from specjax.core import checks
from specjax.core import errors


@pytest.mark.parametrize('field, value', [
    ('temperature', -1), ('temperature', math.nan), ('temperature', math.inf), ('temperature', -math.inf),
    ('temperature', 2.5), ('temperature', '1'), ('temperature', None), ('temperature', True),
    ('top_p', 0), ('top_p', -0.1), ('top_p', 1.1), ('top_p', 7.0), ('top_p', math.nan), ('top_p', 'all'),
    ('min_p', -0.1), ('min_p', 1.5), ('min_p', math.nan),
    ('top_k', -2), ('top_k', 2.5), ('top_k', 'ten'), ('top_k', True),
    ('logit_bias', {3: math.nan}), ('logit_bias', {3: 'x'}), ('logit_bias', [1.0]), ('logit_bias', 1.0),
    ('logit_bias', {3: 10_001.0}), ('logit_bias', {3: -1e30}), ('logit_bias', {'3': 1.0}), ('logit_bias', {-1: 1.0}),
    ('allowed_tokens', ()), ('allowed_tokens', 5), ('allowed_tokens', '57'), ('allowed_tokens', np.array(5)),
])
def test_sampling_parameters_out_of_range_are_refused(field, value):
  values = {'temperature': 1.0, field: value}
  with pytest.raises(errors.ParamError) as caught:
    checks.SamplingParams(**values)
  assert field in str(caught.value)
  assert caught.value.expected


def test_parameters_that_switch_a_filter_off_are_normalised():
  params = checks.SamplingParams(temperature=1.0, top_k=-1)
  assert params.top_k == 0


def test_temperature_zero_resets_the_filters_with_a_warning():
  with pytest.warns(UserWarning, match='greedy'):
    params = checks.SamplingParams(temperature=0.0, top_k=5, top_p=0.5, min_p=0.1)
  assert (params.top_k, params.top_p, params.min_p) == (0, 1.0, 0.0)


def test_a_tiny_temperature_is_raised_with_a_warning():
  with pytest.warns(UserWarning, match='raised'):
    assert checks.SamplingParams(temperature=1e-40).temperature == checks.MIN_TEMPERATURE


def test_plain_parameters_do_not_warn():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    checks.SamplingParams(temperature=0.7, top_k=40, top_p=0.9, min_p=0.05)


@pytest.mark.parametrize('name', ['repetition_penalty', 'no_repeat_ngram_size', 'min_new_tokens', 'grammar'])
def test_history_dependent_processors_are_refused_by_name(name):
  with pytest.raises(errors.ParamError, match=name):
    checks.SamplingParams.from_dict({'temperature': 1.0, name: 2})


@pytest.mark.parametrize('name', checks.HISTORY_DEPENDENT)
def test_history_dependent_processors_are_refused_by_the_constructor_too(name):
  with pytest.raises(errors.ParamError, match=f'{name}: a processor that depends on the generated history'):
    checks.SamplingParams(temperature=1.0, **{name: 1.2})


def test_the_constructor_keeps_its_signature_and_copies():
  params = checks.SamplingParams(temperature=1.0, allowed_tokens=np.array([3, 1]), logit_bias={2: -10_000.0})
  assert list(inspect.signature(checks.SamplingParams).parameters)[0] == 'temperature'
  assert params.allowed_tokens == (3, 1)
  assert dataclasses.replace(params, top_k=3).top_k == 3 and copy.deepcopy(params) == params


@pytest.mark.parametrize('tokens', [[[1], [2, 3]], [1.5], [True], ['a'], [None], [-1]])
def test_allowed_tokens_are_integers(tokens):
  with pytest.raises(errors.ParamError, match='allowed token id'):
    checks.SamplingParams(temperature=1.0, allowed_tokens=tokens)


def test_unknown_sampling_parameters_are_refused():
  with pytest.raises(errors.ParamError, match='temprature'):
    checks.SamplingParams.from_dict({'temperature': 1.0, 'temprature': 2})


@pytest.mark.parametrize('value', [-1, 2**32, 1.5, '0', True])
def test_seeds_outside_32_bits_are_refused(value):
  with pytest.raises(errors.ParamError, match='seed'):
    checks.seed(value)


@pytest.mark.parametrize('value, error', [
    (-1, errors.ParamError), (1.5, errors.ParamError), ('five', errors.ParamError), (257, errors.LimitError)])
def test_draft_lengths_outside_the_range_are_refused(value, error):
  with pytest.raises(error, match='num_draft_tokens'):
    checks.num_draft_tokens(value)


@pytest.mark.parametrize('ids', [[-1], [7], [0, 2, 99]])
def test_token_ids_outside_the_vocabulary_are_refused(ids):
  with pytest.raises(errors.VocabError, match='0 <= id < 7'):
    checks.token_ids(ids, 7)


def test_token_ids_must_be_integers():
  with pytest.raises(errors.VocabError, match='integers'):
    checks.token_ids(np.array([0.5]), 7)


def test_vocabularies_of_different_size_are_refused_with_both_sizes():
  with pytest.raises(errors.VocabError) as caught:
    checks.matching_vocabularies(32100, 32128)
  assert '32100' in str(caught.value) and '32128' in str(caught.value) and 'first differing token' in str(caught.value)


def test_an_error_without_a_message_is_a_sentence_of_its_parts():
  error = errors.DataError(what='id', where='a.jsonl:3', got='', expected='a name', fix='give it one')
  assert str(error) == "a.jsonl:3: id: got '', expected a name. give it one"
