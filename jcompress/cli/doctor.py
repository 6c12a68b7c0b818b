"""What is installed, what of it works on this machine, and what to do if it does not.

Every implementation that this machine can run computes a small product of each kind,
which is compared with the operation's reference.
"""

import ctypes
import dataclasses
import importlib.metadata
import platform
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress import __version__
from jcompress.cli.doctor_cases import SampleProduct, cases
from jcompress.kernels import Implementation, _native

PYTHONS = ((3, 11), (3, 13))
"""The oldest and the newest Python that the tests run on."""
JAXES = ((0, 10, 2), (0, 12))
"""The oldest and the newest JAX that the tests run on."""
INSTRUCTIONS = (
    *("amx_int8", "avx512_vbmi", "avx512_vnni", "avx_vnni", "avx2", "neon", "generic"),
)
"""What the compiled kernels may use, as they call it."""

_OWN = {Implementation.TPU: "tpu", Implementation.GPU: "cuda"}
_COMPILERS = {
    "Linux": "a C++17 compiler (Debian and Ubuntu: apt install g++; Fedora: dnf "
    "install gcc-c++; conda: conda install gxx)",
    "Darwin": "a C++17 compiler (xcode-select --install)",
}


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
        """One line: whether the implementation refuses, fails or works."""
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
    """Whether a version is supported, in words, and whether it is too old."""
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


def _try_case(case: SampleProduct, kind: str, device: Any) -> list[Check]:
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
    case: SampleProduct,
    name: Implementation,
    args: tuple[Any, ...],
    expected: Any,
    kind: str,
) -> str:
    try:
        found = _run(case, name, args)
    # An error of any kind is a finding; the other implementations are tried.
    except Exception as error:
        return f"fails: {' '.join(str(error).split())[:200]}"
    if found.shape != expected.shape or not np.isfinite(found).all():
        return "differs from the reference: not even numbers"
    off = np.abs(found - expected).max() / np.abs(expected).max()
    exact = kind == "cpu" and case.args[0].dtype == jnp.float32
    allowed = 1e-5 if exact else 2**-6
    return "" if off <= allowed else f"differs from the reference by {off:.2g}"


def _run(case: SampleProduct, name: Implementation, args: tuple[Any, ...]) -> Any:
    product = jax.jit(lambda *args: case.forms[name].on_stack(args, case.static))(*args)
    return np.asarray(product).astype(np.float32)


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))
