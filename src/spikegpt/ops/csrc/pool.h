// A small pool of threads for loops whose items are independent. Not OpenMP: two OpenMP runtimes in one process (PyTorch
// brings its own) fight over the cores. Include it only where no special instruction set is switched on.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace spikegpt {

class Pool {
 public:
  // The process's pool. Never destroyed: its threads sleep until the process ends. A forked child, which inherits no
  // threads, gets a new one.
  static Pool &shared() {
    Pool *pool = slot().load(std::memory_order_acquire);
    if (pool) return *pool;
#if !defined(_WIN32)
    static const int registered = pthread_atfork(nullptr, nullptr, [] { slot().store(nullptr); });
    (void)registered;
#endif
    Pool *fresh = new Pool;
    if (slot().compare_exchange_strong(pool, fresh)) return *fresh;
    delete fresh;
    return *pool;
  }

  // Calls body(begin, end) on runs that together make 0..items, from the calling thread and up to threads - 1 others. Runs
  // are handed out dynamically, so that a thread that wakes late delays no other; results must not depend on which thread
  // computes what. A caller that finds the pool busy runs the whole loop itself: nested and concurrent calls are safe.
  template <class Body>
  void run(int threads, int64_t items, const Body &body) {
    const int wanted = static_cast<int>(threads < items ? threads : items);
    if (wanted <= 1 || busy_.exchange(true, std::memory_order_acquire)) {
      if (items > 0) body(int64_t{0}, items);
      return;
    }
    const int helpers = grow(wanted - 1);
    const int64_t share = items / (int64_t{4} * wanted);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = {[](const void *f, int64_t begin, int64_t end) { (*static_cast<const Body *>(f))(begin, end); }, &body,
              items, share > 0 ? share : 1};
      next_.store(0);
      seats_.store(helpers);
    }
    wake_.notify_all();
    work(job_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      seats_.store(0);
    }
    const auto finished = [this] { return active_.load() == 0; };
    if (!spin(finished)) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, finished);
    }
    busy_.store(false, std::memory_order_release);
  }

 private:
  struct Job {
    void (*call)(const void *, int64_t, int64_t);
    const void *body;
    int64_t items, share;
  };

  Pool() = default;

  static std::atomic<Pool *> &slot() {
    static std::atomic<Pool *> pool{nullptr};
    return pool;
  }

  // Waking a sleeping thread takes longer than many of our loops: spin for a short while first.
  template <class Ready>
  static bool spin(const Ready &ready) {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      std::this_thread::yield();
    }
    return ready();
  }

  // Starts workers until there are `wanted`, or as many as the system allows.
  int grow(int wanted) {
    try {
      for (; workers_ < wanted; ++workers_) std::thread(&Pool::serve, this).detach();
    } catch (const std::system_error &) {
    }
    return workers_ < wanted ? workers_ : wanted;
  }

  void work(const Job &job) {
    for (int64_t begin; (begin = next_.fetch_add(job.share)) < job.items;)
      job.call(job.body, begin, begin + job.share < job.items ? begin + job.share : job.items);
  }

  void serve() {
    const auto called = [this] { return seats_.load() > 0; };
    for (;;) {
      spin(called);
      Job job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, called);
        seats_.fetch_sub(1);
        active_.fetch_add(1);
        job = job_;
      }
      work(job);
      std::lock_guard<std::mutex> lock(mutex_);
      if (active_.fetch_sub(1) == 1) done_.notify_one();
    }
  }

  std::atomic<bool> busy_{false};
  std::atomic<int> seats_{0}, active_{0};  // of the current job: places for workers, workers at it
  std::atomic<int64_t> next_{0};           // first item not taken yet
  int workers_ = 0;
  Job job_{};
  std::mutex mutex_;
  std::condition_variable wake_, done_;
};

}  // namespace spikegpt
