// Loops over pieces of work from several threads at once, on a small pool whose threads
// stay for more: every piece runs once, the second phase after the first, whoever helps.
// Built with -fsanitize=thread.
#include "parallel.h"

#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace {

class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
  }
  ~Pool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    more_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  int64_t num_threads() const { return static_cast<int64_t>(threads_.size()); }
  void Schedule(std::function<void()> task) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    more_.notify_one();
  }

 private:
  void run() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      more_.wait(lock, [this] { return closed_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable more_;
  std::deque<std::function<void()>> tasks_;
  bool closed_ = false;
  std::vector<std::thread> threads_;
};

void expect(bool held, const char* what) {
  if (held) return;
  std::printf("check_team: %s\n", what);
  std::exit(1);
}

// One call; plain integers, so that a race is one that the sanitizer sees.
void call(Pool& pool, int64_t first_count, int64_t second_count, jcompress::Help help) {
  std::vector<int64_t> first(static_cast<size_t>(first_count), 0);
  std::vector<int64_t> second(static_cast<size_t>(second_count), 0);
  jcompress::parallel_phases(
      pool, first_count, [&](int64_t i) { first[static_cast<size_t>(i)] += i + 1; },
      second_count,
      [&](int64_t i) {
        for (const int64_t value : first) second[static_cast<size_t>(i)] += value;
      },
      help);
  const int64_t sum = first_count * (first_count + 1) / 2;
  for (size_t i = 0; i < first.size(); ++i) {
    expect(first[i] == static_cast<int64_t>(i) + 1, "a piece ran not once");
  }
  for (const int64_t value : second) expect(value == sum, "the second phase was early");
}

}  // namespace

int main() {
  constexpr int kCallers = 4, kCalls = 400;
  for (const int threads : {1, 2, 3}) {
    Pool pool(threads);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < kCallers; ++caller) {
      callers.emplace_back([&pool, caller] {
        for (int i = 0; i < kCalls; ++i) {
          const auto help = static_cast<jcompress::Help>((i + caller) % 3);
          call(pool, (i + caller) % 4, i % 7, help);
          // Now and then so long that helpers leave.
          if (i % 50 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
        }
      });
    }
    for (std::thread& thread : callers) thread.join();
    // Calls from the pool itself.
    std::atomic<int> done{0};
    for (int i = 0; i < 2 * threads; ++i) {
      pool.Schedule([&] {
        for (int j = 0; j < 50; ++j) call(pool, j % 3, 5, jcompress::Help::kAny);
        done.fetch_add(1);
      });
    }
    while (done.load() < 2 * threads) std::this_thread::yield();
  }
  std::printf("check_team: every piece once\n");
  return 0;
}
