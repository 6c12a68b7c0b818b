"""Memory of a process that runs programs again and again."""

import ctypes
import sys


def keep_memory() -> bool:
    """Let this process keep the memory that it frees, for its next calls.

    XLA allocates the temporary arrays of a program on CPUs at each call, and frees them
    after it. The C library then gives blocks of 32 MiB and more back to the system, and
    the next call pays for each page again: a quarter of the time of MobileNetV2 in 8
    bits at batch 32 (`python benchmarks/vision.py --return-memory`). What is freed
    lies in lists, too, which a program of many short operations goes through at each
    call. Call this once, early, in a process that serves a model or trains one on a
    CPU. It holds for the whole process, which then needs as much memory as it did at
    its peak.

    Returns:
        Whether the C library knows the setting: glibc's `mallopt` does.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # One arena: those of other threads are given back whole whatever else is set. No
    # separate lists of small blocks, which each free of a large one would go through.
    trim_threshold, mmap_max, arena_max, small_blocks = -1, -4, -8, 1
    settings = (
        (trim_threshold, -1),
        (mmap_max, 0),
        (arena_max, 1),
        (small_blocks, 0),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
