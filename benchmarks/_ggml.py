"""Llama.cpp's product through its tensor library's C interface.

The library comes from the package llama-cpp-python, or from the folder named in the
environment variable GGML_LIBRARY (a build of ggml with the machine's instructions).
Weights lie where llama.cpp puts them when it loads a model: in the buffer that
interleaves their rows, for the formats that have such a form on this processor.
"""

import ctypes
import functools
import importlib.util
import os
import pathlib
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from _timing import Unavailable, sets_of

FORMATS = {"Q4_0": 2, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12}
"""The library's numbers of the formats used here."""
INTERLEAVED = ("Q4_0", "Q4_K", "Q2_K")
"""Formats whose rows llama.cpp interleaves on x86 with AVX-512."""
_ALIGNED = 64


class _Parameters(ctypes.Structure):
    """What `ggml_init` takes by value."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


class _Traits(ctypes.Structure):
    """What the library says of a format."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float", ctypes.c_void_p),
    )


_POINTER, _SIZE, _LONG, _INT = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int64,
    ctypes.c_int,
)
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_log_set": (None, (_POINTER, _POINTER)),
    "ggml_init": (_POINTER, (_Parameters,)),
    "ggml_free": (None, (_POINTER,)),
    "ggml_new_tensor_2d": (_POINTER, (_POINTER, _INT, _LONG, _LONG)),
    "ggml_mul_mat": (_POINTER, (_POINTER, _POINTER, _POINTER)),
    "ggml_new_graph_custom": (_POINTER, (_POINTER, _SIZE, ctypes.c_bool)),
    "ggml_build_forward_expand": (None, (_POINTER, _POINTER)),
    "ggml_tensor_overhead": (_SIZE, ()),
    "ggml_graph_overhead_custom": (_SIZE, (_SIZE, ctypes.c_bool)),
    "ggml_row_size": (_SIZE, (_INT, _LONG)),
    "ggml_get_type_traits": (ctypes.POINTER(_Traits), (_INT,)),
    "ggml_quantize_chunk": (
        _SIZE,
        (_INT, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER),
    ),
    "ggml_backend_cpu_init": (_POINTER, ()),
    "ggml_backend_cpu_set_n_threads": (None, (_POINTER, _INT)),
    "ggml_backend_free": (None, (_POINTER,)),
    "ggml_backend_cpu_buffer_type": (_POINTER, ()),
    "ggml_backend_cpu_reg": (_POINTER, ()),
    "ggml_backend_reg_dev_get": (_POINTER, (_POINTER, _SIZE)),
    "ggml_backend_reg_get_proc_address": (_POINTER, (_POINTER, ctypes.c_char_p)),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, (_POINTER, _POINTER)),
    "ggml_backend_buft_alloc_buffer": (_POINTER, (_POINTER, _SIZE)),
    "ggml_backend_buffer_get_base": (_POINTER, (_POINTER,)),
    "ggml_backend_buffer_free": (None, (_POINTER,)),
    "ggml_backend_tensor_alloc": (_INT, (_POINTER, _POINTER, _POINTER)),
    "ggml_backend_tensor_set": (None, (_POINTER, _POINTER, _SIZE, _SIZE)),
    "ggml_backend_tensor_get": (None, (_POINTER, _POINTER, _SIZE, _SIZE)),
    "ggml_backend_graph_compute": (_INT, (_POINTER, _POINTER)),
}


@functools.cache
def library() -> Any:
    """The functions of ggml, as a namespace.

    Raises:
        Unavailable: there is no such library.
    """
    given = os.environ.get("GGML_LIBRARY")
    spec = None if given else importlib.util.find_spec("llama_cpp")
    if given:
        folder = pathlib.Path(given)
    elif spec is not None and spec.origin is not None:
        folder = pathlib.Path(spec.origin).parent / "lib"
    else:
        raise Unavailable(
            "no ggml: CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python, or set "
            "GGML_LIBRARY to the folder with libggml-base.so and libggml-cpu.so"
        )
    names = ("libggml-base.so", "libggml-cpu.so")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise Unavailable(f"{folder} has no {' and no '.join(missing)}")
    parts = [ctypes.CDLL(str(folder / n), mode=ctypes.RTLD_GLOBAL) for n in names]
    functions = type("Functions", (), {})()
    for name, (result, arguments) in _SIGNATURES.items():
        function = next(getattr(p, name) for p in parts if hasattr(p, name))
        function.restype, function.argtypes = result, arguments
        setattr(functions, name, function)
    functions.ggml_log_set(_SILENT, None)
    return functions


_SILENT = ctypes.CFUNCTYPE(None, _INT, ctypes.c_char_p, _POINTER)(lambda *_: None)
"""Takes the library's messages; it must outlive the library's use of it."""


class GgmlProduct:
    """`ggml_mul_mat` over copies of a weight in one of llama.cpp's formats.

    Args:
        name: for the tables.
        format: a key of `FORMATS`.
        weight: float32 [N, K].
        threads: how many threads compute.
    """

    kind = "peer"
    activations = 8
    tolerance = 2e-2

    def __init__(
        self, name: str, format: str, weight: np.ndarray, threads: int
    ) -> None:
        self._ggml = ggml = library()
        self._type, (self._outputs, self._inputs) = FORMATS[format], weight.shape
        self.name, self.bits = name, int(format[1])
        row = ggml.ggml_row_size(self._type, self._inputs)
        self.bytes = row * self._outputs
        self.sets = sets_of(self.bytes)
        stored = np.empty(self.bytes, np.uint8)
        flat = np.ascontiguousarray(weight, np.float32)
        ggml.ggml_quantize_chunk(
            self._type, flat.ctypes.data, stored.ctypes.data, 0, *weight.shape, None
        )
        self.stands_for: Callable[[], np.ndarray]
        self.stands_for = functools.partial(self._dense, stored)
        self._backend = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(self._backend, threads)
        self._context = self._room(self.sets)
        self._weights = [
            ggml.ggml_new_tensor_2d(self._context, self._type, *weight.shape[::-1])
            for _ in range(self.sets)
        ]
        kind = self._interleaving() if format in INTERLEAVED else self._plain()
        held = ggml.ggml_backend_alloc_ctx_tensors_from_buft(self._context, kind)
        weakref.finalize(self, _free, ggml, self._context, held, self._backend)
        for tensor in self._weights:
            ggml.ggml_backend_tensor_set(tensor, stored.ctypes.data, 0, self.bytes)

    def bind(self, x: np.ndarray) -> Callable[[int], Any]:
        """The call for inputs [M, K]: a graph of one node for each weight.

        All graphs write to one place, as a model's do.
        """
        ggml, rows = self._ggml, x.shape[0]
        graph_size = 8
        context = self._room(1 + 2 * self.sets, graphs=self.sets, size=graph_size)
        used = x.nbytes + -x.nbytes % _ALIGNED
        buffer = ggml.ggml_backend_buft_alloc_buffer(
            self._plain(), used + 4 * rows * self._outputs + _ALIGNED
        )
        base = ggml.ggml_backend_buffer_get_base(buffer)
        given = ggml.ggml_new_tensor_2d(context, 0, self._inputs, rows)
        ggml.ggml_backend_tensor_alloc(buffer, given, base)
        flat = np.ascontiguousarray(x, np.float32)
        ggml.ggml_backend_tensor_set(given, flat.ctypes.data, 0, flat.nbytes)
        graphs, out = [], None
        for weight in self._weights:
            out = ggml.ggml_mul_mat(context, weight, given)
            ggml.ggml_backend_tensor_alloc(buffer, out, base + used)
            graph = ggml.ggml_new_graph_custom(context, graph_size, False)
            ggml.ggml_build_forward_expand(graph, out)
            graphs.append(graph)
        compute, backend = ggml.ggml_backend_graph_compute, self._backend

        def call(number: int) -> Any:
            status = compute(backend, graphs[number])
            if status:
                raise RuntimeError(f"{self.name}: ggml returned {status}")
            return out, rows

        weakref.finalize(call, _free, ggml, context, buffer, None)
        return call

    def read(self, out: Any) -> np.ndarray:
        """A result as numpy; each call overwrites the one before it."""
        tensor, rows = out
        result = np.empty((rows, self._outputs), np.float32)
        self._ggml.ggml_backend_tensor_get(tensor, result.ctypes.data, 0, result.nbytes)
        return result

    def _dense(self, stored: np.ndarray) -> np.ndarray:
        traits = self._ggml.ggml_get_type_traits(self._type).contents
        convert = ctypes.CFUNCTYPE(None, _POINTER, _POINTER, _LONG)(traits.to_float)
        result = np.empty((self._outputs, self._inputs), np.float32)
        convert(stored.ctypes.data, result.ctypes.data, result.size)
        return result.astype(np.float64)

    def _room(self, tensors: int, graphs: int = 0, size: int = 0) -> Any:
        """A context that holds so many tensors and graphs, without their data."""
        ggml = self._ggml
        needed = tensors * ggml.ggml_tensor_overhead()
        if graphs:
            needed += graphs * ggml.ggml_graph_overhead_custom(size, False)
        return ggml.ggml_init(_Parameters(needed + 4096, None, True))

    def _plain(self) -> Any:
        return self._ggml.ggml_backend_cpu_buffer_type()

    def _interleaving(self) -> Any:
        """The type of buffer that interleaves rows; the plain one if there is none."""
        register = self._ggml.ggml_backend_cpu_reg()
        device = self._ggml.ggml_backend_reg_dev_get(register, 0)
        address = self._ggml.ggml_backend_reg_get_proc_address(
            register, b"ggml_backend_dev_get_extra_bufts"
        )
        if not address:
            return self._plain()
        kind = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)
        extra = kind(address)(device)
        return extra[0] if extra and extra[0] else self._plain()


def _free(ggml: Any, context: Any, buffer: Any, backend: Any) -> None:
    ggml.ggml_backend_buffer_free(buffer)
    ggml.ggml_free(context)
    if backend is not None:
        ggml.ggml_backend_free(backend)
