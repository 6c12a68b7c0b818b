"""The weights of a model for a writer: distributions, and kernels as pictures."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.evidence.writers import TensorBoardWriter, Writer
from jcompress.leaves import named_leaves
from jcompress.sites import Operation, Site, Sites
from jcompress.tensors import is_compressed

MOST = 16
"""Outputs and inputs of a convolution whose kernels are drawn."""
_PIXELS = 16
"""Pixels of one kernel, about, so that it can be seen."""


def write_weights(
    writer: Writer, step: int, params: Any, *, sites: Sites | None = None
) -> None:
    """Write a histogram of every leaf of floats, and pictures of convolution kernels.

    Called before and after, with two steps, it shows what a transform did.

    Args:
        writer: where to.
        step: the number under which TensorBoard shows it.
        params: the tree; compressed leaves are made dense one at a time.
        sites: of the function of this tree. With them a `TensorBoardWriter` gets, for
            each convolution over two axes, its kernels side by side: a row for each of
            the first 16 outputs, a column for each of the first 16 inputs, grey for 0.

    Raises:
        ValueError: weights are not finite; the leaf is named.
        MismatchError: the sites are those of a tree of other shapes.

    Example:
        >>> import pathlib, tempfile
        >>> import jax.numpy as jnp
        >>> from jcompress.evidence import CsvWriter, write_weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with CsvWriter(folder) as writer:
        ...         write_weights(writer, 0, {"w": jnp.ones((2, 3))})
        ...     print((pathlib.Path(folder) / "histograms.csv").read_text())
        step,name,low,high,count
        0,w,1,1.015625,6
        <BLANKLINE>
    """
    for path, leaf in named_leaves(params):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            continue
        dense = np.asarray(leaf.dense() if is_compressed(leaf) else leaf)
        if not dense.size:
            continue
        dense = dense.astype(np.float32)
        writer.histogram(step, path, dense)
        site = None if sites is None else _convolution(sites, path)
        if site is None or not isinstance(writer, TensorBoardWriter):
            continue
        if site.shape != dense.shape:
            raise MismatchError(
                f"write_weights: {path!r} is {list(dense.shape)}, and in the sites "
                f"{list(site.shape)}; find the sites of the function of this tree"
            )
        writer.image(step, path, kernel_picture(dense, site))


def kernel_picture(kernel: np.ndarray[Any, Any], site: Site) -> np.ndarray[Any, Any]:
    """The kernels of a convolution side by side, uint8[height, width].

    Args:
        kernel: the leaf.
        site: its convolution, over two axes.
    """
    channels = [axis for axis in site.input_axes if axis not in site.window_axes]
    others = (*site.stack_axes, *site.output_axes)
    order = (*others, *channels, *site.window_axes)
    height, width = (kernel.shape[axis] for axis in site.window_axes)
    outputs = int(np.prod([kernel.shape[axis] for axis in others], dtype=int))
    tiles = kernel.transpose(order).reshape(outputs, -1, height, width)
    tiles = tiles[:MOST, :MOST]
    largest = float(np.abs(tiles).max()) or 1.0
    shades = np.rint(127.5 * (1 + tiles / largest)).astype(np.uint8)
    times = max(1, _PIXELS // max(height, width))
    shades = shades.repeat(times, axis=2).repeat(times, axis=3)
    # A white line between kernels.
    framed = np.pad(shades, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=255)
    rows, columns, high, wide = framed.shape
    whole: np.ndarray[Any, Any] = framed.transpose(0, 2, 1, 3).reshape(
        rows * high, columns * wide
    )
    return whole


def _convolution(sites: Sites, path: str) -> Site | None:
    for site in sites.of(path):
        if site.operation is Operation.CONV and len(site.window_axes) == 2:
            return site
    return None
