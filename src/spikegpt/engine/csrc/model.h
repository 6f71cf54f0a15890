// A model as plain data, shared by translation units built for different instruction sets: no inline functions. What the
// engine with float32 between its products (floats.h) and that with integers only (fixed/model.h) have in common; `Value` is
// float or int32_t. C channels, V vocabulary, T tokens of one pass. Every row of values begins at a multiple of 64 bytes.
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

// A matrix, and where the event neuron in front of it puts its events; each engine adds the neuron's numbers and the scales.
// Weights are unsigned, offset by `offset` (128 or 8); a sum over events n is corrected by -offset * sum(n). The order of
// outputs within a block is the instruction set's own (`WalkOf::place`).
struct Site {
  int inputs, outputs;
  int groups, group_inputs;  // inputs that share a scale
  int bits, offset;
  const Panel *panels;
  const int *panels_of;  // [parts + 1] where the panels of each part begin
  int runs;              // equal parts of the outputs of which a thread owns the same channels, side by side in its rows
  int padded;            // outputs, in whole blocks of each run
  const int *order;      // [padded] the output at each place, a part's runs after one another; -1: padding
  bool is_signed;
  int8_t *events;  // [kTokens][stride], the neuron's output
  int stride;
  int index;  // among all sites, in the order they run
};

// A time mix (sites key, value, receptance, output) or a channel mix (key, receptance, value; no mix_v, decay, first). Where
// key, value and receptance read the same events they are the runs of `input`, and mix_k is the only token shift.
// `Parts` says what an engine is made of: its Value, Site, Norm and Mixing (a token shift's weights).
template <class Parts>
struct MixOf {
  bool is_time;
  typename Parts::Norm norm;
  int64_t shift, wkv;  // where the state keeps them
  typename Parts::Mixing mix_k, mix_v, mix_r;
  const typename Parts::Value *decay, *first;  // [C]
  typename Parts::Site *key, *value, *receptance, *output, *input;
};

template <class Parts>
struct ModelOf : Parts {
  using Value = typename Parts::Value;
  using Mix = MixOf<Parts>;

  int layers, channels, vocab, outputs, stride;  // outputs: rows of the head; stride: C rounded up to a row of values
  int hidden_stride, input_stride, threads;
  int levels, smallest;  // of the events sent
  bool spike_embedding;
  const int8_t *embedding;  // [V][C]
  typename Parts::Norm ln0, ln_out;
  const Mix *mixes;  // [2 * layers]
  typename Parts::Site *head;
  // Of the tokens in the making, [kTokens][stride]; hidden [kTokens][hidden_stride], input [kTokens][input_stride].
  Value *x, *normed, *k, *v, *r, *hidden, *input;
};

// A run of channels, or of other values of a row.
struct Channels {
  int begin, end;
};

// One product's non-zero events for one token, as one thread sees it; padded with zero events to whole steps.
struct Events {
  uint32_t *input;
  int8_t *value;
  int *begin;  // [groups + 1]
  int *sum;    // [groups] of values
};

template <class Value>
struct alignas(128) WorkerOf {
  int index;
  Value *scratch;   // [max(stride, kPanelOutputs)] for one token
  int32_t *totals;  // [max(stride, kPanelOutputs)] for one token: what a product's groups of inputs came to so far
  Events lists[3][kTokens];
  uint64_t listed[3];  // the section for which a slot of lists was made
};

// One token of a pass. Tokens of one text follow one another and share its state; other texts may stand beside it.
template <class Value>
struct RowOf {
  int64_t id;
  Value *state;
  Value *logits;  // [V] after this token, or null: not wanted
};

template <class Value>
struct PassOf {
  const RowOf<Value> *rows;
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
template <class Model>
struct WalkOf {
  using Value = typename Model::Value;

  const char *name;
  int (*place)(int output);  // output of a block -> position in it (two positions a byte with 4 bits: byte + 64 * high)
  // All sections of a pass, numbered from `first` on; returns the number of the last.
  uint64_t (*run)(Model &, WorkerOf<Value> &, const PassOf<Value> &, const Share &, uint64_t first);
  // Sum of the words of whole lines of 64 bytes, read as fast as this unit's instructions can.
  uint64_t (*read)(const uint8_t *lines, int64_t bytes);
};

}  // namespace spikegpt::engine
