"""What files of weights hold, and how two differ."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jcompress import checkpoint
from jcompress.cli import main
from jcompress.formats import Int
from jcompress.interchange import write_gguf
from jcompress.quantization import PerGroup, Weights
from jcompress.recipes import describe_difference, describe_stored
from jcompress.recipes.stored import BINS
from jcompress.tensors import QTensor
from jcompress.tensors.axes import Axes

pytestmark = pytest.mark.once

KERNEL = jax.random.normal(jax.random.key(0), (64, 32))
SMALL = QTensor.quantize(
    KERNEL, Axes((), (1,), (0,)), Weights(format=Int(4), granularity=PerGroup(32))
)
LARGE = np.linspace(-1, 3, 2**17, dtype=np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tree = {"layer": {"kernel": SMALL, "bias": jnp.zeros(32)}, "relu": jax.nn.relu}
    checkpoint.save(folder / "checkpoint", {**tree, "steps": 7})
    save_file(
        {"a": LARGE, "b": np.full((2, 3), np.nan), "c": np.arange(6, dtype=np.int8)},
        folder / "model.safetensors",
    )
    write_gguf(folder / "model.gguf", {"up.weight": SMALL, "norm": jnp.ones(32)})
    return folder


def test_a_checkpoint(files):
    found = describe_stored(files / "checkpoint")
    assert found.kind == "checkpoint"
    leaves = {leaf.name: leaf for leaf in found.leaves}
    kernel = leaves["layer/kernel"]
    # Half a byte a number, and a float32 scale for each of 2 x 32 groups.
    assert (kernel.form, kernel.shape) == ("int4 group 32", (64, 32))
    assert kernel.bytes == 64 * 32 // 2 + 4 * 64
    dense = np.asarray(SMALL.dense()).ravel()
    low, high = dense.min(), dense.max()
    counts = [0] * BINS
    for number in dense:
        place = int((float(number) - float(low)) / (float(high - low) / BINS))
        counts[min(place, BINS - 1)] += 1
    assert kernel.values.low == low
    assert kernel.values.high == high
    assert sum(kernel.values.counts) == dense.size
    # Numbers on the border of two bins may fall on either side.
    apart = np.abs(np.subtract(counts, kernel.values.counts))
    assert apart.sum() <= 0.02 * dense.size
    assert (leaves["relu"].form, leaves["relu"].shape) == ("StoredFunction", None)
    assert leaves["steps"].form == "int"
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[-1].startswith("checkpoint: 4 leaves, ")


def test_a_safetensors_file(files):
    found = describe_stored(files / "model.safetensors")
    assert (found.kind, found.bytes) == ("safetensors", 4 * 2**17 + 8 * 6 + 6)
    leaves = {leaf.name: leaf for leaf in found.leaves}
    assert (leaves["a"].form, leaves["a"].shape) == ("float32", (2**17,))
    # A sample that reaches from end to end.
    assert (leaves["a"].values.low, leaves["a"].values.high) == (-1, 3)
    counts = leaves["a"].values.counts
    assert max(counts) < 1.3 * min(counts)
    assert leaves["b"].values is None
    assert leaves["c"].values.counts == (1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1)
    same = describe_stored(files)  # a folder of such files
    assert same.leaves == found.leaves


def test_a_gguf_file(files):
    found = describe_stored(files / "model.gguf")
    assert found.kind == "GGUF"
    rows = [(leaf.name, leaf.form, leaf.shape, leaf.bytes) for leaf in found.leaves]
    # 18 bytes for 32 numbers, [N, K].
    assert rows == [
        ("up.weight", "Q4_0", (32, 64), 18 * 64),
        ("norm", "F32", (32,), 128),
    ]


def test_a_difference(files, tmp_path):
    params = {"layer": {"kernel": KERNEL, "bias": jnp.zeros(32)}, "old": jnp.ones(3)}
    checkpoint.save(tmp_path / "dense", params)
    found = describe_difference(tmp_path / "dense", files / "checkpoint")
    rows = {row.name: row for row in found}
    assert set(rows) == {"layer/kernel", "old", "relu", "steps"}
    kernel = rows["layer/kernel"]
    assert (kernel.before, kernel.after) == ("float32 64x32", "int4 group 32")
    wanted = np.asarray(KERNEL, np.float64)
    lost = np.linalg.norm(wanted - np.asarray(SMALL.dense())) / np.linalg.norm(wanted)
    assert kernel.error == pytest.approx(lost)
    assert rows["old"].after == "removed"
    changed = {"layer": {"kernel": KERNEL.at[0, 0].add(1), "bias": jnp.zeros(32)}}
    checkpoint.save(tmp_path / "other", {**changed, "old": jnp.ones(3)})
    (row,) = describe_difference(tmp_path / "dense", tmp_path / "other")
    assert (row.name, row.before) == ("layer/kernel", row.after)
    assert len(describe_difference(files / "checkpoint", files / "checkpoint")) == 0
    assert len(describe_difference(files / "model.gguf", files / "model.gguf")) == 0


def damaged(files, folder, name):
    """A file or a folder that cannot be read."""
    if name == "text":
        (folder / "text").write_text("years of work\n" * 10)
    elif name == "empty":
        (folder / "empty").write_bytes(b"")
    elif name == "folder":
        (folder / "folder").mkdir()
    elif name == "checkpoint":
        checkpoint.save(folder / name, {"a": KERNEL})
        largest = max(
            (f for f in (folder / name).rglob("*") if f.is_file()),
            key=lambda f: f.stat().st_size,
        )
        largest.write_bytes(largest.read_bytes()[:-1])
    elif name.startswith("model."):
        content = (files / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) * 2 // 3])
    return folder / name


NAMES = ["text", "empty", "folder", "absent", "checkpoint"]


@pytest.mark.parametrize("name", [*NAMES, "model.safetensors", "model.gguf"])
def test_damaged_and_foreign_files_are_one_line(files, tmp_path, capsys, name):
    path = str(damaged(files, tmp_path, name))
    whole = str(files / "checkpoint")
    for command in (["inspect", path], ["diff", path, whole], ["diff", whole, path]):
        assert main(command) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("jcompress: ")
        assert name in error
        assert error.count("\n") == 1


def test_json(files, capsys):
    assert main(["inspect", str(files / "model.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    leaves = {leaf["name"]: leaf for leaf in found["leaves"]}
    assert set(leaves) == {"a", "b", "c"}
    assert leaves["a"]["values"]["high"] == 3
    assert leaves["b"]["values"] is None
