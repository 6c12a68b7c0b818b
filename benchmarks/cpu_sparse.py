"""At what density do sparse weights run faster than dense ones on this CPU?

    python benchmarks/cpu_sparse.py
    python benchmarks/cpu_sparse.py --rows 1 --shape 768x3072 --blocks 1x16 --rounds 9

Random blocks of a random weight are kept; each product is compared with float64 and
then timed as in `cpu_products.py`, interleaved with XLA's float32 product of the dense
weight. A figure is the dense time over the sparse one: above 1 sparse is faster. Below
each curve stands its break-even, the density at which the line through the figures
(straight in the logarithms) crosses 1. N:M patterns have one density each.

Single weights kept anywhere (`--only single`) have to beat the dense product from 80 %
zeros on at 1 to 16 rows: where one of the float32 figures there is below 1, the exit
code is 1.
"""

import argparse
import functools
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _jax_products import BASE, JaxProduct, xla_products
from _timing import Product, Times, check, machine, measure, pin, read_bandwidth

from jcompress.kernels.block_sparse_matmul import block_sparse_matmul
from jcompress.kernels.nm_sparse_matmul import nm_sparse_matmul
from jcompress.kernels.unstructured_sparse_matmul import unstructured_sparse_matmul
from jcompress.tensors.unstructured_sparse import take_values

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
BLOCKS = ("1x4", "1x16", "4x4", "8x8", "16x16", "32x32")
PATTERNS = ("2:4", "1:4", "4:8", "2:8")
KINDS = ("float32", "int8")
TABLES = ("blocks", "patterns", "single")
BAR_DENSITY, BAR_ROWS = 0.2, 16


def eight_bits(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 [N, K] and the scales [N, 1], nearest rounding."""
    scales = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    return np.rint(weight / scales).astype(np.int8), scales


def block_sparse(
    name: str, weight: np.ndarray, block: tuple[int, int], density: float, kind: str
) -> Product:
    """The product with a random part of the blocks of a weight [N, K]."""
    (outputs, inputs), (high, wide) = weight.shape, block
    grid = (outputs // high, inputs // wide)
    kept = np.random.default_rng(0).random(grid) < density
    values, scales = eight_bits(weight) if kind == "int8" else (weight, None)
    tiles = values.reshape(grid[0], high, grid[1], wide).transpose(0, 2, 1, 3)
    rows, columns = np.nonzero(kept)
    starts = np.searchsorted(rows, np.arange(grid[0] + 1))
    mask = np.repeat(np.repeat(kept, high, axis=0), wide, axis=1)
    return JaxProduct(
        name,
        "ours",
        8 if kind == "int8" else 32,
        activations=32,
        run=block_sparse_matmul,
        weight=(
            np.ascontiguousarray(tiles[rows, columns]),
            columns.astype(np.int32),
            starts.astype(np.int32),
            scales,
        ),
        stands_for=functools.partial(_masked, values, scales, mask),
        tolerance=1e-3,
    )


def nm_sparse(name: str, weight: np.ndarray, pattern: str, kind: str) -> Product:
    """The product with the n largest of every m neighbours of a weight [N, K]."""
    n, m = map(int, pattern.split(":"))
    outputs, inputs = weight.shape
    values, scales = eight_bits(weight) if kind == "int8" else (weight, None)
    groups = np.abs(weight).reshape(outputs, inputs // m, m)
    order = np.argsort(-groups, axis=-1, kind="stable")
    kept = np.zeros(groups.shape, bool)
    np.put_along_axis(kept, order[..., :n], True, axis=-1)
    mask = kept.reshape(weight.shape)
    return JaxProduct(
        name,
        "ours",
        8 if kind == "int8" else 32,
        activations=32,
        run=functools.partial(nm_sparse_matmul, n=n, m=m),
        weight=(
            values[mask].reshape(outputs, inputs // m * n),
            np.packbits(mask, axis=1, bitorder="little"),
            scales,
        ),
        stands_for=functools.partial(_masked, values, scales, mask),
        tolerance=1e-3,
    )


def single(name: str, weight: np.ndarray, density: float, kind: str) -> Product:
    """The product with single weights of [N, K], kept at random."""
    mask = np.random.default_rng(0).random(weight.shape) < density
    values, scales = eight_bits(weight) if kind == "int8" else (weight, None)
    # Those that round to 0 are not stored, as a leaf would not have them either.
    return JaxProduct(
        name,
        "ours",
        8 if kind == "int8" else 32,
        activations=32,
        run=unstructured_sparse_matmul,
        weight=(*take_values(values * mask), scales),
        stands_for=functools.partial(_masked, values, scales, mask),
        tolerance=1e-3,
    )


def _masked(
    values: np.ndarray, scales: np.ndarray | None, mask: np.ndarray
) -> np.ndarray:
    scale = np.float64(1) if scales is None else scales.astype(np.float64)
    kept: np.ndarray = values.astype(np.float64) * mask * scale
    return kept


def break_even(densities: Sequence[float], ratios: Sequence[float]) -> str:
    """The density at which a curve of ratios crosses 1, read between its points."""
    logs, heights = np.log(densities), np.log(ratios)
    above = [i for i, height in enumerate(heights) if height >= 0]
    if not above:
        return f"below {min(densities):.2f}"
    last = above[-1]
    if last == len(logs) - 1:
        return f"above {max(densities):.2f}"
    part = heights[last] / (heights[last] - heights[last + 1])
    return f"{np.exp(logs[last] + part * (logs[last + 1] - logs[last])):.2f}"


def ratio(times: dict[str, Times], name: str, kind: str) -> tuple[float, str]:
    """Dense time over the product's: the median, and with its quartiles."""
    base, own = (np.array(getattr(times[n], kind)) for n in (BASE, name))
    low, middle, high = np.percentile(base / own, [25, 50, 75])
    return float(middle), f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def tables(
    args: argparse.Namespace, weight: np.ndarray, fallen: list[str]
) -> Iterator[str]:
    """The lines of all tables; what falls is added to a list."""
    random = np.random.default_rng(1)
    inputs = weight.shape[1]
    dense = next(make() for name, make in xla_products(weight) if name == BASE)
    heads = " | ".join(f"{density:g}" for density in args.densities)
    for block in args.blocks if "blocks" in args.only else ():
        high, wide = map(int, block.split("x"))
        for kind in args.kinds:
            made = {
                f"{density:g}": block_sparse(
                    f"{density:g}", weight, (high, wide), density, kind
                )
                for density in args.densities
            }
            yield from _curve(
                args,
                f"blocks {block}, {kind}: density",
                heads,
                [dense, *made.values()],
                random,
                inputs,
                even=True,
            )
            del made
            gc.collect()
    for kind in args.kinds if "single" in args.only else ():
        made = {
            f"{density:g}": single(f"{density:g}", weight, density, kind)
            for density in args.densities
        }
        yield from _curve(
            args,
            f"single weights, {kind}: density",
            heads,
            [dense, *made.values()],
            random,
            inputs,
            even=True,
            fallen=fallen if kind == "float32" else None,
        )
    for kind in args.kinds if "patterns" in args.only else ():
        patterns = [nm_sparse(p, weight, p, kind) for p in args.patterns]
        yield from _curve(
            args,
            f"N:M, {kind}",
            " | ".join(args.patterns),
            [dense, *patterns],
            random,
            inputs,
            even=False,
        )


def _curve(
    args: argparse.Namespace,
    title: str,
    heads: str,
    products: Sequence[Product],
    random: Any,
    inputs: int,
    *,
    even: bool,
    fallen: list[str] | None = None,
) -> Iterator[str]:
    columns = len(products) - 1 + even
    yield ""
    yield f"| {title} | {heads} |" + (" break-even |" if even else "")
    yield "|---" * (columns + 1) + "|"
    for rows in args.rows:
        x = random.normal(size=(rows, inputs)).astype(np.float32)
        for product in products:
            check(product, [x])
        times = measure(products, x, rounds=args.rounds, block=args.block)
        found = [ratio(times, p.name, args.call) for p in products[1:]]
        line = f"| {rows} rows | {' | '.join(text for _, text in found)} |"
        if fallen is not None and rows <= BAR_ROWS:
            fallen.extend(
                f"{rows} rows at density {density:g}: {middle:.2f}"
                for density, (middle, _) in zip(args.densities, found, strict=True)
                if density <= BAR_DENSITY and middle < 1
            )
        if even:
            line += f" {break_even(args.densities, [middle for middle, _ in found])} |"
        yield line


def main() -> int:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="4096x4096", metavar="KxN")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--blocks", nargs="*", default=list(BLOCKS), metavar="NxK")
    parser.add_argument("--patterns", nargs="*", default=list(PATTERNS), metavar="N:M")
    parser.add_argument("--densities", type=float, nargs="+", default=list(DENSITIES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--block", type=float, default=0.03, help="seconds of a block")
    parser.add_argument("--call", choices=("median", "least"), default="median")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    pin(args.threads)
    inputs, outputs = map(int, args.shape.split("x"))
    weight = np.random.default_rng(0).normal(size=(outputs, inputs))
    weight = (weight * inputs**-0.5).astype(np.float32)
    print(
        f"{machine()}, {args.threads} threads, jax {jax.__version__}, "
        f"{jnp.dtype(jnp.float32)} inputs, weights {args.shape}, "
        f"read {read_bandwidth(args.threads) / 1e9:.1f} GB/s"
    )
    fallen: list[str] = []
    for line in tables(args, weight, fallen):
        print(line, flush=True)
    for words in fallen:
        print(f"FALLS: slower than dense: {words}")
    return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main())
