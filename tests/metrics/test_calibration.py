"""Figures of calibration by hand, and against brute force."""

import itertools

import numpy as np
import pytest
from scipy import optimize

from specjax.core import errors
from specjax.metrics import calibration

# Two of three pairs are in order, one is a tie.
SCORES, LABELS = [0.1, 0.4, 0.4, 0.9], [0, 0, 1, 1]


def random_case(seed, size=200, digits=1):
  rng = np.random.default_rng(seed)
  scores = np.round(rng.standard_normal(size), digits)
  labels = (rng.random(size) < 1 / (1 + np.exp(-1.5 * scores))).astype(int)
  return scores, labels


def logistic(x):
  return 1 / (1 + np.exp(-np.asarray(x)))


def test_auc_counts_pairs_and_halves_ties():
  assert calibration.auc(SCORES, LABELS) == (1 + 0.5 + 1 + 1) / 4
  for seed in range(5):
    scores, labels = random_case(seed)
    pairs = list(itertools.product(scores[labels == 1], scores[labels == 0]))
    wanted = np.mean([1.0 if one > other else 0.5 if one == other else 0.0 for one, other in pairs])
    np.testing.assert_allclose(calibration.auc(scores, labels), wanted, rtol=1e-12)


def test_bins_of_equal_mass_by_hand():
  probabilities, labels = [0.5, 0.1, 0.2, 0.9, 0.6, 0.3], [1, 0, 1, 1, 0, 0]
  low, high = calibration.reliability_bins(probabilities, labels, num_bins=2)
  assert low == pytest.approx((0.1, 0.3, 3, 0.2, 1 / 3)) and high == pytest.approx((0.5, 0.9, 3, 2 / 3, 2 / 3))
  assert calibration.expected_calibration_error(probabilities, labels, num_bins=2) == pytest.approx((1 / 3 - 0.2) / 2)


def test_bins_of_equal_width_by_hand_and_none_is_empty():
  probabilities, labels = [0.0, 0.1, 0.5, 0.9, 1.0], [0, 0, 1, 1, 0]
  found = calibration.reliability_bins(probabilities, labels, num_bins=4, bins='width')
  assert [(one.low, one.high, one.count) for one in found] == [(0, 0.25, 2), (0.5, 0.75, 1), (0.75, 1, 2)]
  error = calibration.expected_calibration_error(probabilities, labels, num_bins=4, bins='width')
  assert error == pytest.approx((2 * 0.05 + 0.5 + 2 * 0.45) / 5)


def test_equal_probabilities_share_a_bin_so_that_their_order_does_not_matter():
  probabilities, labels = np.array([0.2] * 6 + [0.8] * 3), np.array([0, 0, 0, 1, 1, 1, 1, 1, 0])
  found = calibration.reliability_bins(probabilities, labels, num_bins=3)
  assert [one.count for one in found] == [6, 3]
  shuffled = np.random.default_rng(0).permutation(9)
  assert calibration.reliability_bins(probabilities[shuffled], labels[shuffled], num_bins=3) == found


@pytest.mark.parametrize('bins', ['mass', 'width'])
def test_every_score_is_in_one_bin(bins):
  scores, labels = random_case(3, digits=2)
  found = calibration.reliability_bins(logistic(scores), labels, num_bins=7, bins=bins)
  assert sum(one.count for one in found) == len(scores)
  assert sum(one.count * one.rate for one in found) == pytest.approx(labels.sum())
  assert all(one.low <= one.mean_probability <= one.high for one in found)


def test_the_base_rate_has_no_calibration_error_and_no_skill():
  labels = np.array([1, 0, 0, 0])
  rate = np.full(4, 0.25)
  assert calibration.expected_calibration_error(rate, labels) == 0
  assert calibration.brier_skill(rate, labels) == 0 and calibration.auc(rate, labels) == 0.5
  assert calibration.brier_skill(labels, labels) == 1
  assert calibration.brier_score([0.5, 1.0], [1, 1]) == 0.125


def test_one_class_has_neither_auc_nor_skill():
  assert calibration.auc([0.1, 0.2], [1, 1]) is None and calibration.brier_skill([0.1, 0.2], [0, 0]) is None
  assert calibration.fit_temperature([0.1, 0.2], [1, 1]) == 1


def test_the_temperature_has_the_least_log_loss():
  scores, labels = random_case(1, size=4000, digits=3)

  def loss(temperature):
    law = np.clip(logistic(scores / temperature), 1e-12, 1 - 1e-12)
    return -np.mean(np.where(labels, np.log(law), np.log(1 - law)))

  wanted = optimize.minimize_scalar(loss, bounds=(0.1, 10), method='bounded', options={'xatol': 1e-8}).x
  np.testing.assert_allclose(calibration.fit_temperature(scores, labels), wanted, rtol=1e-4)
  np.testing.assert_allclose(calibration.fit_temperature(3 * scores, labels), 3 * wanted, rtol=1e-4)


@pytest.mark.parametrize('logits, labels, end', [([-2, -1, 1, 2], [0, 0, 1, 1], 0), ([-2, -1, 1, 2], [1, 1, 0, 0], 1)])
def test_classes_that_no_temperature_fits_get_an_end_of_the_range(logits, labels, end):
  assert calibration.fit_temperature(logits, labels) == calibration.TEMPERATURES[end]


def test_isotonic_regression_by_hand():
  np.testing.assert_allclose(calibration.isotonic_regression([1, 3, 2, 4], [1, 1, 1, 1]), [1, 2.5, 2.5, 4])
  np.testing.assert_allclose(calibration.isotonic_regression([3, 2, 1], [1, 2, 1]), [2, 2, 2])
  np.testing.assert_allclose(calibration.isotonic_regression([5, 0], [1, 4]), [1, 1])


def test_isotonic_regression_is_the_best_of_all_partitions():
  """Brute force: the solution is constant on some partition into runs, each at its mean."""
  rng = np.random.default_rng(2)
  for _ in range(20):
    values, weights = rng.integers(0, 5, 7).astype(float), rng.integers(1, 4, 7).astype(float)
    best = np.inf
    for cuts in itertools.product((False, True), repeat=6):
      runs = np.split(np.arange(7), np.flatnonzero(cuts) + 1)
      fitted = np.concatenate([np.full(len(run), np.average(values[run], weights=weights[run])) for run in runs])
      if (np.diff(fitted) >= -1e-12).all():
        best = min(best, float(weights @ (values - fitted) ** 2))
    found = calibration.isotonic_regression(values, weights)
    assert (np.diff(found) >= 0).all() and float(weights @ (values - found) ** 2) == pytest.approx(best)


def test_knots_increase_stay_few_and_calibrate():
  rng = np.random.default_rng(5)
  scores = rng.standard_normal(20_000)
  chance = logistic(3 * scores) ** 2  # No temperature gives this.
  labels = rng.random(20_000) < chance
  x, y = calibration.isotonic_knots(scores[:10_000], labels[:10_000], max_knots=32)
  assert len(x) == len(y) == 32 and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all() and 0 <= y[0] <= y[-1] <= 1
  calibrated = np.interp(scores[10_000:], x, y)
  assert calibration.expected_calibration_error(calibrated, labels[10_000:]) < 0.02
  assert calibration.expected_calibration_error(logistic(scores[10_000:]), labels[10_000:]) > 0.1


def test_equal_scores_make_one_knot():
  x, y = calibration.isotonic_knots([0, 0, 0, 0, 1], [0, 1, 0, 1, 1], max_knots=5)
  assert x.tolist() == [0, 1] and y.tolist() == [0.5, 1]
  x, y = calibration.isotonic_knots([2.0, 2.0], [1, 0])
  assert x.tolist() == [2] and y.tolist() == [0.5]


@pytest.mark.parametrize('scores, labels, named', [
    ([], [], 'not empty'), ([0.1], [0, 1], 'one length'), ([0.1], [2], 'labels.*0 or 1'),
    ([np.nan], [1], 'finite'), ([np.inf], [1], 'finite')])
@pytest.mark.parametrize('function', [
    calibration.auc, calibration.brier_score, calibration.fit_temperature, calibration.isotonic_knots,
    calibration.reliability_bins])
def test_what_is_no_score_or_label_is_refused(function, scores, labels, named):
  with pytest.raises(errors.ParamError, match=named):
    function(scores, labels)


def test_probabilities_beyond_one_are_refused():
  with pytest.raises(errors.ParamError, match=r'\[0, 1\]'):
    calibration.brier_score([1.1], [1])
