// The pass through the model whose norms, averages and gates are float32, built for one instruction set.
#include "elementwise.h"
#include "walker.h"

SPIKEGPT_DEFINE_WALK(spikegpt::engine)
