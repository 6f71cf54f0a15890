#include "engine.h"

namespace spikegpt::engine::fixed {

#define SPIKEGPT_DECLARE(isa) \
  namespace isa {             \
  extern const Walk walk;     \
  }
#define SPIKEGPT_ADDRESS(isa) &isa::walk,

SPIKEGPT_EACH_ISA(SPIKEGPT_DECLARE)

namespace {

const Walk *const kWalks[] = {SPIKEGPT_EACH_ISA(SPIKEGPT_ADDRESS)};

int log2_of(int count) {
  int bits = 0;
  while (1 << (bits + 1) <= count) ++bits;
  return bits;
}

int number(const Numbers &formats, const std::string &name) {
  const auto found = formats.find(name);
  if (found == formats.end()) throw std::invalid_argument("there is no number " + name);
  return static_cast<int>(found->second);
}

int top(const Numbers &formats, const std::string &name) { return (1 << (number(formats, name + ".width") - 1)) - 1; }

}  // namespace

Engine::Engine(const Settings &settings, const Plan &plan, const Tensors &tensors, const Numbers &formats)
    : Base(settings, plan, tensors, kWalks),
      loops_(loops_of(this->isa())),
      logit_unit_(1.0f / static_cast<float>(1 << number(formats, "logit.fraction"))),
      scores_(plan.sites.back().outputs) {
  if (settings.channels > 1 << 16) throw std::invalid_argument("more than 65536 channels");
  model_.embedding_mean = values("emb.mean", settings.vocab);
  model_.embedding_multiplier = values("emb.multiplier", settings.vocab);
  model_.arithmetic = arithmetic(formats);
  build(*this, plan);
}

const float *Engine::scores(int token) {
  score(logits_row(token), scores_.size(), scores_.data());
  return scores_.data();
}

void Engine::score(const int32_t *logits, std::size_t count, float *scores) const {
  loops_.scale(logits, static_cast<int64_t>(count), logit_unit_, scores);
}

Norm Engine::norm(const std::string &name) {
  return {values(name + ".gain", model_.channels), values(name + ".bias", model_.channels), integer(name + ".shift")};
}

Mixing Engine::mixing(const std::string &name) {
  return {values(name + ".multiplier", model_.channels), integer(name + ".shift")};
}

void Engine::finish(Site &site, const SitePlan &plan) {
  const int32_t *event = values(plan.matrix + ".event", 3);
  site.event_multiplier = event[0];
  site.event_offset = event[1];
  site.event_shift = event[2];
  site.square = integer(plan.matrix + ".square");
  site.multiplier = by_group(site, plan.matrix + ".multiplier");
  site.shift = integer(plan.matrix + ".shift");
  site.top = integer(plan.matrix + ".top");
}

Table Engine::table(const std::string &name, int count) {
  const int32_t *entries = values(name, count);
  uint16_t *narrow = take<uint16_t>(kNarrowTable);
  std::copy_n(entries, std::min(count, kNarrowTable), narrow);
  return {entries, narrow, count};
}

Arithmetic Engine::arithmetic(const Numbers &formats) {
  const int exp = number(formats, "exp_entries"), sigmoid = number(formats, "sigmoid_entries");
  const int rsqrt = number(formats, "rsqrt_entries"), reciprocal = number(formats, "reciprocal_entries");
  Arithmetic a{};
  a.exp = table("table.exp", exp);
  a.sigmoid = table("table.sigmoid", sigmoid);
  a.rsqrt = table("table.rsqrt", rsqrt);
  a.reciprocal = table("table.reciprocal", reciprocal);
  a.exponent_fraction = number(formats, "exponent.fraction");
  a.gate_fraction = number(formats, "gate.fraction");
  a.norm_fraction = number(formats, "norm.fraction");
  a.output_fraction = number(formats, "output.fraction");
  a.exp_shift = a.exponent_fraction - log2_of(exp);
  a.sigmoid_shift = a.gate_fraction + 4 - log2_of(sigmoid);
  a.rsqrt_quarter = rsqrt / 3;
  a.reciprocal_shift = 15 - log2_of(reciprocal);
  a.table_bits = number(formats, "table_bits");
  a.residual_top = top(formats, "residual");
  a.norm_top = top(formats, "norm");
  a.output_top = top(formats, "output");
  a.exponent_top = top(formats, "exponent");
  a.numerator_top = top(formats, "numerator");
  a.key_shift = a.exponent_fraction - number(formats, "key.fraction");
  a.value_shift = number(formats, "numerator.fraction") - number(formats, "value.fraction");
  a.one = 1 << number(formats, "denominator.fraction");
  a.mean = integer("mean");
  a.epsilon = integer("epsilon");
  a.embedding_fraction = number(formats, "embedding_fraction");
  a.embedding_shift = integer("emb.shift") + a.embedding_fraction - a.norm_fraction;
  a.residual_shift = a.norm_fraction - number(formats, "residual.fraction");
  return a;
}

}  // namespace spikegpt::engine::fixed
