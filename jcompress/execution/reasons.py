"""Why a compressed leaf was made dense before it reached a product, in plain words."""

from typing import Any

from jcompress.tracing.jaxprs import Kind, kind_of
from jcompress.tracing.uses import elementwise

_TAKES_A_PART = frozenset(
    ("split", "slice", "rev", "dynamic_slice", "gather", "unstack")
)
_JOINS = frozenset(("concatenate", "stack", "pad", "tile"))
_LOOPS = {
    Kind.SCAN: "a scan carries or slices it",
    Kind.WHILE: "a while loop carries it",
    Kind.COND: "a branch returns it",
    Kind.REMAT: "a function under jax.checkpoint returns it",
    Kind.SHARD_MAP: "shard_map takes it apart by the axes of the dense array",
}


def why_dense(eqn: Any, meets_data: bool) -> str:
    """Say why an equation got the dense array of a compressed leaf.

    Args:
        eqn: the equation; None where the function returns the leaf.
        meets_data: whether the leaf meets data in it.
    """
    if eqn is None:
        return "the function returns it"
    kind, name = kind_of(eqn), eqn.primitive.name
    if kind is Kind.CUSTOM_GRADIENT:
        return "it is used inside a custom gradient, which is left as it is"
    if kind in _LOOPS:
        return _LOOPS[kind]
    if meets_data:
        if elementwise(eqn):
            return f"`{name}` uses it element by element, without a sum of products"
        return f"there is no kernel for `{name}`"
    if name in _TAKES_A_PART:
        return f"`{name}` takes a part that cannot be cut out of the stored arrays"
    if name in _JOINS:
        return f"`{name}` joins it with other values before it is used"
    return f"`{name}` computes something else from it before it is used"
