"""`write_onnx`: a compressed model as an ONNX file that onnxruntime runs."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from jcompress.execution import compressed
from jcompress.execution.shared import Shared, shared_data
from jcompress.formats import Int
from jcompress.interchange.files import Path, refuse_place, replacing
from jcompress.interchange.onnx_lowering import (
    OnnxError,
    checked,
    is_float_of_another_size,
    require,
    to_proto,
)
from jcompress.interchange.onnx_pieces import copied
from jcompress.interchange.onnx_sites import OnnxSite
from jcompress.interchange.onnx_trying import compare, tried
from jcompress.interchange.onnx_weights import in_onnx
from jcompress.leaves import named_leaves
from jcompress.sites import PRODUCTS, WEIGHTS, Operation
from jcompress.tensors import (
    Codebook,
    CompressedTensor,
    LowRank,
    QTensor,
    WithOutliers,
    is_compressed,
)
from jcompress.tensors.ranges import InputScale
from jcompress.tracing.interpreter import OnceMade, Program
from jcompress.tracing.trace import Traced, trace
from jcompress.tracing.values import Location

_SAME, _ROUNDED = 0.02, 0.2
"""How far results may be apart, relative to their length, before the file is refused.

Mostly it is a millionth. But where data is rounded, a number that is on the edge may
become the next one; and far more of them if the ranges are others.
"""


class WrittenDense(UserWarning):
    """A compressed leaf has no form in ONNX and takes its dense size in the file."""


def write_onnx(
    path: Path,
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    portable: bool = False,
    shared_range: bool = False,
    example: Sequence[Any] = (),
) -> int:
    """Write a model with its weights as an ONNX file, which needs neither JAX nor us.

    Compressed leaves stay small in the file, and what they compute stays what
    `jcompress.execution.compressed` computes, up to the order of summation:

    - Integers of up to 4 bits in products are a `MatMulNBits`, an operator that
      onnxruntime adds; those of 2 and 3 bits take 4. Those of 5 to 8 bits, and
      float8_e4m3fn, take a byte and become floats by a `Cast` and a `Mul`. onnxruntime
      does that when it loads the file and has the dense weight in memory: its products
      of floats with 8-bit weights take several times as long.
    - In convolutions, in products of groups that `MatMulNBits` does not have (it has
      multiples of 16) and of 16 bits, the numbers go through a `DequantizeLinear`.
    - Where data is quantized, each row by its own range or all by a stored one, it is
      rounded by plain nodes to the integers that our kernels take, for `MatMulInteger`
      or `ConvInteger`. One range for a whole batch is a `DynamicQuantizeLinear`.
      x86 processors without VNNI add pairs of these products in 16 bits, where the
      largest are cut off: weights of `Int(7)` are safe there.
    - Tables keep their rows as integers of 8 bits; only picked ones become floats.
    - Codebooks of one table are a `Gather`, factors a product each.

    Everything else (sparse leaves, codes of several weights, outliers) is written
    dense, with a warning that names the leaf.

    jax2onnx writes all that is not a compressed leaf. While it runs, it replaces
    functions of JAX and Flax; do not trace anything in other threads meanwhile.

    Args:
        path: the file, written as a whole or not at all.
        fn: the function, written for dense leaves; `fn(params, *args)`.
        params: its tree, with compressed leaves or without, in float32.
        *args: what follows the tree: arrays, or `jax.ShapeDtypeStruct` with the sizes
            of `jax.export.symbolic_shape` for axes of any length. The inputs of the
            file are their arrays in order, named "input", or "input_0" and so on; its
            results "output", or "output_0" and so on.
        portable: use nothing but ONNX's own operators, for other runtimes:
            `DequantizeLinear` and `MatMul`, and for stored ranges of data a
            `QuantizeLinear` and its reverse. onnxruntime reads the first two as one,
            is slower, and rounds the data to 8 bits there (an error of about a
            hundredth) unless its option "session.qdq_matmulnbits_accuracy_level" is
            "1".
        shared_range: round all rows of data by one range, where each would have its
            own in 8 bits. onnxruntime has that as one operation and is faster; but what
            comes out for a row then depends on the others in its batch, and differs
            from our own model by the rounding of its data.
        example: arguments after the tree, real arrays, to try the file with before it
            is in its place; arrays in `args` serve as well.

    Returns:
        How many bytes were written.

    Raises:
        ImportError: the extra `onnx` is not installed.
        OnnxError: a leaf or an input is of floats other than float32, an operation
            has no form in ONNX, the file would take 2 GiB, or onnxruntime cannot load
            it or computes something else than the model.
        OSError: it cannot be written.

    Warns:
        WrittenDense: a leaf has no form in ONNX.
    """
    require("write_onnx")
    refuse_place(path)
    _check_floats(params, args)
    traced = trace(fn, params, args, {}, write_out_calls=True)
    leaves: dict[str, Any] = {}
    for name, leaf in zip(traced.names, traced.leaves, strict=True):
        leaves[name] = _in_form(name, leaf)
    # Integers that are picked, or taken apart by a loop, take a byte each.
    apart = {s.path for s in traced.sites if s.operation is Operation.LOOKUP}
    apart |= {name for name, leaf in leaves.items() if getattr(leaf, "stack_axes", ())}
    how = {"shared_range": shared_range, "portable": portable}
    while True:
        held = [_in_bytes(x) if name in apart else x for name, x in leaves.items()]
        opened: set[str] = set()
        program = _program(traced, held, opened, how)
        if opened <= apart:
            break
        # So do those that are used as a whole, as in `2 * w`.
        apart |= opened
    names = _names("input", program.in_avals), _names("output", program.out_avals)
    data = checked(to_proto(program, *names))
    example = tuple(example) or args
    arrays = [np.asarray(x) for x in jax.tree.leaves(example) if _is_concrete(x)]
    got = tried(data, arrays if len(arrays) == len(program.in_avals) else None)
    if got is not None:
        run = compressed(fn) if any(map(is_compressed, traced.leaves)) else fn
        most = _ROUNDED if portable or shared_range else _SAME
        compare(got, _computed(run, params, example), most)
    with replacing(path) as file:
        file.write(data)
    return len(data)


def _is_concrete(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic)


def _computed(fn: Callable[..., Any], params: Any, args: Sequence[Any]) -> list[Any]:
    """The results of a function, compiled; what is no array reaches it as it is."""
    leaves, tree = jax.tree.flatten((params, tuple(args)))

    @jax.jit
    def run(arrays: list[Any]) -> list[Any]:
        pairs = zip(leaves, arrays, strict=True)
        full = [leaf if array is None else array for leaf, array in pairs]
        tree_params, tree_args = jax.tree.unflatten(tree, full)
        outs = jax.tree.leaves(fn(tree_params, *tree_args))
        return [out for out in outs if _is_concrete(out)]

    made: list[Any] = run([x if _is_concrete(x) else None for x in leaves])
    return made


def _names(word: str, each: Sequence[Any]) -> list[str]:
    return [word] if len(each) == 1 else [f"{word}_{i}" for i in range(len(each))]


def _rounds(
    traced: Traced, shared: Shared, handlers: Mapping[Location, OnnxSite]
) -> OnceMade:
    """What rounds a value for all who read it."""
    where = shared.location
    use, handler = traced.uses[where], handlers[where]
    return lambda x, reads: (handler.rounded(x, use, reads[where]), {})


def _program(
    traced: Traced, held: Sequence[Any], opened: set[str], how: Mapping[str, bool]
) -> ClosedJaxpr:
    """The program of the model's inputs, with pieces of ONNX in it.

    Args:
        traced: the model.
        held: its leaves in the forms that are written.
        opened: gets the names of the leaves that are used as a whole.
        how: what handlers are told.
    """
    handlers: dict[Location, OnnxSite] = {}
    reads: dict[Location, InputScale] = {}
    pairs = list(zip(traced.names, held, strict=True))
    names = {name for name, leaf in pairs if is_compressed(leaf)}
    for where, use in traced.uses.items():
        if any(s.path in names and s.operation in WEIGHTS for s in use.sites):
            handlers[where] = OnnxSite(activation=None, **how)
    # What is written dense still meets rounded data.
    for name, leaf in zip(traced.names, traced.leaves, strict=True):
        known = isinstance(leaf, QTensor | WithOutliers)
        if not known or leaf.activation is None:
            continue
        products = [s for s in traced.sites.of(name) if s.operation in PRODUCTS]
        for number, site in enumerate(products):
            handlers[site.location] = OnnxSite(activation=leaf.activation, **how)
            if leaf.input_scales:
                reads[site.location] = leaf.input_scales[number]
    shared = shared_data(traced, handlers, reads)
    program = Program(
        traced=traced,
        handlers=handlers,
        once_made={
            at: {v: _rounds(traced, one, handlers) for v, one in values.items()}
            for at, values in shared.items()
        },
        made_dense=lambda name, *_: opened.add(name),
    )

    def run(*data: jax.Array) -> list[jax.Array]:
        taken = list(data)
        outs = []
        for out in program(held, data, reads)[0]:
            # An input, and a result that is one already, get a name of their own.
            named = any(out is each for each in taken)
            known = not isinstance(out, jax.core.Tracer)
            outs.append(copied(out) if named or known else out)
            taken.append(out)
        return outs

    shapes = [jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in traced.data]
    return jax.make_jaxpr(run)(*shapes)


def _check_floats(params: Any, args: Any) -> None:
    """Raise OnnxError for floats of which jax2onnx would make others."""
    for name, leaf in [*named_leaves(params), *named_leaves(args)]:
        dtype = getattr(leaf, "dtype", None)
        if dtype is not None and is_float_of_another_size(dtype):
            raise OnnxError(
                f"write_onnx: {name} is {dtype}, and only models in float32 are "
                "written; convert the tree and the inputs first"
            )


def _in_form(name: str, leaf: Any) -> Any:
    """A leaf in a form that ONNX has: dense, with a warning, if there is no other."""
    if not is_compressed(leaf) or _has_form(leaf):
        return leaf
    warnings.warn(
        f"write_onnx: {name} ({leaf.form}) has no form in ONNX and is written dense: "
        f"{leaf.size * np.dtype(leaf.dtype).itemsize:,} bytes, not "
        f"{leaf.stored_bytes:,}",
        WrittenDense,
        stacklevel=3,
    )
    return np.asarray(leaf.dense())


def _has_form(leaf: CompressedTensor) -> bool:
    match leaf:
        case QTensor():
            return in_onnx(leaf)
        case Codebook():
            return not leaf.stack_axes and leaf.codebook.shape[-2] == 1
        case LowRank():
            plain = [
                not is_compressed(part) or (isinstance(part, QTensor) and in_onnx(part))
                for part in leaf.factors
            ]
            return all(plain) and not leaf.windows
    return False


def _in_bytes(leaf: Any) -> Any:
    """The same numbers, one a byte: how ONNX picks and computes with them."""
    if not isinstance(leaf, QTensor) or not isinstance(leaf.format, Int):
        return leaf
    if leaf.format.bits >= 8:
        return leaf
    format = Int(8, symmetric=leaf.format.symmetric)
    return dataclasses.replace(leaf, values=leaf.numbers, format=format)
