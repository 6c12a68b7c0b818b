"""Weights of other libraries, beside what those libraries say that they are.

    pip install '.[peers,test]' && python benchmarks/interchange.py

Quantizes a Flax model with qwix and compares qwix's own outputs with those of
`compressed` on `from_qwix` of its parameters; writes a kernel as each kind of file and
compares what llama.cpp's `gguf` and the `safetensors` package read. Prints one line for
each; ends with 1 if one is beyond its bound.
"""

import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _peers import module
from flax import linen as nn

from jcompress import interchange
from jcompress.execution import compressed
from jcompress.formats import Float8, Int
from jcompress.interchange import GgmlType
from jcompress.quantization import PerGroup, Weights
from jcompress.sites import find_sites
from jcompress.tensors import QTensor, is_compressed
from jcompress.tensors.axes import Axes

gguf, qwix, safetensors = map(module, ("gguf", "qwix", "safetensors"))


class Line(NamedTuple):
    """One comparison: the largest difference, relative to the largest number."""

    what: str
    difference: float
    bound: float
    size: int


class Model(nn.Module):
    """Products as Linen writes them; weights alone, qwix quantizes in no others."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, 32] -> [B, 8]."""
        x = nn.MultiHeadDotProductAttention(num_heads=4, name="attention")(x)
        x = nn.relu(nn.Dense(64, name="up")(x))
        return nn.Dense(8, name="down")(x.mean(axis=1))


def relative(found: Any, wanted: Any) -> float:
    """The largest difference, in parts of the largest number."""
    wide = np.asarray(wanted, np.float32)
    error = np.abs(np.asarray(found, np.float32) - wide)
    return float(error.max() / np.abs(wide).max())


def from_qwix() -> Iterator[Line]:
    """Outputs of a qwix model against those of `compressed`."""
    model = Model()
    x = jax.random.normal(jax.random.key(0), (4, 16, 32))
    dense = model.init(jax.random.key(1), x)
    sites = find_sites(model.apply, dense, x)
    for qtype in (jnp.int8, jnp.int4, "int3", jnp.float8_e4m3fn):
        for tile in (None, 4):
            rule = qwix.QuantizationRule(
                module_path=".*", weight_qtype=qtype, tile_size=tile
            )
            ptq = qwix.quantize_model(model, qwix.PtqProvider([rule]))
            abstract = jax.eval_shape(ptq.init, jax.random.key(1), x)["params"]
            params = {"params": qwix.quantize_params(dense["params"], abstract)}
            small = interchange.from_qwix(params, sites)
            leaves = jax.tree.leaves(small, is_leaf=is_compressed)
            found = compressed(model.apply)(small, x)
            name = qtype if isinstance(qtype, str) else np.dtype(qtype).name
            count = sum(is_compressed(leaf) for leaf in leaves)
            yield Line(
                f"qwix {name}, tiles {tile}, {count} weights",
                relative(found, ptq.apply(params, x)),
                1e-5,
                sum(leaf.stored_bytes for leaf in leaves if is_compressed(leaf)),
            )
            arrays = interchange.to_qwix(small, qwix.QArray)
            again = interchange.from_qwix(arrays, sites)
            same = jax.tree.map(lambda a, b: bool((a == b).all()), small, again)
            yield Line("  and back", 0.0 if all(jax.tree.leaves(same)) else 1.0, 0.0, 0)


def files() -> Iterator[Line]:
    """What other packages read of files that are written here."""
    kernel = jax.random.normal(jax.random.key(0), (512, 256))
    axes = Axes((), (1,), (0,))

    def leaf(format: Any) -> QTensor:
        spec = Weights(format=format, granularity=PerGroup(64))
        return QTensor.quantize(kernel, axes, spec)

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model"
        tensors: dict[str, Any] = {
            "Q4_0": leaf(Int(4)),
            "Q4_1": leaf(Int(4, symmetric=False)),
            "Q8_0": leaf(Int(8)),
            "Q4_K": kernel,
        }
        for what, tensor in tensors.items():
            types = {"*": GgmlType.Q4_K} if what == "Q4_K" else {}
            interchange.write_gguf(path, {"w": tensor}, types=types)
            stored = gguf.GGUFReader(path).tensors[0]
            theirs = gguf.dequantize(stored.data, stored.tensor_type).T
            ours = interchange.read_gguf(path).tensors["w"]
            ours = ours.dense() if is_compressed(ours) else ours
            size = path.stat().st_size
            yield Line(f"{what}, read by both", relative(ours, theirs), 0.0, size)
            wanted = kernel if what == "Q4_K" else tensor.dense()
            bound = 0.1 if what == "Q4_K" else 1e-3
            yield Line("  against what was written", relative(theirs, wanted), bound, 0)
        packed = (
            interchange.read_compressed_tensors,
            interchange.write_compressed_tensors,
        )
        for what, (read, write), format in (
            ("gptq", (interchange.read_gptq, interchange.write_gptq), Int(4)),
            ("awq", (interchange.read_awq, interchange.write_awq), Int(4)),
            ("int8", packed, Int(8)),
            ("float8", packed, Float8()),
        ):
            write(path, {"w.weight": leaf(format)})
            # The package's NumPy reader knows no float8; its own reader does.
            arrays = dict(safetensors.deserialize(path.read_bytes()))
            size = sum(len(array["data"]) for array in arrays.values())
            found = read(path)["w.weight"].dense()
            wanted = leaf(format).dense()
            what = f"{what}, {len(arrays)} arrays seen by the package"
            yield Line(what, relative(found, wanted), 1e-3, size)


def main() -> int:
    """Print the lines; 1 if one is beyond its bound."""
    bad = 0
    for line in (*from_qwix(), *files()):
        missed = not line.difference <= line.bound
        bad |= missed
        print(
            f"{line.what:40} {line.difference:9.2e} (at most {line.bound:.0e})"
            f" {line.size or '':>8}{'  MISSED' if missed else ''}"
        )
    return bad


if __name__ == "__main__":
    sys.exit(main())
