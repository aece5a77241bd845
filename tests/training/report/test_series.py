"""Preparation of numbers for the report: thinning, smoothing, binning, wording."""

import math

import numpy as np

from artefacts.pages.formats import compact, duration
from training.report import series


def test_thin_keeps_spikes_and_order():
    steps = np.arange(100_000, dtype=float)
    values = np.sin(steps / 1000)
    values[54_321] = 50.0
    kept_steps, kept = series.thin(steps, values, 500)
    assert len(kept) <= 500
    assert kept.max() == 50.0
    assert np.all(np.diff(kept_steps) > 0)
    assert series.thin(steps[:10], values[:10], 500)[0].tolist() == list(range(10))


def test_smooth_is_a_mean_that_skips_nan():
    values = np.full(200, 2.0)
    values[50] = math.nan
    np.testing.assert_allclose(series.smooth(values), 2.0)
    noisy = np.random.default_rng(0).normal(size=4000)
    assert series.smooth(noisy)[500:-500].std() < 0.15


def test_bins_average_and_fill_gaps():
    steps = np.array([1.0, 2.0, 9.0, 10.0])
    rows = np.array([[0.0], [2.0], [4.0], [6.0]])
    np.testing.assert_allclose(series.bin_columns(steps, rows, 3)[:, 0], [1.0, 2.0, 5.0])
    np.testing.assert_allclose(series.bin_columns(steps[:1], rows[:1], 1), [[0.0]])


def test_numbers_are_formatted_with_units():
    assert [compact(n) for n in (0, 999, 12_345, 4_467_267, 671e9)] == ["0", "999", "12.3 k", "4.47 M", "671 B"]
    assert compact(98e9, "FLOP/s") == "98.0 GFLOP/s"
    assert [duration(s) for s in (47.2, 192, 19_200, 183_600)] == ["47 s", "3 min 12 s", "5 h 20 min", "2 d 3 h"]
