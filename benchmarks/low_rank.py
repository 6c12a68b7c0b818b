"""Time products and convolutions with weights of low rank against dense ones, on CPUs.

    python benchmarks/low_rank.py
    python benchmarks/low_rank.py --shape 1024x4096 --ranks 64 256 --rows 1 --rounds 5
    python benchmarks/low_rank.py --shape "" --conv 28x28x64x64 --parts 0.1 --images 1

Both run as a model runs them: `compressed` with a `LowRank` leaf, and the function with
the array. Blocks are interleaved and weights rotate (`_timing`). A figure is the median
over the rounds of (dense time / factored time): above 1 the factors are faster. In
brackets, the quartiles. The fraction is that of the dense multiplications. A kernel of
3 x 3 is split in each of the four ways, into factors with a part of its numbers.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _jax_products import JaxProduct
from _timing import Times, check, machine, measure, pin

from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.low_rank.factorizing import (
    Cp,
    Factoring,
    Spatial,
    Svd,
    Tucker,
    factorize,
    quantize_factors,
)
from jcompress.quantization import Weights
from jcompress.sites import find_sites
from jcompress.tensors import LowRank


def layer(params: Any, x: jax.Array) -> jax.Array:
    """The product that is timed."""
    out: jax.Array = x @ params["w"]
    return out


def dense(inputs: int, outputs: int, seed: int = 0) -> JaxProduct:
    """The product with the array."""
    weight = np.random.default_rng(seed).normal(size=(inputs, outputs))
    weight = (weight * inputs**-0.5).astype(np.float32)
    return JaxProduct(
        "dense",
        "xla",
        32,
        activations=32,
        run=lambda x, w: layer({"w": w}, x),
        weight=(weight,),
        stands_for=lambda: weight.T.astype(np.float64),
        tolerance=1e-5,
    )


def factored(inputs: int, outputs: int, rank: int, bits: int | None) -> JaxProduct:
    """The product with factors of random numbers, of 32 or of so many bits."""
    rng = np.random.default_rng(rank)
    sizes = ((rank, inputs), (outputs, rank))
    leaf = LowRank(
        factors=tuple(
            jnp.asarray(rng.normal(size=size) * size[1] ** -0.5, jnp.float32)
            for size in sizes
        ),
        shape=(inputs, outputs),
        dtype=jnp.float32,
        output_axes=(1,),
        input_axes=(0,),
    )
    tree = {"w": leaf}
    if bits is not None:
        sites = find_sites(layer, tree, jnp.zeros((1, inputs)))
        tree = quantize_factors(tree, [("w", Weights(format=Int(bits)))], sites=sites)
    arrays, structure = jax.tree.flatten(tree)

    def run(x: jax.Array, *flat: jax.Array) -> jax.Array:
        out: jax.Array = compressed(layer)(jax.tree.unflatten(structure, flat), x)
        return out

    return JaxProduct(
        f"rank {rank}" + ("" if bits is None else f" int{bits}"),
        "ours",
        bits or 32,
        activations=32,
        run=run,
        weight=tuple(map(np.asarray, arrays)),
        stands_for=lambda: np.asarray(tree["w"].dense(), np.float64).T,
        tolerance=1e-5,
    )


def table(args: argparse.Namespace) -> Iterator[str]:
    """One line for each rank and number of rows."""
    inputs, outputs = map(int, args.shape.split("x"))
    rng = np.random.default_rng(1)
    xs = {m: rng.normal(size=(m, inputs)).astype(np.float32) for m in args.rows}
    base = dense(inputs, outputs)
    kinds = [(rank, bits) for rank in args.ranks for bits in (None, *args.bits)]
    products = [factored(inputs, outputs, rank, bits) for rank, bits in kinds]
    for product in (base, *products):
        check(product, [xs[args.rows[0]]])
    yield "rows  weight          bytes       fraction  dense / factored"
    for rows, x in xs.items():
        times = measure([base, *products], x, rounds=args.rounds, block=args.block)
        for (rank, _), product in zip(kinds, products, strict=True):
            fraction = rank * (inputs + outputs) / (inputs * outputs)
            yield line(rows, product, fraction, times)


def line(
    rows: int, product: JaxProduct, fraction: float, times: dict[str, Times]
) -> str:
    """One contender beside the dense one."""
    ratio = np.divide(times["dense"].median, times[product.name].median)
    low, middle, high = np.percentile(ratio, (25, 50, 75))
    return (
        f"{rows:4}  {product.name:14}  {product.bytes:10,}  {fraction:8.3f}  "
        f"{middle:5.2f} ({low:.2f} to {high:.2f})"
    )


def convolution(params: Any, x: jax.Array) -> jax.Array:
    """The convolution that is timed."""
    out: jax.Array = jax.lax.conv_general_dilated(
        x, params["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out


def splits(inputs: int, outputs: int, part: float) -> dict[str, Factoring]:
    """Each way to split a kernel of 3 x 3 into factors with a part of its numbers."""
    dense = 9 * inputs * outputs
    shares = np.linspace(1, 0, 512, endpoint=False)
    ranks = [(max(1, int(s * inputs)), max(1, int(s * outputs))) for s in shares]
    fits = [
        (before, after)
        for before, after in ranks
        if before * inputs + 9 * before * after + after * outputs <= part * dense
    ]
    return {
        "svd": Svd(parameters=part),
        "spatial": Spatial(parameters=part),
        "tucker": Tucker(ranks=fits[0], sweeps=0),
        # Only the time is asked for, and it does not depend on the numbers.
        "cp": Cp(parameters=part, sweeps=1),
    }


def convolved(name: str, tree: Any, images: Sequence[np.ndarray]) -> JaxProduct:
    """The convolution with a dense or a factored leaf.

    Raises:
        ArithmeticError: the factors do not compute what their dense kernel does.
    """
    arrays, structure = jax.tree.flatten(tree)
    fn = compressed(convolution) if isinstance(tree["w"], LowRank) else convolution

    def run(x: jax.Array, *flat: jax.Array) -> jax.Array:
        return fn(jax.tree.unflatten(structure, flat), x)

    product = JaxProduct(
        name,
        "ours" if isinstance(tree["w"], LowRank) else "xla",
        32,
        activations=32,
        run=run,
        weight=tuple(map(np.asarray, arrays)),
        stands_for=lambda: np.asarray(tree["w"], np.float64),
        tolerance=1e-5,
    )
    if isinstance(tree["w"], LowRank):
        exact = np.asarray(
            convolution({"w": tree["w"].dense()}, jnp.asarray(images[0]))
        )
        difference = product.read(product.bind(images[0])(0)) - exact
        error = float(np.linalg.norm(difference) / np.linalg.norm(exact))
        if not error <= product.tolerance:
            raise ArithmeticError(f"{name}: relative error {error:.2g}")
    return product


def conv_table(args: argparse.Namespace) -> Iterator[str]:
    """One line for each way to split a kernel, part of its numbers and batch."""
    height, width, inputs, outputs = map(int, args.conv.split("x"))
    rng = np.random.default_rng(1)
    xs = {
        count: rng.normal(size=(count, height, width, inputs)).astype(np.float32)
        for count in args.images
    }
    kernel = rng.normal(size=(3, 3, inputs, outputs)) * (9 * inputs) ** -0.5
    tree = {"w": jnp.asarray(kernel, jnp.float32)}
    sites = find_sites(convolution, tree, xs[args.images[0]])
    images = list(xs.values())
    base = convolved("dense", tree, images)
    products = []
    for part in args.parts:
        for name, spec in splits(inputs, outputs, part).items():
            small = factorize(tree, [("w", spec)], sites=sites)
            products.append(convolved(f"{name} {part}", small, images))
    yield "imgs  weight          bytes       fraction  dense / factored"
    for count, x in xs.items():
        times = measure([base, *products], x, rounds=args.rounds, block=args.block)
        for product in products:
            yield line(count, product, product.bytes / base.bytes, times)


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="1024x4096", metavar="KxN")
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 128, 256, 512])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--bits", type=int, nargs="*", default=[8])
    parser.add_argument("--conv", default="14x14x128x128", metavar="HxWxKxN")
    parser.add_argument("--parts", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--block", type=float, default=0.03, help="seconds of a block")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    pin(args.threads)
    print(f"{machine()}, {args.threads} threads, jax {jax.__version__}")
    for what, rows in ((args.shape, table), (args.conv, conv_table)):
        if what:
            print(what)
            for row in rows(args):
                print(row, flush=True)


if __name__ == "__main__":
    main()
