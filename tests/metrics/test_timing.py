"""Physical limits by hand, and clocks."""

import gc

import jax.numpy as jnp
import pytest

from specjax.metrics import timing

MACHINE = timing.Machine(bandwidths=((2**18, 50e9), (2**20, 10e9)), flops=100e9)
TARGET = timing.StepCost(weight_bytes=4e6, cache_bytes=1e6, flops=2e6)


def test_a_narrow_pass_is_bound_by_bytes_and_a_wide_one_by_operations():
  assert timing.pass_limit(TARGET, MACHINE) == pytest.approx(5e6 / 10e9)
  assert timing.pass_limit(TARGET, MACHINE, width=100) == pytest.approx(100 * 2e6 / 100e9)


def test_what_fits_in_a_cache_is_read_at_the_cache_s_rate():
  assert [MACHINE.bandwidth(size) for size in (1, 2**18, 2**20 - 1, 2**20, 2**40)] == [50e9, 50e9, 50e9, 10e9, 10e9]


def test_small_products_slowed_by_the_call_do_not_lower_the_limit():
  machine = timing.Machine(bandwidths=((2**18, 1e9), (2**20, 30e9), (2**28, 10e9)), flops=1.0)
  assert [machine.bandwidth(size) for size in (2**18, 2**20, 2**28)] == [30e9, 30e9, 10e9]


def test_percent_of_limit():
  assert timing.pct_of_limit(0.5, 2.0) == 25.0
  assert timing.pct_of_limit(0.5, 0.0) is None


def test_garbage_collector_is_off_inside_and_back_on_after():
  assert gc.isenabled()
  with pytest.raises(ZeroDivisionError):
    with timing.garbage_collection_off():
      assert not gc.isenabled()
      1 / 0
  assert gc.isenabled()


def test_timed_returns_ready_outputs_and_seconds():
  outputs, seconds = timing.timed(jnp.ones, 4)
  assert outputs.shape == (4,) and seconds > 0


def test_machine_is_measured():
  machine = timing.measure_machine(sizes=(2**16, 2**20), width=64, repeats=2)
  assert [size for size, _ in machine.bandwidths] == [2**16, 2**20]
  assert machine.bandwidth(2**20) > 1e6 and machine.flops > 1e6
