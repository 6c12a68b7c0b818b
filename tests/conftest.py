"""Settings for every test: strict promotion, warnings as errors, a hasty compiler."""

import os
import pathlib
import zlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4"
    # Small programs are not worth compiling in pieces.
    + " --xla_cpu_parallel_codegen_split_count=1"
)

import hypothesis
import jax
import pytest

CACHE = pathlib.Path(__file__).parent.parent / ".cache" / f"jax-{jax.__version__}"

MOST_MEMORY = 3 * 2**30
"""Bytes of a worker from which on programs in memory are given up."""

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
# Tests compile thousands of tiny programs, many of them the same in every worker:
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# The same examples in each run: what is found must fall for who changed something.
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, database=None
)
hypothesis.settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("jcompress")
    group.addoption(
        "--one-in",
        type=int,
        default=1,
        metavar="N",
        help="run one in N of all cases, of each test as many as its share",
    )
    group.addoption(
        "--most",
        type=int,
        metavar="N",
        help="run at most N cases of each test, spread evenly",
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    share = config.getoption("one_in")
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    chosen = set()
    for name, cases in tests.items():
        # Where each begins differs, so that not all take the same models. A test of
        # fewer cases than the share is run or left out by its name.
        start = zlib.crc32(name.encode())
        taken = cases[start % share :: share]
        most = config.getoption("most") or len(taken)
        if len(taken) > most:
            step = len(taken) / most
            first = (start % 997) / 997 * step
            taken = [taken[int(first + step * n) % len(taken)] for n in range(most)]
        chosen.update(taken)
    config.hook.pytest_deselected(items=[i for i in items if i not in chosen])
    kept = [item for item in items if item in chosen]
    # The longest first, so that no worker ends long after the others.
    items[:] = sorted(kept, key=lambda item: not item.get_closest_marker("slow"))


@pytest.fixture(autouse=True, scope="module")
def compile_programs(request: pytest.FixtureRequest) -> None:
    """Most programs of the tests run once: to compile them takes longer than they do.

    A program that is in memory is taken again whatever the compiler; and thousands of
    them would fill the memory. They are cached on disk.
    """
    hasty = not request.node.get_closest_marker("bits")
    if [hasty] != compiled or _resident() > MOST_MEMORY:
        jax.clear_caches()
    compiled[:] = [hasty]
    jax.config.update("jax_disable_most_optimizations", hasty)


compiled: list[bool] = []
"""How what is in memory was compiled: hastily or not; nothing before the first test."""


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where that cannot be read."""
    try:
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
