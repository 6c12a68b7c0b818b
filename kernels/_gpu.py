"""Which instructions a GPU has, and which products the kernels for them take.

Nothing here asks which device will run a kernel. Nor does it import Pallas, which
takes a second: the modules with kernels do, and are imported when a product is traced.
"""

import dataclasses
import enum
from typing import Any

import jax

WARPGROUP_ROWS = 64
"""Rows of the weight that one warpgroup multiplies."""
TENSOR_ROWS = 128
"""Rows of the weight that `tcgen05` multiplies from tensor memory."""
DECODE_ROWS = 16
"""The most rows for which the bytes of the weight bound the time."""
TALLEST = 128
"""Rows of activations of one tile at most."""
LONGEST_INTEGER_SUM = 2**16
"""Products of two int8 numbers, 2^14 at most, of which int32 surely holds the sum."""
PREFERRED_ROWS = 256
"""See `prefers_kernels`."""
FEW_DIGITS = 16
"""Rows of digits that `mma` takes at most."""
HAS_MMA = jax.__version_info__ >= (0, 12)
"""Whether the installed JAX can compile kernels with `mma`; checked with 0.12."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """How a product is cut up.

    Attributes:
        rows: rows of activations of a block, a multiple of 8.
        outputs: rows of the weight of a block, a multiple of 64.
        inputs: inputs of one step.
        splits: blocks that share the inputs of one output; their sums are added later.
        stages: steps whose tiles are in shared memory or on their way.
        specialized: whether one more warpgroup does the copying. Without it, small
            blocks share a multiprocessor and hide each other's waiting.
        overlapped: steps whose products may still run when the next begins; 0 where
            registers hold an operand or several scales want each sum.
        scaled: whether the weight is scaled before the product, group by group.
    """

    rows: int
    outputs: int
    inputs: int
    splits: int
    stages: int
    specialized: bool = False
    overlapped: int = 0
    scaled: bool = False

    @property
    def warpgroups(self) -> int:
        """Warpgroups that multiply by `wgmma` in a block, 64 rows each."""
        return self.outputs // WARPGROUP_ROWS


class Generation(enum.Enum):
    """What a device's tensor cores are programmed by."""

    OLDER = "before compute capability 8.0"
    AMPERE = "`mma`, from 8.0 on"
    HOPPER = "`wgmma`, 9.0"
    BLACKWELL = "`tcgen05`, 10.0"


NO_INSTRUCTION = "there are kernels from compute capability 8.0 on, with JAX 0.12; \
before, for H100 and H200 only"
"""The reason that is given where `instruction` finds nothing."""
_NAMES = {
    Generation.OLDER: ("t4", "v100", "p100", "p40", "p4", "k80"),
    Generation.AMPERE: (
        *("a100", "a800", "a30", "a40", "a16", "a10", "a10g", "a2"),
        *("l40", "l40s", "l4", "l20"),
    ),
    Generation.HOPPER: ("h100", "h200", "h800", "h20", "gh200"),
    Generation.BLACKWELL: ("b200", "gb200"),
}


def generation() -> Generation | None:
    """That of the device that a program is traced for; None if it is not known.

    It is known under `jax.set_mesh` or `jax.sharding.use_abstract_mesh`, and where
    `jax_default_device` is set; nothing asks for hardware. A program with an
    instruction that its device lacks does not compile, so nobody may guess.
    """
    device: Any = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        config: Any = jax.config
        device = config.jax_default_device
    words = getattr(device, "device_kind", "").lower().replace("-", " ").split()
    for found, names in _NAMES.items():
        if not set(names).isdisjoint(words):
            return found
    return None


def instruction(outputs: int = 0, *, widens: bool = False) -> str:
    """The kernels that suit a device and a product.

    "mma" where the device is unknown: every later one has it, too. It wants a newer
    JAX than "wgmma" (`HAS_MMA`).

    Args:
        outputs: N; 0 if it has nothing to do with integer weights.
        widens: whether int4 becomes int8, which the kernel by `tcgen05` does not do.

    Returns:
        "mma", "wgmma" or "tcgen05"; "" if there is none.
    """
    found = generation()
    if found is Generation.HOPPER or (found is None and not HAS_MMA):
        return "wgmma"
    if not HAS_MMA or found is Generation.OLDER:
        return ""
    whole = outputs > 0 and outputs % TENSOR_ROWS == 0
    return (
        "tcgen05" if found is Generation.BLACKWELL and whole and not widens else "mma"
    )


def prefers_kernels(rows: int) -> bool:
    """Whether kernels that keep a weight out of memory are the better choice.

    Where it is known which instructions the device has. What XLA writes and reads
    again, 4 bytes a weight, costs an A100 as much time as 300 rows take to multiply, a
    B200 as 600. Kernels that convert the weight for every block of rows have no more
    than that to win, so beyond `PREFERRED_ROWS` XLA's form stays. By arithmetic, not
    timed.
    """
    found = generation()
    if found is Generation.HOPPER:
        return True
    known = found in (Generation.AMPERE, Generation.BLACKWELL)
    return known and rows <= PREFERRED_ROWS


def round_up(number: int, unit: int) -> int:
    """The smallest multiple of `unit` that is no less."""
    return -(-number // unit) * unit


def step_inputs(inputs: int, groups: int) -> int:
    """Inputs of a step: 128 or 64, whole groups or a whole part of one; else 0."""
    if groups < 1 or inputs % groups:
        return 0
    group = inputs // groups
    for step in (128, 64):
        fits = step % group == 0 or group % step == 0
        if inputs % step == 0 and fits and group % 32 == 0:
            return step
    return 0
