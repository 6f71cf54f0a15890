#include "engine.h"

#include <algorithm>
#include <stdexcept>

#include "panels.h"

namespace spikegpt::engine {

namespace baseline {
extern const Walk walk;
}
#if defined(SPIKEGPT_X86)
namespace avx2 {
extern const Walk walk;
}
namespace avx512vnni {
extern const Walk walk;
}
#endif

std::vector<const Walk *> supported() {
  std::vector<const Walk *> walks;
#if defined(SPIKEGPT_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
    walks.push_back(&avx512vnni::walk);
  if (__builtin_cpu_supports("avx2")) walks.push_back(&avx2::walk);
#endif
  walks.push_back(&baseline::walk);
  return walks;
}

namespace {

const Walk *find(const std::string &name) {
  for (const Walk *walk : supported())
    if (name.empty() || name == walk->name) return walk;
  throw std::invalid_argument("this machine has no instruction set " + name);
}

std::size_t bytes_of(const Tensors &tensors) {
  std::size_t total = 0;
  for (const auto &[name, tensor] : tensors) {
    std::size_t count = 4;
    for (int64_t n : tensor.shape) count *= static_cast<std::size_t>(n);
    total += count;
  }
  return total;
}

}  // namespace

Engine::Engine(const Settings &settings, const Plan &plan, const Tensors &tensors)
    : settings_((plan.check(settings), settings)),
      tensors_(&tensors),
      walk_(find(settings.isa)),
      arena_(2 * bytes_of(tensors) + (std::size_t{64} << 20) * (1 + settings.threads) +
             sizeof(float) * kTokens * plan.sites.back().outputs),
      team_(settings.threads) {
  const int channels = settings.channels;
  model_.layers = static_cast<int>(plan.mixes.size() / 2);
  model_.channels = channels;
  model_.vocab = settings.vocab;
  model_.outputs = plan.sites.back().outputs;
  model_.threads = settings.threads;
  model_.range = {settings.levels, settings.smallest};
  model_.hard = settings.hard;
  model_.spike_embedding = settings.spike_embedding;
  const Tensor &embedding = tensor("emb.weight", Tensor::kInt8, {settings.vocab, channels});
  const std::size_t count = static_cast<std::size_t>(settings.vocab) * channels;
  int8_t *rows = arena_.take<int8_t>(count);
  std::memcpy(rows, embedding.data, count);
  model_.embedding = rows;
  model_.embedding_scale = floats("emb.scale", settings.vocab);
  model_.ln0 = norm("blocks.0.ln0");
  model_.ln_out = norm("ln_out");
  for (const SitePlan &site : plan.sites) add_site(site);
  for (const MixPlan &mix : plan.mixes) mixes_.push_back(add_mix(mix));
  model_.mixes = mixes_.data();
  model_.head = sites_.back().get();
  make_buffers();
  share_ = {&team_, [](void *team, uint64_t section, int finished, int index) {
              return static_cast<Team *>(team)->next(section, finished, index);
            }};
  tensors_ = nullptr;
}

const Tensor &Engine::tensor(const std::string &name, Tensor::Type type, const std::vector<int64_t> &shape) const {
  const auto found = tensors_->find(name);
  if (found == tensors_->end()) throw std::invalid_argument("there is no tensor " + name);
  if (found->second.type != type || found->second.shape != shape)
    throw std::invalid_argument("tensor " + name + " has another type or shape");
  return found->second;
}

const float *Engine::floats(const std::string &name, int64_t count) {
  const Tensor &from = tensor(name, Tensor::kFloat, {count});
  float *to = arena_.take<float>(round_up(static_cast<int>(count), 64));
  std::memcpy(to, from.data, sizeof(float) * count);
  return to;
}

Norm Engine::norm(const std::string &name) {
  return {floats(name + ".weight", settings_.channels), floats(name + ".bias", settings_.channels)};
}

void Engine::add_site(const SitePlan &plan) {
  const auto found = tensors_->find(plan.matrix + ".weight");
  if (found == tensors_->end()) throw std::invalid_argument("there is no tensor " + plan.matrix + ".weight");
  auto site = std::make_unique<Site>();
  site->inputs = plan.inputs;
  site->outputs = plan.outputs;
  site->bits = found->second.type == Tensor::kUint8 ? 4 : 8;
  site->offset = site->bits == 4 ? 8 : 128;
  site->is_signed = plan.is_signed;
  site->unit = *floats(plan.neuron + ".unit", 1);
  site->threshold = floats(plan.neuron + ".threshold", plan.inputs);
  site->membrane = plan.membrane;
  site->leak = plan.membrane < 0 ? nullptr : floats(plan.neuron + ".leak", plan.inputs);
  site->stride = round_up(plan.inputs, 64);
  site->events = arena_.take<int8_t>(static_cast<std::size_t>(kTokens) * site->stride);
  site->index = static_cast<int>(sites_.size());
  const int stored = site->bits == 4 ? divide_up(plan.outputs, 2) : plan.outputs;
  lay_out(*site, tensor(plan.matrix + ".weight", found->second.type, {plan.inputs, stored}), walk_->place,
          model_.threads, arena_);
  add_scales(*site, plan.matrix + ".scale");
  sites_.push_back(std::move(site));
  names_.push_back(plan.neuron);
}

// A scale for each output, or for each output and group of inputs, times the neuron's unit.
void Engine::add_scales(Site &site, const std::string &name) {
  const auto found = tensors_->find(name);
  if (found == tensors_->end() || found->second.shape.size() != 2)
    throw std::invalid_argument("there is no tensor " + name + " of two dimensions");
  const int64_t groups = found->second.shape[0];
  if (groups < 1 || groups > site.inputs)
    throw std::invalid_argument("tensor " + name + " has another number of groups");
  site.groups = static_cast<int>(groups);
  site.group_inputs = groups == 1 ? site.inputs : round_up(divide_up(site.inputs, site.groups), 64);
  if ((groups - 1) * site.group_inputs >= site.inputs)
    throw std::invalid_argument("tensor " + name + " has more groups than there are inputs for");
  const float *scales = static_cast<const float *>(tensor(name, Tensor::kFloat, {groups, site.outputs}).data);
  float *scaled = arena_.take<float>(static_cast<std::size_t>(groups) * site.padded);
  for (int64_t group = 0; group < groups; ++group)
    for (int o = 0; o < site.outputs; ++o)
      scaled[group * site.padded + o] = scales[group * site.outputs + o] * site.unit;
  site.scale = scaled;
}

Mix Engine::add_mix(const MixPlan &plan) {
  const int channels = settings_.channels;
  const auto site = [&](int index) { return sites_[static_cast<std::size_t>(index)].get(); };
  Mix mix{};
  mix.is_time = plan.is_time();
  mix.norm = norm(plan.norm);
  mix.shift = plan.shift;
  mix.mix_k = floats(plan.name + ".time_mix_k", channels);
  mix.mix_r = floats(plan.name + ".time_mix_r", channels);
  mix.key = site(plan.key);
  mix.value = site(plan.value);
  mix.receptance = site(plan.receptance);
  if (!mix.is_time) return mix;
  mix.output = site(plan.output);
  mix.wkv = plan.wkv;
  mix.mix_v = floats(plan.name + ".time_mix_v", channels);
  mix.decay = floats(plan.name + ".decay", channels);
  mix.first = floats(plan.name + ".time_first", channels);
  return mix;
}

void Engine::make_buffers() {
  int inputs = 0, groups = 0;
  model_.stride = round_up(model_.channels, 64);
  for (const auto &site : sites_) {
    inputs = std::max(inputs, site->stride);
    groups = std::max(groups, site->groups);
  }
  for (const Mix &mix : mixes_) {
    int &of_key = mix.is_time ? model_.stride : model_.hidden_stride;
    of_key = std::max(of_key, mix.key->padded);
    for (const Site *site : {mix.value, mix.receptance, mix.is_time ? mix.output : mix.value})
      model_.stride = std::max(model_.stride, site->padded);
  }
  for (float **buffer : {&model_.x, &model_.normed, &model_.k, &model_.v, &model_.r})
    *buffer = arena_.take<float>(static_cast<std::size_t>(kTokens) * model_.stride);
  model_.hidden = arena_.take<float>(static_cast<std::size_t>(kTokens) * model_.hidden_stride);
  logits_ = arena_.take<float>(static_cast<std::size_t>(kTokens) * model_.outputs);
  const std::size_t longest = inputs + 8 * groups;  // every group is padded to whole steps of the products
  for (int index = 0; index < model_.threads; ++index) {
    Worker worker{};
    worker.index = index;
    worker.scratch = arena_.take<float>(std::max(model_.stride, kPanelOutputs));
    for (auto &slot : worker.lists)
      for (Events &list : slot)
        list = {arena_.take<uint32_t>(longest), arena_.take<int8_t>(longest), arena_.take<int>(groups + 1),
                arena_.take<int>(groups)};
    workers_.push_back(worker);
  }
}

void Engine::pass(const Row *rows, int tokens, bool dense, Counts *counts) {
  pass_ = {rows, tokens, dense, counts};
  team_.run(
      [](void *context, int index, uint64_t first) {
        Engine &self = *static_cast<Engine *>(context);
        return self.walk_->run(self.model_, self.workers_[index], self.pass_, self.share_, first);
      },
      this);
}

void Engine::check(int64_t id) const {
  if (id < 0 || id >= model_.vocab)
    throw std::out_of_range("token " + std::to_string(id) + " is not in the vocabulary");
}

void Engine::run(const int64_t *ids, int64_t tokens, float *state, float *logits, bool only_last, bool dense,
                 Counts *counts) {
  for (int64_t i = 0; i < tokens; ++i) check(ids[i]);
  for (int64_t from = 0; from < tokens; from += kTokens) {
    const int now = static_cast<int>(std::min<int64_t>(kTokens, tokens - from));
    for (int t = 0; t < now; ++t) {
      const int64_t at = from + t;
      rows_[t] = {ids[at], state, nullptr};
      if (!only_last)
        rows_[t].logits = logits + at * model_.outputs;
      else if (at == tokens - 1)
        rows_[t].logits = logits;
    }
    pass(rows_, now, dense, counts);
  }
}

int64_t Engine::weight_bytes() const {
  int64_t total = 0;
  for (const auto &site : sites_)
    for (int p = 0; p < site->panels_of[model_.threads]; ++p)
      total += static_cast<int64_t>(site->inputs) * site->panels[p].stride;
  return total;
}

uint64_t Engine::read_weights() {
  weights_sum_ = 0;
  team_.run(
      [](void *context, int index, uint64_t section) {
        Engine &self = *static_cast<Engine *>(context);
        for (int part = -1; (part = self.team_.next(section, part, index)) >= 0;) self.read_part(part);
        return section;
      },
      this);
  return weights_sum_;
}

void Engine::read_part(int part) {
  uint64_t sums[8] = {};
  for (const auto &site : sites_) {
    for (int p = site->panels_of[part]; p < site->panels_of[part + 1]; ++p) {
      const uint64_t *words = reinterpret_cast<const uint64_t *>(site->panels[p].weights);
      const int64_t end = static_cast<int64_t>(site->inputs) * site->panels[p].stride / 8;
      for (int64_t i = 0; i < end; i += 8)
        for (int lane = 0; lane < 8; ++lane) sums[lane] += words[i + lane];
    }
  }
  for (uint64_t sum : sums) weights_sum_ += sum;
}

}  // namespace spikegpt::engine
