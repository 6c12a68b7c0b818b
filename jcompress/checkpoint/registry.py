"""The classes that a checkpoint may hold, each under the name that is stored.

Nothing else is ever made from a file. The names stay as they are: a class that moves or
is renamed keeps its line, with the old name on the left. A new leaf type, or a new
class in a field of one, needs a line here.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jcompress import formats, kv_cache, rounding, tensors
from jcompress.quantization.learned import Clip, LearnedScales, Step
from jcompress.quantization.spec import Quantize
from jcompress.tensors import range_specs, ranges, specs

_CLASSES: dict[str, type[Any]] = {
    # Leaves.
    "Adapted": tensors.Adapted,
    "BlockSparse": tensors.BlockSparse,
    "Codebook": tensors.Codebook,
    "Hashed": tensors.Hashed,
    "LowRank": tensors.LowRank,
    "NMSparse": tensors.NMSparse,
    "QTensor": tensors.QTensor,
    "RemovedArray": tensors.RemovedArray,
    "UnstructuredSparse": tensors.UnstructuredSparse,
    "VectorCodebook": tensors.VectorCodebook,
    "WithOutliers": tensors.WithOutliers,
    # What their fields hold.
    "AdaRound": rounding.AdaRound,
    "Activation": specs.Activation,
    "CoordinateDescent": rounding.CoordinateDescent,
    "Dynamic": specs.Dynamic,
    "Entropy": specs.Entropy,
    "Binary": formats.Binary,
    "Float4": formats.Float4,
    "Float6": formats.Float6,
    "Float8": formats.Float8,
    "FloatScales": formats.FloatScales,
    "FullRange": range_specs.FullRange,
    "Gptq": rounding.Gptq,
    "Int": formats.Int,
    "LeastError": range_specs.LeastError,
    "Lsq": range_specs.Lsq,
    "MeanAbsolute": range_specs.MeanAbsolute,
    "MovingAverage": specs.MovingAverage,
    "Nearest": rounding.Nearest,
    "NormalFloat4": formats.NormalFloat4,
    "Pact": range_specs.Pact,
    "PerBlock": specs.PerBlock,
    "PerChannel": specs.PerChannel,
    "PerGroup": specs.PerGroup,
    "PerRow": specs.PerRow,
    "PerTensor": specs.PerTensor,
    "Percentile": range_specs.Percentile,
    "PowerOfTwoScales": formats.PowerOfTwoScales,
    "Quantize": Quantize,
    "QuantizedScales": formats.QuantizedScales,
    "InputScale": ranges.InputScale,
    "Range": ranges.Range,
    "SignRound": rounding.SignRound,
    "Static": specs.Static,
    "Ternary": formats.Ternary,
    "Weights": specs.Weights,
    # Caches of keys and values.
    "CacheFormat": kv_cache.CacheFormat,
    "KVCache": kv_cache.KVCache,
    "KVCacheVectors": kv_cache.Stored,
    "Vectors": kv_cache.Vectors,
    # Learned scales.
    "Clip": Clip,
    "LearnedScales": LearnedScales,
    "Step": Step,
}


def add(kind: type[Any], name: str) -> None:
    """Let a name stand for a class.

    Raises:
        ValueError: it stands for another one.
    """
    if _CLASSES.setdefault(name, kind) is not kind:
        raise ValueError(
            f"register: checkpoints already hold a {name!r}, {_CLASSES[name]!r}; give "
            "this class another name="
        )


def classes() -> Mapping[str, type[Any]]:
    """Every class by its name."""
    return MappingProxyType(_CLASSES)


def name_of(kind: type[Any]) -> str | None:
    """The name under which a class is stored; None if it is not registered."""
    return next((name for name, known in _CLASSES.items() if known is kind), None)


def class_of(name: str) -> type[Any] | None:
    """The class that is stored under a name; None if there is none."""
    return _CLASSES.get(name)


def registered() -> tuple[str, ...]:
    """The names of all classes that checkpoints may hold."""
    return tuple(sorted(_CLASSES))
