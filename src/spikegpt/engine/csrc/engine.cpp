#include "engine.h"

namespace spikegpt::engine {

#define SPIKEGPT_DECLARE(isa) \
  namespace isa {             \
  extern const FloatWalk walk; \
  }
#define SPIKEGPT_ADDRESS(isa) &isa::walk,

SPIKEGPT_EACH_ISA(SPIKEGPT_DECLARE)

namespace {

const FloatWalk *const kWalks[] = {SPIKEGPT_EACH_ISA(SPIKEGPT_ADDRESS)};

}  // namespace

Engine::Engine(const Settings &settings, const Plan &plan, const Tensors &tensors)
    : Base(settings, plan, tensors, kWalks) {
  model_.range = {static_cast<float>(settings.levels), static_cast<float>(settings.smallest)};
  model_.hard = settings.hard;
  model_.embedding_scale = values("emb.scale", settings.vocab);
  build(*this, plan);
}

FloatNorm Engine::norm(const std::string &name) {
  return {values(name + ".weight", model_.channels), values(name + ".bias", model_.channels)};
}

void Engine::finish(FloatSite &site, const SitePlan &plan) {
  site.unit = *values(plan.neuron + ".unit", 1);
  site.threshold = *values(plan.neuron + ".threshold", 1);
  site.membrane = plan.membrane;
  site.leak = plan.membrane < 0 ? nullptr : values(plan.neuron + ".leak", plan.inputs);
  float *scale = by_group(site, plan.matrix + ".scale");
  if (site.groups != 1) throw std::invalid_argument("tensor " + plan.matrix + ".scale has more than one row");
  for (int i = 0; i < site.padded; ++i) scale[i] *= site.unit;
  site.scale = scale;
  const std::string steps = plan.matrix + ".steps";
  site.steps = has(steps) ? by_group<uint8_t>(site, steps, Tensor::kUint8) : nullptr;
}

}  // namespace spikegpt::engine
