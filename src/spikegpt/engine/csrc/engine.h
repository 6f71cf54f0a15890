// The engine whose norms, averages and gates are float32.
#pragma once

#include <string>

#include "base.h"
#include "floats.h"

namespace spikegpt::engine {

class Engine : public Base<FloatModel> {
 public:
  // Throws std::invalid_argument where plan, settings and tensors do not fit each other. Values are not looked at.
  Engine(const Settings &settings, const Plan &plan, const Tensors &tensors);

  // The logits of a token in `logits_row`, as a sampler reads them; the same of any logits.
  const float *scores(int token) { return logits_row(token); }
  void score(const float *logits, std::size_t count, float *scores) const { std::copy_n(logits, count, scores); }

 private:
  friend class Base<FloatModel>;

  FloatNorm norm(const std::string &name);
  const float *mixing(const std::string &name) { return values(name, model_.channels); }
  void finish(FloatSite &site, const SitePlan &plan);
};

}  // namespace spikegpt::engine
