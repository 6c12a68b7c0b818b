"""What is installed, what of it works on this machine, and what to do if it does not.

Every implementation that this machine can run computes a small product of each kind,
which is compared with the operation's reference.
"""

import ctypes
import dataclasses
import importlib.metadata
import platform
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress import __version__
from jcompress.kernels import Implementation, _native
from jcompress.kernels._dispatch import Forms
from jcompress.kernels.block_sparse_matmul.api import FORMS as _BLOCK_SPARSE
from jcompress.kernels.codebook_matmul.api import FORMS as _CODEBOOK
from jcompress.kernels.int8_matmul.api import FORMS as _INT8
from jcompress.kernels.nm_sparse_matmul.api import FORMS as _NM_SPARSE
from jcompress.kernels.quantized_conv.api import FORMS as _CONV
from jcompress.kernels.quantized_conv.window import Window
from jcompress.kernels.weight_only_matmul.api import FORMS as _WEIGHT_ONLY
from jcompress.tensors.packing import pack_bits

PYTHONS = ((3, 11), (3, 13))
"""The oldest and the newest Python that the tests run on."""
JAXES = ((0, 10, 2), (0, 12))
"""The same of JAX."""
INSTRUCTIONS = (
    *("amx_int8", "avx512_vbmi", "avx512_vnni", "avx_vnni", "avx2", "neon", "generic"),
)
"""What the compiled kernels may use, as they call it."""

_ROWS, _OUTPUTS, _INPUTS, _GROUPS = 4, 128, 512, 8
_OWN = {Implementation.TPU: "tpu", Implementation.GPU: "cuda"}
_COMPILERS = {
    "Linux": "a C++17 compiler (Debian and Ubuntu: apt install g++; Fedora: dnf "
    "install gcc-c++; conda: conda install gxx)",
    "Darwin": "a C++17 compiler (xcode-select --install)",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A product of one kind, small, with the arguments of its forms.

    Attributes:
        name: the operation and what is particular.
        forms: the operation's.
        args: arrays with a stack axis of one, or None for one left out.
        static: keyword arguments.
    """

    name: str
    forms: Forms
    args: tuple[Any, ...]
    static: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """What one implementation made of a case on one kind of device.

    Attributes:
        case: the case's name.
        device: kind of platform: "cpu", "tpu" or "cuda".
        implementation: which.
        taken: whether it is the one that runs there if none is named.
        refusal: why it cannot compute the case; "" if it can.
        failure: what is wrong with the result; "" if nothing is.
    """

    case: str
    device: str
    implementation: Implementation
    taken: bool
    refusal: str
    failure: str

    def __str__(self) -> str:
        """What is to be said of the implementation."""
        name = self.implementation.value
        if self.refusal:
            return f"{name} refuses: {self.refusal}"
        return f"{name} {self.failure or 'ok'}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What `examine` found; `str` is the text for people.

    Attributes:
        facts: names and what was found, in order.
        checks: of every implementation.
        problems: what misbehaves, one line each.
        advice: what would make something faster, one line each.
    """

    facts: tuple[tuple[str, str], ...]
    checks: tuple[Check, ...]
    problems: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether all that is installed works."""
        return not self.problems

    def __str__(self) -> str:
        """The whole as plain lines."""
        lines = [f"{name:12} {said}" for name, said in self.facts]
        lines += ["", *self._products(), ""]
        lines += [f"note: {advice}" for advice in self.advice]
        lines += [f"PROBLEM: {problem}" for problem in self.problems]
        if self.healthy:
            lines.append("everything that can work on this machine works")
        return "\n".join(lines)

    def _products(self) -> list[str]:
        """A line for each case and device: what runs there, and how each fared."""
        together: dict[tuple[str, str], list[Check]] = {}
        for check in self.checks:
            together.setdefault((check.case, check.device), []).append(check)
        wide = max((len(case) for case, _ in together), default=0)
        lines = []
        for (case, device), checks in together.items():
            taken = next(c.implementation.value for c in checks if c.taken)
            said = "; ".join(map(str, checks))
            lines.append(f"{case:{wide}}  on {device} takes {taken:4} ({said})")
        return lines


def examine() -> Findings:
    """Look at versions, devices and kernels, and try every implementation."""
    facts: list[tuple[str, str]] = [("jcompress", __version__)]
    problems: list[str] = []
    advice: list[str] = []
    for name, version, (oldest, newest) in (
        ("Python", platform.python_version(), PYTHONS),
        ("JAX", jax.__version__, JAXES),
        ("jaxlib", importlib.metadata.version("jaxlib"), JAXES),
    ):
        said, wrong = support(version, oldest, newest)
        facts.append((name, f"{version} ({said})"))
        if wrong:
            problems.append(f"{name} {version} is {said}")
    devices = _devices()
    for kind, device in devices:
        count = len(jax.devices(kind))
        facts.append(("device", f"{count} x {device.device_kind} ({kind})"))
    _look_at_library(facts, problems, advice)
    checks = [] if problems else _try_all(devices)
    problems += [
        f"{check.case}: {check.implementation.value} on {check.device} {check.failure}"
        for check in checks
        if check.failure
    ]
    return Findings(
        facts=tuple(facts),
        checks=tuple(checks),
        problems=tuple(problems),
        advice=tuple(advice),
    )


def support(
    version: str, oldest: Sequence[int], newest: Sequence[int]
) -> tuple[str, bool]:
    """What is to be said of a version, and whether it is too old."""
    span = f"{_dotted(oldest)} to {_dotted(newest)}"
    number = tuple(map(int, re.findall(r"\d+", version)[:3]))
    if number < tuple(oldest):
        return f"too old; supported: {span}", True
    if number[: len(newest)] > tuple(newest):
        return f"newer than what the tests run on, {span}", False
    return f"supported: {span}", False


def has_instructions(library: ctypes.CDLL) -> tuple[str, ...]:
    """The instruction sets that the library and this processor have, best first."""
    has = library.jcompress_has_instructions
    has.argtypes, has.restype = [ctypes.c_char_p], ctypes.c_int32
    return tuple(name for name in INSTRUCTIONS if has(name.encode()))


def how_to_build() -> str:
    """What to do so that there are compiled kernels."""
    compiler = _COMPILERS.get(platform.system())
    if compiler is None:
        return f"there are no compiled kernels for {platform.system()}"
    return (
        f"to get them, install {compiler} and then jcompress again from its source, "
        "for a clone: pip install --force-reinstall --no-deps ."
    )


def cases() -> list[Case]:
    """One small product of each kind."""
    draw = np.random.default_rng(0)

    def floats(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
        return jnp.asarray(draw.normal(size=shape), jnp.float32).astype(dtype)

    def integers(*shape: int, bits: int = 8) -> jax.Array:
        top = 2 ** (bits - 1)
        return jnp.asarray(draw.integers(-top, top, shape), jnp.int8)

    def scales(*shape: int) -> jax.Array:
        return jnp.asarray(draw.uniform(0.01, 0.02, shape), jnp.float32)

    x = floats(1, _ROWS, _INPUTS)
    short = floats(1, _ROWS, _INPUTS, dtype=jnp.bfloat16)
    weight = (1, _OUTPUTS, _INPUTS)
    per_channel, per_group = (1, _OUTPUTS, 1), (1, _OUTPUTS, _GROUPS)
    found = [
        Case(
            name="int8_matmul",
            forms=_INT8,
            args=(x, None, None, integers(*weight), scales(*per_channel), None, None),
            static={"x_bits": 8},
        )
    ]
    for bits, activations, x_bits, shape in (
        (8, short, None, per_channel),
        (4, x, None, per_channel),
        (4, short, None, per_group),
        (4, short, 8, per_group),
        (3, x, None, per_channel),
        (2, x, None, per_group),
    ):
        groups = "" if shape[-1] == 1 else f", {_GROUPS} groups"
        numbers = str(activations.dtype) if x_bits is None else f"A{x_bits}"
        stored = pack_bits(integers(*weight, bits=bits), bits)
        found.append(
            Case(
                name=f"weight_only_matmul W{bits}{groups}, {numbers}",
                forms=_WEIGHT_ONLY,
                args=(activations, stored, scales(*shape), integers(*shape, bits=bits)),
                static={"bits": bits, "x_bits": x_bits},
            )
        )
    for channels, x_bits in ((8, None), (128, 8)):
        window = Window(
            sizes=(6, 6),
            channels=channels,
            kernel=(3, 3),
            strides=(1, 1),
            padding=((1, 1), (1, 1)),
            dilation=(1, 1),
        )
        stored = pack_bits(integers(1, 64, window.inputs, bits=4), 4)
        images = floats(1, 2, 36 * channels)
        numbers = str(images.dtype) if x_bits is None else f"A{x_bits}"
        found.append(
            Case(
                name=f"quantized_conv W4 of {channels} channels, {numbers}",
                forms=_CONV,
                args=(images, None, None, stored, scales(1, 64, 1), None),
                static={"bits": 4, "x_bits": x_bits, "window": window},
            )
        )
    return [*found, *_sparse_cases(x, short, floats, draw)]


def _sparse_cases(
    x: jax.Array,
    short: jax.Array,
    floats: Callable[..., jax.Array],
    draw: np.random.Generator,
) -> list[Case]:
    found = []
    for given, height, width in ((short, 128, 128), (x, 1, 4)):
        across, down = _INPUTS // width, _OUTPUTS // height
        kept = 2
        columns = [np.sort(draw.permutation(across)[:kept]) for _ in range(down)]
        args = (
            given,
            floats(1, down * kept, height, width, dtype=given.dtype),
            jnp.asarray(np.concatenate(columns)[None], jnp.int32),
            jnp.arange(0, down * kept + 1, kept, dtype=jnp.int32)[None],
            None,
        )
        found.append(
            Case(
                name=f"block_sparse_matmul {height} x {width}",
                forms=_BLOCK_SPARSE,
                args=args,
                static={"outputs": _OUTPUTS},
            )
        )
    stored = (1, _OUTPUTS, _INPUTS // 2)
    halves = np.argsort(draw.random((_OUTPUTS, _INPUTS // 4, 4)), axis=-1) < 2
    mask = np.packbits(halves.reshape(_OUTPUTS, _INPUTS), axis=1, bitorder="little")
    return [
        *found,
        Case(
            name="nm_sparse_matmul 2:4",
            forms=_NM_SPARSE,
            args=(x, floats(*stored), jnp.asarray(mask[None]), None),
            static={"n": 2, "m": 4},
        ),
        Case(
            name="codebook_matmul of 16 values",
            forms=_CODEBOOK,
            args=(
                x,
                jnp.asarray(draw.integers(0, 256, stored), jnp.uint8),
                floats(1, 1, 16),
            ),
            static={},
        ),
    ]


def _devices() -> list[tuple[str, Any]]:
    """A device of each kind of platform, the default one first."""
    found: dict[str, Any] = {}
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        kind = "cuda" if device.platform == "gpu" else device.platform
        found.setdefault(kind, device)
    return list(found.items())


def _look_at_library(
    facts: list[tuple[str, str]], problems: list[str], advice: list[str]
) -> None:
    name = "CPU kernels"
    again = "install jcompress again from its source"
    try:
        library = _native.library()
        has = () if library is None else has_instructions(library)
    except (OSError, AttributeError) as error:
        facts.append((name, "compiled, but do not load"))
        problems.append(f"{_native.LIBRARY} does not load ({error}): {again}")
        return
    if library is None:
        facts.append((name, "not compiled; XLA's forms are used, which are slower"))
        advice.append(f"the compiled CPU kernels are missing: {how_to_build()}")
        return
    used = _native.instructions()
    facts.append((name, f"compiled; use {used}; this processor has {', '.join(has)}"))
    if used == "generic":
        advice.append(
            "there are no vector instructions for the compiled CPU kernels to use, so "
            "XLA's forms are used"
        )
    elif used != has[0]:
        advice.append(f"JCOMPRESS_INSTRUCTIONS keeps the CPU kernels from {has[0]}")


def _try_all(devices: Sequence[tuple[str, Any]]) -> list[Check]:
    found = []
    for case in cases():
        for kind, device in devices:
            with jax.default_device(device):
                found += _try_case(case, kind, device)
    return found


def _try_case(case: Case, kind: str, device: Any) -> list[Check]:
    args = jax.device_put(case.args, device)
    expected = _run(case, Implementation.REFERENCE, args)
    own = {name for name in case.forms if _OWN.get(name, name.value) == kind}
    chosen = {name for name in own if case.forms[name].chosen(args, case.static)}
    taken = chosen.pop() if chosen else Implementation.XLA
    found = []
    for name in (Implementation.XLA, *own):
        refusal = case.forms[name].why_not(args, case.static)
        if name == Implementation.CPU and refusal == _native.missing() != "":
            continue
        failure = ""
        if not refusal:
            failure = _failure(case, name, args, expected, kind)
        found.append(
            Check(
                case=case.name,
                device=kind,
                implementation=name,
                taken=name == taken,
                refusal=refusal,
                failure=failure,
            )
        )
    return found


def _failure(
    case: Case, name: Implementation, args: tuple[Any, ...], expected: Any, kind: str
) -> str:
    try:
        found = _run(case, name, args)
    # Whatever it is, it is said, and the other implementations are tried.
    except Exception as error:
        return f"fails: {' '.join(str(error).split())[:200]}"
    if found.shape != expected.shape or not np.isfinite(found).all():
        return "differs from the reference: not even numbers"
    off = np.abs(found - expected).max() / np.abs(expected).max()
    exact = kind == "cpu" and case.args[0].dtype == jnp.float32
    allowed = 1e-5 if exact else 2**-6
    return "" if off <= allowed else f"differs from the reference by {off:.2g}"


def _run(case: Case, name: Implementation, args: tuple[Any, ...]) -> Any:
    product = jax.jit(lambda *args: case.forms[name].on_stack(args, case.static))(*args)
    return np.asarray(product).astype(np.float32)


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))
