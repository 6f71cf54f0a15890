// Memory for weights that are read at random: in huge pages where the system has them, so that reading a row does not
// also cost a page-table walk. Freed as a whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace spikegpt::engine {

class Arena {
 public:
  // `bytes`: an upper bound of what will be taken; memory that is never touched costs nothing.
  explicit Arena(std::size_t bytes) {
#if defined(__linux__)
    size_ = bytes + kHuge;
    base_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    next_ = (reinterpret_cast<std::uintptr_t>(base_) + kHuge - 1) / kHuge * kHuge;
    madvise(reinterpret_cast<void *>(next_), bytes, MADV_HUGEPAGE);
#else
    (void)bytes;
#endif
  }

  ~Arena() {
#if defined(__linux__)
    munmap(base_, size_);
#else
    for (void *block : blocks_) ::operator delete(block, std::align_val_t{kAlign});
#endif
  }

  Arena(const Arena &) = delete;
  Arena &operator=(const Arena &) = delete;

  // Zeros, at a multiple of 128 bytes: processors fetch cache lines in pairs.
  template <class T>
  T *take(std::size_t count) {
    const std::size_t bytes = (count * sizeof(T) + kAlign - 1) / kAlign * kAlign;
#if defined(__linux__)
    if (next_ + bytes > reinterpret_cast<std::uintptr_t>(base_) + size_) throw std::bad_alloc();
    void *block = reinterpret_cast<void *>(next_);
    next_ += bytes;
#else
    void *block = ::operator new(bytes, std::align_val_t{kAlign});
    std::memset(block, 0, bytes);
    blocks_.push_back(block);
#endif
    return static_cast<T *>(block);
  }

 private:
  static constexpr std::size_t kAlign = 128, kHuge = std::size_t{2} << 20;
#if defined(__linux__)
  void *base_;
  std::size_t size_;
  std::uintptr_t next_;
#else
  std::vector<void *> blocks_;
#endif
};

}  // namespace spikegpt::engine
