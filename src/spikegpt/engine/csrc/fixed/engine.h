// The integers-only engine: a model laid out for this machine and this number of threads, and the team that runs it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../arena.h"
#include "../team.h"
#include "../tensor.h"
#include "model.h"

namespace spikegpt::engine::fixed {

using Numbers = std::map<std::string, int64_t>;

std::vector<const Walk *> supported();

class Engine {
 public:
  // `numbers`: the config, widths and fractions of the formats, sizes of the tables; `offsets`: where the state keeps each
  // of its tensors. Throws invalid_argument where something is missing or of another shape.
  Engine(const Numbers &numbers, const Tensors &tensors, const Numbers &offsets, const std::string &isa);

  // ids [tokens], state (changed in place), logits [tokens or, if only the last are wanted, 1][V].
  // `counts` [sites] or null.
  void run(const int64_t *ids, int64_t tokens, int32_t *state, int32_t *logits, bool only_last, bool dense,
           Counts *counts);

  const char *isa() const { return walk_->name; }
  int threads() const { return model_.threads; }
  int vocab() const { return model_.vocab; }
  int64_t state_size() const { return state_size_; }
  const std::vector<std::string> &names() const { return names_; }
  const Site &site(std::size_t index) const { return *sites_[index]; }
  std::size_t sites() const { return sites_.size(); }

 private:
  int number(const std::string &name) const;
  const Tensor &tensor(const std::string &name, Tensor::Type type, const std::vector<int64_t> &shape) const;
  const int32_t *integers(const std::string &name, int64_t count);
  int32_t integer(const std::string &name) { return *integers(name, 1); }
  Norm norm(const std::string &name);
  Mixing mixing(const std::string &name);
  Arithmetic arithmetic();
  Mix add_mix(int layer, bool is_first);
  Site *add_site(const std::string &matrix, const std::string &format, int inputs, int outputs, bool is_signed);
  void make_buffers();

  const Numbers *numbers_;
  const Tensors *tensors_;
  const Numbers *offsets_;
  const Walk *walk_;
  Arena arena_;
  Model model_{};
  int hidden_ = 0;
  int64_t state_size_ = 0;
  std::vector<Mix> mixes_;
  std::vector<std::unique_ptr<Site>> sites_;
  std::vector<std::string> names_;
  std::vector<Worker> workers_;
  Pass pass_{};
  Share share_{};
  Team team_;
};

}  // namespace spikegpt::engine::fixed
