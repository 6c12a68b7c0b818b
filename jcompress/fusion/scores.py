"""The first product of an attention, and what happens to its scores."""

import dataclasses
import math
from typing import Any

import numpy as np

from jcompress.fusion.graph import Graph, floats
from jcompress.tracing.jaxprs import aval_shape

LETTERS = "abcfghijklmnopqrtuvwxyz"
"""Names of axes of scores."""
FEATURE, KEY, VALUE = "d", "s", "e"
"""Names of axes: contracted features, keys, and features of values."""


@dataclasses.dataclass
class Scores:
    """What happens to scores between the first product and the softmax."""

    scale: float = 1.0
    fill: float = -math.inf
    bias: Any = None
    bias_order: tuple[int, ...] = ()
    mask: Any = None
    mask_order: tuple[int, ...] = ()
    inverted: bool = False
    letters: str = ""

    def extra(self) -> list[tuple[Any, str]]:
        """Bias and mask, those that there are, and the names of their axes."""
        pairs = ((self.bias, self.bias_order), (self.mask, self.mask_order))
        found = []
        for one, order in pairs:
            if one is not None:
                places = sorted(range(len(order)), key=lambda d: order[d])
                found.append((one, "".join(self.letters[d] for d in places)))
        return found


def scores_before(graph: Graph, atom: Any) -> tuple[int, Scores] | None:
    """The product that scores come from, and what happens to them on the way."""
    found = Scores()
    rank = len(aval_shape(atom))
    order = tuple(range(rank))
    scaled = False
    while True:
        eqn = graph.maker(atom)
        if eqn is None or not floats(atom):
            return None
        name = eqn.primitive.name
        if name == "dot_general":
            letters = _letters_of(eqn, order)
            if letters is None:
                return None
            found.letters = letters
            return graph.makers[atom], found
        if name == "transpose":
            order = tuple(eqn.params["permutation"][d] for d in order)
            atom = eqn.invars[0]
        elif name in ("mul", "div"):
            pairs = [(0, 1)] if name == "div" else [(0, 1), (1, 0)]
            for mine, other in pairs:
                factor = graph.constant(eqn.invars[other])
                if factor:
                    found.scale *= factor if name == "mul" else 1 / factor
                    atom, scaled = eqn.invars[mine], True
                    break
            else:
                return None
        elif name == "add" and 0 in map(graph.constant, eqn.invars):
            # A bias that a setting leaves out.
            atom = eqn.invars[graph.constant(eqn.invars[0]) == 0]
        elif name == "add" and found.bias is None and not scaled:
            side = _side_of_product(graph, eqn)
            if side is None or not aval_shape(eqn.invars[1 - side]):
                return None
            found.bias, atom = eqn.invars[1 - side], eqn.invars[side]
            found.bias_order = order
        elif name == "select_n" and not scaled:
            # Of what is added before the mask nothing is left where that says no.
            if found.bias is not None or found.mask is not None or len(eqn.invars) != 3:
                return None
            which, no, yes = eqn.invars
            below, above = graph.constant(no), graph.constant(yes)
            if (below is None) == (above is None) or aval_shape(which) == ():
                return None
            found.mask, found.mask_order = which, order
            found.inverted = below is None
            found.fill = above if below is None else below  # type: ignore[assignment]
            atom = no if below is None else yes
        else:
            return None


def _side_of_product(graph: Graph, eqn: Any) -> int | None:
    """Which input of a sum comes from a product of two values that vary."""
    for mine in range(2):
        atom = eqn.invars[mine]
        for _ in range(6):
            maker = graph.maker(atom)
            if maker is None:
                break
            name = maker.primitive.name
            if name == "dot_general" and graph.only_user(atom) is not None:
                if len(maker.params["dimension_numbers"][0][0]) == 1:
                    return mine
                break
            if name in ("mul", "div", "transpose", "select_n", "add"):
                inputs = [v for v in maker.invars if graph.constant(v) is None]
                floating = [v for v in inputs if v.aval.dtype == np.float32]
                if not floating:
                    break
                atom = floating[0]
                continue
            break
    return None


def _letters_of(eqn: Any, order: tuple[int, ...]) -> str | None:
    """Names of the axes of scores, of which the last is the keys'."""
    contract, _ = eqn.params["dimension_numbers"]
    rank = len(aval_shape(eqn.outvars[0]))
    if len(contract[0]) != 1 or rank > len(LETTERS):
        return None
    names = list(LETTERS[:rank])
    names[order[-1]] = KEY
    return "".join(names[d] for d in order)


def first_axes(eqn: Any, letters: str) -> tuple[Any, Any, list[str]] | None:
    """Query and key of the first product, and the names of their axes.

    Args:
        eqn: the product.
        letters: names of the axes of the scores, as they reach the softmax.
    """
    contract, batch = eqn.params["dimension_numbers"]
    if not floats(*eqn.invars):
        return None
    rank = len(letters)
    names = list(LETTERS[:rank])
    missing = [d for d in range(rank) if names[d] not in letters]
    names[missing[0]] = KEY
    sides = []
    start = len(batch[0])
    for side in range(2):
        shape = aval_shape(eqn.invars[side])
        mine = [""] * len(shape)
        mine[contract[side][0]] = FEATURE
        for place, dim in enumerate(batch[side]):
            mine[dim] = names[place]
        for dim, name in enumerate(mine):
            if not name:
                mine[dim] = names[start]
                start += 1
        sides.append("".join(mine))
    keys = 0 if KEY in sides[0] else 1
    shared = {names[place] for place in range(len(batch[0]))}
    if KEY in shared:
        return None
    return (
        eqn.invars[1 - keys],
        eqn.invars[keys],
        [sides[1 - keys], sides[keys]],
    )
