// What the kernels share: tiles of channels and a vectorisable exponential.
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

}  // namespace
