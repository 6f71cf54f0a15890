// The model of the engine whose norms, averages and gates are float32.
#pragma once

#include "model.h"

namespace spikegpt::engine {

struct FloatSite : Site {
  const float *scale;      // [padded], times the neuron's unit
  const uint8_t *steps;    // [group][padded]: what the scale is multiplied by in each group of inputs; null: one group
  const float *leak;       // [inputs], or null: no memory
  float threshold, unit;
  int64_t membrane;  // where the state keeps it, or -1
};

struct FloatNorm {
  const float *gain, *bias;
};

struct FloatParts {
  using Value = float;
  using Site = FloatSite;
  using Norm = FloatNorm;
  using Mixing = const float *;
};

// Sizes of the events: the largest, and the smallest that is sent.
struct Range {
  float levels, smallest;
};

struct FloatModel : ModelOf<FloatParts> {
  Range range;
  bool hard;
  const float *embedding_scale;  // [V]
};

using FloatWalk = WalkOf<FloatModel>;

}  // namespace spikegpt::engine
