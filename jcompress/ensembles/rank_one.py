"""Members that share their weights but for two vectors each: BatchEnsemble."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion import convert_leaves, find_leaves, resolve_specs
from jcompress.errors import MismatchError
from jcompress.rules import Rules
from jcompress.sites import Sites, leaf_axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankOne:
    """How the vectors of members begin.

    Attributes:
        deviation: they are normally distributed around 1 with this standard deviation;
            None for random signs, which keep the members further apart.

    Raises:
        ValueError: `deviation` is negative or not finite.
    """

    deviation: float | None = None

    def __post_init__(self) -> None:
        known = self.deviation is None or (
            isinstance(self.deviation, int | float)
            and np.isfinite(self.deviation)
            and self.deviation >= 0
        )
        if not known:
            raise ValueError(
                f"RankOne: deviation is None, 0 or more, not {self.deviation!r}"
            )


class Factors(NamedTuple):
    """What a member multiplies a shared weight with; float32, trained with it.

    Attributes:
        inputs: of the shape of the leaf, but 1 along its outputs.
        outputs: of the shape of the leaf, but 1 along its inputs.
    """

    inputs: jax.Array
    outputs: jax.Array


def rank_one_members(
    params: Any,
    rules: Rules[RankOne],
    *,
    sites: Sites,
    members: int,
    key: jax.Array,
) -> dict[str, Factors]:
    """Vectors that make several members of one tree of parameters.

    Member e has the weights `params[leaf] * inputs[e] * outputs[e]`, so that an
    ensemble of E takes hardly more bytes than one network. Train the vectors together
    with the shared parameters, best with a learning rate of their own:

        run = ensemble(lambda vectors, x: fn(with_factors(params, vectors), x))
        run(vectors, x)

    While it runs, each member's weight is made in turn for its products.

    Args:
        params: the shared parameters, dense.
        rules: pairs of a predicate and a `RankOne`.
        sites: the sites of the function that uses `params`.
        members: how many there are.
        key: for the vectors' first values.

    Returns:
        For each matched leaf, by its name, its `Factors` led by the axis of the
        members: a stacked tree for `ensemble` and `jax.vmap`.

    Raises:
        TypeError: the rules are malformed.
        ValueError: `members` is not an int of 1 or more.
        MismatchError: a rule matches no weight, or a leaf does not fit its sites.

    References:
        Wen et al. 2020, "BatchEnsemble: An Alternative Approach to Efficient Ensemble
        and Lifelong Learning", section 3.1, equation 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.ensembles import RankOne, ensemble
        >>> from jcompress.ensembles import rank_one_members, with_factors
        >>> from jcompress.sites import find_sites
        >>> model = lambda params, x: x @ params["w"]
        >>> params, x = {"w": jnp.ones((3, 2))}, jnp.ones((5, 3))
        >>> vectors = rank_one_members(
        ...     params,
        ...     [("w", RankOne())],
        ...     sites=find_sites(model, params, x),
        ...     members=4,
        ...     key=jax.random.key(0),
        ... )
        >>> vectors["w"].inputs.shape, vectors["w"].outputs.shape
        ((4, 3, 1), (4, 1, 2))
        >>> run = ensemble(lambda v, x: model(with_factors(params, v), x), None)
        >>> run(vectors, x).shape
        (4, 5, 2)
    """
    if isinstance(members, bool) or not isinstance(members, int) or members < 1:
        raise ValueError(
            f"rank_one_members: members is an int of 1 or more, not {members!r}"
        )
    resolved = resolve_specs(
        rules, sites, RankOne, transform="rank_one_members", usage="RankOne()"
    )
    leaves = find_leaves("rank_one_members", params, resolved.leaves, sites=sites)
    keys = jax.random.split(key, 2 * len(leaves))
    found = {}
    for number, (name, leaf) in enumerate(leaves.items()):
        axes, spec = leaf_axes(sites.of(name)), resolved.leaves[name]
        shapes = [
            tuple(1 if axis in one else size for axis, size in enumerate(leaf.shape))
            for one in (axes.output, axes.input)
        ]
        found[name] = Factors(
            *(
                _start(keys[2 * number + place], (members, *shape), spec)
                for place, shape in enumerate(shapes)
            )
        )
    return found


def _start(key: jax.Array, shape: tuple[int, ...], spec: RankOne) -> jax.Array:
    if spec.deviation is None:
        return jax.random.rademacher(key, shape, jnp.float32)
    return np.float32(1) + np.float32(spec.deviation) * jax.random.normal(key, shape)


def with_factors(params: Any, vectors: dict[str, Factors]) -> Any:
    """The parameters of one member: shared weights times its vectors.

    Args:
        params: the shared parameters.
        vectors: those of one member, without the axis of the members.

    Returns:
        A tree of the same structure, shapes and dtypes.

    Raises:
        MismatchError: a leaf is not there, is compressed or of another shape.
    """

    def convert(name: str, leaf: Any, factors: Factors) -> jax.Array:
        both = factors.inputs * factors.outputs
        if both.shape != leaf.shape:
            raise MismatchError(
                f"with_factors: {name!r} is {list(leaf.shape)} and its vectors are for "
                f"{list(both.shape)}; give those of one member"
            )
        own: jax.Array = (leaf.astype(jnp.float32) * both).astype(leaf.dtype)
        return own

    return convert_leaves(
        "with_factors", params, vectors, convert, source="the vectors"
    )
