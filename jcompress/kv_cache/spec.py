"""How a cache stores keys and values: frozen specs."""

import dataclasses

from jcompress.formats import FloatScales, Int, NumberFormat, ScaleFormat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vectors:
    """How vectors of keys or of values are stored: each token and head by itself.

    Of a vector of `size` numbers every `group` neighbours share a scale, and a zero
    point if the format is asymmetric. What is stored of a token never changes later.

    Attributes:
        format: which numbers are stored: one of `jcompress.formats` of 2 bits or more.
        group: numbers that share a scale; None for all of a vector. It divides `size`.
        scales: how scales are stored. The default, bfloat16, errs as float32 does, but
            for some hundredths of it, in half of the bytes.

    Raises:
        TypeError: a field is of another kind.
        ValueError: the format has less than 2 bits, the group is not positive, or the
            scales share a factor, which a cache that grows cannot know.

    Example:
        >>> Vectors(format=Int(4, symmetric=False), group=32).format.bits
        4
    """

    format: NumberFormat = Int(8)
    group: int | None = None
    scales: ScaleFormat = FloatScales(16)

    def __post_init__(self) -> None:
        if not isinstance(self.format, NumberFormat):
            raise TypeError(
                "Vectors: format is one of jcompress.formats, such as Int(4), not "
                f"{self.format!r}"
            )
        if not isinstance(self.scales, ScaleFormat):
            raise TypeError(
                "Vectors: scales is FloatScales(bits) or PowerOfTwoScales(), not "
                f"{self.scales!r}"
            )
        group = self.group
        if group is not None and (
            isinstance(group, bool) or not isinstance(group, int)
        ):
            raise TypeError(f"Vectors: group is an int or None, not {group!r}")
        if group is not None and group < 1:
            raise ValueError(f"Vectors: group is positive, not {group}")
        if self.format.bits < 2:
            raise ValueError(
                f"Vectors: numbers of {self.format} are too coarse for a scale that "
                "covers the largest; take 2 bits or more"
            )
        if self.scales.has_factor:
            raise ValueError(
                f"Vectors: {self.scales!r} has a factor for all scales, which tokens "
                "to come would change; take FloatScales(16) or PowerOfTwoScales()"
            )

    def groups(self, size: int) -> int:
        """How many scales a vector of `size` numbers has.

        Raises:
            ValueError: the groups do not divide it.
        """
        group = size if self.group is None else self.group
        if size % group:
            raise ValueError(f"kv_cache: groups of {group} do not divide {size}")
        return size // group


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheFormat:
    """How a cache stores its keys and its values.

    Attributes:
        keys: how keys are stored; None for floats of the cache's dtype.
        values: how values are stored; None for floats.

    Raises:
        TypeError: a field is neither `Vectors` nor None.
    """

    keys: Vectors | None = Vectors()
    values: Vectors | None = Vectors()

    def __post_init__(self) -> None:
        for name in ("keys", "values"):
            given = getattr(self, name)
            if given is not None and not isinstance(given, Vectors):
                raise TypeError(
                    f"CacheFormat: {name} is Vectors(...) or None, not {given!r}"
                )
