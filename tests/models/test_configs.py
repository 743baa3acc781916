"""What the published shapes say beside their sizes."""

import dataclasses
import inspect

import pytest

from specjax.core import errors
from specjax.models import gemma
from specjax.models import gemma_configs
from specjax.models import t5
from specjax.models import t5_configs

LENGTHS = {
    'gemma_2b': 8192, 'gemma_7b': 8192, 'gemma2_2b': 8192, 'gemma2_9b': 8192, 'gemma2_27b': 8192, 'gemma3_270m': 32768,
    'gemma3_1b': 32768, 'gemma3_4b': 131072, 'gemma3_12b': 131072, 'gemma3_27b': 131072, 'llama2_7b': 4096,
    'llama2_13b': 4096, 'llama3_8b': 8192, 'llama3_1_8b': 131072, 'llama3_1_70b': 131072, 'llama3_2_1b': 131072,
    'llama3_2_3b': 131072}


def test_every_decoder_has_its_released_length():
  public = {name: make for name, make in vars(gemma_configs).items() if inspect.isfunction(make) and name[0] != '_'}
  assert {name: gemma.DecoderLM(make()).max_length for name, make in public.items()} == LENGTHS


def test_a_t5_has_no_length_of_its_own():
  assert t5.T5LM(t5_configs.t5_small()).max_length is None


@pytest.mark.parametrize('config', [gemma_configs.gemma_2b(), t5_configs.t5_small()])
def test_a_length_below_1_is_refused(config):
  with pytest.raises(errors.SpecjaxError, match='max_length'):
    dataclasses.replace(config, max_length=0)
