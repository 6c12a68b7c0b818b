"""Bodies of requests: read as the model takes them, or refused."""

import io
import json
import zipfile

import numpy as np
import pytest

from jcompress.serving import ArraySpec, ProgramError
from jcompress.serving.payloads import (
    JSON,
    NPY,
    NPZ,
    UnknownKind,
    read_body,
    write_body,
)

pytestmark = pytest.mark.once

X = ArraySpec(name="x", shape=("b", 2), dtype="float32")
TOKENS = ArraySpec(name="tokens", shape=("b", 2), dtype="int32")


def npy(array, **kwargs):
    file = io.BytesIO()
    np.save(file, array, **kwargs)
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def test_json():
    (found,) = read_body(b'{"inputs": [[1, 2.5]]}', "", [X])
    assert (found.dtype, found.tolist()) == (np.float32, [[1, 2.5]])
    body = json.dumps({"inputs": {"tokens": [[7, 8]], "x": [[1, 2]]}}).encode()
    x, tokens = read_body(body, f"{JSON}; charset=utf-8", [X, TOKENS])
    assert (x.dtype, tokens.dtype) == (np.float32, np.int32)
    assert tokens.tolist() == [[7, 8]]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff", "no JSON"),
        (b"3", r'{"inputs": {NAME: nested lists}}, with the names tokens'),
        (b'{"input": [[1, 2]]}', "with the names tokens"),
        (b'{"inputs": {"x": [[1, 2]]}}', "inputs 'x' arrived; it takes 'tokens'"),
        (b'{"inputs": {}}', "inputs none arrived"),
        (b'{"inputs": [[1, 2], [3]]}', "different lengths"),
        (b'{"inputs": [[1, null]]}', "null"),
        (b'{"inputs": [["1", "2"]]}', "holds text"),
        (b'{"inputs": [[1.5, 2]]}', "holds numbers with fractions"),
        (b'{"inputs": [[true, false]]}', "holds truth values"),
        (b'{"inputs": [[1, 5000000000]]}', "too large"),
    ],
)
def test_wrong_json(body, words):
    with pytest.raises(ProgramError, match=words):
        read_body(body, JSON, [TOKENS])


def test_arrays():
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    for given in (x, np.asfortranarray(x), x.astype(">f4")):
        (found,) = read_body(npy(given), NPY, [X])
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, x)
    tokens = np.ones((3, 2), np.int32)
    found = read_body(npz(tokens=tokens, x=x), NPZ, [X, TOKENS])
    np.testing.assert_array_equal(found[0], x)
    np.testing.assert_array_equal(found[1], tokens)


def header(shape):
    text = str({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no .npy file"),
        (b"\x93NUMPY\x01\x00\x05\x00hello", "no .npy file"),
        (b"\x93NUMPY\x09\x00", "no .npy file"),
        (npy(np.ones((2, 2)))[:-1], "has 31 bytes"),
        # It asks for a terabyte that is not there.
        (header((10**12,)), "has 0 bytes"),
        (header((-1, -1)), "its header says|no .npy file"),
        (npy(np.array([{}], object), allow_pickle=True), "Python objects"),
        (b"PK\x03\x04", "no .npz file"),
        (npz(x=np.ones(2))[:-30], "no .npz file"),
        (npz(y=np.ones(2)), "inputs 'y' arrived; it takes 'x'"),
        # A small archive of very much.
        (npz(x=np.zeros(2**18, np.float32)), "more than 1000 bytes"),
    ],
)
def test_wrong_arrays(body, words):
    assert len(body) < 2000
    with pytest.raises(ProgramError, match=words):
        read_body(body, "application/octet-stream", [X], most=1000)


def test_damaged_archives():
    whole = bytearray(npz(x=np.arange(200, dtype=np.float32)))
    refused = set()
    for place in range(30, len(whole), 7):
        changed = bytes(whole[:place]) + b"\xa5" + bytes(whole[place + 1 :])
        try:
            read_body(changed, NPZ, [X])
        except ProgramError as error:
            refused.add(str(error))
    assert refused
    assert not any("\n" in said for said in refused)


def test_two_inputs_need_an_archive():
    with pytest.raises(ProgramError, match=r"send .npz with the 2 inputs x, tokens"):
        read_body(npy(np.ones(2)), NPY, [X, TOKENS])


def test_other_kinds():
    with pytest.raises(UnknownKind, match="text/csv; application/json, "):
        read_body(b"1,2", "text/csv", [X])


def test_answers():
    one, two = np.float32([[1, 2]]), np.int32([[3, 4]])
    body, kind = write_body([one, two], JSON, [X, TOKENS])
    assert kind == JSON
    assert json.loads(body) == {"outputs": {"x": [[1, 2]], "tokens": [[3, 4]]}}
    body, kind = write_body([one], NPY, [X])
    assert kind == NPY
    np.testing.assert_array_equal(np.load(io.BytesIO(body)), one)
    body, kind = write_body([one, two], NPY, [X, TOKENS])
    assert kind == NPZ
    assert zipfile.ZipFile(io.BytesIO(body)).namelist() == ["x.npy", "tokens.npy"]
    with pytest.raises(ProgramError, match=r"'x' is not finite.*Accept"):
        write_body([np.full_like(one, np.inf)], JSON, [X])
