// The engine's model as plain data, shared by translation units built for different instruction sets: no inline functions.
// C channels, V vocabulary, T tokens of one pass. Every row of floats begins at a multiple of 64 bytes.
#pragma once

#include <cstdint>

namespace spikegpt::engine {

// Most tokens computed together: they share each weight while it is in the cache.
constexpr int kTokens = 32;
// Weights lie in tiles of at most this many bytes a row: one row's sums then fit in the registers of AVX-512.
constexpr int kTileBytes = 384;
// Outputs a block of 64 bytes holds, by width of the weights.
constexpr int outputs_per_block(int bits) { return bits == 4 ? 128 : 64; }

// A matrix and the event neuron in front of it.
// Weights are unsigned, offset by `offset` (128 or 8), as [tile][input][row bytes]; a sum over events n is corrected by
// -offset * sum(n). The order of outputs within a block is the instruction set's own (`Walk::place`).
struct Site {
  int inputs, outputs;
  int tiles, tile_outputs, row_bytes;
  int groups, group_inputs;  // inputs that share a scale
  int bits, offset;
  const uint8_t *weights;
  const float *scale;      // [group][tiles * tile_outputs], times the neuron's unit
  const float *threshold;  // [inputs]
  const float *leak;       // [inputs], or null: no memory
  float unit;
  bool is_signed;
  int64_t membrane;  // where the state keeps it, or -1
  int8_t *events;    // [kTokens][stride], what the neuron said
  int stride;
  // Counted while running.
  int64_t steps, active, units, saturated;
  int64_t *fired;  // [inputs], or null: not counted
};

struct Norm {
  const float *gain, *bias;
};

// A time mix (sites key, value, receptance, output) or a channel mix (key, receptance, value).
struct Mix {
  bool is_time;
  Norm norm;
  int64_t shift, wkv;                                  // where the state keeps them
  const float *mix_k, *mix_v, *mix_r, *decay, *first;  // [C]; in a channel mix no mix_v, decay, first
  Site *key, *value, *receptance, *output;
};

struct Model {
  int layers, channels, vocab, stride;  // stride: C rounded up to a row of floats
  int hidden_stride, threads;
  float levels;
  bool hard, spike_embedding;
  bool dense;  // read every weight, as a dense engine would
  const int8_t *embedding;       // [V][C]
  const float *embedding_scale;  // [V]
  Norm ln0, ln_out;
  const Mix *mixes;  // [2 * layers]
  Site *head;
  // Of the tokens in the making, [kTokens][stride]; hidden [kTokens][hidden_stride].
  float *x, *normed, *k, *v, *r, *hidden;
};

// One product's non-zero events for one token, as one thread sees it; padded with zero events to whole steps.
struct Events {
  uint32_t *offset;  // of each input's row in a tile, bytes
  int8_t *value;
  int *begin;  // [groups + 1]
  int *sum;    // [groups] of values
};

struct Worker {
  int index;
  float *scratch;  // [max(stride, outputs of a tile)] for one token
  Events lists[3][kTokens];
  uint64_t listed[3];  // the section for which a slot of lists was made
};

struct Pass {
  const int64_t *ids;
  int tokens;
  float *state;
  float *logits;  // [tokens from `first_logits`][V]
  int first_logits;
};

// How threads share the sections; see Team::next.
struct Share {
  void *team;
  int (*next)(void *team, uint64_t section, int finished, int index);
};

// One instruction set's code.
struct Walk {
  const char *name;
  int (*place)(int output);  // output of a block -> position in it (two positions a byte with 4 bits: byte + 64 * high)
  // All sections of a pass, numbered from `first` on; returns the number of the last.
  uint64_t (*run)(Model &, Worker &, const Pass &, const Share &, uint64_t first);
};

}  // namespace spikegpt::engine
