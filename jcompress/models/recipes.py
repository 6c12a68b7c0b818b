"""Steps by the names that people know them by."""

from collections.abc import Callable
from typing import Any

from jcompress.models.steps import (
    LowRankStep,
    NarrowStep,
    QuantizeStep,
    SparseStep,
    Step,
)
from jcompress.pruning import NM, Unstructured


def w8(*, exclude: tuple[str, ...] = ()) -> Step:
    """8-bit weights with a scale for each output; data stays in floats.

    A quarter of the bytes. Faster where reading the weights takes the time: few rows of
    data at once, as when a decoder generates.

    Args:
        exclude: leaves that stay, as globs of their names: `("**/lm_head/*",)`.
    """
    return QuantizeStep(bits=8, exclude=exclude)


def w4(*, group: int | None = 32, exclude: tuple[str, ...] = ()) -> Step:
    """4-bit weights; data stays in floats.

    An eighth of the bytes, and what scales take. Numbers are chosen by GPTQ if
    `compress` gets data, else for the least error of the weights.

    Args:
        group: inputs that share a scale; None for one scale an output. Weights whose
            number of inputs it does not divide have one scale an output.
        exclude: leaves that stay, as globs of their names.

    Raises:
        ValueError: a group below 1.
    """
    if group is not None and group < 1:
        raise ValueError(f"w4: a group has at least one input, not {group!r}")
    return QuantizeStep(bits=4, group=group, exclude=exclude)


def w8a8(*, static: bool = False, exclude: tuple[str, ...] = ()) -> Step:
    """8-bit weights and 8-bit data, each row of it with its own range.

    A quarter of the bytes. Faster where multiplying takes the time: batches.

    Args:
        static: choose one range for the data of each product, once, from the batches
            that `compress` gets, or else from its example. Convolutions that follow
            each other then keep 8 bits between them, which is faster on CPUs; what the
            batches do not show is clipped.
        exclude: leaves that stay, as globs of their names.
    """
    return QuantizeStep(bits=8, activations=True, static=static, exclude=exclude)


def nm(n: int, m: int) -> Step:
    """Keep `n` of every `m` weights along the inputs, and store only those.

    Chosen by SparseGPT if `compress` gets data, else by magnitude. `nm(2, 4)` loses
    little; weights whose number of inputs `m` does not divide stay.

    Args:
        n: how many stay.
        m: of how many.

    Raises:
        ValueError: not `1 <= n < m`.
    """
    return SparseStep(pattern=NM(n, m))


def sparse(sparsity: float) -> Step:
    """Remove single weights, and store a bit for each place and what is left.

    Faster on CPUs from 80 % zeros on; elsewhere the weights are made dense. Chosen by
    SparseGPT if `compress` gets data, else by magnitude. Much more than half costs
    accuracy that only training brings back (`jcompress.pruning.prune`).

    Args:
        sparsity: the fraction removed from each weight, in (0, 1).

    Raises:
        ValueError: `sparsity` is not between 0 and 1.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"sparse: sparsity is between 0 and 1, not {sparsity!r}")
    return SparseStep(pattern=Unstructured(), sparsity=sparsity)


def half_width(
    *,
    keep: float = 0.5,
    recover: Callable[[Callable[..., Any], Any], Any] | None = None,
) -> Step:
    """Cut every width to its most important units: channels, heads, hidden sizes.

    About a quarter of the parameters and of the multiplications, so really smaller and
    faster; but the model must be trained again to be of use.

    Args:
        keep: the fraction of each width that stays, in (0, 1).
        recover: `recover(fn, params) -> params` trains the narrow model, `fn(params,
            *args)`; with distillation from the dense one that works best
            (`jcompress.distillation`).

    Raises:
        ValueError: `keep` is not between 0 and 1.
    """
    if not 0 < keep < 1:
        raise ValueError(f"half_width: keep is between 0 and 1, not {keep!r}")
    return NarrowStep(keep=keep, recover=recover)


def svd(*, parameters: float = 0.5) -> Step:
    """Replace each weight by two thin factors, by its singular values.

    Of the outputs on the data if `compress` gets some.

    Args:
        parameters: the fraction of a weight's parameters that stay, in (0, 1).

    Raises:
        ValueError: `parameters` is not between 0 and 1.
    """
    if not 0 < parameters < 1:
        raise ValueError(f"svd: parameters is between 0 and 1, not {parameters!r}")
    return LowRankStep(parameters=parameters)
