"""How many products of bytes this processor's instructions can add up: a peak.

A loop on registers, compiled here: nothing else is done, so no product can be faster.
"""

import concurrent.futures
import ctypes
import pathlib
import shutil
import subprocess
import tempfile
import time

_SOURCE = r"""
#include <immintrin.h>
#define SUMS 12
#if defined(__AVX512VNNI__)
typedef __m512i Vector;
#define ADD(s, x) __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(s) : "v"(x))
#elif defined(__AVXVNNI__)
typedef __m256i Vector;
#define ADD(s, x) __asm__ volatile("{vex} vpdpbusd %1, %1, %0" : "+x"(s) : "x"(x))
#else
/* Pairs of products of 16 bits, which are exact, as 32. */
typedef __m256i Vector;
#define ADD(s, x) do { Vector t; \
    __asm__ volatile("vpmaddwd %2, %2, %1\n\tvpaddd %1, %0, %0" \
    : "+x"(s), "=&x"(t) : "x"(x)); } while (0)
#define PAIRS 1
#endif
/* Products in `rounds` rounds. */
long long run(long long rounds) {
  Vector s[SUMS] = {0}, x = {0};
  for (long long i = 0; i < rounds; ++i) {
    ADD(s[0], x); ADD(s[1], x); ADD(s[2], x); ADD(s[3], x);
    ADD(s[4], x); ADD(s[5], x); ADD(s[6], x); ADD(s[7], x);
    ADD(s[8], x); ADD(s[9], x); ADD(s[10], x); ADD(s[11], x);
  }
#ifdef PAIRS
  return rounds * SUMS * sizeof(Vector) / 2;
#else
  return rounds * SUMS * sizeof(Vector);
#endif
}
"""


def dots(threads: int, rounds: int = 7) -> float:
    """Products of two bytes a second, of all threads together: the best of some rounds.

    0 where there is no compiler, or no x86.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        source, made = pathlib.Path(folder, "dots.c"), pathlib.Path(folder, "dots.so")
        source.write_text(_SOURCE)
        options = ["-O2", "-march=native", "-shared", "-fPIC"]
        command = [compiler, *options, "-o", str(made), str(source)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return 0.0
        run = ctypes.CDLL(str(made)).run
        run.argtypes, run.restype = [ctypes.c_longlong], ctypes.c_longlong
        best = 0.0
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for _ in range(rounds):
                start = time.perf_counter()
                done = sum(pool.map(run, [2_000_000] * threads))
                best = max(best, done / (time.perf_counter() - start))
    return best
