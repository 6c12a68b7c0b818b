// Loops over independent pieces of work on XLA's thread pool.
#pragma once

#include <algorithm>
#include <array>
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

// Waits in a way that costs others little: first at once ready, then giving way.
template <typename Ready>
void wait_until(Ready&& ready) {
  for (int64_t spins = 0; !ready(); ++spins) {
    if (spins < 4096) {
#if defined(__x86_64__)
      _mm_pause();
#endif
    } else {
      std::this_thread::yield();
    }
  }
}

// Pieces of work of which threads take the next one.
struct Phase {
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> done{0};

  // Return when all pieces are done. A late helper finds none left and never touches
  // `run`, which may be gone.
  template <typename Body>
  void work(int64_t count, Body* run) {
    for (;;) {
      const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) break;
      (*run)(i);
      done.fetch_add(1, std::memory_order_release);
    }
    wait_until([&] { return done.load(std::memory_order_acquire) >= count; });
  }
};

// Call `first(i)` once for each i in [0, first_count), and after all of them `second(i)`
// for each i in [0, second_count), on the caller's thread and on those of the pool that
// have time: those wake up while the caller begins. The caller waits only for pieces
// that have begun, never for a helper to start: called from a thread of the pool, it
// cannot wait for itself. Alone it does work that takes less time than waking a thread.
template <typename First, typename Second>
void parallel_phases(xla::ffi::ThreadPool& pool, int64_t first_count, First&& first,
                     int64_t second_count, Second&& second, bool alone = false) {
  const int64_t most = std::max(first_count, second_count);
  const int64_t helpers = alone ? 0 : std::min<int64_t>(most, pool.num_threads()) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < first_count; ++i) first(i);
    for (int64_t i = 0; i < second_count; ++i) second(i);
    return;
  }
  auto shared = std::make_shared<std::array<Phase, 2>>();
  auto work = [shared, first_count, second_count, one = &first, two = &second] {
    (*shared)[0].work(first_count, one);
    (*shared)[1].work(second_count, two);
  };
  for (int64_t i = 0; i < helpers; ++i) {
    auto copy = work;
    pool.Schedule(std::move(copy));
  }
  work();
}

// Call `body(i)` once for each i in [0, count), in the same way.
template <typename Body>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t count, Body&& body,
                  bool alone = false) {
  parallel_phases(pool, 0, [](int64_t) {}, count, body, alone);
}

}  // namespace jcompress
