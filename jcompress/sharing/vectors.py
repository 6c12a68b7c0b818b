"""Weights in vectors: a code for several at once, in about two bits a weight."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion import convert_leaves, resolve_specs
from jcompress.errors import MismatchError
from jcompress.rounding.copies import over_copies
from jcompress.rules import Resolved, Rules
from jcompress.sharing.fitting_vectors import Fitted, fit_vectors
from jcompress.sites import Sites, leaf_axes
from jcompress.statistics.moments import moments_of
from jcompress.tensors.axes import Axes, matrix_shape, to_matrix
from jcompress.tensors.vector_codebook import (
    LONGEST,
    MOST_BITS,
    MOST_CODES,
    VectorCodebook,
    code_bytes,
    pack_codes,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterVectors:
    """How successive weights of an output become codes of a table.

    A weight takes `codes * bits / length` bits, and a leaf its tables besides: 4 bytes
    for each of `codes * 2**bits * length` numbers, and 4 for each output. Small leaves
    need small tables: for one of 128 x 128, `length=2, bits=4` or
    `length=4, codes=2, bits=4`, for one of 1024 x 1024 `length=4, bits=8`, for larger
    ones `length=8, codes=2, bits=8`, all of which are 2 bits.

    Attributes:
        length: how many weights a code stands for, 1 to 8. Where it does not divide the
            inputs, the last code of an output stands for fewer.
        codes: of how many tables the entries are added up, 1 to 4; more than one is
            many times slower to fit.
        bits: of a code, 1 to 8; a table has 2^bits entries.
        rounds: how often tables, scales and codes are chosen again, each for the
            others; 0 leaves the tables of k-means, fitted once.
        starts: of sums of several entries, how many are tried for each vector.
        damping: what is added to the diagonal of the second moments, as a fraction of
            its mean, above 0; more trusts the data less. Of several each is tried, and
            that is taken by which the outputs of the leaf err least: much where a few
            directions of the inputs hold most of their energy, little elsewhere.

    Raises:
        TypeError: a field is of the wrong type.
        ValueError: a field is out of range.
    """

    length: int = 4
    codes: int = 1
    bits: int = 8
    rounds: int = 4
    starts: int = 4
    damping: float | tuple[float, ...] = (0.1, 1.0)

    def __post_init__(self) -> None:
        limits: dict[str, tuple[int, float]] = {
            "length": (1, LONGEST),
            "codes": (1, MOST_CODES),
            "bits": (1, MOST_BITS),
            "rounds": (0, math.inf),
            "starts": (1, math.inf),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"ClusterVectors: {name} is {value!r}, not an int")
            if not least <= value <= most:
                upper = "or more" if most == math.inf else f"to {most}"
                raise ValueError(
                    f"ClusterVectors: {name} is {value}, not {least} {upper}"
                )
        if not self.dampings or not all(map(_is_damping, self.dampings)):
            raise ValueError(
                f"ClusterVectors: damping is above 0, not {self.damping!r}"
            )

    @property
    def dampings(self) -> tuple[float, ...]:
        """Those that are tried."""
        given = self.damping
        return given if isinstance(given, tuple) else (given,)

    def stored_bytes(self, outputs: int, inputs: int) -> int:
        """The bytes of a leaf of one matrix, with its tables and scales."""
        codes = outputs * self.codes * code_bytes(inputs, self.length, self.bits)
        return codes + 4 * ((self.codes * self.length << self.bits) + outputs)


def _is_damping(given: object) -> bool:
    return isinstance(given, int | float) and math.isfinite(given) and given > 0


def check_vectors(
    sites: Sites, rules: Rules[ClusterVectors], *, transform: str = "cluster_vectors"
) -> Resolved[ClusterVectors]:
    """Match rules of vectors against a table of sites; nothing is computed.

    Args:
        sites: the table.
        rules: pairs of a predicate and a `ClusterVectors`.
        transform: the caller's name, for the errors.

    Raises:
        TypeError: the rules are malformed, or a spec is no `ClusterVectors`.
        MismatchError: a rule matches no weight, or the rules touch nothing; a matched
            leaf holds no floats, or would not become smaller.
    """
    resolved = resolve_specs(
        rules,
        sites,
        ClusterVectors,
        transform=transform,
        usage="ClusterVectors(length=..., bits=...)",
    )
    for path, spec in resolved.leaves.items():
        uses = sites.of(path)
        shape, dtype = uses[0].shape, uses[0].dtype
        number = resolved.rule_of[path]
        stacks, outputs, inputs = matrix_shape(shape, leaf_axes(uses))
        copies = math.prod(stacks)
        after = copies * spec.stored_bytes(outputs, inputs)
        before = copies * outputs * inputs * dtype.itemsize
        if after >= before:
            raise MismatchError(
                f"{transform}: {path} {list(shape)} would not become smaller: codes, "
                f"tables and scales take {after} bytes, and it has {before}; use fewer "
                f"bits, or exclude it by a rule ({path!r}, None) before rule {number}"
            )
    return resolved


def cluster_vectors(
    params: Any,
    rules: Rules[ClusterVectors],
    *,
    sites: Sites,
    moments: Mapping[str, jax.Array] | None = None,
    key: jax.Array | None = None,
) -> Any:
    """Store weights in vectors: a code for several at once, fitted by what they do.

    At 2 bits a weight the error of a layer's outputs is far below that of integers,
    GPTQ's too (`benchmarks/quantization_methods.py`), and more is to be done: seconds
    for each leaf. Tables begin as those of k-means. Codes are then chosen one vector
    of inputs after the other, each making up for the errors of those before it;
    tables, scales and codes again, each for the others, `rounds` times. Every step
    lowers the squared error of the outputs on inputs with the given second moments.

    Run the tree with `jcompress.execution.compressed`, through which
    `jax.grad(..., allow_int=True)` trains tables and scales as they are stored, the
    codes being fixed. Works under `jit` too, where the check for numbers that are not
    finite is left out.

    Args:
        params: the parameters, with dense leaves.
        rules: pairs of a predicate and a `ClusterVectors`.
        sites: the sites of the function that will use the tree, with the same names.
        moments: for each matched leaf of a product the second moments of its inputs,
            float32 [*S, K, K], up to a factor: what `jcompress.statistics.observe(fn,
            rules, SecondMoments())` gives. None counts all weights alike, as it is done
            for leaves that are only looked up.
        key: a random key for the vectors that k-means begins with; None for one of the
            leaf's name.

    Returns:
        The tree with a `VectorCodebook` in place of each matched leaf.

    Raises:
        TypeError: the rules are malformed.
        MismatchError: a rule cannot apply (see `check_vectors`), moments are given and
            those of a leaf are missing or of another shape; or a leaf is compressed
            already, absent from the tree or of another shape than at its sites.
        ValueError: a matched leaf holds a number that is not finite.

    References:
        van Baalen et al. 2024, "GPTVQ: The Blessing of Dimensionality for LLM
        Quantization"; Egiazarian et al. 2024, "Extreme Compression of Large Language
        Models via Additive Quantization" (AQLM).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.sharing.vectors import ClusterVectors, cluster_vectors
        >>> from jcompress.sites import find_sites
        >>> params = {"w": jax.random.normal(jax.random.key(0), (128, 64))}
        >>> sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 128)))
        >>> rules = [("w", ClusterVectors(length=4, bits=6))]
        >>> small = cluster_vectors(params, rules, sites=sites)
        >>> small["w"].form, small["w"].stored_bytes
        ('VectorCodebook 1x6 bits of 4', 2816)
    """
    resolved = check_vectors(sites, rules)
    wanted = {} if moments is None else resolved.leaves
    learning = {p: "ClusterVectors" for p in wanted if sites.products(p)}
    known = moments_of("cluster_vectors", moments, learning, sites)

    def convert(path: str, leaf: Any, spec: ClusterVectors) -> VectorCodebook:
        axes = leaf_axes(sites.of(path))
        number = zlib.crc32(path.encode())
        own = jax.random.key(number) if key is None else jax.random.fold_in(key, number)
        found = _fitted(jnp.asarray(leaf), known.get(path), own, axes, spec)
        made = VectorCodebook(
            codes=found.codes,
            tables=found.tables,
            scales=found.scales,
            shape=leaf.shape,
            dtype=leaf.dtype,
            stack_axes=axes.stack,
            output_axes=axes.output,
            input_axes=axes.input,
        )
        scales = found.scales
        if not isinstance(scales, jax.core.Tracer) and not np.isfinite(scales).all():
            broken = int((~np.isfinite(np.asarray(leaf))).sum())
            raise ValueError(
                f"cluster_vectors: {path!r} holds {broken} of {leaf.size} numbers that "
                "are not finite, or too large to square"
            )
        return made

    return convert_leaves(
        "cluster_vectors", params, resolved.leaves, convert, sites=sites
    )


@functools.partial(jax.jit, static_argnums=(3, 4))
def _fitted(
    leaf: jax.Array,
    moments: jax.Array | None,
    key: jax.Array,
    axes: Axes,
    spec: ClusterVectors,
) -> Fitted:
    matrix = to_matrix(leaf, axes)
    *stacks, _, inputs = matrix.shape
    even = moments is None  # so is what any damping adds
    if moments is None:
        moments = jnp.broadcast_to(
            jnp.eye(inputs, dtype=jnp.float32), (*stacks, inputs, inputs)
        )
    keys = jax.random.split(key, math.prod(stacks)).reshape(*stacks)

    def one(matrix: jax.Array, moments: jax.Array, key: jax.Array) -> Fitted:
        found = fit_vectors(
            matrix,
            moments,
            key,
            length=spec.length,
            codes=spec.codes,
            bits=spec.bits,
            rounds=spec.rounds,
            starts=spec.starts,
            dampings=(1.0,) if even else spec.dampings,
        )
        return found._replace(codes=pack_codes(found.codes, spec.bits))

    return over_copies(one, matrix, moments, keys)
