"""Exported models are opened and run without their code, and refuse what is wrong."""

import doctest
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcompress as jc
from jcompress.kernels import _native
from jcompress.serving import (
    Program,
    ProgramError,
    open_program,
    time_programs,
)
from jcompress.serving import (
    program as program_module,
)
from jcompress.serving.layout import FORMAT, MARK, packed, unpacked

pytest.importorskip("flatbuffers", reason="jax.export writes with flatbuffers")

X = np.random.default_rng(0).normal(size=(6, 128)).astype(np.float32)
MASK = np.ones((6,), np.float32)


def model(params, x, mask):
    y = jax.nn.relu(x @ params["up"]) @ params["down"]
    return {"mean": y.mean(axis=1), "y": y * mask[:, None]}


@pytest.fixture(scope="module")
def small():
    up, down = jax.random.normal(jax.random.key(0), (2, 128, 128))
    tree = {"up": up, "down": down}
    return jc.compress((model, tree), (X, MASK), jc.w8a8(), measure=False)


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    made = tmp_path_factory.mktemp("programs")
    small.export(made / "native.jax")
    small.export(made / "portable.jax", portable=True)
    return made


def run(code: str, folder: pathlib.Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_the_file_says(folder):
    program = open_program(folder / "portable.jax")
    assert isinstance(program, Program)
    assert [(each.name, each.shape) for each in program.inputs] == [
        ("x", ("b", 128)),
        ("mask", ("b",)),
    ]
    assert [(each.name, str(each)) for each in program.outputs] == [
        ("mean", "float32 [b]"),
        ("y", "float32 [b, 128]"),
    ]
    about = program.describe()
    assert about["bytes"] == (folder / "portable.jax").stat().st_size
    assert (about["kind"], about["platforms"]) == ("portable", ["cpu"])
    assert about["jcompress"] == jc.__version__
    assert about["jax"] == jax.__version__
    assert program.batch == "b"
    if not _native.missing():
        native = open_program(folder / "native.jax").describe()
        assert native["kind"] == "native"
        assert native["kernels"] == ["jcompress_matmul"]


@pytest.mark.parametrize("kind", ["native", "portable"])
def test_it_runs_in_a_process_without_the_model(kind, small, folder, tmp_path):
    wanted = small(X[:3], MASK[:3])
    np.savez(tmp_path / "data.npz", x=X[:3], mask=MASK[:3], **wanted)
    apart = run(
        f"""
import numpy as np
from jcompress.serving import open_program
data = np.load("data.npz")
found = open_program({str(folder / f"{kind}.jax")!r})(data["x"], mask=data["mask"])
print(max(np.abs(np.asarray(found[name]) - data[name]).max() for name in ("mean", "y")))
""",
        tmp_path,
    )
    largest = max(float(np.abs(each).max()) for each in wanted.values())
    assert float(apart) <= (0 if kind == "native" else 1e-5 * largest)


def test_a_portable_one_needs_nothing_but_jax(small, folder, tmp_path):
    np.savez(tmp_path / "data.npz", x=X, mask=MASK, y=small(X, MASK)["y"])
    apart = run(
        f"""
import pathlib, sys, numpy as np, jax
sys.modules["jcompress"] = None
data = np.load("data.npz")
path = pathlib.Path({str(folder / "portable.jax")!r})
found = jax.export.deserialize(path.read_bytes()).call(data["x"], data["mask"])["y"]
print(np.abs(np.asarray(found) - data["y"]).max() / np.abs(data["y"]).max())
""",
        tmp_path,
    )
    assert float(apart) <= 1e-5


def test_the_example_of_open_program():
    failed, attempted = doctest.testmod(program_module)
    assert (failed, attempted > 0) == (0, True)


def test_opening_imports_no_model_library(folder):
    code = (
        "import sys; from jcompress.serving import open_program; "
        "open_program('portable.jax'); print('flax' in sys.modules)"
    )
    assert run(code, folder) == "False\n"


class TestInputs:
    @pytest.mark.parametrize(
        ("args", "words"),
        [
            ((X,), r"1 inputs arrived; it takes 'x' float32 \[b, 128\], 'mask'"),
            ((X, MASK[:2]), r"'mask' is float32 \[2\].*with b = 6"),
            ((X[:, :5], MASK), r"'x' is float32 \[6, 5\]; it takes float32 \[b, 128\]"),
            ((X.astype(np.float64), MASK), r"'x' is float64 \[6, 128\]"),
            ((X[:0], MASK[:0]), r"'x' is float32 \[0, 128\]"),
            ((X[0], MASK), r"'x' is float32 \[128\]"),
            (("text", MASK), "'x' is of type str"),
            (({"x": X}, MASK), "nested as"),
        ],
    )
    def test_wrong_ones_are_named(self, args, words, folder):
        program = open_program(folder / "portable.jax")
        with pytest.raises(ProgramError, match=words) as caught:
            program(*args)
        assert "\n" not in str(caught.value)

    def test_by_name(self, folder):
        program = open_program(folder / "portable.jax")
        a, b = program(X, MASK), program(mask=MASK, x=X)
        np.testing.assert_array_equal(a["y"], b["y"])
        with pytest.raises(ProgramError, match="'x', 'wrong' arrived by name"):
            program(x=X, wrong=MASK)

    def test_names_of_ones_own(self, small, tmp_path):
        small.export(tmp_path / "a.jax", portable=True, names=("left", "right"))
        names = [each.name for each in open_program(tmp_path / "a.jax").inputs]
        assert names == ["left", "right"]
        with pytest.raises(ValueError, match="2 inputs, and the names are 'left'"):
            small.export(tmp_path / "b.jax", names=("left",))
        with pytest.raises(ValueError, match="no platform 'metal'; there are cpu"):
            small.export(tmp_path / "b.jax", platforms=("cpu", "metal"))
        assert not (tmp_path / "b.jax").exists()

    def test_nested_ones(self, tmp_path):
        def nested(params, batch):
            return [batch["x"] @ params["w"], batch["mask"]]

        batch = {"x": X, "mask": MASK}
        small = jc.compress(
            (nested, {"w": jnp.eye(128)}), batch, jc.w8(), measure=False
        )
        small.export(tmp_path / "a.jax", portable=True)
        program = open_program(tmp_path / "a.jax")
        assert [each.name for each in program.inputs] == ["batch/mask", "batch/x"]
        assert [each.name for each in program.outputs] == ["output0", "output1"]
        np.testing.assert_allclose(program(batch)[0], small(batch)[0], rtol=1e-4)


class TestFiles:
    def test_cut_off(self, folder, tmp_path):
        data = (folder / "portable.jax").read_bytes()
        for length in (0, 10, len(data) // 2, len(data) - 1):
            (tmp_path / "a.jax").write_bytes(data[:length])
            with pytest.raises(ProgramError, match=r"a.jax: its end is missing"):
                open_program(tmp_path / "a.jax")

    def test_damaged(self, folder, tmp_path):
        data = bytearray((folder / "portable.jax").read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / "a.jax").write_bytes(data)
        with pytest.raises(ProgramError, match="its checksum differs"):
            open_program(tmp_path / "a.jax")
        (tmp_path / "a.jax").write_bytes(data[100:])
        with pytest.raises(ProgramError, match="its program has"):
            open_program(tmp_path / "a.jax")
        (tmp_path / "a.jax").write_bytes(b"x" * 50 + bytes(8) + MARK)
        with pytest.raises(ProgramError, match="it has no description"):
            open_program(tmp_path / "a.jax")

    @staticmethod
    def changed(data, **values):
        program, _ = unpacked(data, "it")
        about = json.loads(data[len(program) : -16]) | values
        text = json.dumps(about).encode()
        return program + text + len(text).to_bytes(8, "little") + MARK

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            (
                {"format": FORMAT + 1, "jcompress": "9.0"},
                "newer version: jcompress 9.0, format 2; this one reads format 1",
            ),
            ({"kernels": ["jcompress_new"]}, "newer version.*kernels jcompress_new"),
            (
                {"kernels": ["jcompress_matmul"], "layout": _native.LAYOUT + 1},
                "newer version.*a newer layout",
            ),
            (
                {"kernels": ["jcompress_matmul"], "layout": _native.LAYOUT - 1},
                "older version.*export it again",
            ),
            ({"platforms": ["tpu"]}, "is for tpu, and this process runs on cpu"),
            ({"inputs": 3}, "its description is incomplete"),
        ],
    )
    def test_versions(self, values, words, folder, tmp_path):
        data = (folder / "portable.jax").read_bytes()
        (tmp_path / "a.jax").write_bytes(self.changed(data, **values))
        with pytest.raises(ProgramError, match=words):
            open_program(tmp_path / "a.jax")

    def test_what_jax_cannot_read(self, folder, tmp_path):
        _, about = unpacked((folder / "portable.jax").read_bytes(), "it")
        (tmp_path / "a.jax").write_bytes(packed(b"\0" * 200, about))
        with pytest.raises(ProgramError, match=r"cannot read it"):
            open_program(tmp_path / "a.jax")

    def test_another_jax(self, folder, tmp_path):
        data = (folder / "portable.jax").read_bytes()
        (tmp_path / "a.jax").write_bytes(self.changed(data, jax="0.0.1"))
        assert open_program(tmp_path / "a.jax")(X, MASK)["mean"].shape == (6,)

    def test_without_the_kernels(self, folder):
        if _native.missing():
            pytest.skip("a native program is portable here")
        code = "import jcompress.serving as s; s.open_program('native.jax')"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env={**os.environ, "JCOMPRESS_LIBRARY": "/nowhere/library.so"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "calls compiled kernels" in done.stderr
        assert "portable=True runs without" in done.stderr

    def test_without_flatbuffers(self, small, folder, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "flatbuffers", None)
        for call in (
            lambda: open_program(folder / "portable.jax"),
            lambda: small.export(tmp_path / "a.jax"),
        ):
            with pytest.raises(ImportError, match=r"pip install 'jcompress\[serve\]'"):
                call()
        assert not list(tmp_path.iterdir())

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            open_program(tmp_path / "a.jax")


class TestTimes:
    def test_one(self, folder):
        program = open_program(folder / "portable.jax")
        found = time_programs({"a": program}, [1, 3], rounds=5)
        assert [row["batch"] for row in found.rows()] == [1, 3]
        assert all(row["ms"]["a"]["median"] > 0 for row in found.rows())
        assert "rows/s" in str(found)
        assert found.difference is None
        assert len(time_programs({"a": program}, [2], rounds=5).rows()) == 1

    def test_two(self, folder):
        names = ("native", "portable")
        programs = {name: open_program(folder / f"{name}.jax") for name in names}
        found = time_programs(programs, [2], rounds=5)
        (row,) = found.to_json()["batches"]
        assert row["label"] in (None, "faster", "slower")
        assert set(row["ms"]) == set(names)
        assert found.difference < 1e-5
        assert "evidence" in str(found)
        json.dumps(found.to_json())

    def test_bad_input(self, folder, tmp_path):
        program = open_program(folder / "portable.jax")
        for sizes in ([], [0], [1, 1]):
            with pytest.raises(ProgramError, match="batch sizes are numbers"):
                time_programs({"a": program}, sizes)
        other = jc.compress(
            (lambda p, x: x @ p["w"], {"w": jnp.eye(64)}),
            X[:, :64],
            jc.w8(),
            measure=False,
        )
        other.export(tmp_path / "b.jax", any_batch=False)
        fixed = open_program(tmp_path / "b.jax")
        with pytest.raises(ProgramError, match="of a fixed size; time it at batch 6"):
            time_programs({"b": fixed}, [2])
        with pytest.raises(ProgramError, match="cannot be timed on the same inputs"):
            time_programs({"a": program, "b": fixed}, [6])
