// One tile of a matrix times one token's events: reads the rows of active inputs, and no other weight.
// Local to the translation unit, one version for each instruction set.
#pragma once

#include <cstring>

#include "model.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

using namespace spikegpt::engine;

// A tile, the list of active rows, and where the sums go.
struct Job {
  const Site *site;
  const uint8_t *tile;
  const uint32_t *offset;
  const int8_t *value;
  int count, sum;
  const float *scale;
  float *out;
  bool add;         // to what an earlier group of inputs left in `out`
  float *copy;      // where the first `copied` outputs finally belong, or null
  int copied;
};

// Rows that are asked for before they are needed; a row is up to 6 cache lines.
constexpr int kAhead = 24;

// Always inlined: GCC takes a function that only prefetches for one without effect, and drops its calls.
#if defined(__GNUC__)
#define SPIKEGPT_INLINE inline __attribute__((always_inline))
#else
#define SPIKEGPT_INLINE inline
#endif

SPIKEGPT_INLINE void prefetch(const uint8_t *row, int bytes) {
#if defined(__AVX2__)
  for (int i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char *>(row + i), _MM_HINT_T1);
#elif defined(__GNUC__)
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
#else
  (void)row, (void)bytes;
#endif
}

// Asks for rows i + kAhead ... of this job, or of the next one if this is nearly done.
template <int rows>
SPIKEGPT_INLINE void look_ahead(const Job &job, const Job *next, int i, int bytes) {
  const int at = i + kAhead;
  if (at + rows <= job.count) {
    for (int n = 0; n < rows; ++n) prefetch(job.tile + job.offset[at + n], bytes);
  } else if (next) {
    const int from = at < job.count ? 0 : at - job.count;
    for (int n = from; n < from + rows && n < next->count; ++n)
      prefetch(next->tile + next->offset[n], next->site->row_bytes);
  }
}

inline void finish(const Job &job, const int32_t *sums) {
  const int32_t correction = job.sum * job.site->offset;
  const int outputs = job.site->tile_outputs;
  float *__restrict out = job.out;
  const float *__restrict scale = job.scale;
  if (job.add)
    for (int o = 0; o < outputs; ++o) out[o] += static_cast<float>(sums[o] - correction) * scale[o];
  else
    for (int o = 0; o < outputs; ++o) out[o] = static_cast<float>(sums[o] - correction) * scale[o];
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

constexpr int kRows = 4;

// Bytes of four rows, four by four: quads[j] holds, lane by lane, bytes 4j..4j+3 of each lane of the rows.
inline void interleave(__m512i a, __m512i b, __m512i c, __m512i d, __m512i *quads) {
  const __m512i ab = _mm512_unpacklo_epi8(a, b), AB = _mm512_unpackhi_epi8(a, b);
  const __m512i cd = _mm512_unpacklo_epi8(c, d), CD = _mm512_unpackhi_epi8(c, d);
  quads[0] = _mm512_unpacklo_epi16(ab, cd);
  quads[1] = _mm512_unpackhi_epi16(ab, cd);
  quads[2] = _mm512_unpacklo_epi16(AB, CD);
  quads[3] = _mm512_unpackhi_epi16(AB, CD);
}

// Position 16 L + 4 j + e of a block (lane L) holds output 16 j + 4 L + e, so that the sums come out in order.
int place(int output) {
  const int o = output % 64;
  return o % 16 / 4 * 16 + o / 16 * 4 + o % 4 + output / 64 * 64;
}

template <int blocks, bool four>
void product_blocks(const Job &job, const Job *next) {
  constexpr int vectors = four ? 8 : 4;
  __m512i sums[blocks * vectors];
#pragma GCC unroll 24
  for (int i = 0; i < blocks * vectors; ++i) sums[i] = _mm512_setzero_si512();
  const __m512i low = _mm512_set1_epi8(15);
  for (int i = 0; i < job.count; i += kRows) {
    look_ahead<kRows>(job, next, i, blocks * 64);
    int32_t four_events;
    std::memcpy(&four_events, job.value + i, 4);
    const __m512i events = _mm512_set1_epi32(four_events);
    const uint8_t *a = job.tile + job.offset[i], *b = job.tile + job.offset[i + 1];
    const uint8_t *c = job.tile + job.offset[i + 2], *d = job.tile + job.offset[i + 3];
#pragma GCC unroll 6
    for (int block = 0; block < blocks; ++block) {
      __m512i quads[4];
      interleave(_mm512_load_si512(a + 64 * block), _mm512_load_si512(b + 64 * block),
                 _mm512_load_si512(c + 64 * block), _mm512_load_si512(d + 64 * block), quads);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        __m512i *sum = sums + block * vectors + j;
        if (four) {
          sum[0] = _mm512_dpbusd_epi32(sum[0], _mm512_and_si512(quads[j], low), events);
          sum[4] = _mm512_dpbusd_epi32(sum[4], _mm512_and_si512(_mm512_srli_epi16(quads[j], 4), low), events);
        } else {
          sum[0] = _mm512_dpbusd_epi32(sum[0], quads[j], events);
        }
      }
    }
  }
  const __m512i correction = _mm512_set1_epi32(job.sum * job.site->offset);
#pragma GCC unroll 24
  for (int i = 0; i < blocks * vectors; ++i) {
    __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[i], correction));
    value = _mm512_mul_ps(value, _mm512_load_ps(job.scale + 16 * i));
    if (job.add) value = _mm512_add_ps(_mm512_loadu_ps(job.out + 16 * i), value);
    _mm512_storeu_ps(job.out + 16 * i, value);
  }
}

inline void product(const Job &job, const Job *next) {
  const int blocks = job.site->row_bytes / 64;
  if (job.site->bits == 4)
    blocks == 3   ? product_blocks<3, true>(job, next)
    : blocks == 2 ? product_blocks<2, true>(job, next)
                  : product_blocks<1, true>(job, next);
  else
    blocks == 6   ? product_blocks<6, false>(job, next)
    : blocks == 5 ? product_blocks<5, false>(job, next)
    : blocks == 4 ? product_blocks<4, false>(job, next)
    : blocks == 3 ? product_blocks<3, false>(job, next)
    : blocks == 2 ? product_blocks<2, false>(job, next)
                  : product_blocks<1, false>(job, next);
}

#elif defined(__AVX2__)

constexpr int kRows = 8;

int place(int output) { return output; }

inline void add_wide(int32_t *sums, __m256i half_sums) {
  __m256i *low = reinterpret_cast<__m256i *>(sums);
  _mm256_store_si256(low, _mm256_add_epi32(_mm256_load_si256(low),
                                           _mm256_cvtepi16_epi32(_mm256_castsi256_si128(half_sums))));
  __m256i *high = reinterpret_cast<__m256i *>(sums + 16);
  _mm256_store_si256(high, _mm256_add_epi32(_mm256_load_si256(high),
                                            _mm256_cvtepi16_epi32(_mm256_extracti128_si256(half_sums, 1))));
}

// 32 outputs, 8 rows: pairs of unsigned weights times signed events. 8 x 255 x 15 fits 16 bits.
template <class Load>
inline void product_piece(const __m256i *pairs, const Load &load, int32_t *sums) {
  __m256i low = _mm256_setzero_si256(), high = low;
  for (int pair = 0; pair < 4; ++pair) {
    const __m256i a = load(2 * pair), b = load(2 * pair + 1);
    low = _mm256_add_epi16(low, _mm256_maddubs_epi16(_mm256_unpacklo_epi8(a, b), pairs[pair]));
    high = _mm256_add_epi16(high, _mm256_maddubs_epi16(_mm256_unpackhi_epi8(a, b), pairs[pair]));
  }
  add_wide(sums, low);
  add_wide(sums + 8, high);
}

inline void product(const Job &job, const Job *next) {
  alignas(64) int32_t sums[2 * kTileBytes];
  const int bytes = job.site->row_bytes;
  const bool four = job.site->bits == 4;
  std::memset(sums, 0, sizeof(int32_t) * job.site->tile_outputs);
  const __m256i nibble = _mm256_set1_epi8(15);
  for (int i = 0; i < job.count; i += kRows) {
    look_ahead<kRows>(job, next, i, bytes);
    const uint8_t *rows[kRows];
    for (int n = 0; n < kRows; ++n) rows[n] = job.tile + job.offset[i + n];
    __m256i pairs[4];
    for (int n = 0; n < 4; ++n) {
      int16_t two_events;
      std::memcpy(&two_events, job.value + i + 2 * n, 2);
      pairs[n] = _mm256_set1_epi16(two_events);
    }
    for (int at = 0; at < bytes; at += 32) {
      const auto load = [&](int n) { return _mm256_load_si256(reinterpret_cast<const __m256i *>(rows[n] + at)); };
      if (four) {
        int32_t *block = sums + at / 64 * 128 + at % 64;
        product_piece(pairs, [&](int n) { return _mm256_and_si256(load(n), nibble); }, block);
        product_piece(pairs, [&](int n) { return _mm256_and_si256(_mm256_srli_epi16(load(n), 4), nibble); },
                      block + 64);
      } else {
        product_piece(pairs, load, sums + at);
      }
    }
  }
  finish(job, sums);
}

#else

constexpr int kRows = 4;

int place(int output) { return output; }

// 4 x 255 x 15 fits 16 bits.
inline void product_piece(const uint8_t *const *rows, const int16_t *events, int mask, int shift,
                          int32_t *__restrict sums) {
  const uint8_t *__restrict a = rows[0], *__restrict b = rows[1], *__restrict c = rows[2], *__restrict d = rows[3];
  for (int o = 0; o < 64; ++o) {
    const int16_t sum = static_cast<int16_t>((a[o] >> shift & mask) * events[0] + (b[o] >> shift & mask) * events[1] +
                                             (c[o] >> shift & mask) * events[2] + (d[o] >> shift & mask) * events[3]);
    sums[o] += sum;
  }
}

inline void product(const Job &job, const Job *next) {
  alignas(64) int32_t sums[2 * kTileBytes];
  const int bytes = job.site->row_bytes;
  std::memset(sums, 0, sizeof(int32_t) * job.site->tile_outputs);
  for (int i = 0; i < job.count; i += kRows) {
    look_ahead<kRows>(job, next, i, bytes);
    int16_t events[kRows];
    for (int n = 0; n < kRows; ++n) events[n] = job.value[i + n];
    for (int at = 0; at < bytes; at += 64) {
      const uint8_t *rows[kRows];
      for (int n = 0; n < kRows; ++n) rows[n] = job.tile + job.offset[i + n] + at;
      if (job.site->bits == 4) {
        product_piece(rows, events, 15, 0, sums + 2 * at);
        product_piece(rows, events, 15, 4, sums + 2 * at + 64);
      } else {
        product_piece(rows, events, 255, 0, sums + at);
      }
    }
  }
  finish(job, sums);
}

#endif

}  // namespace
