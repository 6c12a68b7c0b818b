"""A measure of quality, beside which sizes and times are judged."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Measure = Callable[[Callable[..., Any], Any], float]
"""`measure(run, params) -> number`; `run(params, *arguments)` is the variant's."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """How good a model is, by one number.

    Attributes:
        name: what the table calls it, such as "accuracy" or "perplexity".
        measure: called once for each variant with its function (jitted unless `compare`
            is told otherwise) and its parameters; or the numbers themselves, by the
            names of the variants, if they are known already.
        higher_is_better: whether a greater number is a better one.
        format: a format specification for the number; one that ends with "%" says that
            it is a fraction.

    Raises:
        ValueError: the name is one that the table uses for something else, or empty.

    Example:
        >>> Metric("perplexity", {"dense": 9.1, "small": 9.4}, higher_is_better=False)
        ... # doctest: +ELLIPSIS
        Metric(name='perplexity', ...)
    """

    name: str
    measure: Measure | Mapping[str, float]
    higher_is_better: bool = dataclasses.field(kw_only=True)
    format: str = dataclasses.field(default=".4g", kw_only=True)

    def __post_init__(self) -> None:
        if not self.name or self.name in RESERVED:
            raise ValueError(
                f"Metric: {self.name!r} cannot be the name of a metric; the report "
                f"uses {', '.join(RESERVED)} itself"
            )

    def value(self, variant: str, run: Callable[..., Any], params: Any) -> float:
        """The number of one variant.

        Raises:
            ValueError: the numbers were given, but not of this variant.
        """
        if not isinstance(self.measure, Mapping):
            return float(self.measure(run, params))
        if variant not in self.measure:
            raise ValueError(
                f"compare: metric {self.name!r} has no value for the variant "
                f"{variant!r}; it has {list(self.measure)}"
            )
        return float(self.measure[variant])

    def text(self, value: float) -> str:
        """The number for people."""
        return format(value, self.format)

    def change(self, base: float, value: float) -> str:
        """The difference from the baseline's number, for people."""
        if self.format.endswith("%"):
            return f"{100 * (value - base):+.2f} points"
        return format(value - base, f"+{self.format}")

    def verdict(self, base: float, value: float) -> str:
        """Whether a number is "better" or "worse" than the baseline's, or "same"."""
        if value == base:
            return "same"
        return "better" if (value > base) is self.higher_is_better else "worse"


RESERVED = (
    *("bytes", "parameters", "nonzero", "macs", "labels"),
    *("latency_ms", "latency_ms_quartiles", "latency_ms_samples"),
)
"""The keys that `Comparison.to_json` has for each variant besides the metrics."""
