// The operators along time, one table of functions per instruction set.
// Every tensor is contiguous float32. Shapes: B batch, T time, C channels; N = saved(T) checkpoints of the state.
// Included by translation units built with different instruction sets: plain data only, no inline functions.
#pragma once

#include <cstdint>

namespace spikegpt {

// Channels that are walked through time together: a few registers' worth, whose history of one chunk fits in L1 and L2.
constexpr int kBlock = 64;
// Steps between two checkpoints; the backward pass replays one chunk at a time from them.
constexpr int kChunk = 32;

struct Shape {
  int64_t batch, time, channels;
};

struct Wkv {
  Shape shape;
  const float *decay, *first;  // [C]
  const float *k, *v;          // [B, T, C]
  const float *state;          // [B, 3, C]: numerator, denominator, max exponent
};

struct WkvForward {
  Wkv in;
  float *y;            // [B, T, C]
  float *state;        // [B, 3, C]
  float *checkpoints;  // [B, N, 3, C]
};

struct WkvBackward {
  Wkv in;
  const float *checkpoints;
  const float *grad_y, *grad_state;
  float *grad_decay, *grad_first;  // [B, C], to be summed over B
  float *grad_k, *grad_v, *grad_state_in;
};

struct LifSettings {
  float tau, threshold, alpha;
};

struct LifForward {
  Shape shape;
  LifSettings set;
  const float *x, *membrane;       // [B, T, C], [B, C]
  float *spikes, *membrane_out;    // [B, T, C], [B, C]
  float *checkpoints;              // [B, N, C]
};

struct LifBackward {
  Shape shape;
  LifSettings set;
  const float *x, *membrane, *checkpoints;
  const float *grad_spikes, *grad_membrane;
  float *grad_x, *grad_membrane_in;
};

struct EventSettings {
  float levels, window;
  bool is_signed, hard;
  const float *threshold, *unit;  // [C]
};

struct EventForward {
  Shape shape;
  EventSettings set;
  const float *x, *leak, *membrane;  // [B, T, C], [C], [B, C]
  float *events, *membrane_out;      // [B, T, C], [B, C]
  float *checkpoints;                // [B, N, C]
};

struct EventBackward {
  Shape shape;
  EventSettings set;
  const float *x, *leak, *membrane, *checkpoints;
  const float *grad_events, *grad_membrane;
  float *grad_x, *grad_leak, *grad_membrane_in;  // [B, T, C], [B, C] to be summed over B, [B, C]
};

// Events without a membrane: rows of C channels, independent of each other.
struct PointEvent {
  int64_t channels;
  EventSettings set;
  const float *x, *grad_events;  // [rows, C]; grad_events only backward
  float *out;                    // events or grad_x
};

// A few vectors times a matrix.
struct Matvec {
  int64_t rows, inputs, outputs;
  const float *x, *weight;  // [rows, inputs], [outputs, inputs]
  float *y;                 // [rows, outputs]
};

// Each function does the items begin..end: (batch, block of channels) pairs, rows for PointEvent,
// outputs for Matvec.
struct Kernels {
  const char *name;
  void (*wkv_forward)(const WkvForward &, int64_t begin, int64_t end);
  void (*wkv_backward)(const WkvBackward &, int64_t begin, int64_t end);
  void (*lif_forward)(const LifForward &, int64_t begin, int64_t end);
  void (*lif_backward)(const LifBackward &, int64_t begin, int64_t end);
  void (*event_forward)(const EventForward &, int64_t begin, int64_t end);
  void (*event_backward)(const EventBackward &, int64_t begin, int64_t end);
  void (*point_event_forward)(const PointEvent &, int64_t begin, int64_t end);
  void (*point_event_backward)(const PointEvent &, int64_t begin, int64_t end);
  void (*matvec)(const Matvec &, int64_t begin, int64_t end);
};

}  // namespace spikegpt
