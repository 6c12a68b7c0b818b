"""What can be served, and what warming up finds out; without a network."""

import numpy as np
import pytest

from jcompress.serving import (
    ArraySpec,
    Batching,
    ProgramError,
    check_servable,
    warm_up,
)
from jcompress.serving.servable import check_rows

pytestmark = pytest.mark.once


class Model:
    """A function with one input and one output, as the server takes it."""

    def __init__(self, fn, shape=("b", 3), out=None, dtype="float32"):
        self.fn = fn
        self.inputs = (ArraySpec(name="x", shape=shape, dtype=dtype),)
        self.outputs = (ArraySpec(name="y", shape=out or shape, dtype="float32"),)
        firsts = {shape[:1], self.outputs[0].shape[:1]}
        self.batch = next(iter(firsts))[0] if len(firsts) == 1 and shape else None
        self.sizes = []

    def run(self, arrays):
        self.sizes.append(len(arrays[0]))
        return [self.fn(arrays[0])]

    def check(self, arrays):
        assert arrays[0].shape == tuple(
            arrays[0].shape[0] if isinstance(n, str) else n
            for n in self.inputs[0].shape
        )

    def describe(self):
        return {}


def test_every_size_is_run_and_rows_are_compared():
    model = Model(lambda x: x * np.float32(2))
    assert warm_up(model, (1, 2, 4)) == 0
    assert {1, 2, 4} <= set(model.sizes)
    mixing = Model(lambda x: np.round(x / np.abs(x).max() * 7))
    assert warm_up(mixing, (1, 4)) > 0.1
    assert warm_up(mixing, (4,)) > 0.1
    tokens = Model(lambda x: x.astype(np.float32), dtype="int32")
    assert warm_up(tokens, (1, 4)) == 0


def test_an_error_while_warming_up_is_not_hidden():
    def fails(x):
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError):
        warm_up(Model(fails), (1,))


def test_what_can_be_served():
    batching = Batching(sizes=(1, 2))
    assert check_servable(Model(None), batching) is batching
    with pytest.raises(ProgramError, match=r"'x' is float32 \[b, 3\].*in common"):
        check_servable(Model(None, out=(3,)), batching)
    with pytest.raises(ProgramError, match=r"float32 \[b, t\], and rows of several t"):
        check_servable(Model(None, shape=("b", "t")), batching)


def test_a_model_of_one_size_takes_fewer_rows():
    model = Model(None, shape=(8, 3))
    assert check_servable(model, Batching(sizes=(1, 2))).sizes == (8,)
    check_rows(model, [np.zeros((2, 3), np.float32)])
    for rows in (0, 9):
        with pytest.raises(AssertionError):  # the model's own check, of all rows
            check_rows(model, [np.zeros((rows, 3), np.float32)])
