"""`keep_memory`: large temporary arrays are not paged in at each call.

What is tested: the pages that a program faults in after its first call, in processes of
their own, with the setting and without.
"""

import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from jcompress.execution import keep_memory
assert sys.argv[1] == "no" or keep_memory()
run = jax.jit(lambda x: ((x @ x.T) @ x).sum())
x = jnp.ones((3500, 2))
for _ in range(2):
    run(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    run(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


HUGE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
@pytest.mark.skipif(
    HUGE.exists() and "[always]" in HUGE.read_text(), reason="few pages are counted"
)
def test_pages_stay() -> None:
    faults = {}
    for setting in ("no", "yes"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, setting],
            capture_output=True,
            text=True,
            check=True,
        )
        faults[setting] = int(done.stdout)
    # 48 MB in pages of 4 KiB, three times, if not even more.
    assert faults["no"] > 10_000
    assert faults["yes"] < faults["no"] / 10
