// What both engines are: a model laid out for this machine and this number of threads, and the team that runs it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "arena.h"
#include "isa.h"
#include "model.h"
#include "panels.h"
#include "plan.h"
#include "team.h"
#include "tensor.h"

namespace spikegpt::engine {

// `Model` is a ModelOf. An engine derives from this, and its constructor calls `build(*this, plan)`, which asks it for
//   Norm norm(name), Mixing mixing(name): the numbers of a layer norm and of a token shift, and
//   void finish(site, plan): adds what only its kind of sites has.
template <class Model>
class Base {
 public:
  using Value = typename Model::Value;
  using Site = typename Model::Site;
  using Mix = typename Model::Mix;
  using Walk = WalkOf<Model>;
  using Row = RowOf<Value>;

  Base(const Base &) = delete;
  Base &operator=(const Base &) = delete;

  // Up to kTokens tokens. States are changed in place; `counts` [sites] or null.
  void pass(const Row *rows, int tokens, bool dense, Counts *counts) {
    pass_ = {rows, tokens, dense, counts};
    team_.run(
        [](void *context, int index, uint64_t first) {
          Base &self = *static_cast<Base *>(context);
          return self.walk_->run(self.model_, self.workers_[index], self.pass_, self.share_, first);
        },
        this);
  }

  // One text: ids [tokens], state (changed in place), logits [tokens or, if only the last are wanted, 1][V].
  void run(const int64_t *ids, int64_t tokens, Value *state, Value *logits, bool only_last, bool dense,
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

  // Throws std::out_of_range for a token outside the vocabulary.
  void check(int64_t id) const {
    if (id < 0 || id >= model_.vocab)
      throw std::out_of_range("token " + std::to_string(id) + " is not in the vocabulary");
  }

  // Reads every weight once, in order, with all threads, to measure the memory's bandwidth. Returns their sum, so that
  // the reads are not optimised away.
  uint64_t read_weights() {
    weights_sum_ = 0;
    team_.run(
        [](void *context, int index, uint64_t section) {
          Base &self = *static_cast<Base *>(context);
          for (int part = -1; (part = self.team_.next(section, part, index)) >= 0;) self.read_part(part);
          return section;
        },
        this);
    return weights_sum_;
  }

  int64_t weight_bytes() const {
    int64_t total = 0;
    for (const auto &site : sites_)
      for (int p = 0; p < site->panels_of[model_.threads]; ++p)
        total += static_cast<int64_t>(site->inputs) * site->panels[p].stride;
    return total;
  }

  const char *isa() const { return walk_->name; }
  int threads() const { return model_.threads; }
  int vocab() const { return model_.vocab; }
  int outputs() const { return model_.outputs; }  // rows of the head: V, or a classifier's labels
  int64_t state_size() const { return state_size_; }
  const std::vector<std::string> &names() const { return names_; }
  const Site &site(std::size_t index) const { return *sites_[index]; }
  std::size_t sites() const { return sites_.size(); }
  // For callers that keep no logits.
  Value *logits_row(int token) { return logits_ + static_cast<int64_t>(token) * model_.outputs; }

 protected:
  static constexpr Tensor::Type kType = std::is_same_v<Value, float> ? Tensor::kFloat : Tensor::kInt32;

  // Throws std::invalid_argument where plan, settings and tensors do not fit each other. Values are not looked at.
  template <int count>
  Base(const Settings &settings, const Plan &plan, const Tensors &tensors, const Walk *const (&walks)[count])
      : tensors_((plan.check(settings), &tensors)),
        walk_(best(walks, settings.isa.c_str())),
        state_size_(settings.state_size),
        arena_(2 * bytes_of(tensors) + (std::size_t{64} << 20) * (1 + settings.threads) +
               sizeof(Value) * kTokens * plan.sites.back().outputs),
        team_(settings.threads) {
    if (!walk_) throw std::invalid_argument("this machine has no instruction set " + settings.isa);
    model_.layers = static_cast<int>(plan.mixes.size() / 2);
    model_.channels = settings.channels;
    model_.vocab = settings.vocab;
    model_.outputs = plan.sites.back().outputs;
    model_.threads = settings.threads;
    model_.levels = settings.levels;
    model_.smallest = settings.smallest;
    model_.spike_embedding = settings.spike_embedding;
    share_ = {&team_, [](void *team, uint64_t section, int finished, int index) {
                return static_cast<Team *>(team)->next(section, finished, index);
              }};
  }

  template <class Derived>
  void build(Derived &derived, const Plan &plan) {
    model_.embedding = copied<int8_t>("emb.weight", Tensor::kInt8, {model_.vocab, model_.channels});
    model_.ln0 = derived.norm("blocks.0.ln0");
    model_.ln_out = derived.norm("ln_out");
    for (const SitePlan &site : plan.sites) derived.finish(add_site(site), site);
    for (const MixPlan &mix : plan.mixes) mixes_.push_back(mix_of(derived, mix));
    model_.mixes = mixes_.data();
    model_.head = sites_.back().get();
    make_buffers();
    tensors_ = nullptr;
  }

  bool has(const std::string &name) const { return tensors_->count(name) != 0; }

  const Tensor &tensor(const std::string &name) const {
    const auto found = tensors_->find(name);
    if (found == tensors_->end()) throw std::invalid_argument("there is no tensor " + name);
    return found->second;
  }

  const Tensor &tensor(const std::string &name, Tensor::Type type, const std::vector<int64_t> &shape) const {
    const Tensor &found = tensor(name);
    if (found.type != type || found.shape != shape)
      throw std::invalid_argument("tensor " + name + " has another type or shape");
    return found;
  }

  template <class T>
  const T *copied(const std::string &name, Tensor::Type type, const std::vector<int64_t> &shape) {
    const Tensor &from = tensor(name, type, shape);
    std::size_t count = 1;
    for (int64_t n : shape) count *= static_cast<std::size_t>(n);
    T *to = arena_.take<T>((count + 63) / 64 * 64);
    std::memcpy(to, from.data, sizeof(T) * count);
    return to;
  }

  template <class T>
  T *take(std::size_t count) {
    return arena_.take<T>(count);
  }

  // A vector in the engine's own type.
  const Value *values(const std::string &name, int64_t count) { return copied<Value>(name, kType, {count}); }

  // Numbers for each output, or for each output and group of inputs, as [group][padded]; says how many inputs share them.
  template <class T = Value>
  T *by_group(Site &site, const std::string &name, Tensor::Type type = kType) {
    const Tensor &from = tensor(name);
    if (from.shape.size() != 2) throw std::invalid_argument("there is no tensor " + name + " of two dimensions");
    const int64_t groups = from.shape[0];
    if (groups < 1 || groups > site.inputs)
      throw std::invalid_argument("tensor " + name + " has another number of groups");
    site.groups = static_cast<int>(groups);
    site.group_inputs = groups == 1 ? site.inputs : round_up(divide_up(site.inputs, site.groups), 64);
    if ((groups - 1) * site.group_inputs >= site.inputs)
      throw std::invalid_argument("tensor " + name + " has more groups than there are inputs for");
    const T *given = static_cast<const T *>(tensor(name, type, {groups, site.outputs}).data);
    T *kept = arena_.take<T>(static_cast<std::size_t>(groups) * site.padded);
    for (int64_t group = 0; group < groups; ++group)
      for (int at = 0; at < site.padded; ++at)
        if (const int output = site.order[at]; output >= 0)
          kept[group * site.padded + at] = given[group * site.outputs + output];
    return kept;
  }

  Model model_{};

 private:
  static std::size_t bytes_of(const Tensors &tensors) {
    std::size_t total = 0;
    for (const auto &[name, tensor] : tensors) {
      std::size_t count = 4;
      for (int64_t n : tensor.shape) count *= static_cast<std::size_t>(n);
      total += count;
    }
    return total;
  }

  Site &add_site(const SitePlan &plan) {
    const Tensor &weight = tensor(plan.matrix + ".weight");
    auto site = std::make_unique<Site>();
    site->inputs = plan.inputs;
    site->outputs = plan.outputs;
    site->bits = weight.type == Tensor::kUint8 ? 4 : 8;
    site->offset = site->bits == 4 ? 8 : 128;
    site->is_signed = plan.is_signed;
    site->runs = plan.runs;
    site->stride = round_up(plan.inputs, 64);
    site->events = arena_.take<int8_t>(static_cast<std::size_t>(kTokens) * site->stride);
    site->index = static_cast<int>(sites_.size());
    const int stored = site->bits == 4 ? divide_up(plan.outputs, 2) : plan.outputs;
    lay_out(*site, tensor(plan.matrix + ".weight", weight.type, {plan.inputs, stored}), walk_->place, model_.threads,
            arena_);
    sites_.push_back(std::move(site));
    names_.push_back(plan.neuron);
    return *sites_.back();
  }

  template <class Derived>
  Mix mix_of(Derived &derived, const MixPlan &plan) {
    const auto site = [&](int index) { return sites_[static_cast<std::size_t>(index)].get(); };
    Mix mix{};
    mix.is_time = plan.is_time();
    mix.norm = derived.norm(plan.norm);
    mix.shift = plan.shift;
    mix.mix_k = derived.mixing(plan.name + ".time_mix_k");
    if (plan.is_shared()) {
      mix.input = site(plan.input);
    } else {
      mix.mix_r = derived.mixing(plan.name + ".time_mix_r");
      mix.key = site(plan.key);
      mix.value = site(plan.value);
      mix.receptance = site(plan.receptance);
      if (mix.is_time) mix.mix_v = derived.mixing(plan.name + ".time_mix_v");
    }
    if (!mix.is_time) return mix;
    mix.output = site(plan.output);
    mix.wkv = plan.wkv;
    mix.decay = values(plan.name + ".decay", model_.channels);
    mix.first = values(plan.name + ".first", model_.channels);
    return mix;
  }

  void make_buffers() {
    int inputs = 0, groups = 0;
    model_.stride = round_up(model_.channels, 64);
    for (const auto &site : sites_) {
      inputs = std::max(inputs, site->stride);
      groups = std::max(groups, site->groups);
    }
    for (const Mix &mix : mixes_) {
      int &of_key = mix.is_time ? model_.stride : model_.hidden_stride;
      if (mix.key) of_key = std::max(of_key, mix.key->padded);
      if (mix.input) model_.input_stride = std::max(model_.input_stride, mix.input->padded);
      for (const Site *site : {mix.value, mix.receptance, mix.output})
        if (site) model_.stride = std::max(model_.stride, site->padded);
    }
    for (Value **buffer : {&model_.x, &model_.normed, &model_.k, &model_.v, &model_.r})
      *buffer = arena_.take<Value>(static_cast<std::size_t>(kTokens) * model_.stride);
    model_.hidden = arena_.take<Value>(static_cast<std::size_t>(kTokens) * model_.hidden_stride);
    model_.input = arena_.take<Value>(static_cast<std::size_t>(kTokens) * model_.input_stride);
    logits_ = arena_.take<Value>(static_cast<std::size_t>(kTokens) * model_.outputs);
    const std::size_t longest = inputs + 8 * groups;  // every group is padded to whole steps of the products
    for (int index = 0; index < model_.threads; ++index) {
      WorkerOf<Value> worker{};
      worker.index = index;
      worker.scratch = arena_.take<Value>(std::max(model_.stride, kPanelOutputs));
      worker.totals = arena_.take<int32_t>(std::max(model_.stride, kPanelOutputs));
      for (auto &slot : worker.lists)
        for (Events &list : slot)
          list = {arena_.take<uint32_t>(longest), arena_.take<int8_t>(longest), arena_.take<int>(groups + 1),
                  arena_.take<int>(groups)};
      workers_.push_back(worker);
    }
  }

  void read_part(int part) {
    for (const auto &site : sites_)
      for (int p = site->panels_of[part]; p < site->panels_of[part + 1]; ++p)
        weights_sum_ +=
            walk_->read(site->panels[p].weights, static_cast<int64_t>(site->inputs) * site->panels[p].stride);
  }

  const Tensors *tensors_;  // only while the engine is built
  const Walk *walk_;
  int64_t state_size_;
  Arena arena_;
  std::vector<Mix> mixes_;
  std::vector<std::unique_ptr<Site>> sites_;
  std::vector<std::string> names_;
  Value *logits_ = nullptr;  // [kTokens][V]
  Row rows_[kTokens];
  std::vector<WorkerOf<Value>> workers_;
  PassOf<Value> pass_{};
  std::atomic<uint64_t> weights_sum_{0};
  Share share_{};
  Team team_;  // last: its threads end before the rest is gone
};

}  // namespace spikegpt::engine
