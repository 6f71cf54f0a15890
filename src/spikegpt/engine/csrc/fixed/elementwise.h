// The parts between the products, over a run of channels: loops over 32-bit integers that vectorise. Local to the
// translation unit. Widths were checked when the constants were made: nothing here can overflow.
#pragma once

#include "../prefetch.h"
#include "model.h"

namespace {

using namespace spikegpt::engine;
using fixed::Arithmetic;
using fixed::Model;
using Value = int32_t;

// What a product's sum is multiplied by.
inline const int32_t *scale_of(const fixed::Site &site, int group) {
  return site.multiplier + static_cast<int64_t>(group) * site.padded;
}
inline const uint8_t *steps_of(const fixed::Site &, int) { return nullptr; }

// What the loops below read besides values.
inline void ask_norm(const fixed::Norm &norm, Channels own) { ask(norm.gain, own), ask(norm.bias, own); }
inline void ask_mixing(const fixed::Mixing &mixing, Channels own) { ask(mixing.multiplier, own); }
inline void ask_neuron(const fixed::Site &, Channels) {}

// Tables are never where a loop writes; compilers cannot know.
#if defined(__clang__)
#define SPIKEGPT_NO_ALIAS _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define SPIKEGPT_NO_ALIAS _Pragma("GCC ivdep")
#else
#define SPIKEGPT_NO_ALIAS
#endif

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
  int bits = 0;
  for (; x; x >>= 1) ++bits;
  return bits;
}

// (x - mean) * inverse >> shift is the normalised x.
struct Moments {
  int32_t mean, inverse, shift;
};

inline Moments moments(const Arithmetic &a, const int32_t *__restrict x, int count) {
  int32_t total = 0;
  for (int c = 0; c < count; ++c) total += x[c];
  const int32_t mean = static_cast<int32_t>((static_cast<int64_t>(total) * a.mean + (1 << 23)) >> 24);
  int64_t squares = 0;
  for (int c = 0; c < count; ++c) {
    const int32_t distance = cut(x[c] - mean, a.residual_top);
    squares += static_cast<uint32_t>(distance * distance);
  }
  const int64_t variance = (squares * a.mean >> 24) + a.epsilon;
  const int exponent = (bit_length(static_cast<uint64_t>(variance)) - 1) / 2;
  const int64_t index = (variance * a.rsqrt_quarter >> 2 * exponent) - a.rsqrt_quarter;
  return {mean, a.rsqrt[index], a.table_bits + exponent - a.norm_fraction};
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

inline void mix_tokens(const Arithmetic &a, const int32_t *__restrict last, const int32_t *__restrict now,
                       fixed::Mixing mixing, Channels own, int32_t *__restrict out) {
  const int32_t *__restrict multiplier = mixing.multiplier;
  const int32_t shift = mixing.shift, top = a.norm_top;
  for (int c = own.begin; c < own.end; ++c) out[c] = cut(last[c] + rounded((now[c] - last[c]) * multiplier[c], shift), top);
}

// Sums of products to the format of the site's outputs.
inline void settle(const fixed::Site &site, int32_t *__restrict x, int count) {
  const int32_t shift = site.shift, top = site.top;
  for (int c = 0; c < count; ++c) x[c] = cut(rounded(x[c], shift), top);
}

enum class Reads { kSigned, kPositive, kSquare };

template <Reads reads>
inline void fire_all(const fixed::Site &site, const int32_t *__restrict x, Channels own, int32_t levels,
                     int32_t smallest, int8_t *__restrict events) {
  const int32_t multiplier = site.event_multiplier, offset = site.event_offset, shift = site.event_shift;
  const int32_t square = site.square, most = (1 << 19) - 1;
  for (int c = own.begin; c < own.end; ++c) {
    int32_t size = reads == Reads::kSigned && x[c] < 0 ? -x[c] : x[c];
    if (reads != Reads::kSigned) size = size > 0 ? size : 0;
    if (reads == Reads::kSquare) {
      size = size * size >> square;
      size = size < most ? size : most;
    }
    int32_t count = (size * multiplier + offset) >> shift;
    count = count < levels ? count : levels;
    count = count < smallest ? 0 : count;
    events[c] = static_cast<int8_t>(reads == Reads::kSigned && x[c] < 0 ? -count : count);
  }
}

// The neuron in front of `site`, for token `t`.
inline void fire(const Model &model, const fixed::Site &site, const int32_t *x, Channels own, int32_t *, int t) {
  int8_t *events = site.events + static_cast<int64_t>(t) * site.stride;
  if (site.square >= 0)
    fire_all<Reads::kSquare>(site, x, own, model.levels, model.smallest, events);
  else if (site.is_signed)
    fire_all<Reads::kSigned>(site, x, own, model.levels, model.smallest, events);
  else
    fire_all<Reads::kPositive>(site, x, own, model.levels, model.smallest, events);
}

// The same of what the token shift makes of two tokens.
inline void fire_mixed(const Model &model, const fixed::Site &site, fixed::Mixing mixing, const int32_t *last,
                       const int32_t *now, Channels own, int32_t *scratch, int32_t *state, int t) {
  mix_tokens(model.arithmetic, last, now, mixing, own, scratch);
  fire(model, site, scratch, own, state, t);
}

// The same of relu(x)^2.
inline void fire_hidden(const Model &model, const fixed::Site &site, const int32_t *x, Channels own, int32_t *state,
                        int t) {
  fire(model, site, x, own, state, t);
}

inline int32_t sigmoid(const Arithmetic &a, int32_t x) {
  int32_t at = x + (8 << a.gate_fraction);
  at = at > 0 ? at : 0;
  const int32_t last = (16 << a.gate_fraction) - 1;
  return a.sigmoid[(at < last ? at : last) >> a.sigmoid_shift];
}

// 2^-distance, times 2^table_bits.
inline int32_t power(const Arithmetic &a, int32_t distance) {
  const int32_t whole = distance >> a.exponent_fraction, by = whole < 16 ? whole : 16;
  const int32_t value = a.exp[(distance & ((1 << a.exponent_fraction) - 1)) >> a.exp_shift];
  return (value + ((1 << by) >> 1)) >> by;
}

// weight * value >> table_bits, rounded, of a weight of 16 and a value of 25 bits: in two halves, for 41 do not fit.
inline int32_t fade(int32_t weight, int32_t value, int32_t table_bits) {
  return (weight * (value >> 8) + ((weight * (value & 255) + half(table_bits)) >> 8)) >> (table_bits - 8);
}

// a / b in the format `output`: the reciprocal is a table's, better by one Newton step.
inline int32_t divide(const Arithmetic &of, int32_t a, int32_t b) {
  int32_t zeros = 0;
  if (b < 1 << 16) b <<= 8, zeros += 8;
  if (b < 1 << 20) b <<= 4, zeros += 4;
  if (b < 1 << 22) b <<= 2, zeros += 2;
  if (b < 1 << 23) b <<= 1, zeros += 1;
  const uint32_t mantissa = static_cast<uint32_t>(b) >> 8;
  const uint32_t guess = static_cast<uint32_t>(of.reciprocal[(mantissa - (1u << 15)) >> of.reciprocal_shift]);
  const int32_t inverse = static_cast<int32_t>(guess * (((1u << 31) - mantissa * guess) >> 15) >> 15);
  const int32_t by = 15 + 23 - zeros - of.output_fraction;
  return ((a >> 9) * inverse + (((a & 511) * inverse + half(by)) >> 9)) >> (by - 9);
}

// One token of the WKV average behind its gate; one of two weights is always 1.
inline void wkv(const Model &model, const Model::Mix &mix, const int32_t *__restrict k, const int32_t *__restrict v,
                const int32_t *__restrict r, Channels own, int32_t *__restrict state, int32_t *__restrict out) {
  const Arithmetic a = model.arithmetic;
  const int channels = model.channels;
  int32_t *__restrict numerator = state, *__restrict denominator = state + channels;
  int32_t *__restrict exponent = state + 2 * static_cast<int64_t>(channels);
  const int32_t *__restrict decay = mix.decay, *__restrict first = mix.first;
  const int32_t least = a.one >> 1, most = (1 << 24) - 1;
  SPIKEGPT_NO_ALIAS
  for (int c = own.begin; c < own.end; ++c) {
    const int32_t value = scaled_up(v[c], a.value_shift),
                  ahead = exponent[c] - (scaled_up(k[c], a.key_shift) + first[c]);
    const int32_t weight = power(a, ahead < 0 ? -ahead : ahead);
    const int32_t above =
        (ahead < 0 ? value : numerator[c]) + fade(weight, ahead < 0 ? numerator[c] : value, a.table_bits);
    int32_t below =
        (ahead < 0 ? a.one : denominator[c]) + fade(weight, ahead < 0 ? denominator[c] : a.one, a.table_bits);
    below = below > least ? below : least;
    const int32_t y = cut(divide(a, above, below < most ? below : most), a.output_top);
    out[c] = rounded(y * sigmoid(a, r[c]), a.table_bits);
  }
  SPIKEGPT_NO_ALIAS
  for (int c = own.begin; c < own.end; ++c) {
    const int32_t value = scaled_up(v[c], a.value_shift), key = scaled_up(k[c], a.key_shift),
                  sunk = exponent[c] + decay[c];
    const int32_t faded = sunk > -a.exponent_top ? sunk : -a.exponent_top, ahead = faded - key;
    const int32_t weight = power(a, ahead < 0 ? -ahead : ahead);
    const int32_t above =
        (ahead < 0 ? value : numerator[c]) + fade(weight, ahead < 0 ? numerator[c] : value, a.table_bits);
    const int32_t below =
        (ahead < 0 ? a.one : denominator[c]) + fade(weight, ahead < 0 ? denominator[c] : a.one, a.table_bits);
    numerator[c] = cut(above, a.numerator_top);
    denominator[c] = cut(below, a.numerator_top);
    exponent[c] = cut(ahead < 0 ? key : faded, a.exponent_top);
  }
}

// x += y behind the gate sigmoid(r).
inline void add_gated(const Model &model, const int32_t *__restrict y, const int32_t *__restrict r, Channels own,
                      int32_t *__restrict x) {
  const Arithmetic a = model.arithmetic;
  SPIKEGPT_NO_ALIAS
  for (int c = own.begin; c < own.end; ++c)
    x[c] = cut(x[c] + rounded(y[c] * sigmoid(a, r[c]), a.table_bits), a.residual_top);
}

// x += y.
inline void add(const Model &model, const int32_t *__restrict y, Channels own, int32_t *__restrict x) {
  const int32_t top = model.arithmetic.residual_top;
  for (int c = own.begin; c < own.end; ++c) x[c] = cut(x[c] + y[c], top);
}

}  // namespace
