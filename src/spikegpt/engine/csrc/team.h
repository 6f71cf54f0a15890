// Threads that work on one token together and meet a hundred times on the way: they spin while a token is being computed
// and sleep soon after. Include it only where no special instruction set is switched on.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace spikegpt::engine {

class Team {
 public:
  explicit Team(int size) : size_(size), forks_(forks().load()) {
    for (int index = 1; index < size; ++index) members_.emplace_back([this, index] { serve(index); });
  }

  ~Team() {
    if (forked()) {
      for (std::thread &member : members_) member.detach();
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = nullptr;
      turn_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread &member : members_) member.join();
  }

  // Calls job(context, index) on every thread, index 0 on the caller's, and returns when all are done.
  void run(void (*job)(void *, int), void *context) {
    if (forked()) throw std::runtime_error("this process was forked from the one that loaded the model: load it again");
    if (size_ > 1) {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      context_ = context;
      turn_.fetch_add(1, std::memory_order_release);
    }
    if (size_ > 1) wake_.notify_all();
    job(context, 0);
    meet();
  }

  // Waits until every thread has come here.
  void meet() {
    if (size_ == 1) return;
    const unsigned round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
    } else {
      spin([&] { return round_.load(std::memory_order_acquire) != round; }, -1);
    }
  }

 private:
  static void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
    asm volatile("yield");
#endif
  }

  // After a while the core is left to others between looks: a member of the team may be waiting for it.
  template <class Ready>
  static bool spin(const Ready &ready, int looks) {
    for (int i = 0; i != looks; ++i) {
      if (ready()) return true;
      if (i < 0 || i > 4000) {
        i = looks < 0 ? 4001 : i;
        std::this_thread::yield();
      } else {
        pause();
      }
    }
    return ready();
  }

  // How often this process is a fork's child; threads do not come along.
  static std::atomic<int> &forks() {
    static std::atomic<int> count{0};
#if !defined(_WIN32)
    static const int registered = pthread_atfork(nullptr, nullptr, [] { count.fetch_add(1); });
    (void)registered;
#endif
    return count;
  }

  bool forked() const { return size_ > 1 && forks().load(std::memory_order_relaxed) != forks_; }

  void serve(int index) {
    for (unsigned seen = 0;;) {
      spin([&] { return turn_.load(std::memory_order_acquire) != seen; }, 4000);
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return turn_.load(std::memory_order_relaxed) != seen; });
        seen = turn_.load(std::memory_order_relaxed);
      }
      if (!job_) return;
      job_(context_, index);
      meet();
    }
  }

  const int size_, forks_;
  alignas(64) std::atomic<unsigned> turn_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
  alignas(64) std::mutex mutex_;
  std::condition_variable wake_;
  void (*job_)(void *, int) = nullptr;
  void *context_ = nullptr;
  std::vector<std::thread> members_;
};

}  // namespace spikegpt::engine
