"""What a sweep calls its files."""

import pytest

from specjax.evaluation import sweep


@pytest.mark.parametrize('pair', ['gemma', 'models/target::models/drafter', '/models/target::../drafter', '/' + 'x' * 300])
def test_a_trace_lies_in_one_directory_of_the_run_whatever_the_pair_is_called(pair):
  name = sweep.profile_name((pair, 'speculative', 3, 4))
  assert name.endswith('-speculative-3-4') and '/' not in name and not name.startswith('.') and len(name) <= 100
