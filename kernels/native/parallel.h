// Loops over independent pieces of work on XLA's thread pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace jcompress {

// Call `body(i)` once for each i in [0, count), on the caller's thread and on those of
// the pool that have time. The caller waits only for pieces that have begun, never for
// a helper to start: called from a thread of the pool, it cannot wait for itself. Alone
// it does work that takes less time than waking a thread.
template <typename Body>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t count, Body&& body,
                  bool alone = false) {
  if (count <= 0) return;
  const int64_t helpers = alone ? 0 : std::min<int64_t>(count, pool.num_threads()) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  struct Shared {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> done{0};
  };
  auto shared = std::make_shared<Shared>();
  // A late helper finds no piece left and never touches `body`, which may be gone.
  auto work = [shared, count, run = &body] {
    for (;;) {
      const int64_t i = shared->next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) return;
      (*run)(i);
      shared->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 0; i < helpers; ++i) {
    auto copy = work;
    pool.Schedule(std::move(copy));
  }
  work();
  for (int64_t spins = 0; shared->done.load(std::memory_order_acquire) < count; ++spins) {
    if (spins < 4096) {
#if defined(__x86_64__)
      _mm_pause();
#endif
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace jcompress
