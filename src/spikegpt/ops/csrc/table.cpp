// The table of one instruction set's kernels.
#include "lanes.h"

namespace spikegpt::SPIKEGPT_ISA {

void wkv_forward(const WkvForward &, int64_t, int64_t);
void wkv_backward(const WkvBackward &, int64_t, int64_t);
void lif_forward(const LifForward &, int64_t, int64_t);
void lif_backward(const LifBackward &, int64_t, int64_t);
void event_forward(const EventForward &, int64_t, int64_t);
void event_backward(const EventBackward &, int64_t, int64_t);
void point_event_forward(const PointEvent &, int64_t, int64_t);
void point_event_backward(const PointEventBackward &, int64_t, int64_t);
void tally(const Tally &, int64_t, int64_t);
void shift_mix_forward(const ShiftMixForward &, int64_t, int64_t);
void shift_mix_backward(const ShiftMixBackward &, int64_t, int64_t);
void relu_squared_forward(const ReluSquared &, int64_t, int64_t);
void relu_squared_backward(const ReluSquared &, int64_t, int64_t);
void gate_forward(const GateForward &, int64_t, int64_t);
void gate_backward(const GateBackward &, int64_t, int64_t);
void dropout(const Dropout &, int64_t, int64_t);
void cross_entropy_forward(const CrossEntropyForward &, int64_t, int64_t);
void cross_entropy_backward(const CrossEntropyBackward &, int64_t, int64_t);
void divergence_forward(const DivergenceForward &, int64_t, int64_t);
void divergence_backward(const DivergenceBackward &, int64_t, int64_t);
void matvec(const Matvec &, int64_t, int64_t);

#define SPIKEGPT_QUOTE(name) #name
#define SPIKEGPT_STRING(name) SPIKEGPT_QUOTE(name)

extern const Kernels kernels;
const Kernels kernels = {
    SPIKEGPT_STRING(SPIKEGPT_ISA),
    wkv_forward,
    wkv_backward,
    lif_forward,
    lif_backward,
    event_forward,
    event_backward,
    point_event_forward,
    point_event_backward,
    tally,
    shift_mix_forward,
    shift_mix_backward,
    relu_squared_forward,
    relu_squared_backward,
    gate_forward,
    gate_backward,
    dropout,
    cross_entropy_forward,
    cross_entropy_backward,
    divergence_forward,
    divergence_backward,
    matvec,
};

}  // namespace spikegpt::SPIKEGPT_ISA
