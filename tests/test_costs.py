"""What the library costs a program that uses it: time to trace and to import."""

import functools
import gc
import subprocess
import sys
import time

import jax
import pytest
import zoo
from zoo import running

from jcompress.tracing.interpreter import identity

pytestmark = [pytest.mark.bits, pytest.mark.once]

LARGE = {
    "resnet": ["linen_resnet"],
    "transformer": ["linen_transformer_remat"],
    "recurrent": ["linen_stacked_lstm", "nnx_lstm"],
    "several": [
        "nnx_attention",
        "nnx_cnn_eval",
        "nnx_scan_remat",
        "equinox_attention",
        "haiku_layer_stack",
    ],
}


def seconds(runs: list[tuple[running.Run, running.Arrays]]) -> float:
    """Processor time of traces from nothing: no inner trace is cached."""
    jax.clear_caches()
    gc.collect()
    start = time.process_time()
    for run, values in runs:
        jax.make_jaxpr(run)(values)
    return time.process_time() - start


@pytest.mark.parametrize("names", LARGE.values(), ids=LARGE.keys())
def test_tracing_costs_at_most_twice_a_plain_trace(names: list[str]) -> None:
    models = [zoo.build(name) for name in names]
    once, through = [], []
    for _ in range(7):
        plain, same = [], []
        for model in models:
            fn = functools.partial(model.fn)
            values = running.arrays(model)
            plain.append((running.runner(model, fn), values))
            same.append((running.runner(model, identity(fn)), values))
        once.append(seconds(plain))
        through.append(seconds(same))
    assert min(through) <= 2.0 * min(once)


IMPORT = """
import time
import chex, flax, jax, numpy, optax
start = time.perf_counter()
import jcompress
print(time.perf_counter() - start)
"""


def test_import_costs_little_over_the_dependencies() -> None:
    times = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-P", "-c", IMPORT],
            capture_output=True,
            text=True,
            check=True,
        )
        times.append(float(done.stdout))
    assert min(times) <= 0.3
