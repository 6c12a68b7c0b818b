"""Trees and formats of other libraries, and manifests that say something wrong."""

import dataclasses
import errno
import inspect
import json
import pathlib
import subprocess
import sys
import zlib
from typing import Any

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jcompress import checkpoint, tensors
from jcompress.checkpoint import CheckpointError, registry
from jcompress.execution import compressed
from jcompress.formats import Float8, Int
from jcompress.kernels import Implementation
from jcompress.quantization import Activation, Quantize, Weights, quantize
from jcompress.sites import find_sites
from jcompress.tensors import CompressedTensor, specs


def apply(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params["up"]) @ params["down"]


X = jax.random.normal(jax.random.key(1), (2, 8))


def small(key: int = 0) -> Any:
    keys = jax.random.split(jax.random.key(key))
    params = {
        "up": jax.random.normal(keys[0], (8, 16)),
        "down": jax.random.normal(keys[1], (16, 8)),
    }
    rules = [
        ("up", Quantize(weights=Weights(format=Int(4)), activation=Activation())),
        (..., Quantize(weights=Weights(format=Float8()))),
    ]
    return quantize(params, rules, sites=find_sites(apply, params, X))


def same(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    equal = all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)
    return equal and jax.tree.structure(a) == jax.tree.structure(b)


def test_flax_serialization_takes_compressed_leaves() -> None:
    stored = flax.serialization.to_bytes(small())
    restored = flax.serialization.from_bytes(small(key=5), stored)
    assert same(restored, small())
    np.testing.assert_array_equal(
        compressed(apply)(restored, X), compressed(apply)(small(), X)
    )
    state = flax.serialization.to_state_dict(small())
    names = {"values", "scales", "scale_factor", "zeros", "input_scales"}
    assert set(state["up"]) == names
    state["up"]["scales"] = state["up"]["scales"][:3]
    with pytest.raises(ValueError, match="scales"):
        flax.serialization.from_state_dict(small(), state)
    del state["up"]["zeros"]
    with pytest.raises(ValueError, match="QTensor has the arrays"):
        flax.serialization.from_state_dict(small(), state)


def test_plain_orbax_takes_compressed_leaves(tmp_path: pathlib.Path) -> None:
    tree = small()
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "tree", tree)
        saver.wait_until_finished()
        restored = saver.restore(tmp_path / "tree", jax.eval_shape(lambda: tree))
    assert same(restored, tree)


LOADED = """
import pathlib, sys
import jax, numpy as np
from jcompress import checkpoint
folder = pathlib.Path(sys.argv[1])
tree = checkpoint.load(folder / "tree")
program = jax.export.deserialize((folder / "program").read_bytes())
out = program.call(tree, np.load(folder / "x.npy"))
np.testing.assert_allclose(out, np.load(folder / "out.npy"), rtol=1e-5, atol=1e-5)
print(jax.tree.structure(tree) == program.in_tree.children()[0].children()[0])
"""


def test_a_program_takes_a_tree_in_another_process(tmp_path: pathlib.Path) -> None:
    tree = small()
    run = jax.jit(compressed(apply, implementation=Implementation.XLA))
    checkpoint.save(tmp_path / "tree", tree)
    (tmp_path / "program").write_bytes(jax.export.export(run)(tree, X).serialize())
    jnp.save(tmp_path / "x.npy", X)
    jnp.save(tmp_path / "out.npy", run(tree, X))
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOADED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "True", done.stderr


def test_other_leaves_are_arguments_of_a_serialized_program() -> None:
    """With those of `tests/execution/test_execution_export.py`, every kind of leaf."""
    matrix = jax.random.normal(jax.random.key(3), (8, 16))
    of: dict[str, Any] = {
        "shape": (8, 16),
        "dtype": np.dtype("float32"),
        "output_axes": (1,),
        "input_axes": (0,),
    }
    thin, wide = jnp.ones((2, 8)), jnp.ones((16, 2))
    tree = {
        "adapted": tensors.Adapted(base=matrix, down=thin, up=wide, alpha=0.5, **of),
        "hashed": tensors.Hashed(values=jnp.arange(5.0), seed=3, **of),
        "low rank": tensors.LowRank(factors=(thin, wide), **of),
        "removed": tensors.RemovedArray((3,), np.dtype("float32")),
    }
    program = jax.export.export(jax.jit(jax.tree.leaves))(tree)
    read = jax.export.deserialize(program.serialize())
    assert read.in_tree == program.in_tree
    for leaf, expected in zip(read.call(tree), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(leaf, expected)


class Perceptron(eqx.Module):
    layers: list[eqx.nn.Linear]
    activation: Any
    name: str = eqx.field(static=True)

    def __init__(self, activation: Any) -> None:
        self.layers = [eqx.nn.Linear(8, 8, key=jax.random.key(n)) for n in range(2)]
        self.activation = activation
        self.name = "perceptron"

    def __call__(self, x: Any) -> Any:
        return self.layers[1](self.activation(self.layers[0](x)))


def test_an_equinox_module_with_functions_among_its_leaves(
    tmp_path: pathlib.Path,
) -> None:
    model = Perceptron(jax.nn.relu)
    checkpoint.save(tmp_path, model)
    other = jax.tree.map(lambda x: x * 0 if eqx.is_array(x) else x, model)
    loaded = checkpoint.load(tmp_path, like=other)
    assert loaded.activation is jax.nn.relu
    assert eqx.tree_equal(loaded, model)
    with pytest.raises(
        CheckpointError, match=r"'activation' was the function relu.*like"
    ):
        checkpoint.load(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"'activation' is stored as the function relu, .* tanh"
    ):
        checkpoint.load(tmp_path, like=Perceptron(jnp.tanh))


def rewrite(folder: pathlib.Path, change: Any) -> None:
    """Change a manifest and its checksum, as somebody could by hand."""
    file = next(folder.glob("*/manifest/metadata"))
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    sums = file.parents[1] / "checksums.json"
    known = json.loads(sums.read_text())
    known["manifest/metadata"] = zlib.crc32(file.read_bytes())
    sums.write_text(json.dumps(known))


def shaped(manifest: Any) -> None:
    manifest["leaves"]["w"]["shape"] = [10**9, 10**9]


def renamed(manifest: Any) -> None:
    manifest["leaves"]["w"]["array"] = "../../secret"
    manifest["arrays"] = ["../../secret"]


def unknown(manifest: Any) -> None:
    manifest["leaves"]["w"] = {"class": "Popen", "fields": {"args": {"value": "ls"}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shaped, r"'w' of .* is float32\[3\], the manifest says float32\[1000000000, "),
        (renamed, r"names the array '../../secret', which is not stored"),
        (unknown, "holds a 'Popen', which is not known"),
        (lambda m: m.update(leaves=[]), "is not a checkpoint's"),
        (lambda m: m.pop("format"), "has format None"),
        (lambda m: m["leaves"]["w"].pop("dtype"), "the manifest says None"),
        (
            lambda m: m.update(leaves={"w": {"odd": 1}}),
            "entry of 'w' .* cannot be read",
        ),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_before_arrays_are_read(
    tmp_path: pathlib.Path, change: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, {"w": jnp.ones(3)})
    rewrite(tmp_path, change)
    read: list[str] = []
    restore = ocp.PyTreeCheckpointHandler.restore

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        read.append("arrays")
        return restore(self, *args, **kwargs)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", watched)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)
    if change in (shaped, renamed):
        assert not read


class Disk:
    free = 0


def test_a_full_disk_is_one_error_and_leaves_what_was_saved(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "c"
    checkpoint.save(path, {"x": jnp.zeros(3)})

    async def full(*args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            "RESOURCE_EXHAUSTED: Error writing\nNo space [os_error_code='28']"
        )

    faults = (
        ("jcompress.checkpoint.storage.shutil.disk_usage", lambda path: Disk),
        ("orbax.checkpoint.PyTreeCheckpointHandler.async_save", full),
    )
    for target, fault in faults:
        with monkeypatch.context() as patch:
            patch.setattr(target, fault)
            with pytest.raises(OSError, match="No space left on device") as caught:
                checkpoint.save(path, {"x": jnp.ones(3)})
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(path)
        assert [entry.name for entry in path.iterdir() if entry.name.isdigit()] == ["0"]
        np.testing.assert_array_equal(checkpoint.load(path)["x"], np.zeros(3))
    assert capfd.readouterr().err == ""
    checkpoint.save(path, {"x": jnp.ones(3)})
    np.testing.assert_array_equal(checkpoint.load(path)["x"], np.ones(3))


def test_every_leaf_type_and_format_has_its_line_in_the_registry() -> None:
    def below(kind: type) -> set[type]:
        return {kind, *(found for sub in kind.__subclasses__() for found in below(sub))}

    leaves = [
        kind
        for kind in below(CompressedTensor)
        if kind.__module__.startswith("jcompress.") and not inspect.isabstract(kind)
    ]
    assert tensors.QTensor in leaves
    parts = [
        kind
        for kind in vars(specs).values()
        if dataclasses.is_dataclass(kind) and kind.__module__ == specs.__name__
    ]
    assert specs.Activation in parts
    for kind in (*leaves, *parts):
        assert registry.class_of(registry.name_of(kind) or "") is kind, kind


def test_another_class_cannot_take_a_name_that_is_stored() -> None:
    with pytest.raises(ValueError, match="already hold a 'QTensor'"):
        checkpoint.register(type("QTensor", (), {}))
