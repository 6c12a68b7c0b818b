"""What jax2onnx is told of our pieces, and the call of it."""

import importlib
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from jcompress.interchange.onnx_pieces import MICROSOFT, Host, Kind, Made, piece_p
from jcompress.interchange.onnx_rewrites import rewritten
from jcompress.tracing.inlining import inlined

OPSET = 21
"""The first version of ONNX's operators with integers of 4 bits."""


class OnnxError(ValueError):
    """A model cannot be written as ONNX; the operation or the leaf is named."""


def require(what: str) -> None:
    """Import what writes ONNX, before any work.

    Raises:
        ImportError: it is not installed; the extra that brings it is named.
    """
    try:
        for name in ("onnx", "onnx_ir", "jax2onnx"):
            importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{what} needs jax2onnx and onnx: pip install 'jcompress[onnx]'"
        ) from error


class _Graph:
    """The graph that jax2onnx is writing, as pieces see it."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._ir: Any = importlib.import_module("onnx_ir")

    def constant(self, array: Host) -> Made:
        tensor = self._ir.tensor(array)
        value = self._ir.Value(
            name=self._context.fresh_name("weight"),
            type=self._ir.TensorType(tensor.dtype),
            shape=self._ir.Shape(array.shape),
            const_value=tensor,
        )
        self._context.builder.initializers.append(value)
        return value

    def node(
        self,
        operator: str,
        *inputs: Made,
        gives: Kind | Sequence[Kind],
        domain: str = "",
        **attributes: Any,
    ) -> Any:
        ir, context = self._ir, self._context
        one = isinstance(gives, tuple)
        kinds: Sequence[Any] = [gives] if one else gives
        outputs = [
            ir.Value(
                name=context.fresh_name(operator),
                type=ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype))),
                shape=ir.Shape([n if isinstance(n, int) else str(n) for n in shape]),
            )
            for shape, dtype in kinds
        ]
        made = ir.Node(
            domain,
            operator,
            inputs,
            ir.convenience.convert_attributes(attributes),
            outputs=outputs,
            name=context.fresh_name(f"node_{operator}"),
        )
        context.builder.add_node_obj(made)
        return outputs[0] if one else outputs


def _register() -> None:
    """Tell jax2onnx how pieces are written; once is enough."""
    plugins: Any = importlib.import_module("jax2onnx.plugins.plugin_system")
    if piece_p.name in plugins.PLUGIN_REGISTRY:
        return

    def lower(self: Any, ctx: Any, eqn: Any) -> None:
        inputs = [ctx.get_value_for_var(atom) for atom in eqn.invars]
        made = eqn.params["piece"].write(_Graph(ctx), *inputs)
        for var, value in zip(eqn.outvars, made, strict=True):
            ctx.bind_value_for_var(var, value)

    plugin = type("Piece", (plugins.PrimitiveLeafPlugin,), {"lower": lower})
    plugins.register_primitive(jaxpr_primitive=piece_p.name)(plugin)


def to_proto(
    program: ClosedJaxpr, input_names: Sequence[str], output_names: Sequence[str]
) -> Any:
    """The ONNX model of a program.

    Args:
        program: the program, with pieces in it; sizes may be symbolic. It is traced
            already, since jax2onnx puts functions of its own in the place of JAX's.
        input_names: a name for each input.
        output_names: a name for each result.

    Raises:
        OnnxError: an operation has no form in ONNX; it is named.
    """
    _register()
    inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in program.in_avals]
    jax2onnx: Any = importlib.import_module("jax2onnx")
    log = logging.getLogger("onnx_ir.serde")
    level = log.level
    try:
        # It tells of each value whose type nobody gave, which runtimes find anyway.
        log.setLevel(logging.ERROR)
        proto = jax2onnx.to_onnx(
            rewritten(inlined(program)),
            inputs,
            model_name="jcompress",
            opset=OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
        )
    except Exception as error:
        raise OnnxError(
            "write_onnx: jax2onnx cannot write this model. "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        log.setLevel(level)
    del proto.graph.value_info[:]
    if _uses(proto.graph, MICROSOFT):
        proto.opset_import.add(domain=MICROSOFT, version=1)
    return proto


def _uses(graph: Any, domain: str) -> bool:
    """Whether a graph, or one within it, has an operator of a domain."""
    return any(
        node.domain == domain
        or any(_uses(attribute.g, domain) for attribute in node.attribute)
        for node in graph.node
    )


def checked(proto: Any) -> bytes:
    """The bytes of a model that fits the rules of ONNX.

    Raises:
        OnnxError: it does not, or it takes 2 GiB or more.
    """
    onnx: Any = importlib.import_module("onnx")
    size = proto.ByteSize()
    if size >= 2**31:
        raise OnnxError(
            f"write_onnx: the model takes {size:,} bytes, and one ONNX file holds less "
            "than 2 GiB"
        )
    data: bytes = proto.SerializeToString()
    try:
        onnx.checker.check_model(data)
    except onnx.checker.ValidationError as error:
        raise OnnxError(
            f"write_onnx: the result is no valid ONNX model: {error}"
        ) from error
    return data


def is_float_of_another_size(dtype: Any) -> bool:
    """Whether it is a float dtype other than float32."""
    return jax.numpy.issubdtype(dtype, np.floating) and dtype != np.float32
