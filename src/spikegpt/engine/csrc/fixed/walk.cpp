// The pass through the integers-only model, built for one instruction set.
#include "elementwise.h"

#include "../walker.h"

SPIKEGPT_DEFINE_WALK(spikegpt::engine::fixed)
