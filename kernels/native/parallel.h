// Loops over independent pieces of work on a pool of threads, such as XLA's.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <utility>

#include "buffer.h"
#include "team.h"

namespace jcompress {

// Waits in a way that costs others little: first at once ready, then giving way.
template <typename Ready>
void wait_until(Ready&& ready) {
  for (int64_t spins = 0; !ready(); ++spins) {
    if (spins < 4096) {
      pause_briefly();
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

// Two phases of work, the second after all pieces of the first.
template <typename First, typename Second>
class Phases final : public Job {
 public:
  Phases(int64_t first_count, First* first, int64_t second_count, Second* second)
      : first_count_(first_count), second_count_(second_count), first_(first), second_(second) {}

  void run() override {
    begin_.work(first_count_, first_);
    end_.work(second_count_, second_);
  }

 private:
  Phase begin_, end_;
  int64_t first_count_, second_count_;
  First* first_;
  Second* second_;
};

// Which helpers so much work is worth.
enum class Help {
  kNone,   // less than what handing over takes
  kAwake,  // those that wait for work: less than what waking one takes
  kAny,
};

// Whether this thread is one of a pool. Where the caller is one itself, no helper stays:
// it could be the only other one, which then does nothing else.
inline bool& on_pool() {
  thread_local bool here = false;
  return here;
}

// Call `first(i)` once for each i in [0, first_count), and after all of them `second(i)`
// for each i in [0, second_count), on the caller's thread and on those of the pool that
// have time: those wake up while the caller begins. The caller waits only for pieces
// that have begun, never for a helper to start: called from a thread of the pool, it
// cannot wait for itself.
template <typename Pool, typename First, typename Second>
void parallel_phases(Pool& pool, int64_t first_count, First&& first,
                     int64_t second_count, Second&& second, Help help = Help::kAny) {
  const int64_t most = std::max(first_count, second_count), threads = pool.num_threads();
  const int64_t helpers = help == Help::kNone ? 0 : std::min(most, threads) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < first_count; ++i) first(i);
    for (int64_t i = 0; i < second_count; ++i) second(i);
    return;
  }
  Team& team = Team::of_process();
  using Both = Phases<std::remove_reference_t<First>, std::remove_reference_t<Second>>;
  const Team::Work work = std::allocate_shared<Both>(Blocks<Both>{}, first_count, &first,
                                                     second_count, &second);
  const int64_t given = team.give(helpers, work);
  const int64_t stay = on_pool() ? 0 : threads - 1;
  for (int64_t i = given; help == Help::kAny && i < helpers; ++i) {
    pool.Schedule([work, stay] {
      on_pool() = true;
      Team::of_process().help(work, stay);
    });
  }
  work->run();
}

// Call `body(i)` once for each i in [0, count), in the same way.
template <typename Pool, typename Body>
void parallel_for(Pool& pool, int64_t count, Body&& body,
                  Help help = Help::kAny) {
  parallel_phases(pool, 0, [](int64_t) {}, count, body, help);
}

}  // namespace jcompress
