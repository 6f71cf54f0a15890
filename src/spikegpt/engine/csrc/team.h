// Threads that compute one token together, in a hundred short sections of as many parts as there are threads.
//
// A part belongs to the thread of its number. A thread that sleeps, or has lost its core to another program, is not waited
// for: others take its parts, and when it comes back it runs past what they did. Who is there leaves a cache line of its
// own alone but for one word, written when its part is done: that is all that a section costs.
// Threads spin while a token is being computed and sleep soon after. Include it only where no special instruction set is
// switched on.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
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
  // Does all sections, numbered from `first` on, as thread `index`; returns the number of the last one.
  using Job = uint64_t (*)(void *context, int index, uint64_t first);

  explicit Team(int size) : size_(size), forks_(forks().load()), parts_(new Part[size]) {
    parts_[0].present = true;
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

  // Runs the job on every thread, and returns once every part of it is done. Some thread may then still be on its way
  // through the sections, without a part: `context` must outlive the team.
  void run(Job job, void *context) {
    if (forked()) throw std::runtime_error("this process was forked from the one that loaded the model: load it again");
    if (size_ > 1) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        job_ = job;
        context_ = context;
        first_ = last_ + 1;
        turn_.fetch_add(1, std::memory_order_release);
      }
      wake_.notify_all();
    }
    last_ = job(context, 0, last_ + 1);
  }

  // Says that `finished` (or, with -1, nothing yet) is done, and gives thread `index` its next part of the section; -1
  // once all are done.
  int next(uint64_t section, int finished, int index) {
    if (finished >= 0)
      parts_[finished].done.store(section, std::memory_order_release);
    else if (take(section, index))
      return index;
    else
      parts_[index].present.store(true, std::memory_order_relaxed);
    for (int part = 0; part < size_; ++part) {
      if (part == index) continue;
      for (int look = 0; parts_[part].done.load(std::memory_order_acquire) < section; ++look) {
        if (look == kPatience && parts_[part].taken.load(std::memory_order_relaxed) < section)
          parts_[part].present.store(false, std::memory_order_relaxed);
        if (!parts_[part].present.load(std::memory_order_relaxed) && take(section, part)) return part;
        rest(look);
      }
    }
    for (int look = 0; parts_[index].done.load(std::memory_order_acquire) < section; ++look) rest(look);
    return -1;
  }

 private:
  struct Part {
    alignas(128) std::atomic<uint64_t> taken{0};  // the last section whose part somebody has begun
    alignas(128) std::atomic<uint64_t> done{0};
    alignas(128) std::atomic<bool> present{false};
  };

  // Looks at another's part before it is taken from him; looks before the core is left to other programs.
  static constexpr int kPatience = 400, kLooks = 4000;

  bool take(uint64_t section, int part) {
    uint64_t before = section - 1;
    return parts_[part].taken.compare_exchange_strong(before, section, std::memory_order_acq_rel);
  }

  static void rest(int look) { look < kLooks ? pause() : std::this_thread::yield(); }

  static void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
    asm volatile("yield");
#endif
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

  // Looks about as long as choosing a token takes: waking a sleeping thread for the next one takes long.
  template <class Ready>
  static void linger(const Ready &ready) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
    for (int look = 0; !ready(); ++look) {
      rest(look);
      if (look % 64 == 63 && std::chrono::steady_clock::now() > until) return;
    }
  }

  void serve(int index) {
    for (unsigned seen = 0;;) {
      linger([&] { return turn_.load(std::memory_order_acquire) != seen; });
      Job job;
      void *context;
      uint64_t first;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return turn_.load(std::memory_order_relaxed) != seen; });
        seen = turn_.load(std::memory_order_relaxed);
        job = job_;
        context = context_;
        first = first_;
      }
      if (!job) return;
      parts_[index].present.store(true, std::memory_order_relaxed);
      job(context, index, first);
      parts_[index].present.store(false, std::memory_order_relaxed);
    }
  }

  const int size_, forks_;
  std::unique_ptr<Part[]> parts_;
  uint64_t last_ = 0;
  alignas(64) std::atomic<unsigned> turn_{0};
  alignas(64) std::mutex mutex_;
  std::condition_variable wake_;
  Job job_ = nullptr;
  void *context_ = nullptr;
  uint64_t first_ = 1;
  std::vector<std::thread> members_;
};

}  // namespace spikegpt::engine
