// Looking up many entries of a table at once. Local to the translation unit.
#pragma once

#include "../prefetch.h"
#include "model.h"

namespace {

using namespace spikegpt::engine;
using fixed::Table;

#if defined(__AVX512BW__)

// Entries of a table that lies in 1, 2 or 4 registers of 32 entries each; the indices are of 32 bits, below 128.
template <int registers>
SPIKEGPT_INLINE __m512i entries_at(const __m512i *parts, __m512i index) {
  constexpr __mmask32 kLowHalves = 0x55555555;
  if constexpr (registers == 1) return _mm512_maskz_permutexvar_epi16(kLowHalves, index, parts[0]);
  const __m512i low = _mm512_maskz_permutex2var_epi16(kLowHalves, parts[0], index, parts[1]);
  if constexpr (registers == 2) return low;
  const __m512i high = _mm512_maskz_permutex2var_epi16(kLowHalves, parts[2], index, parts[3]);
  return _mm512_mask_mov_epi32(low, _mm512_test_epi32_mask(index, _mm512_set1_epi32(64)), high);
}

template <int registers>
SPIKEGPT_INLINE void look_up_in(const uint16_t *table, const int32_t *index, int count, int32_t *out) {
  __m512i parts[registers];
  for (int i = 0; i < registers; ++i) parts[i] = _mm512_load_si512(table + 32 * i);
  for (int i = 0; i < count; i += 16)
    _mm512_store_si512(out + i, entries_at<registers>(parts, _mm512_load_si512(index + i)));
}

#endif

// out[i] = table[index[i]], of `count` indices; both arrays begin at a multiple of 64 bytes and may be used up to the next.
SPIKEGPT_INLINE void look_up(const Table &table, const int32_t *__restrict index, int count, int32_t *__restrict out) {
#if defined(__AVX512BW__)
  if (table.count <= 32) return look_up_in<1>(table.narrow, index, count, out);
  if (table.count <= 64) return look_up_in<2>(table.narrow, index, count, out);
  if (table.count <= 128) return look_up_in<4>(table.narrow, index, count, out);
#endif
  int i = 0;
#if defined(__AVX2__)
  for (; i + 8 <= count; i += 8) {
    const __m256i at = _mm256_load_si256(reinterpret_cast<const __m256i *>(index + i));
    _mm256_store_si256(reinterpret_cast<__m256i *>(out + i), _mm256_i32gather_epi32(table.entries, at, 4));
  }
#endif
  for (; i < count; ++i) out[i] = table.entries[index[i]];
}

}  // namespace
