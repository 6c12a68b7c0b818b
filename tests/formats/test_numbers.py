"""Every number format: which numbers it rounds to, how they and scales are stored."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jcompress.formats import (
    Binary,
    Float4,
    Float6,
    Float8,
    FloatScales,
    Int,
    NormalFloat4,
    NumberFormat,
    PowerOfTwoScales,
    QuantizedScales,
    ScaleFormat,
    Ternary,
)
from jcompress.formats.packing import pack_codes, unpack_codes

pytestmark = pytest.mark.bits

SMALL_FLOATS = {
    Float8(): ml_dtypes.float8_e4m3fn,
    Float8(5): ml_dtypes.float8_e5m2,
    Float6(): ml_dtypes.float6_e2m3fn,
    Float6(3): ml_dtypes.float6_e3m2fn,
    Float4(): ml_dtypes.float4_e2m1fn,
}
NF4 = """-1 -0.6961928 -0.52507305 -0.39491749 -0.28444138 -0.18477343 -0.09105004 0
0.0795803 0.1609302 0.2461123 0.33791524 0.44070983 0.5626170 0.72295684 1"""
"""As the paper's appendix E lists them."""


def numbers_of(format: NumberFormat) -> np.ndarray[Any, Any]:
    """All numbers there are, in order, found without the library."""
    match format:
        case Int():
            return np.arange(format.low, format.high + 1).astype(np.float32)
        case Ternary():
            return np.array([-1, 0, 1], np.float32)
        case Binary():
            return np.array([-1, 1], np.float32)
        case NormalFloat4():
            return np.array(NF4.split(), np.float32)
    kind = np.dtype(SMALL_FLOATS[format])
    codes = np.arange(2**format.bits, dtype=np.uint8).view(kind)
    found = codes.astype(np.float32)
    return np.unique(found[np.isfinite(found)])


ALL = [
    *(Int(bits) for bits in (2, 3, 4, 5, 6, 7, 8)),
    Int(6, symmetric=False),
    Int(2, full=True),
    *SMALL_FLOATS,
    NormalFloat4(),
    Ternary(),
    Binary(),
]


@pytest.mark.parametrize("format", ALL, ids=str)
def test_rounds_to_the_nearest_and_covers_what_is_not_clipped(
    format: NumberFormat,
) -> None:
    known = numbers_of(format)
    assert (known[0], known[-1]) == (format.low, format.high)
    drawn = np.random.default_rng(0).normal(size=3000) * format.high / 2
    steps = np.concatenate([drawn.astype(np.float32), known])
    zero = None if format.symmetric else jnp.zeros(())
    rounded = np.asarray(format.round(jnp.asarray(steps), zero))
    np.testing.assert_allclose(rounded[len(drawn) :], known, atol=2e-7)
    best = np.abs(known - steps[:, None]).min(axis=1)
    np.testing.assert_allclose(np.abs(rounded - steps), best, atol=1e-6)
    covered = np.asarray(format.covers(jnp.asarray(steps), zero))
    inside = (steps >= known[0]) & (steps <= known[-1])
    assert covered[inside].all()
    last_step = known[-1] - known[-2]
    beyond = (steps > known[-1] + last_step) | (steps < known[0] - last_step)
    assert not covered[beyond].any()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_full_format_has_all_numbers_of_its_bits(bits: int) -> None:
    format, half = Int(bits, full=True), 2 ** (bits - 1)
    assert (format.low, format.high, format.reach) == (-half, half - 1, half - 0.5)
    # What the scale covers is half a step from a number at most, and gets a gradient.
    steps = jnp.linspace(-format.reach, format.reach, 257, dtype=jnp.float32)
    assert float(jnp.abs(format.round(steps) - steps).max()) <= 0.5
    assert bool(format.covers(steps).all())
    assert not format.covers(jnp.array([-half - 0.51, format.reach + 0.01])).any()
    with pytest.raises(ValueError, match="symmetric=False has all numbers"):
        Int(bits, symmetric=False, full=True)
    with pytest.raises(TypeError, match="full is True or False, not 1"):
        Int(bits, full=1)


@pytest.mark.parametrize("format", SMALL_FLOATS, ids=str)
def test_ties_go_to_the_even_number(format: NumberFormat) -> None:
    known = numbers_of(format)
    middles = (known[1:] + known[:-1]) / 2
    rounded = format.round(jnp.asarray(middles))
    expected = middles.astype(SMALL_FLOATS[format]).astype(np.float32)
    np.testing.assert_array_equal(rounded, expected)


@pytest.mark.parametrize("format", [*ALL, Int(16)], ids=str)
@pytest.mark.parametrize("size", [0, 1, 13])
def test_stored_without_gaps_and_back(format: NumberFormat, size: int) -> None:
    rng = np.random.default_rng(1)
    known = numbers_of(format) if format.bits < 16 else np.array([-32767.0, 5, 32767])
    numbers = np.asarray(rng.choice(known, (2, size)) / format.unit, np.float32)
    numbers = jnp.asarray(numbers.astype(format.dtype))
    stored = jax.jit(format.pack)(numbers)
    assert stored.dtype == format.stored_dtype
    bits = 8 * np.dtype(format.stored_dtype).itemsize
    whole = -(-size // 5) if format == Ternary() else -(-size * format.bits // bits)
    assert stored.shape == (2, format.stored_size(size)) == (2, whole)
    back = format.unpack(stored, size)
    assert back.dtype == format.dtype
    # The paper's list of NF4 is rounded otherwise in its last digit.
    np.testing.assert_allclose(
        np.asarray(back).astype(np.float32),
        np.asarray(numbers).astype(np.float32),
        rtol=1e-6 if format == NormalFloat4() else 0,
    )


@pytest.mark.parametrize("format", [Float6(), Float6(3), Float4()], ids=str)
def test_small_floats_have_the_codes_of_their_standard(format: NumberFormat) -> None:
    kind = SMALL_FLOATS[format]
    numbers = numbers_of(format)
    codes = numbers.astype(kind).view(np.uint8)
    codes[numbers == 0] = 0
    stream = 0
    for place, code in enumerate(codes.tolist()):
        stream |= code << (format.bits * place)
    expected = stream.to_bytes(format.stored_size(len(codes)), "little")
    given = jnp.asarray((numbers / format.unit).astype(format.dtype))
    assert np.asarray(format.pack(given)).tobytes() == expected


def test_known_bytes() -> None:
    ternary = Ternary().pack(jnp.asarray([1, 0, -1, -1, 1, -1, -1, 0], jnp.int8))
    np.testing.assert_array_equal(ternary, [2 + 1 * 3 + 2 * 81, 9 + 27 + 81])
    binary = Binary().pack(jnp.asarray([1, -1, -1, 1, 1, -1, -1, -1, 1], jnp.int8))
    np.testing.assert_array_equal(binary, [0b00011001, 1])


@pytest.mark.parametrize("bits", [1, 5, 6, 7])
def test_streams_bit_by_bit(bits: int) -> None:
    values = np.random.default_rng(0).integers(-128, 128, (2, 27), np.int8)
    packed = np.asarray(pack_codes(jnp.asarray(values), bits))
    for row, bytes_of in zip(values, packed, strict=True):
        stream = 0
        for place, value in enumerate(row.tolist()):
            stream |= (value % 2**bits) << (bits * place)
        assert bytes_of.tobytes() == stream.to_bytes(-(-27 * bits // 8), "little")
    low = values.astype(int) % 2**bits
    signed = np.where(low >= 2 ** (bits - 1), low - 2**bits, low)
    np.testing.assert_array_equal(unpack_codes(jnp.asarray(packed), 27, bits), signed)


SCALES: list[ScaleFormat] = [
    FloatScales(),
    FloatScales(16),
    PowerOfTwoScales(),
    QuantizedScales(),
    QuantizedScales(Int(8)),
]


@pytest.mark.parametrize("kind", SCALES, ids=repr)
def test_scales_that_fit_are_stored_exactly(kind: ScaleFormat) -> None:
    rng = np.random.default_rng(2)
    width = np.exp(rng.normal(size=(3, 5, 4))).astype(np.float32)
    width[1] *= np.float32(1e-20)
    width[2, 0, 0] = 0
    scales = jax.jit(kind.fit, static_argnums=1)(jnp.asarray(width), 6.0)
    stored, factor = kind.store(scales)
    assert stored.dtype == kind.dtype
    assert (factor is not None) == kind.has_factor
    assert factor is None or factor.shape == (3, 1, 1)
    np.testing.assert_array_equal(kind.read(stored, factor), scales)
    ratio = np.asarray(scales)[:2] * 6 / width[:2]
    bound = {FloatScales(): 1e-6, FloatScales(16): 2**-8, PowerOfTwoScales(): 0.75}
    most = bound.get(kind, 2.0**-4 if kind == QuantizedScales() else np.inf)
    assert np.abs(np.log2(ratio)).max() <= np.log2(1 + most) + 1e-6
    assert float(scales[2, 0, 0]) > 0


@pytest.mark.parametrize("kind", SCALES, ids=repr)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(kind: ScaleFormat, wrong: float) -> None:
    width = jnp.asarray([[[1.0, wrong]]])
    read = kind.read(*kind.store(kind.fit(width, 7.0)))
    assert not np.isfinite(np.asarray(read)).all()


@pytest.mark.parametrize(
    ("span", "middle"), [(6.0, 7.0), (448.0, 480.0), (127, 127.5), (7.5, 7.75)]
)
def test_powers_of_two_clip_half_a_step_at_most(span: float, middle: float) -> None:
    below, above = np.nextafter(np.float32(middle), np.float32([0, np.inf]))
    widths = jnp.asarray([[below, middle, above, 2 * middle]], jnp.float32)
    fitted = PowerOfTwoScales().fit(widths, span)
    np.testing.assert_array_equal(fitted, [[1, 1, 2, 2]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Float8(3), "Float8: exponent_bits is 4 or 5, not 3"),
        (lambda: Float6(4), "Float6: exponent_bits is 2 or 3, not 4"),
        (lambda: FloatScales(8), "FloatScales: bits is 16 or 32, not 8"),
        (lambda: QuantizedScales(Int(4)), r"Float8\(\) or Int\(8\), not Int\(bits=4"),
        (lambda: QuantizedScales(Int(8, symmetric=False)), "symmetric=False"),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_formats_are_values() -> None:
    every = [*ALL, *SCALES]
    for one, other in itertools.combinations(every, 2):
        assert one != other
    for one in every:
        assert eval(repr(one)) == one
        hash(one)
