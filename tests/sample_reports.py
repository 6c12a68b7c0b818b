"""Reports to draw, of every kind and with every section."""

import copy

import numpy as np

from jcompress.report import Comparison, Facts, Latency, Metric

LONG = "params/decoder/layers_11/self_attention/query_key_value/kernel_of_many_parts"
STRANGE = "<script>alert(1)</script> & \"quotes\" 'both' \x00 \ud800 \u202e"


def comparison():
    rng = np.random.default_rng(0)
    facts = Facts(
        bytes=400_000,
        parameters=100_000,
        nonzero=100_000,
        macs=100_000,
        metrics={"accuracy": 0.98},
    )
    small = Facts(
        bytes=100_400,
        parameters=100_000,
        nonzero=99_000,
        macs=100_000,
        metrics={"accuracy": 0.96},
    )
    return Comparison(
        facts={"dense": facts, "compressed": small},
        latency={
            size: Latency(
                baseline="dense",
                seconds={
                    "dense": tuple(size * rng.uniform(1e-3, 1.1e-3, 31)),
                    "compressed": (*size * rng.uniform(5e-4, 6e-4, 30), size * 0.1),
                },
            )
            for size in (1, 64)
        },
        metrics=(Metric("accuracy", {}, higher_is_better=True),),
    )


def of_compress(**more):
    """A report of `jcompress compress`."""
    leaves = [
        {
            "name": name,
            "before": "float32 64x64",
            "after": "int8",
            "bytes_before": 16384 * (n + 1),
            "bytes_after": 4352,
            "error": 0.005,
            "seconds_before": 1e-4,
            "seconds_after": 1.2e-4 if n else 3e-5,
        }
        for n, name in enumerate(("up", LONG, STRANGE))
    ]
    return {
        "schema": 1,
        "command": "compress",
        "date": "2026-01-02T03:04:05+00:00",
        "device": {"platform": "cpu", "cores": 2},
        "versions": {"jcompress": "0.1.0", "jax": "0.10.2"},
        "model": {"source": f"model.py:{STRANGE}", "kind": "function"},
        "data": "model.py:batches",
        "steps": [{"kind": "nm", "n": 2, "m": 4}, {"kind": "w8"}],
        "metric": {
            "name": "accuracy",
            "higher_is_better": True,
            "dense": 0.98,
            "compressed": 0.96,
            "drop": 0.02,
        },
        "leaves": leaves,
        "comparison": comparison().to_json(),
        "output_difference": 0.011,
        "program": {"file": "model.jax", "bytes": 1000, "any_batch": True},
        "seconds": {"load": 1.0, "save": 0.5},
        "accepted": True,
        "max_drop": None,
        **more,
    }


def of_run():
    """A report of `jcompress run`."""
    shown = comparison().to_json()
    return {
        "schema": 2,
        "date": "2026-01-02T03:04:05+00:00",
        "device": {"platform": "cpu"},
        "versions": {"jax": "0.10.2"},
        "seed": 0,
        "recipe": {"seed": 0, "model": {"widths": [4, 8]}, "latency": {"rounds": 5}},
        **shown["variants"],
        "lines": shown["lines"],
        "leaves": [
            {"name": f"layer {n}", "form": "int4", "before": 10_000 - n, "after": 99}
            for n in range(30)
        ],
        "losses": {"teacher": [2.0, 0.5, 0.1], "student": [0.3, float("nan"), 0.01]},
        "seconds": {"teacher": 1.0},
        "verification": "verified: 445 of 445 predictions identical",
        "largest_difference_from_simulation": 0.0,
    }


SENSITIVITY = {
    "candidates": ["int8", "int4", "2:4"],
    "leaves": {LONG: [1e-6, 1e-3, 0.1], STRANGE: [0.0, 2e-5, None]},
    "bytes": {LONG: [100, 50, 60], STRANGE: [100, 50, None]},
    "measure": "squared error of the outputs",
}
FRONT = {
    "cost": "bytes",
    "metric": "accuracy",
    "higher_is_better": True,
    "points": [
        {"label": STRANGE, "cost": 1e6, "metric": 0.99, "predicted": None},
        {"label": "half", "cost": 5e5, "metric": 0.98, "predicted": 0.03},
        {"label": "worse", "cost": 6e5, "metric": 0.9, "predicted": 0.05},
        {"label": "least", "cost": 1e4, "metric": None, "predicted": 0.7},
    ],
}
for number, point in enumerate(FRONT["points"]):
    point["chosen"] = number == 1


def whole():
    """One with every section."""
    losses = of_run()["losses"]
    steps = {"teacher": [40, 80, 120]}  # the other has a point an epoch
    more = {"sensitivity": SENSITIVITY, "front": FRONT, "losses": losses}
    more["loss_steps"] = steps
    return copy.deepcopy(of_compress(**more))


def large():
    """One of a large model, with many candidates and more than two variants."""
    names = [f"params/layers_{n}/attention/output/kernel" for n in range(300)]
    report = whole()
    report["leaves"] = [
        {**report["leaves"][0], "name": name, "bytes_before": 10**9 // (n + 1)}
        for n, name in enumerate(names)
    ]
    report["sensitivity"] = {
        "candidates": [f"int{n % 8 + 1} in groups of {n}" for n in range(20)],
        "leaves": {n: [10.0 ** (-k - len(n) % 3) for k in range(20)] for n in names},
        "bytes": {name: list(range(20)) for name in names},
        "measure": "KL divergence of the outputs",
    }
    shown = report["comparison"]
    third = copy.deepcopy(shown["variants"]["compressed"])
    shown["variants"]["compressed and a name that is much too long"] = third
    report["losses"] = {f"training {n}": [1.0, 0.5] for n in range(40)}
    return report
