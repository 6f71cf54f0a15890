// Weights laid out for an instruction set and a number of parts.
#pragma once

#include "arena.h"
#include "model.h"
#include "tensor.h"

namespace spikegpt::engine {

inline int divide_up(int a, int b) { return (a + b - 1) / b; }
inline int round_up(int a, int b) { return divide_up(a, b) * b; }

using Place = int (*)(int output);  // as in Walk

// Fills `site.panels`, `panels_of`, `padded` and `order`, of whose shape inputs, outputs, runs and bits are known.
void lay_out(Site &site, const Tensor &weights, Place place, int parts, Arena &arena);

}  // namespace spikegpt::engine
