"""Compile the products for TPUs, without one, and count what their programs do.

    pip install 'jax[tpu]'
    python benchmarks/tpu_compiled.py
    python benchmarks/tpu_compiled.py --cases w4a16 --targets v5e

Each line is one product for one device: the kernel of the library and, beside it, the
form that XLA compiles of the same function. Three numbers bound a program's time from
below: the bundles that it executes, one a cycle (`_tpu_schedule.py`); the bytes that
its copies move, over the memory's bandwidth; its products, over the peak of the matrix
units. The time given is the largest of them, and the roofline the same for a program
that reads its arguments and writes its result once and has no instructions but
products. What a program waits for beyond that no compiled file tells, so these are
bounds and no timings. `temp` is what the program keeps in memory beside arguments and
results: a weight that is written out shows there.

A block-sparse program takes its branches by the stored pattern. Its steps are counted
for a pattern with a block in each block row, where there are enough.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from _tpu_schedule import read_schedules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A device to compile for; the rates are of one core, the clock follows the peak.

    Attributes:
        topology: the name that the compiler knows.
        gigahertz: of the clock.
        floats, integers, float8: peak operations a second on bfloat16, int8 and
            float8 operands; what is not multiplied as such becomes bfloat16.
        bandwidth: bytes a second of the memory.
    """

    topology: str
    gigahertz: float
    floats: float
    integers: float
    float8: float
    bandwidth: float


TARGETS = {
    "v5e": Target(
        topology="v5e:2x2",
        gigahertz=1.5,
        floats=197e12,
        integers=394e12,
        float8=197e12,
        bandwidth=0.82e12,
    ),
    "v6e": Target(
        topology="v6e:2x2",
        gigahertz=1.75,
        floats=920e12,
        integers=1840e12,
        float8=920e12,
        bandwidth=1.64e12,
    ),
    "7x": Target(
        topology="tpu7x:2x2x1",
        gigahertz=2.2,
        floats=1155e12,
        integers=1155e12,
        float8=2300e12,
        bandwidth=3.7e12,
    ),
}

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One product.

    Attributes:
        operation: folder of the kernels.
        rows, outputs, inputs: M, N, K.
        bits: of a weight.
        group: inputs that share a scale; 0 for one scale an output.
        x_bits: of the activations; 0 for bfloat16.
        floating: whether numbers of 8 bits are float8.
        block: side of a stored block.
        density: fraction of the blocks stored.
        pattern: n and m, where n of every m inputs are stored.
        table: values in a codebook.
    """

    operation: str
    rows: int
    outputs: int = 4096
    inputs: int = 4096
    bits: int = 16
    group: int = 0
    x_bits: int = 0
    floating: bool = False
    block: int = 0
    density: float = 1.0
    pattern: tuple[int, int] = (1, 1)
    table: int = 0

    @property
    def blocks(self) -> int:
        """Stored blocks."""
        area = (self.outputs // self.block) * (self.inputs // self.block)
        return max(1, round(area * self.density))

    @property
    def weights(self) -> float:
        """Stored weights."""
        if self.block:
            return self.blocks * self.block**2
        kept, of = self.pattern
        return self.outputs * self.inputs * kept / of

    @property
    def needed(self) -> float:
        """Bytes of arguments and results."""
        x = self.rows * self.inputs * 2
        groups = self.inputs // self.group if self.group else 1
        scales = 0 if self.block or self.bits == 16 else 4 * self.outputs * groups
        mask = self.outputs * self.inputs / 8 if self.pattern[1] > 1 else 0
        stored = self.weights * self.bits / 8 + scales + mask
        return x + stored + self.rows * self.outputs * 2

    @property
    def work(self) -> float:
        """Operations."""
        if self.block:
            return 2 * self.rows * self.weights
        return 2 * self.rows * self.outputs * self.inputs


def _decode(name: str, **given: Any) -> dict[str, Case]:
    cases = {}
    for rows in (1, 8, 16, 32):
        cases[f"{name} {rows} x 4096 x 4096"] = Case(
            operation="weight_only_matmul", rows=rows, **given
        )
    cases[f"{name} 8 x 4096 x 14336"] = Case(
        operation="weight_only_matmul", rows=8, outputs=14336, **given
    )
    return cases


def _float8(x_bits: int) -> dict[str, Case]:
    operation = "float8_matmul" if x_bits else "weight_only_matmul"
    return {
        f"w8a{x_bits or 16} float8 {rows} x 4096 x 4096": Case(
            operation=operation, rows=rows, bits=8, x_bits=x_bits, floating=True
        )
        for rows in (1, 8, 512, 4096)
    }


def _sparse(rows: int, block: int) -> dict[str, Case]:
    name = f"block-sparse 10 % of {block} {rows} x 4096 x 4096"
    case = Case(operation="block_sparse_matmul", rows=rows, block=block, density=0.1)
    return {name: case}


def _kept(rows: int, n: int, m: int, bits: int = 16) -> dict[str, Case]:
    case = Case(operation="nm_sparse_matmul", rows=rows, bits=bits, pattern=(n, m))
    return {f"{n}:{m} of {bits} bits {rows} x 4096 x 4096": case}


def _looked_up(rows: int, table: int) -> dict[str, Case]:
    bits = 4 if table <= 16 else 8
    case = Case(operation="codebook_matmul", rows=rows, bits=bits, table=table)
    return {f"codebook of {table} {rows} x 4096 x 4096": case}


CASES: dict[str, Case] = {
    **_decode("w4a16 g128", bits=4, group=128),
    **_decode("w8a16 g128", bits=8, group=128),
    **_decode("w4a8 g128", bits=4, group=128, x_bits=8),
    "w4a16 g128 512 x 4096 x 4096": Case(
        operation="weight_only_matmul", rows=512, bits=4, group=128
    ),
    "w8a16 g128 512 x 4096 x 4096": Case(
        operation="weight_only_matmul", rows=512, bits=8, group=128
    ),
    "w8a16 8 x 4096 x 4096": Case(operation="weight_only_matmul", rows=8, bits=8),
    "w8a8 4096 x 4096 x 4096": Case(
        operation="int8_matmul", rows=4096, bits=8, x_bits=8
    ),
    **_float8(8),
    **_float8(0),
    **_sparse(256, 256),
    **_sparse(1024, 256),
    **_sparse(4096, 256),
    **_sparse(4096, 512),
    **_kept(8, 2, 4),
    **_kept(8, 1, 4),
    **_kept(8, 4, 8),
    **_kept(8, 2, 8),
    **_kept(8, 2, 4, bits=8),
    **_kept(512, 2, 4),
    **_looked_up(8, 16),
    **_looked_up(8, 256),
    "dense 8 x 4096 x 4096": Case(operation="dense", rows=8),
    "dense 512 x 4096 x 4096": Case(operation="dense", rows=512),
    "dense 1024 x 4096 x 4096": Case(operation="dense", rows=1024),
    "dense 4096 x 4096 x 4096": Case(operation="dense", rows=4096),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="", help="a part of the names")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=300, help="for a compilation")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(compiled(*given.one)))
        return
    print(
        "| product | device | kernel: bundles | MB moved | temp MB | bound µs | "
        "over roofline | XLA: bundles | MB moved | temp MB | bound µs | XLA / kernel |"
    )
    print("|" + "---|" * 12)
    for name, case in CASES.items():
        for target in given.targets:
            if given.cases in name:
                forms = _forms(case, target)
                found = {form: _apart(name, target, form, given) for form in forms}
                print(_row(name, target, found), flush=True)


def _forms(case: Case, target: str) -> tuple[str, ...]:
    """What is compiled: XLA's form where it is kept, and not where it does not end."""
    if case.operation == "int8_matmul":
        return ("tpu",) if target == "7x" else ("xla",)
    only_xla = case.operation in ("dense", "float8_matmul")
    return ("xla",) if only_xla else ("tpu", "xla")


def _apart(name: str, target: str, form: str, given: Any) -> dict[str, Any]:
    """Compile in a process of its own, since the compiler reads its flags once."""
    with tempfile.TemporaryDirectory() as folder:
        flags = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_hlo_text=true "
            "--xla_jf_dump_llo_text=true"
        )
        environment = {**os.environ, **ENVIRONMENT, "LIBTPU_INIT_ARGS": flags}
        command = [sys.executable, __file__, "--one", name, target, form]
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=given.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"no result in {given.seconds:.0f} s"}
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1][:100]}
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return {**result, **bounds(CASES[name], TARGETS[target], form, folder, result)}


def compiled(name: str, target: str, form: str) -> dict[str, Any]:
    """Compile a case here; what the compiler says of its memory."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    description = topologies.get_topology_desc(
        platform="tpu", topology_name=TARGETS[target].topology
    )
    place = SingleDeviceSharding(description.devices[0])
    function, shapes = program(CASES[name], form, integers=target != "7x")
    arguments = [
        None if s is None else jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place)
        for s in shapes
    ]
    traced = jax.jit(function).trace(*arguments)
    memory = traced.lower(lowering_platforms=("tpu",)).compile().memory_analysis()
    return {"temp": memory.temp_size_in_bytes}


def program(
    case: Case, form: str, *, integers: bool
) -> tuple[Callable[..., Any], list[Any]]:
    """The function of a case, and the shapes of its arguments."""
    import functools
    import importlib

    import jax
    import jax.numpy as jnp

    m, n, k = case.rows, case.outputs, case.inputs
    x = jax.ShapeDtypeStruct((m, k), jnp.bfloat16)
    if case.operation == "dense":
        return (lambda x, w: x @ w.T), [x, jax.ShapeDtypeStruct((n, k), jnp.bfloat16)]
    module = importlib.import_module(f"jcompress.kernels.{case.operation}.{form}")
    run = getattr(module, form)
    if case.operation == "block_sparse_matmul":
        arrays = [
            jax.ShapeDtypeStruct((case.blocks, case.block, case.block), jnp.bfloat16),
            jax.ShapeDtypeStruct((case.blocks,), jnp.int32),
            jax.ShapeDtypeStruct((n // case.block + 1,), jnp.int32),
            None,
        ]
        return functools.partial(run, outputs=n), [x, *arrays]
    if case.operation == "nm_sparse_matmul":
        kept, of = case.pattern
        kind = jnp.bfloat16 if case.bits == 16 else jnp.int8
        scale = jax.ShapeDtypeStruct((n, 1), jnp.float32) if case.bits < 16 else None
        arrays = [
            jax.ShapeDtypeStruct((n, k // of * kept), kind),
            jax.ShapeDtypeStruct((n, k // 8), jnp.uint8),
            scale,
        ]
        return functools.partial(run, n=kept, m=of), [x, *arrays]
    if case.operation == "codebook_matmul":
        indices = jax.ShapeDtypeStruct((n, k * case.bits // 8), jnp.uint8)
        table = jax.ShapeDtypeStruct((1, case.table), jnp.float32)
        return run, [x, indices, table]
    kind = jnp.float8_e4m3fn if case.floating else jnp.int8
    stored = jax.ShapeDtypeStruct(
        (n, k * case.bits // 8), jnp.uint8 if case.bits < 8 else kind
    )
    scales = jax.ShapeDtypeStruct(
        (n, k // case.group if case.group else 1), jnp.float32
    )
    if case.operation == "int8_matmul":
        nothing = [None] * 2
        return functools.partial(run, x_bits=8), [x, *nothing, stored, scales, *nothing]
    if case.operation == "float8_matmul":
        return run, [x, None, stored, scales, None]
    chosen: dict[str, Any] = {"bits": case.bits, "x_bits": case.x_bits or None}
    if form == "tpu":
        chosen["integers"] = integers and not case.floating
    return functools.partial(run, **chosen), [x, stored, scales, None]


def bounds(
    case: Case, target: Target, form: str, folder: str, memory: Mapping[str, Any]
) -> dict[str, Any]:
    """The lower bounds of a program whose schedules lie in a folder, in seconds."""
    schedules = read_schedules(pathlib.Path(folder))
    cycles = float(sum(s.bundles for s in schedules))
    copied = float(sum(s.copied for s in schedules))
    if case.block and form == "tpu":
        # The schedule counts every region in every step. A block row has one step that
        # starts its sum and one that ends it; further blocks are added to the sum.
        across = case.outputs // case.block
        started = min(across, case.blocks)
        products = iter((started, case.blocks - started))
        for schedule in schedules:
            for added, multiplies in schedule.regions:
                runs = next(products) if multiplies else across
                cycles -= added * (1 - runs / (case.blocks + across))
        copied = case.needed
    peak = target.floats
    if case.x_bits:
        peak = target.float8 if case.floating else target.integers
    work = case.work / peak
    least = max(case.needed / target.bandwidth, work)
    seconds = max(
        cycles / (target.gigahertz * 1e9),
        max(copied, case.needed) / target.bandwidth,
        work,
    )
    return {"cycles": cycles, "copied": copied, "seconds": seconds, "least": least}


def _row(name: str, target: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    cells = [name, target]
    for form in ("tpu", "xla"):
        one = found.get(form)
        wide = 5 if form == "tpu" else 4
        if one is None:
            cells += ["-"] * wide
        elif "failed" in one:
            cells += [one["failed"]] + ["-"] * (wide - 1)
        else:
            cells += [
                f"{one['cycles']:.0f}",
                f"{one['copied'] / 1e6:.1f}",
                f"{one['temp'] / 1e6:.1f}",
                f"{one['seconds'] * 1e6:.1f}",
            ]
            if form == "tpu":
                cells.append(f"{one['seconds'] / one['least']:.2f}")
    both = [one["seconds"] for one in found.values() if "seconds" in one]
    cells.append(f"{both[1] / both[0]:.1f}" if len(both) == 2 else "-")
    if list(found) == ["xla"] and both:
        only = found["xla"]
        cells[-1] = f"XLA over roofline {only['seconds'] / only['least']:.2f}"
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
