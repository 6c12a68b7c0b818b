"""`compressed`: run a function on a tree with compressed leaves, by the best way."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax

from jcompress.execution.finishing import finished_products
from jcompress.execution.how import Execution as Execution
from jcompress.execution.how import How as How
from jcompress.execution.reasons import why_dense
from jcompress.execution.shared import Shared, rounded_at_once, shared_data
from jcompress.execution.site import CompressedSite
from jcompress.execution.together import make_dense
from jcompress.fusion import Fusion, find_fusions
from jcompress.kernels import Implementation
from jcompress.sites import PRODUCTS, WEIGHTS
from jcompress.tensors import QTensor, WithOutliers, is_compressed
from jcompress.tensors.matrix import MatrixTensor
from jcompress.tensors.ranges import InputScale
from jcompress.tracing.handlers import Handler
from jcompress.tracing.interpreter import Program
from jcompress.tracing.replacing import Replacement
from jcompress.tracing.trace import Traced, trace
from jcompress.tracing.values import Location

P = ParamSpec("P")
R = TypeVar("R")


def compressed(
    fn: Callable[P, R],
    *,
    implementation: Implementation | None = None,
    without: Collection[Fusion] = (),
) -> Callable[P, R]:
    """Make a function accept a tree in which compressed leaves stand for arrays.

    Every product, convolution and lookup takes the compressed leaf by the best way
    there is on the platform; where no way is known, and wherever else the leaf is
    used, it is made dense on the spot. What follows a product (bias, activation
    function, residual) is done in its call, and on CPUs attention and normalisation run
    as one operation each, as `fused` has them. `inspect` tells which happened where.

    The results equal those of the function with every leaf's `dense()` in its place,
    which for a quantized tree is `fake_quant` with the same rules, and for a sparse
    one the masked model: bit for bit where the leaf is made dense or looked up, and up
    to the order of summation in products and in what runs as one operation (float32:
    within 2e-5 of the largest output in our tests). A number that is rounded for the
    next product and lies, up to that, in the middle of two integers may fall to either.

    To serve a model on a CPU, make the tree a constant of the program,
    `jax.jit(functools.partial(compressed(fn), tree))`: weights of 4 and 8 bits are then
    laid out for the kernels once, and not in every call.

    Args:
        fn: the function, written for dense leaves, such as `model.apply`; the tree is
            its first argument, by position.
        implementation: which implementation of every kernel runs; None for the fastest
            on each platform. `Implementation.XLA` for programs that hold nothing but
            what XLA compiles: written by `jax.export`, they run without this library.
        without: what is not to run as one operation (see `Fusion`).

    Returns:
        A function with the arguments and results of `fn`. It raises ValueError if the
        tree has no compressed leaf, TypeError if the tree is not given by position,
        and NotImplementedError if a kernel that it needs has no such implementation.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.execution import compressed
        >>> from jcompress.quantization import Quantize, quantize
        >>> from jcompress.sites import find_sites
        >>> layer = lambda params, x: x @ params["w"]
        >>> params, x = {"w": jnp.array([[0.5], [1.0]])}, jnp.ones((1, 2))
        >>> sites = find_sites(layer, params, x)
        >>> small = quantize(params, [("w", Quantize())], sites=sites)
        >>> compressed(layer)(small, x).shape
        (1, 1)
    """

    @functools.wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not args:
            raise TypeError(
                "compressed: the tree with compressed leaves is the first argument and "
                f"is given by position; got only the keywords {sorted(kwargs)}"
            )
        traced = trace(fn, args[0], args[1:], kwargs, write_out_calls=True)
        wanted = frozenset(Fusion) - frozenset(without)
        result: R = traced.rebuild(_evaluate(traced, {}, implementation, wanted))
        return result

    return run


def inspect(
    fn: Callable[..., Any], variables: Any, *args: Any, **kwargs: Any
) -> tuple[Execution, ...]:
    """Tell how `compressed(fn)` runs every compressed leaf; nothing is computed.

    It reports what happens on the platform that JAX uses by default here.

    Args:
        fn: the function, written for dense leaves.
        variables: a tree with compressed leaves.
        *args: further arguments of `fn`; shapes suffice.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        One entry for each use of each compressed leaf, and one for each group of
        equations that runs as one operation, in the order of execution.

    Raises:
        ValueError: the tree has no compressed leaf.
    """
    traced = trace(fn, variables, args, kwargs, write_out_calls=True)
    record: dict[Any, Execution] = {}
    jax.eval_shape(
        lambda leaves, data: _evaluate(
            dataclasses.replace(traced, leaves=leaves, data=data),
            record,
            None,
            frozenset(Fusion),
        ),
        traced.leaves,
        traced.data,
    )
    return tuple(record.values())


def _evaluate(
    traced: Traced,
    record: dict[Any, Execution],
    implementation: Implementation | None,
    wanted: frozenset[Fusion],
) -> list[Any]:
    tensors = {
        name: leaf
        for name, leaf in zip(traced.names, traced.leaves, strict=True)
        if is_compressed(leaf)
    }
    if not tensors:
        raise ValueError(
            "compressed: the tree has no compressed leaf, so there is nothing to run "
            "compressed; convert it first, for example with jcompress.quantization."
            "quantize(tree, rules, sites=sites) or jcompress.pruning.to_sparse"
        )
    for name, tensor in tensors.items():
        if isinstance(tensor, MatrixTensor):
            tensor.check_whole(f"compressed: {name!r}: ")
    portable = implementation not in (None, Implementation.CPU)
    together = make_dense(traced, tensors, record, portable=portable)
    tensors = {name: t for name, t in tensors.items() if name not in together}
    pairs = zip(traced.names, traced.leaves, strict=True)
    leaves = [together.get(name, leaf) for name, leaf in pairs]
    handlers: dict[Location, Handler] = {}
    reads: dict[Location, InputScale] = {}
    for where, use in traced.uses.items():
        if any(s.path in tensors and s.operation in WEIGHTS for s in use.sites):
            handlers[where] = CompressedSite(None, record, implementation)
    for name, tensor in tensors.items():
        kinds = QTensor | WithOutliers
        if not isinstance(tensor, kinds) or tensor.activation is None:
            continue
        products = [s for s in traced.sites.of(name) if s.operation in PRODUCTS]
        for number, site in enumerate(products):
            handlers[site.location] = CompressedSite(
                tensor.activation, record, implementation
            )
            if tensor.input_scales:
                reads[site.location] = tensor.input_scales[number]

    def made_dense(name: str, eqn: Any, here: Location) -> None:
        operation = "returned" if eqn is None else eqn.primitive.name
        why = why_dense(eqn, here in traced.uses)
        record[name, operation, why] = Execution(name, operation, How.DENSE, why)

    shared = shared_data(traced, handlers, reads)
    # What XLA alone compiles is portable, which no compiled kernel is.
    replacements: Mapping[Location, Sequence[Replacement]] = {}
    if not portable:
        replacements = _replacements(traced, handlers, shared, record, wanted)
    program = Program(
        traced=traced,
        handlers=handlers,
        made_dense=made_dense,
        replacements=replacements,
        once_made=rounded_at_once(
            shared,
            {
                at: frozenset(var for one in each for var in one.results)
                for at, each in replacements.items()
            },
        ),
    )
    outs, _ = program(leaves, traced.data, reads)
    return outs


def _replacements(
    traced: Traced,
    handlers: Mapping[Location, Any],
    shared: Mapping[Location, Mapping[Any, Shared]],
    record: dict[Any, Execution],
    wanted: frozenset[Fusion],
) -> Mapping[Location, Sequence[Replacement]]:
    """The operations that take the place of several equations."""
    placed: dict[Location, list[Replacement]] = {}
    # Where a compressed leaf meets data its handler knows best.
    taken: dict[Location, list[int]] = {}
    for here in handlers:
        taken.setdefault(here[:-1], []).append(here[-1])
    if Fusion.AFTER_PRODUCTS in wanted:
        for at, equations, one in finished_products(traced, handlers, shared):
            placed.setdefault(at, []).append(one)
            taken.setdefault(at, []).extend(equations)
    for found in find_fusions(traced.body, wanted, taken):
        placed.setdefault(found.at, []).append(found.replacement)
        entry = Execution(found.scope, found.fusion.value, How.FUSED)
        record[found.fusion, found.at, found.replacement.results] = entry
    return placed
