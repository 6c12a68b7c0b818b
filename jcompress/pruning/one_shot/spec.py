"""`OneShot`: what a rule of one-shot pruning says; and the papers' names."""

import dataclasses
import math

from jcompress.formats import Binary
from jcompress.pruning.one_shot.base import Method
from jcompress.pruning.one_shot.scored import Wanda
from jcompress.pruning.one_shot.sparse_gpt import SparseGpt
from jcompress.pruning.patterns import NM, Pattern, Unstructured
from jcompress.tensors.range_specs import Lsq
from jcompress.tensors.specs import Weights

_SPARSE_GPT = SparseGpt()
_SINGLE = Unstructured()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneShot:
    """How the leaves of a rule are pruned in one shot.

    Attributes:
        method: which weights go, and what the others become.
        pattern: what is removed together.
        sparsity: the fraction removed, in [0, 1). `NM` says by itself what it removes
            and takes none.
        weights: how what stays is stored in small numbers, chosen in the same pass;
            None for floats.

    Raises:
        TypeError: a field is of another kind.
        ValueError: the method cannot make the pattern, or does not round; the sparsity
            is missing, outside of [0, 1) or at odds with `NM`; the format has no 0, or
            learned scales; or outliers are to be stored apart.
    """

    method: Method = _SPARSE_GPT
    pattern: Pattern = _SINGLE
    sparsity: float | None = None
    weights: Weights | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise TypeError(
                "OneShot: method is one of jcompress.pruning.one_shot, such as "
                f"SparseGpt() or Wanda(), not {self.method!r}"
            )
        if not isinstance(self.pattern, Pattern):
            raise TypeError(
                "OneShot: pattern is one of jcompress.pruning, such as Unstructured() "
                f"or NM(2, 4), not {self.pattern!r}"
            )
        if not isinstance(self.weights, Weights | None):
            raise TypeError(
                f"OneShot: weights is Weights(...) or None, not {self.weights!r}"
            )
        if not self.method.takes(self.pattern):
            raise ValueError(
                f"OneShot: {self.method!r} does not make {self.pattern!r}; "
                "Wanda() and LeastSquares() make blocks and channels, too"
            )
        self._check_sparsity()
        self._check_weights()

    def _check_sparsity(self) -> None:
        given = self.sparsity
        if given is not None:
            if isinstance(given, bool) or not isinstance(given, int | float):
                raise TypeError(
                    f"OneShot: sparsity is a number in [0, 1), not {given!r}"
                )
            if not 0 <= given < 1:
                raise ValueError(
                    f"OneShot: sparsity is the fraction removed, in [0, 1), not "
                    f"{given!r}"
                )
        if isinstance(self.pattern, NM):
            own = self.pattern.sparsity
            if given is not None and not math.isclose(given, own):
                raise ValueError(
                    f"OneShot: {self.pattern!r} removes {own:.6g}, but the sparsity "
                    f"is {given!r}; leave it out"
                )
        elif given is None:
            raise ValueError(
                f"OneShot: {self.pattern!r} needs a sparsity, such as sparsity=0.5"
            )

    def _check_weights(self) -> None:
        if self.weights is None:
            return
        if not self.method.rounds:
            raise ValueError(
                f"OneShot: {self.method!r} does not round; use SparseGpt(), or "
                "quantize the pruned tree"
            )
        if isinstance(self.weights.format, Binary):
            raise ValueError("OneShot: Binary() has no number for 0; Ternary() has")
        if isinstance(self.weights.range, Lsq):
            raise ValueError(
                "OneShot: the scales of Lsq() come from training; use FullRange()"
            )
        if self.weights.outliers:
            raise ValueError(
                "OneShot: outliers are not stored apart from pruned weights; use "
                "outliers=0"
            )

    @property
    def removes(self) -> float:
        """The fraction removed."""
        if isinstance(self.pattern, NM):
            return self.pattern.sparsity
        assert self.sparsity is not None
        return self.sparsity


def wanda(pattern: Pattern = _SINGLE, sparsity: float | None = None) -> OneShot:
    """Wanda: weights times the size of their inputs, compared within each output.

    Args:
        pattern: what is removed together.
        sparsity: the fraction removed; not for `NM`.

    References:
        Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language
        Models".
    """
    return OneShot(method=Wanda(), pattern=pattern, sparsity=sparsity)


def sparsegpt(
    pattern: Pattern = _SINGLE,
    sparsity: float | None = None,
    *,
    weights: Weights | None = None,
) -> OneShot:
    """SparseGPT, with rounding in the same pass if wanted.

    Args:
        pattern: `Unstructured()` or `NM(n, m)`.
        sparsity: the fraction removed; not for `NM`.
        weights: how what stays is stored in small numbers; None for floats.

    References:
        Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately
        Pruned in One-Shot".
    """
    return OneShot(pattern=pattern, sparsity=sparsity, weights=weights)
