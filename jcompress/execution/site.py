"""The handler of a site of a compressed leaf: the best way that is known."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.errors import MismatchError
from jcompress.execution.adapted import run_adapted
from jcompress.execution.after import Finish
from jcompress.execution.convolutions import Windowed, takes_data
from jcompress.execution.experts import run_ragged
from jcompress.execution.factored_convolutions import FactoredConv
from jcompress.execution.how import Execution, How, Scaling, on_cpu
from jcompress.execution.lookups import Lookup
from jcompress.execution.pointwise import Pointwise
from jcompress.execution.products import LeafKernel
from jcompress.kernels import Implementation
from jcompress.sites import Operation
from jcompress.tensors import Adapted, CompressedTensor, LowRank, QTensor, WithOutliers
from jcompress.tensors.ranges import input_scale
from jcompress.tensors.rounding import fake_quantize
from jcompress.tensors.specs import Activation
from jcompress.tracing.deferred import Deferred
from jcompress.tracing.handlers import Bind
from jcompress.tracing.products import Product, contracted
from jcompress.tracing.values import Use


@dataclasses.dataclass(frozen=True)
class CompressedSite:
    """Handler of a site of a compressed leaf.

    Attributes:
        activation: how the leaf's input is quantized, even if the leaf arrives dense.
        record: gets an entry that says how the leaf ran.
        implementation: which one of each kernel runs; None for the fastest.
        after: what follows the product, for kernels that do it in the same call.
        rounded: whether the data comes as the integers of `activation`.
    """

    activation: Activation | None
    record: dict[Any, Execution]
    implementation: Implementation | None
    after: Finish | None = None
    rounded: bool = False

    def __call__(
        self, use: Use, inputs: list[Any], bind: Bind, read: Any
    ) -> tuple[list[Any], Any]:
        """Evaluate the equation with the compressed leaf by the best way known."""
        found = [i for i, value in enumerate(inputs) if isinstance(value, Deferred)]
        one = len(found) == 1
        use = _of_parts(use, inputs)
        if one and isinstance(inputs[found[0]].tensor, Adapted):
            return run_adapted(self, use, found[0], inputs, bind, read), None
        if one and use.sites[0].operation is Operation.LOOKUP:
            return self._lookup(use, inputs, bind), None
        if use.data is None or use.data in found:
            return self.dense(
                use,
                inputs,
                bind,
                "it is multiplied with another parameter, not with data",
            ), None
        scaling = None
        if self.activation is not None:
            x = inputs[use.data]
            if not (self.rounded or jnp.issubdtype(x.dtype, jnp.floating)):
                raise MismatchError(
                    f"compressed: {use.sites[0].path} meets {x.dtype} data, and only "
                    "floats can be quantized; quantize it by a rule without activation"
                )
            scaling = read or input_scale(x, contracted(use), self.activation, None)
        if one:
            leaf = inputs[found[0]]
            known = _for_kernels(leaf.tensor)
            if isinstance(known, str):
                faked = self.faked(use, inputs, scaling)
                return self.dense(use, faked, bind, known), None
            inputs = list(inputs)
            inputs[found[0]] = dataclasses.replace(leaf, tensor=known)
            return self._product(use, found[0], inputs, scaling, bind), None
        inputs = self.faked(use, inputs, scaling)
        return self.dense(
            use, inputs, bind, "it was made dense before it came here"
        ), None

    def note(self, use: Use, inputs: list[Any], how: How, why: str = "") -> None:
        """Record how the compressed leaves among some inputs ran."""
        for value in inputs:
            if isinstance(value, Deferred):
                entry = Execution(value.name, use.eqn.primitive.name, how, why)
                self.record[value.name, use.location] = entry

    def dense(
        self, use: Use, inputs: list[Any], bind: Bind, why: str
    ) -> list[jax.Array]:
        """Evaluate the equation with the leaf made dense, for a reason."""
        self.note(use, inputs, How.DENSE, why)
        return bind([x.dense() if isinstance(x, Deferred) else x for x in inputs])

    def faked(self, use: Use, inputs: list[Any], scaling: Scaling) -> list[Any]:
        """The inputs with the data rounded as `fake_quant` rounds it."""
        if scaling is None:
            return inputs
        assert self.activation is not None
        faked = list(inputs)
        if use.data is not None:
            x = inputs[use.data]
            faked[use.data] = fake_quantize(x, *scaling, self.activation.format)
        return faked

    def _product(
        self, use: Use, operand: int, inputs: list[Any], scaling: Scaling, bind: Bind
    ) -> list[jax.Array]:
        match use.eqn.primitive.name:
            case "conv_general_dilated":
                return self._convolution(use, operand, inputs, scaling, bind)
            case "ragged_dot" | "ragged_dot_general":
                return run_ragged(self, use, operand, inputs, scaling, bind)
        tensor = inputs[operand].tensor
        kernel = self.kernel(tensor, use)
        plan = Product.of(use, operand, tensor.shape, tensor.axes)
        for part in (kernel, plan):
            if isinstance(part, str):
                return self.dense(use, self.faked(use, inputs, scaling), bind, part)
        assert isinstance(kernel, LeafKernel)
        assert isinstance(plan, Product)
        after = self.after
        if after is not None and kernel.finishes and not plan.stack_sizes:
            multiply = functools.partial(kernel.multiply, **after.arguments(plan))
            kernel = dataclasses.replace(kernel, multiply=multiply)
            after.done = True
        self.note(use, inputs, kernel.how, after.said if after and after.done else "")
        return [self._planned(use, plan, kernel, tensor, inputs, scaling)]

    def shareable(
        self, use: Use, inputs: list[Any]
    ) -> tuple[Product, LeafKernel, QTensor] | None:
        """How a product runs in one call with others of its input; None if it cannot.

        Args:
            use: the equation and its sites.
            inputs: its inputs.
        """
        found = [i for i, value in enumerate(inputs) if isinstance(value, Deferred)]
        data = use.data
        if len(found) != 1 or data is None or data in found:
            return None
        use = _of_parts(use, inputs)
        tensor = inputs[found[0]].tensor
        tensor = tensor.for_kernels() if isinstance(tensor, QTensor) else None
        if not isinstance(tensor, QTensor):
            return None
        kernel = self.kernel(tensor, use)
        plan = Product.of(use, found[0], tensor.shape, tensor.axes)
        if isinstance(kernel, str) or isinstance(plan, str):
            return None
        floating = jnp.issubdtype(inputs[data].dtype, jnp.floating)
        if not kernel.shares or plan.stack_sizes or not floating:
            return None
        return plan, kernel, tensor

    def convolves(self, use: Use, inputs: list[Any]) -> bool:
        """Whether an equation is a convolution whose data can come as integers.

        Args:
            use: the equation and its sites.
            inputs: its inputs; of the data the equation says enough.
        """
        if use.data != 0 or not isinstance(inputs[1], Deferred):
            return False
        tensor = inputs[1].tensor
        known = tensor.for_kernels() if isinstance(tensor, QTensor) else None
        if not isinstance(known, QTensor):
            return False
        plan = Windowed.of(_of_parts(use, inputs), 1, known)
        if isinstance(plan, str) or plan.dtype != jnp.float32:
            return False
        activation = self.activation
        if activation is not None and not takes_data(activation.format):
            return False
        x = use.eqn.invars[0].aval
        return not (on_cpu() and plan.why_in_floats(x, known, activation))

    def kernel(self, tensor: CompressedTensor, use: Use) -> LeafKernel | str:
        """The kernel that multiplies with a leaf, or why there is none."""
        return LeafKernel.of(tensor, self.activation, use.eqn, self.implementation)

    def _planned(
        self,
        use: Use,
        plan: Product,
        kernel: LeafKernel,
        tensor: CompressedTensor,
        inputs: list[Any],
        scaling: Scaling,
        prepare: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> jax.Array:
        """The result of a product for which there are a plan and a kernel."""
        assert use.data is not None
        if not kernel.quantizes:
            inputs = self.faked(use, inputs, scaling)
        rows = plan.rows(prepare(inputs[use.data]))
        given: list[jax.Array | None] = [None, None]
        if kernel.quantizes and not kernel.own_range and scaling is not None:
            given = [None if p is None else _per_row(plan, p, rows) for p in scaling]
        return plan.run(kernel.multiply, rows, *given, tensor)

    def _convolution(
        self, use: Use, operand: int, inputs: list[Any], scaling: Scaling, bind: Bind
    ) -> list[jax.Array]:
        tensor = inputs[operand].tensor
        point = Pointwise.of(use.eqn)
        if isinstance(tensor, QTensor):
            plan = Windowed.of(use, operand, tensor)
            if isinstance(plan, Windowed):
                format = None if self.activation is None else self.activation.format
                if format is not None and not takes_data(format):
                    inputs, scaling = self.faked(use, inputs, scaling), None
                return self._windowed(use, plan, tensor, inputs, scaling)
            point = plan if isinstance(point, str) else point
        if isinstance(tensor, LowRank) and (tensor.windows or isinstance(point, str)):
            factored = FactoredConv.of(use, operand, tensor)
            if isinstance(factored, FactoredConv):
                self.note(use, inputs, How.FACTORS, factored.why(tensor))
                x = self.faked(use, inputs, scaling)[0]
                return [factored.run(x, tensor, self.implementation)]
            point = factored
        kernel = self.kernel(tensor, use)
        for part in (point, kernel):
            if isinstance(part, str):
                return self.dense(use, self.faked(use, inputs, scaling), bind, part)
        assert isinstance(point, Pointwise)
        assert isinstance(kernel, LeafKernel)
        product = dataclasses.replace(use, eqn=point.eqn)
        planned = Product.of(product, operand, tensor.shape, tensor.axes)
        if isinstance(planned, str):
            return self.dense(use, self.faked(use, inputs, scaling), bind, planned)
        self.note(use, inputs, kernel.how)
        out = self._planned(use, planned, kernel, tensor, inputs, scaling, point.picked)
        return [point.result(out)]

    def _windowed(
        self,
        use: Use,
        plan: Windowed,
        tensor: QTensor,
        inputs: list[Any],
        scaling: Scaling,
    ) -> list[jax.Array]:
        activation = None if scaling is None else self.activation
        how = How.WEIGHT_ONLY if activation is None else How.INTEGER
        why = ""
        if on_cpu() and not self.rounded:
            why = plan.why_in_floats(inputs[0], tensor, activation)
        after = self.after
        follows: dict[str, Any] = {}
        if after is not None and not why and plan.dtype == jnp.float32:
            follows = after.of_images(plan)
            after.done = True
            why = after.said
        elif why:
            how = How.DENSE
        self.note(use, inputs, how, why)
        given = (inputs[0], scaling, tensor, activation)
        return [plan.run(*given, self.implementation, follows)]

    def _lookup(self, use: Use, inputs: list[Any], bind: Bind) -> list[jax.Array]:
        leaf, plan = inputs[0], Lookup.of(use, inputs[0])
        if isinstance(plan, str):
            return self.dense(use, inputs, bind, plan)
        self.note(use, inputs, How.ROWS)
        return [plan.run(leaf, inputs[1:], use.eqn.outvars[0].aval)]


def _for_kernels(tensor: CompressedTensor) -> CompressedTensor | str:
    """The leaf in a form that kernels take, or why there is none."""
    if isinstance(tensor, QTensor):
        return tensor.for_kernels()
    if isinstance(tensor, WithOutliers):
        base = tensor.base.for_kernels()
        return base if isinstance(base, str) else dataclasses.replace(tensor, base=base)
    return tensor


def _of_parts(use: Use, inputs: list[Any]) -> Use:
    """The use, seen from the parts of leaves that were cut out on the way to it."""
    views = tuple(
        tuple(dataclasses.replace(view, partial=False) for view in shown)
        if isinstance(value, Deferred) and value.cut
        else shown
        for value, shown in zip(inputs, use.views, strict=True)
    )
    return dataclasses.replace(use, views=views)


def _per_row(plan: Product, part: jax.Array, rows: jax.Array) -> jax.Array:
    """One number for each row, from one for all or one for each."""
    if part.size == 1:
        return jnp.broadcast_to(part.reshape((1,) * rows.ndim), (*rows.shape[:-1], 1))
    return plan.per_row(part)
