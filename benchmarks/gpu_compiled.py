"""Compile the products for NVIDIA GPUs, without one, and look into their programs.

    pip install --no-deps jax-cuda13-plugin==V jax-cuda13-pjrt==V nvidia-cuda-nvcc
    python benchmarks/gpu_compiled.py
    python benchmarks/gpu_compiled.py --targets h100 --cases w4a16 --json out.json

with V the version of JAX (`cuda12` and `nvidia-cuda-nvcc-cu12` for 0.10). No driver is
needed. Each line is one product for one device. Columns: the tensor-core instructions
in the PTX of the library's kernel; registers of a thread and bytes spilled, as `ptxas`
reports them; shared memory of a block; and `temp`, what the program keeps in memory
beside its arguments and results, over the stored weight's bytes, where a weight that is
written out shows. Then the instructions and `temp` of XLA's form of the same function.
Nothing is timed. XLA, which tries its kernels out on the device, has none to try
them on here, so on a device it may choose others.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A product: `rows` of activations by a weight [outputs, inputs].

    Attributes:
        operation: the folder in kernels.
        rows, outputs, inputs: M, N, K.
        bits, x_bits: of a weight and of a quantized activation.
        group: inputs that share a scale; 0 for one scale an output.
        zeros: whether there are zero points.
        block: rows and columns of a stored block, a tenth of which is stored.
    """

    operation: str
    rows: int
    outputs: int = 4096
    inputs: int = 4096
    bits: int = 4
    x_bits: int | None = None
    group: int = 128
    zeros: bool = False
    block: int = 0


def _cases() -> dict[str, Case]:
    only = "weight_only_matmul"
    cases = {}
    for rows in (1, 8, 64, 512):
        cases[f"w4a16 g128 M={rows}"] = Case(operation=only, rows=rows)
    cases["w4a16 g128 M=1 K=14336"] = Case(operation=only, rows=1, inputs=14336)
    cases["w4a16 g32 zeros M=1"] = Case(operation=only, rows=1, group=32, zeros=True)
    cases["w4a16 g64 M=512"] = Case(operation=only, rows=512, group=64)
    for rows in (1, 512):
        cases[f"w4a16 channel M={rows}"] = Case(operation=only, rows=rows, group=0)
        cases[f"w8a16 g128 M={rows}"] = Case(operation=only, rows=rows, bits=8)
        cases[f"w8a16 channel M={rows}"] = Case(
            operation=only, rows=rows, bits=8, group=0
        )
        cases[f"w4a8 g128 M={rows}"] = Case(operation=only, rows=rows, x_bits=8)
    for rows in (1, 512, 4096):
        cases[f"w8a8 channel M={rows}"] = Case(
            operation="int8_matmul", rows=rows, bits=8, x_bits=8, group=0
        )
    cases["w8a16 g128 zeros M=64"] = Case(operation=only, rows=64, bits=8, zeros=True)
    for rows, block in ((8, 64), (512, 64), (512, 128)):
        cases[f"block-sparse 10 % {block} M={rows}"] = Case(
            operation="block_sparse_matmul", rows=rows, bits=16, block=block
        )
    return cases


CASES = _cases()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A device to compile for, as the compiler's configuration describes it."""

    name: str
    multiprocessors: int
    capability: str
    shared: int
    shared_block: int
    l2: int
    bandwidth: int

    def text(self) -> str:
        """The `GpuTargetConfigProto` in text form."""
        return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32
          shared_memory_per_block: 49152 shared_memory_per_core: {self.shared}
          shared_memory_per_block_optin: {self.shared_block}
          threads_per_core_limit: 2048 core_count: {self.multiprocessors}
          fpus_per_core: 128 block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535 block_dim_limit_z: 65535
          memory_bandwidth: {self.bandwidth} l2_cache_size: {self.l2}
          clock_rate_ghz: 1.7 device_memory_size: 85000000000
          cuda_compute_capability {{ {self.capability} }}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
        }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
        runtime_version {{ major: 12 minor: 9 patch: 0 }}
        device_description_str: "{self.name}"
        """


TARGETS = {
    "h100": Target(
        name="NVIDIA H100",
        multiprocessors=132,
        capability="major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES",
        shared=233472,
        shared_block=232448,
        l2=52428800,
        bandwidth=3_352_320_000_000,
    ),
    "b200": Target(
        name="NVIDIA B200",
        multiprocessors=148,
        capability="major: 10 minor: 0 feature_extension: ACCELERATED_FEATURES",
        shared=233472,
        shared_block=232448,
        l2=132644864,
        bandwidth=7_672_000_000_000,
    ),
    "a100": Target(
        name="NVIDIA A100",
        multiprocessors=108,
        capability="major: 8 minor: 0",
        shared=167936,
        shared_block=166912,
        l2=41943040,
        bandwidth=2_039_000_000_000,
    ),
}
FORMS = ("gpu", "xla")


def plugin() -> str:
    """The name of the installed CUDA plugin; "" if there is none."""
    for name in ("jax_cuda13_plugin", "jax_cuda12_plugin"):
        if importlib.util.find_spec(name) is not None:
            return name
    return ""


def arguments(case: Case) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Shapes and dtypes of the arrays that a form takes, and its keywords."""
    import jax
    import jax.numpy as jnp

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    x = array((case.rows, case.inputs), jnp.bfloat16)
    if case.block:
        down, across = case.outputs // case.block, case.inputs // case.block
        count = down * across // 10
        blocks = array((count, case.block, case.block), jnp.bfloat16)
        columns, starts = array((count,), jnp.int32), array((down + 1,), jnp.int32)
        return (x, blocks, columns, starts, None), {"outputs": case.outputs}
    packed = case.bits == 4
    width = case.inputs // 2 if packed else case.inputs
    values = array((case.outputs, width), jnp.uint8 if packed else jnp.int8)
    groups = case.inputs // case.group if case.group else 1
    scales = array((case.outputs, groups), jnp.float32)
    zeros = array(scales.shape, jnp.int8) if case.zeros else None
    if case.operation == "int8_matmul":
        return (x, None, None, values, scales, zeros, None), {"x_bits": case.x_bits}
    given = {"bits": case.bits, "x_bits": case.x_bits}
    return (x, values, scales, zeros), given


def stored_bytes(case: Case) -> int:
    """Of the weight, without scales."""
    if case.block:
        kept = case.outputs // case.block * (case.inputs // case.block) // 10
        return kept * case.block**2 * 2
    return case.outputs * case.inputs * case.bits // 8


def compile_one(case: Case, form: str, target: str, dump: pathlib.Path) -> Any:
    """What one program looks like; {"refused": why} if the form takes no such shapes.

    Args:
        case: the product.
        form: "gpu" or "xla".
        target: a name of `TARGETS`.
        dump: the empty folder that the compiler was told to write to.
    """
    import jax
    import numpy as np
    from jax.experimental import topologies

    module = importlib.import_module(f"jcompress.kernels.{case.operation}.{form}")
    device = topologies.get_topology_desc(
        platform="cuda",
        topology_name=target,
        topology="1x1x1",
        target_config=TARGETS[target].text(),
    ).devices[0]
    args, static = arguments(case)
    # The mesh tells the forms, and the default device the Pallas compiler, what the
    # program is for.
    mesh = jax.sharding.Mesh(np.array([device]), ("device",))
    with jax.set_mesh(mesh), jax.default_device(device):
        if form == "gpu":
            why = module.refuses(*args, **static)
            if why:
                return {"refused": why}
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        placed = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated), args
        )
        traced = jax.jit(getattr(module, form), static_argnames=tuple(static)).trace(
            *placed, **static
        )
        compiled = traced.lower(lowering_platforms=("cuda",)).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    return {"temp": memory.temp_size_in_bytes, **read_dump(dump)}


def read_dump(dump: pathlib.Path) -> dict[str, Any]:
    """Instructions, registers, spills and shared memory from what a compiler wrote."""
    instructions: set[str] = set()
    logs = [path.read_text() for path in dump.glob("*.ptxas")]
    local = 0
    for path in dump.glob("*.ptx"):
        text = path.read_text()
        found = re.findall(
            r"(wgmma\.mma_async|mma\.sync|tcgen05\.mma)\.([a-z0-9_.:]+)", text
        )
        instructions |= {f"{kind}.{shape(rest)}" for kind, rest in found}
        local += len(re.findall(r"\b(?:ld|st)\.local", text))
        if found and not list(dump.glob("*.ptxas")):
            logs.append(assemble(path, text))
    for path in dump.glob("*gpu_after_optimizations.txt"):
        calls = re.findall(r'custom_call_target="__(\w+)', path.read_text())
        instructions |= {f"a call of {call}" for call in calls}
    log = "\n".join(logs)
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", log)]
    shared = [
        int(size)
        for path in dump.glob("*.mlir-passes.log")
        for size in re.findall(r"dynamic_shared_memory_size %c(\d+)", path.read_text())
    ]
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    static = [int(n) for n in re.findall(r"(\d+) bytes smem", log)]
    return {
        "instructions": sorted(instructions),
        "registers": max(registers, default=-1),
        "spilled": max((int(s) + int(r) for s, r in spills), default=-1),
        "local": local,
        "shared": max(shared + static, default=-1),
    }


def shape(rest: str) -> str:
    """`m64n8k16.f32.bf16.bf16` or `kind::f16` of an instruction's name."""
    pattern = r"m\d+n\d+k\d+|[a-z]+\d+|kind::\w+"
    keep = [part for part in rest.split(".") if re.fullmatch(pattern, part)]
    return ".".join(keep)


def assemble(path: pathlib.Path, text: str) -> str:
    """The report of the assembler in NVIDIA's wheel; "" if there is none."""
    root = importlib.util.find_spec("nvidia")
    places = [] if root is None else list(root.submodule_search_locations or ())
    tools = [tool for place in places for tool in pathlib.Path(place).rglob("ptxas")]
    aim = re.search(r"^\.target (sm_\w+)", text, re.MULTILINE)
    if not tools or aim is None:
        return ""
    command = [str(tools[0]), "-v", "--gpu-name", aim.group(1), str(path)]
    run = subprocess.run(
        [*command, "-o", os.devnull], capture_output=True, text=True, check=False
    )
    return run.stderr


def work(target: str, name: str) -> None:
    """Compile a case in this process; one line of JSON a program."""
    with tempfile.TemporaryDirectory() as folder:
        dump = pathlib.Path(folder)
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_emitter_re=."
        os.environ["XLA_FLAGS"] = flags
        os.environ["MOSAIC_GPU_DUMP_TO"] = folder
        for form in FORMS:
            for path in dump.iterdir():
                path.unlink()
            try:
                found = compile_one(CASES[name], form, target, dump)
            except Exception as error:  # a compiler's error is a result here
                found = {"failed": f"{type(error).__name__}: {str(error)[-200:]}"}
            print(json.dumps([form, found]), flush=True)


def programs(target: str, name: str) -> dict[str, Any]:
    """Every form of a case, compiled by a process of their own.

    A compiler can end its process; and one that has compiled a kernel before writes
    nothing about it again.
    """
    run = subprocess.run(
        [sys.executable, __file__, "--worker", target, name],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    # The compilers print, too.
    lines = [line for line in run.stdout.splitlines() if line.startswith('["')]
    found = dict(json.loads(line) for line in lines)
    ended = {"failed": "the compiler ended its process"}
    return {form: found.get(form, ended) for form in FORMS}


def row(target: str, name: str, found: dict[str, Any]) -> str:
    """A line of the table, of both forms."""
    stored = stored_bytes(CASES[name])
    ours, theirs = found["gpu"], found["xla"]
    ratios = {
        form: f"{seen['temp'] / stored:.2f}" if "temp" in seen else ""
        for form, seen in found.items()
    }
    why = ours.get("refused") or ours.get("failed")
    if why:
        said = [f"{'refuses' if 'refused' in ours else 'fails'}: {why}", "", "", ""]
    else:
        numbers = [ours["registers"], ours["spilled"]]
        shared = f"{ours['shared'] / 1024:.0f} KiB" if ours["shared"] >= 0 else ""
        said = [", ".join(ours["instructions"]) or "none"]
        said += [*(str(n) if n >= 0 else "" for n in numbers), shared]
    other = theirs.get("failed") or ", ".join(theirs["instructions"]) or "none"
    cells = [name, target, *said, ratios["gpu"], other, ratios["xla"]]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Parse the arguments, compile, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--cases", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--json", type=pathlib.Path, help="also write the results here")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return
    if not plugin():
        parser.error("no CUDA plugin of JAX is installed; see the top of this file")
    names = [name for name in CASES if any(part in name for part in args.cases)]
    versions = [importlib.metadata.version(part) for part in ("jax", plugin())]
    print(f"jax {versions[0]}, {plugin()} {versions[1]}\n")
    columns = "product device kernel registers spilled shared temp XLA its_temp"
    heads = [word.replace("_", " ") for word in columns.split()]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    results = []
    for target, name in itertools.product(args.targets, names):
        found = programs(target, name)
        results += [[target, name, form, found[form]] for form in FORMS]
        print(row(target, name, found), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
