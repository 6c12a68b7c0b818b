"""The models of the benchmarks, tiny, with the groups that each must have."""

from shrinking_models import _path as _path
from shrinking_models import convolutional, others, sequential
from shrinking_models._case import BUILDERS
from shrinking_models._case import Case as Case

THEMES = (convolutional, sequential, others)
"""One module a theme; importing it registers its builders."""

NAMES: tuple[str, ...] = tuple(BUILDERS)
"""Name of every model."""


def build(name: str) -> Case:
    """The model of that name; made once."""
    return BUILDERS[name]()
