"""`Quantize`: what a quantization rule says."""

import dataclasses

from jcompress.rounding import Nearest, Rounding
from jcompress.tensors.specs import Activation, Weights, explain_arguments


@explain_arguments
@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantize:
    """What a quantization rule says of a leaf and of the data that it meets.

    A product multiplies integers with integers, or float8 with float8. Where the two
    differ, the data is rounded first, and the product is one of
    floats with a stored weight.

    Attributes:
        weights: how the leaf is quantized; None keeps it.
        activation: how the inputs of its products are quantized; None keeps them.
        rounding: how `quantize` chooses the numbers of the format; only `Nearest()`
            can be simulated by `fake_quant`.

    Raises:
        ValueError: weights and activation are both None.
        TypeError: one of them is of another kind.
    """

    weights: Weights | None = Weights()
    activation: Activation | None = None
    rounding: Rounding = Nearest()

    def __post_init__(self) -> None:
        if not isinstance(self.rounding, Rounding):
            raise TypeError(
                "Quantize: rounding is one of jcompress.rounding, such as Nearest() or "
                f"Gptq(), not {self.rounding!r}"
            )
        if not isinstance(self.weights, Weights | None):
            raise TypeError(
                f"Quantize: weights is Weights(...) or None, not {self.weights!r}"
            )
        if not isinstance(self.activation, Activation | None):
            raise TypeError(
                "Quantize: activation is Activation(...) or None, not "
                f"{self.activation!r}"
            )
        if self.weights is None and self.activation is None:
            raise ValueError(
                "Quantize: weights and activation are both None, which says nothing; "
                "to leave a leaf alone, give its rule the spec None"
            )
