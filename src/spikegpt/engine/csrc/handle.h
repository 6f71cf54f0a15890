// An engine as Python sees it: what both kinds have.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "bind.h"
#include "turn.h"

namespace spikegpt::engine {

// Calls of several threads take turns.
template <class Engine>
class Handle {
 public:
  using Value = typename Engine::Value;
  using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
  using Vector = nb::ndarray<Value, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
  using Scores = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
  using Rows = nb::ndarray<Value, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

  // The last of Engine's arguments, if it has more than settings, plan and tensors.
  template <class... More>
  Handle(const Settings &settings, const Plan &plan, const nb::dict &arrays, const More &...more) {
    std::vector<Array> kept;
    engine_ = std::make_unique<Engine>(settings, plan, view_all(arrays, kept), more...);
    turns_ = std::make_unique<Turns<Engine>>(*engine_);
  }

  // `scores`, if given, is as large as `logits`, and has them as a sampler reads them.
  void run(const Ids &ids, const Vector &state, const Rows &logits, bool only_last, bool dense, Counters *counters,
           const std::optional<Scores> &scores) {
    const std::size_t rows = only_last ? 1 : ids.shape(0);
    if (ids.shape(0) == 0 || static_cast<int64_t>(state.shape(0)) != engine_->state_size() || logits.shape(0) != rows ||
        logits.shape(1) != static_cast<std::size_t>(engine_->outputs()) ||
        (scores && scores->shape(0) != rows * engine_->outputs()))
      throw std::invalid_argument("ids, state or logits have another shape");
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    engine_->run(ids.data(), static_cast<int64_t>(ids.shape(0)), state.data(), logits.data(), only_last, dense,
                 counts_of(*engine_, counters));
    if (scores) engine_->score(logits.data(), scores->shape(0), scores->data());
  }

  std::vector<int64_t> advance(const std::vector<Sequence *> &sequences, bool dense, bool together,
                               Counters *counters) {
    const Claim claim(sequences);
    if (engine_->outputs() != engine_->vocab()) throw std::invalid_argument("a classifier has no next token to choose");
    for (const Sequence *sequence : sequences)
      if (!sequence->state.template is<Value>() || sequence->state_size != engine_->state_size() ||
          sequence->sampler->vocab() != engine_->outputs())
        throw std::invalid_argument("a sequence is of a model of another shape");
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    return turns_->advance(sequences, dense, together, counts_of(*engine_, counters));
  }

  Counters *counters(bool neurons) const { return new Counters(*engine_, neurons); }

  uint64_t read_weights() {
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    return engine_->read_weights();
  }

  nb::list counts(const Counters &counters) { return rows_of(*engine_, copy(counters)); }

  int64_t spike_bytes(const std::string &spikes) const { return turns_->spike_bytes(spikes_named(spikes)); }

  const Engine &engine() const { return *engine_; }

 private:
  // Not while a pass is writing them.
  Counters copy(const Counters &counters) {
    nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    return counters;
  }

  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Turns<Engine>> turns_;
  std::mutex mutex_;
};

// The Python class of an engine, but for its constructor.
template <class Engine>
nb::class_<Handle<Engine>> bind_engine(nb::module_ &module, const char *name, const char *doc) {
  using namespace nb::literals;
  using Of = Handle<Engine>;
  return nb::class_<Of>(module, name, doc)
      .def("run", &Of::run, "ids"_a.noconvert(), "state"_a.noconvert(), "logits"_a.noconvert(), "only_last"_a,
           "dense"_a = false, "counters"_a = nb::none(), "scores"_a.noconvert() = nb::none(),
           "Feed tokens; `state`, `logits` and `scores`, the logits as float32 in one row, are written in place.")
      .def("advance", &Of::advance, "sequences"_a, "dense"_a = false, "together"_a = true, "counters"_a = nb::none(),
           "A turn of every sequence: what each chose, -1 where it chose nothing, -2 where its logits are not finite.")
      .def("read_weights", &Of::read_weights, "Read every weight once, in order; returns their sum.")
      .def("counters", &Of::counters, "neurons"_a, "Counters at zero, for calls of this engine; of each neuron too.")
      .def("counts", &Of::counts, "counters"_a, "One row a product, in the order they run.")
      .def("spike_bytes", &Of::spike_bytes, "spikes"_a, "Bytes of a token's spikes, as \"mask\" or \"sizes\".")
      .def_prop_ro("weight_bytes", [](const Of &self) { return self.engine().weight_bytes(); })
      .def_prop_ro("isa", [](const Of &self) { return self.engine().isa(); })
      .def_prop_ro("threads", [](const Of &self) { return self.engine().threads(); });
}

}  // namespace spikegpt::engine
