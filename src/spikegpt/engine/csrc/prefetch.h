// Asking for memory before it is needed. Local to the translation unit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

using namespace spikegpt::engine;

// Always inlined: GCC takes a function that only prefetches for one without effect, and drops its calls.
#if defined(__GNUC__)
#define SPIKEGPT_INLINE inline __attribute__((always_inline))
#else
#define SPIKEGPT_INLINE inline
#endif

SPIKEGPT_INLINE void prefetch(const uint8_t *line) {
#if defined(__AVX2__)
  _mm_prefetch(reinterpret_cast<const char *>(line), _MM_HINT_T0);
#elif defined(__GNUC__)
  __builtin_prefetch(line, 0, 2);
#else
  (void)line;
#endif
}

// Asks for some values of a vector: what the loops after a product read is fetched while the product waits for its rows.
template <class T>
SPIKEGPT_INLINE void ask(const T *values, Channels of) {
  const uint8_t *bytes = reinterpret_cast<const uint8_t *>(values);
  for (std::size_t at = static_cast<std::size_t>(of.begin) * sizeof(T) / 64 * 64; at < static_cast<std::size_t>(of.end) * sizeof(T); at += 64) prefetch(bytes + at);
}

}  // namespace
