"""The forms that a search tries unless it is told otherwise."""

from jcompress.formats import Int
from jcompress.low_rank import Svd
from jcompress.pruning import NM, Unstructured
from jcompress.pruning.one_shot import OneShot
from jcompress.quantization import Activation, PerGroup, Quantize, Weights
from jcompress.rounding import Gptq
from jcompress.sensitivity import Candidate, Keep

_EIGHT = Weights(format=Int(8))
_WIDTHS = (Keep(0.75), Keep(0.5))


def default_candidates(kind: str) -> tuple[Candidate, ...]:
    """The forms that can lower a kind of cost.

    Args:
        kind: "bytes": integers of 8, 4 and 3 bits, 2:4 and 75 % sparsity in 8 bits,
            half and a quarter of the parameters as factors in 8 bits.
            "multiplications": 2:4, 75 and 90 %, factors. "seconds": integers, with data
            in 8 bits too, 2:4, 90 % and factors. And for each, widths of three quarters
            and a half.

    Raises:
        ValueError: there is no such kind.
    """
    grouped = PerGroup(32)
    integers: tuple[Candidate, ...] = (
        Quantize(weights=_EIGHT),
        Quantize(weights=Weights(format=Int(4)), rounding=Gptq()),
        Quantize(weights=Weights(format=Int(4), granularity=grouped), rounding=Gptq()),
    )
    three = Weights(format=Int(3), granularity=grouped)
    forms: dict[str, tuple[Candidate, ...]] = {
        "bytes": (
            *integers,
            Quantize(weights=three, rounding=Gptq()),
            OneShot(pattern=NM(2, 4), weights=_EIGHT),
            OneShot(pattern=Unstructured(), sparsity=0.75, weights=_EIGHT),
            (Svd(parameters=0.5), _EIGHT),
            (Svd(parameters=0.25), _EIGHT),
        ),
        "multiplications": (
            OneShot(pattern=NM(2, 4)),
            OneShot(pattern=Unstructured(), sparsity=0.75),
            OneShot(pattern=Unstructured(), sparsity=0.9),
            Svd(parameters=0.5),
            Svd(parameters=0.25),
        ),
        "seconds": (
            *integers,
            Quantize(weights=_EIGHT, activation=Activation()),
            OneShot(pattern=NM(2, 4), weights=_EIGHT),
            OneShot(pattern=Unstructured(), sparsity=0.9, weights=_EIGHT),
            (Svd(parameters=0.5), _EIGHT),
        ),
    }
    if kind not in forms:
        raise ValueError(f"default_candidates: {kind!r} is not one of {list(forms)}")
    return (None, *forms[kind], *_WIDTHS)
