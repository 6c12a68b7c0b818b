"""`jcompress tune` writes what differs, and the dispatcher's look-up reads it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from jcompress.cli import main, tune
from jcompress.kernels import Implementation, _tiles
from jcompress.kernels._dispatch import Form

pytestmark = pytest.mark.once


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The user's folder of tables, empty; the package ships none."""
    monkeypatch.setenv(_tiles.VARIABLE, str(tmp_path / "user"))
    monkeypatch.setattr(_tiles, "SHIPPED", tmp_path / "shipped")
    return tmp_path / "user"


KIND = _tiles.device_kind("cpu")


def run(x, *, factor):
    return x * factor


def case(key="W4 float32", refuses=lambda x, *, factor: ""):
    forms = {
        Implementation.XLA: Form(run),
        Implementation.CPU: Form(run, refuses),
    }
    return tune.TunedProduct(
        operation="weight_only_matmul",
        key=key,
        forms=forms,
        sets=2,
        x=lambda rows: jnp.ones((1, rows, 4)),
        weight=lambda number: (),
        static={"factor": 2.0},
    )


def losing_beyond(rows):
    """Times of two programs of which the first is slower beyond so many rows."""

    def compare(own, xla):
        return [2.0 if own(0).shape[1] > rows else 0.5] * 4

    return compare


@pytest.mark.parametrize(("most", "found"), [(0, 0), (1, 1), (20, 16), (256, 256)])
def test_the_crossover_is_found_written_and_read(folder, most, found):
    said = []
    path = tune.tune(
        folder, cases=[case()], compare=losing_beyond(most), say=said.append
    )
    assert path is not None
    assert path.parent == folder
    assert json.loads(path.read_text()) == {
        "platform": "cpu",
        "device_kind": KIND,
        "choices": {"weight_only_matmul": {"W4 float32": {"rows": found}}},
    }
    assert f"cpu for up to {found} rows (changed)" in said[0]
    for rows in (1, 16, 17, 256, 257):
        suits = _tiles.suits("weight_only_matmul", "cpu", "W4 float32", rows)
        assert suits == (rows <= found)
    assert _tiles.suits("weight_only_matmul", "cpu", "W8 float32", 1000)


def sized(x, *, factor):
    """A kernel that reads its size from the tables while it is traced."""
    size = _tiles.tiles("weight_only_matmul", KIND, "W4 float32").get("block") or 128
    if size > 512:
        raise ValueError("does not fit")
    return x * size


def test_sizes_are_tried_and_the_fastest_is_written(folder, monkeypatch):
    values = {"block": (256, 1024, 512)}
    table = {("cpu", "weight_only_matmul"): ((8, "", values),)}
    monkeypatch.setattr(tune, "SIZES", table)
    given = case()
    forms = {Implementation.XLA: Form(run), Implementation.CPU: Form(sized)}
    given = dataclasses.replace(given, forms=forms)

    def compare(first, second):
        # Larger blocks take less time; XLA's form, which gives 2, always more.
        return [float(second(0).max() / first(0).max())] * 4

    said = []
    path = tune.tune(folder, cases=[given], compare=compare, say=said.append)
    (choices,) = json.loads(path.read_text())["choices"].values()
    assert choices == {"W4 float32": {"block": 512}}
    assert said[0].endswith("block 1024 is left out: does not fit")
    assert said[1].endswith("8 rows: block 512 (changed)")


def test_what_does_not_differ_is_not_written(folder):
    said = []
    assert (
        tune.tune(folder, cases=[case()], compare=losing_beyond(999), say=said.append)
        is None
    )
    assert "for any number of rows" in said[0]
    assert "nothing differs" in said[-1]
    assert not folder.exists()


def test_without_a_kernel_there_is_nothing_to_measure(folder):
    said = []
    refusing = case(refuses=lambda x, *, factor: "is not here")
    assert (
        tune.tune(folder, cases=[refusing], compare=losing_beyond(0), say=said.append)
        is None
    )
    assert "jcompress doctor" in said[-1]


def test_the_users_table_comes_before_the_shipped_one(folder):
    _tiles.write(_tiles.SHIPPED, "tpu", "TPU v9", {"f": {"a": {"rows": 4, "block": 8}}})
    assert _tiles.tiles("f", "TPU v9", "a") == {"rows": 4, "block": 8}
    _tiles.write(folder, "tpu", "TPU v9", {"f": {"a": {"rows": None}}})
    _tiles.write(folder, "tpu", "TPU v9", {"f": {"b": {"rows": 1}}})
    assert _tiles.tiles("f", "TPU v9", "a") == {"rows": None, "block": 8}
    assert _tiles.tiles("f", "TPU v9", "b") == {"rows": 1}
    assert _tiles.tiles("f", "TPU v8", "a") == {}


def test_the_kind_of_a_device_is_known_without_asking_for_it(folder):
    assert _tiles.device_kind("tpu") == ""
    _tiles.write(folder, "tpu", "TPU v5e", {})
    assert _tiles.device_kind("tpu") == "TPU v5e"
    assert _tiles.device_kind("cuda") == ""
    _tiles.write(folder, "tpu", "TPU v6e", {})
    assert _tiles.device_kind("tpu") == ""


def test_a_damaged_table_is_named(folder):
    folder.mkdir()
    path = folder / _tiles.file_name("TPU v7")
    for text in ("{", "[]", '{"choices": {"f": {"a": {"rows": 0.5}}}}'):
        path.write_text(text)
        _tiles._read.cache_clear()
        with pytest.raises(ValueError, match=r"tpu-v7\.json is damaged .*tune"):
            _tiles.tiles("f", "TPU v7", "a")
    _tiles._read.cache_clear()


def test_a_table_that_cannot_be_written_leaves_nothing(folder, monkeypatch):
    _tiles.write(folder, "tpu", "TPU v9", {"f": {"a": {"rows": 4}}})
    before = sorted(folder.iterdir())

    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match="no space"):
        _tiles.write(folder, "tpu", "TPU v9", {"f": {"a": {"rows": 5}}})
    assert sorted(folder.iterdir()) == before
    assert _tiles.tiles("f", "TPU v9", "a") == {"rows": 4}


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.05] * 8, False),
        ([1.2] * 8, True),
        ([0.8] * 3 + [1.3] * 5, False),
        ([0.9] + [1.2] * 7, True),
        ([2.0, 0.5] * 4, False),
    ],
)
def test_noise_changes_nothing(ratios, expected):
    assert tune.slower(ratios) == expected


def test_programs_take_turns_with_all_weights():
    asked = []

    def weight(number):
        asked.append(number)
        return ()

    one = tune.program(
        tune.TunedProduct(**{**vars(case()), "weight": weight}), Form(run), rows=3
    )
    assert len(tune.ratios(one, one)) == tune._ROUNDS
    assert set(asked) == {0, 1}


def test_all_cases_have_arguments_that_forms_take():
    keys = set()
    for found in tune.all_cases():
        keys.add((found.operation, found.key))
        args = (found.x(1), *found.weight(0))
        form = found.forms[Implementation.XLA]
        out = jax.eval_shape(lambda *a: form.on_stack(a, found.static), *args)  # noqa: B023
        assert out.shape == (1, 1, tune._OUTPUTS)
        assert found.sets > 1
    assert len(keys) == 1 + 4 * 3 * 2


def test_the_command(folder, monkeypatch, capsys):
    monkeypatch.setattr(tune, "all_cases", lambda: [case()])
    monkeypatch.setattr(tune, "ratios", losing_beyond(8))
    assert main(["tune", "--output", str(folder / "here")]) == 0
    assert "cpu for up to 8 rows" in capsys.readouterr().out
    assert [p.suffix for p in (folder / "here").iterdir()] == [".json"]
    (folder / "file").write_text("")
    assert main(["tune", "--output", str(folder / "file")]) == 2
    assert capsys.readouterr().err.startswith("jcompress: ")


def test_keys():
    assert _tiles.weight_key(5, jnp.dtype("float32"), 1) == "W8 float32"
    assert _tiles.weight_key(3, "int8", 4) == "W3 int8 grouped"
