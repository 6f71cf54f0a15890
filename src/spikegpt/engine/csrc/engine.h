// The engine: a model laid out for this machine and this number of threads, and the team that runs it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arena.h"
#include "model.h"
#include "plan.h"
#include "team.h"
#include "tensor.h"

namespace spikegpt::engine {

std::vector<const Walk *> supported();

class Engine {
 public:
  // Throws std::invalid_argument where plan, settings and tensors do not fit each other. Values are not looked at.
  Engine(const Settings &settings, const Plan &plan, const Tensors &tensors);

  // Up to kTokens tokens. States are changed in place; `counts` [sites] or null.
  void pass(const Row *rows, int tokens, bool dense, Counts *counts);

  // One text: ids [tokens], state (changed in place), logits [tokens or, if only the last are wanted, 1][V].
  void run(const int64_t *ids, int64_t tokens, float *state, float *logits, bool only_last, bool dense, Counts *counts);

  // Throws std::out_of_range for a token outside the vocabulary.
  void check(int64_t id) const;

  // Reads every weight once, in order, with all threads, to measure the memory's bandwidth. Returns their sum, so that
  // the reads are not optimised away.
  uint64_t read_weights();
  int64_t weight_bytes() const;

  const char *isa() const { return walk_->name; }
  int threads() const { return model_.threads; }
  int vocab() const { return model_.vocab; }
  int outputs() const { return model_.outputs; }  // rows of the head: V, or a classifier's labels
  int64_t state_size() const { return settings_.state_size; }
  const std::vector<std::string> &names() const { return names_; }
  const Site &site(std::size_t index) const { return *sites_[index]; }
  std::size_t sites() const { return sites_.size(); }
  float *logits_row(int token) { return logits_ + static_cast<int64_t>(token) * model_.outputs; }

 private:
  const Tensor &tensor(const std::string &name, Tensor::Type type, const std::vector<int64_t> &shape) const;
  const float *floats(const std::string &name, int64_t count);
  Norm norm(const std::string &name);
  void add_site(const SitePlan &plan);
  void add_scales(Site &site, const std::string &name);
  Mix add_mix(const MixPlan &plan);
  void make_buffers();
  void read_part(int part);

  Settings settings_;
  const Tensors *tensors_;
  const Walk *walk_;
  Arena arena_;
  Model model_{};
  std::vector<Mix> mixes_;
  std::vector<std::unique_ptr<Site>> sites_;
  std::vector<std::string> names_;
  float *logits_ = nullptr;  // [kTokens][V] for callers that keep none
  Row rows_[kTokens];
  std::vector<Worker> workers_;
  Pass pass_{};
  std::atomic<uint64_t> weights_sum_{0};
  Share share_{};
  Team team_;
};

}  // namespace spikegpt::engine
