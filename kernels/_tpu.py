"""What the kernels for TPUs share."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from jcompress.kernels import _tiles

LANES = 128
"""Numbers side by side in a vector register."""
LANE_BITS = LANES.bit_length() - 1
"""Their logarithm to base 2."""
SUBLANES = 8
"""Rows of 32-bit numbers in a vector register."""
CONTRACT_LAST = (((1,), (1,)), ((), ()))
"""Dimension numbers of `a @ b.T`."""
VMEM_BYTES = 48 * 2**20
"""What a kernel may use of the core's memory: v5e, v6e and 7x have 64 MiB or more."""


def round_up(number: int, unit: int) -> int:
    """The smallest multiple of `unit` that is no less."""
    return -(-number // unit) * unit


def tuned(operation: str, key: str, name: str, otherwise: int) -> int:
    """A size by the tables of `_tiles`, or another if they say nothing.

    Raises:
        ValueError: it is no multiple of 128.
    """
    found = _tiles.tiles(operation, _tiles.device_kind("tpu"), key).get(name)
    if found is None:
        return otherwise
    if found < LANES or found % LANES:
        raise ValueError(
            f"{operation}: the tables have {name} = {found} for {key!r} on TPUs; it "
            f"must be a multiple of {LANES}"
        )
    return found


def per_byte(bits: int) -> int:
    """Integers in a byte."""
    return 8 // bits if bits <= 4 else 1


def gather_places(span: int, per: int) -> jax.Array:
    """The permutation, as a matrix, that brings together the places of bytes.

    `x @ gather_places(span, per)` has the inputs `k % per == 0` first, then 1, ...
    """
    source = jax.lax.broadcasted_iota(jnp.int32, (span, span), 0)
    target = jax.lax.broadcasted_iota(jnp.int32, (span, span), 1)
    place, byte = target >> LANE_BITS, target & (LANES - 1)
    moved = source == byte * per + place
    return moved.astype(jnp.float32).astype(jnp.bfloat16)


def device_kind() -> str:
    """The kind of the device that is compiled for, in small letters; "" if unknown."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return "" if device is None else str(device.device_kind).lower()


def multiplies_integers() -> bool:
    """Whether int8 products have instructions on the device that is compiled for.

    They have on every generation but the seventh. The device is known while tracing
    under `jax.set_mesh` or `jax.sharding.use_abstract_mesh`; nothing asks for hardware.
    Where it is unknown the answer is yes, which is right or slower, never wrong.
    """
    kind = device_kind()
    return not ("tpu7" in kind or "tpu v7" in kind or "tpu 7" in kind)


def planes(stored: jax.Array, bits: int) -> list[jax.Array]:
    """The integers in each place of a byte, times the power of 2 of the top place.

    Args:
        stored: uint8 [n, lanes] of `8 // bits` integers a byte, or int8 or float8 for
            8 bits.
        bits: 2, 4 or 8.

    Returns:
        int8 [n, lanes] for each place; each is the integer times `2^(8 - bits)`. For
        8 bits, what is stored.
    """
    if bits == 8:
        return [stored]
    words = pltpu.bitcast(stored, jnp.int32)
    low = (1 << bits) - 1
    top = sum(low << (8 * byte + 8 - bits) for byte in range(4))
    mask = jnp.int32(top - 2**32)
    shifts = range(8 - bits, -1, -bits)
    return [pltpu.bitcast((words << s) & mask, jnp.int8) for s in shifts]
