"""Small models whose sites we know: what `find_sites` and the interpreter must do."""

from zoo import (
    branches,
    convolutions,
    custom_gradients,
    handwritten,
    library_layers,
    linen_models,
    linen_sequences,
    lookups,
    loops,
    nnx_models,
    other_libraries,
    parallel,
    rarities,
    reparametrised,
    signatures,
)
from zoo._case import ANY as ANY
from zoo._case import BUILDERS
from zoo._case import Case as Case
from zoo._case import Use as Use

THEMES = (
    branches,
    convolutions,
    custom_gradients,
    handwritten,
    library_layers,
    linen_models,
    linen_sequences,
    lookups,
    loops,
    nnx_models,
    other_libraries,
    parallel,
    rarities,
    reparametrised,
    signatures,
)
"""One module a theme; importing it registers its builders."""

NAMES: tuple[str, ...] = tuple(BUILDERS)
"""Name of every model."""


def build(name: str) -> Case:
    """The model of that name; made once."""
    return BUILDERS[name]()
