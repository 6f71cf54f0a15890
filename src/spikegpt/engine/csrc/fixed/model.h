// The integers-only model as plain data, shared by translation units built for different instruction sets: no inline functions.
// What is computed is specified by engine/fixed/reference.py. C channels, V vocabulary, T tokens of one pass.
#pragma once

#include "../model.h"

namespace spikegpt::engine::fixed {

// A matrix and the neuron in front of it; `scale`, `threshold`, `leak` and `unit` of the base are not used.
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

// A time mix (sites key, value, receptance, output) or a channel mix (key, receptance, value).
struct Mix {
  bool is_time;
  Norm norm;
  int64_t shift, wkv;  // where the state keeps them
  Mixing mix_k, mix_v, mix_r;
  const int32_t *decay, *first;  // [C], null in a channel mix
  Site *key, *value, *receptance, *output;
};

// Tables, and what the formats come to.
struct Arithmetic {
  const int32_t *exp, *sigmoid, *rsqrt, *reciprocal;
  int32_t exp_shift, sigmoid_shift, rsqrt_quarter, reciprocal_shift;  // from a value to an index
  int32_t table_bits;
  int32_t residual_top, norm_top, output_top, exponent_top, numerator_top;
  int32_t norm_fraction, gate_fraction, output_fraction, exponent_fraction;
  int32_t key_shift, value_shift;  // from the format of keys to that of exponents, of values to that of numerators
  int32_t one;                     // a weight of 1, in the format of the denominator
  int32_t mean, epsilon;
  int32_t embedding_fraction, embedding_shift, residual_shift;  // from embedding to norm, from norm to residual
};

struct Model {
  int layers, channels, vocab, stride;
  int hidden_stride, threads;
  int levels, smallest;  // of the events sent
  bool is_signed, spike_embedding;
  const int8_t *embedding;                               // [V][C]
  const int32_t *embedding_mean, *embedding_multiplier;  // [V]
  Norm ln0, ln_out;
  const Mix *mixes;  // [2 * layers]
  Site *head;
  Arithmetic arithmetic;
  // Of the tokens in the making, [kTokens][stride]; hidden [kTokens][hidden_stride].
  int32_t *x, *normed, *k, *v, *r, *hidden;
};

struct Pass {
  const int64_t *ids;
  int tokens;
  int32_t *state;
  int32_t *logits;  // [tokens from `first_logits`][V]
  int first_logits;
  bool dense;      // read every weight, as a dense engine would
  Counts *counts;  // [sites], or null: nothing is counted
};

// One instruction set's code; as `engine::Walk`.
struct Walk {
  const char *name;
  int (*place)(int output);
  uint64_t (*run)(Model &, Worker &, const Pass &, const Share &, uint64_t first);
};

}  // namespace spikegpt::engine::fixed
