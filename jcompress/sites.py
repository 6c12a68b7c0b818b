"""Where the leaves of a parameter tree meet data in a function, and in which role.

A **site** is one operation of the function in which a leaf is used: a product, a
convolution, a lookup, or an element-wise operation such as adding a bias. `find_sites`
lists them; rules, transforms and reports read that list.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jcompress.tensors.axes import Axes as Axes
from jcompress.tracing.site import PRODUCTS as PRODUCTS
from jcompress.tracing.site import WEIGHTS as WEIGHTS
from jcompress.tracing.site import Operation as Operation
from jcompress.tracing.site import Site as Site
from jcompress.tracing.site import Sites as Sites
from jcompress.tracing.trace import trace

__all__ = [
    "PRODUCTS",
    "WEIGHTS",
    "Axes",
    "Operation",
    "Site",
    "Sites",
    "find_sites",
    "leaf_axes",
]


def find_sites(
    fn: Callable[..., Any], variables: Any, *args: Any, **kwargs: Any
) -> Sites:
    """Find every place in which a leaf of `variables` meets data in `fn`.

    Traces `fn(variables, *args, **kwargs)` once; nothing is computed. Arrays may be
    given as `jax.ShapeDtypeStruct`; anything that is no array (a bool, a string, None)
    reaches `fn` as it is. A compressed leaf stands for the dense array it replaces.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        variables: the tree whose leaves are followed.
        *args: further arguments of `fn`.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        The table of sites.

    Raises:
        TypeError: `fn` is a model or its parameters, not a function of them.
        ValueError: `variables` has no array leaf.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def layer(params, x):
        ...     return x @ params["w"] + params["b"]
        >>> params = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
        >>> sites = find_sites(layer, params, jnp.ones((2, 3)))
        >>> sites.of("w")[0].input_axes, sites.macs
        ((0,), 24)
    """
    return trace(fn, variables, args, kwargs).sites


def leaf_axes(sites: Sequence[Site]) -> Axes:
    """Tell the role of each axis of a leaf from all the sites where it is a weight.

    An axis that any product sums over is an input axis; else it is a stack axis if it
    is one at any product; else an output axis. Lookups count only for a leaf that no
    product uses, so a tied embedding has the axes of its product.

    Args:
        sites: sites of one leaf, such as `Sites.of(path)`.

    Returns:
        The axes, each field in increasing order.

    Raises:
        ValueError: no product or lookup is among the sites, or they are of more than
            one leaf.
    """
    paths = {site.path for site in sites}
    if len(paths) > 1:
        raise ValueError(f"these are sites of several leaves: {sorted(paths)}")
    products = [site for site in sites if site.operation in PRODUCTS]
    used = products or [site for site in sites if site.operation in WEIGHTS]
    if not used:
        name = f"of {paths.pop()!r} " if paths else ""
        raise ValueError(
            f"no product or lookup {name}is listed, so none of its axes has a role"
        )
    summed = {axis for site in used for axis in site.input_axes}
    stacked = {axis for site in used for axis in site.stack_axes} - summed
    every = range(len(used[0].shape))
    return Axes(
        stack=tuple(axis for axis in every if axis in stacked),
        output=tuple(axis for axis in every if axis not in summed | stacked),
        input=tuple(axis for axis in every if axis in summed),
    )
