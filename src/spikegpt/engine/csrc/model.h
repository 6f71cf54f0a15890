// The engine's model as plain data, shared by translation units built for different instruction sets: no inline functions.
// C channels, V vocabulary, T tokens of one pass. Every row of floats begins at a multiple of 64 bytes.
#pragma once

#include <cstdint>

namespace spikegpt::engine {

// Most tokens computed together: they share each weight while it is in the cache.
constexpr int kTokens = 32;
// Outputs a block of 64 bytes holds, by width of the weights.
constexpr int outputs_per_block(int bits) { return bits == 4 ? 128 : 64; }

// Most outputs of a panel, so that their sums stay in the L1 cache.
constexpr int kPanelOutputs = 4096;

// The weights of a run of outputs, as [input][stride bytes]: the bytes of a row that are read for them are contiguous, since
// memory is faster in long runs. The stride is no large power of 2, so that rows do not compete for the same cache sets.
struct Panel {
  int begin, blocks;  // first output; blocks of 64 bytes
  int stride;
  const uint8_t *weights;
};

// What one call counts of a site while running. One thread writes it.
struct alignas(128) Counts {
  int64_t steps, active, units, saturated;
  int64_t *fired;  // [inputs], or null: not counted
};

// A matrix and the event neuron in front of it.
// Weights are unsigned, offset by `offset` (128 or 8); a sum over events n is corrected by -offset * sum(n). The order of
// outputs within a block is the instruction set's own (`Walk::place`).
struct Site {
  int inputs, outputs;
  int groups, group_inputs;  // inputs that share a scale
  int bits, offset;
  const Panel *panels;
  const int *panels_of;    // [parts + 1] where the panels of each part begin
  const float *scale;      // [group][padded], times the neuron's unit
  int padded;              // outputs, in whole blocks
  const float *threshold;  // [inputs]
  const float *leak;       // [inputs], or null: no memory
  float unit;
  bool is_signed;
  int64_t membrane;  // where the state keeps it, or -1
  int8_t *events;    // [kTokens][stride], the neuron's output
  int stride;
  int index;  // among all sites, in the order they run
};

// Sizes of the events: the largest, and the smallest that is sent.
struct Range {
  float levels, smallest;
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
  int layers, channels, vocab, outputs, stride;  // outputs: rows of the head; stride: C rounded up to a row of floats
  int hidden_stride, threads;
  Range range;
  bool hard, spike_embedding;
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
  uint32_t *input;
  int8_t *value;
  int *begin;  // [groups + 1]
  int *sum;    // [groups] of values
};

struct alignas(128) Worker {
  int index;
  float *scratch;  // [max(stride, kPanelOutputs)] for one token
  Events lists[3][kTokens];
  uint64_t listed[3];  // the section for which a slot of lists was made
};

// One token of a pass. Tokens of one text follow one another and share its state; other texts may stand beside it.
struct Row {
  int64_t id;
  float *state;
  float *logits;  // [V] after this token, or null: not wanted
};

struct Pass {
  const Row *rows;
  int tokens;
  bool dense;      // read every weight, as a dense engine would
  Counts *counts;  // [sites], or null: nothing is counted
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
