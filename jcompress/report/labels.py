"""The labels under which results may be claimed, and when each is earned."""

import enum

from jcompress.report.measure import Latency


class Label(enum.Enum):
    """What kind of evidence a result is."""

    SIMULATED = "simulated"
    """Masks or fake quantization: the bytes and the speed of the dense model."""
    SMALLER = "smaller"
    """Fewer bytes are stored and in memory."""
    FASTER = "faster"
    """Took less time here, beside the dense model, at the batch size named."""
    SLOWER = "slower"
    """Took more time here, beside the dense model, at the batch size named."""


LEAST_DIFFERENCE = 0.03
"""A median ratio of times within this of 1 is no difference, however steady."""


def label_by_bytes(dense: int, compressed: int) -> Label:
    """The label of every result of a model but its speed.

    A model that is not smaller on disk and in memory is a simulation, whatever the
    number of its zeros or the bits of its numbers.

    Args:
        dense: bytes stored of the dense model.
        compressed: bytes stored of the other.
    """
    return Label.SMALLER if compressed < dense else Label.SIMULATED


def label_by_zeros(dense: int, compressed: int) -> Label | None:
    """The label of a smaller count of nonzero or multiplied numbers.

    Zeros that are stored and multiplied like other numbers save nothing.

    Args:
        dense: the count of the dense model.
        compressed: the count of the other.

    Returns:
        `Label.SIMULATED`, or None if there is no difference.
    """
    return None if compressed == dense else Label.SIMULATED


def label_by_time(latency: Latency, name: str) -> Label | None:
    """The label of a function's measured speed beside the baseline's.

    It is a difference if the ratios of at least three quarters of the rounds lie on
    the same side of 1, and their median is more than `LEAST_DIFFERENCE` from it.

    Args:
        latency: the measurement, both functions in one run.
        name: the function.

    Returns:
        `Label.FASTER`, `Label.SLOWER`, or None if it is lost in the noise.
    """
    ratio = latency.ratio(name)
    if ratio.high < 1 and ratio.median < 1 - LEAST_DIFFERENCE:
        return Label.FASTER
    if ratio.low > 1 and ratio.median > 1 + LEAST_DIFFERENCE:
        return Label.SLOWER
    return None
