import pytest

from jcompress.recipes import Verification


def found(**changes):
    values = {
        "examples": 10,
        "same_predictions": 10,
        "bit_equal": True,
        "largest_difference": 0.0,
        "same_environment": True,
        "accuracy": 0.9,
    }
    return Verification(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "passed", "said"),
    [
        ({}, True, "logits bit-equal; accuracy 90.00%"),
        ({"bit_equal": False, "largest_difference": 1e-6}, False, "differ by up to 1."),
        (
            {"bit_equal": False, "same_environment": False},
            True,
            "on another machine or JAX",
        ),
        (
            {"bit_equal": False, "same_environment": False, "same_predictions": 9},
            False,
            "9 of 10 predictions",
        ),
    ],
)
def test_bits_must_agree_at_home_and_predictions_everywhere(changes, passed, said):
    verification = found(**changes)
    assert verification.passed is passed
    assert said in str(verification)
    assert str(verification).startswith("verified" if passed else "NOT verified")
