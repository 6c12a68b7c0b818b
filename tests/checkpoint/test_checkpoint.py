import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jcompress import checkpoint
from jcompress.checkpoint import CheckpointError
from jcompress.formats import Int
from jcompress.quantization import Quantize, Weights, quantize
from jcompress.sites import find_sites
from jcompress.tensors import CompressedTensor, is_compressed


@checkpoint.register
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Halves(CompressedTensor):
    """A compressed leaf with every kind of field that a manifest must carry."""

    arrays = ("values", "parts", "inner")

    values: jax.Array
    parts: tuple[jax.Array, ...] = ()
    inner: CompressedTensor | None = None
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: np.dtype = dataclasses.field(metadata={"static": True})
    note: str | None = dataclasses.field(default=None, metadata={"static": True})

    def dense(self):
        return self.values.astype(self.dtype).reshape(self.shape)

    def unstack(self):
        return None


def halves(shape, key=0, **kwargs):
    values = jax.random.randint(jax.random.key(key), shape, -128, 128, jnp.int8)
    return Halves(values=values, shape=shape, dtype=jnp.dtype("float32"), **kwargs)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        if isinstance(x, jax.Array | np.ndarray):
            assert x.dtype == y.dtype
            assert x.shape == y.shape
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        else:
            assert x == y


ODD = {
    "params": {
        "f32": jnp.asarray([[1.0, jnp.nan], [-0.0, jnp.inf]]),
        "bf16": jnp.linspace(-1, 1, 7, dtype=jnp.bfloat16),
        "int4": jnp.arange(-8, 7).astype(jnp.int4),
        "f8": jnp.linspace(-1, 1, 5).astype(jnp.float8_e4m3fn),
        "mask": jnp.asarray([True, False]),
        "scalar": jnp.float32(3.5),
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
        "complex": jnp.asarray([1 + 2j]),
        "with.dot and space": jnp.ones(2),
    },
    "numpy64": np.linspace(0, 1, 5),
    "step": 7,
    "rate": 0.25,
    "done": True,
    "name": "digits",
    "key": jax.random.key(3),
    "packed": halves(
        (4, 6),
        parts=(jnp.ones(3), jnp.zeros((2, 0))),
        inner=halves((2, 2), key=1, note="inner"),
    ),
}


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    checkpoint.save(tmp_path / "c", ODD)
    assert_same(checkpoint.load(tmp_path / "c"), ODD)
    assert_same(checkpoint.load(tmp_path / "c", like=ODD), ODD)


def test_flax_variables_and_optimizer_state(tmp_path):
    model = nn.Sequential([nn.Dense(8), nn.BatchNorm(True), nn.Dense(3)])
    variables = model.init(jax.random.key(0), jnp.ones((2, 5)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    tree = (variables, optimizer.init(variables["params"]), [jnp.ones(2), None])
    checkpoint.save(tmp_path, tree)
    like = jax.eval_shape(lambda: tree)
    assert_same(checkpoint.load(tmp_path, like=like), tree)
    by_name = checkpoint.load(tmp_path)
    assert_same(by_name["0"], variables)
    assert set(by_name) == {"0", "1", "2"}


def test_a_single_array_is_a_tree(tmp_path):
    checkpoint.save(tmp_path, jnp.arange(4))
    np.testing.assert_array_equal(checkpoint.load(tmp_path), np.arange(4))


def test_compressed_leaves_replace_dense_ones_of_the_template(tmp_path):
    tree = {"a": halves((3, 4)), "b": jnp.ones(2)}
    checkpoint.save(tmp_path, tree)
    like = {"a": jnp.zeros((3, 4)), "b": jax.ShapeDtypeStruct((2,), jnp.float32)}
    loaded = checkpoint.load(tmp_path, like=like)
    assert is_compressed(loaded["a"])
    assert_same(loaded, tree)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            {"a": jnp.zeros((4, 3)), "b": jnp.ones(2)},
            r"'a' is stored as float32\[3, 4\]",
        ),
        (
            {"a": jnp.zeros((3, 4)), "b": jnp.ones(2, jnp.int32)},
            r"'b' is stored as flo",
        ),
        ({"a": jnp.zeros((3, 4))}, "'b' is not in the template"),
        (
            {"a": jnp.zeros((3, 4)), "b": jnp.ones(2), "c": 1},
            "'c' of the template is no",
        ),
        ({"a": jnp.zeros((3, 4)), "b": 2}, r"'b' is stored as .*the template says int"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(tmp_path, like, message):
    checkpoint.save(tmp_path, {"a": halves((3, 4)), "b": jnp.ones(2)})
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path, like=like)


def test_arrays_go_where_the_template_says(tmp_path):
    mesh = jax.make_mesh((4,), ("x",))
    sharding = jax.NamedSharding(mesh, jax.P("x"))
    x = jax.device_put(jnp.arange(8.0), sharding)
    checkpoint.save(tmp_path, {"x": x})
    like = {"x": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}
    assert checkpoint.load(tmp_path, like=like)["x"].sharding == sharding
    assert len(checkpoint.load(tmp_path)["x"].devices()) == 1


@pytest.mark.parametrize(
    ("tree", "kind", "message"),
    [
        ({"a": {"f": object()}}, TypeError, "'a/f' is a object; a checkpoint holds"),
        ({"a": np.asarray(["x"])}, TypeError, "'a' is an array of <U1"),
        ({"a": {"b": 1.0}, "a/b": 2.0}, CheckpointError, "two leaves .* 'a/b'"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(tmp_path, tree, kind, message):
    with pytest.raises(kind, match=message):
        checkpoint.save(tmp_path / "c", tree)
    assert not (tmp_path / "c").exists()


def test_names_that_nest_in_each_other_need_a_template(tmp_path):
    tree = {"a": jnp.ones(1), "a/b": jnp.zeros(1)}
    checkpoint.save(tmp_path, tree)
    assert_same(checkpoint.load(tmp_path, like=tree), tree)
    with pytest.raises(CheckpointError, match="like="):
        checkpoint.load(tmp_path)


def test_saving_again_replaces_and_leaves_one_version(tmp_path):
    for value in range(3):
        checkpoint.save(tmp_path, {"x": jnp.full(4, value)})
        assert len(list(tmp_path.iterdir())) == 1
    assert int(checkpoint.load(tmp_path)["x"][0]) == 2


def test_a_directory_with_other_things_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"thesis\.txt"):
        checkpoint.save(tmp_path, {"x": 1})
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(CheckpointError, match="is a file"):
        checkpoint.save(tmp_path / "thesis.txt", {"x": 1})


def test_a_save_that_fails_leaves_the_previous_one(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, {"x": jnp.zeros(3)})
    import orbax.checkpoint as ocp

    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "async_save", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(tmp_path, {"x": jnp.ones(3)})
    monkeypatch.undo()
    np.testing.assert_array_equal(checkpoint.load(tmp_path)["x"], np.zeros(3))
    checkpoint.save(tmp_path, {"x": jnp.ones(3)})
    np.testing.assert_array_equal(checkpoint.load(tmp_path)["x"], np.ones(3))


# Started in the background by a shell, a process would ignore interrupts.
INTERRUPTED = """
import itertools, signal, sys
import jax.numpy as jnp
from jcompress import checkpoint
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    for value in itertools.count():
        checkpoint.save(sys.argv[1], {"x": jnp.full((64, 64), value)})
        print(value, flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_an_interrupted_saver_finishes_quietly(tmp_path):
    path = tmp_path / "c"
    for delay in (0.005, 0.025, 0.045):
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", INTERRUPTED, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for _ in range(2):
            process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=120)
        assert errors == b""
        assert said.split()[-1] == b"interrupted"
        assert [entry.name.isdigit() for entry in path.iterdir()] == [True]
        x = np.asarray(checkpoint.load(path)["x"])
        assert (x == x[0, 0]).all()


SAVER = """
import sys, itertools
import jax.numpy as jnp
from jcompress import checkpoint
for value in itertools.count():
    checkpoint.save(sys.argv[1], {"x": jnp.full((64, 64), value)})
    print(value, flush=True)
"""


def test_a_killed_saver_always_leaves_a_complete_checkpoint(tmp_path):
    path = tmp_path / "c"
    for delay in (0.0, 0.013, 0.031):
        command = [sys.executable, "-P", "-c", SAVER, str(path)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "JAX_PLATFORMS": "cpu"}
        )
        for _ in range(3):
            process.stdout.readline()
        time.sleep(delay)
        process.kill()
        said = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        x = np.asarray(checkpoint.load(path)["x"])
        assert (x == x[0, 0]).all()
        assert x[0, 0] >= int(said[-1] if said else 2)


def test_int4_takes_half_a_byte_an_element_on_disk(tmp_path):
    tree = {"w": jax.random.normal(jax.random.key(0), (1024, 1024))}
    sites = find_sites(lambda t, x: x @ t["w"], tree, jnp.ones((1, 1024)))
    spec = Quantize(weights=Weights(format=Int(4)))
    packed = quantize(tree, [("w", spec)], sites=sites)
    checkpoint.save(tmp_path, packed)
    on_disk = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    assert on_disk <= 0.55 * 1024 * 1024 + 16384
    loaded = checkpoint.load(tmp_path)
    assert_same(loaded, packed)
    np.testing.assert_array_equal(loaded["w"].dense(), packed["w"].dense())


@pytest.mark.parametrize("damage", ["truncate", "delete", "flip"])
def test_damage_to_any_file_is_reported(tmp_path, damage):
    tree = {"w": jax.random.normal(jax.random.key(0), (64, 64)), "b": jnp.ones(64)}
    checkpoint.save(tmp_path, tree)
    files = [f for f in tmp_path.rglob("*") if f.is_file() and f.stat().st_size]
    assert len(files) >= 5
    for file in files:
        content = file.read_bytes()
        half = len(content) // 2
        if damage == "truncate":
            file.write_bytes(content[:half])
        elif damage == "delete":
            file.unlink()
        else:
            flipped = bytes([content[half] ^ 0x01])
            file.write_bytes(content[:half] + flipped + content[half + 1 :])
        with pytest.raises(CheckpointError, match="incomplete or damaged") as caught:
            checkpoint.load(tmp_path)
        assert "\n" not in str(caught.value)
        file.write_bytes(content)
    assert_same(checkpoint.load(tmp_path), tree)


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("jcompress.checkpoint.folder.FORMAT", 99)
    checkpoint.save(tmp_path, {"x": 1})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(tmp_path)


def test_missing_and_unfinished_paths(tmp_path):
    with pytest.raises(CheckpointError, match="there is no directory"):
        checkpoint.load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        checkpoint.load(tmp_path)
    (tmp_path / "0").mkdir()
    with pytest.raises(CheckpointError, match="incomplete or damaged"):
        checkpoint.load(tmp_path)


def test_the_extra_is_named_when_orbax_is_absent(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"jcompress\[checkpoint\]"):
        checkpoint.save(pathlib.Path(tmp_path), {"x": 1})
