// The operators along time and the fused passes around them, one table of functions per instruction set.
// Every tensor is contiguous: Values and Results float32 or bfloat16, the others float32. Computed in float32.
// Shapes: B batch, T time, C channels; N = saved(T) checkpoints of the state.
// Included by translation units built with different instruction sets: plain data only, no inline functions.
#pragma once

#include <cstdint>

namespace spikegpt {

// Channels that are walked through time together: a few registers' worth, so that the history of one chunk fits in L1 and L2.
constexpr int kBlock = 64;
// Steps between two checkpoints; the backward pass replays one chunk at a time from them.
constexpr int kChunk = 32;
// Elements per work item where the shape does not matter.
constexpr int kFlat = 4096;
// Target of a row that does not count.
constexpr int64_t kIgnored = -100;
// Elements done together where nothing is walked through time.
constexpr int kRow = 256;

struct Values {
  const void *data;
  bool half;  // bfloat16
};

struct Results {
  void *data;
  bool half;
};

struct Shape {
  int64_t batch, time, channels;
};

struct Wkv {
  Shape shape;
  const float *decay, *first;  // [C]
  Values k, v;                 // [B, T, C]
  Values gate;                 // [B, T, C], or no data: y is then not multiplied by sigmoid(gate)
  const float *state;          // [B, 3, C]: numerator, denominator, max exponent
};

struct WkvForward {
  Wkv in;
  Results y;           // [B, T, C]
  float *state;        // [B, 3, C]
  float *checkpoints;  // [B, N, 3, C]
};

struct WkvBackward {
  Wkv in;
  const float *checkpoints;
  Values grad_y;
  const float *grad_state;
  float *grad_decay, *grad_first;  // [B, C], to be summed over B
  Results grad_k, grad_v, grad_gate;
  float *grad_state_in;
};

struct LifSettings {
  float tau, threshold, alpha;
};

struct LifForward {
  Shape shape;
  LifSettings set;
  Values x;                      // [B, T, C]
  const float *membrane;         // [B, C]
  const float *residual;         // [B, T, C], added to the spikes, or null
  float *spikes, *membrane_out;  // [B, T, C], [B, C]
  float *checkpoints;            // [B, N, C]
};

struct LifBackward {
  Shape shape;
  LifSettings set;
  Values x;
  const float *membrane, *checkpoints;
  const float *grad_spikes, *grad_membrane;
  Results grad_x;
  float *grad_membrane_in;
};

struct EventSettings {
  float levels, smallest, window;
  bool is_signed, hard;
  const float *threshold, *unit;  // [C]
};

struct EventForward {
  Shape shape;
  EventSettings set;
  Values x;                      // [B, T, C]
  const float *leak, *membrane;  // [C], [B, C]
  Results events;                // [B, T, C]
  float *membrane_out;           // [B, C]
  float *checkpoints;            // [B, N, C]
};

struct EventBackward {
  Shape shape;
  EventSettings set;
  Values x;
  const float *leak, *membrane, *checkpoints;
  Values grad_events;
  const float *grad_membrane;
  Results grad_x;
  float *grad_leak, *grad_membrane_in;  // [B, C] to be summed over B, [B, C]
};

// Events without a membrane: rows of C channels, independent of each other.
struct PointEvent {
  int64_t channels;
  EventSettings set;
  Values x;         // [rows, C]
  Results events;   // [rows, C]
  uint8_t *passes;  // [rows, C], 1 where the gradient passes; null: nobody asks
};

// All that the gradient needs of the input is kept in a byte.
struct PointEventBackward {
  int64_t channels;
  const float *unit;      // [C]
  const uint8_t *passes;  // [rows, C]
  Values grad_events;     // [rows, C]
  Results grad_x;         // [rows, C]
};

// How many events of every row are not 0, and how many are the largest.
struct Tally {
  int64_t channels, stride;  // of a row, from row to row
  float levels;
  Values events;
  int32_t *counts;  // [rows, 2]
};

// Token shift and up to kMixes mixes.
constexpr int kMixes = 3;

struct ShiftMix {
  Shape shape;
  int count;
  const float *x, *last;       // [B, T, C], [B, C]
  const float *mixes[kMixes];  // [C]
};

struct ShiftMixForward {
  ShiftMix in;
  Results y[kMixes];  // [B, T, C]
};

struct ShiftMixBackward {
  ShiftMix in;
  Values grad_y[kMixes];
  float *grad_x, *grad_last;
  float *grad_mixes;  // [B * chunks, count, C], one for every kChunk tokens, to be summed
};

// y = max(x, 0)^2; grad_y only backward, where `out` is grad_x.
struct ReluSquared {
  int64_t elements;
  Values x, grad_y;
  Results out;
};

// y = sigmoid(gate) x
struct GateForward {
  int64_t elements;
  Values gate, x;
  Results y;
};

struct GateBackward {
  int64_t elements;
  Values gate, x, grad_y;
  Results grad_gate, grad_x;
};

// y = x / (1 - p), or 0 where a hash of the position and the seed falls below p. Its own gradient.
struct Dropout {
  int64_t elements;
  float p;
  const int64_t *seed;  // [1]
  Values x;
  Results y;
};

// Rows whose target is kIgnored get a loss and a gradient of 0; every other target is 0 to classes - 1.
struct CrossEntropyForward {
  int64_t classes;
  Values logits;                         // [rows, classes]
  const int64_t *targets;                // [rows]
  float *losses, *log_totals, *largest;  // [rows]
  int64_t *where;                        // [rows], of the largest
};

struct CrossEntropyBackward {
  int64_t classes;
  float penalty;
  Values logits;
  const int64_t *targets;
  const float *log_totals, *largest;
  const int64_t *where;
  const float *grad_losses;  // [rows]
  Results grad;
};

// Kullback-Leibler divergence of softmax(logits) from softmax(teacher), row by row.
struct DivergenceForward {
  int64_t classes;
  Values logits, teacher;                                // [rows, classes]
  float *divergences, *log_totals, *teacher_log_totals;  // [rows]
};

struct DivergenceBackward {
  int64_t classes;
  Values logits, teacher;
  const float *log_totals, *teacher_log_totals, *grad_divergences;
  Results grad;
};

// A few vectors times a matrix.
struct Matvec {
  int64_t rows, inputs, outputs;
  const float *x, *weight;  // [rows, inputs], [outputs, inputs]
  float *y;                 // [rows, outputs]
};

// Each function does the items begin..end: (batch, block of channels) pairs; (batch, chunk of tokens) pairs for
// ShiftMixBackward; rows for PointEvent, PointEventBackward, Tally, ShiftMixForward, CrossEntropy and Divergence; kFlat elements for
// ReluSquared, Gate and Dropout; outputs for Matvec.
struct Kernels {
  const char *name;
  void (*wkv_forward)(const WkvForward &, int64_t begin, int64_t end);
  void (*wkv_backward)(const WkvBackward &, int64_t begin, int64_t end);
  void (*lif_forward)(const LifForward &, int64_t begin, int64_t end);
  void (*lif_backward)(const LifBackward &, int64_t begin, int64_t end);
  void (*event_forward)(const EventForward &, int64_t begin, int64_t end);
  void (*event_backward)(const EventBackward &, int64_t begin, int64_t end);
  void (*point_event_forward)(const PointEvent &, int64_t begin, int64_t end);
  void (*point_event_backward)(const PointEventBackward &, int64_t begin, int64_t end);
  void (*tally)(const Tally &, int64_t begin, int64_t end);
  void (*shift_mix_forward)(const ShiftMixForward &, int64_t begin, int64_t end);
  void (*shift_mix_backward)(const ShiftMixBackward &, int64_t begin, int64_t end);
  void (*relu_squared_forward)(const ReluSquared &, int64_t begin, int64_t end);
  void (*relu_squared_backward)(const ReluSquared &, int64_t begin, int64_t end);
  void (*gate_forward)(const GateForward &, int64_t begin, int64_t end);
  void (*gate_backward)(const GateBackward &, int64_t begin, int64_t end);
  void (*dropout)(const Dropout &, int64_t begin, int64_t end);
  void (*cross_entropy_forward)(const CrossEntropyForward &, int64_t begin, int64_t end);
  void (*cross_entropy_backward)(const CrossEntropyBackward &, int64_t begin, int64_t end);
  void (*divergence_forward)(const DivergenceForward &, int64_t begin, int64_t end);
  void (*divergence_backward)(const DivergenceBackward &, int64_t begin, int64_t end);
  void (*matvec)(const Matvec &, int64_t begin, int64_t end);
};

}  // namespace spikegpt
