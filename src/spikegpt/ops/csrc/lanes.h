// What the kernels share: tiles of channels, rows in either float type and a vectorisable exponential.
// Everything here is local to the translation unit: a shared inline function built for AVX-512 could be the copy that the
// linker keeps for everybody.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

#ifndef SPIKEGPT_ISA
#define SPIKEGPT_ISA baseline
#endif

namespace {

using namespace spikegpt;

struct Tile {
  int64_t batch, channel;
  int width;
};

inline Tile tile_at(const Shape &shape, int64_t item) {
  const int64_t blocks = (shape.channels + kBlock - 1) / kBlock;
  const int64_t channel = item % blocks * kBlock;
  const int64_t left = shape.channels - channel;
  return {item / blocks, channel, left < kBlock ? static_cast<int>(left) : kBlock};
}

inline int64_t saved(int64_t time) { return time > 0 ? (time - 1) / kChunk : 0; }

inline void copy(float *to, const float *from, int width) { std::memcpy(to, from, sizeof(float) * width); }

// bfloat16 is the upper half of a float32.
inline float widen(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// To the nearest, ties to even; NaN stays NaN.
inline uint16_t narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(x == x ? rounded : 0x7fc0u);
}

// `width` values from the element `at` on: where they are if they are float32, else widened into the buffer.
inline const float *read(const Values &values, int64_t at, int width, float *__restrict buffer) {
  if (!values.half) return static_cast<const float *>(values.data) + at;
  const uint16_t *__restrict from = static_cast<const uint16_t *>(values.data) + at;
  for (int c = 0; c < width; ++c) buffer[c] = widen(from[c]);
  return buffer;
}

// Where to compute results that belong at the element `at`; `finish` then brings them there.
inline float *place(const Results &results, int64_t at, float *buffer) {
  return results.half ? buffer : static_cast<float *>(results.data) + at;
}

inline void finish(const Results &results, int64_t at, int width, const float *__restrict computed) {
  if (!results.half) return;
  uint16_t *__restrict to = static_cast<uint16_t *>(results.data) + at;
  for (int c = 0; c < width; ++c) to[c] = narrow(computed[c]);
}

// e^x for x <= 0, within 2 units in the last place; 0 below e^-87; NaN for NaN.
// x = n ln 2 + r, e^r by a polynomial fitted to |r| <= ln 2 / 2. Written in plain multiplies and adds so that a loop over
// channels vectorises, and gives the same bits on every instruction set.
inline float exp_negative(float x) {
  const float round_to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low mantissa bits
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + round_to_integer;
  const float n = shifted - round_to_integer;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 0.0013926213f;
  p = p * r + 0.008363203f;
  p = p * r + 0.041666556f;
  p = p * r + 0.16666576f;
  p = p * r + 0.5f;
  p = (p * r) * r + r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return x < -87.0f ? 0.0f : p * scale;
}

// sigmoid(x) and 1 - sigmoid(x), the smaller of which keeps its precision.
inline void sigmoids(float x, float &open, float &shut) {
  const float e = exp_negative(x < 0.0f ? x : -x), larger = 1.0f / (1.0f + e), smaller = e * larger;
  open = x < 0.0f ? smaller : larger;
  shut = x < 0.0f ? larger : smaller;
}

inline float sigmoid(float x) {
  const float e = exp_negative(x < 0.0f ? x : -x);
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

}  // namespace
