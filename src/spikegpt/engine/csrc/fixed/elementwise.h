// The parts between the products, over a run of channels: loops over 32-bit integers that vectorise. Local to the
// translation unit. Widths were checked when the constants were made: nothing here can overflow.
#pragma once

#include <type_traits>

#include "tables.h"

namespace {

using namespace spikegpt::engine;
using fixed::Arithmetic;
using fixed::Model;
using Value = int32_t;

// Values that are worked on together where tables are looked up: the loops between look-ups vectorise.
constexpr int kBlock = 128;
using Block = int32_t[kBlock];

// x 2^by: of a negative number `<<` is undefined before C++20.
inline int32_t scaled_up(int32_t x, int32_t by) { return static_cast<int32_t>(static_cast<uint32_t>(x) << by); }

inline int32_t half(int32_t by) { return (1 << by) >> 1; }

// x / 2^by to the nearest, halves up.
inline int32_t rounded(int32_t x, int32_t by) { return (x + half(by)) >> by; }

inline int32_t cut(int32_t x, int32_t top) {
  const int32_t below = x < top ? x : top;
  return below > -top ? below : -top;
}

inline int bit_length(uint64_t x) {
#if defined(__GNUC__)
  return x ? 64 - __builtin_clzll(x) : 0;
#else
  int bits = 0;
  for (; x; x >>= 1) ++bits;
  return bits;
#endif
}

// What the loops below read besides values.
inline void ask_norm(const fixed::Norm &norm, Channels own) { ask(norm.gain, own), ask(norm.bias, own); }
inline void ask_mixing(const fixed::Mixing &mixing, Channels own) { ask(mixing.multiplier, own); }
inline void ask_neuron(const fixed::Site &, Channels) {}

// What a product's sum is multiplied by, and what becomes of it then: it is brought to the format of the site's outputs.
inline const int32_t *scale_of(const fixed::Site &site, int group) {
  return site.multiplier + static_cast<int64_t>(group) * site.padded;
}
inline const uint8_t *steps_of(const fixed::Site &, int) { return nullptr; }

struct Ending {
  int32_t shift, top;
};

inline Ending ending_of(const fixed::Site &site) { return {site.shift, site.top}; }
inline int32_t ended(Ending ending, int32_t x) { return cut(rounded(x, ending.shift), ending.top); }

#if defined(__AVX512BW__)
inline __m512i ended(Ending ending, __m512i x) {
  const __m512i top = _mm512_set1_epi32(ending.top), least = _mm512_set1_epi32(-ending.top);
  const __m512i more = _mm512_add_epi32(x, _mm512_set1_epi32(half(ending.shift)));
  const __m512i shifted = _mm512_srav_epi32(more, _mm512_set1_epi32(ending.shift));
  return _mm512_max_epi32(_mm512_min_epi32(shifted, top), least);
}
#endif

// (x - mean) * inverse >> shift is the normalised x.
struct Moments {
  int32_t mean, inverse, shift;
};

inline Moments moments(const Arithmetic &a, const int32_t *__restrict x, int count) {
  int32_t total = 0;
  for (int c = 0; c < count; ++c) total += x[c];
  const int32_t mean = static_cast<int32_t>((static_cast<int64_t>(total) * a.mean + (1 << 23)) >> 24);
  uint32_t low = 0, high = 0;  // of the squares' 16-bit halves: 65536 channels fit
  for (int c = 0; c < count; ++c) {
    const int32_t distance = cut(x[c] - mean, a.residual_top);
    const uint32_t square = static_cast<uint32_t>(distance * distance);
    low += square & 0xffff;
    high += square >> 16;
  }
  const int64_t squares = (static_cast<int64_t>(high) << 16) + low;
  const int64_t variance = (squares * a.mean >> 24) + a.epsilon;
  const int exponent = (bit_length(static_cast<uint64_t>(variance)) - 1) / 2;
  const int64_t index = (variance * a.rsqrt_quarter >> 2 * exponent) - a.rsqrt_quarter;
  return {mean, a.rsqrt.entries[index], a.table_bits + exponent - a.norm_fraction};
}

inline int32_t gained(int32_t normalised, const fixed::Norm &norm, int c, int32_t top) {
  return cut(rounded(cut(normalised, top) * norm.gain[c], norm.shift) + norm.bias[c], top);
}

inline void normalise(const Model &model, const int32_t *__restrict x, fixed::Norm norm, Channels own,
                      int32_t *__restrict out) {
  const Arithmetic &a = model.arithmetic;
  const int32_t top = a.norm_top, residual_top = a.residual_top;
  const Moments of = moments(a, x, model.channels);
  for (int c = own.begin; c < own.end; ++c)
    out[c] = gained(rounded(cut(x[c] - of.mean, residual_top) * of.inverse, of.shift), norm, c, top);
}

// The embedding of a token through the first norm, whose moments are constants of the token.
inline void embed(const Model &model, int64_t id, Channels own, int32_t *, int32_t *__restrict out) {
  const Arithmetic &a = model.arithmetic;
  const int8_t *__restrict row = model.embedding + id * model.channels;
  const int32_t mean = model.embedding_mean[id], inverse = model.embedding_multiplier[id], by = a.embedding_shift;
  const bool spikes = model.spike_embedding;
  for (int c = own.begin; c < own.end; ++c) {
    const int32_t value = spikes ? row[c] >= 0 : row[c];
    const int32_t distance = scaled_up(value, a.embedding_fraction) - mean;
    const int32_t y = gained(rounded(distance * inverse, by), model.ln0, c, a.norm_top);
    out[c] = cut(rounded(y, a.residual_shift), a.residual_top);
  }
}

enum class Reads { kSigned, kPositive, kSquare };

// The numbers of a neuron.
struct Neuron {
  int32_t multiplier, offset, shift, square, levels, smallest;
};

inline Neuron neuron_of(const Model &model, const fixed::Site &site) {
  return {site.event_multiplier, site.event_offset, site.event_shift, site.square, model.levels, model.smallest};
}

template <Reads reads>
inline int8_t event_of(const Neuron &of, int32_t x) {
  constexpr int32_t kMost = (1 << 19) - 1;
  int32_t size = reads == Reads::kSigned && x < 0 ? -x : x;
  if (reads != Reads::kSigned) size = size > 0 ? size : 0;
  if (reads == Reads::kSquare) {
    size = size * size >> of.square;
    size = size < kMost ? size : kMost;
  }
  int32_t count = (size * of.multiplier + of.offset) >> of.shift;
  count = count < of.levels ? count : of.levels;
  count = count < of.smallest ? 0 : count;
  return static_cast<int8_t>(reads == Reads::kSigned && x < 0 ? -count : count);
}

// Calls run(reads) with what the neuron in front of `site` reads, as a constant.
template <class Run>
inline void by_kind(const fixed::Site &site, const Run &run) {
  if (site.square >= 0)
    run(std::integral_constant<Reads, Reads::kSquare>());
  else if (site.is_signed)
    run(std::integral_constant<Reads, Reads::kSigned>());
  else
    run(std::integral_constant<Reads, Reads::kPositive>());
}

// The neuron in front of `site`, for token `t`.
inline void fire(const Model &model, const fixed::Site &site, const int32_t *__restrict x, Channels own, int32_t *,
                 int t) {
  int8_t *__restrict events = site.events + static_cast<int64_t>(t) * site.stride;
  const Neuron neuron = neuron_of(model, site);
  by_kind(site, [&](auto reads) {
    for (int c = own.begin; c < own.end; ++c) events[c] = event_of<reads()>(neuron, x[c]);
  });
}

// The same of what the token shift makes of two tokens.
inline void fire_mixed(const Model &model, const fixed::Site &site, fixed::Mixing mixing,
                       const int32_t *__restrict last, const int32_t *__restrict now, Channels own, int32_t *,
                       int32_t *, int t) {
  int8_t *__restrict events = site.events + static_cast<int64_t>(t) * site.stride;
  const int32_t *__restrict multiplier = mixing.multiplier;
  const int32_t shift = mixing.shift, top = model.arithmetic.norm_top;
  const Neuron neuron = neuron_of(model, site);
  by_kind(site, [&](auto reads) {
    for (int c = own.begin; c < own.end; ++c) {
      const int32_t mixed = cut(last[c] + rounded((now[c] - last[c]) * multiplier[c], shift), top);
      events[c] = event_of<reads()>(neuron, mixed);
    }
  });
}

// The same of relu(x)^2.
inline void fire_hidden(const Model &model, const fixed::Site &site, const int32_t *x, Channels own, int32_t *state,
                        int t) {
  fire(model, site, x, own, state, t);
}

SPIKEGPT_INLINE void sigmoids(const Arithmetic &a, const int32_t *__restrict x, int count, Block &out) {
  alignas(64) Block index;
  const int32_t middle = 8 << a.gate_fraction, last = 2 * middle - 1;
  for (int i = 0; i < count; ++i) {
    int32_t at = x[i] + middle;
    at = at > 0 ? at : 0;
    index[i] = (at < last ? at : last) >> a.sigmoid_shift;
  }
  look_up(a.sigmoid, index, count, out);
}

// 2^-|ahead|, times 2^table_bits.
SPIKEGPT_INLINE void powers(const Arithmetic &a, const Block &ahead, int count, Block &out) {
  alignas(64) Block index;
  const int32_t parts = (1 << a.exponent_fraction) - 1;
  for (int i = 0; i < count; ++i) index[i] = ((ahead[i] < 0 ? -ahead[i] : ahead[i]) & parts) >> a.exp_shift;
  look_up(a.exp, index, count, out);
  for (int i = 0; i < count; ++i) {
    const int32_t whole = (ahead[i] < 0 ? -ahead[i] : ahead[i]) >> a.exponent_fraction, by = whole < 16 ? whole : 16;
    out[i] = (out[i] + ((1 << by) >> 1)) >> by;
  }
}

// weight * value >> table_bits, rounded, of a weight of 16 and a value of 25 bits: in two halves, for 41 do not fit.
inline int32_t fade(int32_t weight, int32_t value, int32_t table_bits) {
  return (weight * (value >> 8) + ((weight * (value & 255) + half(table_bits)) >> 8)) >> (table_bits - 8);
}

// The sum of two values, of which the one with the smaller exponent fades.
inline int32_t average(int32_t ahead, int32_t weight, int32_t past, int32_t now, int32_t table_bits) {
  return (ahead < 0 ? now : past) + fade(weight, ahead < 0 ? past : now, table_bits);
}

// a / b in the format `output`, b of at most 24 bits: the reciprocal is a table's, better by one Newton step.
SPIKEGPT_INLINE void divide(const Arithmetic &of, const Block &a, const Block &b, int count, Block &out) {
  alignas(64) Block index, mantissa, shift, guess;
  for (int i = 0; i < count; ++i) {
    int32_t x = b[i], zeros = 0;
    if (x < 1 << 16) x <<= 8, zeros += 8;
    if (x < 1 << 20) x <<= 4, zeros += 4;
    if (x < 1 << 22) x <<= 2, zeros += 2;
    if (x < 1 << 23) x <<= 1, zeros += 1;
    mantissa[i] = x >> 8;
    shift[i] = 15 + 23 - zeros - of.output_fraction;
    index[i] = (mantissa[i] - (1 << 15)) >> of.reciprocal_shift;
  }
  look_up(of.reciprocal, index, count, guess);
  for (int i = 0; i < count; ++i) {
    const uint32_t first = static_cast<uint32_t>(guess[i]);
    const uint32_t rest = ((1u << 31) - static_cast<uint32_t>(mantissa[i]) * first) >> 15;
    const int32_t inverse = static_cast<int32_t>(first * rest >> 15), by = shift[i];
    out[i] = ((a[i] >> 9) * inverse + (((a[i] & 511) * inverse + half(by)) >> 9)) >> (by - 9);
  }
}

// Where a block of the average lies.
struct Average {
  const int32_t *__restrict k, *__restrict v, *__restrict r, *__restrict decay, *__restrict first;
  int32_t *__restrict numerator, *__restrict denominator, *__restrict exponent, *__restrict out;
};

// One token of the WKV average behind its gate; one of two weights is always 1.
SPIKEGPT_INLINE void wkv_block(const Arithmetic &a, const Average &at, int count) {
  const int32_t least = a.one >> 1, most = (1 << 24) - 1;
  alignas(64) Block ahead, weight, gate, above, below, y;
  for (int i = 0; i < count; ++i) ahead[i] = at.exponent[i] - (scaled_up(at.k[i], a.key_shift) + at.first[i]);
  powers(a, ahead, count, weight);
  for (int i = 0; i < count; ++i) {
    const int32_t value = scaled_up(at.v[i], a.value_shift);
    above[i] = average(ahead[i], weight[i], at.numerator[i], value, a.table_bits);
    const int32_t sum = average(ahead[i], weight[i], at.denominator[i], a.one, a.table_bits);
    const int32_t bounded = sum > least ? sum : least;
    below[i] = bounded < most ? bounded : most;
  }
  divide(a, above, below, count, y);
  sigmoids(a, at.r, count, gate);
  for (int i = 0; i < count; ++i) at.out[i] = rounded(cut(y[i], a.output_top) * gate[i], a.table_bits);
  for (int i = 0; i < count; ++i) {
    const int32_t key = scaled_up(at.k[i], a.key_shift), sunk = at.exponent[i] + at.decay[i];
    const int32_t faded = sunk > -a.exponent_top ? sunk : -a.exponent_top;
    ahead[i] = faded - key;
    at.exponent[i] = cut(ahead[i] < 0 ? key : faded, a.exponent_top);
  }
  powers(a, ahead, count, weight);
  for (int i = 0; i < count; ++i) {
    const int32_t value = scaled_up(at.v[i], a.value_shift);
    at.numerator[i] =
        cut(average(ahead[i], weight[i], at.numerator[i], value, a.table_bits), a.numerator_top);
    at.denominator[i] =
        cut(average(ahead[i], weight[i], at.denominator[i], a.one, a.table_bits), a.numerator_top);
  }
}

// Calls run(first, count) for the blocks of a range; in a whole one the compiler knows how many values there are.
template <class Run>
SPIKEGPT_INLINE void by_block(Channels own, const Run &run) {
  int c = own.begin;
  for (; c + kBlock <= own.end; c += kBlock) run(c, std::integral_constant<int, kBlock>());
  if (c < own.end) run(c, own.end - c);
}

inline void wkv(const Model &model, const Model::Mix &mix, const int32_t *k, const int32_t *v, const int32_t *r,
                Channels own, int32_t *state, int32_t *out) {
  const Arithmetic a = model.arithmetic;
  const int64_t channels = model.channels;
  by_block(own, [&](int c, auto count) {
    const Average at{k + c, v + c, r + c, mix.decay + c, mix.first + c, state + c, state + channels + c,
                     state + 2 * channels + c, out + c};
    wkv_block(a, at, count);
  });
}

// x += y behind the gate sigmoid(r).
inline void add_gated(const Model &model, const int32_t *y, const int32_t *r, Channels own, int32_t *x) {
  const Arithmetic a = model.arithmetic;
  by_block(own, [&](int c, auto count) {
    alignas(64) Block gate;
    const int32_t *__restrict added = y + c;
    int32_t *__restrict to = x + c;
    sigmoids(a, r + c, count, gate);
    for (int i = 0; i < count; ++i)
      to[i] = cut(to[i] + rounded(added[i] * gate[i], a.table_bits), a.residual_top);
  });
}

// x += y.
inline void add(const Model &model, const int32_t *__restrict y, Channels own, int32_t *__restrict x) {
  const int32_t top = model.arithmetic.residual_top;
  for (int c = own.begin; c < own.end; ++c) x[c] = cut(x[c] + y[c], top);
}

}  // namespace
