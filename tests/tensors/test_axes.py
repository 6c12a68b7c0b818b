"""The canonical matrix of a leaf against loops over its axes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.sites import Operation, Site, leaf_axes
from jcompress.tensors.axes import Axes, from_matrix, matrix_shape, to_matrix


def site(operation, shape, input=(), output=(), stack=(), path="w"):
    return Site(
        path=path,
        operation=operation,
        primitive="any",
        shape=shape,
        dtype=np.dtype("float32"),
        input_axes=input,
        output_axes=output,
        stack_axes=stack,
    )


def test_roles_of_one_site():
    dot = site(Operation.DOT, (8, 4), input=(0,), output=(1,))
    assert leaf_axes([dot]) == Axes(stack=(), output=(1,), input=(0,))


def test_input_at_any_product_wins_then_stack():
    shape = (2, 3, 4, 5)
    first = site(Operation.DOT, shape, input=(1,), output=(0, 2), stack=(3,))
    second = site(Operation.DOT, shape, input=(3,), output=(1, 2), stack=(0,))
    assert leaf_axes([first, second]) == Axes(stack=(0,), output=(2,), input=(1, 3))


def test_lookups_count_only_without_a_product():
    lookup = site(Operation.LOOKUP, (10, 4), input=(1,), output=(0,))
    tied = site(Operation.DOT, (10, 4), input=(0,), output=(1,))
    assert leaf_axes([lookup]) == Axes(stack=(), output=(0,), input=(1,))
    assert leaf_axes([lookup, tied]) == Axes(stack=(), output=(1,), input=(0,))


def test_elementwise_uses_never_count():
    scale = site(Operation.ELEMENTWISE, (8, 4), output=(0, 1))
    dot = site(Operation.DOT, (8, 4), input=(0,), output=(1,))
    assert leaf_axes([scale, dot]) == leaf_axes([dot])
    with pytest.raises(ValueError, match="no product or lookup of 'w' is listed"):
        leaf_axes([scale])


def test_sites_of_several_leaves_are_refused():
    one = site(Operation.DOT, (8, 4), input=(0,), output=(1,))
    two = site(Operation.DOT, (8, 4), input=(0,), output=(1,), path="v")
    with pytest.raises(ValueError, match="several leaves"):
        leaf_axes([one, two])


CASES = [
    ((6, 5), Axes((), (1,), (0,))),
    ((6, 5), Axes((), (0,), (1,))),
    ((3, 4, 2, 5), Axes((0,), (2,), (1, 3))),
    ((2, 3, 4, 5), Axes((3,), (0, 2), (1,))),
    ((7,), Axes((), (), (0,))),
    ((7,), Axes((), (0,), ())),
    ((2, 3), Axes((0, 1), (), ())),
]


@pytest.mark.parametrize(("shape", "axes"), CASES)
def test_every_entry_lands_in_its_place(shape, axes):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    matrix = np.asarray(to_matrix(jnp.asarray(x), axes))
    stack, outputs, inputs = matrix_shape(shape, axes)
    assert matrix.shape == (*stack, outputs, inputs)

    def flat(index, chosen):
        place = 0
        for axis in chosen:
            place = place * shape[axis] + index[axis]
        return place

    for index in itertools.product(*map(range, shape)):
        where = tuple(index[axis] for axis in axes.stack)
        where += (flat(index, axes.output), flat(index, axes.input))
        assert matrix[where] == x[index]


@pytest.mark.parametrize(("shape", "axes"), CASES)
def test_round_trip_eager_and_jit(shape, axes):
    x = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)

    def there_and_back(x):
        return from_matrix(to_matrix(x, axes), axes, shape)

    for fn in (there_and_back, jax.jit(there_and_back)):
        np.testing.assert_array_equal(fn(x), x)
        assert fn(x).dtype == x.dtype
