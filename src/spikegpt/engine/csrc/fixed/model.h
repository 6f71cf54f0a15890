// The integers-only model as plain data. What is computed is specified by engine/fixed/reference.py.
#pragma once

#include "../model.h"

namespace spikegpt::engine::fixed {

struct Site : engine::Site {
  const int32_t *multiplier;  // [group][padded]
  int32_t shift, top;         // of its outputs: by how much their sums are shifted, and the largest
  int32_t event_multiplier, event_offset, event_shift;
  int32_t square;  // by how much the square of an input is shifted, or -1: the neuron reads the input itself
};

struct Norm {
  const int32_t *gain, *bias;
  int32_t shift;
};

struct Mixing {
  const int32_t *multiplier;
  int32_t shift;
};

struct Parts {
  using Value = int32_t;
  using Site = fixed::Site;
  using Norm = fixed::Norm;
  using Mixing = fixed::Mixing;
};

// A table; the same in 16 bits and padded to kNarrowTable entries, at a multiple of 64 bytes, if it has no more.
constexpr int kNarrowTable = 128;
struct Table {
  const int32_t *entries;
  const uint16_t *narrow;
  int count;
};

// Tables, and what the formats come to.
struct Arithmetic {
  Table exp, sigmoid, rsqrt, reciprocal;
  int32_t exp_shift, sigmoid_shift, rsqrt_quarter, reciprocal_shift;  // from a value to an index
  int32_t table_bits;
  int32_t residual_top, norm_top, output_top, exponent_top, numerator_top;
  int32_t norm_fraction, gate_fraction, output_fraction, exponent_fraction;
  int32_t key_shift, value_shift;  // from the format of keys to that of exponents, of values to that of numerators
  int32_t one;                     // a weight of 1, in the format of the denominator
  int32_t mean, epsilon;
  int32_t embedding_fraction, embedding_shift, residual_shift;  // from embedding to norm, from norm to residual
};

struct Model : ModelOf<Parts> {
  const int32_t *embedding_mean, *embedding_multiplier;  // [V]
  Arithmetic arithmetic;
};

using Walk = WalkOf<Model>;

}  // namespace spikegpt::engine::fixed
