"""What position rules share."""

import jax.numpy as jnp
import numpy as np
import pytest

from specjax.rules import position
from specjax.testing import rule_oracles


@pytest.mark.parametrize('defer', [False, True])
def test_the_chosen_law_is_handed_on_bit_for_bit(defer):
  inputs = rule_oracles.rule_inputs([0.3, 0.7], [0.6, 0.4], dtype=np.float32)
  goal = position.position_mix(inputs, jnp.asarray(defer))
  assert np.array_equal(goal.log_probs, inputs.target_log_probs if defer else inputs.drafter_log_probs)
  assert goal.deferral.dtype == jnp.float32 and float(goal.deferral) == defer


def test_value_at_the_drafters_best_token():
  inputs = rule_oracles.rule_inputs([0.3, 0.7, 0.0], [0.2, 0.2, 0.6], dtype=np.float32)
  assert float(position.at_drafter_best(inputs, jnp.array([1.0, 2.0, 3.0]))) == 3
  broken = inputs.replace(drafter_log_probs=jnp.full(3, jnp.nan))
  assert np.isnan(position.at_drafter_best(broken, jnp.array([1.0, 2.0, 3.0])))
