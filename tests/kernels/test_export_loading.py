"""A program written by `jax.export` runs in a process that only imports the kernels."""

import doctest
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from conformance import normal
from jax import export

from jcompress.kernels import (
    Implementation,
    _export,
    _native,
    export_checks,
    int8_matmul,
)

LOAD = """
import pathlib, sys
import jax
import numpy as np
import jcompress.kernels
folder = pathlib.Path(sys.argv[1])
program = jax.export.deserialize((folder / "program").read_bytes())
given = np.load(folder / "arrays.npz")
out = program.call(given["x"], given["values"], given["scales"])
np.testing.assert_allclose(out, given["out"], rtol=1e-6)
"""


def written(folder: pathlib.Path) -> None:
    args = (
        normal((3, 64)),
        jnp.arange(-64, 64, dtype=jnp.int8).reshape(2, 64),
        jnp.full((2, 1), 0.1),
    )
    exported = export.export(jax.jit(int8_matmul), disabled_checks=export_checks())
    (folder / "program").write_bytes(exported(*args).serialize())
    names = ("x", "values", "scales")
    out = int8_matmul(*args, implementation=Implementation.REFERENCE)
    arrays = {"out": out, **dict(zip(names, args, strict=True))}
    jnp.savez(folder / "arrays.npz", **arrays)


@pytest.mark.skipif(bool(_native.missing()), reason="needs the compiled kernels")
def test_importing_the_kernels_registers_their_handlers(
    tmp_path: pathlib.Path,
) -> None:
    pytest.importorskip("flatbuffers", reason="jax.export writes with flatbuffers")
    written(tmp_path)
    found = subprocess.run(
        [sys.executable, "-P", "-c", LOAD, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr


def test_the_example_runs() -> None:
    pytest.importorskip("flatbuffers", reason="jax.export writes with flatbuffers")
    failed, attempted = doctest.testmod(_export)
    assert attempted
    assert not failed


def test_a_library_that_cannot_be_loaded_does_not_stop_the_import(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "library.so"
    _native.library.cache_clear()
    monkeypatch.setattr(_native, "LIBRARY", broken)
    _native.register()
    assert _native.missing()
    _native.library.cache_clear()
    broken.write_bytes(b"no library")
    _native.register()
    with pytest.raises(OSError, match=r"library\.so"):
        _native.library()
    _native.library.cache_clear()
