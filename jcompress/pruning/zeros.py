"""Whether what `prune` removed is still zero."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.pruning._host import on_host
from jcompress.pruning.optimizer import PruneState
from jcompress.tensors import is_compressed

LOST = (
    "Nothing may change the updates after prune: write "
    "prune(optax.chain(...), rules, sites=sites), not optax.chain(prune(...), ...). "
    "apply_masks(params, state.masks) makes them zero again"
)
"""What to do about zeros that a training with `prune` lost."""


def check_removed(transform: str, params: Any, state: PruneState) -> None:
    """Raise if weights that `prune` removed are not zero in the parameters.

    Raises:
        MismatchError: some are not; names the first such leaf and how to chain.
    """
    named = dict(named_leaves(params))
    for path, mask in named_leaves(state.masks):
        if mask is None or path not in named or is_compressed(named[path]):
            continue
        back, gone = count_back(named[path], mask)
        if back and int(state.step) > 0:
            raise MismatchError(
                f"{transform}: {back} of the {gone} weights that prune removed from "
                f"{path!r} are not zero. {LOST}."
            )


def count_back(leaf: Any, mask: Any) -> tuple[int, int]:
    """How many weights are not zero that a mask removes, and how many it removes."""
    host, keep = on_host(leaf), on_host(mask)
    if host is None or keep is None:
        return int(jnp.sum((leaf != 0) & ~mask)), int(jnp.sum(~mask))
    back = np.count_nonzero((host != 0) & ~keep)
    return int(back), keep.size - int(np.count_nonzero(keep))
