"""The handler that writes the use of a compressed leaf as nodes of ONNX."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.execution.convolutions import Windowed
from jcompress.execution.lookups import Lookup
from jcompress.formats import Int
from jcompress.interchange.onnx_integers import (
    convolution,
    integer_convolution,
    integer_product,
    rounded_by,
    shared_range_convolution,
    shared_range_product,
)
from jcompress.interchange.onnx_pieces import Host
from jcompress.interchange.onnx_weights import (
    codebook_product,
    dense_matrix,
    float_product,
    plain_product,
)
from jcompress.sites import Operation
from jcompress.tensors import Codebook, CompressedTensor, LowRank, QTensor
from jcompress.tensors.axes import from_matrix
from jcompress.tensors.ranges import InputScale, input_scale
from jcompress.tensors.rounding import (
    dequantize_values,
    quantize_values,
    within_range,
)
from jcompress.tensors.specs import Activation, Dynamic, PerTensor
from jcompress.tracing.deferred import Deferred
from jcompress.tracing.handlers import Bind
from jcompress.tracing.products import Product, contracted
from jcompress.tracing.values import Use


def is_traced(value: Any) -> bool:
    """Whether an array of it is known only when the program runs."""
    return any(isinstance(part, jax.core.Tracer) for part in jax.tree.leaves(value))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxSite:
    """Handler of a site of a compressed leaf.

    Attributes:
        activation: how the leaf's input is quantized, even if the leaf arrives dense.
        shared_range: whether all rows of data share a dynamic range.
        portable: use nothing but operators of ONNX's own.
    """

    activation: Activation | None
    shared_range: bool
    portable: bool

    def __call__(
        self, use: Use, inputs: list[Any], bind: Bind, read: Any
    ) -> tuple[list[Any], Any]:
        """Write the equation with what is stored of its weight, or with that dense."""
        found = [i for i, value in enumerate(inputs) if isinstance(value, Deferred)]
        leaf = inputs[found[0]] if len(found) == 1 else None
        known = leaf is not None and not is_traced(leaf.tensor)
        if leaf is not None and use.sites[0].operation is Operation.LOOKUP:
            lookup = Lookup.of(use, leaf)
            if isinstance(lookup, Lookup):
                return [lookup.run(leaf, inputs[1:], use.eqn.outvars[0].aval)], None
            return bind(_dense(inputs)), None
        if use.data is None or use.data in found:
            return bind(_dense(inputs)), None
        if self.activation is not None and not jnp.issubdtype(
            inputs[use.data].dtype, jnp.floating
        ):
            raise MismatchError(
                f"write_onnx: {use.sites[0].path} meets {inputs[use.data].dtype} data, "
                "and only floats can be quantized"
            )
        outs: list[Any] | None = None
        if known and use.eqn.primitive.name == "dot_general":
            outs = self._product(use, found[0], inputs, read)
        elif known and use.eqn.primitive.name == "conv_general_dilated":
            outs = self._convolution(use, found[0], inputs, read)
        if outs is None:
            outs = bind(_dense(self._faked(use, inputs, read)))
        return outs, None

    def _product(
        self, use: Use, operand: int, inputs: list[Any], read: Any
    ) -> list[Any] | None:
        assert use.data is not None
        tensor = inputs[operand].tensor
        plan = Product.of(use, operand, tensor.shape, tensor.axes)
        if isinstance(plan, str):
            return None
        if not plan.stack_sizes and self._in_integers(tensor, read):
            rows = plan.rows(inputs[use.data])
            if read is None and self._shares_range:
                return [plan.result(shared_range_product(rows, tensor))]
            assert self.activation is not None
            last = (rows.ndim - 1,)
            scale, zero = read or input_scale(rows, last, self.activation, None)
            out = integer_product(rows, scale, zero, tensor, self.activation)
            return [plan.result(out)]
        rows = plan.rows(self._faked(use, inputs, read)[use.data])
        if plan.stack_sizes:
            return [plan.result(_stacked(rows, tensor))]
        out = rows
        for factor in tensor.factors if isinstance(tensor, LowRank) else (tensor,):
            out = _times(out, factor, self.portable)
        return [plan.result(out)]

    def _convolution(
        self, use: Use, operand: int, inputs: list[Any], read: Any
    ) -> list[Any] | None:
        tensor = inputs[operand].tensor
        plan = Windowed.of(use, operand, tensor) if _is_one_group(tensor) else ""
        if isinstance(plan, str) or plan.phases:
            return None
        place = plan.to_images
        order = (place[0], place[-1], *place[1:-1])
        numbers = _kernel(plan, tensor)
        batch = inputs[0].shape[place[0]]
        out = (batch, plan.features, *plan.window.out)
        padding = plan.window.padding
        window: dict[str, Any] = {
            "strides": list(plan.window.strides),
            "dilations": list(plan.window.dilation),
            "group": plan.window.groups,
        }
        pads = [end for ends in zip(*padding, strict=True) for end in ends]
        padded = {**window, "pads": pads}
        if self._in_integers(tensor, read) and tensor.zeros is None:
            assert self.activation is not None
            images = jnp.transpose(inputs[0], order)
            if read is None and self._shares_range:
                made = shared_range_convolution(images, tensor, numbers, out, **padded)
            else:
                scale, zero = (
                    part
                    if part is None or not part.ndim
                    else jnp.transpose(part, order)
                    for part in self._scaling(inputs[0], use, read)
                )
                assert scale is not None
                wide = jnp.pad(images, ((0, 0), (0, 0), *padding))
                made = integer_convolution(
                    wide, scale, zero, tensor, numbers, out, self.activation, **window
                )
        else:
            if self._has_fixed_range(read):
                # onnxruntime cannot load what has a transposition in between.
                assert self.activation is not None
                images = jnp.transpose(inputs[0], order)
                images = rounded_by(images, read)
            else:
                images = jnp.transpose(self._faked(use, inputs, read)[0], order)
            made = convolution(images, tensor, numbers, out, **padded)
        last = made.ndim - 1
        turned = jnp.transpose(made, (0, *range(2, last + 1), 1))
        return [jnp.transpose(turned, plan.from_images)]

    @property
    def _shares_range(self) -> bool:
        """Whether `DynamicQuantizeLinear` finds the range of the data."""
        activation = self.activation
        assert activation is not None
        whole = isinstance(activation.granularity, PerTensor)
        exact = whole and activation.format == Int(8, symmetric=False)
        eight = isinstance(activation.format, Int) and activation.format.bits == 8
        return exact or (self.shared_range and eight)

    def _in_integers(self, tensor: CompressedTensor, read: Any) -> bool:
        """Whether rounded data meets integers as integers."""
        activation = self.activation
        if activation is None or not isinstance(tensor, QTensor):
            return False
        few = isinstance(activation.format, Int) and activation.format.bits <= 8
        if read is None:
            known = isinstance(activation.range, Dynamic)
        else:
            known = _is_whole(read) and not read.scale.ndim and not self.portable
        whole = np.dtype(tensor.format.dtype) == np.int8
        return few and known and whole and _is_one_group(tensor)

    def _has_fixed_range(self, read: Any) -> bool:
        """Whether a `QuantizeLinear` and its reverse round the data."""
        activation = self.activation
        if activation is None or not self.portable or not _is_whole(read):
            return False
        return activation.format == Int(8, symmetric=activation.format.symmetric)

    def rounded(self, x: jax.Array, use: Use, read: Any) -> jax.Array:
        """The data of a use as `fake_quant` rounds it."""
        assert self.activation is not None
        if self._has_fixed_range(read):
            return rounded_by(x, read)
        format = self.activation.format
        scale, zero = self._scaling(x, use, read)
        q = quantize_values(x, scale, zero, format)
        return within_range(dequantize_values(q, scale, zero), x.dtype)

    def _scaling(
        self, x: jax.Array, use: Use, read: Any
    ) -> tuple[jax.Array, jax.Array | None]:
        assert self.activation is not None
        return read or input_scale(x, contracted(use), self.activation, None)

    def _faked(self, use: Use, inputs: list[Any], read: Any) -> list[Any]:
        """The inputs with the data rounded as `fake_quant` rounds it."""
        data = use.data
        if self.activation is None or data is None:
            return inputs
        made = self.rounded(inputs[data], use, read)
        return [*inputs[:data], made, *inputs[data + 1 :]]


def _is_whole(read: Any) -> bool:
    """Whether it is one range for all data that is known now."""
    return isinstance(read, InputScale) and not is_traced(read) and read.scale.size == 1


def _is_one_group(tensor: CompressedTensor) -> bool:
    return isinstance(tensor, QTensor) and tensor.scales.shape[-1] == 1


def _kernel(plan: Windowed, tensor: QTensor) -> Host:
    """The integers of a kernel as ONNX has them: [N, C / groups, *window]."""
    with jax.ensure_compile_time_eval():
        matrix = np.asarray(tensor.numbers)
    split = matrix.reshape(*plan.outputs.in_leaf, *plan.inputs.in_leaf)
    outputs = plan.outputs.from_leaf(0)
    order = (*outputs, *plan.inputs.from_leaf(len(outputs)))
    sizes = (plan.features, *plan.window.kernel, -1)
    return np.moveaxis(split.transpose(order).reshape(sizes), -1, 1)


def _times(rows: jax.Array, factor: Any, portable: bool) -> jax.Array:
    match factor:
        case QTensor():
            return float_product(rows, factor, portable)
        case Codebook():
            return codebook_product(rows, factor)
    return plain_product(rows, factor)


def _matrix(tensor: Any) -> jax.Array:
    """The dense matrix [*S, N, K] of what has a form in ONNX, computed there."""
    if isinstance(tensor, QTensor):
        return dense_matrix(tensor)
    if not isinstance(tensor, LowRank):
        made: jax.Array = tensor
        return made
    matrix = _matrix(tensor.factors[0])
    for factor in tensor.factors[1:]:
        matrix = jnp.matmul(_matrix(factor), matrix)
    return matrix


def _stacked(rows: jax.Array, tensor: Any) -> jax.Array:
    """[*S, ..., K] x [*S, N, K] -> [*S, ..., N]."""
    matrix = _matrix(tensor)
    stacks = tuple(range(matrix.ndim - 2))
    return jax.lax.dot_general(
        rows, matrix, (((rows.ndim - 1,), (matrix.ndim - 1,)), (stacks, stacks))
    )


def _dense(inputs: list[Any]) -> list[Any]:
    """The inputs with leaves made dense by nodes of the graph."""
    return [_made_dense(x) if isinstance(x, Deferred) else x for x in inputs]


def _made_dense(leaf: Deferred) -> jax.Array:
    tensor: Any = leaf.tensor
    if is_traced(tensor) or not isinstance(tensor, QTensor | LowRank):
        return leaf.dense()
    return leaf.viewed(from_matrix(_matrix(tensor), tensor.axes, tensor.shape))
