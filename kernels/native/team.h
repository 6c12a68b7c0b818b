// Threads of a pool that stay for a moment after their work. Waking a thread takes some
// ten microseconds, as long as a small product: a program of many such calls, one after
// the other, keeps its helpers awake.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace jcompress {

inline void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// What several threads do together, each by a call of `run`.
class Job {
 public:
  virtual ~Job() = default;
  virtual void run() = 0;
};

class Team {
 public:
  using Work = std::shared_ptr<Job>;
  using Clock = std::chrono::steady_clock;

  // That of the process; never destroyed, as threads may still wait at its end.
  static Team& of_process() {
    static Team* const team = new Team;
    return *team;
  }

  // Give `work` to threads that wait, at most to `count`; returns to how many.
  int64_t give(int64_t count, const Work& work) {
    int64_t given = 0;
    for (Seat& seat : seats_) {
      if (given == count || waiting_.load(std::memory_order_relaxed) == 0) break;
      int expected = kWaiting;
      if (seat.state.load(std::memory_order_relaxed) != kWaiting ||
          !seat.state.compare_exchange_strong(expected, kTaken,
                                              std::memory_order_acquire)) {
        continue;
      }
      waiting_.fetch_sub(1, std::memory_order_relaxed);
      seat.work = work;
      seat.state.store(kGiven, std::memory_order_release);
      ++given;
    }
    return given;
  }

  // Do `work` on this thread; then wait for more and do it, as long as it is short and comes
  // soon, nobody else wants the core, and fewer than `most` threads do the same.
  void help(const Work& work, int64_t most) {
    Seat* const seat = done_shortly(work) ? sit(most) : nullptr;
    if (seat == nullptr) return;
    bool crowded = false;
    while (comes_soon(*seat, &crowded)) {
      const Work next = std::move(seat->work);
      if (!done_shortly(next) || crowded) {
        seat->state.store(kEmpty, std::memory_order_release);
        return;
      }
      waiting_.fetch_add(1, std::memory_order_relaxed);
      seat->state.store(kWaiting, std::memory_order_release);
    }
  }

 private:
  enum State : int { kEmpty, kWaiting, kTaken, kGiven };

  struct alignas(64) Seat {
    std::atomic<int> state{kEmpty};
    Work work;
  };

  // A call of another kind between two of ours, or the way back to Python, takes less.
  static constexpr std::chrono::microseconds kLongest{60};
  // Looking and giving way take longer only if another thread ran: perhaps the caller,
  // which gives work to a thread that waits for the same core. Waking one finds another.
  static constexpr std::chrono::microseconds kAlone{4};
  // Beside work that takes longer, waking a thread takes no time.
  static constexpr std::chrono::microseconds kShort{250};
  static constexpr int kPauses = 48;

  // Do it; whether it was short.
  static bool done_shortly(const Work& work) {
    const auto start = Clock::now();
    work->run();
    return Clock::now() - start < kShort;
  }

  Seat* sit(int64_t most) {
    const auto seats = std::min<int64_t>(most, static_cast<int64_t>(seats_.size()));
    for (int64_t i = 0; i < seats; ++i) {
      Seat& seat = seats_[static_cast<size_t>(i)];
      int expected = kEmpty;
      // Counted first: what is counted too late could be taken before.
      if (seat.state.load(std::memory_order_relaxed) != kEmpty) continue;
      waiting_.fetch_add(1, std::memory_order_relaxed);
      if (seat.state.compare_exchange_strong(expected, kWaiting,
                                             std::memory_order_acq_rel)) {
        return &seat;
      }
      waiting_.fetch_sub(1, std::memory_order_relaxed);
    }
    return nullptr;
  }

  // Whether work came to a seat; if not, it is empty. And whether others want the core.
  bool comes_soon(Seat& seat, bool* crowded) {
    const auto given = [&] {
      for (int i = 0; i < kPauses; ++i) {
        if (seat.state.load(std::memory_order_acquire) == kGiven) return true;
        pause_briefly();
      }
      return false;
    };
    const auto end = Clock::now() + kLongest;
    for (auto before = Clock::now(); !given();) {
      std::this_thread::yield();
      const auto after = Clock::now();
      *crowded = *crowded || after - before >= kAlone;
      before = after;
      int expected = kWaiting;
      if ((*crowded || after >= end) &&
          seat.state.compare_exchange_strong(expected, kEmpty,
                                             std::memory_order_acq_rel)) {
        waiting_.fetch_sub(1, std::memory_order_relaxed);
        return false;
      }
    }
    return true;
  }

  std::atomic<int64_t> waiting_{0};
  std::array<Seat, 64> seats_;
};

}  // namespace jcompress
