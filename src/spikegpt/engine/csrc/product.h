// Some outputs of a matrix times one token's events: reads the rows of active inputs, and no other weight.
// Local to the translation unit, one version for each instruction set. That unit says before: `Model`, whose sites these are;
// `Value`, what a sum becomes once it is multiplied by its scale, float or int32_t; scale_of(site, group) and steps_of(site,
// group); and what becomes of the values at last, ended(ending_of(site), value), also of 16 values in a vector.
#pragma once

#include <cstring>

#include "prefetch.h"

namespace {

using namespace spikegpt::engine;

// Blocks of a panel, the list of active rows, and where the sums go.
struct Job {
  const Model::Site *site;
  const uint8_t *weights;
  int stride, blocks;
  const uint32_t *input;
  const int8_t *value;
  int count, sum;
  const Value *scale;
  const uint8_t *steps;  // of this group of inputs: how often each output's scale goes into its own; null: no steps
  int32_t *totals;       // sums of the groups before it, times their steps
  Value *out;
  bool add;     // to what an earlier group left in `totals` or, without steps, in `out`
  bool last;    // group of inputs
  Value *copy;  // where the first `copied` outputs finally belong, or null
  int copied;
  bool few;  // rows of 8 bits are read, far from each other

  const uint8_t *row(int i) const { return weights + static_cast<size_t>(input[i]) * stride; }
};

// Bytes that are asked for before they are needed.
constexpr int kAhead = 16384;

// Rows that are added together, and rows that are read side by side where there are few: a step.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr int kRows = 4, kStep = 8;
#elif defined(__AVX2__)
constexpr int kRows = 8, kStep = kRows;
#else
constexpr int kRows = 4, kStep = kRows;
#endif

// The block of a row that is read at the given turn: of few rows the last, the first, the last but one, the second, ...
// Where lines are read in order, a processor guesses that the next ones are wanted too and fetches those of another row.
SPIKEGPT_INLINE int block_at(int turn, int blocks, bool few) {
  if (!few) return turn;
  return turn % 2 ? turn / 2 : blocks - 1 - turn / 2;
}

// How many rows are read side by side from the row `first` on.
SPIKEGPT_INLINE int step_of(const Job &job, int first) { return job.few && first + kRows < job.count ? kStep : kRows; }

// Asks for the lines of rows some way before they are needed, across the ends of jobs. A line of each row of a step is asked
// for in turn: memory answers several rows at a time much faster than one row after the other.
class Ahead {
 public:
  // The job after those it knows of, which stays where it is until it is done.
  void then(const Job *job) {
    if (job_)
      next_ = job;
    else
      enter(job);
    used(0);
  }

  // One line of each of so many rows was used.
  SPIKEGPT_INLINE void used(int rows) {
    lead_ -= rows;
    while (job_ && lead_ < kAhead / 64) fetch();
  }

 private:
  SPIKEGPT_INLINE void fetch() {
    const int at = 64 * block_at(turn_, job_->blocks, job_->few);
    for (int n = 0; n < kRows; ++n) prefetch(rows_[n] + at);
    if (job_->few)
      for (int n = kRows; n < kStep; ++n) prefetch(rows_[n] + at);
    lead_ += step_;
    if (++turn_ == job_->blocks) next_step();
  }

  void enter(const Job *job) {
    job_ = job && job->count ? job : nullptr;
    next_ = nullptr;
    first_ = 0;
    if (job_) look_up();
  }

  void next_step() {
    first_ += step_;
    if (first_ < job_->count)
      look_up();
    else
      enter(next_);
  }

  void look_up() {
    step_ = step_of(*job_, first_);
    for (int n = 0; n < kStep; ++n) rows_[n] = job_->row(first_ + (n < step_ ? n : step_ - 1));
    turn_ = 0;
  }

  const Job *job_ = nullptr, *next_ = nullptr;
  const uint8_t *rows_[kStep];
  int first_ = 0, turn_ = 0, step_ = 0;
  int lead_ = 0;  // lines asked for and not yet used
};

inline void finish(const Job &job, int32_t *__restrict sums) {
  const int32_t correction = job.sum * job.site->offset;
  const int outputs = job.blocks * outputs_per_block(job.site->bits);
  Value *__restrict out = job.out;
  const Value *__restrict scale = job.scale;
  for (int o = 0; o < outputs; ++o) sums[o] -= correction;
  if (job.steps) {
    for (int o = 0; o < outputs; ++o) sums[o] = sums[o] * job.steps[o] + (job.add ? job.totals[o] : 0);
    if (!job.last) {
      std::memcpy(job.totals, sums, sizeof(int32_t) * outputs);
      return;
    }
  }
  const Ending ending = ending_of(*job.site);
  if (job.add && !job.steps) {
    for (int o = 0; o < outputs; ++o) out[o] += static_cast<Value>(sums[o]) * scale[o];
    if (job.last)
      for (int o = 0; o < outputs; ++o) out[o] = ended(ending, out[o]);
  } else if (job.last) {
    for (int o = 0; o < outputs; ++o) out[o] = ended(ending, static_cast<Value>(sums[o]) * scale[o]);
  } else {
    for (int o = 0; o < outputs; ++o) out[o] = static_cast<Value>(sums[o]) * scale[o];
  }
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

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

SPIKEGPT_INLINE __m512i broadcast_four(const int8_t *events) {
  int32_t four;
  std::memcpy(&four, events, 4);
  return _mm512_set1_epi32(four);
}

// Adds 64 bytes of four rows times their events to the sums: 4 vectors, or 8 of weights with 4 bits. Of those the first 4
// are sums of whole bytes, low + 16 high, and the last 4 of 16 high: `separate` makes low and high of them.
template <bool four>
SPIKEGPT_INLINE void add_rows(const uint8_t *const *rows, int at, __m512i events, __m512i *sums) {
  const __m512i high = _mm512_set1_epi8(static_cast<char>(0xf0));
  __m512i quads[4];
  interleave(_mm512_load_si512(rows[0] + at), _mm512_load_si512(rows[1] + at), _mm512_load_si512(rows[2] + at),
             _mm512_load_si512(rows[3] + at), quads);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    sums[j] = _mm512_dpbusd_epi32(sums[j], quads[j], events);
    if (four) sums[j + 4] = _mm512_dpbusd_epi32(sums[j + 4], _mm512_and_si512(quads[j], high), events);
  }
}

// The rows of a step and their events.
struct Step {
  const int size;
  const uint8_t *rows[kStep];
  __m512i events[kStep / kRows];

  Step(const Job &job, int first) : size(step_of(job, first)) {
    for (int n = 0; n < size; ++n) rows[n] = job.row(first + n);
    for (int n = 0; n < size / kRows; ++n) events[n] = broadcast_four(job.value + first + n * kRows);
  }

  template <bool four>
  SPIKEGPT_INLINE void add(int block, __m512i *sums) const {
    add_rows<four>(rows, 64 * block, events[0], sums);
    if (!four && size > kRows) add_rows<four>(rows + kRows, 64 * block, events[1], sums);
  }
};

template <bool four>
SPIKEGPT_INLINE void separate(__m512i *sums) {
  if (!four) return;
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    sums[j] = _mm512_sub_epi32(sums[j], sums[j + 4]);
    sums[j + 4] = _mm512_srai_epi32(sums[j + 4], 4);
  }
}

SPIKEGPT_INLINE __m512 scaled(__m512i sum, const float *scale) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_load_ps(scale));
}

SPIKEGPT_INLINE __m512i scaled(__m512i sum, const int32_t *scale) {
  return _mm512_mullo_epi32(sum, _mm512_load_si512(scale));
}

SPIKEGPT_INLINE __m512 added(__m512 value, const float *to) { return _mm512_add_ps(_mm512_loadu_ps(to), value); }
SPIKEGPT_INLINE __m512i added(__m512i value, const int32_t *to) {
  return _mm512_add_epi32(_mm512_loadu_si512(to), value);
}

SPIKEGPT_INLINE void store(float *to, __m512 value) { _mm512_storeu_ps(to, value); }
SPIKEGPT_INLINE void store(int32_t *to, __m512i value) { _mm512_storeu_si512(to, value); }

// Of one of several groups of inputs.
SPIKEGPT_INLINE void finish_group(const Job &job, __m512i sum, Ending ending, int at) {
  if (job.steps) {
    const __m128i steps = _mm_load_si128(reinterpret_cast<const __m128i *>(job.steps + at));
    sum = _mm512_mullo_epi32(sum, _mm512_cvtepu8_epi32(steps));
    if (job.add) sum = _mm512_add_epi32(sum, _mm512_load_si512(job.totals + at));
    if (!job.last) {
      _mm512_store_si512(job.totals + at, sum);
      return;
    }
  }
  auto value = scaled(sum, job.scale + at);
  if (job.add && !job.steps) value = added(value, job.out + at);
  store(job.out + at, job.last ? ended(ending, value) : value);
}

template <bool four>
SPIKEGPT_INLINE void finish_blocks(const Job &job, int blocks, __m512i *sums) {
  constexpr int vectors = four ? 8 : 4;
  const __m512i correction = _mm512_set1_epi32(job.sum * job.site->offset);
  const Ending ending = ending_of(*job.site);
  const bool only = !job.steps && !job.add && job.last;
#pragma GCC unroll 6
  for (int block = 0; block < blocks; ++block) {
    separate<four>(sums + block * vectors);
#pragma GCC unroll 8
    for (int j = 0; j < vectors; ++j) {
      const int at = 16 * (block * vectors + j);
      const __m512i sum = _mm512_sub_epi32(sums[block * vectors + j], correction);
      if (only)
        store(job.out + at, ended(ending, scaled(sum, job.scale + at)));
      else
        finish_group(job, sum, ending, at);
    }
  }
}

// Few outputs: their sums stay in registers.
template <int blocks, bool four>
void product_narrow(const Job &job, Ahead &ahead) {
  constexpr int vectors = four ? 8 : 4;
  __m512i sums[blocks * vectors];
#pragma GCC unroll 24
  for (int i = 0; i < blocks * vectors; ++i) sums[i] = _mm512_setzero_si512();
  for (int first = 0; first < job.count;) {
    const Step step(job, first);
    first += step.size;
#pragma GCC unroll 6
    for (int turn = 0; turn < blocks; ++turn) {
      const int block = block_at(turn, blocks, job.few);
      ahead.used(step.size);
      step.add<four>(block, sums + block * vectors);
    }
  }
  finish_blocks<four>(job, blocks, sums);
}

// Many outputs: their sums are in the L1 cache.
template <bool four>
void product_wide(const Job &job, Ahead &ahead) {
  constexpr int vectors = four ? 8 : 4;
  __m512i sums[kPanelOutputs / 16];
  for (int i = 0; i < job.blocks * vectors; ++i) sums[i] = _mm512_setzero_si512();
  for (int first = 0; first < job.count;) {
    const Step step(job, first);
    first += step.size;
    for (int turn = 0; turn < job.blocks; ++turn) {
      const int block = block_at(turn, job.blocks, job.few);
      ahead.used(step.size);
      step.add<four>(block, sums + block * vectors);
    }
  }
  finish_blocks<four>(job, job.blocks, sums);
}

// Blocks that are multiplied at a time when several tokens share them; their sums fill the registers.
constexpr int narrow_blocks(int bits) { return bits == 4 ? 3 : 6; }

inline void product(const Job &job, Ahead &ahead) {
  using Product = void (*)(const Job &, Ahead &);
  static constexpr Product kEight[] = {product_wide<false>,      product_narrow<1, false>, product_narrow<2, false>,
                                       product_narrow<3, false>, product_narrow<4, false>, product_narrow<5, false>,
                                       product_narrow<6, false>};
  static constexpr Product kFour[] = {product_wide<true>, product_narrow<1, true>, product_narrow<2, true>,
                                      product_narrow<3, true>};
  const int which = job.blocks <= narrow_blocks(job.site->bits) ? job.blocks : 0;
  (job.site->bits == 4 ? kFour : kEight)[which](job, ahead);
}

#elif defined(__AVX2__)

constexpr int narrow_blocks(int) { return 6; }

int place(int output) { return output; }

inline void add_wide(int32_t *sums, __m256i half_sums) {
  __m256i *low = reinterpret_cast<__m256i *>(sums);
  _mm256_store_si256(
      low, _mm256_add_epi32(_mm256_load_si256(low), _mm256_cvtepi16_epi32(_mm256_castsi256_si128(half_sums))));
  __m256i *high = reinterpret_cast<__m256i *>(sums + 16);
  _mm256_store_si256(
      high, _mm256_add_epi32(_mm256_load_si256(high), _mm256_cvtepi16_epi32(_mm256_extracti128_si256(half_sums, 1))));
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

inline void product(const Job &job, Ahead &ahead) {
  alignas(64) int32_t sums[kPanelOutputs];
  const bool four = job.site->bits == 4;
  std::memset(sums, 0, sizeof(int32_t) * job.blocks * outputs_per_block(job.site->bits));
  const __m256i nibble = _mm256_set1_epi8(15);
  for (int i = 0; i < job.count; i += kRows) {
    const uint8_t *rows[kRows];
    for (int n = 0; n < kRows; ++n) rows[n] = job.row(i + n);
    __m256i pairs[4];
    for (int n = 0; n < 4; ++n) {
      int16_t two_events;
      std::memcpy(&two_events, job.value + i + 2 * n, 2);
      pairs[n] = _mm256_set1_epi16(two_events);
    }
    for (int half = 0; half < 2 * job.blocks; ++half) {
      const int at = 64 * block_at(half / 2, job.blocks, job.few) + half % 2 * 32;
      if (half % 2 == 0) ahead.used(kRows);
      const auto load = [&](int n) { return _mm256_load_si256(reinterpret_cast<const __m256i *>(rows[n] + at)); };
      if (four) {
        int32_t *block = sums + at / 64 * 128 + at % 64;
        product_piece(pairs, [&](int n) { return _mm256_and_si256(load(n), nibble); }, block);
        product_piece(
            pairs, [&](int n) { return _mm256_and_si256(_mm256_srli_epi16(load(n), 4), nibble); }, block + 64);
      } else {
        product_piece(pairs, load, sums + at);
      }
    }
  }
  finish(job, sums);
}

#else

constexpr int narrow_blocks(int) { return 6; }

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

inline void product(const Job &job, Ahead &ahead) {
  alignas(64) int32_t sums[kPanelOutputs];
  std::memset(sums, 0, sizeof(int32_t) * job.blocks * outputs_per_block(job.site->bits));
  for (int i = 0; i < job.count; i += kRows) {
    int16_t events[kRows];
    for (int n = 0; n < kRows; ++n) events[n] = job.value[i + n];
    for (int turn = 0; turn < job.blocks; ++turn) {
      const int at = 64 * block_at(turn, job.blocks, job.few);
      ahead.used(kRows);
      const uint8_t *rows[kRows];
      for (int n = 0; n < kRows; ++n) rows[n] = job.row(i + n) + at;
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
