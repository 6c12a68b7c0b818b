"""XLA's products and ours, as contenders of the CPU benchmarks."""

import concurrent.futures
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _timing import Offer, offer, sets_of

from jcompress.formats import Int
from jcompress.formats.packing import pack_bits
from jcompress.kernels import (
    Implementation,
    int8_matmul,
    vector_codebook_matmul,
    weight_only_matmul,
)
from jcompress.quantization import PerChannel, PerGroup, Weights
from jcompress.tensors.vector_codebook import code_bytes, decode
from jcompress.tensors.weight_matrix import dequantize_matrix, quantize_matrix

_pack = jax.jit(pack_bits, static_argnums=1)

BASE = "xla f32"
"""The dense product that everything is compared with."""


LAID, LARGE = 4, 8 << 20
"""The fewest rows, and numbers of a weight, for which ours are constants."""


PROGRAMS = 192
"""The most programs with constant weights: of 4-bit weights of 384 x 1536 these have
twice the bytes of a cache of 32 MiB, not four times."""


class JaxProduct:
    """A jitted function of inputs and the arrays of one weight.

    With `constant` the arrays are constants of the program, as other libraries have
    them, which lay weights out beforehand; else arguments of it. Not those of small
    weights for fewer than four rows: a program for each set would be read from memory,
    too, which a model, in one program, does not do.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        bits: int,
        *,
        activations: int,
        run: Callable[..., jax.Array],
        weight: tuple[np.ndarray | None, ...],
        stands_for: Callable[[], np.ndarray],
        tolerance: float,
        dtype: Any = jnp.float32,
        constant: bool = False,
    ) -> None:
        self.name, self.kind, self.bits = name, kind, bits
        self.activations, self.tolerance = activations, tolerance
        self.stands_for = stands_for
        self.bytes = sum(array.nbytes for array in weight if array is not None)
        self.sets = sets_of(self.bytes)
        self._dtype = dtype
        weights = [
            tuple(None if a is None else _other(a, number, constant) for a in weight)
            for number in range(self.sets)
        ]
        self._weights = weights
        self._run = run
        self._constant = constant

    def bind(self, x: np.ndarray) -> Callable[[int], Any]:
        """The call for inputs [M, K]; its programs go when it goes."""
        given = jnp.asarray(x, self._dtype)
        runs: Sequence[Callable[[jax.Array], jax.Array]]
        few = len(self._weights) == 1 or self.bytes * 8 // self.bits >= LARGE
        if self._constant and (len(x) >= LAID or few):
            # One program for each set: compiling them takes most of the time.
            with concurrent.futures.ThreadPoolExecutor() as pool:
                some = self._weights[:PROGRAMS]
                runs = list(pool.map(self._compiled(given), some))
        else:
            by_arguments = jax.jit(self._run)
            runs = [_with_weight(by_arguments, one) for one in self._weights]
        for run in runs:
            run(given)
        self.sets = len(runs)

        def call(number: int) -> Any:
            return runs[number](given).block_until_ready()

        return call

    def _compiled(self, x: jax.Array) -> Callable[..., Any]:
        def compiled(weight: tuple[Any, ...]) -> Any:
            run = jax.jit(_with_weight(self._run, weight))
            run(x)
            return run

        return compiled

    def read(self, out: Any) -> np.ndarray:
        """A result as float32 numpy."""
        return np.asarray(out, np.float32)


def _other(array: np.ndarray, number: int, constant: bool) -> jax.Array:
    """A copy; of constants, which programs may share, each differs in one integer."""
    copy = np.array(array)
    if constant and number and copy.dtype.itemsize == 1:
        copy.flat[number] ^= 1
    return jnp.asarray(copy)


def _with_weight(
    run: Callable[..., jax.Array], weight: tuple[Any, ...]
) -> Callable[[jax.Array], jax.Array]:
    return lambda x: run(x, *weight)


def xla_products(weight: np.ndarray) -> Iterator[Offer]:
    """The float products of [N, K], stored [K, N] as models store them, and int8."""
    transposed = np.ascontiguousarray(weight.T)
    exact = functools.partial(weight.astype, np.float64)
    for name, bits, dtype, tolerance in (
        (BASE, 32, jnp.float32, 1e-5),
        ("xla bf16", 16, jnp.bfloat16, 1e-2),
    ):
        yield offer(
            JaxProduct,
            name,
            "xla",
            bits,
            activations=bits,
            run=jnp.matmul,
            weight=(np.asarray(transposed, dtype),),
            stands_for=exact,
            tolerance=tolerance,
            dtype=dtype,
        )
    yield from _quantized(weight, "xla", Implementation.XLA, _XLA_FORMS)
    yield from _coded(weight.shape, "xla", Implementation.XLA, _CODES[:1])


def our_products(weight: np.ndarray) -> Iterator[Offer]:
    """The public functions as they dispatch by themselves."""
    yield from _quantized(weight, "ours", None, _OUR_FORMS)
    yield from _coded(weight.shape, "ours", None, _CODES)


_Form = tuple[str, int, int | None, int | None]
"""Name, bits, group (None: a scale a channel), bits of the inputs (None: floats)."""
_XLA_FORMS: tuple[_Form, ...] = (
    ("W8A8", 8, None, 8),
    ("W8", 8, None, None),
    ("W4 g128", 4, 128, None),
)
_OUR_FORMS: tuple[_Form, ...] = (
    ("W8A8", 8, None, 8),
    ("W8", 8, None, None),
    ("W4", 4, None, None),
    ("W4 g128", 4, 128, None),
    ("W4A8", 4, None, 8),
    ("W4A8 g32", 4, 32, 8),
    ("W4A8 g128", 4, 128, 8),
    ("W3 g128", 3, 128, None),
    ("W3A8 g128", 3, 128, 8),
    ("W2 g128", 2, 128, None),
    ("W2A8 g128", 2, 128, 8),
)


def _quantized(
    weight: np.ndarray,
    kind: str,
    implementation: Implementation | None,
    forms: tuple[_Form, ...],
) -> Iterator[Offer]:
    for name, bits, group, x_bits in forms:
        spec = Weights(
            format=Int(bits), granularity=PerGroup(group) if group else PerChannel()
        )
        values, scales, _ = quantize_matrix(jnp.asarray(weight), spec)
        run: Callable[..., jax.Array]
        if bits == 8 and x_bits == 8:
            run = functools.partial(int8_matmul, implementation=implementation)
        else:
            given: dict[str, Any] = {"bits": bits, "implementation": implementation}
            if x_bits is not None:
                given["x_bits"] = x_bits
            run = functools.partial(weight_only_matmul, **given)
        yield offer(
            JaxProduct,
            f"{kind} {name}",
            kind,
            bits,
            activations=x_bits or 32,
            run=run,
            weight=(np.asarray(_pack(values, bits)), np.asarray(scales)),
            stands_for=functools.partial(_dense, values, scales),
            tolerance=1e-3 if x_bits is None else 2e-2,
            constant=implementation is None,
        )


_Codes = tuple[int, int, int]
"""How many codes of how many bits are added up, and for how many weights."""
_CODES: tuple[_Codes, ...] = ((1, 8, 4), (1, 5, 2), (1, 7, 3), (2, 8, 8))


def _coded(
    shape: tuple[int, ...],
    kind: str,
    implementation: Implementation | None,
    forms: tuple[_Codes, ...],
) -> Iterator[Offer]:
    """Products with random codes of vectors: what they say does not change the time."""
    for count, bits, length in forms:
        random = np.random.default_rng(bits)
        stored = (shape[0], count, code_bytes(shape[1], length, bits))
        weight = (
            random.integers(256, size=stored).astype(np.uint8),
            random.normal(size=(count, 2**bits, length)).astype(np.float32),
            random.normal(size=(shape[0], 1)).astype(np.float32),
        )
        yield offer(
            JaxProduct,
            f"{kind} codes {count}x{bits} of {length}",
            kind,
            round(count * bits / length),
            activations=32,
            run=functools.partial(
                vector_codebook_matmul, implementation=implementation
            ),
            weight=weight,
            stands_for=functools.partial(_decoded, *weight, shape[1]),
            tolerance=1e-3,
        )


def _decoded(
    codes: np.ndarray, tables: np.ndarray, scales: np.ndarray, inputs: int
) -> np.ndarray:
    matrix = decode(jnp.asarray(codes), jnp.asarray(tables), inputs=inputs)
    decoded: np.ndarray = np.asarray(matrix, np.float64) * scales
    return decoded


def _dense(values: jax.Array, scales: jax.Array) -> np.ndarray:
    dense = dequantize_matrix(values, scales, None, jnp.float32)
    return np.asarray(dense, np.float64)


def call_overhead() -> float:
    """Median seconds of a jitted call that does nothing, waited for."""
    nothing = jax.jit(lambda x: x + np.float32(1))
    x = jnp.zeros((1, 8))
    times = []
    for _ in range(2000):
        start = time.perf_counter()
        nothing(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def peak(size: int = 2048, rounds: int = 7) -> dict[str, float]:
    """Operations a second (two a multiply-add) of XLA's large products: the best."""

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        whole = jnp.int32 if a.dtype == jnp.int8 else jnp.float32
        return jnp.einsum("mk,nk->mn", a, b, preferred_element_type=whole)

    rates = {}
    for name, dtype in (("float32", jnp.float32), ("int8", jnp.int8)):
        run, x = jax.jit(product), jnp.ones((size, size), dtype)
        run(x, x).block_until_ready()
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            run(x, x).block_until_ready()
            times.append(time.perf_counter() - start)
        rates[name] = 2 * size**3 / min(times)
    return rates
