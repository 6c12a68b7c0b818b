"""Which axes of a kernel slide over the data."""

import jax
import jax.numpy as jnp
import pytest

from jcompress.sites import Operation, find_sites


@pytest.mark.parametrize(
    ("layout", "shape", "window"),
    [
        (("NHWC", "HWIO", "NHWC"), (3, 2, 4, 5), (0, 1)),
        (("NCHW", "OIHW", "NCHW"), (5, 4, 3, 2), (2, 3)),
        (("NHCW", "IWOH", "NHCW"), (4, 2, 5, 3), (1, 3)),
    ],
)
def test_of_a_convolution(
    layout: tuple[str, str, str], shape: tuple[int, ...], window: tuple[int, ...]
) -> None:
    def fn(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=layout
        )

    sizes = {"N": 2, "H": 6, "W": 7, "C": 4}
    x = jnp.zeros([sizes[letter] for letter in layout[0]], jnp.float32)
    (site,) = find_sites(fn, jnp.zeros(shape, jnp.float32), x)
    assert site.operation is Operation.CONV
    assert site.window_axes == window
    assert set(window) < set(site.input_axes)


def test_of_a_leaf_that_is_stored_otherwise() -> None:
    """The leaf has the window as one axis, behind the outputs; layers are stacked."""

    def fn(kernels: jax.Array, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
            kernel = jnp.transpose(kernel.reshape(4, 3, 3, 4), (1, 2, 3, 0))
            dims = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=dims
            )
            return y, None

        return jax.lax.scan(layer, x, kernels)[0]

    (site,) = find_sites(
        fn,
        jnp.zeros((2, 4, 9, 4), jnp.float32),
        jnp.zeros((1, 5, 5, 4), jnp.float32),
    )
    assert site.window_axes == (2,)
    assert site.input_axes == (2, 3)
    assert site.stack_axes == (0,)


def test_of_a_product() -> None:
    sites = find_sites(lambda w, x: x @ w, jnp.zeros((3, 4)), jnp.zeros((2, 3)))
    assert sites[0].window_axes == ()
