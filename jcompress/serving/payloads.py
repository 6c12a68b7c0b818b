"""Bodies of requests and answers: JSON, `.npy` for one array, `.npz` for several.

What arrives is not trusted: an array is taken only if its header fits its bytes, and
nothing is unpickled.
"""

import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from jcompress.serving.layout import ArraySpec, ProgramError

JSON = "application/json"
NPY = "application/x-npy"
NPZ = "application/x-npz"

MOST_BYTES = 32 << 20
"""Bytes of a body, and of the arrays in it, unless the server is told otherwise."""


class UnknownKind(Exception):
    """A content type that is not known; the message names those that are."""


def read_body(
    body: bytes, kind: str, specs: Sequence[ArraySpec], most: int = MOST_BYTES
) -> list[np.ndarray]:
    """The arrays of a request, in the order of the inputs.

    Args:
        body: the body.
        kind: its content type.
        specs: the inputs of the model. JSON has no dtypes and takes theirs.
        most: bytes that the arrays may take.

    Raises:
        ProgramError: the body is no such thing, or names other inputs.
        UnknownKind: the content type is another one.
    """
    kind = kind.partition(";")[0].strip().lower() or JSON
    if kind == JSON:
        named = _read_json(body, specs)
    elif kind in (NPY, NPZ, "application/octet-stream"):
        named = _read_npz(body, most) if body[:2] == b"PK" else _only(body, specs)
    else:
        raise UnknownKind(f"the content type is {kind}; {JSON}, {NPY} or {NPZ}")
    names = [spec.name for spec in specs]
    if set(named) != set(names):
        raise ProgramError(
            f"inputs {', '.join(map(repr, named)) or 'none'} arrived; it takes "
            f"{', '.join(map(repr, names))}"
        )
    return [named[name] for name in names]


def write_body(
    arrays: Sequence[np.ndarray], kind: str, specs: Sequence[ArraySpec]
) -> tuple[bytes, str]:
    """The body of an answer, and its content type.

    Args:
        arrays: the outputs.
        kind: JSON, or anything else for `.npy`, or `.npz` if there are several.
        specs: the outputs of the model.

    Raises:
        ProgramError: JSON has no number for infinities and what is no number.
    """
    # Neither knows bfloat16 and its like.
    arrays = [x if x.dtype.kind in "biuf" else x.astype(np.float32) for x in arrays]
    if kind == JSON:
        named = {}
        for spec, array in zip(specs, arrays, strict=True):
            if not np.isfinite(array).all():
                raise ProgramError(
                    f"output {spec.name!r} is not finite, which JSON cannot say; ask "
                    f"for it with Accept: {NPY}"
                )
            named[spec.name] = array.tolist()
        return json.dumps({"outputs": named}).encode(), JSON
    file = io.BytesIO()
    if len(arrays) == 1:
        np.save(file, arrays[0], allow_pickle=False)
        return file.getvalue(), NPY
    np.savez(file, **{spec.name: x for spec, x in zip(specs, arrays, strict=True)})  # type: ignore[arg-type]
    return file.getvalue(), NPZ


def _read_json(body: bytes, specs: Sequence[ArraySpec]) -> dict[str, np.ndarray]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProgramError(f"the body is no JSON: {error}") from error
    values = found.get("inputs") if isinstance(found, dict) else None
    if isinstance(values, list) and len(specs) == 1:
        values = {specs[0].name: values}
    if not isinstance(values, Mapping):
        raise ProgramError(
            'the body is {"inputs": {NAME: nested lists}}, with the names '
            + ", ".join(spec.name for spec in specs)
        )
    kinds = {spec.name: spec for spec in specs}
    return {
        str(name): _converted(value, kinds[name]) if name in kinds else np.zeros(0)
        for name, value in values.items()
    }


def _converted(value: Any, spec: ArraySpec) -> np.ndarray:
    """Nested lists of numbers as an array of the dtype, if it holds them."""
    dtype = named_dtype(spec.dtype)
    try:
        array = np.array(value)
    except ValueError as error:
        raise ProgramError(
            f"input {spec.name!r}: its lists are of different lengths; it takes {spec}"
        ) from error
    allowed = {"b": "b", "i": "iu", "u": "iu"}.get(dtype.kind, "iuf")
    if array.size and array.dtype.kind not in allowed:
        raise ProgramError(
            f"input {spec.name!r} holds {_KINDS.get(array.dtype.kind, 'objects')}; it "
            f"takes {spec}"
        )
    with np.errstate(over="ignore"):
        made = array.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(made, array):
        raise ProgramError(f"input {spec.name!r}: a number is too large for {spec}")
    return made


_KINDS = {
    "b": "truth values",
    "f": "numbers with fractions",
    "i": "integers",
    "u": "integers",
    "U": "text",
    "O": "null, or lists of different lengths",
}


def named_dtype(name: str) -> np.dtype[Any]:
    """The dtype of a name, those that JAX adds included."""
    return np.dtype(getattr(ml_dtypes, name, name))


def _only(body: bytes, specs: Sequence[ArraySpec]) -> dict[str, np.ndarray]:
    if len(specs) != 1:
        raise ProgramError(
            f"a .npy body is one array; send .npz with the {len(specs)} inputs "
            + ", ".join(spec.name for spec in specs)
        )
    return {specs[0].name: _read_npy(body, specs[0].name)}


def _read_npy(body: bytes, name: str) -> np.ndarray:
    """An array whose bytes are as many as its header says."""
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, columns_first, dtype = read(file)
    # NumPy evaluates the header as a literal, which fails in many ways.
    except Exception as error:
        raise ProgramError(f"input {name!r} is no .npy file: {error}") from error
    if dtype.hasobject:
        raise ProgramError(f"input {name!r} holds Python objects, which are not taken")
    left = len(body) - file.tell()
    if math.prod(shape) * dtype.itemsize != left or min(shape, default=0) < 0:
        raise ProgramError(
            f"input {name!r} has {left} bytes, and its header says {dtype} "
            f"{list(shape)}"
        )
    flat = np.frombuffer(body, dtype, offset=file.tell())
    made = flat.reshape(shape, order="F" if columns_first else "C")
    return made if made.dtype.isnative else made.astype(made.dtype.newbyteorder("="))


def _read_npz(body: bytes, most: int) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries = archive.infolist()
            # A small archive can say, and hold, very much.
            if sum(entry.file_size for entry in entries) > most:
                raise ProgramError(f"the arrays take more than {most} bytes")
            named = {
                entry.filename.removesuffix(".npy"): archive.read(entry)
                for entry in entries
            }
    except ProgramError:
        raise
    # What is damaged on purpose makes zipfile and zlib fail in many ways.
    except Exception as error:
        raise ProgramError(f"the body is no .npz file: {error}") from error
    return {name: _read_npy(content, name) for name, content in named.items()}
