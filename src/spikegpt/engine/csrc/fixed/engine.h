// The integers-only engine.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "../base.h"
#include "../sample.h"
#include "model.h"

namespace spikegpt::engine::fixed {

using Numbers = std::map<std::string, int64_t>;

class Engine : public Base<Model> {
 public:
  // `formats`: widths and fractions of the formats, sizes of the tables. Throws invalid_argument where something is missing
  // or of another shape.
  Engine(const Settings &settings, const Plan &plan, const Tensors &tensors, const Numbers &formats);

  // The logits of a token in `logits_row`, as a sampler reads them; the same of any logits.
  const float *scores(int token);
  void score(const int32_t *logits, std::size_t count, float *scores) const;

 private:
  friend class Base<Model>;

  Norm norm(const std::string &name);
  Mixing mixing(const std::string &name);
  void finish(Site &site, const SitePlan &plan);
  Table table(const std::string &name, int count);
  int32_t integer(const std::string &name) { return *values(name, 1); }
  Arithmetic arithmetic(const Numbers &formats);

  const SampleLoops &loops_;
  float logit_unit_;
  std::vector<float> scores_;
};

}  // namespace spikegpt::engine::fixed
