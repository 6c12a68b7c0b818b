import pytest

from jcompress.report import (
    Label,
    Latency,
    label_by_bytes,
    label_by_time,
    label_by_zeros,
)


def measured(ratios):
    ones = (1.0,) * len(ratios)
    return Latency(seconds={"dense": ones, "other": tuple(ratios)}, baseline="dense")


@pytest.mark.parametrize(
    ("ratios", "label"),
    [
        ([0.5, 0.6, 0.5, 0.55, 0.5], Label.FASTER),
        ([2.0, 1.9, 2.1, 2.0, 2.2], Label.SLOWER),
        ([1.0, 1.01, 0.99, 1.0, 1.0], None),
        # Steady, but too little to matter.
        ([0.98] * 5, None),
        ([1.02] * 5, None),
        # A clear median, but the middle half of the rounds reaches past 1.
        ([0.5, 0.8, 0.9, 1.2, 1.5], None),
        ([0.5, 0.9, 1.2, 1.5, 2.0], None),
        # One outlier does not spoil a clear result.
        ([0.5, 0.5, 0.5, 0.5, 9.0], Label.FASTER),
    ],
)
def test_speed_is_claimed_beyond_the_noise_only(ratios, label):
    assert label_by_time(measured(ratios), "other") is label


def test_bytes_decide_between_smaller_and_simulated():
    assert label_by_bytes(100, 99) is Label.SMALLER
    assert label_by_bytes(100, 100) is Label.SIMULATED
    assert label_by_bytes(100, 101) is Label.SIMULATED


def test_zeros_are_only_ever_simulated():
    assert label_by_zeros(100, 10) is Label.SIMULATED
    assert label_by_zeros(100, 100) is None
