"""One model of the zoo, with the table of sites that we expect of it, by hand."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.sites import Operation


class _Any:
    """Equal to everything: the contract leaves this entry open."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "ANY"


ANY: Any = _Any()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Use:
    """What one site of a weight must say."""

    operation: Operation
    input_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    stack_axes: tuple[int, ...] = ()
    macs: int
    runs: int | None = 1
    derived: bool = False
    in_custom_gradient: bool = False


def _use(operation: Operation) -> Callable[..., Use]:
    def use(
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        macs: int = 0,
        *,
        stack: tuple[int, ...] = (),
        **others: Any,
    ) -> Use:
        return Use(
            operation=operation,
            input_axes=inputs,
            output_axes=outputs,
            stack_axes=stack,
            macs=macs,
            **others,
        )

    return use


dot = _use(Operation.DOT)
conv = _use(Operation.CONV)
lookup = _use(Operation.LOOKUP)
ragged = _use(Operation.RAGGED_DOT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A function, its inputs and what `find_sites` must say of it.

    Attributes:
        name: the builder's name.
        fn: `fn(variables, *args, **kwargs)`.
        weights: for each weight its sites (products and lookups), in order.
        elementwise: leaves that are only added, multiplied, ... (no stack axis).
        stacked: such leaves with a stack axis 0.
        unused: leaves that meet no data.
        loose: leaves that meet data in a way that the contract leaves open.
        total_macs: multiplications of a call; by default the sum over `weights`.
        grad: reverse mode works.
        vmap: a batch of inputs makes sense.
        mesh: inputs and leaves may be sharded.
    """

    name: str = ""
    fn: Callable[..., Any]
    variables: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, list[Use]] = dataclasses.field(default_factory=dict)
    elementwise: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()
    total_macs: int | None = None
    grad: bool = True
    vmap: bool = True
    mesh: bool = True

    @property
    def macs(self) -> int:
        if self.total_macs is not None:
            return self.total_macs
        uses = [use for uses in self.weights.values() for use in uses]
        return sum(use.macs * (1 if use.runs is None else use.runs) for use in uses)


BUILDERS: dict[str, Callable[[], Case]] = {}


def case(builder: Callable[[], Case]) -> Callable[[], Case]:
    """Register a builder; its model is made once, when a test first asks for it."""
    name = builder.__name__

    @functools.cache
    def build() -> Case:
        return dataclasses.replace(builder(), name=name)

    assert name not in BUILDERS, name
    BUILDERS[name] = build
    return build


def fields(**table: Any) -> dict[str, Any]:
    """Fields of a `Case` that several builders share."""
    return table


def fill(tree: Any) -> Any:
    """Values for a tree of shapes: random floats (variances above 0), keys, zeros."""

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        rng = np.random.default_rng(zlib.crc32(f"{name} {leaf.shape}".encode()))
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), leaf.shape)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        value = rng.normal(size=leaf.shape) * 0.4
        if "var" in name:
            value = np.abs(value) + 0.5
        return jnp.asarray(value.astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(one, tree)


def leaf(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
    """A random parameter."""
    return data(*shape, dtype=dtype, seed=1) * jnp.asarray(0.5, dtype)


def data(*shape: int, dtype: Any = jnp.float32, seed: int = 0) -> jax.Array:
    """A random input."""
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(rng.normal(size=shape).astype(np.float32)).astype(dtype)


def ids(*shape: int, below: int) -> jax.Array:
    """Random indices."""
    rng = np.random.default_rng(shape)
    return jnp.asarray(rng.integers(0, below, size=shape, dtype=np.int32))
