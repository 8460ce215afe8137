// See pool.h. A worker that runs dry spins for at most 30 microseconds, then sleeps; waking one costs
// a system call, so back-to-back operations of one forward pass find the workers awake.
#include "pool.h"

#include "simd.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace xpyd {
namespace {

constexpr auto kSpin = std::chrono::microseconds(30);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {}

  int threads() const { return threads_; }

  void resize(int threads) {
    std::lock_guard<std::mutex> alone(region_);
    stop();
    threads_ = threads;
  }

  void run(int64_t tasks, void (*run)(void*, int64_t), void* context) {
    std::unique_lock<std::mutex> alone(region_, std::defer_lock);
    if (tasks < 2 || threads_ < 2 || !alone.try_lock()) {
      for (int64_t i = 0; i < tasks; i++) run(context, i);
      return;
    }
    start();
    run_ = run;
    context_ = context;
    tasks_ = tasks;
    next_ = 0;
    open();
    work();
    // Closed first, then wait for who is inside: a worker that comes late finds the door shut, and
    // nobody waits for one that is still waking up.
    ticket_++;
    for (int spins = 0; inside_ != 0; spins++) {
      if (spins < 2000) pause();
      else sched_yield();
    }
  }

 private:
  void start() {
    while ((int)workers_.size() < threads_ - 1)
      workers_.emplace_back([this] { serve(); });
  }

  void stop() {
    {
      std::lock_guard<std::mutex> lock(sleep_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
    stopping_ = false;
  }

  void open() {
    ticket_++;
    if (sleeping_ == 0) return;
    { std::lock_guard<std::mutex> lock(sleep_); }
    wake_.notify_all();
  }

  void work() {
    for (int64_t i = next_++; i < tasks_; i = next_++) run_(context_, i);
  }

  bool is_news(uint64_t seen) const { return stopping_ || (ticket_ % 2 == 1 && ticket_ != seen); }

  void serve() {
    uint64_t seen = 0;
    while (true) {
      await(seen);
      if (stopping_) return;
      inside_++;
      seen = ticket_;
      if (seen % 2 == 1) work();
      inside_--;
    }
  }

  void await(uint64_t seen) {
    auto deadline = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 32; i++) {
        if (is_news(seen)) return;
        pause();
      }
    } while (std::chrono::steady_clock::now() < deadline);
    std::unique_lock<std::mutex> lock(sleep_);
    sleeping_++;
    wake_.wait(lock, [&] { return is_news(seen); });
    sleeping_--;
  }

  std::mutex region_;  // held by the caller for a whole parallel region
  int threads_;
  std::vector<std::thread> workers_;

  void (*run_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  int64_t tasks_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint64_t> ticket_{0};  // odd while a region is open
  alignas(64) std::atomic<int> inside_{0};       // workers that may be reading the four fields above

  std::mutex sleep_;
  std::condition_variable wake_;
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stopping_{false};
};

// Never destroyed: workers may outlive static destructors. A forked child has no workers and perhaps
// locked mutexes, so it gets a pool of its own.
Pool* pool = nullptr;

void renew_after_fork() { pool = new Pool(pool->threads()); }

}  // namespace

int num_threads() { return pool->threads(); }

void parallel_for(int64_t tasks, void (*run)(void*, int64_t), void* context) {
  pool->run(tasks, run, context);
}

}  // namespace xpyd

__attribute__((constructor)) static void make_pool() {
  xpyd::pool = new xpyd::Pool(1);
  pthread_atfork(nullptr, nullptr, xpyd::renew_after_fork);
}

extern "C" {

void xpyd_set_num_threads(int threads) { xpyd::pool->resize(threads < 1 ? 1 : threads); }

int xpyd_num_threads() { return xpyd::num_threads(); }

const char* xpyd_isa() { return xpyd::kIsa; }
}
