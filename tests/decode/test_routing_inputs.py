"""What people mistype when they choose a router or a policy."""

import pytest

import specjax
from specjax.core import errors


@pytest.mark.parametrize('build', [
    lambda: specjax.token_cascade(router='chow', chunk=4),
    lambda: specjax.token_cascade(router=specjax.ChowRouter, chunk=4),
    lambda: specjax.speculative(num_draft_tokens=2, stopping='confidence')])
def test_what_is_no_router_or_policy_is_refused(build):
  with pytest.raises(errors.ParamError, match='router|stopping'):
    build()
