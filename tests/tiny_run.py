"""A main job so small that tests can afford it, run in processes of its own."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np

RECIPE = """
seed = 5
[model]
widths = [4, 8]
[teacher]
epochs = 3
[shrinking]
keep = 0.6
multiple = 1
[recovery]
epochs = 2
[student]
epochs = 3
[pruning]
sparsity = 0.25
epochs = 2
[latency]
batch_sizes = [2]
rounds = 5
"""

CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax-commands"


def environment():
    return {
        **os.environ,
        # Most of the time is that of the compiler.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def command(*arguments):
    return [sys.executable, "-P", "-m", "jcompress", *map(str, arguments)]


def jcompress(*arguments):
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )


def write_tiny(folder):
    file = folder / "tiny.toml"
    file.write_text(RECIPE)
    return file


TIMES = ("latency_ms", "latency_ms_quartiles", "latency_ms_samples")


def numbers(folder):
    """All that an interrupted run must share with an uninterrupted one."""
    report = json.loads((folder / "report.json").read_text())
    for side in ("dense", "compressed"):
        for key in report[side].keys() & {"labels", *TIMES}:
            del report[side][key]
    for key in ("lines", "table", "date", "seconds"):
        del report[key]
    with np.load(folder / "predictions.npz") as archive:
        return report, archive["logits"].tobytes()
