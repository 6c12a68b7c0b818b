"""The container: what is written is of the format, and damage is named."""

import json
import pathlib
import struct

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from raw_files import read_raw, safetensors_bytes

from jcompress.interchange import FileFormatError
from jcompress.interchange.files import replacing
from jcompress.interchange.safetensors import (
    SafetensorsFile,
    planned,
    write_safetensors,
)

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2], ml_dtypes.bfloat16),
    "c": np.array([[1, 2, 3]], np.int8),
    "d": np.array([0.5, 448], ml_dtypes.float8_e4m3fn),
    "none": np.zeros((0, 4), np.float16),
    "one": np.array(7, np.int64),
}


def write(path: pathlib.Path) -> None:
    arrays = {name: planned(array) for name, array in ARRAYS.items()}
    write_safetensors(path, arrays, {"format": "pt"})


def test_both_ways(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path)
    for name, array in read_raw(path).items():
        assert array.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(array, ARRAYS[name])
    (length,) = struct.unpack_from("<Q", path.read_bytes())
    assert length % 8 == 0
    path.write_bytes(safetensors_bytes(ARRAYS, {"k": "v"}))
    file = SafetensorsFile(path)
    assert file.metadata == {"k": "v"}
    assert set(file) == set(ARRAYS)
    for name in file:
        assert file.read(name).dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(file.read(name), ARRAYS[name])
        assert not file.read("a").flags.writeable


def test_the_package_agrees(tmp_path: pathlib.Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "x.safetensors"
    plain = {k: v for k, v in ARRAYS.items() if v.dtype.kind in "if"}
    arrays = {name: planned(array) for name, array in plain.items()}
    write_safetensors(path, arrays, {"format": "pt"})
    found = package.load_file(path)
    assert found.keys() == plain.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, plain[name])
    package.save_file(plain, path)
    for name, array in plain.items():
        np.testing.assert_array_equal(SafetensorsFile(path).read(name), array)


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": entry(dtype="F3")}, "'a' has the dtype 'F3'"),
        ({"a": entry(dtype=["F32"])}, "'a' has the dtype"),
        ({"a": entry(shape=[2, -3])}, r"'a' has shape \[2, -3\]"),
        ({"a": entry(shape=[2, True])}, "'a' has shape"),
        ({"a": entry(shape=[2, 4])}, "'a' is F32 .*32 bytes, but .* hold 24"),
        ({"a": entry(shape=[2**40, 2**40])}, "'a' is F32"),
        ({"a": entry(data_offsets=[24, 48])}, "'a' ends at byte 48.* cut short"),
        ({"a": entry(data_offsets=[24, 0])}, "'a' is F32"),
        ({"a": entry(data_offsets=[0])}, "data_offsets"),
        ({"a": entry(), "b": entry()}, "'b' begins at 0 .* overlaps"),
        ({"a": entry(shape=[5], data_offsets=[4, 24])}, "'a' begins .* a gap"),
        ({"a": entry(shape=[5], data_offsets=[0, 20])}, "4 bytes of data belong to no"),
        ({"a": 3}, "'a' has the dtype None"),
        ({"a": entry(), "__metadata__": {"k": 1}}, "no object of strings"),
        ([], "no JSON object"),
    ],
)
def test_headers_that_lie(tmp_path: pathlib.Path, header: object, said: str) -> None:
    path = tmp_path / "x.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    with pytest.raises(FileFormatError, match=said) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "empty"),
        (b"1234567", "7 bytes"),
        (struct.pack("<Q", 2**60) + b"{}", "header of .* does not fit"),
        (struct.pack("<Q", 2) + b"{x", "cannot be read"),
        (struct.pack("<Q", 15) + b'{"a":1, "a": 2}', "a name stands twice"),
    ],
)
def test_no_such_file(tmp_path: pathlib.Path, raw: bytes, said: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(FileFormatError, match=said):
        SafetensorsFile(path)
    with pytest.raises(FileFormatError, match="a directory"):
        SafetensorsFile(tmp_path)
    with pytest.raises(FileNotFoundError):
        SafetensorsFile(tmp_path / "absent")


def test_every_cut_is_noticed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError):
            SafetensorsFile(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="'a' is complex64"):
        write_safetensors(path, {"a": planned(jnp.ones(1, jnp.complex64))}, {})
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
