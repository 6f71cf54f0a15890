// What the binding's files share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "model.h"
#include "turn.h"

namespace spikegpt::engine {

// What calls have counted; it belongs to who gave it to them. `counts` points into `fired`, so that a copy is made with care.
struct Counters {
  template <class AnyEngine>
  Counters(const AnyEngine &engine, bool neurons) : neurons(neurons), fired(engine.sites()), counts(engine.sites()) {
    for (std::size_t i = 0; i < fired.size(); ++i) fired[i].assign(neurons ? engine.site(i).inputs : 0, 0);
    point();
  }
  Counters(const Counters &other) : neurons(other.neurons), fired(other.fired), counts(other.counts) { point(); }
  Counters &operator=(const Counters &) = delete;

  void add(const Counters &other) {
    if (other.fired.size() != fired.size() || (neurons && !other.neurons))
      throw std::invalid_argument("these counters are not of the same kind");
    for (std::size_t i = 0; i < counts.size(); ++i) {
      counts[i].steps += other.counts[i].steps;
      counts[i].active += other.counts[i].active;
      counts[i].units += other.counts[i].units;
      counts[i].saturated += other.counts[i].saturated;
      for (std::size_t n = 0; n < fired[i].size(); ++n) fired[i][n] += other.fired[i][n];
    }
  }

  bool neurons;
  std::vector<std::vector<int64_t>> fired;
  std::vector<Counts> counts;

 private:
  void point() {
    for (std::size_t i = 0; i < fired.size(); ++i) counts[i].fired = neurons ? fired[i].data() : nullptr;
  }
};

// Sequences while a call has them: one that stands in two calls, or twice in one, is refused.
class Claim {
 public:
  explicit Claim(const std::vector<Sequence *> &sequences);
  ~Claim();
  Claim(const Claim &) = delete;
  Claim &operator=(const Claim &) = delete;

 private:
  const std::vector<Sequence *> &sequences_;
  std::size_t claimed_ = 0;
};

Spikes spikes_named(const std::string &name);

// A vector that becomes a numpy array, without a copy.
template <class T>
nanobind::ndarray<nanobind::numpy, T, nanobind::ndim<1>> array_of(std::vector<T> values) {
  auto *kept = new std::vector<T>(std::move(values));
  nanobind::capsule owner(kept, [](void *p) noexcept { delete static_cast<std::vector<T> *>(p); });
  return {kept->data(), {kept->size()}, owner};
}

// One row a product, in the order they run.
template <class AnyEngine>
nanobind::list rows_of(const AnyEngine &engine, const Counters &counted) {
  nanobind::list all;
  for (std::size_t i = 0; i < engine.sites(); ++i) {
    const auto &site = engine.site(i);
    const Counts &counts = counted.counts[i];
    nanobind::dict row;
    row["name"] = engine.names()[i];
    row["inputs"] = site.inputs;
    row["outputs"] = site.outputs;
    row["bits"] = site.bits;
    row["steps"] = counts.steps;
    row["active"] = counts.active;
    row["units"] = counts.units;
    row["saturated"] = counts.saturated;
    if (counted.neurons) row["fired"] = array_of(counted.fired[i]);
    all.append(row);
  }
  return all;
}

// What a pass of the engine writes to, or null.
template <class AnyEngine>
Counts *counts_of(const AnyEngine &engine, Counters *counters) {
  if (!counters) return nullptr;
  if (counters->fired.size() != engine.sites()) throw std::invalid_argument("these counters are another model's");
  return counters->counts.data();
}

void bind_sampling(nanobind::module_ &module);

}  // namespace spikegpt::engine
