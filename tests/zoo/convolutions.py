"""Plain JAX: convolutions in several layouts, and a gradient of one."""

from typing import Any

import jax
import jax.numpy as jnp

from zoo._case import Case, case, conv, data, fields, leaf


def _conv_case(shape: tuple[int, ...], kernel: tuple[int, ...], **more: Any) -> Any:
    options = {"window_strides": (1,) * (len(shape) - 2), "padding": "SAME", **more}
    return fields(
        fn=lambda p, x: jax.lax.conv_general_dilated(x, p["w"], **options),
        variables={"w": leaf(*kernel)},
        args=(data(*shape),),
    )


@case
def conv_channels_first() -> Case:
    return Case(
        **_conv_case((4, 3, 6, 6), (5, 3, 3, 2)),
        weights={"w": [conv((1, 2, 3), (0,), 4 * 6 * 6 * 3 * 3 * 2 * 5)]},
    )


@case
def conv_odd_layout() -> Case:
    return Case(
        **_conv_case(
            (6, 4, 3, 8),
            (3, 5, 2, 3),
            window_strides=(2, 1),
            dimension_numbers=("HNCW", "IOHW", "WNHC"),
        ),
        weights={"w": [conv((0, 2, 3), (1,), 4 * 3 * 8 * 2 * 3 * 3 * 5)]},
    )


@case
def conv_one_dimension_causal() -> Case:
    return Case(
        **_conv_case(
            (4, 7, 6),
            (3, 1, 6),
            padding=[(2, 0)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=6,
        ),
        weights={"w": [conv((0, 1), (2,), 4 * 7 * 3 * 1 * 6)]},
    )


@case
def conv_patches() -> Case:
    """Patch embedding: a kernel kept flat and reshaped for the convolution."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        w = p["w"].reshape(2, 2, 3, 5)
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, w, (2, 2), "VALID", dimension_numbers=dims
        )

    return Case(
        fn=fn,
        variables={"w": leaf(12, 5)},
        args=(data(4, 6, 6, 3),),
        weights={"w": [conv((0,), (1,), 4 * 3 * 3 * 2 * 2 * 3 * 5)]},
    )


@case
def energy_conv() -> Case:
    """The backward convolution contracts over the output channels."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        def total(x: jax.Array) -> jax.Array:
            y = jax.lax.conv_general_dilated(x, p["w"], (1, 1), "SAME")
            return jnp.sum(jnp.tanh(y))

        return jax.grad(total)(x)

    return Case(
        fn=fn,
        variables={"w": leaf(5, 3, 3, 3)},
        args=(data(4, 3, 6, 6),),
        weights={
            "w": [
                conv((1, 2, 3), (0,), 4 * 6 * 6 * 3 * 3 * 3 * 5),
                conv((0, 2, 3), (1,), 4 * 6 * 6 * 3 * 3 * 5 * 3),
            ]
        },
    )
