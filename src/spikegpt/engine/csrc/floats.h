// The model of the engine whose norms, averages and gates are float32.
#pragma once

#include "model.h"

namespace spikegpt::engine {

struct FloatSite : Site {
  const float *scale;      // [group][padded], times the neuron's unit
  const float *threshold;  // [inputs]
  const float *leak;       // [inputs], or null: no memory
  float unit;
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
