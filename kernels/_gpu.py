"""Which products the kernels for NVIDIA GPUs take, and how they are cut up.

Nothing here asks which device will run a kernel; sizes are chosen for the
multiprocessors of an H100, which costs speed elsewhere, never correctness. Nor does it
import Pallas, which takes a second: the modules with kernels do, and are imported when
a product is traced.
"""

import dataclasses

import jax

WARPGROUP_ROWS = 64
"""Rows of the weight that one warpgroup multiplies."""
MULTIPROCESSORS = 132
"""Of an H100 or H200."""
SHARED_BYTES = 227 << 10
"""Shared memory that one block may have on sm90."""
DECODE_ROWS = 16
"""Up to so many rows the weight's bytes bound the time, not the multiplications."""
TALLEST = 128
"""Rows of activations of one tile at most."""
LONGEST_INTEGER_SUM = 2**16
"""Products of two int8 numbers, 2^14 at most, of which int32 surely holds the sum."""
FEW_DIGITS = 16
"""Rows of digits that `mma` takes at most."""
HAS_MMA = jax.__version_info__ >= (0, 12)
"""Whether the installed JAX can compile kernels with `mma`; checked with 0.12."""
_HOPPER = ("h100", "h200", "h800", "gh200")
_BEFORE_HOPPER = ("a100", "a30", "a40", "a10", "l4", "l40", "l40s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """How a product is cut up.

    Attributes:
        rows: rows of activations of a block, a multiple of 8.
        warpgroups: warpgroups that multiply in a block, 64 rows of the weight each.
        inputs: inputs of one step.
        splits: blocks that share the inputs of one output; their sums are added later.
        stages: steps whose tiles are in shared memory or on their way.
        specialized: whether one more warpgroup does the copying. Without it, small
            blocks share a multiprocessor and hide each other's waiting.
        overlapped: steps whose products may still run when the next begins; 0 where
            registers hold an operand or several scales want each sum.
    """

    rows: int
    warpgroups: int
    inputs: int
    splits: int
    stages: int
    specialized: bool
    overlapped: int = 0


def runs_on_hopper() -> bool:
    """Whether the device that is compiled for is known to have `wgmma`.

    It is known while tracing under `jax.set_mesh` or
    `jax.sharding.use_abstract_mesh`; nothing asks for hardware. Elsewhere the answer
    is no: a program with the kernel would not compile for an A100.
    """
    return _runs_on(_HOPPER)


def runs_since_ampere() -> bool:
    """Whether that device is known to have `mma` and asynchronous copies."""
    return _runs_on(_BEFORE_HOPPER + _HOPPER)


def lacks_wgmma() -> bool:
    """Whether that device is known to have no `wgmma`."""
    return runs_since_ampere() and not runs_on_hopper()


def _runs_on(models: tuple[str, ...]) -> bool:
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = "" if device is None else device.device_kind.lower()
    return not set(models).isdisjoint(kind.replace("-", " ").split())


def round_up(number: int, unit: int) -> int:
    """The smallest multiple of `unit` that is no less."""
    return -(-number // unit) * unit


def choose_tiles(
    rows: int, outputs: int, inputs: int, groups: int, *, x_bits: int, bits: int
) -> Tiles:
    """Tiles for a product `[rows, inputs] x [outputs, inputs]` that `refuses` allows.

    Args:
        rows: M.
        outputs: N, a multiple of 64.
        inputs: K, a multiple of 64.
        groups: scales of one output.
        x_bits: bits of an activation.
        bits: bits of a weight.
    """
    decode = rows <= DECODE_ROWS
    pieces = -(-rows // TALLEST)
    tall = round_up(-(-rows // pieces), 8)
    step = step_inputs(inputs, groups)
    pair = not decode and outputs % (2 * WARPGROUP_ROWS) == 0
    warpgroups = 2 if pair else 1
    blocks = pieces * outputs // (WARPGROUP_ROWS * warpgroups)
    # Four small blocks a multiprocessor, or one large: as many as fit side by side.
    wanted = MULTIPROCESSORS * (4 if decode else 1)
    steps = inputs // step
    splits = max(
        (s for s in range(1, steps + 1) if steps % s == 0 and blocks * s <= wanted),
        default=1,
    )
    high = WARPGROUP_ROWS * warpgroups
    moved = step * (tall * x_bits + high * bits) // 8
    written = 4 if splits > 1 or x_bits == 8 else x_bits // 8
    return Tiles(
        rows=tall,
        warpgroups=warpgroups,
        inputs=step,
        splits=splits,
        stages=stages(moved, shared=high * tall * written, blocks=4 if decode else 1),
        specialized=not decode,
        overlapped=int(not decode and groups == 1 and x_bits == bits),
    )


def stages(moved: int, *, shared: int, blocks: int = 1) -> int:
    """Steps to keep in shared memory: 2 to 4, as fit.

    Args:
        moved: bytes of the tiles of a step.
        shared: bytes that a block has in shared memory besides.
        blocks: blocks that share a multiprocessor.
    """
    room = SHARED_BYTES // blocks - shared - 1024
    return max(2, min(4, room // moved))


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
