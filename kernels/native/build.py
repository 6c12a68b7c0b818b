"""Builds the compiled kernels when the package is installed, if that is possible.

Each source that holds kernels is compiled for one instruction set; `instructions.cc`
chooses among them when the library runs. The library is plain code behind a C
interface: it serves any version of Python. The headers are those of the jaxlib that
`pyproject.toml` names for the build, the oldest that is supported, since an older
jaxlib refuses what was built with newer headers.
"""

import concurrent.futures
import importlib.util
import os
import pathlib
import platform
import sys
from collections.abc import Sequence
from typing import Any

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = [
    *AVX2,
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mavx512vnni",
    "-mprefer-vector-width=512",
]
VBMI = [*AVX512, "-mavx512vbmi", "-mavx512vbmi2"]
X86 = {
    "avx2": AVX2,
    "avx_vnni": [*AVX2, "-mavxvnni"],
    "avx512_vnni": AVX512,
    "avx512_vbmi": VBMI,
    "amx_int8": [*VBMI, "-mamx-tile", "-mamx-int8"],
}
ARM = {"neon": [] if sys.platform == "darwin" else ["-march=armv8.2-a+dotprod"]}
SETS = {"x86_64": X86, "amd64": X86, "aarch64": ARM, "arm64": ARM}
"""Flags by instruction set, the end of the name of a source, and by machine."""

FLAGS = [
    "-std=c++17",
    "-O2",
    "-ftree-vectorize",
    "-g0",
    "-fPIC",
    "-fvisibility=hidden",
    # The integers that floats become are the same as XLA's, bit for bit.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    # GCC 12 finds some in its own header of intrinsics.
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    "-Wno-psabi",
]


def flags_of(source: str) -> list[str] | None:
    """The flags for a source; None if it is for another kind of processor."""
    sets = SETS.get(platform.machine().lower(), {})
    stem = pathlib.Path(source).stem
    for other in (*X86, *ARM):
        if stem.endswith("_" + other) and not stem.endswith("_generic"):
            if other not in sets:
                return None
            return [*FLAGS, *sets[other]]
    return FLAGS


def sources_of(extension: Extension) -> list[str]:
    """The paths of its sources."""
    return [os.fspath(source) for source in extension.sources]


def include_dirs(extension: Extension) -> list[str]:
    """Where the headers are: ours and XLA's."""
    jaxlib = importlib.util.find_spec("jaxlib")
    if jaxlib is None or not jaxlib.submodule_search_locations:
        raise CompileError("the compiled kernels need the headers of jaxlib")
    ours = str(pathlib.Path(sources_of(extension)[0]).parent)
    return [ours, os.path.join(jaxlib.submodule_search_locations[0], "include")]


def is_newer(made: str, parts: Sequence[str]) -> bool:
    """Whether a file is there, and changed last after all that it is made of."""
    return os.path.exists(made) and all(
        os.path.getmtime(made) > os.path.getmtime(part) for part in parts
    )


class BuildKernels(build_ext):
    """Compiles each source with flags of its own, and links without Python."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library's path: the same for every version of Python."""
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Build the library, unless it is newer than all that it is made of.

        Raises:
            CompileError: there is no compiler, or a source does not compile; the
                extension is optional, so that the installation goes on without it.
        """
        library = self.get_ext_fullpath(ext.name)
        parts = [*sources_of(ext), *map(os.fspath, ext.depends), __file__]
        if not self.force and is_newer(library, parts):
            return
        includes = include_dirs(ext)
        chosen = [(source, flags_of(source)) for source in sources_of(ext)]
        compiler: Any = self.compiler

        def compiled(source: str, flags: list[str]) -> list[str]:
            objects: list[str] = compiler.compile(
                [source],
                output_dir=self.build_temp,
                include_dirs=includes,
                extra_postargs=flags,
                depends=ext.depends,
            )
            return objects

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            waiting = [pool.submit(compiled, s, f) for s, f in chosen if f is not None]
            objects = [name for job in waiting for name in job.result()]
        compiler.link_shared_object(objects, library, target_lang="c++")
